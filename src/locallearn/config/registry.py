"""Where the yaml files of the groups are, and what they set. No torch here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.settings import GROUPS, SEVERAL
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
    by_name: dict[str, Path] = {}
    for folder in (conf_dir(), *extra):
        files = sorted((folder / group).glob("*.yaml"))
        by_name |= {f.stem: f for f in files if not f.stem.startswith("_")}
    return by_name


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
    facts = {"summary": lines[0] if lines else ""}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if colon and re.fullmatch(r"[a-z]+", name):
            facts[name] = value.strip()
    return facts


def flat(config: Mapping[Any, Any], above: str = "") -> dict[str, Any]:
    """Nested mappings as one: {"optim": {"lr": 0.1}} -> {"optim.lr": 0.1}; lists and empty mappings stay."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{above}{key}"
        values |= flat(value, f"{name}.") if isinstance(value, Mapping) and value else {name: value}
    return values


def chosen(overrides: Sequence[str]) -> dict[str, str]:
    """The name that each group has by default or by these overrides; none where an experiment may choose another."""
    top = _top()
    names = {k: v for entry in top["defaults"] if isinstance(entry, dict) for k, v in entry.items() if k in GROUPS}
    values = {key.lstrip("+"): value for key, _, value in (text.partition("=") for text in overrides)}
    if values.keys() & set(APPENDED):
        names = {}
    return names | {group: values[group] for group in GROUPS if group in values}


def options(group: str, name: str, file: Path) -> list[str]:
    """The settings of one choice, without the name of the group."""
    paths = flat(_content(group, name, file))
    return [path for path in paths if path.rpartition(".")[2] not in ("_target_", "defaults")]


def owners(key: str, config_dirs: Iterable[Path]) -> list[str]:
    """The choices GROUP=NAME of a key's group that have this key."""
    group, _, rest = key.partition(".")
    files = choices(group, config_dirs) if group in GROUPS else {}
    return [f"{group}={name}" for name, file in files.items() if rest in options(group, name, file)]


def known_keys(overrides: Sequence[str], config_dirs: Iterable[Path]) -> list[str]:
    """Every key that may be set: top-level settings, groups, and the keys of the groups' chosen or all yaml files."""
    top = {key: value for key, value in _top().items() if key not in ("defaults", "hydra")}
    keys = flat(top).keys() | top.keys() | set(GROUPS)
    names = chosen(overrides)
    for group in GROUPS:
        files = choices(group, config_dirs)
        one = files.keys() & {names.get(group, "")} or files
        for name in one:
            for path in options(group, name, files[name]):
                keys |= {f"{group}.{path}", f"{group}.{path.partition('.')[0]}"}
    return sorted(keys)


def _top() -> dict[str, Any]:
    """`conf/config.yaml`."""
    content = yaml.safe_load((conf_dir() / "config.yaml").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _content(group: str, name: str, file: Path) -> dict[str, Any]:
    """What a choice puts under its group; of `SEVERAL` each stands under its name."""
    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    return {name: content} if group in SEVERAL and content else content
