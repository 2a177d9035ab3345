"""Which axis of a tensor holds its features: known from the layer that made it, never guessed from its shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

_BY_DIMENSION = ("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
_NORMS = ("batch_norm", "instance_norm", "group_norm", "local_response_norm")
_GRIDS = ("interpolate", "pixel_shuffle", "pixel_unshuffle")
FIRST = frozenset([*(f"{kind}{n}d" for kind in _BY_DIMENSION for n in (1, 2, 3)), *_NORMS, *_GRIDS])
"""Functions that read and give [B, C, ...]."""
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")
LAST = frozenset(["linear", "bilinear", "layer_norm", "rms_norm", "multi_head_attention_forward", *_RECURRENT])
"""Functions that read and give [B, ..., D]."""
GIVE_LAST = frozenset(["embedding", "scaled_dot_product_attention"])
JOINS = frozenset(["cat", "concat", "concatenate"])
PRODUCTS = frozenset(["matmul", "__matmul__", "mm"])
_ACTIVATIONS = ("relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardtanh", "sigmoid")
_DROPOUTS = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout")
PASS = frozenset([*_ACTIVATIONS, "tanh", *_DROPOUTS, "pad", "clone", "contiguous", "detach"])
"""Functions whose result has the axes of their first argument: the common ones, and those that draw or fill in."""
SPREAD = 1e-4

Place: TypeAlias = int | Tensor | None
"""The axis of a tensor's features; where they lie across several, numbers that tell them apart; or None."""


def usual(dim: int) -> int:
    """The axis of the features, the batch being axis 0, in what blocks hand on: [B, D], [B, T, D], [B, C, H, W]."""
    return dim - 1 if dim <= 3 else 1


class Axes(TorchFunctionMode):
    """While it lasts, follows the features' axis of every tensor: a layer says where it puts them, and whatever comes
    behind is asked what it does to a tensor whose numbers differ along that axis alone.

    A tensor that no layer made is known from the layer that reads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places = WeakTensorKeyDictionary()
        self._origins = WeakTensorKeyDictionary()  # of a tensor of unknown place the only one that it was made of

    def of(self, t: Tensor) -> int | None:
        """The axis of a tensor's features, or None if it is not known. A tensor [B, D] has only one."""
        place = 1 if t.dim() == 2 else self._places.get(t)
        return place if isinstance(place, int) else None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = _floats(out)
        if results:
            for t, place in zip(results, self._find(func, args, kwargs, results), strict=True):
                if place is not None:
                    self._places[t] = place
                else:
                    self._places.pop(t, None)
        return out

    def _find(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], results: list[Tensor]) -> list:
        """The place of the features in each result of a function."""
        name, tensors = getattr(func, "__name__", ""), _floats((args, kwargs))
        if name == "layer_norm" and len(kwargs.get("normalized_shape") or args[1]) > 1:
            name = "clone"  # over maps [C, H, W], of which it does not say which is which
        if name in PRODUCTS and tensors[-1].dim() == 2 and tensors[-1] not in self._places:  # x W, with a weight W
            name = "linear"
        if name in FIRST or name in LAST:
            self._read(tensors[:1], first=name in FIRST)
            return [1 if name in FIRST else t.dim() - 1 for t in results]
        if name in GIVE_LAST:
            return [t.dim() - 1 for t in results]
        known = sum(t in self._places for t in tensors)
        if known and name in PASS:
            return [self._places.get(tensors[0]) for _ in results]
        if known and name in JOINS:  # with a class token, say, of which nobody knows
            places = [self._places[t] for t in tensors if t in self._places]
            return [places[0] if all(type(p) is int and p == places[0] for p in places) else None]
        if not known and len(tensors) == len(results) == 1 and tensors[0].shape == results[0].shape:
            self._origins[results[0]] = tensors[0]
        tried = self._tried(func, args, kwargs, several=known == 1) if known else []
        return tried if len(tried) == len(results) else [None for _ in results]

    def _read(self, tensors: list[Tensor], first: bool) -> None:
        """A layer reads a tensor: if no layer has made it, this one tells."""
        t = tensors[0] if tensors else None
        while t is not None and t not in self._places:
            self._places[t] = 1 if first else t.dim() - 1
            t = self._origins.get(t)

    def _tried(self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], several: bool) -> list[Place]:
        """What a function that is no layer makes of marked arguments."""
        try:
            return [_place(t, several) for t in _floats(func(*self._marked(args), **self._marked(dict(kwargs))))]
        except Exception:  # it minds the numbers
            return []

    def _marked(self, value: Any) -> Any:
        """The same arguments with tensors whose numbers differ along the features' axis alone."""
        if isinstance(value, Tensor) and value.is_floating_point():
            marks, place = torch.ones_like(value.detach()), self._places.get(value)
            if isinstance(place, int):
                place = torch.linspace(0.5, 1.5, value.shape[place]).view(-1, *[1] * (value.dim() - place - 1))
            return marks if place is None else marks.mul_(place.to(marks))
        if type(value) in (tuple, list):
            return type(value)(self._marked(v) for v in value)
        return {k: self._marked(v) for k, v in value.items()} if type(value) is dict else value


def _floats(value: Any) -> list[Tensor]:
    """The tensors of real numbers in a value, tuples, lists and mappings included."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [t for item in inside for t in _floats(item)]


def _place(marks: Tensor, several: bool) -> Place:
    """Where marks differ. If they differ along several axes they are kept, or mean nothing."""
    sides = [d for d, size in enumerate(marks.shape) if size > 1]
    axes = [d for d in sides if bool((marks - marks.narrow(d, 0, 1)).abs().max() > SPREAD)]
    return axes[0] if len(axes) == 1 else marks if several and axes else None
