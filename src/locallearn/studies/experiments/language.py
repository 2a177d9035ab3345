"""A small language model under backpropagation, and cut into two and four blocks that learn by themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean, stdev
from typing import Any

from locallearn.figures import by_depth, panels
from locallearn.names import TEST, by_block
from locallearn.runs.read import Run
from locallearn.studies.analysis import Analysis, Runs, deviation, listed, markdown_table, mean_std, verdicts
from locallearn.training.later import held_bytes

CUTS = (2, 4)
STRATEGIES = (
    *("backprop", "deep_supervision", "solo, shared", "solo, private", "solo, random", "dgl, 2 layers", "loco"),
    *("dgl", "dfa", "drtp", "shallow"),
)
SOLO = ("solo, shared", "solo, private", "solo, random")
PUBLISHED = 1.88
HEAD = (
    *("strategy", "test loss [nats]", "less backprop, by seed", "perplexity", "MiB held"),
    *("auxiliary parameters", "test loss by block", "cosine to backprop, by block"),
)


class Language(Analysis):
    """Loss, perplexity, memory, early exits and cosines by strategy and cut."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        cut = {str(k): {name: _of(runs.by_row[f"K={k}, {name}"]) for name in STRATEGIES} for k in CUTS}
        return {"nanoGPT": _of(runs.by_row["nanoGPT"]), "cut": cut}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, axes = panels(3, width=3.4, height=3.0)
        names = [name for name in STRATEGIES if name != "backprop"]
        colours = dict(zip(names, by_depth(len(names)), strict=True))
        for (k, own), marker in zip(numbers["cut"].items(), "os", strict=True):
            gaps = [_gaps(own, name) for name in names]
            axes[0].errorbar(
                [fmean(gap) for gap in gaps], range(len(names)), xerr=[deviation(gap) for gap in gaps],
                fmt=marker, ms=4, label=f"{k} blocks",
            )  # fmt: skip
        axes[0].axvline(0, color="black", lw=0.6)
        axes[0].set(xlabel="test loss less that of backpropagation [nats]")
        axes[0].set_xscale("symlog", linthresh=0.1)
        axes[0].set_yticks(range(len(names)), names)
        axes[0].invert_yaxis()
        axes[0].legend(loc="upper right")
        four = numbers["cut"]["4"]
        for axis, key, label in (
            (axes[1], "exits", "test loss [nats]"),
            (axes[2], "cosines", "cosine to backpropagation"),
        ):
            for name in names:
                if len(four[name][key]) > 1:
                    axis.plot(range(1, 1 + len(four[name][key])), four[name][key], "o-", ms=3, color=colours[name],
                              label=name)  # fmt: skip
            axis.set(xlabel="block, from the input upward", ylabel=label, title="Four blocks")
            axis.set_xticks(range(1, 5))
        axes[2].legend(fontsize=6)
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        plain = numbers["nanoGPT"]["losses"]
        yield f"nanoGPT's own setting, embedding and output one weight: {mean_std(plain, 3)} nats; published 1.88."
        for k, own in numbers["cut"].items():
            yield f"\n{k} blocks:\n"
            yield from markdown_table(HEAD, [_line(own, name) for name in STRATEGIES])
        yield from verdicts(
            (abs(fmean(plain) - PUBLISHED) <= 0.03, f"nanoGPT's test loss is 1.88: {mean_std(plain, 3)}."),
            *(_ordered(own, f"{k} blocks: SOLO's read-outs", SOLO) for k, own in numbers["cut"].items()),
            *(
                _ordered(own, f"{k} blocks: what was expected", ("backprop", "deep_supervision", "loco", "dgl"))
                for k, own in numbers["cut"].items()
            ),
        )


def _of(runs: Sequence[Run]) -> dict[str, Any]:
    """The numbers of a row, by seed or as means over the seeds."""

    def by(name: str, split: str = "") -> list[float]:
        blocks = [by_block(run.summary, name, split).values() for run in runs]
        return [round(fmean(values), 4) for values in zip(*blocks, strict=True)]

    return {
        "losses": [run.summary["test/loss"] for run in runs],
        "exits": by("loss", TEST),
        "cosines": by("update_cosine"),
        "held": held_bytes(runs[0].path),
        "auxiliary": runs[0].summary["auxiliary_parameters"],
        "seconds": fmean(run.summary["seconds"] for run in runs),
    }


def _gaps(own: dict[str, Any], name: str, control: str = "backprop") -> list[float]:
    """How much higher the loss of a strategy is than that of another, by seed."""
    return [a - b for a, b in zip(own[name]["losses"], own[control]["losses"], strict=True)]


def _line(own: dict[str, Any], name: str) -> tuple[str, ...]:
    row = own[name]
    return (
        name,
        mean_std(row["losses"], 3),
        "" if name == "backprop" else mean_std(_gaps(own, name), 3),
        f"{fmean(map(math.exp, row['losses'])):.2f}",
        f"{row['held'] / 2**20:.1f}",
        f"{row['auxiliary']:,}",
        listed(row["exits"], 3),
        listed(row["cosines"]),
    )


def _ordered(own: dict[str, Any], what: str, names: Sequence[str]) -> tuple[bool, str]:
    """Whether each loss is above the one before it, and by how much, with t of the differences paired by seed."""
    steps = {above: _gaps(own, above, below) for below, above in pairwise(names)}
    text = ", ".join(f"{name} {fmean(gap):+.3f} ± {deviation(gap):.3f}{_t(gap)}" for name, gap in steps.items())
    return all(fmean(gap) > 0 for gap in steps.values()), f"{what} in the order {names[0]}, {text}."


def _t(gaps: Sequence[float]) -> str:
    """Student's t of paired differences, where there are several that differ."""
    if len(gaps) < 2 or not stdev(gaps):
        return ""
    return f" (t = {fmean(gaps) / (stdev(gaps) / math.sqrt(len(gaps))):.1f})"
