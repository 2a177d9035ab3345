"""How much of what backpropagation adds to random layers does direct feedback alignment add, task by task?"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from locallearn.figures import by_strategy, panels
from locallearn.studies.analysis import Analysis, Runs, deviation, markdown_table, mean_std, verdicts

SCORES = {"picture": "test/rmse", "clicks": "test/loss", "graph": "test/accuracy", "language": "test/loss"}
LOCAL = ("dfa", "dgl")


class BeyondImages(Analysis):
    """Of each task the share of the way from `shallow` to `backprop`, seed by seed."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        return {
            task: {
                name: [run.summary[score] for run in runs.by_row[f"{task}, {name}"]]
                for name in ("backprop", *LOCAL, "shallow")
            }
            for task, score in SCORES.items()
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, (axis,) = panels(width=4.2)
        for offset, name in zip((-0.15, 0.15), LOCAL, strict=True):
            shares = [_shares(own, name) for own in numbers.values()]
            axis.bar(
                [i + offset for i in range(len(shares))], [fmean(s) for s in shares], 0.3,
                yerr=[deviation(s) for s in shares], color=by_strategy(name), label=name,
            )  # fmt: skip
        axis.axhline(1, color="black", lw=0.6)
        axis.set_xticks(range(len(numbers)), list(numbers))
        axis.set(ylabel="share of the way from\nshallow to backprop")
        axis.legend()
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        yield "Of the way from `shallow` (0) to `backprop` (1), seed by seed:\n"
        yield from markdown_table(
            ("task", *LOCAL),
            [(task, *(mean_std(_shares(own, name)) for name in LOCAL)) for task, own in numbers.items()],
        )
        dfa = {task: fmean(_shares(own, "dfa")) for task, own in numbers.items()}
        yield from verdicts(
            *(
                (dfa[task] > 0.5, f"{task}: DFA is nearer to backpropagation than to random layers: {dfa[task]:.2f}.")
                for task in numbers
            ),
            (min(dfa, key=dfa.__getitem__) == "language", "the gap is largest in the language model."),
        )


def _shares(own: dict[str, list[float]], name: str) -> list[float]:
    """(value - shallow) / (backprop - shallow) by seed; 0 where these two are equal."""
    values = zip(own[name], own["shallow"], own["backprop"], strict=True)
    return [(a - low) / (high - low) if high != low else 0.0 for a, low, high in values]
