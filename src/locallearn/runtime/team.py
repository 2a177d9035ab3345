"""What a process of a run is to the others: its place among stages and replicas, and the words of `World`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Team(Protocol):
    """The processes of a run, stage after stage, the replicas of one stage next to each other."""

    rank: int
    size: int
    replicas: int

    @property
    def stage(self) -> int:
        """Which stage this process runs, from the input upward."""
        ...

    @property
    def replica(self) -> int:
        """Which copy of the stage this process is; copy 0 evaluates and saves."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """The JSON `value` of every process, by rank, at rank 0; an empty list elsewhere. All must call it."""
        ...

    def share(self, value: Any = None) -> Any:
        """The JSON value that rank 0 gives, in every process. All must call it."""
        ...

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first replica of every stage at rank 0, on the CPU; nothing elsewhere. All must call."""
        ...

    def agree(self, number: int) -> int:
        """The number that the first replica of this stage gives. Its replicas must call it at the same step."""
        ...


class Alone:
    """The team of one process."""

    rank = stage = replica = 0
    size = replicas = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any = None) -> Any:
        return value

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)

    def agree(self, number: int) -> int:
        return number
