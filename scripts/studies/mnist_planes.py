"""Information planes on MNIST: does the noise that one adds decide what one sees?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from locallearn.figures import by_depth, panels
from locallearn.figures.plane import plane
from studies.common import Options, Run, mean, runs, spread, table, verdicts

NUMBER = 2
NAME = "mnist_planes"
TITLE = "MNIST: the plane under a fixed noise and under each layer's own"
TEXT = (
    "A 784-1024-20-20-20-10 net (tanh, ReLU) and LeNet (ReLU) on a quarter of MNIST; I(X;T) and I(T;Y) of every "
    "layer on 4,000 test images by both pairwise bounds (`probe=information_plane`). Once with Gaussian noise of "
    "variance 0.1 on every layer, as in the paper, and once with 1/1000 of the 90th percentile of the layer's own "
    "squared distances, measured anew at every look: a layer that only grows then does not gain information. "
    "Published: Saxe et al. 2018 (Fig. 4 and appendix; 10,000 test images, SGD 1e-3): tanh compresses, ReLU does "
    "not [R]; I(X;T) of the wide first layer is saturated at log2 N. The checks of `locallearn.information` are "
    "counted below: saturated at log2 N, I(T;Y) above H(Y), data-processing inequality."
    " The numbers of LeNet were measured from PyTorch's initialisation; it begins as He et al., 2015, say now."
)
NEEDS_DATA = True
MLP = "model=mlp model.width=[1024,20,20,20] model.batch_norm=false"
NETS = {"tanh": f"{MLP} model.activation=tanh", "relu": f"{MLP} model.activation=relu", "lenet": "model=lenet"}
NOISES = {"fixed": "0.1", "own": "distances"}
CHECKS = {"saturated": "saturated at log2", "above H(Y)": "is above H(Y)", "data processing": "data-processing"}


def run(options: Options) -> dict[str, Any]:
    data, epochs, samples, seeds = "data=mnist data.fraction=0.25", 30, 4000, (0, 1)
    if options.quick:
        data, epochs, samples, seeds = "data=digits", 2, 200, (0,)
    common = (
        f"strategy=backprop blocks=1 {data} epochs={epochs} evaluate_every={epochs} batch_size=128 optim=sgd "
        "optim.lr=0.05 optim.weight_decay=5e-4 optim.warmup=0.1 optim.schedule=constant "
        "checkpoint.every=never probe=information_plane "
        f"probe.information_plane.every=log probe.information_plane.samples={samples}"
    )
    settings = {
        (net, noise, seed): f"{words} {common} probe.information_plane.noise_variance={value} seed={seed}"
        for net, words in NETS.items()
        for noise, value in NOISES.items()
        for seed in seeds
    }
    found = runs(settings, options)
    return {
        net: {
            "accuracy": [100 * found[net, "fixed", seed].summary["test/accuracy"] for seed in seeds],
            "rows": {noise: [_kept(found[net, noise, seed]) for seed in seeds] for noise in NOISES},
        }
        for net in NETS
    }


KEYS = ("epoch", "layer", "name", "noise_variance", "h_y", "samples")


def _kept(run: Run) -> list[dict[str, Any]]:
    """The rows of one run, rounded, with the names of the checks that warned."""
    kept = []
    for row in run.rows("information_plane"):
        bits = {k: round(v, 4) for k, v in row.items() if k.startswith(("i_x", "i_t")) and v is not None}
        said = [name for name, words in CHECKS.items() if words in (row["warnings"] or "")]
        kept.append({k: row[k] for k in KEYS} | bits | {"checks": said})
    return kept


def draw(results: dict[str, Any]) -> dict[str, Any]:
    figures = {
        f"{NAME}_{net}_{noise}": plane(seeds)
        for net, found in results.items()
        for noise, seeds in found["rows"].items()
    }
    figure, axes = panels(len(results))
    for axis, (net, found) in zip(axes, results.items(), strict=True):
        rows = [row for seed in found["rows"]["own"] for row in seed]
        layers = sorted({row["layer"] for row in rows})
        for layer, colour in zip(layers, by_depth(len(layers)), strict=True):
            epochs = sorted({row["epoch"] for row in rows})
            line = [mean(r["noise_variance"] for r in rows if r["layer"] == layer and r["epoch"] == e) for e in epochs]
            axis.plot(epochs, line, color=colour, label=f"layer {layer}")
        axis.axhline(0.1, color="black", lw=0.8, ls="--")
        axis.set(xlabel="epoch", yscale="log", ylabel="noise variance from the distances", title=net)
        axis.legend(fontsize=6)
    return {**figures, f"{NAME}_noise": figure}


def _path(seeds: list[list[dict]], layer: int, key: str) -> list[float]:
    """A number of one layer over the looks, mean over seeds."""
    lines = [[row[key] for row in rows if row["layer"] == layer] for rows in seeds]
    return [mean(values) for values in zip(*lines, strict=True)]


def render(results: dict[str, Any]) -> Iterator[str]:
    head = (
        "net (accuracy)",
        "noise",
        "layer",
        "I(X;T) at first, highest, last [bits]",
        "I(T;Y) at last",
        "checks that warned",
    )
    rows = []
    drops: dict[tuple[str, str], list[float]] = {}
    for net, found in results.items():
        for noise, seeds in found["rows"].items():
            for layer in sorted({row["layer"] for row in seeds[0]}):
                x, y = _path(seeds, layer, "i_x_t"), _path(seeds, layer, "i_t_y")
                drops.setdefault((net, noise), []).append(max(x) - x[-1])
                looks = [row for s in seeds for row in s if row["layer"] == layer]
                warned = {name: sum(name in row["checks"] for row in looks) for name in CHECKS}
                shown = ", ".join(f"{name} {n} of {len(looks)}" for name, n in warned.items() if n) or "none"
                name = f"{net} ({spread(found['accuracy'])})" if noise == "fixed" and layer == 0 else ""
                bits = f"{x[0]:.2f}, {max(x):.2f}, {x[-1]:.2f}"
                rows.append((name, noise if layer == 0 else "", str(layer), bits, f"{y[-1]:.2f}", shown))
    yield from table(head, rows)
    h_y = results["tanh"]["rows"]["fixed"][0][0]["h_y"]
    yield f"\nNumbers are those of the upper bound; H(Y) = {h_y:.3f} bits."

    def hidden(net: str, noise: str) -> float:
        return max(drops[net, noise][1:])

    yield from verdicts(
        [
            (
                hidden("tanh", "fixed") > hidden("relu", "fixed"),
                f"under a fixed noise the narrow tanh layers compress by up to {hidden('tanh', 'fixed'):.2f} bits, the "
                f"ReLU layers by up to {hidden('relu', 'fixed'):.2f}",
            ),
            (
                max(drops["tanh", "fixed"][0], drops["relu", "fixed"][0]) < 0.5,
                "the wide first layer is saturated throughout",
            ),
        ]
    )
    own = ", ".join(f"{net} {hidden(net, 'own'):.2f}" for net in results)
    yield f"- With each layer's own noise the largest loss of I(X;T) in a layer above the first is, in bits: {own}."
