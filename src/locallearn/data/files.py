"""Files that the user brings: what is missing or not the right one is named before anything reads it."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from locallearn.errors import UserError


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
    raise UserError(
        f"data={name}: {root} cannot be read ({reason}): set data.root or the environment's LOCALLEARN_DATA to a folder"
    )


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


def check_files(name: str, root: Path, sums: Mapping[str, str], source: str) -> None:
    """Insist on every file of `sums` (its sha256 by path below `root`). `source` says where to get them.

    Raises UserError for files that are missing, and for the first one that is damaged or another.
    """
    checked_root(name, root)
    with reading(name, root):
        missing = [path for path in sums if not (root / path).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"data={name}: {root} has no {missing[0]}{more}: get {source}, and set data.root or the environment's "
            f"LOCALLEARN_DATA to the folder that has {Path(missing[0]).parts[0]}"
        )
    for path, expected in sums.items():
        with reading(name, root), (root / path).open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            size = stream.tell()
        if found != expected:
            raise UserError(
                f"{root / path} is damaged or another file ({size} bytes; expected sha256 {expected}, found {found}): "
                f"get {source}"
            )
