"""Which axis of a tensor holds its features: known from the layer that made it, never guessed from its shape."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

FIRST = frozenset(
    [f"{kind}{n}d" for n in (1, 2, 3) for kind in ("conv", "conv_transpose", "max_pool", "avg_pool", "lp_pool")]
    + [f"adaptive_{kind}_pool{n}d" for n in (1, 2, 3) for kind in ("avg", "max")]
    + ["boolean_dispatch", "batch_norm", "instance_norm", "group_norm", "local_response_norm", "prelu"]
    + ["interpolate", "upsample", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "unfold"]
)
"""Functions that read and give [B, C, ...]."""
LAST = frozenset(
    ["linear", "bilinear", "layer_norm", "rms_norm", "embedding", "lstm", "gru", "rnn_tanh", "rnn_relu"]
    + ["multi_head_attention_forward", "scaled_dot_product_attention"]
)
"""Functions that read and give [B, ..., D]."""
PASS = frozenset(
    ["relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "hardtanh", "sigmoid", "tanh", "clone"]
    + ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "contiguous", "detach"]
)
"""Functions whose result has the axes of their first argument."""
PRODUCTS = frozenset(["matmul", "__matmul__", "mm"])
SPREAD = 1e-4


def usual(dim: int) -> int:
    """The axis of the features, the batch being axis 0, in what blocks hand on: [B, D], [B, T, D], [B, C, H, W]."""
    return min(dim - 1, 2) if dim <= 3 else 1


class Axes(TorchFunctionMode):
    """While it lasts, follows the features' axis of every tensor: a layer says where it puts them, and whatever comes
    behind is asked what it does to a tensor whose numbers differ along that axis alone.

    A tensor that no layer made is known from the layer that reads it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found = WeakTensorKeyDictionary()

    def of(self, t: Tensor) -> int | None:
        """The axis of a tensor's features, or None if it is not known. A tensor [B, D] has only one."""
        return 1 if t.dim() == 2 else self.found.get(t)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        results = [t for t in _tensors(out) if t.is_floating_point()]
        if results:
            given = [t for t in _tensors((args, kwargs)) if t.is_floating_point()]
            for t, axis in zip(results, self._axes(func, args, kwargs, given, results), strict=True):
                if axis is not None:
                    self.found[t] = axis
                else:
                    self.found.pop(t, None)
        return out

    def _axes(
        self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], given: list[Tensor], results: list[Tensor]
    ) -> list[int | None]:
        """Where the results of a function have their features."""
        name = getattr(func, "__name__", "")
        if name == "layer_norm" and len(kwargs.get("normalized_shape", args[1:2] and args[1])) > 1:
            name = "clone"
        if name in PRODUCTS and given[-1].dim() == 2 and given[-1] not in self.found:  # x W, with a weight W
            name = "linear"
        if name in FIRST or name in LAST:
            if given and given[0] not in self.found and name != "scaled_dot_product_attention":
                self.found[given[0]] = 1 if name in FIRST else given[0].dim() - 1
            return [1 if name in FIRST else t.dim() - 1 for t in results]
        if not any(t in self.found for t in given):
            return [None for _ in results]
        if name in PASS:
            return [self.found.get(given[0]) for _ in results]
        return self._moved(func, args, kwargs, results)

    def _moved(
        self, func: Callable[..., Any], args: tuple, kwargs: Mapping[str, Any], results: list[Tensor]
    ) -> list[int | None]:
        """What a function that is no layer does to the axes, by trying it."""
        try:
            tried = _tensors(func(*self._marked(args), **self._marked(dict(kwargs))))
            axes = [_varies(t) for t in tried if t.is_floating_point()]
        except Exception:  # it minds the numbers
            axes = []
        return axes if len(axes) == len(results) else [None for _ in results]

    def _marked(self, value: Any) -> Any:
        """The same arguments with tensors whose numbers differ along the features' axis alone."""
        if isinstance(value, Tensor) and value.is_floating_point():
            marks = torch.ones_like(value.detach())
            axis = self.found.get(value)
            if axis is not None:
                scale = torch.linspace(0.5, 1.5, value.shape[axis], device=value.device, dtype=value.dtype)
                marks.mul_(scale.view(-1, *[1] * (value.dim() - axis - 1)))
            return marks
        if isinstance(value, tuple) and not hasattr(value, "_fields") or isinstance(value, list):
            return type(value)(self._marked(v) for v in value) if type(value) in (tuple, list) else value
        return {k: self._marked(v) for k, v in value.items()} if type(value) is dict else value


def _tensors(value: Any) -> list[Tensor]:
    return list(_found(value))


def _found(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _found(item)
    elif isinstance(value, dict):
        yield from _found(list(value.values()))


def _varies(t: Tensor) -> int | None:
    """The one axis along which the numbers of a tensor differ."""
    axes = [d for d, size in enumerate(t.shape) if size > 1 and float((t - t.narrow(d, 0, 1)).abs().max()) > SPREAD]
    return axes[0] if len(axes) == 1 else None
