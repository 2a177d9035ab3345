"""The top-level settings of a run: everything in `conf/config.yaml` that is not a group. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen

from locallearn.errors import UserError
from locallearn.options import Options


@dataclass(frozen=True)
class CheckpointSettings(Options):
    """every: "1ep" (epochs), "100it" (steps) or "never"; keep: how many of the newest are kept."""

    _group = "checkpoint"

    every: int | str = "1ep"
    keep: Annotated[int, Ge(1)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.every, int):
            n = max(self.every, 1)
            raise UserError(f"checkpoint.every={self.every}: give a unit: {n}ep (epochs), {n}it (steps), or never")
        if self.every != "never" and not re.fullmatch(r"[1-9]\d*(ep|it)", self.every):
            raise UserError(f"checkpoint.every={self.every}: must be like 1ep (epochs), 100it (steps), or never")

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether a checkpoint is due after `step` steps in all."""
        if self.every == "never":
            return False
        assert isinstance(self.every, str)
        count, unit = int(self.every[:-2]), self.every[-2:]
        return step % (count * (steps_per_epoch if unit == "ep" else 1)) == 0


@dataclass(frozen=True)
class SweepSettings:
    """fail_fast: after a run of a sweep has failed, begin no other."""

    fail_fast: bool = False


WHERE = ("out", "record", "threads", "device", "allocator", "checkpoint", "sweep")
"""Settings that say where a run runs and what is kept of it, not what it learns."""


@dataclass(frozen=True)
class Settings(Options):
    """What a user may set beside the groups; the comments in `conf/config.yaml` say what each means."""

    seed: Annotated[int, Ge(0)]
    epochs: Annotated[int, Ge(1)]
    batch_size: Annotated[int, Ge(1)]
    micro_batches: Annotated[int, Ge(1)]
    blocks: int | Literal["auto", "max"] | list[int]
    balance: Literal["flops", "memory", "time"]
    device: str
    threads: Annotated[int, Ge(1)] | Literal["auto"]
    precision: Literal["fp32", "bf16", "fp16", "fp64"]
    channels_last: bool
    compile: bool
    allocator: bool
    deterministic: bool
    evaluate_every: Annotated[int, Ge(1)]
    checkpoint: CheckpointSettings
    sweep: SweepSettings
    out: Annotated[str, MinLen(1)]
    max_steps: Annotated[int, Ge(1)] | None
    dry_run: bool
    allow: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}; choose a divisor"
            )

    def blocks_for(self, units: int) -> int | str | list[int]:
        """What `blocks` means for a model of so many units, in the terms of `BlockModel.cut`."""
        return min(AUTO_BLOCKS, units) if self.blocks == "auto" else self.blocks


AUTO_BLOCKS = 4
"""blocks=auto: so many, or as many as the model has units."""

GROUPS: tuple[str, ...] = ("strategy", "objective", "auxiliary", "model", "data", "optim", "runtime", "probe", "record")
