"""How tensors travel between stages: with the strides that they had, which decide what kernel a convolution takes, and
so the last bits. (A map of one position is contiguous and channels-last at once: the name of a layout says too little.)

A message is one stretch of bytes. Its signature says what lies where in it; it is told once and then has a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from locallearn.errors import RunError

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.uint8, torch.bool, torch.int32, torch.int16, torch.int8)
ALIGNED = 64  # bytes: a kernel may choose by the address that it reads from
MOST_SIGNATURES = 1024  # that are known at once; shapes may differ from batch to batch
Message: TypeAlias = Sequence[Tensor | None]


@dataclass(frozen=True)
class Layout:
    """How one tensor lies in memory, and what of it travels: its stretch of memory as it lies there or, where that has
    gaps that belong to others (a slice of a larger tensor), its numbers one after the other."""

    sent: torch.dtype
    meant: torch.dtype
    sizes: tuple[int, ...]
    strides: tuple[int, ...]

    @cached_property
    def stretch(self) -> int:
        """Numbers in memory from the first to the last one of the tensor."""
        away = sum((n - 1) * stride for n, stride in zip(self.sizes, self.strides, strict=True))
        return 1 + away if math.prod(self.sizes) else 0

    @cached_property
    def distinct(self) -> tuple[int, ...]:
        """The sizes without repetition of the same memory: what `expand` repeats counts once."""
        return tuple(n if stride else min(n, 1) for n, stride in zip(self.sizes, self.strides, strict=True))

    @cached_property
    def has_gaps(self) -> bool:
        """Whether memory between the numbers is not the tensor's own. Of tensors that overlap themselves (windows over
        a signal) gaps do not count."""
        reach = 1
        for stride, n in sorted(zip(self.strides, self.distinct, strict=True)):
            if n > 1 and stride < reach:
                return False
            reach += (n - 1) * stride
        return reach > math.prod(self.distinct)

    @cached_property
    def is_dense(self) -> bool:
        """Whether every number has its own place, and every place its number."""
        return not self.has_gaps and self.stretch == math.prod(self.sizes)

    @cached_property
    def travels(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Sizes and strides, in the tensor's memory, of what travels."""
        return (self.distinct, self.strides) if self.has_gaps else ((self.stretch,), (1,))

    @cached_property
    def bytes(self) -> int:
        return math.prod(self.travels[0]) * self.sent.itemsize

    def within(self, memory: Tensor) -> Tensor:
        """These bytes as the tensor that is written and read there."""
        numbers = memory.view(self.sent)
        return numbers.as_strided(self.sizes, self.strides) if self.is_dense else numbers.view(self.travels[0])

    def part(self, t: Tensor) -> Tensor:
        """What travels of a tensor that has this layout, where it lies."""
        return t.detach() if self.is_dense else t.detach().as_strided(*self.travels)

    def empty(self, device: torch.device) -> Tensor:
        """A tensor that has this layout."""
        if self.is_dense:
            return torch.empty_strided(self.sizes, self.strides, dtype=self.meant, device=device)
        return torch.empty(self.stretch, dtype=self.meant, device=device).as_strided(self.sizes, self.strides)


class Slot:
    """The bytes of a message, and where the tensors of signatures lie in them, which is not computed twice."""

    def __init__(self, memory: Tensor) -> None:
        self.memory, self.size = memory, memory.numel()
        self.places: dict[Signature, list[Tensor | None]] = {}


class Signature:
    """What lies where in a message: the layout of each tensor (None where there is none) and its bytes. `size`: the
    bytes of the whole message; `kind`: a number that tells messages of several kinds apart."""

    def __init__(self, layouts: Sequence[Layout | None], kind: int = 0) -> None:
        self.layouts, self.kind = list(layouts), kind
        self.bytes, self.size = [], 0
        for layout in self.layouts:
            first = -(-self.size // ALIGNED) * ALIGNED
            self.size = self.size if layout is None else first + layout.bytes
            self.bytes.append(slice(first, self.size))

    @classmethod
    def of(cls, tensors: Message, message: torch.dtype | None, kind: int = 0, whole: int | None = None) -> Signature:
        """Of these tensors, floats sent as `message` if that is given, but for the one at `whole`. Raises RunError for
        types that cannot travel."""
        for t in tensors:
            if t is not None and t.dtype not in DTYPES:
                raise RunError(
                    f"a pipeline sends tensors of real numbers, not {t.dtype} {list(t.shape)}: choose runtime=serial"
                )
        types = [None if place == whole else message for place in range(len(tensors))]
        return cls([None if t is None else _layout(t, own) for t, own in zip(tensors, types, strict=True)], kind)

    @classmethod
    def told(cls, text: bytes) -> Signature:
        """From its `text`."""
        kind, rows = json.loads(text)
        layouts = [row and Layout(DTYPES[row[0]], DTYPES[row[1]], tuple(row[2]), tuple(row[3])) for row in rows]
        return cls(layouts, kind)

    @property
    def text(self) -> bytes:
        """As JSON."""
        rows = [t and [DTYPES.index(t.sent), DTYPES.index(t.meant), t.sizes, t.strides] for t in self.layouts]
        return json.dumps([self.kind, rows]).encode()

    def empty(self, device: torch.device) -> tuple[Tensor | None, ...]:
        """A message that has this signature."""
        return tuple(None if layout is None else layout.empty(device) for layout in self.layouts)

    def write(self, tensors: Message, slot: Slot, non_blocking: bool = False) -> None:
        """Put a message that has this signature into a slot."""
        for t, layout, place in zip(tensors, self.layouts, self._places_in(slot), strict=True):
            if t is not None and layout is not None and place is not None:
                place.copy_(layout.part(t), non_blocking)

    def read(self, tensors: Message, slot: Slot, non_blocking: bool = False) -> None:
        """Take a message that has this signature from a slot."""
        for t, layout, place in zip(tensors, self.layouts, self._places_in(slot), strict=True):
            if t is not None and layout is not None and place is not None:
                layout.part(t).copy_(place, non_blocking)

    def _places_in(self, slot: Slot) -> list[Tensor | None]:
        if self not in slot.places:
            if len(slot.places) == MOST_SIGNATURES:
                slot.places.clear()
            pairs = zip(self.layouts, self.bytes, strict=True)
            slot.places[self] = [None if layout is None else layout.within(slot.memory[at]) for layout, at in pairs]
        return slot.places[self]


def alike(tensors: Message) -> tuple[object, ...]:
    """Equal for messages of one signature."""
    return tuple(None if t is None else (t.dtype, t.shape, t.stride()) for t in tensors)


def _layout(t: Tensor, message: torch.dtype | None) -> Layout:
    sent = message if message is not None and t.is_floating_point() else t.dtype
    return Layout(sent, t.dtype, tuple(t.shape), t.stride())
