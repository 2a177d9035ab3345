"""The settings of `record=`: which trackers get a copy of every record. No torch here."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import Len, MinLen

from locallearn.errors import UserError
from locallearn.options import Options, checked

_INSTALL = {"wandb": "pip install wandb", "tensorboard": "pip install 'locallearn[tensorboard]'"}


@dataclass(frozen=True)
class WandbSettings(Options):
    """What is set here holds; for the rest W&B's environment variables (see `wandb_sink.VARIABLES`), then our own.

    mode      auto: what W&B's own settings say, else online if a key is set and the server answers, else offline
    project   None: `locallearn`
    name      None: what differs from the other runs of a sweep, or strategy, model, data and seed
    artifact  model: at the end the weights are uploaded, as an artifact of W&B
    """

    _group = "record.wandb"

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: Annotated[str, MinLen(1)] | None = None
    entity: Annotated[str, MinLen(1)] | None = None
    group: Annotated[str, MinLen(1)] | None = None
    name: Annotated[str, MinLen(1)] | None = None
    notes: Annotated[str, MinLen(1)] | None = None
    tags: tuple[Annotated[str, Len(1, 64)], ...] = ()
    artifact: Literal["model", "none"] = "none"


@dataclass(frozen=True)
class TensorBoardSettings:
    """TensorBoard needs no settings; its presence (`tensorboard: {}`) switches it on."""


@dataclass(frozen=True)
class RecordSettings:
    """The sinks beside `metrics.jsonl`; None is off. `own` are objects of the user's classes, by name."""

    wandb: WandbSettings | None = None
    tensorboard: TensorBoardSettings | None = None
    own: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sinks(self) -> list[str]:
        """Their names, as in `record=NAME`."""
        return [name for name in _INSTALL if getattr(self, name) is not None] + list(self.own)

    @classmethod
    def parse(cls, settings: Mapping[str, Any], own: Mapping[str, Any] = MappingProxyType({})) -> RecordSettings:
        """From the plain mapping under `record` in a config; what is made of some parts of it already is in `own`.
        Raises UserError for an unknown key, a bad value, or a sink whose package is missing."""
        if "_target_" in settings:
            raise UserError("record._target_ belongs below a name: in record/mine.yaml write mine: {_target_: ...}")
        known = {name: part for name, part in settings.items() if name not in own}
        record = cls(**checked(cls, known, "record", ("own",)), own=own)
        for name in set(record.sinks) - set(own):
            spec = importlib.util.find_spec(name)
            if spec is None or spec.origin is None:  # a folder named wandb/ in the working directory has no origin
                raise UserError(f"record={name}: {name} is not installed; {_INSTALL[name]}, or choose record=jsonl")
        return record
