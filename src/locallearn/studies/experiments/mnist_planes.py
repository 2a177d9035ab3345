"""Information planes on MNIST: does the noise that one adds decide what one sees?"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from locallearn.figures import by_depth, panels
from locallearn.figures.plane import plane
from locallearn.runs.read import Run
from locallearn.studies.analysis import Analysis, Runs, markdown_table, mean_std, means, verdicts

NETS = ("tanh", "relu", "lenet")
NOISES = ("fixed", "own")
CHECKS = {"saturated": "saturated at log2", "above H(Y)": "is above H(Y)", "data processing": "data-processing"}
KEYS = ("epoch", "layer", "name", "noise_variance", "h_y", "samples")
HEAD = (
    *("net (test accuracy [%])", "noise", "layer", "I(X;T): first, highest, last [bits]", "I(T;Y): last [bits]"),
    "looks with a warning",
)


class MnistPlanes(Analysis):
    """The planes of each net under both noises, and which checks of the estimates warned."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {
            net: {
                "accuracy": runs.accuracy(f"{net}, fixed"),
                "rows": {noise: [_kept(run) for run in runs.by_row[f"{net}, {noise}"]] for noise in NOISES},
            }
            for net in NETS
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        planes = {f"{net}_{noise}": plane(of) for net, own in numbers.items() for noise, of in own["rows"].items()}
        figure, axes = panels(len(numbers))
        for axis, (net, own) in zip(axes, numbers.items(), strict=True):
            rows = [row for seed in own["rows"]["own"] for row in seed]
            layers, epochs = (sorted({row[key] for row in rows}) for key in ("layer", "epoch"))
            for layer, colour in zip(layers, by_depth(len(layers)), strict=True):
                at = [[r["noise_variance"] for r in rows if r["layer"] == layer and r["epoch"] == e] for e in epochs]
                axis.plot(epochs, [fmean(values) for values in at], color=colour, label=f"layer {layer}")
            axis.axhline(0.1, color="black", lw=0.8, ls="--", label="fixed: 0.1")
            axis.set(xlabel="epoch", yscale="log", ylabel="noise variance from the distances", title=net)
            axis.legend()
        return {**planes, "noise": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        rows = []
        drops: dict[tuple[str, str], list[float]] = {}
        for net, own in numbers.items():
            for noise, seeds in own["rows"].items():
                for layer in sorted({row["layer"] for row in seeds[0]}):
                    x, y = _path(seeds, layer, "i_x_t"), _path(seeds, layer, "i_t_y")
                    drops.setdefault((net, noise), []).append(max(x) - x[-1])
                    looks = [row for seed in seeds for row in seed if row["layer"] == layer]
                    warned = {name: sum(name in row["checks"] for row in looks) for name in CHECKS}
                    shown = ", ".join(f"{name} {n} of {len(looks)}" for name, n in warned.items() if n) or "none"
                    name = f"{net} ({mean_std(own['accuracy'])})" if noise == "fixed" and layer == 0 else ""
                    bits = f"{x[0]:.2f}, {max(x):.2f}, {x[-1]:.2f}"
                    rows.append((name, "" if layer else noise, str(layer), bits, f"{y[-1]:.2f}", shown))
        yield from markdown_table(HEAD, rows)
        h_y = numbers["tanh"]["rows"]["fixed"][0][0]["h_y"]
        yield f"\nThe numbers are those of the upper bound; H(Y) = {h_y:.3f} bits."
        hidden = {place: max(fall[1:]) for place, fall in drops.items()}
        tanh, relu = hidden["tanh", "fixed"], hidden["relu", "fixed"]
        first = max(drops["tanh", "fixed"][0], drops["relu", "fixed"][0])
        yield from verdicts(
            (
                tanh > relu,
                f"under a fixed noise the narrow tanh layers compress by up to {tanh:.2f} bits, the ReLU layers by up "
                f"to {relu:.2f}.",
            ),
            (first < 0.5, "the wide first layer is saturated throughout."),
        )
        own_noise = ", ".join(f"{net} {hidden[net, 'own']:.2f}" for net in numbers)
        yield (
            "- With each layer's own noise, the largest fall of I(X;T) in a layer above the first is, in bits: "
            f"{own_noise}."
        )


def _kept(run: Run) -> list[dict[str, Any]]:
    """The rows of one run, rounded, with the names of the checks that warned."""
    kept = []
    for row in run.rows["information_plane"]:
        bits = {k: round(v, 4) for k, v in row.items() if k.startswith(("i_x", "i_t")) and v is not None}
        warned = [name for name, words in CHECKS.items() if words in (row["warnings"] or "")]
        kept.append({k: row[k] for k in KEYS} | bits | {"checks": warned})
    return kept


def _path(seeds: list[list[dict[str, Any]]], layer: int, key: str) -> list[float]:
    """A number of one layer over the looks, mean over seeds."""
    return means([[row[key] for row in rows if row["layer"] == layer] for rows in seeds])
