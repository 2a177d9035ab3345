"""The folder of a run for those who write it: made exclusively, written atomically, locked by one process at a time.

Whoever only reads one, in whatever state it is, takes `read`; what stands in it and how is in `files`.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from locallearn import paths, stored
from locallearn.errors import RunError, UserError, did_you_mean
from locallearn.runs import files
from locallearn.runs.console import warn
from locallearn.runs.files import strict_json

NAME_LIMIT = 100  # characters, with room below the 255 bytes of file systems for what others append
_SUFFIX_ROOM = 5


def safe_name(name: str) -> str:
    """`name` as a plain folder name: letters, digits, `.`, `_`, `-`, no leading dot, at most 100 characters."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")
    return clean[:NAME_LIMIT] or "run"


def similar(folder: Path) -> str:
    """`did you mean 'NAME'? ` for a folder beside one that is not there, else an empty string."""
    try:
        return did_you_mean(folder.name, [path.name for path in folder.parent.iterdir() if path.is_dir()])
    except OSError:
        return ""


def is_locked(path: Path) -> bool:
    """Whether a process of this machine, or of another on the same file system, writes the run folder `path`."""
    try:
        handle = os.open(path / files.LOCK, os.O_RDONLY)
    except OSError:
        return False  # copied without it, so copied while it ran
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False


def _refuse_ways_out(folder: Path) -> None:
    """A run folder may come from a stranger: what is written into it must not end up elsewhere. W&B's own folder has
    links into its cache, and nothing of ours is written there."""
    inside = folder.resolve()
    for here, below, names in os.walk(folder):
        for path in (Path(here, name) for name in (*below, *names)):
            true = Path(os.path.realpath(path))
            if path.is_symlink() and not true.is_relative_to(inside):
                raise UserError(f"{path} is a link out of the run folder, to {true}: replace it with what it leads to")
            if not path.is_symlink() and not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder: take it out of the run folder")
        below[:] = [name for name in below if name != "wandb"]


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
                hint = similar(path) or "give the folder that the run named in its last line"
                raise UserError(f"there is no run folder {path}: {hint.rstrip()}")
            for name in (files.CONFIG, files.STATUS):
                if not (path / name).is_file():
                    raise UserError(f"{path} is not a run folder: it has no {name}")
        except OSError as error:
            raise UserError(f"cannot look into {path}: {error.strerror}") from None
        return cls(path.resolve())

    def lock(self) -> None:
        """Refuse a second writer until this process ends or calls `release`. Raises UserError naming the first one."""
        if self._lock is not None:
            return
        _refuse_ways_out(self.path)
        try:
            handle = os.open(self.path / files.LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
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
        for folder in (self.path, *self.path.glob(f"{files.PROBES}/*")):
            files.remove_orphans(folder)

    @property
    def locks(self) -> list[int]:
        """The open file that is the lock, for processes that share it."""
        return [] if self._lock is None else [self._lock]

    def remember(self) -> None:
        """Keep what is needed to go on with the run, for `made_again`."""
        needed = [self.path / name for name in files.NEEDED]
        self._remembered = {path.name: path.read_bytes() for path in needed if path.is_file()}

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
        return self.path / files.METRICS

    @property
    def checkpoints(self) -> Path:
        return self.path / files.CHECKPOINTS

    @property
    def state(self) -> str | None:
        """What `status.json` says, one of STATES. Raises UserError if it cannot be read."""
        return self.read_json(files.STATUS).get("state")

    def write_bytes(self, name: str, content: bytes) -> None:
        """Replace the file `name` as a whole. Raises RunError if it cannot be written; then the old content stays."""
        files.replace(self.path / name, [content])

    def write_text(self, name: str, text: str) -> None:
        """`write_bytes` of a text."""
        self.write_bytes(name, text.encode())

    def write_json(self, name: str, obj: Any) -> None:
        """`write_bytes` of `obj` as strict JSON."""
        self.write_text(name, strict_json(obj, indent=2) + "\n")

    def read_json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file. Raises UserError if it is missing or damaged."""
        try:
            return stored.mapping(self.path / name)
        except FileNotFoundError:
            raise UserError(f"the run folder {self.path} has no {name}") from None
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {self.path / name}: {files.reason(error)}") from None

    def status(self, state: str, **facts: Any) -> None:
        """Say in `status.json` what became of the run; `facts` are such as epoch, step, reason."""
        assert state in files.STATES, state
        stamp = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "pid": os.getpid()}
        self.write_json(files.STATUS, {"state": state, **stamp, "host": socket.gethostname(), **facts})

    def read_metrics(self) -> list[dict[str, Any]]:
        """All records in the order written, without a torn last line. Raises UserError for damage elsewhere."""
        return list(self.records(files.METRICS))

    def history(self) -> list[dict[str, Any]]:
        """The records of whole epochs. Raises UserError for damage."""
        return list(filter(files.of_epoch, self.records(files.METRICS)))

    def records(self, name: str) -> Iterator[dict[str, Any]]:
        """The lines of a `.jsonl` file, without a torn last one. Raises UserError for damage elsewhere."""
        return (record for _, record in self._lines(name))

    def truncate_metrics(self, step: int) -> int:
        """Forget what was recorded after `step`, also by probes (a resumed run writes it again); returns the records of
        metrics.jsonl that were dropped."""
        rows = self.path.glob(f"{files.PROBES}/*/{files.ROWS}")
        dropped = dict.fromkeys((path for path in (self.metrics_path, *rows) if path.exists()), 0)

        def kept(path: Path) -> Iterator[bytes]:
            for line, record in self._lines(str(path.relative_to(self.path))):
                if record.get("step", 0) <= step:
                    yield line
                else:
                    dropped[path] += 1

        for path in dropped:
            files.replace(path, kept(path))
        return dropped.get(self.metrics_path, 0)

    def _lines(self, name: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
        path = self.path / name
        try:
            for line in files.lines(path):
                if line.torn:
                    return
                if line.record is None:
                    raise ValueError(f"it is damaged in line {line.number}: not a JSON object of numbers and texts")
                yield line.content, line.record
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {files.reason(error)}") from None
