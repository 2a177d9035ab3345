"""The experiment that began it: a small net on 4,096 patterns of 12 bits, with tanh and with ReLU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from locallearn.figures.plane import plane
from studies.common import Options, Run, averaged, path, runs, spread, table, verdicts

NUMBER = 1
NAME = "twelve_bits"
TITLE = "The 12-bit task: the information plane by binning and by bounds"
TEXT = (
    "The net 12-10-7-5-4-3 with tanh and with ReLU on the 4,096 patterns of Shwartz-Ziv & Tishby 2017, 8,000 epochs, "
    "five seeds (Adam 4e-4 as in Saxe et al. 2018, batches of 512); I(X;T) and I(T;Y) of every hidden layer on all "
    "patterns. Binned: the original's edges for tanh, 100 bins on the layer's range at that look for ReLU (the paper: "
    "over all of training). Bounds: both pairwise ones, with noise of variance 0.1 on the activations as in the "
    "paper (its code has 0.001). Published: tanh compresses, ReLU does not [R]; without noise or bins every layer "
    "of an injective net has H(X) = 12 bits, so what is seen is the binning."
)
NEEDS_DATA = True
ACTIVATIONS = ("tanh", "relu")
ESTIMATES = ("binned", "kde")
KEYS = ("i_x_t", "i_t_y", "i_x_t_lower", "i_x_t_upper", "i_t_y_lower", "i_t_y_upper")
CONVENTION = ("epoch", "layer", "name", "estimator", "noise_variance", "bins", "samples", "h_y")
TARGET = "locallearn.probes.information_plane.InformationPlane"


def run(options: Options) -> dict[str, Any]:
    seeds, epochs, samples = (0, 1, 2, 3, 4), 8000, 4096
    if options.quick:
        seeds, epochs, samples = (0,), 2, 200
    bins = {"tanh": "tanh", "relu": "100"}
    common = (
        "strategy=backprop data=tishby data.validation=0 blocks=1 model=mlp model.width=[10,7,5,4,3] "
        f"model.batch_norm=false batch_size=512 optim.lr=4e-4 optim.schedule=constant epochs={epochs} "
        f"evaluate_every={epochs} checkpoint.every={max(1, epochs // 8)}ep"
    )
    looks = "probe=information_plane "
    for name, prefix in (("information_plane", ""), ("binned", "+")):
        looks += (
            f"{prefix}probe.{name}.every=log {prefix}probe.{name}.split=all {prefix}probe.{name}.samples={samples} "
        )
    looks += f"+probe.binned._target_={TARGET} +probe.binned.estimator=binned"
    settings = {
        (a, k): f"{common} model.activation={a} seed={k} {looks} +probe.binned.bins={bins[a]}"
        for a in ACTIVATIONS
        for k in seeds
    }
    found = runs(settings, options)
    return {a: _of([found[a, k] for k in seeds]) for a in ACTIVATIONS}


def _of(repeats: list[Run]) -> dict[str, Any]:
    rows = {"binned": [r.rows("binned") for r in repeats], "kde": [r.rows("information_plane") for r in repeats]}
    layers = sorted({row["layer"] for row in rows["kde"][0]})

    def compression(some: list[dict], layer: int) -> float:
        _, values = path(some, layer, "i_x_t")
        return max(values) - values[-1]

    return {
        "accuracy": [100 * r.summary["test/accuracy"] for r in repeats],
        "rows": {
            e: [{k: row[k] for k in (*CONVENTION, *KEYS) if row.get(k) is not None} for row in averaged(rows[e])]
            for e in ESTIMATES
        },
        "compression": {e: [[compression(some, layer) for some in rows[e]] for layer in layers] for e in ESTIMATES},
    }


def draw(results: dict[str, Any]) -> dict[str, Any]:
    return {f"{NAME}_{a}_{e}": plane([results[a]["rows"][e]]) for a in ACTIVATIONS for e in ESTIMATES}


def render(results: dict[str, Any]) -> Iterator[str]:
    lines, last_y, falls = [], {}, {}
    for a in ACTIVATIONS:
        for e in ESTIMATES:
            rows = results[a]["rows"][e]
            for layer, fall in enumerate(results[a]["compression"][e]):
                (_, x), (_, y) = path(rows, layer, "i_x_t"), path(rows, layer, "i_t_y")
                last_y[a, e, layer], falls[a, e, layer] = y[-1], sum(fall) / len(fall)
                bits = f"{x[0]:.2f}, {max(x):.2f}, {x[-1]:.2f}"
                head = (a, e) if layer == 0 else ("", "")
                lines.append((*head, rows[layer]["name"], bits, spread(fall), f"{y[-1]:.3f}"))
    yield "Means over the seeds; of the bounds the upper one. Test accuracy in percent: " + ", ".join(
        f"{a} {spread(results[a]['accuracy'])}" for a in ACTIVATIONS
    )
    yield ""
    if "bins" not in results["tanh"]["rows"]["binned"][0]:
        yield (
            "**The tanh numbers below and the picture were made with 30 equal bins on [-1, 1]**, not yet with the "
            "original's 29 and one for exactly 1.0, which keep saturated units apart from nearly saturated ones: where "
            "units saturate, I(X;T) will be higher by up to about a bit when the study is run again."
        )
        yield ""
    heads = [
        "net",
        "estimate",
        "layer",
        "I(X;T) at first, highest, last [bits]",
        "highest less last, by seed",
        "I(T;Y)",
    ]
    yield from table(heads, lines)
    layers = len(results["tanh"]["compression"]["binned"])
    tops = range(layers - 2, layers)
    h_y = results["tanh"]["rows"]["binned"][0]["h_y"]
    tanh, relu = (max(falls[a, "binned", k] for k in tops) for a in ACTIVATIONS)
    yield from verdicts(
        [
            (abs(h_y - 0.999157) < 1e-4, f"H(Y) = {h_y:.4f} bits (0.999157 from the labels)."),
            (tanh > 1, f"the last hidden layers compress with tanh: by up to {tanh:.2f} bits, binned."),
            (relu < tanh / 2, f"those with ReLU hardly: by up to {relu:.2f} bits."),
            (
                min(last_y["tanh", "binned", k] for k in range(layers)) > 0.9 * h_y,
                "every tanh layer ends with nearly all of the label, I(T;Y) > 0.9 H(Y), binned.",
            ),
        ]
    )
