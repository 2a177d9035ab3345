"""Data whose training part has an order of its own, in which samples have no numbers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from locallearn.data.dataset import Data, Split
from locallearn.data.items import Passes
from locallearn.errors import UserError
from locallearn.seeds import derive


class PassedData(Data):
    """`Data` whose training part can only be iterated. A resumed run iterates its epoch from the beginning again, and
    leaves out the steps that are done."""

    def _passes(self) -> Passes:
        assert isinstance(self.train.store, Passes)
        return self.train.store

    def batch(self, batch_size: int) -> int:
        size = self._passes().size
        if size is not None and size != batch_size:
            raise UserError(
                f"{self._passes().name} gives batches of {size}, and batch_size={batch_size}: choose batch_size={size}"
            )
        return super().batch(batch_size)

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        size = min(self._passes().size or batch_size, len(self.train))
        given = self._passes().batches(derive(self.seed, "order", epoch), epoch, size, self.steps(size))
        parts = (
            part
            for inputs, labels in given
            for part in zip(*(t.split(batch_size) for t in (inputs, labels)), strict=True)
        )
        for step, (inputs, labels) in enumerate(parts):
            if step >= start:
                yield self._normalise(inputs), labels

    def evaluation(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        if split.store is self.train.store:
            yield from self.batches(0, self._passes().size or batch_size)
        else:
            yield from super().evaluation(split, batch_size)
