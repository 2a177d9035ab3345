"""The files of a run folder: what they are called, and how each is read and written.

A file is either its old or its new content, never half of one: written beside its place, synced, renamed. Records
(`.jsonl`) only grow, and a line counts once its newline is there. What is read may be damaged, or come from a stranger.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from locallearn import stored
from locallearn.errors import RunError

CONFIG, OVERRIDES, MANIFEST = "config.yaml", "overrides.yaml", "manifest.json"
STATUS, METRICS, SUMMARY = "status.json", "metrics.jsonl", "summary.json"
MODEL, CHECKPOINTS, PROBES, ROWS, LOCK = "model.safetensors", "checkpoints", "probes", "rows.jsonl", ".lock"
NEEDED = (CONFIG, OVERRIDES, MANIFEST)
"""Without these a run cannot go on."""
STATES = ("done", "running", "failed", "interrupted")
"""What `status.json` says of a run."""
_TEMPORARY = re.compile(r"\..+\.tmp-(\d+)")


_FRACTION = re.compile(rb'"epoch": \d+[.e]')


def of_epoch(record: Mapping[str, Any]) -> bool:
    """Whether a record is that of an epoch: its `epoch` is a whole number. A record inside one has a fraction."""
    return not isinstance(record.get("epoch"), float)


class Line(NamedTuple):
    """One line of a file of records. The last one of a killed process may lack its end, and is `torn`."""

    number: int
    content: bytes
    record: dict[str, Any] | None  # None for a damaged line

    @property
    def torn(self) -> bool:
        return not self.content.endswith(b"\n")


def lines(file: Path, every: int = 1, last: int = 0, inside: bool | None = None) -> Iterator[Line]:
    """The lines of a file of records, or those of records that are, or are not, `inside` an epoch; of these one in
    `every`, and the one that is number `last` among them. Raises OSError or ValueError for a file that cannot be
    read."""
    count = 0
    for number, content in enumerate(stored.lines(file), start=1):
        if inside is None or inside is bool(_FRACTION.search(content)):  # only what is wanted is parsed
            count += 1
            if count % every == 0 or count == last:
                yield Line(number, content, stored.record(content))


def count_lines(file: Path, inside: bool | None = None) -> int:
    """How many lines `lines` has with `every=1`."""
    return sum(inside is None or inside is bool(_FRACTION.search(content)) for content in stored.lines(file))


def reason(error: Exception) -> str:
    """Why a file could not be read or written, without its name."""
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def strict_json(value: Any, indent: int | None = None) -> str:
    """JSON that every parser reads: NaN and infinities become null, array scalars numbers, anything else text."""
    return json.dumps(_plain(value), allow_nan=False, ensure_ascii=False, indent=indent)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = scalar(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int | str) else str(value)


def scalar(value: Any) -> Any:
    """A NumPy or torch scalar as a number (on a GPU this synchronises), anything else as it is."""
    return value.item() if hasattr(value, "item") else value


def replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace a file as a whole. Raises RunError if it cannot be written; then the old content stays."""
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)  # else a power cut may undo the rename
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    finally:
        temporary.unlink(missing_ok=True)  # it is there only where something went wrong


def append(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Add records to a file, and wait until they are on the disk. Raises RunError if they cannot be written."""
    content = "".join(strict_json(record) + "\n" for record in records)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "ab") as file:
            file.write(content.encode())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_orphans(folder: Path, pattern: re.Pattern[str] = _TEMPORARY) -> None:
    """Remove our own temporary files and folders, whose names give their process, once it is gone."""
    for path in folder.iterdir():
        match = pattern.fullmatch(path.name)
        if match and (int(match[1]) == os.getpid() or not Path("/proc", match[1]).exists()):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
