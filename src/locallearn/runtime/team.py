"""What a run needs of its other processes, in the words of `World`; a run in one process has none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor


class Team(Protocol):
    """See `World`, which implements it for several processes."""

    rank: int
    size: int

    def gather(self, value: Any) -> list[Any]: ...
    def share(self, value: Any = None) -> Any: ...
    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]: ...


class Alone:
    """The team of one process."""

    rank = 0
    size = 1

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def share(self, value: Any = None) -> Any:
        return value

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict(tensors)
