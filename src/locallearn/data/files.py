"""Files that the user brings: what is missing or not the right one is named before anything reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from locallearn.errors import UserError


def check_files(name: str, root: Path, sums: Mapping[str, str], source: str) -> None:
    """Insist on every file of `sums` (its sha256 by path below `root`). `source` says where to get them.

    Raises UserError for files that are missing, and for the first one that is damaged or another.
    """
    missing = [path for path in sums if not (root / path).is_file()]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise UserError(
            f"data={name}: {root} has no {missing[0]}{more}: get {source}, and set data.root or the environment's "
            f"LOCALLEARN_DATA to the folder that has {Path(missing[0]).parts[0]}"
        )
    for path, expected in sums.items():
        found = hashlib.sha256((root / path).read_bytes()).hexdigest()
        if found != expected:
            size = (root / path).stat().st_size
            raise UserError(
                f"{root / path} is damaged or another file ({size} bytes; expected sha256 {expected}, found {found}): "
                f"get {source}"
            )
