"""Does it matter when a net first sees sharp images? Deficits that are removed, and Fisher information meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from locallearn.figures import COLOURS, by_depth, panels
from locallearn.report.numbers import interval
from locallearn.studies.analysis import Analysis, Runs, deviation, markdown_table, mean_std, verdicts

NONE = "none"  # the control: as many epochs, all of them clean
DEFICITS = ("blur", "flip", "permutation", "noise", NONE)
REMOVALS = (0, 40)
CLEAN = 80
WINDOWS = (0, 20, 40)  # where a window of WIDE epochs of blur begins
WIDE = 20
TRAINED = "train/accuracy"
PUBLISHED = {0: 90.7, 20: 90.2, 40: 89.4, 60: 87.5, 80: 85.1, 100: 83.3, 120: 82.2, 140: 81.3}  # blur, falling rate
FIXED = {0: 89.7, 40: 89.2, 80: 88.2, 120: 87.3, 200: 86.4, 400: 86.4}  # blur, fixed rate
WINDOW = (1.8, 2.4, 2.4, 1.7, 1.4, 0.8, 0.4, 0.3)  # points lost by 40 epochs of blur that begin at 0, 20, ..., 140
LASTING = 2.0  # points that blur must cost at least
FITTED = 1.0  # points of training accuracy below the control: what is lost beyond is training that is not finished


class CriticalPeriods(Analysis):
    """Accuracy by the epoch at which each deficit is removed, losses by where a window of blur begins, and the Fisher
    trace by layer meanwhile."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        last = f"{NONE}, {REMOVALS[-1]}"
        deficits = {d: f"{d}, {REMOVALS[-1]}" for d in DEFICITS if d != NONE}
        return {
            "removals": list(REMOVALS),
            "clean": CLEAN,
            "accuracy": {d: [runs.accuracy(_row(d, removal)) for removal in REMOVALS] for d in DEFICITS},
            "fisher": {str(r): _traces(runs.rows(_row("blur", r), "fisher")) for r in REMOVALS},
            "window": {str(w): _paired(runs.accuracy(last), runs.accuracy(f"window, {w}")) for w in WINDOWS},
            "unfitted": {d: _paired(_trained(runs, last), _trained(runs, row)) for d, row in deficits.items()},
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        window = numbers.get("window", {})
        figure, (final, *windows, whole, layers) = panels(4 if window else 3)
        for colour, (deficit, values) in zip(COLOURS, numbers["accuracy"].items(), strict=False):
            middle, around = [fmean(v) for v in values], [deviation(v) for v in values]
            final.errorbar(numbers["removals"], middle, around, color=colour, marker="o", ms=3, label=deficit)
        final.set(xlabel="epoch at which the deficit is removed", ylabel="test accuracy [%]")
        final.set_title(f"After {numbers['clean']} clean epochs")
        low, high = final.get_ylim()
        final.set_ylim(low - 0.4 * (high - low), high)  # below is room for the legend
        final.legend(loc="lower left")
        for axes in windows:
            starts, lost = [int(start) for start in window], list(window.values())
            axes.errorbar(starts, [fmean(v) for v in lost], [deviation(v) for v in lost], marker="o", ms=3)
            axes.axhline(0, color="#999999", lw=0.8)
            axes.set(xlabel="epoch at which the blur begins", ylabel="loss [points]", title=f"{WIDE} epochs of blur")
        for colour, (removal, own) in zip(COLOURS, numbers["fisher"].items(), strict=False):
            label = f"blur to epoch {removal}" if int(removal) else "no deficit"
            whole.plot(own["epochs"], [sum(at) for at in own["trace"]], color=colour, label=label)
            if int(removal):
                whole.axvline(int(removal), 0.35, color=colour, ls=":", lw=1)  # the legend is below
        whole.set(xlabel="epoch", ylabel="Fisher trace [nats²]", title="All layers", yscale="log")
        whole.legend(loc="lower right")
        own = next(iter(numbers["fisher"].values()))
        for layer, (name, colour) in enumerate(zip(own["layers"], by_depth(len(own["layers"])), strict=True)):
            layers.plot(own["epochs"], [at[layer] for at in own["trace"]], color=colour, label=name)
        layers.set(xlabel="epoch", ylabel="Fisher trace [nats²]", title="No deficit, by layer", yscale="log")
        layers.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        removals = numbers["removals"]
        yield f"Test accuracy in percent after {numbers['clean']} clean epochs, by the epoch of removal.\n"
        rows = [[deficit, *map(mean_std, values)] for deficit, values in numbers["accuracy"].items()]
        yield from markdown_table(["deficit", *map(str, removals)], rows)
        yield "\nPublished, blur, by the epoch of removal [Rf]: " + "; ".join(
            f"{name} {', '.join(f'{r}: {v}' for r, v in row.items())}"
            for name, row in (("falling learning rate", PUBLISHED), ("fixed rate", FIXED))
        )
        lost = {d: _paired(numbers["accuracy"][NONE][-1], v[-1]) for d, v in numbers["accuracy"].items() if d != NONE}
        most = {d: fmean(points) for d, points in lost.items()}
        yield from verdicts(
            (
                most["blur"] > LASTING,
                f"blur to epoch {removals[-1]} leaves the net {with_interval(lost['blur'])} points below the control "
                "(published: 9.4 after 140 epochs, 3.3 with a fixed rate after 200).",
            ),
            *(
                (
                    most[d] < most["blur"] / 3,
                    f"{name} costs less than a third of that: {with_interval(lost[d])} points.",
                )
                for d, name in (("flip", "a vertical flip"), ("permutation", "a permutation of the labels"))
            ),
            (most["noise"] < most["blur"], f"noise costs less than blur: {with_interval(lost['noise'])} points."),
            *_window_claims(numbers.get("window", {})),
            *(
                (
                    fmean(points) < FITTED,
                    f"after {d} the training images are fitted equally well: {with_interval(points)} points less.",
                )
                for d, points in numbers.get("unfitted", {}).items()
            ),
            *_fisher_claims(numbers["fisher"]),
        )


def with_interval(values: Sequence[float]) -> str:
    """The mean, and of several its 95 % interval by Student's t."""
    mean, low, _ = interval(values)
    return f"{mean:.1f}" if low is None else f"{mean:.1f} ± {mean - low:.1f}"


def _row(deficit: str, removal: int) -> str:
    """The row of a deficit; one that is removed at once is none."""
    return f"{deficit if removal else NONE}, {removal}"


def _paired(control: Sequence[float], other: Sequence[float]) -> list[float]:
    """What is lost, seed by seed."""
    return [a - b for a, b in zip(control, other, strict=True)]


def _trained(runs: Runs, row: str) -> list[float]:
    """Accuracy on the training images of the last epoch in percent, by seed."""
    return [100 * values[-1] for values in runs.series(row, TRAINED)]


def _window_claims(window: Mapping[str, Sequence[float]]) -> Iterator[tuple[bool, str]]:
    lost = {int(start): fmean(points) for start, points in window.items()}
    if lost:
        listed = ", ".join(f"{start}: {with_interval(points)}" for start, points in window.items())
        yield (
            lost[max(lost)] < max(lost.values()) / 2,
            f"{WIDE} epochs of blur cost less the later they begin: {listed} points (published, 40 epochs beginning "
            f"at 0, 20, ..., 140: {', '.join(map(str, WINDOW))}).",
        )


def _traces(repeats: list[list[dict[str, Any]]]) -> dict[str, list[Any]]:
    """The trace by layer [epoch][layer], mean over the seeds, from the initial weights on."""
    rows = [row for of_seed in repeats for row in of_seed]
    epochs = sorted({row["epoch"] for row in rows})
    layers = {row["layer"]: row["name"] for row in rows}
    by_place: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        by_place.setdefault((row["epoch"], row["layer"]), []).append(row["fisher_trace"])
    trace = [[fmean(by_place[e, k]) for k in layers] for e in epochs]
    return {"epochs": epochs, "layers": list(layers.values()), "trace": trace}


def _fisher_claims(fisher: Mapping[str, Any]) -> Iterator[tuple[bool, str]]:
    sums = {int(r): [sum(at) for at in own["trace"]] for r, own in fisher.items()}
    peak = {r: max(range(len(v)), key=v.__getitem__) for r, v in sums.items()}
    epochs = {int(r): own["epochs"] for r, own in fisher.items()}
    clean, last = sums[0], max(sums)
    yield (
        0 < peak[0] < len(clean) - 1 and clean[-1] < clean[peak[0]] / 2,
        f"without a deficit the Fisher trace rises to a peak, here at epoch {epochs[0][peak[0]]}, and falls, here to "
        f"{clean[-1] / clean[peak[0]]:.2f} of it (published: epoch 25-30, then to a third).",
    )
    yield (
        epochs[last][peak[last]] > epochs[0][peak[0]],
        f"a long deficit delays the peak, here to epoch {epochs[last][peak[last]]}.",
    )
