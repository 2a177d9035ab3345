"""What each depth still tells of the label under backpropagation and under greedy local learning: InfoPro's picture."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from locallearn.figures import COLOURS, by_depth, panels
from studies.common import Options, Run, mean, runs, spread, table, verdicts

NUMBER = 7
NAME = "information_by_depth"
TITLE = "Information about the label by depth: backprop and greedy local learning"
TEXT = (
    "ResNet-32 on 6,750 images of CIFAR-10, four epochs, one seed: end to end, and cut into K blocks that learn at the "
    "same time, each from a pooled linear classifier of its own and nothing from above (`strategy=dgl "
    "auxiliary=linear`: InfoPro's greedy SL). After training, at every unit: the accuracy of a linear classifier "
    "on the pooled features (`probe=linear`), and what a small convolutional net reads of the label from the "
    "whole maps (`probe=usable_information`, a lower bound of I(h; y); its accuracy is the I(h, y) of InfoPro's "
    "figure). Both are fitted to 1,500 training images and measured on 1,500 test images. Published: Wang et al. "
    "2021 (arXiv 2101.10832), Fig. 2 [Rf: read off the figure by eye], 160 epochs on all of CIFAR-10."
)
NEEDS_DATA = True
BLOCKS = (1, 2, 4, 8, 16)
# at the units 1, 8 and 16 of 16, by K
PUBLISHED_READ = {
    1: (0.925, 0.922, 0.930),
    2: (0.920, 0.897, 0.902),
    4: (0.917, 0.838, 0.844),
    8: (0.914, 0.782, 0.786),
    16: (0.901, 0.748, 0.753),
}
PUBLISHED_LINEAR = {
    1: (0.25, 0.49, 0.925),
    2: (0.28, 0.875, 0.90),
    4: (0.28, 0.83, 0.845),
    8: (0.31, 0.76, 0.79),
    16: (0.40, 0.725, 0.75),
}
KEYS = ("linear_accuracy", "usable_accuracy", "usable_information")


def run(options: Options) -> dict[str, Any]:
    common = "data=cifar10 data.fraction=0.15 model=resnet32 epochs=4 evaluate_every=4"
    samples, steps, seeds = 1500, 150, (0,)
    if options.quick:
        common = "data=digits data.fraction=0.2 model=resnet32 epochs=1 max_steps=2 evaluate_every=1"
        samples, steps, seeds = 100, 5, (0,)
    common += (
        " batch_size=128 optim=sgd optim.lr=0.1 optim.weight_decay=5e-4"
        " optim.warmup=0.1 data.crop=4 data.flip=true checkpoint.every=never"
        " probe=[linear,usable_information] probe.linear.every=1000 probe.usable_information.every=1000"
        f" probe.linear.samples={samples} probe.usable_information.samples={samples}"
        f" probe.usable_information.steps={steps}"
    )
    settings = {
        (k, seed): f"strategy={'backprop' if k == 1 else 'dgl auxiliary=linear'} blocks={k} {common} seed={seed}"
        for seed in seeds
        for k in BLOCKS
    }
    found = runs(settings, options)

    def of(k: int) -> list[Run]:
        return [found[k, seed] for seed in seeds]

    return {
        "accuracy": {str(k): [100 * r.summary["test/accuracy"] for r in of(k)] for k in BLOCKS},
        "untrained": _by_layer(of(1), first=True),
        "trained": {str(k): _by_layer(of(k), first=False) for k in BLOCKS},
        "h_y": of(1)[0].rows("usable_information")[0]["label_entropy"],
    }


def _by_layer(repeats: list[Run], first: bool) -> dict[str, list[list[float]]]:
    """Each number as [seed][layer], at the initial weights or after the last epoch."""
    found: dict[str, list[list[float]]] = {}
    for key in KEYS:
        probe = "linear" if key == "linear_accuracy" else "usable_information"
        found[key] = []
        for repeat in repeats:
            rows = repeat.rows(probe)
            epoch = 0 if first else max(row["epoch"] for row in rows)
            found[key].append([row[key] for row in rows if row["epoch"] == epoch and key in row])
    return found


def _mean(found: dict[str, list[list[float]]], key: str) -> list[float]:
    return [mean(values) for values in zip(*found[key], strict=True)]


def draw(results: dict[str, Any]) -> dict[str, Any]:
    figure, axes = panels(3)
    labels = ("accuracy of a linear classifier", "accuracy of a small net", "I(h; y) that it reads [bits]")
    for axis, key, label in zip(axes, KEYS, labels, strict=True):
        line = _mean(results["untrained"], key)
        axis.plot(range(1, len(line) + 1), line, ":", color=COLOURS[6], label="untrained")
        for (k, found), colour in zip(
            results["trained"].items(), [COLOURS[7], *by_depth(len(BLOCKS) - 1)], strict=True
        ):
            line = _mean(found, key)
            name = "backprop" if k == "1" else f"K = {k}"
            axis.plot(range(1, len(line) + 1), line, "o-", ms=2.5, color=colour, label=name)
        axis.set(xlabel="unit, from the input upward", ylabel=label, xticks=range(1, len(line) + 1, 3))
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=7, frameon=False)
    return {NAME: figure}


def render(results: dict[str, Any]) -> Iterator[str]:
    trained = results["trained"]
    at = {k: {key: _mean(found, key) for key in KEYS} for k, found in trained.items()}
    places = (0, 7, 15)

    def triple(values: list[float], digits: int = 2) -> str:
        return ", ".join(f"{values[min(i, len(values) - 1)]:.{digits}f}" for i in places)

    def published(values: dict[int, tuple[float, ...]], k: str) -> str:
        return ", ".join(f"{v:.2f}" for v in values[int(k)])

    head = (
        "blocks", "test accuracy", "linear classifier at units 1, 8, 16", "published [Rf]",
        "small net at units 1, 8, 16", "published [Rf]", "I(h; y) [bits]",
    )  # fmt: skip
    yield from table(
        head,
        (
            (
                "backprop" if k == "1" else f"K = {k}",
                spread(results["accuracy"][k]),
                triple(at[k]["linear_accuracy"]),
                published(PUBLISHED_LINEAR, k),
                triple(at[k]["usable_accuracy"]),
                published(PUBLISHED_READ, k),
                triple(at[k]["usable_information"]),
            )
            for k in at
        ),
    )
    yield f"\nH(y) = {results['h_y']:.2f} bits."
    final = [mean(results["accuracy"][k]) for k in at]
    middle = [at[k]["linear_accuracy"][len(at[k]["linear_accuracy"]) // 2] for k in at]
    top = [at[k]["usable_information"][-1] for k in at]
    yield from verdicts(
        [
            (
                final == sorted(final, reverse=True),
                "the more blocks, the lower the test accuracy: "
                + ", ".join(
                    f"{a:.1f} ({'backprop' if k == '1' else f'K = {k}'})" for a, k in zip(final, at, strict=True)
                ),
            ),
            (
                min(middle[1:]) > middle[0],
                f"greedy features are linearly separable early: half-way up {middle[0]:.2f} under backprop, "
                f"{', '.join(f'{m:.2f}' for m in middle[1:])} under greedy",
            ),
            (
                top[-1] < top[0],
                f"at the top greedy learning in 16 blocks has lost information about the label: {top[-1]:.2f} bits are "
                f"read, {top[0]:.2f} under backprop",
            ),
        ]
    )
