"""How tensors travel between stages: with the strides that they had, which decide what kernel a convolution takes, and
so the last bits. (A map of one position is contiguous and channels-last at once: the name of a layout says too little.)

A message is a header of whole numbers, and the numbers of each tensor in one dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from locallearn.errors import RunError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.uint8, torch.bool, torch.int32, torch.int16, torch.int8)
MOST_TENSORS, MOST_DIMENSIONS = 64, 8
WIDTH = 3 + 2 * MOST_DIMENSIONS  # per tensor: types as sent and as meant, dimensions, sizes, strides
HEADER = 1 + MOST_TENSORS * WIDTH


class Layout(NamedTuple):
    """What a header says of one tensor."""

    sent: torch.dtype
    meant: torch.dtype
    sizes: Sequence[int]
    strides: Sequence[int]

    def empty(self) -> Tensor:
        """Where to receive its numbers."""
        return torch.empty(_count(self.sizes, self.strides), dtype=self.sent)

    def tensor(self, numbers: Tensor) -> Tensor:
        """The tensor again, of numbers that have been received."""
        numbers = numbers.to(self.meant)
        if not _has_gaps(self.sizes, self.strides):
            return numbers.as_strided(self.sizes, self.strides)
        distinct = _distinct(self.sizes, self.strides)
        memory = numbers.new_empty(_stretch(self.sizes, self.strides))
        memory.as_strided(distinct, self.strides).copy_(numbers.view(distinct))
        return memory.as_strided(self.sizes, self.strides)


def values(t: Tensor, message: torch.dtype | None = None) -> Tensor:
    """What travels of a tensor: its stretch of memory as it lies there or, where that has gaps that belong to others (a
    slice of a larger tensor), its numbers one after the other. On the CPU; floats as `message` if that is given."""
    sizes, strides = t.shape, t.stride()
    if _has_gaps(sizes, strides):
        numbers = t.detach().as_strided(_distinct(sizes, strides), strides).contiguous().view(-1)
    else:
        numbers = t.detach().as_strided((_stretch(sizes, strides),), (1,))
    return numbers.to("cpu", message if message is not None and t.is_floating_point() else t.dtype)


def header(tensors: Sequence[Tensor | None], sent: Sequence[Tensor | None]) -> Tensor:
    """Of a message of tensors whose `values` are sent."""
    if len(tensors) > MOST_TENSORS:
        raise RunError(
            f"a pipeline sends at most {MOST_TENSORS} tensors in one message, and this one has {len(tensors)}: choose "
            "fewer blocks, or runtime=serial"
        )
    words = torch.zeros(HEADER, dtype=torch.int64)
    words[0] = len(tensors)
    for i, (t, numbers) in enumerate(zip(tensors, sent, strict=True)):
        if t is None or numbers is None:
            words[1 + i * WIDTH] = -1
            continue
        if t.dtype not in DTYPES or t.dim() > MOST_DIMENSIONS:
            raise RunError(
                f"a pipeline sends tensors of real numbers of at most {MOST_DIMENSIONS} dimensions, not {t.dtype} "
                f"{list(t.shape)}: choose runtime=serial"
            )
        rest = [0] * (MOST_DIMENSIONS - t.dim())
        row = [DTYPES.index(numbers.dtype), DTYPES.index(t.dtype), t.dim(), *t.shape, *rest, *t.stride(), *rest]
        words[1 + i * WIDTH : 1 + (i + 1) * WIDTH] = torch.tensor(row)
    return words


def layouts(count: int, rest: Sequence[int]) -> Iterator[Layout | None]:
    """Of the tensors of a header, from its numbers; None in the place of a tensor that is none."""
    for i in range(count):
        sent, meant, dimensions, *numbers = rest[i * WIDTH : (i + 1) * WIDTH]
        strides = numbers[MOST_DIMENSIONS : MOST_DIMENSIONS + dimensions]
        yield Layout(DTYPES[sent], DTYPES[meant], numbers[:dimensions], strides) if sent >= 0 else None


def _count(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """How many numbers travel."""
    return math.prod(_distinct(sizes, strides)) if _has_gaps(sizes, strides) else _stretch(sizes, strides)


def _stretch(sizes: Sequence[int], strides: Sequence[int]) -> int:
    """Numbers in memory from the first to the last one of a tensor."""
    return 1 + sum((n - 1) * stride for n, stride in zip(sizes, strides, strict=True)) if math.prod(sizes) else 0


def _distinct(sizes: Sequence[int], strides: Sequence[int]) -> list[int]:
    """The sizes without repetition of the same memory: what `expand` repeats counts once."""
    return [n if stride else min(n, 1) for n, stride in zip(sizes, strides, strict=True)]


def _has_gaps(sizes: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether memory between the numbers of a tensor is not its own. Of tensors that overlap themselves (windows over a
    signal) gaps do not count."""
    reach = 1
    for stride, n in sorted(zip(strides, _distinct(sizes, strides), strict=True)):
        if n > 1 and stride < reach:
            return False
        reach += (n - 1) * stride
    return reach > math.prod(_distinct(sizes, strides))
