"""New units like those of a model: the same structure with parameters of their own, also for another input."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.models.base import Size
from locallearn.models.trace import HOOKS

POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


@runtime_checkable
class Resizable(Protocol):
    """A unit that knows how to make another one for maps of other channels, with another stride."""

    def resized(self, inputs: int, stride: int) -> nn.Module: ...


def builder(
    unit: nn.Module, reads: Size, emits: Size, initialise: Callable[[Iterable[nn.Module]], None] | None
) -> Callable[[Size], nn.Module]:
    """`fresh` of a unit, whatever becomes of its tensors later. Buffers that are not part of its state are constants,
    such as the edges of a graph, and are shared."""
    constants = {
        f"{m_name}.{name}".lstrip("."): b
        for m_name, m in unit.named_modules()
        for name, b in m._buffers.items()
        if b is not None and name in m._non_persistent_buffers_set
    }
    return lambda asked: fresh(unit, reads, emits, asked, initialise, constants)


def fresh(
    unit: nn.Module,
    reads: Size,
    emits: Size,
    asked: Size,
    initialise: Callable[[Iterable[nn.Module]], None] | None,
    constants: Mapping[str, Tensor],
) -> nn.Module:
    """A unit like `unit`, which reads [B, *reads] and emits [B, *emits], for inputs [B, *asked].

    Of maps it halves the sides where those asked are at least twice what the unit emits. `initialise` draws what
    PyTorch's initialisation does not. Nothing is copied from the unit's weights, which may be on no device. Raises
    UserError for a unit with weights that nothing draws, or that cannot read such inputs.
    """
    made = _blank_copy(unit, constants)
    if asked != reads:
        made = _resized(made, emits, asked)
    for module in made.modules():
        _draw(module)
    if initialise is not None:
        initialise([made])
    return made.train()


def _blank_copy(unit: nn.Module, constants: Mapping[str, Tensor]) -> nn.Module:
    """The structure, with tensors that hold anything; constants are shared, hooks of others stay behind."""
    memo: dict[int, object] = {}
    for p in unit.parameters():
        memo[id(p)] = nn.Parameter(_blank(p), requires_grad=p.is_floating_point() or p.is_complex())
    for name, b in unit.named_buffers(remove_duplicate=False):
        memo[id(b)] = constants[name] if name in constants else _blank(b)
    made = copy.deepcopy(unit, memo)
    for module in made.modules():
        for hooks in HOOKS:
            getattr(module, hooks).clear()
    return made


def _blank(t: Tensor) -> Tensor:
    """In the type and layout in which tensors are drawn, whatever became of the unit's own."""
    kind = torch.get_default_dtype() if t.is_floating_point() else torch.complex64 if t.is_complex() else t.dtype
    return torch.empty(t.shape, dtype=kind)


def _draw(module: nn.Module) -> None:
    kept = [b for name, b in module._buffers.items() if name not in module._non_persistent_buffers_set]
    if all(t is None for t in (*module._parameters.values(), *kept)):
        return
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if not callable(reset):
        raise UserError(
            f"new units like those of the model are needed, and {type(module).__name__}, which holds tensors of its "
            "own, has no reset_parameters() that draws them: add it, or choose another auxiliary network or strategy"
        )
    reset()


def _resized(made: nn.Module, emits: Size, asked: Size) -> nn.Module:
    """The unit for another input: the layer that reads it is replaced by one of the right size."""
    layers = list(made) if isinstance(made, nn.Sequential) else [made]
    first = next((i for i, layer in enumerate(layers) if next(layer.parameters(), None) is not None), None)
    if first is None:  # a pool, or an activation
        return made
    layer, stride = layers[first], 1
    if len(asked) == 3 == len(emits) and min(asked[1:]) >= 2 * max(1, min(emits[1:])):
        stride = 2
    if isinstance(layer, Resizable):
        layers[first] = layer.resized(asked[0], stride)
    elif isinstance(layer, nn.Conv2d) and len(asked) == 3 and layer.groups == 1:
        own = any(isinstance(each, POOLS) for each in layers)
        layers[first] = _conv(layer, asked[0], layer.stride if own else (stride, stride))
    elif isinstance(layer, nn.Linear):
        inputs = emitted(nn.Sequential(*layers[:first]), asked)[-1]
        layers[first] = nn.Linear(inputs, layer.out_features, layer.bias is not None)
    else:
        raise UserError(
            f"a new {type(layer).__name__} is needed for inputs {list(asked)}, and it can be built only for those that "
            "it reads in the model: choose another auxiliary network, or a model of residual blocks, convolutions or "
            "linear layers"
        )
    return nn.Sequential(*layers) if isinstance(made, nn.Sequential) else layers[0]


def _conv(layer: nn.Conv2d, inputs: int, stride: tuple[int, ...]) -> nn.Conv2d:
    bias = layer.bias is not None
    size, padding, dilation = layer.kernel_size, layer.padding, layer.dilation
    return nn.Conv2d(inputs, layer.out_channels, size, stride, padding, dilation, bias=bias)  # type: ignore[arg-type]


def emitted(module: nn.Module, size: Size) -> Size:
    """What a module emits for [B, *size], by a run in which nothing is computed."""
    with torch.no_grad():
        return tuple(copy.deepcopy(module).eval().to("meta")(torch.zeros(1, *size, device="meta")).shape[1:])
