"""The plan as text: aligned columns with units, and what the numbers assume."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import accumulate, pairwise

from locallearn.figures.text import fitted, table
from locallearn.plan.measure import BlockCost
from locallearn.plan.options import PlanOptions
from locallearn.plan.schedules import Row

MB = 1e6
MOST_COLUMNS = 8  # stages whose memory stands in a line of its own numbers
MOST_LINES = 16  # stages that are listed
HEAD = ("", "schedule", "strategy", "ms/step", "speed-up", "over backprop", "bubble")


def render(
    title: str,
    rows: Sequence[Row],
    options: PlanOptions,
    names: Sequence[str],
    cut: Sequence[range],
    width: int | None = None,
) -> str:
    """The table of schedules, that of stages, and the assumptions, in at most `width` columns. `names` of the model's
    units, `cut` into blocks."""
    few = options.stages <= MOST_COLUMNS
    head = (*HEAD, "MB of each stage" if few else "MB, largest stage (mean)")
    lines = table([head, *(_cells(row, few) for row in rows)], width, left=(0, 1, 2, 7), again=3)
    own = next((row for row in rows if row.own), rows[-1])
    return "\n\n".join(
        [fitted(title, width), lines, _stages(own, names, cut, width), _assumptions(rows, options, width)]
    )


def _cells(row: Row, few: bool) -> tuple[str, ...]:
    memory = [n / MB for n in row.prediction.memory]
    largest = f"{short(max(memory))} ({short(sum(memory) / len(memory))})"
    return (
        "*" if row.own else "",
        row.label,
        row.strategy,
        short(row.prediction.step_seconds * 1e3),
        f"{row.speed_up:.2f}",
        f"{row.over_backprop:.2f}",
        f"{row.prediction.bubble:.1%}",
        " ".join(map(short, memory)) if few else largest,
    )


def _stages(row: Row, names: Sequence[str], cut: Sequence[range], width: int | None) -> str:
    """What each stage holds and does under the strategy's own schedule."""
    division = row.division
    seconds = [sum(b.times.total for b in blocks) for blocks in division]
    balance = f"balance of {row.strategy}: the sum of the stages' times is {sum(seconds) / max(seconds):.2f} times the "
    balance += f"slowest, at best {len(division)}"
    if len(division) > MOST_LINES:
        return fitted(balance, width)
    edges = [0, *accumulate(len(blocks) for blocks in division)]
    cells: list[tuple[str, ...]] = [("stage", "units", "forward ms", "backward ms", "sends up MB", "down MB")]
    for stage, (a, b) in enumerate(pairwise(edges)):
        units = [names[i] for block in range(a, b) for i in cut[block % len(cut)]]
        cells.append((str(stage), _span(units), *_numbers(division[stage], stage, len(division))))
    return f"{table(cells, width, left=(1,), again=2)}\n{fitted(balance, width)}"


def short(number: float) -> str:
    """Three digits; all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _span(units: Sequence[str]) -> str:
    text = units[0] if len(units) == 1 else f"{units[0]} .. {units[-1]}"
    return text if len(text) <= 32 else f"{text[:14]}...{text[-15:]}"


def _numbers(blocks: Sequence[BlockCost], stage: int, count: int) -> tuple[str, ...]:
    forward, backward = sum(b.times.forward for b in blocks), sum(b.times.backward for b in blocks)
    up, down = blocks[-1].up if stage < count - 1 else 0, blocks[0].down if stage else 0
    return tuple(map(short, (forward * 1e3, backward * 1e3, up / MB, down / MB)))


def _assumptions(rows: Sequence[Row], options: PlanOptions, width: int | None) -> str:
    own = next((row.strategy for row in rows if row.own), rows[-1].strategy)
    told = (
        f"* what the pipeline does with {own}. Predicted, not run: block times are measured here, alone, and every "
        f"device is taken to be as fast; a message takes {options.latency:g} us + bytes / {options.bandwidth:g} GB/s "
        "and costs the devices nothing. M: micro-batches. 'over backprop': against backprop on one device. Routes that "
        f"are not the strategy's own show their schedule at the block times of {own}."
    )
    if options.depth > 1:
        told += f" The network is {options.depth} copies of the model's blocks, one after the other."
    return textwrap.fill(told, min(110, width or 110), break_on_hyphens=False)
