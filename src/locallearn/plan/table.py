"""The plan as text: aligned columns with units, and what the numbers assume."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import torch

from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures.text import columns, fitted, table
from locallearn.plan.draw import draw
from locallearn.plan.link import GB, LinkCost, link_of
from locallearn.plan.measure import BlockCost, measure
from locallearn.plan.options import PlanOptions
from locallearn.plan.schedules import ScheduleRow, rows, short

MB = 1e6
SAMPLES = 32  # a larger batch is measured with so many
ROUNDS, REPEATS = 3, 2
MOST_COLUMNS = 8  # stages whose memory stands in a line of its own numbers
MOST_LINES = 16  # stages that are listed
HEAD = ("", "schedule", "strategy", "ms/step", "speed-up", "over backprop", "bubble")


def plan(learners: Mapping[str, Learner], batch: int, options: PlanOptions) -> str:
    """Measure blocks, predict every schedule, and draw it if a picture was asked for: the table of schedules, that of
    stages, and the assumptions. `learners` has the learner of the strategy by its name and, unless that is backprop,
    one of `backprop` in the same cut; they stay as they are. Raises UserError for what no pipeline can run."""
    name, learner = next(iter(learners.items()))
    model = learner.model
    if len(learner.strategy.phases(len(learner.blocks))) > 1:
        raise UserError(f"strategy={name} trains its blocks one after the other, in no pipeline: choose another")
    share = batch // options.replicas
    for option, size in (("replicas", batch), ("micro_batches", share)):
        parts = getattr(options, option)
        if model.samples and parts > 1:
            raise UserError(f"{option}={parts} would divide a graph, which is one batch: choose {option}=1")
        if size % parts:
            raise UserError(f"{option}={parts} does not divide a batch of {size}; choose a divisor")
    measured = measure(learners, share, options.micro_batches, SAMPLES, ROUNDS, REPEATS)
    whole_batch = measure(learners, batch, 1, SAMPLES, ROUNDS, REPEATS) if options.replicas > 1 else measured
    alone = {each.name: sum(cost.times.total for cost in each.whole) for each in whole_batch}
    link = link_of(options.bandwidth, options.latency, learner.device)
    schedules = rows(options, link, measured[0], measured[-1], error_bytes=4 * share * model.classes, alone=alone)
    copies = f"{options.depth} x " if options.depth > 1 else ""
    threads = torch.get_num_threads()
    title = (
        f"{copies}{model.name} in {len(learner.cut)} blocks on {_devices(options)}, batch {batch}, measured on "
        f"{learner.device} with {threads} thread{'s' if threads > 1 else ''}"
    )
    if options.picture:
        draw(schedules, options, link, title)
    few = options.stages <= MOST_COLUMNS
    head = (*HEAD, "MB of each stage" if few else "MB, largest stage (mean)")
    width, own = columns(), next((row for row in schedules if row.own), schedules[-1])
    lines = table([head, *(_cells(row, few) for row in schedules)], width, left=(0, 1, 2, 7), again=3)
    stages = _stages(own, model.names, learner.cut, width)
    return "\n\n".join([fitted(title, width), lines, stages, _assumptions(own, options, link, width)])


def _devices(options: PlanOptions) -> str:
    if options.replicas == 1:
        return f"{options.stages} devices"
    return f"{options.stages * options.replicas} devices ({options.replicas} replicas of {options.stages})"


def _cells(row: ScheduleRow, few: bool) -> tuple[str, ...]:
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


def _stages(row: ScheduleRow, names: Sequence[str], cut: Sequence[range], width: int | None) -> str:
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


def _span(units: Sequence[str]) -> str:
    text = units[0] if len(units) == 1 else f"{units[0]} .. {units[-1]}"
    return text if len(text) <= 32 else f"{text[:14]}...{text[-15:]}"


def _numbers(blocks: Sequence[BlockCost], stage: int, count: int) -> tuple[str, ...]:
    forward, backward = sum(b.times.forward for b in blocks), sum(b.times.backward for b in blocks)
    up, down = blocks[-1].up if stage < count - 1 else 0, blocks[0].down if stage else 0
    return tuple(map(short, (forward * 1e3, backward * 1e3, up / MB, down / MB)))


def _assumptions(own: ScheduleRow, options: PlanOptions, link: LinkCost, width: int | None) -> str:
    text = (
        f"* what the pipeline does with {own.strategy}. Predicted, not run: block times are measured here, alone, and "
        f"every device is taken to be as fast; a message takes {link}. M: micro-batches. 'over backprop': against "
        "backprop on one device. Routes that are not the strategy's own show their schedule at the block times of "
        f"{own.strategy}."
    )
    if options.replicas > 1:
        text += (
            f" Each replica has {options.replicas} times fewer samples; gradients are summed over the replicas at "
            f"{(link.summing or link.bandwidth) / GB:.1f} GB/s, and nothing hides that."
        )
    if options.depth > 1:
        text += f" The network is {options.depth} copies of the model's blocks, one after the other."
    return textwrap.fill(text, min(110, width or 110), break_on_hyphens=False)
