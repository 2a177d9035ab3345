"""How local gradients point where backpropagation's do, by depth; and who can learn labels that mean nothing."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

from locallearn.figures import by_depth, by_strategy, panels
from studies.common import Options, Run, mean, runs, spread, table, verdicts

NUMBER = 4
NAME = "alignment"
TITLE = "Gradient alignment by depth, and fitting random labels"
TEXT = (
    "An MLP of six hidden layers of 256 (batch norm, ReLU), every layer a block, on a quarter of Fashion-MNIST: "
    "the cosine between each strategy's gradient of a block's weights and backpropagation's at the same weights, "
    "on 1,024 training images without augmentation (`probe=alignment`), after every epoch. Then three "
    "convolutions (batch norm, max-pooling), each a block, on a fortieth of the images: accuracy on the training "
    "batches when every label is drawn at random (`data.label_noise=1`), with the true labels as control, and the "
    "MLP with random labels. The net was chosen on seed 0, after the MLP had shown no difference there; the seeds "
    "shown are others. Published: Laskin et al. 2020 (arXiv 2012.03837), a net of five layers and local losses "
    "[Rf]; Lillicrap et al. 2016 (arXiv 1411.0247), feedback alignment in a deep net [Rf]. [Rf]: read off a "
    "figure by eye."
)
NEEDS_DATA = False
STRATEGIES = ("dgl", "loco", "dni", "cdni", "fa", "dfa")
FITTERS = ("backprop", "loco", "dgl")
LOCAL = ("dgl", "loco")
CASES = {"random": ("conv", 1), "true": ("conv", 0), "random, MLP": ("mlp", 1)}  # net, share of random labels
LASKIN = {"dgl": [0.25, 0.33, 0.58, 0.99, 1.00]}  # after 10,000 iterations, from the input upward
LILLICRAP = "degrees 58-73 at the bottom, about 24 at the top"
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
RANDOM = {"backprop": (0.135, 0.195, 0.30, 0.49, 0.775), "local": (0.115, 0.145, 0.18, 0.25, 0.285)}  # 100 epochs


def run(options: Options) -> dict[str, Any]:
    data, width, seeds, epochs, fit = "fashion_mnist", (256, 16), (0, 1, 2), 5, 30
    if options.quick:
        data, width, seeds, epochs, fit = "digits", (16, 2), (0,), 1, 2
    shared = f"data={data} blocks=max batch_size=64 optim.lr=1e-3"
    aligned = f"{shared} model=mlp model.width={width[0]} model.depth=6 data.fraction=0.25 epochs={epochs} "
    aligned += f"evaluate_every={epochs} probe=alignment probe.alignment.samples=1024"
    fitted = f"{shared} data.fraction=0.025 epochs={fit} evaluate_every={fit} optim.schedule=constant"
    nets = {
        "conv": f"model=basic_cnn model.width={width[1]} model.hidden=0",
        "mlp": f"model=mlp model.width={width[0]} model.depth=6",
    }
    unseen = tuple(k + 1 for k in seeds)
    networks = {s: " auxiliary=linear" if s in LOCAL else "" for s in (*STRATEGIES, *FITTERS)}
    settings = {("align", s, k): f"strategy={s}{networks[s]} {aligned} seed={k}" for s in STRATEGIES for k in seeds}
    settings |= {
        (case, s, k): f"strategy={s}{networks[s]} {fitted} {nets[net]} data.label_noise={noise} seed={k}"
        for case, (net, noise) in CASES.items()
        for s in FITTERS
        for k in unseen
    }
    found = runs(settings, options)

    def of(kind: str, strategy: str) -> list[Run]:
        return [run for (some, name, _), run in found.items() if (some, name) == (kind, strategy)]

    return {
        "alignment": {s: _by_epoch(of("align", s)) for s in STRATEGIES},
        "accuracy": {s: [100 * r.summary["test/accuracy"] for r in of("align", s)] for s in STRATEGIES},
        "fit": {case: {s: [r.series("train/accuracy")[1] for r in of(case, s)] for s in FITTERS} for case in CASES},
    }


def _by_epoch(repeats: list[Run]) -> dict[str, Any]:
    """Cosine and angle [seed][epoch][block] after every epoch, from the initial weights on."""
    rows = [r.rows("alignment") for r in repeats]
    epochs = sorted({row["epoch"] for row in rows[0]})
    return {"epochs": epochs} | {
        key: [[[row[f"update_{key}"] for row in some if row["epoch"] == e] for e in epochs] for some in rows]
        for key in ("cosine", "angle")
    }


def _over_seeds(found: dict[str, Any], key: str) -> list[list[list[float]]]:
    """[epoch][block] -> the values of all seeds."""
    return [[list(v) for v in zip(*blocks, strict=True)] for blocks in zip(*found[key], strict=True)]


def draw(results: dict[str, Any]) -> dict[str, Any]:
    figure, (end, local, feedback) = panels(3)
    for strategy, found in results["alignment"].items():
        last = _over_seeds(found, "cosine")[-1]
        at = range(1, len(last) + 1)
        deviation = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in last]
        end.errorbar(
            at, [mean(v) for v in last], deviation, color=by_strategy(strategy), label=strategy, marker="o", ms=3
        )
    end.axhline(0, color="black", lw=0.6)
    end.set(xlabel="block, from the input upward", ylabel="cosine to backpropagation", title="After training")
    end.legend(ncols=2, fontsize=7)
    for axis, strategy, key, name in (
        (local, "dgl", "cosine", "cosine to backpropagation"),
        (feedback, "fa", "angle", "angle to backpropagation [°]"),
    ):
        found = results["alignment"][strategy]
        values = _over_seeds(found, key)
        for block, colour in enumerate(by_depth(len(values[0]))):
            line = [mean(at[block]) for at in values]
            axis.plot(found["epochs"], line, color=colour, label=f"block {block + 1}")
        axis.set(xlabel="epoch", ylabel=name, title=f"Over training: {strategy}")
    local.legend(fontsize=7, ncols=2)
    return {NAME: figure, f"{NAME}_random_labels": _draw_fit(results["fit"])}


def _draw_fit(fit: dict[str, Any]) -> Any:
    figure, axes = panels(len(fit))
    for axis, (labels, by_name) in zip(axes, fit.items(), strict=True):
        for strategy, seeds in by_name.items():
            line = [mean(v) for v in zip(*seeds, strict=True)]
            axis.plot(range(1, len(line) + 1), line, color=by_strategy(strategy), label=strategy)
        axis.set(xlabel="epoch", ylabel="training accuracy", title=f"Labels: {labels}")
        axis.set_ylim(0, 1.02)
        axis.legend()
    return figure


def render(results: dict[str, Any]) -> Iterator[str]:
    last = {s: _over_seeds(found, "cosine")[-1] for s, found in results["alignment"].items()}
    angles = {s: [mean(v) for v in _over_seeds(f, "angle")[-1]] for s, f in results["alignment"].items()}
    first = [mean(v) for v in _over_seeds(results["alignment"]["fa"], "angle")[0]]
    blocks = len(next(iter(last.values())))
    yield "Cosine after training, from the first block to the last; published: layers 1 to 5 after 10,000 steps [Rf].\n"
    yield from table(
        ["strategy", *(f"block {k + 1}" for k in range(blocks)), "published", "test accuracy in percent"],
        [
            [s, *(spread(v) for v in values), ", ".join(map(str, LASKIN.get(s, []))), spread(results["accuracy"][s])]
            for s, values in last.items()
        ],
    )
    cosines = {s: [mean(v) for v in values] for s, values in last.items()}
    rising = all(a <= b for a, b in zip(cosines["dgl"], cosines["dgl"][1:], strict=False))
    yield from verdicts(
        [
            (abs(cosines["dgl"][-1] - 1) < 1e-4, "the last block of a local method has backpropagation's gradient."),
            (
                rising,
                f"with local losses (dgl) the cosine falls with the distance to the output: {_list(cosines['dgl'])}.",
            ),
            (
                all(a >= b for a, b in zip(cosines["loco"], cosines["dgl"], strict=True)),
                "a block that also listens to the next one (loco) is nearer to backpropagation, at every depth.",
            ),
            (
                all(a < 90 for a in angles["fa"]),
                f"feedback alignment ends below 90 degrees everywhere: {_list(angles['fa'], 0)} (published: "
                f"{LILLICRAP}); it began at {_list(first, 0)}.",
            ),
        ]
    )
    yield from _render_fit(results["fit"])


def _render_fit(fit: dict[str, Any]) -> Iterator[str]:
    ends = {(labels, s): [seed[-1] for seed in seeds] for labels in fit for s, seeds in fit[labels].items()}
    epochs = len(fit["random"][FITTERS[0]][0])
    shown = [max(1, round(share * epochs)) for share in SHARES]
    yield (
        "\nAccuracy on the training batches, mean over the seeds. Published: random labels, another net and set, 100 "
        f"epochs [Rf]; here {epochs}.\n"
    )
    rows = [
        [labels, s, *(f"{mean(seed[e - 1] for seed in seeds):.3f}" for e in shown)]
        for labels in fit
        for s, seeds in fit[labels].items()
    ]
    rows += [["random, published", name, *(f"{v:.3f}" for v in values)] for name, values in RANDOM.items()]
    yield from table(["labels", "strategy", *(f"{share:.0%} of training" for share in SHARES)], rows)
    bp, local = (mean(ends["random", s]) for s in ("backprop", "dgl"))
    true, mlp = ([mean(ends[labels, s]) for s in ("backprop", "dgl")] for labels in ("true", "random, MLP"))
    yield from verdicts(
        [
            (
                bp > local + 0.05,
                f"backpropagation fits random labels faster than local losses: {bp:.2f} and {local:.2f}.",
            ),
            (
                bp - local > 2 * (true[0] - true[1]),
                "that is not because local losses fit everything worse: with the true labels "
                f"{true[0]:.2f} and {true[1]:.2f}.",
            ),
            (mlp[0] > mlp[1] + 0.05, f"it is so in the MLP, too: {mlp[0]:.2f} and {mlp[1]:.2f}."),
        ]
    )


def _list(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{v:.{digits}f}" for v in values)
