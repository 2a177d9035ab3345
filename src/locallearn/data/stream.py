"""Image files that are read when they are needed, ahead of the training step, by worker processes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from locallearn.data.decode import read_image
from locallearn.data.store import Size
from locallearn.errors import RunError, UserError


class _Files(Dataset[Any]):
    """What the workers see. A fault is returned, not raised: raised in a worker it would come with its traceback."""

    def __init__(self, paths: list[Path], size: int) -> None:
        self.paths, self.size = paths, size

    def __getitem__(self, index: int) -> Tensor | str:
        try:
            return read_image(self.paths[index], self.size)
        except UserError as error:
            return str(error)


def _collate(items: list[Tensor | str]) -> tuple[Tensor, list[str]]:
    """The images that could be read, [B', 3, size, size], and a sentence for each that could not."""
    images = [item for item in items if isinstance(item, Tensor)]
    return torch.stack(images) if images else torch.empty(0), [item for item in items if isinstance(item, str)]


class Stream:
    """Files in a fixed order. What `take` gives depends on the order asked for, not on the number of workers."""

    dtype = torch.uint8

    def __init__(self, paths: list[Path], size: int, workers: int, device: torch.device | None = None) -> None:
        self.paths, self.size, self.workers = paths, size, workers
        self.device = device or torch.device("cpu")

    @property
    def image(self) -> Size:
        return (3, self.size, self.size)

    def __len__(self) -> int:
        return len(self.paths)

    def to(self, device: torch.device) -> Stream:
        return Stream(self.paths, self.size, self.workers, device)

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """See `Store.take`. Raises UserError for the first file of a batch that cannot be read."""
        for images, faults in self._read(order, batch_size):
            if faults:
                raise UserError(faults[0])
            yield images.to(self.device, non_blocking=True)

    def identity(self) -> bytes:
        """The names and sizes of the files in their order; not where they lie, which differs from machine to machine,
        nor their times, which a copy changes."""
        files = [os.fspath(path) for path in self.paths]
        below = len(os.path.commonpath(files)) if files else 0
        digest = hashlib.sha256()
        for file in files:
            try:
                size = os.stat(file).st_size
            except OSError as error:
                raise UserError(
                    f"cannot read the image {file} ({error.strerror}); take it out of the folder"
                ) from error
            digest.update(os.fsencode(f"{file[below:]}\0{size}\n"))
        return digest.digest()

    def faults(self) -> list[str]:
        """A sentence for each file that cannot be read. Reads them all."""
        return [fault for _, faults in self._read(torch.arange(len(self)), 64) for fault in faults]

    def _read(self, order: Tensor, batch_size: int) -> Iterator[tuple[Tensor, list[str]]]:
        loader = DataLoader(
            _Files(self.paths, self.size),
            batch_sampler=[part.tolist() for part in order.split(batch_size)],
            num_workers=self.workers,
            collate_fn=_collate,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without one it would draw from PyTorch's global generator
        )
        try:
            yield from loader
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunError(
                f"a data worker was killed, most likely for want of memory, with data.workers={self.workers}; "
                "use fewer, or data.workers=0 to read in the training process"
            ) from error
