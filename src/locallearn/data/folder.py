"""A folder of image files, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval

from locallearn import accelerator
from locallearn.data.files import checked_root, reading
from locallearn.data.scan import Files, Scan, scan
from locallearn.data.source import DataSource, Raw, RawSplit
from locallearn.data.split import stratified
from locallearn.data.store import Memory, Store
from locallearn.data.stream import Stream
from locallearn.errors import UserError
from locallearn.seeds import generator


@dataclass(frozen=True)
class Folder(DataSource):
    """Images in ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val/CLASS/*), of any sizes, grey or in colour.

    With both ROOT/val and ROOT/test the former is the validation split, and nothing is drawn for it. Without either,
    or with ROOT/CLASS/* alone, a fixed fifth of each class is the test set; it does not depend on the seed of a run.
    `scan` says what other names splits may have and what is left out; `read_image`, what becomes of a picture.

    size          side in pixels to which every image is scaled and cut
    memory_share  the set is kept in memory if it takes no more than this share of it (of the machine's and of the
                  GPU's), else its files are read again each epoch; the batches are the same. With `resized_crop` they
                  are read in any case: the window is cut out of the picture as it is in the file
    workers       processes that read files
    """

    name: ClassVar[str] = "folder"
    measured: ClassVar[int | None] = 10_000

    size: Annotated[int, Ge(1)] = 64
    memory_share: Annotated[float, Interval(ge=0, le=1)] = 0.25
    workers: Annotated[int, Ge(0)] = 2

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), **({"memory_share": "data.resized_crop=0"} if self.resized_crop else {})}

    def folder(self) -> Path:
        if self.root is None:  # LOCALLEARN_DATA holds many sets: their folders would pass for classes
            raise UserError("data=folder needs data.root=PATH, a folder with train/CLASS/*.png or CLASS/*.png")
        return super().folder()

    def verify(self) -> str:
        contents = self._scan()
        files = [path for part in contents.parts.values() for path in part.paths]
        faults = Stream(files, self.size, self.workers).faults()
        if faults:
            raise UserError(f"{len(faults)} of {len(files)} images cannot be read; the first: {faults[0]}")
        parts = "".join(f", {name}/ for {part}" for part, name in contents.folders.items())
        return ", ".join(filter(None, [f"every one of {len(files)} files can be read{parts}", contents.others()]))

    def read(self, device: torch.device) -> Raw:
        contents = self._scan()
        needed_bytes = sum(len(files) for files, _ in contents.parts.values()) * 3 * self.size**2
        keep = not self.resized_crop and needed_bytes <= self.memory_share * memory_bytes(device)
        parts = {name: RawSplit(self._store(files, keep), labels) for name, (files, labels) in contents.parts.items()}
        return Raw(contents.classes, parts["train"], parts["test"], parts.get("validation"), contents.others())

    def _store(self, files: list[Path], keep: bool) -> Store:
        stream = Stream(files, self.size, self.workers)
        if not keep or not files:
            return stream
        samples = torch.empty(len(files), *stream.image, dtype=torch.uint8)
        for part, images in zip(samples.split(64), stream.take(torch.arange(len(files)), 64), strict=True):
            part.copy_(images)
        return Memory(samples, stream.identity)

    def _scan(self) -> Scan:
        """The whole set, with a part for the test in any case."""
        root = checked_root(self.name, self.folder())
        if not root.is_dir():
            raise UserError(f"data.root={root}: there is no such folder; it must hold train/CLASS/*.png or CLASS/*.png")
        with reading(self.name, root):
            whole = scan(root)
        if "test" in whole.parts:
            return whole
        files, labels = whole.parts["train"]
        drawn = stratified(labels, len(files) - len(files) // 5, generator(0, "folder", "test"))
        train, test = (Files([files[i] for i in places], labels[places]) for places in drawn)
        return whole._replace(parts={"train": train, "test": test})


def memory_bytes(device: torch.device) -> int:
    """Memory that this process may use at most: the machine's, its container's and the GPU's, whichever is least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        limits.append(int(text))
    if (own := accelerator.memory_bytes(device)) is not None:
        limits.append(own)
    return min(limits)
