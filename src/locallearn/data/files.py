"""Files that the user brings: what is missing or not the right one is named before anything reads it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from locallearn.errors import UserError

ALL_CHECKED = "every file has the right checksum"
WHERE = "set data.root or the environment variable LOCALLEARN_DATA to"


def checked_root(name: str, root: Path) -> Path:
    """The folder of the data, which need not be there yet. Raises UserError where none can be."""
    try:
        if stat.S_ISDIR(root.stat().st_mode):
            return root
        reason = "it is a file, not a folder"
    except FileNotFoundError:
        return root
    except (OSError, ValueError) as error:  # below a file, a loop, not allowed, too long, a zero byte
        reason = getattr(error, "strerror", None) or str(error)
    raise UserError(f"data={name}: {root} cannot be read ({reason}): {WHERE} a folder")


@contextmanager
def reading(name: str, root: Path) -> Iterator[None]:
    """Say in one sentence which file below `root` cannot be read."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data={name}: {error.filename or root} cannot be read ({error.strerror}): make it readable, or set "
            "data.root to another folder"
        ) from error


def check_sum(file: Path, kind: str, expected: str, advice: str) -> None:
    """Raise UserError, with what to do about it, unless the checksum (md5 or sha256) is the expected one."""
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
        size = stream.tell()
    if actual != expected:
        raise UserError(
            f"{file} is damaged or another file ({size} bytes; expected {kind} {expected}, found {actual}): {advice}"
        )


def has_no(name: str, root: Path, missing: list[str]) -> str:
    """The beginning of the sentence about missing files."""
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return f"data={name}: {root} has no {missing[0]}{more}"


def check_files(name: str, root: Path, sums: Mapping[str, str], source: str) -> None:
    """Insist on every file of `sums` (its sha256 by path below `root`). `source` says where to get them.

    Raises UserError for files that are missing, and for the first one that is damaged or another.
    """
    checked_root(name, root)
    with reading(name, root):
        missing = [path for path in sums if not (root / path).is_file()]
        if missing:
            folder = f"the folder that has {Path(missing[0]).parts[0]}"
            raise UserError(f"{has_no(name, root, missing)}: get {source}, and {WHERE} {folder}")
        for path, expected in sums.items():
            check_sum(root / path, "sha256", expected, f"get {source}")
