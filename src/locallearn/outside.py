"""Modules of the user's, from outside the package: where they are looked for, and which a `--config-dir` allows."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path


def packages_named_in(folders: Iterable[Path]) -> list[str]:
    """The top-level packages outside locallearn that yaml files in these folders name: whoever gives `--config-dir`
    on the command line trusts them."""
    found = set()
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            match = re.search(r"^_target_:\s*['\"]?([A-Za-z_]\w*)\.", file.read_text(encoding="utf-8"), re.MULTILINE)
            if match and match[1] != "locallearn":
                found.add(match[1])
    return sorted(found)


def look_for_modules_in(folders: Iterable[Path]) -> None:
    """Let modules of the user be imported from here, last of all; a console script does not see its current folder."""
    sys.path += [str(folder.resolve()) for folder in folders if str(folder.resolve()) not in sys.path]
