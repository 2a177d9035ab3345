"""The tensors of one moment in one buffer, laid out as the data of a safetensors file, and written from there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from locallearn.errors import RunError

ALGORITHM = "xxh3_128"
TYPES = {
    **{torch.complex64: "C64", torch.float64: "F64", torch.float32: "F32", torch.float16: "F16"},
    **{torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.bool: "BOOL"},
}
"""What safetensors calls them."""
ALIGNED = 8  # bytes, to which the header is filled up


@dataclass(frozen=True)
class Written:
    """A file as it was written: its size, and a sum that shows whether it is still so."""

    bytes: int
    algorithm: str
    sum: str


class Snapshot:
    """Copies tensors into memory that is kept from one time to the next, so that training waits for the copy alone.

    A tensor that shares memory with another is copied like any other.
    """

    def __init__(self) -> None:
        self._layout: dict[str, tuple[torch.dtype, torch.Size]] = {}
        self._views: dict[str, Tensor] = {}
        self.head = b""
        self.data = torch.empty(0, dtype=torch.uint8)

    @torch.no_grad()
    def take(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors as they are now. Raises RunError for a type that a file cannot hold."""
        layout = {name: (t.dtype, t.shape) for name, t in tensors.items()}
        if layout != self._layout or not self.head:
            self._arrange(tensors)
            self._layout = layout
        for name, t in tensors.items():
            self._views[name].copy_(t)

    def _arrange(self, tensors: Mapping[str, Tensor]) -> None:
        """Find each tensor its place: wide types first, so that all are aligned."""
        for name, t in tensors.items():
            if t.dtype not in TYPES:
                raise RunError(f"{name} is {t.dtype}, which no checkpoint holds")
        order = sorted(tensors, key=lambda name: -tensors[name].element_size())
        places = dict(zip(order, pairwise(accumulate((tensors[n].nbytes for n in order), initial=0)), strict=True))
        size = sum(t.nbytes for t in tensors.values())
        if len(self.data) != size:
            self.data = torch.empty(size, dtype=torch.uint8, pin_memory=any(t.is_cuda for t in tensors.values()))
        self._views = {name: self.data[a:b].view(tensors[name].dtype) for name, (a, b) in places.items()}
        self._views = {name: view.view(tensors[name].shape) for name, view in self._views.items()}
        header = {
            name: {"dtype": TYPES[tensors[name].dtype], "shape": list(tensors[name].shape), "data_offsets": [a, b]}
            for name, (a, b) in places.items()
        }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % ALIGNED)
        self.head = struct.pack("<Q", len(text)) + text

    def broken(self) -> str | None:
        """The name of the first tensor that holds a number which is not finite."""
        floats = {name: t for name, t in self._views.items() if t.is_floating_point() or t.is_complex()}
        norms = torch._foreach_norm(list(floats.values())) if floats else ()  # a ninth of the time of the exact look
        unsure = [name for name, norm in zip(floats, norms, strict=True) if not bool(norm.isfinite())]
        return next((name for name in unsure if not bool(floats[name].isfinite().all())), None)


def write(path: Path, head: bytes, data: Tensor) -> Written:
    """Write a new file of these bytes, and wait until it is on the disk. Raises OSError."""
    size = len(head) + len(data)
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(errno.ENOSPC, f"no space: {size:,} bytes needed, {free:,} free")
    digest = xxhash.xxh3_128()
    with path.open("xb") as file:
        for part in (head, data.numpy().data):
            file.write(part)
            digest.update(part)
        file.flush()
        os.fsync(file.fileno())
    return Written(size, ALGORITHM, digest.hexdigest())
