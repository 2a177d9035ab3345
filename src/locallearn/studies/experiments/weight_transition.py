"""What noisy weights know of their training set by the price of a nat, of labels drawn at random and of true ones."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from statistics import fmean
from typing import Any, TypeAlias

from locallearn.analysis.structure_function import structure_function
from locallearn.figures import COLOURS, panels
from locallearn.studies.analysis import Analysis, Runs, listed, markdown_table, mean_std, verdicts

KINDS = ("random, 500", "random, 1000", "random, 2000", "true, 1000")
TRUE = KINDS[-1]
SLACK = math.log(1000)
"""Nats by which the theorem may fail with probability 0.001."""
FIT = 0.5
"""Share of the way from chance to a complete fit at which the drop is placed."""
CLASSES = 10
SHOWN = 3.0
"""Nats in the weights, over ln K a sample, to which the structure function is drawn."""
GAP = 0.05
"""Most nats a sample by which another run may be better at a run's own price."""
FREE = "1e-5"
RISE = 1.0
"""Percent of the test set, by which an error is larger than another."""
EQUAL_FIT = 0.1
"""Most nats a sample for which a run has fitted its labels."""
Looks: TypeAlias = Mapping[str, list[dict[str, float]]]
"""Of a kind, by price or share: the last look of each seed."""


