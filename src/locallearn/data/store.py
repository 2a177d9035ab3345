"""Raw samples in a fixed order. A store knows nothing of labels, splits, seeds or augmentation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Size: TypeAlias = tuple[int, ...]
"""A shape without the batch: (C, H, W) for images, (D,) for vectors."""


class Store(Protocol):
    """N raw samples: uint8 images [C, H, W], or float32 of any shape, which are used as they are."""

    @property
    def image(self) -> Size:
        """The shape of one sample."""

    @property
    def dtype(self) -> torch.dtype:
        """uint8 or float32."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Store:
        """The store that hands out its samples on `device`."""

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """The samples at the CPU indices `order` [M], in runs of `batch_size`: [B, *image], the last may be short."""


class Memory:
    """Samples [N, *image] that lie on the device."""

    def __init__(self, samples: Tensor) -> None:
        self.samples = samples.contiguous()

    @property
    def image(self) -> Size:
        return tuple(self.samples.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.samples.dtype

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> Memory:
        return Memory(self.samples.to(device))

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        for part in order.to(self.samples.device).split(batch_size):  # one copy of the order an epoch, none a step
            yield self.samples.index_select(0, part)
