"""A small net on 4,096 patterns of 12 bits, with tanh and with ReLU: who compresses, by binning and by bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from locallearn.figures.plane import plane
from locallearn.studies.analysis import Analysis, Runs, averaged, curve, markdown_table, mean_std, verdicts

ACTIVATIONS = ("tanh", "relu")
PROBES = {"binned": "binned", "kde": "information_plane"}
KEYS = (
    *("epoch", "layer", "name", "estimator", "noise_variance", "bins", "samples", "h_y"),
    *("i_x_t", "i_t_y", "i_x_t_lower", "i_x_t_upper", "i_t_y_lower", "i_t_y_upper"),
)
HEAD = (
    *("net", "estimate", "layer", "I(X;T): first, highest, last [bits]"),
    *("highest less last, by seed [bits]", "I(T;Y): last [bits]"),
)


class TwelveBits(Analysis):
    """Means over the seeds of both estimates, and how far I(X;T) falls from its highest value."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {a: {"accuracy": runs.accuracy(a), **_planes(runs, a)} for a in ACTIVATIONS}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        return {f"{a}_{e}": plane([numbers[a]["rows"][e]]) for a in ACTIVATIONS for e in PROBES}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        lines, last_y, falls = [], {}, {}
        for a in ACTIVATIONS:
            for e in PROBES:
                rows = numbers[a]["rows"][e]
                for layer, fall in enumerate(numbers[a]["compression"][e]):
                    (_, x), (_, y) = curve(rows, layer, "i_x_t"), curve(rows, layer, "i_t_y")
                    last_y[a, e, layer], falls[a, e, layer] = y[-1], sum(fall) / len(fall)
                    bits = f"{x[0]:.2f}, {max(x):.2f}, {x[-1]:.2f}"
                    head = (a, e) if layer == 0 else ("", "")
                    lines.append((*head, rows[layer]["name"], bits, mean_std(fall), f"{y[-1]:.3f}"))
        accuracy = ", ".join(f"{a} {mean_std(numbers[a]['accuracy'])}" for a in ACTIVATIONS)
        yield f"Means over the seeds; of the bounds, the upper one. Test accuracy in percent: {accuracy}.\n"
        yield from markdown_table(HEAD, lines)
        layers = len(numbers["tanh"]["compression"]["binned"])
        h_y = numbers["tanh"]["rows"]["binned"][0]["h_y"]
        tanh, relu = (max(falls[a, "binned", k] for k in range(layers - 2, layers)) for a in ACTIVATIONS)
        least = min(last_y["tanh", "binned", k] for k in range(layers))
        yield from verdicts(
            (abs(h_y - 0.999157) < 1e-4, f"H(Y) = {h_y:.4f} bits (0.999157 from the labels)."),
            (tanh > 1, f"the last hidden layers compress with tanh: by up to {tanh:.2f} bits, binned."),
            (relu < tanh / 2, f"with ReLU they hardly do: by up to {relu:.2f} bits."),
            (least > 0.9 * h_y, "every tanh layer ends with nearly all of the label, I(T;Y) > 0.9 H(Y), binned."),
        )


def _planes(runs: Runs, activation: str) -> dict[str, Any]:
    """Mean rows by estimate, and [layer][seed] how far I(X;T) falls."""
    rows = {e: runs.rows(activation, probe) for e, probe in PROBES.items()}
    layers = sorted({row["layer"] for row in rows["kde"][0]})

    def compression(of_seed: list[dict[str, Any]], layer: int) -> float:
        _, values = curve(of_seed, layer, "i_x_t")
        return max(values) - values[-1]

    return {
        "rows": {
            e: [{k: row[k] for k in KEYS if row.get(k) is not None} for row in averaged(of)] for e, of in rows.items()
        },
        "compression": {e: [[compression(seed, layer) for seed in of] for layer in layers] for e, of in rows.items()},
    }
