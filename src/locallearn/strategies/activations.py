"""The activation with which a block ends, for rules whose states move before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

RISING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh,
    nn.Hardtanh,
)  # fmt: skip
"""Those that never fall: they minimise an energy, which the others do not."""


def last_activation(layers: nn.Module) -> nn.Module | None:
    """The rising activation that is the last thing in a block's units; None if they end in something else."""
    while isinstance(layers, nn.Sequential) and len(layers):
        layers = layers[-1]
    return layers if type(layers) in RISING else None


def before_activation(layers: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """What a block emits for x [B, ...], and what its last activation reads for that, with the graph; the same tensor
    twice if it ends in none."""
    activation = last_activation(layers)
    seen: list[Tensor] = []
    if activation is None:
        out = layers(x)
        return out, out
    with _reading(activation, seen):
        out = layers(x)
    return out, seen[-1]


@contextmanager
def _reading(activation: nn.Module, seen: list[Tensor]) -> Iterator[None]:
    """Keep what an activation reads, also from one that writes its answer there."""

    def read(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        seen.append(args[0])
        return (args[0].clone(),) if getattr(module, "inplace", False) else args

    handle = activation.register_forward_pre_hook(read)
    try:
        yield
    finally:
        handle.remove()
