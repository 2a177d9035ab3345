"""How much memory autograd holds: the part of a step that local learning saves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import TracebackType

import torch
from torch import Tensor


class SavedBytes:
    """Counts what autograd keeps for backward while the `with` lasts: `peak` is the most bytes held at one time.

    Every storage counts once however many views of it are kept; parameters (and all else in `ignore`) do not count.
    Slows the step down; meant for measuring, not for training.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self._ignored = {t.untyped_storage().data_ptr() for t in ignore}
        self._held: Counter[int] = Counter()
        self._bytes: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _unpack)
        self.now = 0
        self.peak = 0

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._hooks.__exit__(kind, error, tb)

    def _pack(self, tensor: Tensor) -> _Held:
        return _Held(tensor, self)

    def _take(self, key: int, size: int) -> None:
        if key in self._ignored:
            return
        self._held[key] += 1
        if self._held[key] == 1:
            self._bytes[key] = size
            self.now += size
            self.peak = max(self.peak, self.now)

    def _release(self, key: int) -> None:
        if key in self._ignored:
            return
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self.now -= self._bytes.pop(key)


class _Held:
    """A saved tensor; autograd drops it when the graph is freed."""

    def __init__(self, tensor: Tensor, owner: SavedBytes) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self._owner, self._key = tensor, owner, storage.data_ptr()
        owner._take(self._key, storage.nbytes())

    def __del__(self) -> None:
        self._owner._release(self._key)


def _unpack(held: _Held) -> Tensor:
    return held.tensor
