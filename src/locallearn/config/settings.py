"""The top-level settings of a run: everything in `conf/config.yaml` that is not a group. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from annotated_types import Ge, MinLen

from locallearn.errors import UserError
from locallearn.options import Options


class Cadence(NamedTuple):
    """How often something is done: once in `number` epochs (ep) or steps (it); with 0, never."""

    number: int
    unit: str

    @classmethod
    def parse(cls, key: str, value: int | str, bare: bool = False) -> Cadence:
        """From "1ep", "100it" or "never"; where it may be `bare`, a number is one of epochs. Raises UserError."""
        if isinstance(value, int) and bare and value > 0:
            return cls(value, "ep")
        if isinstance(value, int) and not bare:
            n = max(value, 1)
            raise UserError(f"{key}={value}: give a unit: {n}ep (epochs), {n}it (steps), or never")
        if value == "never":
            return cls(0, "ep")
        match = re.fullmatch(r"([1-9]\d*)(ep|it)", str(value))
        if not match:
            raise UserError(f"{key}={value}: must be like 1ep (epochs), 100it (steps), or never")
        return cls(int(match[1]), match[2])

    def due(self, step: int, steps_per_epoch: int) -> bool:
        """Whether it is due after `step` steps in all."""
        return self.number > 0 and step % (self.number * (steps_per_epoch if self.unit == "ep" else 1)) == 0


@dataclass(frozen=True)
class CheckpointSettings(Options):
    """every: "1ep" (epochs), "100it" (steps) or "never"; keep: how many of the newest are kept."""

    _group = "checkpoint"

    every: int | str = "1ep"
    keep: Annotated[int, Ge(1)] = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.cadence

    @property
    def cadence(self) -> Cadence:
        return Cadence.parse("checkpoint.every", self.every)


@dataclass(frozen=True)
class SweepSettings:
    """fail_fast: after a run of a sweep has failed, begin no other."""

    fail_fast: bool = False


@dataclass(frozen=True)
class InitSettings(Options):
    """run, weights: where the weights come from that training starts with; blocks: of which blocks they are taken;
    teacher: the run whose model a student learns from. Runs are given by their folders."""

    _group = "init"

    run: Annotated[str, MinLen(1)] | None = None
    weights: Annotated[str, MinLen(1)] | None = None
    blocks: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] | None = None
    teacher: Annotated[str, MinLen(1)] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is not None and self.weights is not None:
            raise UserError("init.run and init.weights both say where weights come from: give one of them")


WHERE = ("out", "record", "threads", "device", "allocator", "checkpoint", "log_every", "sweep")
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
    evaluate_every: int | str
    checkpoint: CheckpointSettings
    sweep: SweepSettings
    out: Annotated[str, MinLen(1)]
    max_steps: Annotated[int, Ge(1)] | None
    dry_run: bool
    allow: list[str]
    init: InitSettings = InitSettings()
    train_blocks: Annotated[list[Annotated[int, Ge(0)]], MinLen(1)] | None = None
    log_every: Annotated[int, Ge(0)] | None = None  # as the runs of older versions, which do not say it

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.evaluations
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}; choose a divisor"
            )

    @property
    def evaluations(self) -> Cadence:
        """When the validation and the test split are evaluated, beside the end of the run."""
        return Cadence.parse("evaluate_every", self.evaluate_every, bare=True)

    def blocks_for(self, units: int) -> int | str | list[int]:
        """What `blocks` means for a model of this many units, in the terms of `BlockModel.cut`."""
        return min(AUTO_BLOCKS, units) if self.blocks == "auto" else self.blocks


AUTO_BLOCKS = 4
"""What blocks=auto stands for, unless the model has fewer units."""

GROUPS: tuple[str, ...] = (
    "strategy",
    "objective",
    "auxiliary",
    "model",
    "bottleneck",
    "data",
    "optim",
    "runtime",
    "probe",
    "callback",
    "record",
)
SEVERAL = ("probe", "callback")
"""Groups of which a run may have several choices side by side, each under its name."""
