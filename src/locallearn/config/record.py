"""The settings of `record=`: which trackers get a copy of every record. No torch here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from annotated_types import Len, MinLen

from locallearn.errors import UserError
from locallearn.options import Options, checked

_INSTALL = {"wandb": "pip install wandb", "tensorboard": "pip install 'locallearn[tensorboard]'"}


@dataclass(frozen=True)
class WandbSettings(Options):
    """What is set here holds; for the rest W&B's environment variables (see `wandb_sink.VARIABLES`), then our own.

    mode     auto: what W&B's own settings say, else online if a key is set and the server answers, else offline
    project  None: `locallearn`
    """

    _group = "record.wandb"

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: Annotated[str, MinLen(1)] | None = None
    entity: Annotated[str, MinLen(1)] | None = None
    group: Annotated[str, MinLen(1)] | None = None
    tags: tuple[Annotated[str, Len(1, 64)], ...] = ()


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
        record = cls(**checked(cls, settings, "record"))
        for name in record.sinks:
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # a folder named wandb/ in the working directory has no origin
                raise UserError(f"record={name}: {name} is not installed; {_INSTALL[name]}, or choose record=jsonl")
        return record
