"""The folder of one run: made exclusively, written atomically, locked while a process writes it.

It holds `config.yaml`, `status.json` (what became of the run), `metrics.jsonl` (the record that the sinks copy) and
what the other modules add. A file is either its old or its new content, never half of one: written beside, synced,
renamed. `metrics.jsonl` is the one file that grows; a line counts once its newline is there.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import math
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from locallearn import paths, stored
from locallearn.errors import RunError, UserError, did_you_mean
from locallearn.runs.console import warn

STATES = ("running", "done", "failed", "interrupted")
NAME_LIMIT = 100  # characters, with room below the 255 bytes of file systems for what others append
_SUFFIX_ROOM = 5
_TEMPORARY = re.compile(r"\..+\.tmp-(\d+)")
_NEEDED = ("config.yaml", "overrides.yaml", "manifest.json")  # to go on with the run


def safe_name(name: str) -> str:
    """`name` as a plain folder name: letters, digits, `.`, `_`, `-`, no leading dot, at most 100 characters."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")
    return clean[:NAME_LIMIT] or "run"


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: NaN and infinities become null, array scalars numbers, anything else text."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a NumPy or torch scalar; on a GPU this synchronises
        return _plain(value.item())
    return str(value)


def remove_orphans(folder: Path, pattern: re.Pattern[str]) -> None:
    """Remove our own temporary files and folders, whose names give their process, once it is gone."""
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not Path("/proc", match[1]).exists()):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


class Busy(UserError):
    """Another process writes the run folder."""


