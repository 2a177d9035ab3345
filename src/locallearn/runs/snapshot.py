"""The tensors of one moment in one buffer, laid out as the data of a safetensors file, and written from there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from locallearn.accelerator import is_cpu, synchronise
from locallearn.errors import RunError

ALGORITHM = "xxh3_128"
TYPES = {
    **{torch.complex64: "C64", torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"},
    **{torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
"""What safetensors calls them."""
FLOATS = {kind for kind in TYPES if kind.is_floating_point or kind.is_complex}
ALIGNED = 8  # bytes, to which the header is filled up


@dataclass(frozen=True)
class Written:
    """A file as it was written: its size, and a sum that shows whether it is still so."""

    bytes: int
    algorithm: str
    sum: str


class Snapshot:
    """Copies tensors into memory that is kept from one time to the next, so that training waits for the copy alone.

    A tensor that shares memory with another is copied like any other. Each keeps its layout, such as channels_last: to
    change it takes twice as long, and is left to `write`.

    head     what a safetensors file begins with
    tensors  the copies, in the order of that file
    """

    def __init__(self) -> None:
        self.head = b""
        self.tensors: list[Tensor] = []
        self._names: list[str] = []
        self._layout: dict[str, tuple[Any, ...]] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors as they are now. Raises RunError for a type that a file cannot hold."""
        layout = {name: (t.dtype, t.shape, t.stride()) for name, t in tensors.items()}
        if layout != self._layout or not self.head:
            self._arrange(tensors)
            self._layout = layout
        for name, copy in zip(self._names, self.tensors, strict=True):
            copy.copy_(tensors[name], non_blocking=True)
        for device in {t.device for t in tensors.values()}:
            synchronise(device)

    def _arrange(self, tensors: Mapping[str, Tensor]) -> None:
        """Find each tensor its place: wide types first, so that all are aligned."""
        for name, t in tensors.items():
            if t.dtype not in TYPES:
                raise RunError(f"{name} is {t.dtype}, which no checkpoint holds: choose another precision")
        self._names = sorted(tensors, key=lambda name: -tensors[name].element_size())
        ordered = [tensors[name] for name in self._names]
        places = [*pairwise(accumulate((t.nbytes for t in ordered), initial=0))]
        size = sum(t.nbytes for t in ordered)
        if len(self._buffer) != size:
            self._buffer = torch.empty(size, dtype=torch.uint8)
            if not all(is_cpu(t.device) for t in ordered):
                self._buffer = self._buffer.pin_memory()
        self.tensors = [_inside(self._buffer[a:b], t) for t, (a, b) in zip(ordered, places, strict=True)]
        header = {
            name: {"dtype": TYPES[t.dtype], "shape": list(t.shape), "data_offsets": place}
            for name, t, place in zip(self._names, ordered, places, strict=True)
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % ALIGNED)
        self.head = struct.pack("<Q", len(text)) + text

    def broken(self) -> str | None:
        """The name of the first tensor that holds a number which is not finite."""
        floats = {n: t for n, t in zip(self._names, self.tensors, strict=True) if t.dtype in FLOATS}
        norms = torch._foreach_norm(list(floats.values())) if floats else ()  # a ninth of the time of the exact look
        unsure = [name for name, norm in zip(floats, norms, strict=True) if not bool(norm.isfinite())]
        return next((name for name in unsure if not bool(floats[name].isfinite().all())), None)


def _inside(memory: Tensor, like: Tensor) -> Tensor:
    """These bytes as a tensor of that type, shape and layout."""
    strides = torch.empty_like(like, device="meta").stride()  # without gaps
    flat = memory.view(like.dtype)
    return flat.as_strided(like.shape, strides, flat.storage_offset())


def write(path: Path, head: bytes, tensors: Sequence[Tensor]) -> Written:
    """Write a new file of the head and the numbers of the tensors, in the order of their dimensions, and wait until it
    is on the disk. Raises OSError."""
    size = len(head) + sum(t.nbytes for t in tensors)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, f"no space: {size:,} bytes needed, {free:,} free")
    digest = xxhash.xxh3_128()
    with path.open("xb") as file:
        file.write(head)
        digest.update(head)
        for t in tensors:
            content: Any = as_bytes(t).numpy()
            file.write(content)
            digest.update(content)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, ALGORITHM, digest.hexdigest())


def as_bytes(t: Tensor) -> Tensor:
    """The numbers of a tensor, in the order of its dimensions, as bytes [n]."""
    return t.contiguous().view(-1).view(torch.uint8)
