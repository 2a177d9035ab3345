"""The top-level settings of a run: everything in `conf/config.yaml` that is not a group. No torch here."""

from __future__ import annotations

import re
from dataclasses import dataclass

from locallearn.errors import UserError, unknown

PRECISIONS = ("fp32", "bf16", "fp64")
BALANCES = ("flops", "memory", "time")


@dataclass(frozen=True)
class CheckpointSettings:
    """every: "1ep" (epochs), "100it" (steps) or "never"; keep: how many of the newest are kept."""

    every: int | str = "1ep"
    keep: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.every, int):
            n = max(self.every, 1)
            raise UserError(f"checkpoint.every={self.every}: give a unit: {n}ep (epochs), {n}it (steps), or never")
        if self.every != "never" and not re.fullmatch(r"[1-9]\d*(ep|it)", self.every):
            raise UserError(f"checkpoint.every={self.every}: must be like 1ep (epochs), 100it (steps), or never")
        if self.keep < 1:
            raise UserError(f"checkpoint.keep={self.keep}: must be at least 1")

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
class Settings:
    """What a user may set beside the groups; the comments in `conf/config.yaml` say what each means."""

    seed: int
    epochs: int
    batch_size: int
    micro_batches: int
    blocks: int | str | list[int]
    balance: str
    device: str
    threads: int | str
    precision: str
    channels_last: bool
    compile: bool
    allocator: bool
    deterministic: bool
    evaluate_every: int
    checkpoint: CheckpointSettings
    sweep: SweepSettings
    out: str
    max_steps: int | None
    dry_run: bool
    allow: list[str]

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "micro_batches", "evaluate_every"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.seed < 0:
            raise UserError(f"seed={self.seed}: must be at least 0")
        if self.max_steps is not None and self.max_steps < 1:
            raise UserError(f"max_steps={self.max_steps}: must be at least 1, or null for no limit")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)
        if self.balance not in BALANCES:
            raise unknown("balance", self.balance, BALANCES)
        if isinstance(self.blocks, str) and self.blocks not in ("auto", "max"):
            raise UserError(f"blocks={self.blocks}: must be a number, auto, max, or cut points such as [2,4,7]")
        if isinstance(self.threads, str) and self.threads != "auto":
            raise UserError(f"threads={self.threads}: must be a whole number or auto")
        if isinstance(self.threads, int) and self.threads < 1:
            raise UserError(f"threads={self.threads}: must be at least 1, or auto")
        if self.batch_size % self.micro_batches:
            raise UserError(
                f"micro_batches={self.micro_batches} does not divide batch_size={self.batch_size}; choose a divisor"
            )
        if not self.out:
            raise UserError("out is empty: give a folder for run folders, such as out=runs")

    def blocks_for(self, units: int) -> int | str | list[int]:
        """What `blocks` means for a model of so many units, in the terms of `BlockModel.cut`."""
        return min(AUTO_BLOCKS, units) if self.blocks == "auto" else self.blocks


AUTO_BLOCKS = 4
"""blocks=auto: so many, or as many as the model has units."""

GROUPS: tuple[str, ...] = ("strategy", "objective", "auxiliary", "model", "data", "optim", "runtime", "probe", "record")
