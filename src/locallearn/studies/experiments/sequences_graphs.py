"""Names and a graph of papers: a net that knows the structure of its input against one that does not."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from locallearn.figures import by_depth, panels
from locallearn.figures.plane import plane
from locallearn.studies.analysis import Analysis, Runs, averaged, curve, deviation, markdown_table, mean_std, verdicts

TASKS = {"names": ("rnn", "mlp"), "cora140": ("gcn", "mlp"), "cora1000": ("gcn", "mlp")}
KEYS = ("epoch", "layer", "name", "i_x_t", "i_t_y", "i_x_t_lower", "i_x_t_upper", "i_t_y_lower", "i_t_y_upper", "h_y")
HEAD = (
    *("task, net", "test accuracy [%]", "published", "I(T;Y) by layer [bits]", "H(Y) [bits]"),
    "gradient SNR by layer, first to last look",
)


class SequencesGraphs(Analysis):
    """Accuracy, information planes and gradient signal-to-noise of both nets on each task."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {task: {net: _of(runs, f"{task}, {net}") for net in nets} for task, nets in TASKS.items()}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        cells = {(task, net): own for task, nets in numbers.items() for net, own in nets.items()}
        figure, axes = panels(2, len(numbers), width=2.7, height=1.9)
        for axis, ((task, net), own) in zip(axes, cells.items(), strict=True):
            names = {row["layer"]: row["name"] for row in own["snr"]}
            for (layer, name), colour in zip(names.items(), by_depth(len(names)), strict=True):
                axis.plot(*curve(own["snr"], layer, "gradient_snr"), color=colour, label=name)
            axis.axhline(1, color="black", lw=0.6)
            axis.set(xlabel="epoch", ylabel="gradient SNR", yscale="log", title=f"{task}, {net}")
            axis.set_xscale("symlog", linthresh=1)
            axis.set_xlim(left=0)
            axis.set_ylim(0.015, 2)
            axis.legend(fontsize=6, loc="lower left", ncols=2)
        return {"snr": figure} | {f"{task}_{net}": plane([own["plane"]]) for (task, net), own in cells.items()}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        lines, falls = [], []
        accuracy: dict[tuple[str, str], float] = {}
        for task, nets in numbers.items():
            for net, own in nets.items():
                last = max(row["epoch"] for row in own["plane"])
                at_end = [row for row in own["plane"] if row["epoch"] == last]
                layers = sorted({row["layer"] for row in own["snr"]})
                ratios = [ratio for layer in layers if (ratio := curve(own["snr"], layer, "gradient_snr")[1])]
                falls += [ratio[-1] < ratio[0] for ratio in ratios if len(ratio) > 1]
                accuracy[task, net] = fmean(own["accuracy"])
                lines.append(
                    (
                        f"{task}, {net}",
                        mean_std(own["accuracy"]),
                        own["published"],
                        ", ".join(f"{row['i_t_y']:.2f}" for row in at_end),
                        f"{at_end[0]['h_y']:.2f}",
                        ", ".join(f"{r[0]:.1f} to {r[-1]:.1f}" for r in ratios),
                    )
                )
        yield "After training; layers are listed from the input upward, the last SNR is that of the head.\n"
        yield from markdown_table(HEAD, lines)
        gaps = {task: accuracy[task, nets[0]] - accuracy[task, nets[1]] for task, nets in TASKS.items()}
        noise = max(deviation(own["accuracy"]) for own in numbers["names"].values())
        yield from verdicts(
            (
                gaps["names"] > 2 * noise,
                f"the recurrent net is better on names: by {gaps['names']:.1f} points; seeds deviate by {noise:.1f}.",
            ),
            (gaps["cora140"] > 10, f"the graph helps a lot with few labels: by {gaps['cora140']:.1f} points with 140."),
            (gaps["cora1000"] < gaps["cora140"], f"it helps less with 1,000: by {gaps['cora1000']:.1f} points."),
            (
                sum(falls) > len(falls) / 2,
                "the gradient's signal-to-noise ratio falls as the net learns: in "
                f"{sum(falls)} of {len(falls)} layers.",
            ),
        )


def _of(runs: Runs, row: str) -> dict[str, Any]:
    planes, noise = (averaged(runs.rows(row, probe)) for probe in ("information_plane", "gradient_snr"))
    return {
        "accuracy": runs.accuracy(row),
        "published": runs.published.get(row, ""),
        "plane": [{k: r[k] for k in KEYS if r.get(k) is not None} for r in planes],
        "snr": [{k: r.get(k) for k in ("epoch", "layer", "name", "gradient_snr")} for r in noise],
    }