class WeightTransition(Analysis):
    """Fit by price, the hull of nats in the weights against nats of the loss, corruption, bounds, and width."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        found: dict[str, dict[str, Any]] = {kind: {} for kind in (*KINDS, "corrupted", "width")}
        for row, own in runs.by_row.items():
            kind, _, value = row.rpartition(", ")
            found[kind][value] = [dict(run.rows["noisy_weights"][-1]) for run in own]
        return found

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, axes = panels(5, width=3.0)
        for kind, colour in zip(KINDS, COLOURS, strict=False):
            betas = [*map(float, numbers[kind])]
            axes[0].plot(betas, _mean(numbers[kind], "train_accuracy"), "o-", ms=3, color=colour, label=kind)
            x, y = (_per_sample(numbers[kind], key) for key in ("nats", "train_nats"))
            axes[1].plot([max(v, 1e-3) for v in x], y, "o-", ms=3, color=colour, label=kind)
        own = numbers[TRUE]
        axes[0].plot([*map(float, own)], _mean(own, "test_accuracy"), "o:", ms=3, color=COLOURS[3], label="true, test")
        axes[0].axvline(1.0, color="#999999", linestyle="--", linewidth=0.8)
        floor = [0.001 * 1.1**k for k in range(140)]
        axes[1].plot(floor, [max(0.0, math.log(CLASSES) - v) for v in floor], color="#999999", lw=1, label="theorem")
        _draw_structure(axes[4], numbers)
        shares, above = _corruption(numbers["corrupted"])
        axes[2].plot(shares, above, "o-", ms=3, color=COLOURS[0], label="nats above those of true labels")
        axes[2].plot([0, 1], [0, math.log(CLASSES)], color="#999999", lw=1, label="c ln 10")
        for key, label, style in (
            ("bound_kl", "bound, kl", "-"),
            ("bound_linear", "bound, linear", "--"),
            ("test_accuracy", "test error", "-"),
            ("train_accuracy", "training error", ":"),
        ):
            values = [1 - v if key.endswith("accuracy") else v for v in _mean(own, key)]
            colour = COLOURS[0] if key.startswith("bound") else COLOURS[1]
            axes[3].plot([*map(float, own)], values, style, color=colour, marker="o", ms=3, label=label)
        axes[0].set(xscale="log", xlabel="price of a nat, beta", ylabel="accuracy of the noisy net")
        axes[1].set(xscale="log", xlabel="nats in the weights, a sample", ylabel="nats of the loss, a sample")
        axes[2].set(xlabel="share of labels drawn anew, c", ylabel="nats in the weights, a sample")
        axes[3].set(xscale="log", xlabel="price of a nat, true labels", ylabel="error of the noisy net")
        for axis in axes:
            axis.legend(fontsize=6)
        return {"": figure, "width": _draw_width(numbers)}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        yield from markdown_table(
            ["labels, N", "beta", "nats in the weights, a sample", "training loss [nats]", "training accuracy",
             "test accuracy", "bounds on the test error"],
            [
                [
                    kind, beta, mean_std(_over(own, "nats")), mean_std([r["train_nats"] for r in own]),
                    mean_std([r["train_accuracy"] for r in own]), mean_std([r["test_accuracy"] for r in own]),
                    ", ".join(f"{fmean(r[key] for r in own):.2f}" for key in ("bound_kl", "bound_linear")),
                ]
                for kind in KINDS
                for beta, own in numbers[kind].items()
            ],
        )  # fmt: skip
        yield from _judged(numbers)
        yield from _judged_structure(numbers)
        yield from _judged_width(numbers)


def _draw_width(numbers: dict[str, Any]) -> Any:
    figure, axes = panels(2, width=3.0)
    for axis, kind, label in zip(axes, ("width", TRUE), ("width of both layers", "price of a nat, beta"), strict=True):
        for key, name, style in (("test_accuracy", "test", "o-"), ("train_accuracy", "training", "o:")):
            errors = [100 * (1 - v) for v in _mean(numbers[kind], key)]
            axis.plot([*map(float, numbers[kind])], errors, style, ms=3, color=COLOURS[0], label=name)
        axis.set(xscale="log", xlabel=label, ylabel="error of the noisy net [%]")
        axis.legend(fontsize=6)
    return figure


def _judged_width(numbers: dict[str, Any]) -> Iterator[str]:
    wide, priced = ([100 * (1 - v) for v in _mean(numbers[kind], "test_accuracy")] for kind in ("width", TRUE))
    yield from verdicts(
        (
            wide[0] > min(wide) + RISE > wide[-1],
            f"at almost no price ({FREE} a nat) the test error falls with the width and does not rise again: "
            f"{listed(wide, 1)} % at {', '.join(numbers['width'])}.",
        ),
        (
            min(priced[0], priced[-1]) > min(priced) + RISE,
            f"with the price of a nat it falls and rises: {listed(priced, 1)} % at {', '.join(numbers[TRUE])}.",
        ),
    )


def _draw_structure(axis: Any, numbers: dict[str, Any]) -> None:
    """S(t): the least loss with so many nats in the weights, as far as any price has found it."""
    end = SHOWN * math.log(CLASSES)
    for kind, colour in zip(KINDS, COLOURS, strict=False):
        corners = structure_function(_points(numbers[kind]).values())
        x, y = [*(t for t, _ in corners), 1e3], [*(loss for _, loss in corners), corners[-1][1]]
        axis.plot(x, y, "o-", ms=3, color=colour, label=f"S(t), {kind}")
    axis.plot([0, math.log(CLASSES), end], [math.log(CLASSES), 0, 0], color="#999999", lw=1, label="ln 10 - t")
    axis.set(xlim=(0, end), ylim=(0, 1.3 * math.log(CLASSES)))
    axis.set(xlabel="nats in the weights, a sample, t", ylabel="least loss, nats a sample")


def _judged_structure(numbers: dict[str, Any]) -> Iterator[str]:
    above, gaps = math.inf, []
    fewest = min(r["samples"] for kind in KINDS for own in numbers[kind].values() for r in own)
    for kind in KINDS:
        points = _points(numbers[kind])
        if kind != TRUE:
            above = min(above, *(loss - (math.log(CLASSES) - t) for t, loss in structure_function(points.values())))
        for beta, (t, loss) in points.items():
            best = min(other_loss + float(beta) * other_t for other_t, other_loss in points.values())
            gaps.append(loss + float(beta) * t - best)
    below = min(loss + t - math.log(CLASSES) for t, loss in _points(numbers[TRUE]).values())
    yield from verdicts(
        (
            above > -SLACK / fewest and below < 0,
            "the structure function, the hull of nats in the weights and loss over all prices: of random labels it "
            f"stays {above:.2f} nats a sample or more above ln 10 - t, of true labels it goes {-below:.2f} below.",
        ),
        (
            max(gaps) < GAP,
            "every price has found its best: at its own price no other run is better by more than "
            f"{max(gaps):.3f} nats a sample.",
        ),
    )


def _judged(numbers: dict[str, Any]) -> Iterator[str]:
    random = {kind: numbers[kind] for kind in KINDS if kind != TRUE}
    every = [r for of in random.values() for own in of.values() for r in own]
    broken = sum(r["nats"] < r["saved_nats"] - SLACK for r in every)
    high = [r["train_accuracy"] for of in random.values() for beta, own in of.items() if float(beta) >= 1 for r in own]
    drops = {kind: _drop(of) for kind, of in random.items()}
    true = numbers[TRUE]
    ten = {beta: fmean(_mean({beta: own}, "train_accuracy")) for beta, own in true.items()}
    last = max((float(beta) for beta, accuracy in ten.items() if accuracy > 0.8), default=0.0)
    tested = {beta: fmean(r["test_accuracy"] for r in own) for beta, own in true.items()}
    best = max(tested, key=lambda beta: tested[beta])
    violated = sum(1 - r["test_accuracy"] > r["bound_kl"] for own in true.values() for r in own)
    least = min(true, key=lambda beta: fmean(r["bound_kl"] for r in true[beta]))
    yield from verdicts(
        (broken == 0, f"random labels: never are more nats saved than the weights hold, in {len(every)} runs."),
        (max(high) < 0.2, f"random labels: at beta 1 and above nothing is learned: accuracy at most {max(high):.2f}."),
        (
            max(drops.values()) < 1 and max(drops.values()) <= 2 * min(drops.values()),
            "random labels: the fit is lost before beta 1, at about the same price for all sizes: "
            + ", ".join(f"{kind.partition(', ')[2]} images at {drop:.3f}" for kind, drop in drops.items())
            + ".",
        ),
        (last > 10 * min(drops.values()), f"true labels are still fitted (above 80 %) at beta {last:g}."),
        (
            0.3 <= float(best) <= 3,
            f"test accuracy is best near beta 1, here at {best}: {tested[best]:.3f}.",
        ),
        (
            violated == 0,
            f"the bound holds ({violated} violations) and is least at beta {least}: "
            f"{fmean(r['bound_kl'] for r in true[least]):.2f}.",
        ),
    )
    shares, above = _corruption(numbers["corrupted"])
    held = all(a > c * math.log(CLASSES) - 0.1 for c, a in zip(shares, above, strict=True))
    text = listed(above) if above else "no run has fitted its labels"
    yield from verdicts(
        (
            bool(above) and above == sorted(above) and held,
            f"the more labels are drawn anew, the more the weights hold, above c ln 10: {text} nats a sample at "
            f"{listed(shares)} (runs with a loss above {EQUAL_FIT} nats are left out).",
        )
    )


def _mean(of: Looks, key: str) -> list[float]:
    return [fmean(r[key] for r in own) for own in of.values()]


def _over(own: list[dict[str, float]], key: str) -> list[float]:
    """A total, for each sample."""
    return [r[key] / r["samples"] for r in own]


def _per_sample(of: Looks, key: str) -> list[float]:
    return [fmean(_over(own, key)) if key == "nats" else fmean(r[key] for r in own) for own in of.values()]


def _points(of: Looks) -> dict[str, tuple[float, float]]:
    """Nats in the weights and nats of the training loss, a sample, by price."""
    return dict(zip(of, zip(_per_sample(of, "nats"), _per_sample(of, "train_nats"), strict=True), strict=True))


def _drop(of: Looks) -> float:
    """The price, between those that were tried, at which half of the fit is lost."""
    points = sorted((float(beta), fmean(r["train_accuracy"] for r in own)) for beta, own in of.items())
    level = 1 / CLASSES + FIT * (1 - 1 / CLASSES)
    for (low, a), (high, b) in pairwise(points):
        if a >= level > b:
            return math.exp(math.log(low) + (a - level) / (a - b) * (math.log(high) - math.log(low)))
    return points[0][0] if points[0][1] < level else points[-1][0]


def _corruption(of: Looks) -> tuple[list[float], list[float]]:
    """Shares, and nats a sample above those of true labels, of the runs that have fitted their labels."""
    fits = {share: own for share, own in of.items() if max(r["train_nats"] for r in own) < EQUAL_FIT}
    if "0" not in fits:
        return [], []
    base = fmean(_over(fits["0"], "nats"))
    return [*map(float, fits)], [fmean(_over(own, "nats")) - base for own in fits.values()]
