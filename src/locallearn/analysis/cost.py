"""What a step costs: seconds, and the memory that autograd holds, which is what local learning saves."""

from __future__ import annotations

import time
import weakref
from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from locallearn import accelerator


def now(device: torch.device) -> float:
    """Seconds, once everything that was asked of the device is done."""
    accelerator.synchronise(device)
    return time.perf_counter()


class Flops(TorchDispatchMode):
    """Counts the floating-point operations of matrix products, convolutions and attention while the `with` lasts:
    `total`. As PyTorch's FlopCounterMode, but without hooks on modules, with which a backward pass cannot begin inside
    another, and without PyTorch's compiler, whose import takes as long as PyTorch's."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # PyTorch asks this; what it would do first is to import the compiler

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if count := flop_registry.get(func._overloadpacket):
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


class SavedBytes(saved_tensors_hooks):
    """Counts what autograd keeps for backward while the `with` lasts: `now` bytes, and `peak` at most at one time.

    Every storage counts once however many views of it are kept; parameters (and all else in `ignore`) do not count.
    Slows the step down; meant for measuring, not for training.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        super().__init__(self._pack, lambda saved: saved.tensor)
        self._ignored = {t.untyped_storage().data_ptr() for t in ignore}
        self._kept: Counter[int] = Counter()  # saved tensors of each storage
        self.now = 0
        self.peak = 0

    def __enter__(self) -> SavedBytes:  # type: ignore[override]
        super().__enter__()
        return self

    def _pack(self, tensor: Tensor) -> _Saved:
        saved, storage = _Saved(tensor), tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._ignored:
            self._kept[key] += 1
            if self._kept[key] == 1:
                self.now += size
                self.peak = max(self.peak, self.now)
            weakref.finalize(saved, self._release, key, size)  # autograd drops it when the graph is freed
        return saved

    def _release(self, key: int, size: int) -> None:
        self._kept[key] -= 1
        if not self._kept[key]:
            del self._kept[key]
            self.now -= size


class _Saved:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
