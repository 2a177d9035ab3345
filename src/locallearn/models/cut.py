"""Where to cut a model: what each unit costs, and the split whose largest block is as small as possible."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from locallearn.analysis.quiet import undisturbed
from locallearn.errors import UserError, unknown

if TYPE_CHECKING:
    from locallearn.models.base import BlockModel, Size

BALANCES = ("flops", "memory", "time")
_MEMORY_BATCH = 128  # images for which balance=memory weighs activations against weights
_BATCH = 2  # of a dry run; 1 would make an `x.squeeze()` in a user's module drop the batch


class UnitCost(NamedTuple):
    """One unit: the shape that it emits (without the batch), its parameters, and per image the floating-point
    operations of the forward pass and the bytes that autograd saves for the backward pass."""

    name: str
    shape: Size
    parameters: int
    flops: int
    memory: int


def cut(model: BlockModel, blocks: int | str | Sequence[int], balance: str = "flops") -> list[range]:
    """See `BlockModel.cut`."""
    if balance not in BALANCES:
        raise unknown("balance", balance, BALANCES)
    n = len(model.units)
    if not isinstance(blocks, str) and isinstance(blocks, Iterable):
        return _at(model, list(blocks))
    count = n if blocks == "max" else int(blocks) if isinstance(blocks, str) and blocks.isdigit() else blocks
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= n:
        raise UserError(f"blocks={blocks} but {model.name} has {n} units; choose 1-{n}, max, or a list of cut points")
    if count in (1, n):  # nothing to balance, so nothing to measure
        return _ranges([i * n // count for i in range(count + 1)])
    return _ranges(partition(_costs(model, balance), count))


def _at(model: BlockModel, points: list[int]) -> list[range]:
    n = len(model.units)
    edges = [0, *points, n]
    if not all(type(p) is int for p in points) or any(a >= b for a, b in pairwise(edges)):
        raise UserError(
            f"blocks={points} but {model.name} has {n} units; choose increasing cut points between 1 and {n - 1}"
        )
    return _ranges(edges)


def partition(costs: Sequence[float], blocks: int) -> list[int]:
    """Edges [0, ..., n] of the split of `costs` into consecutive non-empty blocks whose largest sum is smallest.

    Exact, by dynamic programming over (blocks so far, units so far). Among equals the least sum of squares, so that the
    blocks beside the largest are even too; then the earliest cut points.
    """
    total = [0, *accumulate(costs)]
    ends = range(len(costs) + 1)
    inf = float("inf")
    largest: list[float] = [0, *(inf for _ in costs)]
    for _ in range(blocks):
        largest = [min((max(largest[a], total[b] - total[a]) for a in range(b)), default=inf) for b in ends]
    limit = largest[-1]
    best: list[tuple[float, list[int]]] = [(0, [0]), *((inf, []) for _ in costs)]
    for _ in range(blocks):
        best = [
            min(
                (
                    (best[a][0] + (total[b] - total[a]) ** 2, [*best[a][1], b])
                    for a in range(b)
                    if total[b] - total[a] <= limit
                ),
                default=(inf, []),
            )
            for b in ends
        ]
    return best[-1][1]


def measure(model: BlockModel) -> list[UnitCost]:
    """What each unit costs per image, counted in one small forward in evaluation mode that leaves no trace.

    Memory: every storage that autograd saves, once, at the first unit that saves it; weights and buffers are not
    counted, they are there anyway.
    """
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    costs = []
    with undisturbed(model, gradients=True):
        h = blank(model)
        batch = len(h)
        saved: dict[int, torch.UntypedStorage] = {}  # kept alive, so that no address is used twice
        for name, unit in zip(model.names, model.units, strict=True):
            before = sum(s.nbytes() for s in saved.values())
            with saved_tensors_hooks(_collect(saved, owned), _never), FlopCounterMode(display=False) as counter:
                h = emitted(model, name, unit(h.detach().requires_grad_()))
            memory = sum(s.nbytes() for s in saved.values()) - before
            flops = counter.get_total_flops()
            parameters = sum(p.numel() for p in unit.parameters())
            costs.append(UnitCost(name, tuple(h.shape[1:]), parameters, flops // batch, memory // batch))
    return costs


def emitted(model: BlockModel, name: str, h: object) -> Tensor:
    """What a unit has returned, which must be one tensor."""
    if not isinstance(h, Tensor):
        raise UserError(
            f"unit {name!r} of {model.name} returns a {type(h).__name__}, but what goes from block to block is one "
            "tensor: wrap it in a module that returns the features alone"
        )
    return h


def _collect(saved: dict[int, torch.UntypedStorage], owned: set[int]) -> Callable[[Tensor], None]:
    def pack(t: Tensor) -> None:
        storage = t.untyped_storage()
        if storage.data_ptr() not in owned:
            saved[storage.data_ptr()] = storage

    return pack


def _never(_: None) -> Tensor:
    raise AssertionError("a dry run has no backward")


def _costs(model: BlockModel, balance: str) -> list[float]:
    """What `balance` weighs a unit by. Memory is all that autograd holds in a step: activations and, once, weights."""
    if balance == "time":
        return _seconds(model)
    if balance == "memory":
        return [unit.memory * _MEMORY_BATCH + 4 * unit.parameters for unit in measure(model)]
    return [unit.flops for unit in measure(model)]


def _seconds(model: BlockModel, batch: int = 8, repeats: int = 3) -> list[float]:
    """Seconds of forward and backward per unit: the fastest of a few runs after one to warm up. Synchronises."""
    seconds = []
    with undisturbed(model, gradients=True):
        h = blank(model, batch)
        for name, unit in zip(model.names, model.units, strict=True):
            wanted = [p for p in unit.parameters() if p.requires_grad]
            runs = []
            for _ in range(1 + repeats):
                x = h.detach().requires_grad_()
                start = _now(x)
                h_next = emitted(model, name, unit(x))
                torch.autograd.grad(h_next.sum(), [x, *wanted], allow_unused=True)  # `.grad` is left alone
                runs.append(_now(x) - start)
            seconds.append(min(runs[1:]))
            h = h_next
    return seconds


def _now(t: Tensor) -> float:
    if t.is_cuda:
        torch.cuda.synchronize(t.device)
    return time.perf_counter()


def blank(model: BlockModel, batch: int = _BATCH) -> Tensor:
    """A batch of zeros on the model's device and in its type, [B, *image]; of the model's own size if it has one."""
    like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
    return like.new_zeros((model.samples or batch, *model.image), requires_grad=False)


def _ranges(edges: Sequence[int]) -> list[range]:
    return [range(a, b) for a, b in pairwise(edges)]
