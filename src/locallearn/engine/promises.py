"""What a strategy promises by its class, checked before anything learns: one sentence that names the class."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from locallearn.contract import BlockSpec, Route, Strategy
from locallearn.engine.block import TrainedBlock
from locallearn.errors import UserError
from locallearn.task import BOXES, Task


def check_class(strategy: Strategy) -> None:
    """Raise UserError for a route, a step or `separate` that no driver can work with."""
    name = type(strategy).__name__
    route = getattr(strategy, "route", None)
    if not isinstance(route, Route):
        routes = ", ".join(f"Route.{each.name}" for each in Route)
        problem = "has no route" if route is None else f"has route = {route!r}"
        raise UserError(f"{name} {problem}: say where feedback comes from by route: ClassVar[Route], one of {routes}")
    if not inspect.isgeneratorfunction(strategy.step):
        raise UserError(
            f"{name}.step is not a generator function: it must yield Send(packet) between the forward and the backward "
            "half of a block, exactly once (under route rounds once for each round)"
        )
    if isinstance(strategy.separate, str) or not all(isinstance(each, str) for each in strategy.separate):
        raise UserError(f"{name}.separate={strategy.separate!r}: must be a frozenset of names of auxiliary modules")
    pairs = ("reads", "publish", "gives what blocks read"), ("settles", "settle", "answers in rounds")
    for says, does, what in pairs:
        missing = getattr(type(strategy), does) is getattr(Strategy, does)
        if missing and getattr(type(strategy), says) is not getattr(Strategy, says):
            raise UserError(f"{name} has {says} and no {does}: add the method that {what}, see docs/own-strategy.md")


def check_task(strategy: Strategy, task: Task) -> None:
    """Raise UserError where the strategy, or the objective that it has, cannot serve a task."""
    if task.form == BOXES and not strategy.boxes:
        raise UserError(
            f"strategy {type(strategy).__name__} learns from one answer for each sample or position, but the data ask "
            f"for {task.wanted} (task {task.asks}): choose strategy=backprop, deep_supervision, dgl, loco or pgi"
        )
    objective: Any = getattr(strategy, "objective", None)
    for part in (strategy, objective):
        tasks = getattr(part, "tasks", None)
        if tasks is not None and task.asks not in tasks:
            needs = getattr(part, "needs", f"serves {', '.join(sorted(tasks))}")
            group = "objective" if part is objective else "strategy"
            other = (
                "objective=cross_entropy" if part is objective else "strategy=backprop, dgl, loco or deep_supervision"
            )
            raise UserError(
                f"{group} {type(part).__name__} {needs}, but the data ask for {task.wanted} (task {task.asks}): "
                f"choose {other}"
            )


def phases_of(strategy: Strategy, depth: int, trained: Collection[int] | None = None) -> list[range]:
    """Which of `depth` blocks take their steps, phase after phase. Raises UserError for anything else.

    Where the user lets only some blocks learn, `trained`, phases without any of them are left out. In the others the
    blocks below the lowest one only compute; those above the highest one are needed for the feedback that passes them.
    """
    phases: Any = strategy.phases(depth)
    fits = isinstance(phases, Sequence) and all(isinstance(each, range) for each in phases)
    if not fits or not phases or any(not each or each.step != 1 or each[0] < 0 or each[-1] >= depth for each in phases):
        raise UserError(
            f"{type(strategy).__name__}.phases({depth}) returned {phases!r}: must be a list of ranges within "
            f"range({depth}), the blocks that learn in each phase"
        )
    if strategy.route is Route.ROUNDS and list(phases) != [range(depth)]:
        raise UserError(f"{type(strategy).__name__}.phases: under route rounds all blocks take their steps together")
    if trained is None or strategy.route is Route.ROUNDS:
        return list(phases)
    pairs = [(phase, [k for k in phase if k in trained]) for phase in phases]
    without_feedback = strategy.route is Route.NONE
    kept = [
        range(phase.start if strategy.carries else own[0], own[-1] + 1 if without_feedback else phase.stop)
        for phase, own in pairs
        if own
    ]
    if not kept:
        raise UserError(f"train_blocks={sorted(trained)}: {type(strategy).__name__} never trains any of these")
    return kept


def only_computes(strategy: Strategy, index: int, depth: int, trained: Collection[int] | None) -> bool:
    """Whether a block never takes a step, because the user lets it not learn and no feedback passes it."""
    if trained is None or index in trained:
        return False
    return strategy.route is Route.NONE or not any(index in phase for phase in phases_of(strategy, depth, trained))


def modules_of(strategy: Strategy, spec: BlockSpec) -> nn.ModuleDict:
    """The auxiliary modules of one block. Raises UserError for anything else."""
    modules: Any = strategy.modules(spec)
    if not isinstance(modules, Mapping) or not all(isinstance(each, nn.Module) for each in modules.values()):
        raise UserError(
            f"{type(strategy).__name__}.modules returned {modules!r:.100} for block {spec.index}: must be a mapping of "
            "names to torch modules, {} for none"
        )
    try:
        return nn.ModuleDict(modules)
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{type(strategy).__name__}.modules: {error.args[0]}; the name must be a text without a dot"
        ) from error


def check_separate(strategy: Strategy, blocks: Sequence[TrainedBlock]) -> None:
    """Raise UserError for an optimizer of its own that is promised to a module that no block has. With one block, or
    where others are frozen, a strategy may have nothing to train beside it."""
    there = {name for block in blocks for name in block.auxiliary}
    if len(blocks) > 1 and not blocks[0].trained and (missing := sorted(strategy.separate - there)):
        raise UserError(
            f"{type(strategy).__name__}.separate names {', '.join(missing)}, but no block has such a module: "
            f"{type(strategy).__name__}.modules gives {', '.join(sorted(there)) or 'none'}"
        )


def check_trained(strategy: Strategy, blocks: Sequence[TrainedBlock]) -> None:
    """Raise UserError for a block that the user lets learn, and that a step of every phase has not updated."""
    missed = [block.spec.index for block in blocks if block.trained and not block.frozen and not block.updated]
    if missed:
        raise UserError(
            f"train_blocks names block {missed[0]}, which {type(strategy).__name__} does not train: leave it out, or "
            "choose another strategy"
        )


def check_parts(strategy: Strategy, micro_batches: int, replicas: int) -> None:
    """Raise UserError where a batch is divided that a block learns from several times."""
    if strategy.repeats and micro_batches * replicas > 1:
        raise UserError(
            f"{type(strategy).__name__} updates its weights several times in a batch, so a batch cannot be divided: "
            "choose micro_batches=1 and runtime.replicas=1"
        )


def check_whole(strategy: Strategy, name: str, samples: int | None) -> None:
    """Raise UserError where a model, called `name`, reads exactly `samples` at once and a strategy makes more rows."""
    if samples is not None and strategy.multiplies:
        raise UserError(
            f"{type(strategy).__name__} makes several rows of a sample, but {name} reads the {samples} nodes of its "
            "graph as they are: choose another strategy, such as dgl"
        )


def check_rows(strategy: Strategy, h: Tensor, inputs: Any) -> None:
    """Raise UserError where an evaluation has several rows h [N, ...] for a sample, and one is asked for."""
    if isinstance(inputs, Tensor) and len(h) != len(inputs):
        raise UserError(
            f"{type(strategy).__name__} looks at each sample {len(h) // len(inputs)} times, but the features of a "
            "single look are asked for: choose another read-out of the strategy"
        )


def check_learned(strategy: Strategy, blocks: Sequence[TrainedBlock]) -> None:
    """Raise UserError if no block of a run has been updated, after a step. A block whose `update` somebody has
    replaced, to collect gradients, counts as updated."""
    if not any(block.updated or "update" in vars(block) for block in blocks):
        raise UserError(
            f"{type(strategy).__name__}.step trains nothing: no block has called block.update() in the first step; "
            "call it once the gradients of a block are complete"
        )
