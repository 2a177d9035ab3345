"""Where the yaml files of the groups are, and what they set. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from locallearn.errors import UserError

APPENDED = ("experiment", "short")
"""Folders of `conf/` with whole settings, given as +experiment=NAME or +short=NAME."""


def conf_dir() -> Path:
    """`conf/`: inside the installed package, or at the top of the checkout that this module is run from."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "conf", package.parents[1] / "conf"):
        if (folder / "config.yaml").is_file():
            return folder
    raise UserError(f"the folder conf/ is neither in {package} nor beside src/: install locallearn again")


def choices(group: str, extra: Iterable[Path] = ()) -> dict[str, Path]:
    """The yaml files of a group by name; later folders win. A leading underscore marks a part, not a choice."""
    found: dict[str, Path] = {}
    for folder in (conf_dir(), *extra):
        files = sorted((folder / group).glob("*.yaml"))
        found |= {f.stem: f for f in files if not f.stem.startswith("_")}
    return found


def header(file: Path) -> dict[str, str]:
    """What the comment at the top of a yaml says: `summary` (its first line) and `name: value` lines such as paper; a
    line that is indented by four spaces or more goes on with the one before it."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if line.startswith("# @package"):  # for Hydra
            continue
        text = line.lstrip("# ").strip()
        if lines and line.startswith("#     "):
            lines[-1] += f" {text}"
        else:
            lines.append(text)
    found = {"summary": lines[0] if lines else ""}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon and re.fullmatch(r"[a-z]+", name):
            found[name] = value.strip()
    return found


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of nested mappings under its dotted key."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value
