"""What a pipeline would give: step time, bubble, speed-up and memory of every schedule, from measured block costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from locallearn.contract import Route
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.cut import partition
from locallearn.plan.devices import QUEUE, stages
from locallearn.plan.link import GUESSED, LinkCost
from locallearn.plan.measure import BlockCost, Measured, Read
from locallearn.plan.options import PlanOptions
from locallearn.plan.simulate import graphs, simulate

Division = Sequence[Sequence[BlockCost]]


def cut_for(options: PlanOptions, model: BlockModel, blocks: int | str | list[int], balance: str) -> list[range]:
    """The blocks of one copy of the model; with blocks=auto at least one a stage, of equal measured time."""
    units, wanted, depth = len(model.units), options.stages // options.depth, options.depth
    if wanted > units:
        deeper = range(depth + 1, options.stages + 1)
        copies = next(d for d in deeper if options.stages % d == 0 and options.stages // d <= units)
        raise UserError(
            f"stages={options.stages} but {model.name} has {units} units; choose at most {units * depth} stages, or "
            f"simulate a deeper network of {copies} copies of it with depth={copies}"
        )
    if blocks == "auto":
        return model.cut(max(wanted, min(4, units)), "time" if wanted > 4 else balance)
    cut = model.cut(blocks, balance)
    if wanted > len(cut):
        raise UserError(f"stages={options.stages} but blocks={blocks} makes {len(cut)} blocks; choose blocks={wanted}")
    return cut


def short(number: float) -> str:
    """Three digits; all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


class Prediction(NamedTuple):
    """Of one schedule in its steady state.

    bubble  the share of all devices' time in which they wait
    memory  bytes of each stage at its peak: weights, gradients, optimizer, activations, waiting packets
    """

    step_seconds: float
    bubble: float
    memory: list[int]


def predict(
    schedule: str,
    division: Division,
    micro_batches: int = 1,
    link: LinkCost = GUESSED,
    exchanges: int = 1,
    reads: Sequence[Read] = (),
) -> Prediction:
    """What a schedule of `simulate.SCHEDULES` gives for the costs of the blocks of each stage (for a whole batch).

    A strategy without feedback runs `none`, backprop `chain` (or `1f1b`); `exchanges` of route rounds;
    `reads` of route none.
    """
    devices = stages(division, micro_batches, link, exchanges, reads)
    step = simulate(schedule, devices, micro_batches).step_seconds
    bubble = 1 - devices.busy / (len(division) * step)
    return Prediction(step, max(bubble, 0.0), memory(schedule, division, micro_batches))


