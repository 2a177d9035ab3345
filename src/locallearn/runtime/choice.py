"""How a user says where blocks run."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass

from locallearn.errors import UserError, unknown

MESSAGES = ("exact", "bf16")


class Runtime(ABC):
    """Where blocks run. Concrete ones are frozen dataclasses of typed options."""

    def divide(self, seconds: list[float]) -> list[range]:
        """The blocks of each stage, given the time of each block. Raises UserError."""
        return [range(len(seconds))]


@dataclass(frozen=True)
class Serial(Runtime):
    """All blocks in this process."""


@dataclass(frozen=True)
class Pipeline(Runtime):
    """One process per stage, joined by messages.

    stages    how many
    split     blocks of each stage; auto: the largest stage as fast as it can be
    message   exact, or bf16 for activations and gradients on their way
    patience  seconds to wait for the other stages to start
    """

    stages: int = 2
    split: str | list[int] = "auto"
    message: str = "exact"
    patience: float = 600.0

    def __post_init__(self) -> None:
        if self.stages < 1:
            raise UserError(f"runtime.stages={self.stages}: must be at least 1")
        if self.message not in MESSAGES:
            raise unknown("runtime.message", self.message, MESSAGES)
        if not self.patience > 0:
            raise UserError(f"runtime.patience={self.patience}: must be above 0 seconds")
        if isinstance(self.split, str) and self.split != "auto":
            raise UserError(f"runtime.split={self.split}: must be auto, or the blocks of each stage, such as [2,2]")
        if isinstance(self.split, list) and (len(self.split) != self.stages or min(self.split, default=0) < 1):
            raise UserError(f"runtime.split={self.split}: must name {self.stages} stages of at least one block each")

    def divide(self, seconds: list[float]) -> list[range]:
        blocks = len(seconds)
        if self.stages > blocks:
            raise UserError(
                f"runtime.stages={self.stages} but the model is cut into {blocks} blocks; choose at most {blocks} "
                f"stages, or more blocks, such as blocks={self.stages}"
            )
        if isinstance(self.split, str):
            return _balanced(seconds, self.stages)
        if sum(self.split) != blocks:
            raise UserError(f"runtime.split={self.split} has {sum(self.split)} blocks, but the model has {blocks}")
        edges = [sum(self.split[:i]) for i in range(self.stages + 1)]
        return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]


def _balanced(seconds: list[float], stages: int) -> list[range]:
    """Consecutive blocks per stage such that the slowest stage is as fast as it can be."""
    best: dict[int, tuple[float, list[int]]] = {0: (0.0, [0])}
    for stage in range(stages):
        following: dict[int, tuple[float, list[int]]] = {}
        for start, (slowest, edges) in best.items():
            for stop in range(start + 1, len(seconds) - (stages - stage - 1) + 1):
                found = max(slowest, sum(seconds[start:stop])), [*edges, stop]
                if stop not in following or found < following[stop]:
                    following[stop] = found
        best = following
    edges = best[len(seconds)][1]
    return [range(a, b) for a, b in zip(edges, edges[1:], strict=False)]
