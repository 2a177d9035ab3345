"""A learner's state put back: all of it, or nothing where it does not fit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from locallearn.engine.block import TrainedBlock
from locallearn.engine.broken import clear
from locallearn.engine.stage import Stage, does_not_fit
from locallearn.engine.torch_optim import forget, misfit, put_back

OF_STAGE = ("replay.", "published.")
"""What a stage has beside the tensors of its blocks."""
VARYING = ("optimizer.", *OF_STAGE)
"""Tensors of a learner's state that are not there from the beginning."""


def put_all_back(
    now: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    parameters: Iterable[tuple[str, nn.Parameter]],
    optimizers: Sequence[Optimizer],
    stage: Stage,
) -> None:
    """See `Learner.load_state`. `now` is the state as it is, `tensors` what shall be in its place."""
    own = {name: t for name, t in now.items() if not name.startswith(VARYING)}
    loaded = {name: t for name, t in tensors.items() if not name.startswith(VARYING)}
    problems = [f"{name} is missing" for name in own.keys() - loaded.keys()]
    problems += [f"{name} is not part of this run" for name in loaded.keys() - own.keys()]
    problems += [
        f"{name} is {list(loaded[name].shape)} {loaded[name].dtype}, expected {list(t.shape)} {t.dtype}"
        for name, t in own.items()
        if name in loaded and (loaded[name].shape != t.shape or loaded[name].dtype != t.dtype)
    ]
    slots = _slots(tensors, dict(parameters), optimizers, problems)
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise does_not_fit("; ".join(sorted(problems)[:3]) + more)
    stage.load_state({name: t for name, t in tensors.items() if name.startswith(OF_STAGE)})
    clear(stage)
    with torch.no_grad():
        for name, t in own.items():
            t.copy_(loaded[name])
    for optimizer in optimizers:
        forget(optimizer)
    for p, optimizer, key, value in slots:
        put_back(optimizer, p, key, value)


def _slots(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, nn.Parameter],
    optimizers: Sequence[Optimizer],
    problems: list[str],
) -> list[tuple]:
    """(parameter, optimizer, key, value) for each saved optimizer tensor; what does not fit goes to `problems`."""
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    by_name = {name: p for name, p in parameters.items() if p in owner}
    slots = []
    for full, value in tensors.items():
        if not full.startswith("optimizer."):
            continue
        name, _, key = full.removeprefix("optimizer.").rpartition(".")
        p = by_name.get(name)
        if p is None:
            problems.append(f"{full} has no parameter here")
        elif misfit(owner[p], p, value):
            problems.append(f"{full} is {list(value.shape)}, expected {list(p.shape)}")
        else:
            slots.append((p, owner[p], key, value))
    return slots


def adapted(model: nn.Module, block: TrainedBlock) -> Iterator[tuple[str, Tensor]]:
    """The buffers that a strategy's `adapt` added to units and head, such as feedback weights."""
    shared = {id(b) for b in model.buffers()}
    yield from ((name, b) for name, b in block.layers.named_buffers() if id(b) not in shared)
    if block.head is not None:
        yield from ((f"head.{name}", b) for name, b in block.head.named_buffers() if id(b) not in shared)
