"""The layers of a net one by one, and forward mode: derivatives that travel along with the numbers."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from locallearn.contract import Block
from locallearn.errors import UserError
from locallearn.scaling import unscaled

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


class Layer(NamedTuple):
    """Modules that run one after the other and learn together by exact gradients: one that holds parameters, and a norm
    that follows it.

    rectified  whether max(x, 0) follows, so that no gradient passes where the output is below 0
    """

    modules: Sequence[nn.Module]
    rectified: bool


def layers_of(module: nn.Module) -> Iterator[Layer]:
    """The layers of a net: its outermost modules that hold parameters. What follows one is only known in an
    `nn.Sequential`."""
    if module._parameters:
        yield Layer([module], rectified=False)
        return
    children = list(module.children())
    if type(module) is not nn.Sequential:
        for child in children:
            yield from layers_of(child)
        return
    while children:
        child = children.pop(0)
        if not child._parameters:
            yield from layers_of(child)
            continue
        run = [child]
        while children and isinstance(children[0], NORMS):
            run.append(children.pop(0))
        yield Layer(run, rectified=bool(children) and type(children[0]) is nn.ReLU)


@contextmanager
def watched(net: nn.Module, seen: Callable[[Layer, Tensor | None, Tensor], Tensor]) -> Iterator[None]:
    """While it lasts each layer computes with a graph, and what it gives is replaced by `seen` of the layer, what it
    read (None if that has no place of its own) and what it gave. To be entered without gradients. Raises UserError for
    a layer in two places of different kinds."""
    read: list[Tensor | None] = []

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        read.append(next((t for t in args if isinstance(t, Tensor)), None))
        torch.set_grad_enabled(True)

    def end(layer: Layer, out: Any) -> Any:
        x, parts = read.pop(), (out,) if isinstance(out, Tensor) else out
        parts = tuple(seen(layer, x, part) if isinstance(part, Tensor) else part for part in parts)
        torch.set_grad_enabled(False)
        return parts[0] if isinstance(out, Tensor) else parts

    with ExitStack() as stack:
        found: dict[nn.Module, Layer] = {}
        for layer in layers_of(net):
            first, last = layer.modules[0], layer.modules[-1]
            if found.setdefault(first, layer) != layer:
                raise UserError(
                    f"a {type(first).__name__} is used in two places and followed by different modules, which "
                    "strategy=forward_gradient cannot tell apart: use two, or choose another strategy"
                )
            if found[first] is not layer:
                continue
            stack.callback(first.register_forward_pre_hook(begin).remove)
            stack.callback(last.register_forward_hook(lambda _, args, out, layer=layer: end(layer, out)).remove)
        yield


@contextmanager
def forward_mode(block: Block, x: Tensor) -> Iterator[None]:
    """Where tensors like x carry derivatives along. Raises UserError for an operation that has no forward mode."""
    _loaded()
    try:
        with forward_ad.dual_level(), unscaled(x), sdpa_kernel(SDPBackend.MATH):
            yield
    except NotImplementedError as error:
        if "forward" not in str(error) and "jvp" not in str(error):
            raise
        why = str(error).partition(" because")[0].partition("\n")[0]
        raise UserError(
            f"strategy=forward_gradient needs a forward mode of all that block {block.spec.index} computes, and "
            f"PyTorch has none ({why}): choose another model, or another strategy, such as strategy=dgl"
        ) from error


@cache
def _loaded() -> None:
    """PyTorch loads the derivatives of some operations at the first of them, and warns of its own way to do so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("torch._decomp.decompositions_for_jvp")
