"""Checkpoints: tensors as safetensors, the rest as JSON, no pickle anywhere.

One checkpoint is one folder `checkpoints/step-00000120/` with `tensors.safetensors`, `state.json`, `SHA256SUMS`. It is
written under a temporary name beside its place, synced, and committed by one rename; older ones go only after that. On
loading every file is checked against its sum; a damaged checkpoint is named and the next older one is used.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from locallearn import stored
from locallearn.errors import RunError, UserError
from locallearn.options import checked
from locallearn.runs.files import remove_orphans, sync

FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp-(\d+)-step-\d{8,}")
_FILES = ("tensors.safetensors", "state.json")


class NotSaved(RunError):
    """A checkpoint that could not be written; the earlier ones are intact."""


class Newer(UserError):
    """A checkpoint of a format that is not known here."""


@dataclass(frozen=True)
class SavedState:
    """What `state.json` must hold: after how many steps it was saved, where the next epoch goes on, how long training
    took until then, and the running sums of every block. Where there are such: these sums at the last record inside the
    epoch, why a callback has stopped the run before its last step `ends`, and the plain values of each callback."""

    format: int
    step: int
    epoch: int
    offset: int
    seconds: float
    blocks: list[BlockSums]
    logged: list[BlockSums] = field(default_factory=list)
    stopped: str = ""
    ends: int = 0
    callbacks: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.logged) not in (0, len(self.blocks)):
            raise UserError("state.json: logged must have the sums of as many blocks as there are")


@dataclass(frozen=True)
class BlockSums:
    """What `TrainedBlock.running` gives."""

    totals: list[float]
    predicts: bool
    notes: dict[str, list[float]]

    def __post_init__(self) -> None:
        if len(self.totals) < 2 or any(len(sums) != 3 for sums in self.notes.values()):
            raise UserError("state.json: the sums of a block are two numbers or more, those of a note are three")


class SavedCheckpoint(NamedTuple):
    """A sound checkpoint, read: the learner's tensors by name, what else was saved, and the state of each callback."""

    path: Path
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]


def of_callback(callback: str, name: str) -> str:
    """The name of a callback's tensor in a checkpoint."""
    return f"callback.{callback}.{name}"


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> Path:
    """Commit a checkpoint of `step` under `folder` and remove all but the newest `keep`.

    A sound one of that step stays: it says the same. Raises NotSaved (with the path and the cause) when it cannot be
    written; what was there before stays intact.
    """
    target = folder / f"step-{step:08d}"
    if target.exists() and next(_read_all([target], lambda _: None), None):
        return target
    temporary = folder / f".tmp-{os.getpid()}-{target.name}"
    try:
        folder.mkdir(exist_ok=True)
        remove_orphans(folder, _TEMPORARY)
        _check_space(folder, tensors)
        temporary.mkdir()
        save_file(distinct(tensors), temporary / _FILES[0])
        (temporary / _FILES[1]).write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
        sums = "".join(f"{_sha256(temporary / name)}  {name}\n" for name in _FILES)
        (temporary / "SHA256SUMS").write_text(sums)
        for name in (*_FILES, "SHA256SUMS"):
            sync(temporary / name)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise NotSaved(f"checkpoint {target} could not be written: {error}; earlier checkpoints are intact") from error
    for old in _committed(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def newest(folder: Path, warn: Callable[[str], None]) -> SavedCheckpoint | None:
    """The newest sound checkpoint under `folder`; None if none was ever committed.

    A damaged one is reported through `warn` and skipped. Raises UserError when there are some and all are damaged.
    """
    paths = _committed(folder)
    checkpoint = next(_read_all(paths, warn), None)
    if paths and checkpoint is None:
        raise UserError(f"all {len(paths)} checkpoints under {folder} are damaged; start the run anew")
    return checkpoint


def sound(folder: Path, warn: Callable[[str], None]) -> Iterator[SavedCheckpoint]:
    """Every sound checkpoint under `folder`, oldest first; a damaged one is reported through `warn` and skipped."""
    yield from _read_all(reversed(_committed(folder)), warn)


def _read_all(paths: Iterable[Path], warn: Callable[[str], None]) -> Iterator[SavedCheckpoint]:
    for path in paths:
        try:
            yield _read(path)
        except Newer:
            raise
        except (OSError, ValueError) as error:
            warn(f"checkpoint {path} is damaged ({error}); it is left out")


def _read(path: Path) -> SavedCheckpoint:
    """Check the sums, then parse. Raises ValueError or OSError for a damaged file, and Newer."""
    lines = stored.read_bytes(path / "SHA256SUMS").decode().splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in _FILES:
        if _sha256(path / name) != sums.get(name):
            raise ValueError(f"{name} does not match its SHA-256 sum")
    state = stored.mapping(path / "state.json")
    version = state.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise Newer(
            f"checkpoint {path} has format {version}; this locallearn reads up to {FORMAT}: install a newer one"
        )
    checked(SavedState, state, "state.json")
    if path.name != f"step-{state['step']:08d}":
        raise ValueError(f"state.json is of step {state['step']}")
    tensors = stored.tensors(path / "tensors.safetensors")
    callbacks = {}
    known = state.get("callbacks", {})
    for callback, values in sorted(known.items(), key=lambda item: -len(item[0])):  # "a.b" before "a"
        prefix = of_callback(callback, "")
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        callbacks[callback] = values | {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return SavedCheckpoint(path, tensors, state, callbacks)


def _committed(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first; everything else in the folder is left alone."""
    if not folder.is_dir():
        return []
    committed = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(committed, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


def _check_space(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    needed = sum(t.numel() * t.element_size() for t in tensors.values())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"no space: {needed:,} bytes needed, {free:,} free")


def distinct(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none sharing memory with another (safetensors refuses shared memory)."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.data_ptr() in seen and tensor.numel():
            tensor = tensor.clone()
        seen.add(tensor.data_ptr())
        result[name] = tensor
    return result


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
