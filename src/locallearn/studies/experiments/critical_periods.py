"""Does it matter when a net first sees sharp images? Deficits that are removed, and Fisher information meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

from locallearn.figures import COLOURS, by_depth, panels
from locallearn.studies.analysis import Analysis, Runs, deviation, spread, table, verdicts

NONE = "none"  # the control: as many epochs, all of them clean
DEFICITS = ("blur", "flip", "permutation", "noise", NONE)
REMOVALS = (0, 20, 40)
CLEAN = 20
PUBLISHED = {0: 90.7, 20: 90.2, 40: 89.4, 60: 87.5, 80: 85.1, 100: 83.3, 120: 82.2, 140: 81.3}  # blur, falling rate
FIXED = {0: 89.7, 40: 89.2, 80: 88.2, 120: 87.3, 200: 86.4, 400: 86.4}  # blur, fixed rate
LASTING = 1.0  # points: a smaller loss is called none


class CriticalPeriods(Analysis):
    """Accuracy by the epoch at which each deficit is removed, and the Fisher trace by layer meanwhile."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {
            "removals": list(REMOVALS),
            "clean": CLEAN,
            "accuracy": {d: [runs.accuracy(_row(d, removal)) for removal in REMOVALS] for d in DEFICITS},
            "fisher": {str(r): _traces(runs.rows(_row("blur", r), "fisher")) for r in REMOVALS},
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, (final, whole, layers) = panels(3)
        for colour, (deficit, values) in zip(COLOURS, numbers["accuracy"].items(), strict=False):
            middle, around = [fmean(v) for v in values], [deviation(v) for v in values]
            final.errorbar(numbers["removals"], middle, around, color=colour, marker="o", ms=3, label=deficit)
        final.set(xlabel="epoch at which the deficit is removed", ylabel="test accuracy [%]")
        final.set_title(f"After {numbers['clean']} clean epochs")
        final.legend()
        for colour, (removal, own) in zip(COLOURS, numbers["fisher"].items(), strict=False):
            label = f"blur to epoch {removal}" if int(removal) else "no deficit"
            whole.plot(own["epochs"], [sum(at) for at in own["trace"]], color=colour, label=label)
            if int(removal):
                whole.axvline(int(removal), color=colour, ls=":", lw=1)
        whole.set(xlabel="epoch", ylabel="Fisher trace [nats²]", title="All layers", yscale="log")
        whole.legend()
        own = next(iter(numbers["fisher"].values()))
        for layer, (name, colour) in enumerate(zip(own["layers"], by_depth(len(own["layers"])), strict=True)):
            layers.plot(own["epochs"], [at[layer] for at in own["trace"]], color=colour, label=name)
        layers.set(xlabel="epoch", ylabel="Fisher trace [nats²]", title="No deficit, by layer", yscale="log")
        layers.legend()
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        removals = numbers["removals"]
        yield f"Test accuracy in percent after {numbers['clean']} clean epochs, by the epoch of removal.\n"
        rows = [[deficit, *map(spread, values)] for deficit, values in numbers["accuracy"].items()]
        yield from table(["deficit", *map(str, removals)], rows)
        yield "\nPublished, blur, by the epoch of removal [Rf]: " + "; ".join(
            f"{name} {', '.join(f'{r}: {v}' for r, v in row.items())}"
            for name, row in (("falling learning rate", PUBLISHED), ("fixed rate", FIXED))
        )
        lost = {d: [fmean(values[0]) - fmean(v) for v in values] for d, values in numbers["accuracy"].items()}
        most = {d: max(points) for d, points in lost.items()}
        yield from verdicts(
            (
                lost["blur"][-1] > LASTING,
                f"blur to epoch {removals[-1]} leaves a loss of {lost['blur'][-1]:.1f} points (published: 9.4 after "
                "140 epochs, 3.3 with a fixed rate after 200).",
            ),
            (lost["blur"] == sorted(lost["blur"]), "the later blur is removed, the more is lost."),
            *(
                (most[d] < max(LASTING, most["blur"] / 2), f"{name} leaves little: at most {most[d]:.1f} points.")
                for d, name in (("flip", "a vertical flip"), ("permutation", "a permutation of the labels"))
            ),
            (most["noise"] < most["blur"], f"noise costs less than blur: at most {most['noise']:.1f} points."),
            *_fisher_claims(numbers["fisher"]),
        )


def _row(deficit: str, removal: int) -> str:
    """The row of a deficit; one that is removed at once is none."""
    return f"{deficit if removal else NONE}, {removal}"


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
        f"a long deficit puts the peak off, here to epoch {epochs[last][peak[last]]}.",
    )
