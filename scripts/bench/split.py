"""Where to cut for a pipeline: by the measured time of units and of whole blocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from itertools import combinations, pairwise

import torch
from torch import Tensor

from bench.subjects import alone
from locallearn.models import BlockModel
from locallearn.models.cut import partition


def unit_seconds(model: BlockModel, x: Tensor) -> list[float]:
    """Forward and backward of each unit on the batch x, in channels_last."""
    seconds, h = [], x
    model = model.to(memory_format=torch.channels_last).train()
    for unit in model.units:
        h = h.detach().requires_grad_()
        gradient = torch.randn_like(unit(h))
        seconds.append(_seconds(lambda unit=unit, h=h, gradient=gradient: unit(h).backward(gradient), 2))
        with torch.no_grad():
            h = unit(h)
    model.zero_grad(set_to_none=True)
    return seconds


def blocks_alone(
    model: BlockModel, strategy: str, cut: list[range], x: Tensor, y: Tensor
) -> dict[str, Callable[[], None]]:
    """One step of each block by itself: units, heads, synthesizers, optimizer."""
    names = (f"block {k}" for k in range(len(cut)))
    return {name: alone(model, strategy, cut, range(k, k + 1), x, y)[1] for k, name in enumerate(names)}


def cut_by_time(
    model: BlockModel, strategy: str, blocks: int, x: Tensor, y: Tensor, units: Sequence[float]
) -> list[range]:
    """The cut whose slowest block is fastest. What a block takes beyond its units (head, optimizer, the input gradient
    it is spared) is measured at a first cut by units alone, and taken to be the same wherever the cut is."""
    first = _ranges(partition(units, blocks))
    measured = [_seconds(step) for step in blocks_alone(model, strategy, first, x, y).values()]
    beyond = [m - sum(units[i] for i in block) for m, block in zip(measured, first, strict=True)]

    def slowest(cut: list[range]) -> float:
        return max(sum(units[i] for i in block) + more for block, more in zip(cut, beyond, strict=True))

    n = len(units)
    return min((_ranges([0, *points, n]) for points in combinations(range(1, n), blocks - 1)), key=slowest)


def _ranges(edges: Sequence[int]) -> list[range]:
    return [range(a, b) for a, b in pairwise(edges)]


def _seconds(step: Callable[[], None], repeats: int = 1) -> float:
    """The fastest of some runs after one to warm up."""
    runs = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        step()
        runs.append(time.perf_counter() - start)
    return min(runs[1:])
