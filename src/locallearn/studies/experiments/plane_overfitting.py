"""The 12-bit task with few and with many patterns: what overfitting looks like in the information plane."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean, median
from typing import Any

from locallearn.figures import COLOURS, by_depth, panels
from locallearn.runs.read import Run
from locallearn.studies.analysis import Analysis, Runs, averaged, curve, markdown_table, mean_std, verdicts

SHARES = ("5 %", "45 %", "85 %")
PLANES = {"train": "information_plane", "test": "plane_test", "all": "plane_all", "own": "plane_own"}
READERS = {"train": "usable_train", "test": "usable_information"}
KEYS = ("epoch", "layer", "name", "i_x_t", "i_t_y", "h_y")
WIDE = 3
"""Digits of bits that are small."""


class PlaneOverfitting(Analysis):
    """Mean planes by share, the look before the least validation loss, breaks of the data-processing inequality before
    and after it, and what is read of the label on training and on test patterns."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {share: _of(runs, share) for share in SHARES}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, axes = panels(len(SHARES), 3, width=2.6, height=2.2)
        for k, (share, own) in enumerate(numbers.items()):
            for axis, where in zip((axes[k], axes[len(SHARES) + k]), ("train", "test"), strict=True):
                _draw_plane(axis, own["planes"][where], median(own["mark"]))
                axis.set_title(f"{share}, {'training' if where == 'train' else where} patterns")
            last = axes[2 * len(SHARES) + k]
            top = max(row["layer"] for row in own["planes"]["all"])
            for where, colour in zip(("train", "test", "all"), COLOURS, strict=False):
                epochs, values = curve(own["planes"][where], top, "i_t_y")
                last.plot(epochs, values, color=colour, label=f"{'training' if where == 'train' else where} patterns")
            last.axvline(median(own["mark"]), color="black", lw=0.8, ls=":")
            last.set_xscale("symlog", linthresh=1)
            last.set(xlabel="epoch", ylabel="I(T;Y), last layer [bits]", xlim=(0, None))
        axes[len(SHARES) - 1].legend(fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
        axes[-1].legend(fontsize=6)
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        head = (
            "trained on", "test accuracy [%]", "epoch of the lowest validation loss, by seed",
            "I(T;Y) on all patterns, highest, last [bits]", "read on training and test patterns, by layer [bits]",
            "violations of the data-processing inequality, before, after that epoch: fixed noise", "own noise",
        )  # fmt: skip
        rows = []
        for share, own in numbers.items():
            read = ", ".join(f"{a:.2f} {b:.2f}" for a, b in zip(own["read"]["train"], own["read"]["test"], strict=True))
            breaks = [", ".join(f"{b[0]} of {b[1]}" for b in own["breaks"][kind]) for kind in ("train", "own")]
            high, last = (mean_std(values, WIDE) for values in (own["highest"], own["last"]))
            marks = ", ".join(map(str, own["mark"]))
            rows.append((share, mean_std(own["accuracy"]), marks, f"{high}, {last}", read, *breaks))
        yield from markdown_table(head, rows)
        h_y = numbers[SHARES[-1]]["planes"]["all"][0]["h_y"]
        yield f"\nH(Y) = {h_y:.3f} bits. I(T;Y) on all patterns is that of the last layer, by the upper bound."
        falls = {share: fmean(own["highest"]) - fmean(own["last"]) for share, own in numbers.items()}
        gaps = {share: own["read"]["train"][-1] - own["read"]["test"][-1] for share, own in numbers.items()}
        few, most = SHARES[0], SHARES[-1]
        fixed = [sum(b[0] for b in own["breaks"]["train"]) for own in numbers.values()]
        yield from verdicts(
            (
                falls[few] > 0.01 and falls[few] > 2 * falls[most],
                f"with 5 % of the patterns, I(T;Y) on all patterns falls late in training, by {falls[few]:.3f} bits; "
                f"with 85 % by {falls[most]:.3f}.",
            ),
            (
                gaps[few] > gaps["45 %"] > gaps[most],
                "the fewer the patterns, the more can be read from the last layer on training patterns only: "
                + ", ".join(f"{share} {gap:.2f} bits" for share, gap in gaps.items())
                + ".",
            ),
            (
                sum(fixed) == 0,
                f"under a fixed noise no layer has more information than the one below it ({sum(fixed)} violations), "
                "overfitted or not.",
            ),
        )


def _of(runs: Runs, share: str) -> dict[str, Any]:
    planes = {where: averaged(runs.rows(share, probe)) for where, probe in PLANES.items()}
    marks = [_mark(run) for run in runs.by_row[share]]
    top = max(row["layer"] for row in planes["all"])
    on_all = [curve(rows, top, "i_t_y")[1] for rows in runs.rows(share, PLANES["all"])]
    return {
        "accuracy": runs.accuracy(share),
        "planes": {where: [{k: row[k] for k in KEYS if k in row} for row in rows] for where, rows in planes.items()},
        "mark": marks,
        "highest": [max(values) for values in on_all],
        "last": [values[-1] for values in on_all],
        "read": {where: _read(runs.rows(share, probe)) for where, probe in READERS.items()},
        "breaks": {kind: _breaks(runs.rows(share, PLANES[kind]), marks) for kind in ("train", "own")},
    }


def _mark(run: Run) -> int:
    """The epoch with the least validation loss."""
    losses = {record["epoch"]: record["validation/loss"] for record in run.history if "validation/loss" in record}
    return int(min(losses, key=lambda epoch: losses[epoch]))


def _read(seeds: list[list[dict[str, Any]]]) -> list[float]:
    """Bits that are read from each layer at the last look, means over the seeds."""
    last = [[r["usable_information"] for r in rows if r["epoch"] == rows[-1]["epoch"]] for rows in seeds]
    return [round(fmean(values), 4) for values in zip(*last, strict=True)]


def _breaks(seeds: list[list[dict[str, Any]]], marks: list[int]) -> list[tuple[int, int]]:
    """How many looks at a layer break the data-processing inequality, and of how many: before the mark, and after."""
    looks = [
        (row["epoch"] > mark, "data-processing" in (row["warnings"] or ""))
        for rows, mark in zip(seeds, marks, strict=True)
        for row in rows
    ]
    return [(sum(broken for late, broken in looks if late == side), sum(late == side for late, _ in looks))
            for side in (False, True)]  # fmt: skip


def _draw_plane(axis: Any, rows: list[dict[str, Any]], mark: float) -> None:
    """A path for each layer, the last look as a dot and the one before the mark as a star."""
    layers = sorted({row["layer"] for row in rows})
    for layer, colour in zip(layers, by_depth(len(layers)), strict=True):
        (epochs, x), (_, y) = curve(rows, layer, "i_x_t"), curve(rows, layer, "i_t_y")
        at = max((k for k, epoch in enumerate(epochs) if epoch <= mark), default=0)
        axis.plot(x, y, color=colour, lw=0.9, label=f"layer {layer}")
        axis.plot(x[-1:], y[-1:], "o", ms=3, color=colour)
        axis.plot(x[at : at + 1], y[at : at + 1], "*", ms=6, color=colour)
    h_y, right = rows[0]["h_y"], axis.get_xlim()[1]
    axis.plot([0, min(h_y, right), right], [0, min(h_y, right), min(h_y, right)], color="#bbbbbb", lw=0.8, zorder=0)
    axis.set(xlabel="I(X;T) [bits]", ylabel="I(T;Y) [bits]")