class RunFolder:
    """A run folder. `create` makes and locks one, `open` finds one to read; `lock` it before writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._remembered: dict[str, bytes] = {}

    @classmethod
    def create(cls, out: Path, name: str, only: bool = False) -> RunFolder:
        """A new, locked folder `out/name`, or `out/name-2`, ... if taken (unless it must be `only` that). Raises
        UserError if that cannot be."""
        out = paths.expanded(out)
        base = safe_name(name)
        try:
            out.mkdir(parents=True, exist_ok=True)
            for attempt in itertools.count(1):
                path = out / (base if attempt == 1 else f"{base[: NAME_LIMIT - _SUFFIX_ROOM]}-{attempt}")
                try:
                    path.mkdir()  # without exist_ok: of two starts in one second only one succeeds
                    break
                except FileExistsError:
                    if only:
                        raise Busy(f"{path} is being written by another process that has just begun it") from None
                    continue
        except OSError as error:
            reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(f"cannot make a run folder in {out}: {reason}; choose a folder you can write") from None
        folder = cls(path.resolve())
        folder.lock()
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """The run folder at `path`, not locked. Raises UserError if there is none."""
        path = paths.expanded(path)
        try:
            if not path.is_dir():
                siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
                hint = did_you_mean(path.name, siblings) or "give the folder that the run named in its last line"
                raise UserError(f"there is no run folder {path}: {hint.rstrip()}")
            for name in ("config.yaml", "status.json"):
                if not (path / name).is_file():
                    raise UserError(f"{path} is not a run folder: it has no {name}")
        except OSError as error:
            raise UserError(f"cannot look into {path}: {error.strerror}") from None
        return cls(path.resolve())

    def lock(self) -> None:
        """Refuse a second writer until this process ends or calls `release`. Raises UserError naming the first one."""
        if self._lock is not None:
            return
        try:
            stored.refuse_ways_out(self.path)
        except ValueError as error:
            raise UserError(str(error)) from None
        try:
            handle = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UserError(f"cannot write into the run folder {self.path}: {error.strerror}") from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                owner = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                os.close(handle)
                raise Busy(f"{self.path} is being written by {owner}; wait for it or stop it first") from None
            warn(f"this file system has no locks ({error.strerror}); do not start two runs in {self.path}")
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on host {socket.gethostname()}".encode(), 0)
        self._lock = handle

    def release(self) -> None:
        """Let another process write; the end of this process does the same."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def tidy(self) -> None:
        """Remove what killed processes have left half written."""
        for folder in (self.path, *self.path.glob("probes/*")):
            remove_orphans(folder, _TEMPORARY)

    @property
    def locks(self) -> list[int]:
        """The open file that is the lock, for processes that share it."""
        return [] if self._lock is None else [self._lock]

    def remember(self) -> None:
        """Keep what is needed to go on with the run, for `made_again`."""
        paths = [self.path / name for name in _NEEDED]
        self._remembered = {path.name: path.read_bytes() for path in paths if path.is_file()}

    def made_again(self) -> bool:
        """Make the folder again if somebody has deleted it, with what `remember` kept; whether it had to. Raises
        RunError."""
        if self.path.is_dir():
            return False
        try:
            self.path.mkdir(parents=True)
        except OSError as error:
            raise RunError(f"{self.path} was deleted, and cannot be made again: {error.strerror}") from None
        if self._lock is not None:
            self.release()
            self.lock()
        for name, content in self._remembered.items():
            self.write_bytes(name, content)
        self.status("running")
        return True

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def metrics_path(self) -> Path:
        return self.path / "metrics.jsonl"

    def write_text(self, name: str, text: str) -> None:
        """Replace the file `name` as a whole. Raises RunError if it cannot be written; then the old content stays."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, obj: Any) -> None:
        """Replace the file `name` by `obj` as strict JSON (see `strict_json`). Raises RunError as `write_text`."""
        self.write_text(name, strict_json(obj, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file. Raises UserError if it is missing or damaged."""
        try:
            return stored.mapping(self.path / name)
        except FileNotFoundError:
            raise UserError(f"the run folder {self.path} has no {name}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path / name}: {error}") from None

    def status(self, state: str, **facts: Any) -> None:
        """Say in `status.json` what became of the run; `facts` are such as epoch, step, reason."""
        assert state in STATES, state
        stamp = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "pid": os.getpid()}
        self.write_json("status.json", {"state": state, **stamp, "host": socket.gethostname(), **facts})

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records in the order written, without a torn last line. Raises UserError for damage elsewhere."""
        return list(self.records(self.metrics_path.name))

    def truncate_metrics(self, step: int) -> int:
        """Forget what was recorded after `step`, also by probes (a resumed run writes it again); returns the records of
        metrics.jsonl that were dropped."""
        dropped = dict.fromkeys((self.metrics_path, *self.path.glob("probes/*/rows.jsonl")), 0)

        def kept(path: Path) -> Iterator[bytes]:
            for line, record in self._lines(str(path.relative_to(self.path))):
                if record.get("step", 0) <= step:
                    yield line
                else:
                    dropped[path] += 1

        for path in dropped:
            if path.exists():
                self._replace(path, kept(path))
        return dropped[self.metrics_path]

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of a `.jsonl` file, without a torn last one. Raises UserError for damage elsewhere."""
        return (record for _, record in self._lines(name))

    def _lines(self, name: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        path = self.path / name
        try:
            for number, line in enumerate(stored.lines(path), start=1):
                if not line.endswith(b"\n"):
                    return
                record = stored.record(line)
                if record is None:
                    raise UserError(f"{path} is damaged in line {number}: not a JSON object of numbers and texts")
                yield line, record
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"cannot read {path}: {error}") from None

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replace the file `name` as a whole. Raises RunError as `write_text`."""
        self._replace(self.path / name, [content])

    def _replace(self, path: Path, chunks: Iterable[bytes]) -> None:
        temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        try:
            with open(temporary, "wb") as file:
                file.writelines(chunks)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            directory = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)  # else a power cut may undo the rename
            finally:
                os.close(directory)
        except OSError as error:
            raise RunError(f"cannot write {path}: {error.strerror}") from None
        finally:
            temporary.unlink(missing_ok=True)  # it is there only where something went wrong
