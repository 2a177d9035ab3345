"""What `record=` can be told: which trackers get a copy of every record. No torch here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from locallearn.errors import UserError, unknown

WANDB_MODES = ("auto", "online", "offline", "disabled")
_INSTALL = {"wandb": "pip install wandb", "tensorboard": "pip install 'locallearn[tensorboard]'"}


@dataclass(frozen=True)
class WandbSettings:
    """What is set here holds; for the rest W&B's environment variables (see `wandb_sink.VARIABLES`), then our own.

    mode     auto: what W&B's own settings say, else online if a key is set and the server answers, else offline
    project  None: `locallearn`
    """

    mode: str = "auto"
    project: str | None = None
    entity: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.mode not in WANDB_MODES:
            raise unknown("value of record.wandb.mode", str(self.mode), WANDB_MODES)
        for name in ("project", "entity", "group"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise UserError(f"record.wandb.{name}={value!r} must be null or some text")
        if isinstance(self.tags, str) or not all(isinstance(tag, str) and 0 < len(tag) <= 64 for tag in self.tags):
            raise UserError(f"record.wandb.tags={self.tags!r} must be a list of texts of 1-64 characters")
        object.__setattr__(self, "tags", tuple(self.tags))


@dataclass(frozen=True)
class TensorBoardSettings:
    """TensorBoard needs no settings; its presence (`tensorboard: {}`) switches it on."""


@dataclass(frozen=True)
class RecordSettings:
    """The sinks beside `metrics.jsonl`; None is off."""

    wandb: WandbSettings | None = None
    tensorboard: TensorBoardSettings | None = None

    @property
    def sinks(self) -> list[str]:
        """Their names, as in `record=NAME`."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> RecordSettings:
        """From the plain mapping under `record` in a config. Raises UserError for an unknown key, a bad value, or a
        sink whose package is missing."""
        kinds: dict[str, type] = {"wandb": WandbSettings, "tensorboard": TensorBoardSettings}
        _check_keys("record", settings, kinds)
        return cls(**{name: _section(name, kinds[name], part) for name, part in settings.items() if part is not None})


def _section(name: str, kind: type, part: Any) -> Any:
    if not isinstance(part, Mapping):
        raise UserError(f"record.{name}={part!r} must be null or a group of settings; try record={name}")
    _check_keys(f"record.{name}", part, [field.name for field in fields(kind)])
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # a folder named wandb/ in the working directory has no origin
        raise UserError(f"record={name}: {name} is not installed; {_INSTALL[name]}, or choose record=jsonl")
    return kind(**part)


def _check_keys(where: str, given: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str]) -> None:
    for key in given:
        if key not in known:
            if not known:
                raise UserError(f"unknown setting {where}.{key}: {where} has no settings, write {{}}")
            raise unknown(f"setting of {where}", str(key), known)
