"""What each depth still tells of the label under backpropagation and under greedy local learning: InfoPro's picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import Any

from locallearn.figures import COLOURS, by_depth, panels
from locallearn.studies.analysis import Analysis, Runs, listed, markdown_table, mean_std, means, verdicts

ROWS = {"1": "backprop", **{str(k): f"K = {k}" for k in (2, 4, 8, 16)}}
# published at the units 1, 8 and 16 of 16, by K
READ = {
    "1": (0.925, 0.922, 0.930),
    "2": (0.920, 0.897, 0.902),
    "4": (0.917, 0.838, 0.844),
    "8": (0.914, 0.782, 0.786),
    "16": (0.901, 0.748, 0.753),
}
LINEAR = {
    "1": (0.25, 0.49, 0.925),
    "2": (0.28, 0.875, 0.90),
    "4": (0.28, 0.83, 0.845),
    "8": (0.31, 0.76, 0.79),
    "16": (0.40, 0.725, 0.75),
}
KEYS = {
    "linear_accuracy": "linear",
    "usable_accuracy": "usable_information",
    "usable_information": "usable_information",
}
"""The numbers that are shown, and the probe of each."""
AXES = ("accuracy of a linear classifier", "accuracy of a small net", "bits of the label it reads")
HEAD = (
    *("blocks", "test accuracy [%]", "linear classifier at units 1, 8, 16", "published [Rf]"),
    *("small net at units 1, 8, 16", "published [Rf]", "I(h; y) [bits]"),
)


class InformationByDepth(Analysis):
    """What classifiers read of the label at every unit, before and after training."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {
            "accuracy": {k: runs.accuracy(row) for k, row in ROWS.items()},
            "untrained": _by_layer(runs, "backprop", first=True),
            "trained": {k: _by_layer(runs, row, first=False) for k, row in ROWS.items()},
            "h_y": runs.rows("backprop", "usable_information")[0][0]["label_entropy"],
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, axes = panels(3)
        for axis, key, label in zip(axes, KEYS, AXES, strict=True):
            line = means(numbers["untrained"][key])
            axis.plot(range(1, len(line) + 1), line, ":", color=COLOURS[6], label="untrained")
            colours = [COLOURS[7], *by_depth(len(numbers["trained"]) - 1)]
            for (k, own), colour in zip(numbers["trained"].items(), colours, strict=True):
                axis.plot(range(1, len(line) + 1), means(own[key]), "o-", ms=2.5, color=colour, label=ROWS[k])
            axis.set(xlabel="unit, from the input upward", ylabel=label, xticks=range(1, len(line) + 1, 3))
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=6, fontsize=7, frameon=False)
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        at = {k: {key: means(own[key]) for key in KEYS} for k, own in numbers["trained"].items()}

        def triple(values: Sequence[float]) -> str:
            return listed(values[min(unit, len(values) - 1)] for unit in (0, 7, 15))

        rows = []
        for k, own in at.items():
            linear, read, bits = map(triple, own.values())
            rows.append(
                (ROWS[k], mean_std(numbers["accuracy"][k]), linear, listed(LINEAR[k]), read, listed(READ[k]), bits)
            )
        yield from markdown_table(HEAD, rows)
        yield f"\nH(y) = {numbers['h_y']:.2f} bits."
        final = {ROWS[k]: fmean(values) for k, values in numbers["accuracy"].items()}
        middle = [own["linear_accuracy"][len(own["linear_accuracy"]) // 2] for own in at.values()]
        top = [own["usable_information"][-1] for own in at.values()]
        yield from verdicts(
            (
                list(final.values()) == sorted(final.values(), reverse=True),
                "the more blocks, the lower the test accuracy: "
                + ", ".join(f"{accuracy:.1f} ({row})" for row, accuracy in final.items())
                + ".",
            ),
            (
                min(middle[1:]) > middle[0],
                f"greedy features are linearly separable early: half-way up the net {middle[0]:.2f} under backprop, "
                f"{listed(middle[1:])} under greedy learning.",
            ),
            (
                top[-1] < top[0],
                "at the top, greedy learning in 16 blocks has lost information about the label: "
                f"{top[-1]:.2f} bits can be read, {top[0]:.2f} under backprop.",
            ),
        )


def _by_layer(runs: Runs, row: str, first: bool) -> dict[str, list[list[float]]]:
    """Each number as [seed][layer], at the initial weights or after the last epoch."""
    values: dict[str, list[list[float]]] = {}
    for key, probe in KEYS.items():
        values[key] = []
        for rows in runs.rows(row, probe):
            epoch = 0 if first else max(r["epoch"] for r in rows)
            values[key].append([r[key] for r in rows if r["epoch"] == epoch and key in r])
    return values
