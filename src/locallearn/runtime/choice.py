"""How a user says where blocks run; `conf/runtime/*.yaml` is the list."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise

from locallearn.contract import Strategy
from locallearn.engine import Stage
from locallearn.errors import UserError, unknown
from locallearn.models.cut import partition

MESSAGES = ("exact", "bf16")


class Runtime:
    """Where blocks run. Concrete ones are frozen dataclasses of typed options."""

    staleness: int = 0
    """Steps by which feedback is late at each boundary between blocks: see `engine.Stage`."""
    replicas: int = 1

    @property
    def processes(self) -> int:
        return 1

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        return {}

    def stage(self, name: str, strategy: Strategy, micro_batches: int) -> Callable[..., Stage]:
        """What drives the blocks, a constructor like `Stage`. Raises UserError for what the runtime cannot do with the
        strategy, called `name`."""
        return partial(Stage, staleness=self.staleness)


@dataclass(frozen=True)
class Serial(Runtime):
    """All blocks in this process."""

    staleness: int = 0

    def __post_init__(self) -> None:
        _at_least("staleness", self.staleness, 0)


@dataclass(frozen=True)
class Pipeline(Runtime):
    """One process per stage, and per replica of it.

    stages    processes that one sample passes
    replicas  copies of each stage, which share every batch
    split     blocks of each stage, such as [3,1]; auto: measured, so that the slowest stage is as fast as it can be
    message   exact, or bf16 for activations and gradients on their way
    """

    stages: int = 2
    replicas: int = 1
    split: str | list[int] = "auto"
    message: str = "exact"
    staleness: int = 0

    def __post_init__(self) -> None:
        _at_least("stages", self.stages, 1)
        _at_least("replicas", self.replicas, 1)
        _at_least("staleness", self.staleness, 0)
        if self.message not in MESSAGES:
            raise unknown("runtime.message", self.message, MESSAGES)
        if isinstance(self.split, str) and self.split != "auto":
            raise UserError(f"runtime.split={self.split}: must be auto, or the blocks of each stage, such as [2,2]")
        if isinstance(self.split, list) and (len(self.split) != self.stages or min(self.split, default=0) < 1):
            raise UserError(f"runtime.split={self.split}: must name {self.stages} stages of at least one block each")

    @property
    def processes(self) -> int:
        return self.stages * self.replicas

    def unread(self) -> Mapping[str, str]:
        return {} if self.stages > 1 else {"message": "runtime.stages=2 or more"}

    def divide(self, blocks: int, seconds: Sequence[float] | None) -> list[range]:
        """The blocks of each stage, given the time of each block (None: all alike). Raises UserError."""
        if self.stages > blocks:
            raise UserError(
                f"runtime.stages={self.stages} but the model is cut into {blocks} blocks; choose at most {blocks} "
                f"stages, or more blocks, such as blocks={self.stages}"
            )
        if isinstance(self.split, list) and sum(self.split) != blocks:
            raise UserError(
                f"runtime.split={self.split} has {sum(self.split)} blocks, but the model is cut into {blocks}; choose "
                f"numbers that add up to {blocks}, or auto"
            )
        if isinstance(self.split, list):
            edges = [0, *accumulate(self.split)]
        else:
            edges = partition(seconds or [1.0] * blocks, self.stages)
        return [range(a, b) for a, b in pairwise(edges)]


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise UserError(f"runtime.{name}={value}: must be at least {least}")
