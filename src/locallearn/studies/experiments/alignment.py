"""How local gradients point where backpropagation's do, by depth; and who can learn labels that mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from locallearn.figures import by_depth, by_strategy, panels
from locallearn.studies.analysis import Analysis, Runs, deviation, listed, markdown_table, mean_std, means, verdicts

STRATEGIES = ("dgl", "loco", "dni", "cdni", "fa", "dfa")
FITTERS = ("backprop", "loco", "dgl")
LABELS = ("random", "true", "random, MLP")
LASKIN = {"dgl": [0.25, 0.33, 0.58, 0.99, 1.00]}  # after 10,000 iterations, from the input upward
LILLICRAP = "degrees 58-73 at the bottom, about 24 at the top"
SHARES = (0.2, 0.4, 0.6, 0.8, 1.0)
RANDOM = {"backprop": (0.135, 0.195, 0.30, 0.49, 0.775), "local": (0.115, 0.145, 0.18, 0.25, 0.285)}  # 100 epochs


class AlignmentStudy(Analysis):
    """Cosine and angle to backpropagation's gradient by block and epoch; accuracy on random and on true labels."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {
            "alignment": {s: _by_epoch(runs.rows(s, "alignment")) for s in STRATEGIES},
            "accuracy": {s: runs.accuracy(s) for s in STRATEGIES},
            "fit": {case: {s: runs.series(f"{case}, {s}", "train/accuracy") for s in FITTERS} for case in LABELS},
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, (end, local, feedback) = panels(3)
        for strategy, own in numbers["alignment"].items():
            last = _by_place(own, "cosine")[-1]
            middle, around = [fmean(v) for v in last], [deviation(v) for v in last]
            colour, at = by_strategy(strategy), range(1, len(last) + 1)
            end.errorbar(at, middle, around, color=colour, label=strategy, marker="o", ms=3)
        end.axhline(0, color="black", lw=0.6)
        end.set(xlabel="block, from the input upward", ylabel="cosine to backpropagation", title="After training")
        end.set_ylim(bottom=-0.85)  # room for the legend
        end.legend(ncols=3, fontsize=7, loc="lower center")
        for axis, strategy, key, name in (
            (local, "dgl", "cosine", "cosine to backpropagation"),
            (feedback, "fa", "angle", "angle to backpropagation [°]"),
        ):
            own = numbers["alignment"][strategy]
            values = _by_place(own, key)
            for block, colour in enumerate(by_depth(len(values[0]))):
                line = [fmean(at[block]) for at in values]
                axis.plot(own["epochs"], line, color=colour, label=f"block {block + 1}")
            axis.set(xlabel="epoch", ylabel=name, title=f"Over training: {strategy}")
        local.legend(fontsize=7, ncols=2)
        fits, axes = panels(len(numbers["fit"]))
        for axis, (labels, by_name) in zip(axes, numbers["fit"].items(), strict=True):
            for strategy, seeds in by_name.items():
                line = means(seeds)
                axis.plot(range(1, len(line) + 1), line, color=by_strategy(strategy), label=strategy)
            axis.set(xlabel="epoch", ylabel="training accuracy", title=f"Labels: {labels}")
            axis.set_ylim(0, 1.02)
            axis.legend()
        return {"": figure, "random_labels": fits}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        last = {s: _by_place(own, "cosine")[-1] for s, own in numbers["alignment"].items()}
        cosines = {s: [fmean(v) for v in values] for s, values in last.items()}
        first, *_, angles = [[fmean(v) for v in blocks] for blocks in _by_place(numbers["alignment"]["fa"], "angle")]
        head = [f"block {k + 1}" for k in range(len(angles))]
        yield (
            "Cosine after training, from the first block to the last. Published: layers 1 to 5 after 10,000 steps "
            "[Rf].\n"
        )
        yield from markdown_table(
            ["strategy", *head, "published", "test accuracy in percent"],
            [
                [s, *map(mean_std, values), ", ".join(map(str, LASKIN.get(s, []))), mean_std(numbers["accuracy"][s])]
                for s, values in last.items()
            ],
        )
        yield from verdicts(
            (abs(cosines["dgl"][-1] - 1) < 1e-4, "the last block of a local method has backpropagation's gradient."),
            (
                cosines["dgl"] == sorted(cosines["dgl"]),
                f"with local losses (dgl) the cosine falls with distance from the output: {listed(cosines['dgl'])}.",
            ),
            (
                all(a >= b for a, b in zip(cosines["loco"], cosines["dgl"], strict=True)),
                "blocks that also receive feedback from the next one (loco) are closer to backpropagation, at every "
                "depth.",
            ),
            (
                all(angle < 90 for angle in angles),
                f"feedback alignment ends below 90 degrees everywhere: {listed(angles, 0)} (published: {LILLICRAP}); "
                f"it began at {listed(first, 0)}.",
            ),
        )
        yield from _tell_fit(numbers["fit"])


def _tell_fit(fit: dict[str, Any]) -> Iterator[str]:
    curves = {(labels, s): means(seeds) for labels, by_name in fit.items() for s, seeds in by_name.items()}
    epochs = len(curves["random", FITTERS[0]])
    shown = [max(1, round(share * epochs)) for share in SHARES]
    yield (
        "\nAccuracy on the training batches, mean over the seeds. Published: random labels, another net and data set, "
        f"100 epochs [Rf]; here {epochs}.\n"
    )
    rows = [[labels, s, *(f"{line[e - 1]:.3f}" for e in shown)] for (labels, s), line in curves.items()]
    rows += [["random, published", name, *(f"{v:.3f}" for v in values)] for name, values in RANDOM.items()]
    yield from markdown_table(["labels", "strategy", *(f"{share:.0%} of training" for share in SHARES)], rows)
    ends = {labels: [curves[labels, s][-1] for s in ("backprop", "dgl")] for labels in fit}
    (bp, local), true, mlp = (ends[labels] for labels in LABELS)
    yield from verdicts(
        (bp > local + 0.05, f"backpropagation fits random labels faster than local losses: {bp:.2f} and {local:.2f}."),
        (
            bp - local > 2 * (true[0] - true[1]),
            "this is not because local losses fit everything less well: with the true labels "
            f"{true[0]:.2f} and {true[1]:.2f}.",
        ),
        (mlp[0] > mlp[1] + 0.05, f"the same holds for the MLP: {mlp[0]:.2f} and {mlp[1]:.2f}."),
    )


def _by_epoch(repeats: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Cosine and angle [seed][epoch][block] after every epoch, from the initial weights on."""
    epochs = sorted({row["epoch"] for row in repeats[0]})
    return {"epochs": epochs} | {
        key: [[[row[f"update_{key}"] for row in rows if row["epoch"] == e] for e in epochs] for rows in repeats]
        for key in ("cosine", "angle")
    }


def _by_place(own: dict[str, Any], key: str) -> list[list[list[float]]]:
    """[epoch][block] -> the values of all seeds."""
    return [[list(v) for v in zip(*blocks, strict=True)] for blocks in zip(*own[key], strict=True)]
