"""Information that the loss pays for where it is measured: inside the model, whatever trains it.

A module hands on its output by `Metered.charge`, and the gradient of the cost joins the one that comes back through it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from locallearn.scaling import scale
from locallearn.uncompiled import called


class Metered(nn.Module):
    """A module whose block records numbers that the module finds in its forward pass, each as a mean over steps.

    progress  how far training is, from 0 to 1; the block says it
    observed  whether a probe is looking: then the module behaves as in training, and keeps its readings for the probe
    """

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[tuple[str, Tensor]] = []
        self.progress = 1.0
        self.observed = False

    @property
    def noisy(self) -> bool:
        """Whether a forward pass draws noise."""
        return self.training or self.observed

    def meter(self, name: str, nats: Tensor) -> None:
        """Keep an amount of information [] in nats, in a forward pass that is learned from; it is recorded in bits."""
        if self.observed or (self.training and torch.is_grad_enabled()):
            called(self._put, name, nats)

    def _put(self, name: str, nats: Tensor) -> None:
        self.readings.append((name, nats.detach() / math.log(2)))

    def charge(self, z: Tensor, cost: Tensor) -> Tensor:
        """z [B, ...] unchanged. Whoever computes gradients back through it adds those of the cost [] to them: once for
        each backward pass, as if the loss, a mean over the batch, had the cost as a term."""
        return called(_Charge.apply, z, cost)

    def ramp(self, warmup: float) -> float:
        """The share of a price that rises linearly from zero over this share of training."""
        return min(1.0, self.progress / warmup if warmup else 1.0)

    def forget(self) -> None:
        """Drop the readings."""
        self.readings.clear()

    def taken(self) -> Iterator[tuple[str, Tensor]]:
        """The readings since the last call: (name, bits)."""
        readings, self.readings = self.readings, []
        yield from readings


@contextmanager
def as_in_training(meters: Sequence[Metered]) -> Iterator[None]:
    """Let modules behave as in training while a probe looks, noise included; afterwards no trace of it is left."""
    for meter in meters:
        meter.observed = True
    try:
        yield
    finally:
        for meter in meters:
            meter.observed = False
            meter.forget()


def meters_of(roots: Iterable[nn.Module]) -> list[Metered]:
    """The `Metered` modules in these, each once."""
    return list({m: None for root in roots for m in root.modules() if isinstance(m, Metered)})


class _Charge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, cost: Tensor) -> Tensor:
        ctx.like = cost.new_empty(0)
        return z.view_as(z)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], ctx.like.new_full((), scale())
