"""The activation with which a block ends, for rules whose states move before it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

RISING = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Sigmoid, nn.Hardsigmoid, nn.Tanh,
    nn.Hardtanh,
)  # fmt: skip
"""Those that never fall: they minimise an energy, which the others do not."""
COMMUTE = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
"""The largest number is so before a rising activation and behind it."""


DROPOUT = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


def last_activation(layers: nn.Module, before: tuple[type[nn.Module], ...] = COMMUTE) -> nn.Module | None:
    """The rising activation that a block's units end in, alone or before modules of the types `before`; None if they
    end otherwise."""
    for module in reversed(list(_leaves(layers))):
        if type(module) in RISING:
            shared = Counter(map(id, (m for _, m in layers.named_modules(remove_duplicate=False))))
            return module if shared[id(module)] == 1 else None
        if type(module) not in (*before, nn.Flatten, nn.Identity):
            break
    return None


def before_activation(layers: nn.Module, x: Tensor) -> Tensor:
    """What a block emits for x [B, ...] but for its last activation; with `activated` it is what it emits."""
    activation = last_activation(layers)
    if activation is None:
        return layers(x)
    with _passed_over(activation):
        return layers(x)


def activated(layers: nn.Module, before: Tensor) -> Tensor:
    """The last activation of what `before_activation` gives [B, ...]."""
    activation = last_activation(layers)
    if activation is None:
        return before
    return activation.forward(before.clone() if getattr(activation, "inplace", False) else before)


@contextmanager
def _passed_over(activation: nn.Module) -> Iterator[None]:
    """Let an activation hand on what it reads."""
    read: list[Tensor] = []

    def reads(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        read.append(args[0])
        return (args[0].clone(),) if getattr(module, "inplace", False) else args

    handles = activation.register_forward_pre_hook(reads), activation.register_forward_hook(lambda *_: read.pop())
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _leaves(layers: nn.Module) -> Iterator[nn.Module]:
    """The modules of a sequence one after the other, also of sequences within it."""
    if not isinstance(layers, nn.Sequential):
        yield layers
        return
    for child in layers:
        yield from _leaves(child)
