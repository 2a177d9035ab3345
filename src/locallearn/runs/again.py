"""Commands as this program prints them: each runs as it stands, in the folder and the shell that it is read in."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

_DIR = ("--config-dir", "-cd")


def program() -> list[str]:
    """How the shell finds this very installation: by its name if that is on the PATH, else by its Python."""
    here = Path(sys.executable).parent
    on_path = shutil.which("locallearn")
    return ["locallearn"] if on_path and Path(on_path).parent == here else [sys.executable, "-m", "locallearn"]


def command(*words: str | os.PathLike[str], flags: Sequence[str] = ()) -> str:
    """A command line of locallearn, quoted for a shell."""
    return shlex.join([*program(), *(os.fspath(word) for word in words), *flags])


def resume(run: str | os.PathLike[str], objects: Sequence[str] = ()) -> str:
    """The command that goes on with a run, and may reach all that this process may. With `objects` of Python it is a
    call instead, which gives them again."""
    if objects:
        return f"locallearn.resume({os.fspath(run)!r}, {', '.join(f'{name}=...' for name in objects)}) in Python"
    return command("resume", run, flags=trusting(sys.argv[1:]))


def repeated(overrides: Sequence[str], called: str, folder: str) -> str:
    """The command that does a run again that was called as `called` in the folder `folder`. The modules, yaml files and
    data that it finds there, it finds only there."""
    try:
        dirs = [f"--config-dir={name}" for name in config_dirs(shlex.split(called)[1:])]
    except ValueError:  # a damaged manifest
        dirs = []
    allowed = any(word.startswith("allow=") for word in overrides)
    relative = any(re.match(r"data\.root=['\"]?[^/'\"]", word) for word in overrides)
    elsewhere = bool(folder) and Path(folder) != Path.cwd() and (dirs or allowed or relative)
    return (f"cd {shlex.quote(folder)} && " if elsewhere else "") + command(*overrides, flags=dirs)


def trusting(words: Sequence[str]) -> list[str]:
    """The flags that let another command use the same code of the user's as the command line `words`."""
    packages = list(_values(words, ("--allow",)))
    for word in words:
        if word.startswith("allow="):
            packages += re.findall(r"[\w.]+", word.removeprefix("allow="))
    dirs = [f"--config-dir={name}" for name in config_dirs(words)]
    return [*dirs, *(f"--allow={name}" for name in dict.fromkeys(packages))]


def config_dirs(words: Sequence[str]) -> list[str]:
    """The folders that were given with --config-dir."""
    return list(_values(words, _DIR))


def _values(words: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    for word, after in zip_longest(words, words[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name in flags:
            yield value if equals else after
