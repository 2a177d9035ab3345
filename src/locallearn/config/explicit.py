"""What a user has set, and the refusal of what is set and not read.

Set is what stands on the command line, among the keywords of `train` and `build`, and in the file of `+experiment=` or
`+short=`. Defaults are not set, and neither is what a run folder has saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from locallearn.config.registry import APPENDED, conf_dir, flat
from locallearn.config.settings import GROUPS
from locallearn.errors import UserError

TYPED = 0
"""The level of what is typed; a file's is 1, that of a file which it includes 2: the lower one wins."""


class Unread(NamedTuple):
    """A group or an option that this run does not read.

    reader   what would read it, such as `optim.schedule=step`: it begins with the key that would have to be another
    choices  where `reader` is a group's: the names that read it
    """

    key: str
    reader: str
    choices: frozenset[str] = frozenset()

    @property
    def cause(self) -> str:
        return re.split(r"[^\w.]", self.reader)[0]


@dataclass(frozen=True)
class Explicit:
    """What is set: of each key its level, and how it was written.

    declared  keys that the file of an experiment varies: whoever fixes one of them chooses among its runs
    varies    the keys that a sweep varies, and their values; None where there is no sweep
    """

    levels: Mapping[str, int] = field(default_factory=dict)
    written: Mapping[str, str] = field(default_factory=dict)
    declared: frozenset[str] = frozenset()
    varies: Mapping[str, Sequence[str]] | None = None

    def beside(self, objects: Mapping[str, str]) -> Explicit:
        """What is set, and what was given as objects: their names by place."""
        levels = {**self.levels, **dict.fromkeys(objects, TYPED)}
        written = {**self.written, **{place: f"{place}={name}(...)" for place, name in objects.items()}}
        return replace(self, levels=levels, written=written)

    def sets(self, key: str) -> list[str]:
        """What is set of a group or an option."""
        return [each for each in self.levels if f"{each}.".startswith(f"{key}.")]

    def refuse(self, unread: Iterable[Unread]) -> None:
        """Raise UserError for the first option of `unread` that is set, unless it is meant for other runs: those of the
        same sweep in which what leaves it unread is another, or those of the file that it comes from."""
        for option in unread:
            for key in self.sets(option.key):
                if not self._excused(key, option):
                    raise UserError(
                        f"{self.written[key]} is read only with {option.reader}: choose that, or leave {key} out"
                    )

    def _excused(self, key: str, option: Unread) -> bool:
        causes = {option.cause, option.cause.partition(".")[0]}
        sweep = self.varies or {}
        if key not in sweep and (values := [sweep[cause] for cause in causes & sweep.keys()]):
            return not option.choices or any(option.choices & set(names) for names in values)
        level = TYPED + 1 if key in self.declared else self.levels[key]
        return any(self.levels.get(cause, level) < level for cause in causes)


def explicit(
    overrides: Iterable[str],
    config: Mapping[str, Any],
    names: Mapping[str, str],
    folders: Sequence[Path] = (),
    varies: Mapping[str, Sequence[str]] | None = None,
) -> Explicit:
    """What `overrides` set, of the composed `config`. An option that is set to null is not set.

    names    the chosen name of each group
    folders  where the user's own files of experiments are
    """
    levels: dict[str, int] = {}
    written: dict[str, str] = {}
    fixed: set[str] = set()
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        key = key.partition("@")[0]
        if key in APPENDED:
            for name in re.findall(r"[^,\[\]\s'\"]+", value):
                own, varied = _set_by(key, name, TYPED + 1, folders)
                levels = own | levels
                written |= {each: f"{each}={names.get(each) or _at(config, each)} of {text}" for each in own}
                fixed |= varied
        elif not text.startswith("~") and not key.startswith("hydra"):
            levels[key], written[key] = TYPED, f"{key}={value}"
    not_null = {key: level for key, level in levels.items() if _at(config, key) is not None}
    return Explicit(not_null, written, frozenset(fixed), varies)


def declared(group: str, name: str, folders: Sequence[Path] = ()) -> set[str]:
    """The keys that the file of an experiment varies."""
    return _set_by(group, name, TYPED, folders)[1]


def _set_by(group: str, name: str, level: int, folders: Sequence[Path]) -> tuple[dict[str, int], set[str]]:
    """The keys that a file sets, with their levels, and those that it varies in a sweep."""
    files = [folder / group / f"{name}.yaml" for folder in (*reversed(folders), conf_dir())]
    file = next((file for file in files if file.is_file()), None)
    content = (yaml.safe_load(file.read_text(encoding="utf-8")) if file else None) or {}
    hydra = content.pop("hydra", None) or {}
    varied = set((hydra.get("sweeper") or {}).get("params") or {})
    own: dict[str, int] = {}
    included: dict[str, int] = {}
    for entry in content.pop("defaults", None) or []:
        for key, value in entry.items() if isinstance(entry, dict) else [(group, entry)]:
            key = re.sub(r"override |optional |@.*|/", "", str(key)).strip()
            if key in APPENDED and value != "_self_":
                deeper, too = _set_by(key, str(value).rpartition("/")[2], level + 1, folders)
                included, varied = included | deeper, varied | too
            elif key in GROUPS:
                own[key] = level
    own |= dict.fromkeys(flat(content), level)
    return included | own, varied


def _at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key; of a group its options."""
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return {} if value is None and key in GROUPS else value
