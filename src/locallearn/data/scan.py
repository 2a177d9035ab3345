"""What a folder of images holds: which folders are its splits and its classes, which files are pictures, and what is
neither and left out."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from locallearn.errors import UserError, did_you_mean

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Of the files that are read; the same as torchvision's ImageFolder reads. `stream.FORMATS` has their decoders."""
MADE_BY_SYSTEMS = {"__macosx", "@eadir", "@__thumb", "#recycle", "$recycle.bin", "lost+found", "thumbs.db"}
"""Archives, file servers and viewers leave these behind, in lower case; their pictures are copies or thumbnails."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Which part of the set a folder of this name is, in lower case."""
KINDS_NAMED = 8


class Files(NamedTuple):
    """Pictures in a fixed order, and the label of each, int64 [N]."""

    paths: list[Path]
    labels: Tensor


class Scan(NamedTuple):
    """A whole set. `parts`: train, and test and validation where there is a folder for them; `folders`: the folder of
    each part; `left_out`: how many files and folders of each kind are not part of the set."""

    classes: tuple[str, ...]
    parts: dict[str, Files]
    folders: dict[str, str]
    left_out: Counter[str]

    def others(self) -> str:
        """Such as `18 others left out (.gif 13, no suffix 5)`; an empty text if nothing is."""
        if not self.left_out:
            return ""
        ordered = sorted(self.left_out.items(), key=lambda item: (-item[1], item[0]))
        kinds = [f"{kind} {count}" for kind, count in ordered[:KINDS_NAMED]]
        more = ["..."] if len(self.left_out) > KINDS_NAMED else []
        total = self.left_out.total()
        return f"{total} other{'s' * (total > 1)} left out ({', '.join(kinds + more)})"


def scan(root: Path) -> Scan:
    """Look through ROOT/CLASS or ROOT/SPLIT/CLASS. Raises OSError, and UserError for any other layout."""
    left_out: Counter[str] = Counter()
    folders = subfolders(root, left_out)
    splits = _splits(root, folders)
    if not splits:
        classes, files = _training(root, folders, left_out)
        return Scan(classes, {"train": files}, {}, left_out)
    left_out.update(f"{name}/" for name in folders if name not in splits.values())
    train = root / splits["train"]
    classes, files = _training(train, subfolders(train, left_out), left_out)
    parts = {"train": files}
    for part, name in splits.items():
        if part != "train":
            named = subfolders(root / name, left_out)
            if not named:
                raise UserError(f"{root / name} has no class folders: sort its images into such folders, or remove it")
            parts[part] = _of_classes(root / name, named, classes, left_out)
    return Scan(classes, parts, splits, left_out)


def subfolders(folder: Path, left_out: Counter[str]) -> list[str]:
    """The folders in `folder` that count, sorted; what else lies there is left out."""
    entries = _entries(folder, left_out)
    left_out.update(_suffix(entry.name) for entry in entries if not entry.is_dir())
    return [entry.name for entry in entries if entry.is_dir()]


def _entries(folder: str | Path, left_out: Counter[str]) -> list[os.DirEntry[str]]:
    """What lies in a folder, sorted, without what is hidden or was made by a system for itself, which is counted."""
    with os.scandir(folder) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    ours = []
    for entry in ordered:
        if not entry.name.startswith(".") and entry.name.lower() not in MADE_BY_SYSTEMS:
            ours.append(entry)
        else:
            left_out[f"{entry.name}/" if entry.is_dir() else "hidden" if entry.name[0] == "." else entry.name] += 1
    return ours


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower() or "no suffix"


