"""A folder of image files, one folder per class."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from locallearn.data.files import checked_root, reading
from locallearn.data.source import DataSource, Part, Raw, require
from locallearn.data.split import stratified
from locallearn.data.store import Memory, Store
from locallearn.data.stream import Stream
from locallearn.errors import UserError, did_you_mean
from locallearn.seeds import generator

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Folder(DataSource):
    """Images in ROOT/train/CLASS/* and ROOT/test/CLASS/* (or ROOT/val/CLASS/*), of any sizes, grey or in colour.

    With both ROOT/val and ROOT/test the former is the validation split, and `validation` is not used. Without either,
    or with ROOT/CLASS/* alone, a fixed fifth of each class is the test set; it does not depend on the seed of a run.

    size          side in pixels to which every image is scaled and cut
    memory_share  the set is kept in memory if it takes no more than this share of it (of the machine's and of the
                  GPU's), else its files are read again each epoch; the batches are the same
    workers       processes that read files
    """

    name: ClassVar[str] = "folder"
    measured: ClassVar[int | None] = 10_000

    size: int = 64
    memory_share: float = 0.25
    workers: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 1, "size", self.size, "at least 1")
        require(0 <= self.memory_share <= 1, "memory_share", self.memory_share, "at least 0 and at most 1")
        require(self.workers >= 0, "workers", self.workers, "at least 0")

    def folder(self) -> Path:
        if self.root is None:  # LOCALLEARN_DATA holds many sets: their folders would pass for classes
            raise UserError("data=folder needs data.root=PATH, a folder with train/CLASS/*.png or CLASS/*.png")
        return super().folder()

    def verify(self) -> str:
        files = [path for part in self._scan()[1].values() for path in part[0]]
        faults = Stream(files, self.size, self.workers).faults()
        if faults:
            raise UserError(f"{len(faults)} of {len(files)} images cannot be read; the first: {faults[0]}")
        return f"every one of {len(files)} files can be read"

    def read(self, device: torch.device) -> Raw:
        classes, parts = self._scan()
        needed_bytes = sum(len(files) for files, _ in parts.values()) * 3 * self.size**2
        keep = needed_bytes <= self.memory_share * memory_bytes(device)
        stores = {name: Part(self._store(files, keep), labels) for name, (files, labels) in parts.items()}
        return Raw(classes, stores["train"], stores["test"], stores.get("validation"))

    def _store(self, files: list[Path], keep: bool) -> Store:
        stream = Stream(files, self.size, self.workers)
        if not keep or not files:
            return stream
        samples = torch.empty(len(files), *stream.image, dtype=torch.uint8)
        for part, images in zip(samples.split(64), stream.take(torch.arange(len(files)), 64), strict=True):
            part.copy_(images)
        return Memory(samples)

    def _scan(self) -> tuple[tuple[str, ...], dict[str, tuple[list[Path], Tensor]]]:
        """Class names, and the files and labels [N] of each part: train, test, perhaps validation."""
        root = checked_root(self.name, self.folder())
        with reading(self.name, root):
            return self._found(root)

    def _found(self, root: Path) -> tuple[tuple[str, ...], dict[str, tuple[list[Path], Tensor]]]:
        if not root.is_dir():
            raise UserError(f"data.root={root}: there is no such folder; it must hold train/CLASS/*.png or CLASS/*.png")
        train = root / "train" if _subfolders(root / "train") else root
        classes = tuple(_subfolders(train))
        if len(classes) < 2:
            raise UserError(f"{train} has {len(classes)} class folders; training needs at least 2, one for each class")
        files, labels = _files(train, classes)
        others = [name for name in ("val", "test") if train != root and (root / name).is_dir()]
        if not others:
            kept, test = stratified(labels, len(files) - len(files) // 5, generator(0, "folder", "test"))
            return classes, {
                "train": ([files[i] for i in kept], labels[kept]),
                "test": ([files[i] for i in test], labels[test]),
            }
        parts = {"train": (files, labels), "test": _files(root / others[-1], classes)}
        if len(others) == 2:
            parts["validation"] = _files(root / others[0], classes)
        return classes, parts


def _subfolders(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[Path], Tensor]:
    """Every image below FOLDER/CLASS, sorted, and its label [N]. Raises UserError for an unknown or empty class."""
    found = _subfolders(folder)
    for name in found:
        if name not in classes:
            hint = did_you_mean(name, classes)
            raise UserError(f"{folder / name} is no class of the training folder: {hint}rename it or take it away")
    files: list[Path] = []
    labels: list[int] = []
    for name in found:
        mine = sorted(path for path in (folder / name).rglob("*") if path.suffix.lower() in SUFFIXES)
        mine = [path for path in mine if not path.name.startswith(".")]
        if not mine:
            raise UserError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}); add some or remove it")
        files += mine
        labels += [classes.index(name)] * len(mine)
    return files, torch.tensor(labels, dtype=torch.int64)


def memory_bytes(device: torch.device) -> int:
    """Memory that this process may use at most: the machine's, its container's and the GPU's, whichever is least."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    container = Path("/sys/fs/cgroup/memory.max")
    if container.is_file() and (text := container.read_text().strip()).isdigit():
        limits.append(int(text))
    if device.type == "cuda":
        limits.append(torch.cuda.get_device_properties(device).total_memory)
    return min(limits)
