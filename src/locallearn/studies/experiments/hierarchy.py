"""Which level of a hierarchy the local loss of a block finds, where every level is known."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

from locallearn.figures import COLOURS, by_strategy, panels
from locallearn.studies.analysis import Analysis, Runs, markdown_table, mean_std, means, verdicts

LEVELS = ("tile", "symbol", "class")
COLOUR = {"masked": COLOURS[1]}
"""Of rows whose name is not that of a strategy."""


class Hierarchy(Analysis):
    """What is linearly read of each level from each block, before and after training, beside the exact answer."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        first = runs.rows("backprop", "levels")
        return {
            "best": {level: first[0][0][f"{level}_best"] for level in LEVELS},
            "bits": {level: first[0][0][f"{level}_bits"] for level in LEVELS},
            "untrained": _read(first, trained=False),
            "read": {row: _read(runs.rows(row, "levels"), trained=True) for row in runs.by_row},
            "accuracy": {row: runs.accuracy(row) for row in runs.by_row},
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, axes = panels(len(LEVELS), width=2.5)
        for axis, level in zip(axes, LEVELS, strict=True):
            untrained = means(numbers["untrained"][level])
            blocks = range(1, len(untrained) + 1)
            axis.axhline(numbers["best"][level], color="#999999", linewidth=0.8, label="exact posterior")
            axis.plot(blocks, untrained, ":", color=COLOURS[6], label="untrained")
            for row, read in numbers["read"].items():
                colour = COLOUR.get(row) or by_strategy(row)
                axis.plot(blocks, means(read[level]), "o-", ms=3, color=colour, label=row)
            axis.set(xlabel="block", ylabel=f"{level}: accuracy, read linearly", xticks=blocks)
        handles = axes[0].get_legend_handles_labels()
        figure.legend(*handles, loc="outside lower center", ncols=7, fontsize=7, frameon=False)
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        known = ", ".join(
            f"{level} {100 * best:.1f} % (missing: {numbers['bits'][level]:.3f} bits)"
            for level, best in numbers["best"].items()
        )
        yield f"Accuracy of the exact posterior: {known}. All numbers below are accuracies in percent.\n"
        rows = {"untrained": numbers["untrained"], **numbers["read"]}
        blocks = len(numbers["untrained"]["class"][0])
        head = ["", "test accuracy", *(f"{level}, blocks 1 to {blocks}" for level in LEVELS)]
        yield from markdown_table(
            head,
            [
                [
                    name,
                    mean_std(numbers["accuracy"][name], 1) if name in numbers["accuracy"] else "",
                    *(", ".join(f"{100 * value:.1f}" for value in means(read[level])) for level in LEVELS),
                ]
                for name, read in rows.items()
            ],
        )
        yield from _judged(numbers)


def _judged(numbers: dict[str, Any]) -> Iterator[str]:
    at = {name: {level: means(read[level]) for level in LEVELS} for name, read in numbers["read"].items()}
    before = {level: means(numbers["untrained"][level]) for level in LEVELS}
    found = {name: own["symbol"][-2] - before["symbol"][-2] for name, own in at.items()}
    highest = max(value for own in at.values() for value in own["class"])
    last = {name: own["tile"][-1] for name, own in at.items()}
    shown = ", ".join(f"{name} {100 * gain:+.1f}" for name, gain in found.items())
    accuracy = {name: fmean(values) for name, values in numbers["accuracy"].items()}
    yield from verdicts(
        (
            highest <= numbers["best"]["class"] + 0.02,
            f"nothing beats the exact posterior: at most {100 * highest:.1f} %.",
        ),
        (
            found["backprop"] == max(found.values()) > 0,
            "under backpropagation the last block but one finds more of the symbols, which no label names, than under"
            f" any local loss: points above the untrained net {shown}.",
        ),
        (
            min(found["dgl"], found["masked"], found["infomax"]) > 0,
            "every local loss finds some of them, with labels or without.",
        ),
        (
            last["masked"] == max(last.values()),
            "a net that reconstructs pixels keeps most of the tiles up to the top: from the last block "
            f"{100 * last['masked']:.1f} % can be read, {100 * last['backprop']:.1f} % under backpropagation.",
        ),
        (
            accuracy["backprop"] > accuracy["dgl"] > accuracy["shallow"],
            f"a net that finds the symbols finds the class: {accuracy['backprop']:.1f} % by backpropagation, "
            f"{accuracy['dgl']:.1f} % by local losses with labels, {accuracy['shallow']:.1f} % on random features.",
        ),
    )


def _read(seeds: list[list[dict[str, Any]]], trained: bool) -> dict[str, list[list[float]]]:
    """Of each level [seed][block], at the initial weights or after the last epoch."""
    read: dict[str, list[list[float]]] = {}
    for level in LEVELS:
        read[level] = []
        for rows in seeds:
            epoch = max(row["epoch"] for row in rows) if trained else 0
            read[level].append([row[f"{level}_accuracy"] for row in rows if row["epoch"] == epoch and "block" in row])
    return read
