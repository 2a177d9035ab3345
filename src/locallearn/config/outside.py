"""Modules of the user's, from outside the package: where they are looked for, and which a `--config-dir` allows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from locallearn.errors import UserError


def trusted(config_dirs: Sequence[Path], allow: Sequence[str]) -> list[str]:
    """The packages outside locallearn that this command line allows, which from now on are found in these folders and
    in the current one. Whoever gives `--config-dir` trusts what its yaml files name. Raises UserError."""
    for folder in config_dirs:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder; give that of your own yaml files")
    if config_dirs or allow:
        look_for_modules_in([*config_dirs, Path.cwd()])
    return list(dict.fromkeys([*allow, *_named_in(config_dirs)]))


def _named_in(folders: Iterable[Path]) -> list[str]:
    """The top-level packages that yaml files in these folders name."""
    packages: set[str] = set()
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            text = file.read_text(encoding="utf-8", errors="replace")
            packages |= set(re.findall(r"^[^#\n]*?\b_target_:\s*['\"]?([A-Za-z_]\w*)\.", text, re.MULTILINE))
    return sorted(packages - {"locallearn", "torch"})


def look_for_modules_in(folders: Iterable[Path]) -> None:
    """Let modules of the user be imported from here, last of all; a console script does not see its current folder."""
    for folder in folders:
        if (place := str(folder.resolve())) not in sys.path:
            sys.path.append(place)
