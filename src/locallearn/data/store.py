"""Raw samples in a fixed order. A store knows nothing of labels, splits, seeds or augmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from locallearn.accelerator import sent
from locallearn.errors import UserError
from locallearn.inputs import Inputs

Size: TypeAlias = tuple[int, ...]
"""A shape without the batch: (C, H, W) for images, (D,) for vectors."""


CHECKED = 1024
"""Samples that are looked at together."""


class Store(Protocol):
    """N raw samples: uint8 images [C, H, W], or float32 of any shape or token numbers (int64), used as they are.

    A store may have `inputs`, which says what is packed into its samples where they have several tensors, a method
    `identity() -> bytes` that changes where its samples do (see `fingerprint`), a method `drawing(seed) -> Store` if
    reading it draws random numbers, and `looks = True` if it checks what it reads.
    """

    @property
    def image(self) -> Size:
        """The shape of one sample."""

    @property
    def dtype(self) -> torch.dtype:
        """uint8, float32 or int64."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> Store:
        """The store that hands out its samples on `device`."""

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """The samples at the CPU indices `order` [M], in runs of `batch_size`: [B, *image], the last may be short."""


def check_samples(what: str, store: Store, image: Size) -> None:
    """Refuse samples that would train a wrong model: of another type or shape, or not finite. Raises UserError."""
    kind = f"{str(store.dtype).removeprefix('torch.')} {list(store.image)}"
    if store.dtype not in (torch.uint8, torch.float32, torch.int64):
        raise UserError(f"the {what} are {kind}; they must be uint8 images, float32, or int64 token numbers")
    if store.dtype == torch.uint8 and len(store.image) != 3:
        raise UserError(f"the {what} are {kind}; images must be uint8 [channels, height, width]")
    if store.image != image:
        raise UserError(f"the {what} are {kind}; they must be {list(image)}, as the training samples are")
    if store.dtype != torch.float32 or getattr(store, "looks", False):
        return
    for start, samples in enumerate(store.take(torch.arange(len(store)), CHECKED)):
        bad = (~samples.isfinite()).flatten(1).any(1).nonzero().flatten()
        if len(bad):
            index = start * CHECKED + int(bad[0])
            raise UserError(
                f"number {index} of the {what} is not finite (a NaN or infinity); correct it or take it out"
            )


class Elsewhere:
    """The samples of a store that another process reads; here is only what is known of them."""

    def __init__(self, store: Store) -> None:
        self.image, self.dtype, self._count = store.image, store.dtype, len(store)

    def __len__(self) -> int:
        return self._count

    def to(self, device: torch.device) -> Elsewhere:
        return self

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """Nothing, [B, 0], for each batch."""
        yield from (torch.empty(len(part), 0) for part in order.split(batch_size))


class Memory:
    """Samples [N, *image] that lie on the device. `origin` gives the identity of what they were read from, where that
    tells them apart from others sooner than their values do; `inputs` what the tensors of a sample are, of several.
    `host` has the same samples on the CPU, if they are changed there one after the other; `nuisance` [N] (CPU) is the
    value of what lies on each image and has nothing to do with its label, where that is known (see `nuisance`)."""

    host: Memory | None = None

    def __init__(
        self,
        samples: Tensor,
        origin: Callable[[], bytes] | None = None,
        inputs: Inputs | None = None,
        nuisance: Tensor | None = None,
    ) -> None:
        self.samples, self.origin, self.inputs, self.nuisance = samples.contiguous(), origin, inputs, nuisance

    def identity(self) -> bytes:
        """A sum over every byte, or what `origin` says."""
        if self.origin is not None:
            return self.origin()
        digest = hashlib.sha256()
        for part in self.samples.split(CHECKED):  # a copy from a GPU is never large
            digest.update(part.cpu().numpy().data)
        return digest.digest()

    @property
    def image(self) -> Size:
        return tuple(self.samples.shape[1:])

    @property
    def dtype(self) -> torch.dtype:
        return self.samples.dtype

    def __len__(self) -> int:
        return len(self.samples)

    def to(self, device: torch.device) -> Memory:
        return Memory(self.samples.to(device), self.origin, self.inputs, self.nuisance)

    def at(self, places: Tensor) -> Memory:
        """Some of the samples."""
        return Memory(self.samples[places], inputs=self.inputs)

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        for part in sent(order, self.samples.device).split(batch_size):  # one copy of the order an epoch, none a step
            yield self.samples.index_select(0, part)