def _splits(root: Path, folders: Sequence[str]) -> dict[str, str]:
    """The folder of each part, where `root` holds splits; nothing where it holds classes. A class may have the name of
    a split (a train, say), so a folder of that name must hold folders itself to be one."""
    named: dict[str, list[str]] = {}
    for name in folders:
        if part := SPLITS.get(name.lower()):
            named.setdefault(part, []).append(name)
    holding = [part for part, names in named.items() if any(subfolders(root / name, Counter()) for name in names)]
    only_splits = bool(named) and len(folders) == sum(map(len, named.values()))
    if not holding and not only_splits:
        return {}
    for part, names in named.items():
        if len(names) > 1:
            raise UserError(f"{root / names[0]} and {names[1]} are both the {part} part; keep one of them")
    if "train" not in holding:
        there = ", ".join(names[0] for names in named.values())
        raise UserError(
            f"{root} holds splits ({there}), but no training folder with a folder for each class; it must hold "
            "train/CLASS/*.png, or CLASS/*.png alone"
        )
    splits: dict[str, str] = {part: named[part][0] for part in ("train", "validation", "test") if part in named}
    if "validation" in splits and "test" not in splits:
        splits["test"] = splits.pop("validation")
    return splits


def _training(folder: Path, folders: list[str], left_out: Counter[str]) -> tuple[tuple[str, ...], Files]:
    """The classes of the training part, and its files."""
    if len(folders) < 2:
        raise UserError(f"{folder} has {len(folders)} class folders; training needs at least 2, one for each class")
    classes = tuple(folders)
    files = _of_classes(folder, folders, classes, left_out)
    _refuse_splits(folder, classes, files)
    return classes, files


def _of_classes(folder: Path, folders: Sequence[str], classes: Sequence[str], left_out: Counter[str]) -> Files:
    """Every picture below FOLDER/CLASS. Raises UserError for an unknown or empty class."""
    label = {name: i for i, name in enumerate(classes)}
    paths: list[Path] = []
    labels: list[int] = []
    for name in folders:
        if name not in label:
            hint = did_you_mean(name, classes)
            raise UserError(f"{folder / name} is not a class of the training folder: {hint}rename it or remove it")
        mine: list[str] = []
        _walk(str(folder / name), frozenset(), mine, left_out)
        if not mine:
            raise UserError(f"{folder / name} holds no image ({', '.join(sorted(SUFFIXES))}); add some or remove it")
        paths += map(Path, mine)
        labels += [label[name]] * len(mine)
    return Files(paths, torch.tensor(labels, dtype=torch.int64))


def _walk(folder: str, above: frozenset[tuple[int, int]], files: list[str], left_out: Counter[str]) -> None:
    """Add the pictures below `folder`, sorted as paths are. Linked folders are walked through, too; one that leads back
    to a folder `above` it would never end, and is left out."""
    about = os.stat(folder)
    here = (about.st_dev, about.st_ino)
    if here in above:
        left_out["links back to a folder above"] += 1
        return
    for entry in _entries(folder, left_out):
        if entry.is_dir():
            _walk(entry.path, above | {here}, files, left_out)
        elif (suffix := _suffix(entry.name)) in SUFFIXES:
            files.append(entry.path)
        else:
            left_out[suffix] += 1


def _refuse_splits(folder: Path, classes: Sequence[str], files: Files) -> None:
    """Refuse "classes" that hold no images of their own, but folders of the same names: a net would learn to tell one
    split from another. One common name, such as CLASS/images/*.png, is no split."""
    depth = len(folder.parts) + 1
    held: list[set[str]] = [set() for _ in classes]
    for path, label in zip(files.paths, files.labels.tolist(), strict=True):
        if len(path.parts) == depth + 1:
            return
        held[label].add(path.parts[depth])
    common = reduce(set.intersection, held)
    if common and len(reduce(set.union, held)) > 1:
        names = ", ".join(sorted(common)[:3])
        raise UserError(
            f"{', '.join(classes[:3])} in {folder} hold folders of the same names ({names}): these are splits, not "
            "classes, or each class is split; name the splits train, val and test, with a folder for each class in "
            "them, or put the images of a class into its folder itself"
        )
