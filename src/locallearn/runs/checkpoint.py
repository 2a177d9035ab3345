"""Checkpoints: tensors as safetensors, the rest as JSON, no pickle anywhere.

One checkpoint is one folder `checkpoints/step-00000120/` with a `stage-00-of-02.safetensors` for each stage (tensors by
names that no cut changes), `state.json`, and `manifest.json` with the size and the sum of each file. It is written in a
temporary folder beside its place, synced, and committed by one rename; older ones go only after that. On loading every
file is checked against its sum; a damaged checkpoint is named and the next older one is used. Those of format 1 have
`tensors.safetensors`, `state.json` and `SHA256SUMS`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import xxhash
from torch import Tensor

from locallearn import stored
from locallearn.errors import RunError, UserError
from locallearn.options import checked
from locallearn.runs.files import remove_orphans, sync
from locallearn.runs.snapshot import ALGORITHM, Snapshot, Written, write

FORMAT = 2
STATE, MANIFEST, SUMS = "state.json", "manifest.json", "SHA256SUMS"
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = re.compile(r"\.tmp-(\d+)-step-\d{8,}")
_STAGE = re.compile(r"stage-\d{2,}-of-\d{2,}\.safetensors")
_OLD = ("tensors.safetensors", STATE)
_SUMS: dict[str, Any] = {"xxh3_128": xxhash.xxh3_128, "sha256": hashlib.sha256}


class NotSaved(RunError):
    """A checkpoint that could not be written; the earlier ones are intact."""


class Newer(UserError):
    """A checkpoint of a format that is not known here."""


@dataclass(frozen=True)
class SavedState:
    """What `state.json` must hold: after how many steps it was saved, where the next epoch goes on, how long training
    took until then, and the running sums of every block. Where there are any: these sums at the last record inside the
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


@dataclass(frozen=True)
class CheckpointManifest:
    """What `manifest.json` must hold: the files of the checkpoint, and the sum of this manifest without it."""

    format: int
    step: int
    files: dict[str, Written]
    sum: str


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
    """Commit a checkpoint of `step` under `folder`, of one process, and remove all but the newest `keep`. Raises as
    `commit`."""
    snapshot = Snapshot()
    snapshot.take(tensors)

    def fill(place: Path) -> tuple[dict[str, Written], Mapping[str, Any]]:
        name = of_stage(0, 1)
        return {name: write(place / name, snapshot.head, snapshot.tensors)}, state

    return commit(folder, step, fill, keep)


def commit(
    folder: Path, step: int, fill: Callable[[Path], tuple[dict[str, Written], Mapping[str, Any]]], keep: int
) -> Path:
    """Commit a checkpoint of `step` under `folder` and remove all but the newest `keep`. `fill` writes the tensors into
    the place that it is given, and returns what it has written there, and the state of the run.

    A sound one of that step stays: it says the same. Raises NotSaved (with the path and the cause) when it cannot be
    written, or what `fill` raises; what was there before stays intact.
    """
    target = folder / f"step-{step:08d}"
    if target.exists() and next(_read_all([target], lambda _: None), None):
        return target
    temporary = folder / f".tmp-{os.getpid()}-{target.name}"
    try:
        folder.mkdir(exist_ok=True)
        remove_orphans(folder, _TEMPORARY)
        temporary.mkdir()
        written, state = fill(temporary)
        (temporary / STATE).write_text(json.dumps({"format": FORMAT, "step": step, **state}, indent=1))
        files = {name: asdict(entry) for name, entry in (*written.items(), (STATE, _entry(temporary / STATE)))}
        content = {"format": FORMAT, "step": step, "files": files}
        (temporary / MANIFEST).write_text(json.dumps({**content, "sum": _sum_of(content)}, indent=1))
        for name in (STATE, MANIFEST):
            sync(temporary / name)
        sync(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        sync(folder)
    except OSError as error:
        raise NotSaved(f"checkpoint {target} could not be written: {error}; earlier checkpoints are intact") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # it is there only where something went wrong
    with suppress(OSError):  # somebody deletes the run meanwhile
        for old in _committed(folder)[keep:]:
            shutil.rmtree(old, ignore_errors=True)
    return target


def of_stage(stage: int, stages: int) -> str:
    """The name of a stage's file in a checkpoint."""
    return f"stage-{stage:02d}-of-{stages:02d}.safetensors"


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
            warn(f"checkpoint {path} is damaged ({error}); it is skipped")


def _read(path: Path) -> SavedCheckpoint:
    """Check the sums, then parse. Raises ValueError or OSError for a damaged file, and Newer."""
    names = _whole_files(path)
    state = stored.mapping(path / STATE)
    _refuse_newer(path, state)
    checked(SavedState, state, STATE)
    if path.name != f"step-{state['step']:08d}":
        raise ValueError(f"{STATE} is of step {state['step']}")
    tensors: dict[str, Tensor] = {}
    for name in names:
        tensors |= stored.tensors(path / name)
    callbacks = {}
    known = state.get("callbacks", {})
    for callback, values in sorted(known.items(), key=lambda item: -len(item[0])):  # "a.b" before "a"
        prefix = of_callback(callback, "")
        own = {name: tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        callbacks[callback] = values | {name.removeprefix(prefix): tensor for name, tensor in own.items()}
    return SavedCheckpoint(path, tensors, state, callbacks)


def _whole_files(path: Path) -> list[str]:
    """The files with tensors, of a checkpoint whose every file has its sum. Raises as `_read`."""
    if (path / SUMS).exists():  # format 1
        lines = stored.read_bytes(path / SUMS).decode().splitlines()
        sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
        entries = {name: Written((path / name).stat().st_size, "sha256", sums.get(name, "")) for name in _OLD}
    else:
        manifest = stored.mapping(path / MANIFEST)
        if _sum_of({key: value for key, value in manifest.items() if key != "sum"}) != manifest.get("sum"):
            raise ValueError(f"{MANIFEST} does not match its sum")
        _refuse_newer(path, manifest)
        entries = checked(CheckpointManifest, manifest, MANIFEST)["files"]
    tensors = [name for name in entries if name != STATE]
    if STATE not in entries or not tensors or not all(name in _OLD or _STAGE.fullmatch(name) for name in tensors):
        raise ValueError(f"{MANIFEST} names other files than those of a checkpoint")
    for name, entry in entries.items():
        if entry.algorithm not in _SUMS or _entry(path / name, entry.algorithm) != entry:
            raise ValueError(f"{name} does not match its {entry.algorithm} sum")
    return tensors


def _refuse_newer(path: Path, content: Mapping[str, Any]) -> None:
    version = content.get("format")
    if isinstance(version, int) and version > FORMAT:
        raise Newer(
            f"checkpoint {path} has format {version}; this locallearn reads up to {FORMAT}: install a newer one"
        )


def _committed(folder: Path) -> list[Path]:
    """Committed checkpoints, newest first; everything else in the folder is left alone."""
    if not folder.is_dir():
        return []
    committed = [p for p in folder.iterdir() if _NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(committed, key=lambda p: int(p.name.removeprefix("step-")), reverse=True)


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


def _entry(path: Path, algorithm: str = ALGORITHM) -> Written:
    """What `write` would say of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, _SUMS[algorithm]).hexdigest()
        return Written(file.tell(), algorithm, digest)


def _sum_of(content: Mapping[str, Any]) -> str:
    """The sum of a manifest: of its JSON without spaces, in the order of its keys."""
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
