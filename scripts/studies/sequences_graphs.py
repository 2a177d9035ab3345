"""Names and a graph of papers: a net that knows the structure of its input against one that does not."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from locallearn.figures import by_depth, panels
from locallearn.figures.plane import plane
from studies.common import Options, averaged, mean, path, runs, spread, table, verdicts

NUMBER = 3
NAME = "sequences_graphs"
TITLE = "Sequences and graphs: recurrent and graph nets against fully connected ones"
TEXT = (
    "Which language is a surname from (18 unequal classes): three stacked recurrent layers against a fully "
    "connected net on a quarter of the names. Which field is a paper of Cora from, with 140 and with 1,000 "
    "labelled nodes: a graph net of three convolutions against a fully connected net that does not see the "
    "citations. Accuracy, the planes by the pairwise bounds (noise of each layer's own, "
    "`noise_variance=distances`), and the signal-to-noise ratio of the gradient of every layer. Published: Kipf & "
    "Welling 2017, Cora with 140 labels: GCN 81.5 % (two convolutions), MLP 55.1 % [M: from memory]."
)
NEEDS_DATA = True
PUBLISHED = {("cora140", "gcn"): "81.5 [M]", ("cora140", "mlp"): "55.1 [M]"}
MLP = "model=mlp model.batch_norm=false"
NAMES = "data=names batch_size=64 optim.lr=2e-3 epochs=10 data.fraction=0.25"
CORA = "data=cora optim.lr=0.01 optim.weight_decay=5e-4 optim.schedule=constant epochs=200 data.labelled="
TASKS = {
    "names": {"rnn": f"{NAMES} model=rnn", "mlp": f"{NAMES} {MLP} model.width=128"},
    "cora140": {
        "gcn": f"{CORA}140 model=gcn",
        "mlp": f"{CORA}140 {MLP} model.width=16 model.depth=2 model.dropout=0.5",
    },
    "cora1000": {
        "gcn": f"{CORA}1000 model=gcn",
        "mlp": f"{CORA}1000 {MLP} model.width=16 model.depth=2 model.dropout=0.5",
    },
}
KEYS = ("epoch", "layer", "name", "i_x_t", "i_t_y", "i_x_t_lower", "i_x_t_upper", "i_t_y_lower", "i_t_y_upper", "h_y")


def run(options: Options) -> dict[str, Any]:
    seeds, samples, batches = (0, 1, 2), 1000, 16
    if options.quick:
        seeds, samples, batches = (0,), 100, 2
    looks = (
        "probe=[information_plane,gradient_snr] probe.information_plane.noise_variance=distances "
        f"probe.information_plane.samples={samples} probe.information_plane.every=log "
        f"probe.gradient_snr.batches={batches} probe.gradient_snr.batch_size=8 probe.gradient_snr.every=log"
    )
    settings = {
        (task, net, k): f"strategy=backprop blocks=1 {words} evaluate_every=10 checkpoint.every=never seed={k} {looks}"
        for task, nets in TASKS.items()
        for net, words in nets.items()
        for k in seeds
    }
    if options.quick:
        settings = {key: f"{text} max_steps=2" for key, text in settings.items()}
    found = runs(settings, options)
    results: dict[str, Any] = {task: {} for task in TASKS}
    for task, nets in TASKS.items():
        for net in nets:
            repeats = [found[task, net, k] for k in seeds]
            planes = averaged([r.rows("information_plane") for r in repeats])
            noise = averaged([r.rows("gradient_snr") for r in repeats])
            results[task][net] = {
                "accuracy": [100 * r.summary["test/accuracy"] for r in repeats],
                "plane": [{k: row[k] for k in KEYS if row.get(k) is not None} for row in planes],
                "snr": [{k: row.get(k) for k in ("epoch", "layer", "name", "gradient_snr")} for row in noise],
            }
    return results


def draw(results: dict[str, Any]) -> dict[str, Any]:
    figures = {
        f"{NAME}_{task}_{net}": plane([found["plane"]]) for task, nets in results.items() for net, found in nets.items()
    }
    figure, axes = panels(2, len(results), width=2.7, height=1.9)
    cells = [(task, net, found) for task, nets in results.items() for net, found in nets.items()]
    for axis, (task, net, found) in zip(axes, cells, strict=True):
        names = {row["layer"]: row["name"] for row in found["snr"]}
        for (layer, name), colour in zip(names.items(), by_depth(len(names)), strict=True):
            axis.plot(*path(found["snr"], layer, "gradient_snr"), color=colour, label=name)
        axis.axhline(1, color="black", lw=0.6)
        axis.set(xlabel="epoch", ylabel="gradient SNR", yscale="log", title=f"{task}, {net}")
        axis.set_xscale("symlog", linthresh=1)
        axis.set_xlim(left=0)
        axis.legend(fontsize=6)
    return {f"{NAME}_snr": figure, **figures}


def render(results: dict[str, Any]) -> Iterator[str]:
    lines = []
    for task, nets in results.items():
        for net, found in nets.items():
            last = max(row["epoch"] for row in found["plane"])
            at_end = [row for row in found["plane"] if row["epoch"] == last]
            layers = sorted({row["layer"] for row in found["snr"]})
            ratios = [path(found["snr"], layer, "gradient_snr")[1] for layer in layers]
            lines.append(
                (
                    f"{task}, {net}",
                    spread(found["accuracy"]),
                    PUBLISHED.get((task, net), ""),
                    ", ".join(f"{row['i_t_y']:.2f}" for row in at_end),
                    f"{at_end[0]['h_y']:.2f}",
                    ", ".join(f"{r[0]:.1f} to {r[-1]:.1f}" for r in ratios if r),
                )
            )
    yield "After training; the numbers of layers are from the input upward.\n"
    heads = ["task, net", "test accuracy", "published", "I(T;Y) by layer [bits]", "H(Y)", "gradient SNR, first to last"]
    yield from table(heads, lines)
    accuracy = {(task, net): mean(found["accuracy"]) for task, nets in results.items() for net, found in nets.items()}
    gaps = {
        task: accuracy[task, structured] - accuracy[task, "mlp"]
        for task, structured in (("names", "rnn"), ("cora140", "gcn"), ("cora1000", "gcn"))
    }
    falls = [
        (ratio[-1] < ratio[0])
        for nets in results.values()
        for found in nets.values()
        for layer in {row["layer"] for row in found["snr"]}
        if len(ratio := path(found["snr"], layer, "gradient_snr")[1]) > 1
    ]
    noise = max(_deviation(found["accuracy"]) for found in results["names"].values())
    yield from verdicts(
        [
            (
                gaps["names"] > 2 * noise,
                f"the recurrent net is better on names: by {gaps['names']:.1f} points; seeds differ by {noise:.1f}.",
            ),
            (gaps["cora140"] > 10, f"the graph is worth most with few labels: {gaps['cora140']:.1f} points with 140,"),
            (gaps["cora1000"] < gaps["cora140"], f"and less with 1,000: {gaps['cora1000']:.1f}."),
            (
                sum(falls) > len(falls) / 2,
                f"the gradient's signal-to-noise falls while the net learns: in {sum(falls)} of {len(falls)} layers.",
            ),
        ]
    )


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