def divide(costs: Sequence[BlockCost], count: int, depth: int = 1) -> list[list[BlockCost]]:
    """`count` stages of consecutive blocks of `depth` copies of these, the slowest as fast as it can be."""
    edges = partition([c.times.total for c in costs], count // depth)
    division = [list(costs[a:b]) for a, b in pairwise(edges)]
    first, *rest = division[0]
    if any(c.down for c in costs[1:]):  # a copy's first block answers the copy below
        first = first._replace(down=costs[-1].up)
    return division + [[first, *rest], *division[1:]] * (depth - 1)


def memory(schedule: str, division: Division, micro_batches: int = 1) -> list[int]:
    """Bytes of each stage at its peak."""
    if schedule == "delayed":
        counts = iter(graphs(schedule, sum(map(len, division)), 1))
        alive = [[next(counts) for _ in blocks] for blocks in division]
    else:
        stages_ = graphs(schedule, len(division), micro_batches)
        alive = [[n] * len(blocks) for n, blocks in zip(stages_, division, strict=True)]
    waiting = [0, *(QUEUE * blocks[-1].up if schedule == "none" else 0 for blocks in division)]
    return [
        sum(b.fixed for b in blocks) + round((_activations(schedule, blocks, alive[s]) + waiting[s]) / micro_batches)
        for s, blocks in enumerate(division)
    ]


def _activations(schedule: str, blocks: Sequence[BlockCost], alive: Sequence[int]) -> int:
    """Bytes that autograd keeps at the peak in a stage; `alive`: graphs of each block."""
    if schedule == "none":
        return max(b.peak for b in blocks)  # a graph is freed before the next block runs
    if schedule == "neighbor":
        below = [0, *(b.held for b in blocks)]
        two = [low + b.peak for low, b in zip(below, blocks, strict=False)]
        return max(two[-1], max(two[:-1], default=0) + blocks[-1].held)
    return sum(n * b.held for n, b in zip(alive, blocks, strict=True)) + max(b.peak - b.held for b in blocks)


class ScheduleRow(NamedTuple):
    """One line of the table. `own`: what `runtime=pipeline` does with the strategy that was asked for; `exchanges`: the
    rounds of route rounds; `reads`: tensors of blocks above that others read."""

    label: str
    strategy: str
    schedule: str
    micro_batches: int
    division: list[list[BlockCost]]
    prediction: Prediction
    speed_up: float
    over_backprop: float
    own: bool
    exchanges: int = 1
    reads: Sequence[Read] = ()


def rows(
    options: PlanOptions,
    link: LinkCost,
    strategy: Measured,
    backprop: Measured,
    error_bytes: int,
    alone: Mapping[str, float] | None = None,
) -> list[ScheduleRow]:
    """Every schedule: those of backprop with its costs, those of the other routes with the strategy's, for the share of
    one replica. `error_bytes`: of the message of route BROADCAST; `alone`: seconds of the whole batch by strategy on
    one device, where replicas share it."""
    m, own = options.micro_batches, strategy.route
    cases = [
        ("one device", "", 1, backprop),
        ("model parallel", "chain", 1, backprop),
        (f"GPipe, M={m}", "chain", m, backprop),
        (f"1F1B, M={m}", "1f1b", m, backprop),
        ("delayed gradients", "delayed", 1, backprop),
    ]
    if strategy.name != backprop.name:
        cases.append(("one device", "", 1, strategy))
        if own is Route.CHAIN:
            cases.append((f"route chain, M={m}", "chain", m, strategy))
    cases += [("route none", "none", 1, strategy), ("route neighbor", "neighbor", 1, strategy)]
    cases.append((f"route broadcast, M={m}", "broadcast", m, strategy))
    if own is Route.ROUNDS:
        cases.append(("route rounds", "rounds", 1, strategy))
    table, alone = [], alone or {each.name: sum(c.times.total for c in each.whole) for each in (strategy, backprop)}
    for label, schedule, micro, measured in cases:
        costs = _with_feedback(measured.whole if micro == 1 else measured.parts, schedule, error_bytes)
        serial, reference = (options.depth * alone[each.name] for each in (measured, backprop))
        exchanges, reads = measured.exchanges(len(costs) * options.depth), _copied(measured, options.depth)
        if schedule:
            costs = [_summed(cost, link, options.replicas) for cost in costs]
            division = divide(costs, options.stages, options.depth)
            prediction = predict(schedule, division, micro, link, exchanges, reads)
        else:
            division = [[block for copy in divide(costs, options.depth, options.depth) for block in copy]]
            kind = "none" if measured.route is Route.NONE else "chain"
            prediction = Prediction(serial, 0.0, memory(kind, division))
        speed_up, over_backprop = serial / prediction.step_seconds, reference / prediction.step_seconds
        is_own = measured is strategy and schedule == own.value and (own is not Route.CHAIN or micro == m)
        facts = label, measured.name, schedule, micro, division, prediction, speed_up, over_backprop, is_own
        table.append(ScheduleRow(*facts, exchanges, reads))
    return table


def _copied(measured: Measured, depth: int) -> list[Read]:
    """What the blocks of `depth` copies of the model read: of the last block of all, or within their copy."""
    blocks = len(measured.whole)
    return [
        read._replace(
            block=copy * blocks + read.block,
            source=(depth - 1 if read.source == blocks - 1 else copy) * blocks + read.source,
        )
        for copy in range(depth)
        for read in measured.reads
    ]


def _summed(cost: BlockCost, link: LinkCost, replicas: int) -> BlockCost:
    """The cost with that of the sums over replicas, which a block waits for before its update."""
    times = cost.times
    return cost._replace(times=times._replace(update=times.update + link.summed(cost.gradients, replicas)))


def _with_feedback(costs: Sequence[BlockCost], schedule: str, error_bytes: int) -> list[BlockCost]:
    """The costs with the feedback that a schedule needs, where the strategy sends none of its own."""
    if schedule not in ("neighbor", "broadcast") or any(c.down for c in costs):
        return list(costs)
    if schedule == "broadcast":
        return [c._replace(down=error_bytes) for c in costs]
    return [costs[0], *(c._replace(down=below.up) for below, c in pairwise(costs))]
