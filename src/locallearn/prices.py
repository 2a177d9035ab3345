"""What a module measures of itself while it learns, such as the bits that pass it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn


class Metered(nn.Module):
    """A module whose block records numbers that the module finds in its forward pass, each as a mean over steps."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[tuple[str, Tensor]] = []

    def meter(self, name: str, nats: Tensor) -> None:
        """Put by an information [] in nats, in a forward pass from which something learns; it is recorded in bits."""
        if self.training and torch.is_grad_enabled():
            self.readings.append((name, nats.detach() / math.log(2)))

    def taken(self) -> Iterator[tuple[str, Tensor]]:
        """What was put by since the last call, by name."""
        readings, self.readings = self.readings, []
        yield from readings


def meters_of(roots: Iterable[nn.Module]) -> list[Metered]:
    """The modules among these that measure themselves, each once."""
    return list({m: None for root in roots for m in root.modules() if isinstance(m, Metered)})
