"""Where a path that the user has written leads: the one place in which `~` is expanded, and once."""

from __future__ import annotations

import os
from pathlib import Path

from locallearn.errors import UserError

SETTINGS = ("out", "data.root", "probe.similarity.other")
"""The settings of a run that are paths."""


def written(text: str | os.PathLike[str]) -> str:
    """A path as the user wrote it, with the home folder that a leading `~` stands for. What comes out never begins with
    `~`, even after pathlib has dropped a leading `./`, so nothing expands it again. Raises UserError for ~nobody."""
    path = os.fspath(text)
    if "\x00" in path:
        raise UserError(f"{path!r} is not a path: it has a null character in it")
    expanded = os.path.expanduser(path)
    if path.startswith("~") and expanded == path:
        user = path.partition("/")[0]
        raise UserError(f"{path}: there is no home folder for {user}; give the whole path, or ./{path} for a file here")
    return os.path.abspath(expanded) if os.path.normpath(expanded).startswith("~") else expanded


def expanded(text: str | os.PathLike[str]) -> Path:
    """`written` as a Path. Raises UserError."""
    return Path(written(text))
