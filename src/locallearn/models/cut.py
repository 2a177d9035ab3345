"""Where to cut a row of units: the split whose most expensive block is as cheap as possible."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise

from locallearn.errors import UserError


def ranges(
    name: str, units: int, blocks: int | str | Sequence[int], costs: Callable[[], Sequence[float]]
) -> list[range]:
    """The units of each block (see `BlockModel.cut`). `costs` is only called where there is something to balance."""
    if not isinstance(blocks, str) and isinstance(blocks, Iterable):
        edges = [0, *blocks, units]
        if not all(type(p) is int for p in edges) or any(a >= b for a, b in pairwise(edges)):
            raise UserError(
                f"blocks={list(blocks)} but {name} has {units} units; choose increasing cut points between 1 and "
                f"{units - 1}, or {units} as the last, which makes the head a block of its own"
            )
    else:
        count = units if blocks == "max" else int(blocks) if isinstance(blocks, str) and blocks.isdigit() else blocks
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= units:
            raise UserError(
                f"blocks={blocks} but {name} has {units} units; choose 1-{units}, max, or a list of cut points"
            )
        edges = [i * units // count for i in range(count + 1)] if count in (1, units) else partition(costs(), count)
    return [range(a, b) for a, b in pairwise(edges)]


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

    def extended(b: int) -> list[tuple[float, list[int]]]:
        starts = [a for a in range(b) if total[b] - total[a] <= limit]
        return [(best[a][0] + (total[b] - total[a]) ** 2, [*best[a][1], b]) for a in starts]

    for _ in range(blocks):
        best = [min(extended(b), default=(inf, [])) for b in ends]
    return best[-1][1]
