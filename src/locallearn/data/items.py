"""Samples that data sets of Python give: by number from a map-style set, or one batch after another from a loader."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from locallearn.accelerator import sent
from locallearn.data.store import Size
from locallearn.data.values import as_targets, inputs_of, one_tensor, pair
from locallearn.errors import RunError, UserError, described
from locallearn.inputs import Inputs
from locallearn.seeds import mix


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turn whatever a user's data set raises into one sentence."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:
        raise UserError(f"{name} cannot be read: {described(error)}") from error


@contextmanager
def drawing(seed: int) -> Iterator[None]:
    """Python's, NumPy's and PyTorch's global generators at the start of a stream, and afterwards as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


@dataclass(frozen=True)
class _Batches(Dataset[Any]):
    """What workers see: one item is a whole batch, with the seed of its draws. A fault is returned, not raised: raised
    in a worker it would come with its traceback."""

    items: Items

    def __getitem__(self, wanted: tuple[int, list[int]]) -> Tensor | str:
        seed, places = wanted
        try:
            with drawing(seed), reading(self.items.name):
                return torch.stack([self.items.sample(place)[0] for place in places])
        except UserError as error:
            return str(error)


def _as_it_is(batch: Any) -> Any:
    return batch


@dataclass(frozen=True)
class Items:
    """A map-style set. Its own random transforms draw from a stream of each batch, which then depends neither on the
    number of workers nor on where a run was interrupted.

    labels  those of all samples, as they were found before; a sample that has another one when it is read is refused
    image, dtype  of the first sample; all others must be like it
    inputs  what the tensors of a sample are where it has several
    seed    of the draws
    """

    looks = True  # at every sample, when it is read
    dataset: Any
    name: str
    labels: Tensor
    image: Size
    dtype: torch.dtype
    label: str | None = None
    inputs: Inputs | None = None
    workers: int = 0
    device: torch.device | str = "cpu"
    seed: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def to(self, device: torch.device) -> Items:
        return replace(self, device=device)

    def drawing(self, seed: int) -> Items:
        """The set with the draws of another stream, such as that of an epoch."""
        return replace(self, seed=seed)

    def sample(self, place: int) -> tuple[Tensor, Any]:
        """One sample. Raises UserError for one that is not like the others."""
        what = f"sample {place} of {self.name}"
        x, y = pair(self.dataset[place], what, self.label)
        x = one_tensor(x, what, self.inputs)
        if tuple(x.shape) != self.image or x.dtype != self.dtype:
            raise UserError(
                f"{what} is {_kind(x)}, but the first one {_kind_of(self.dtype, self.image)}: give all samples one "
                "size and type, such as by torchvision.transforms.v2.Resize and CenterCrop"
            )
        if x.dtype.is_floating_point and not bool(x.isfinite().all()):
            raise UserError(f"{what} is not finite (a NaN or infinity); correct it or take it out")
        if not torch.equal(as_targets(y, f"the labels of {self.name}"), self.labels[place]):
            before = self.labels[place].tolist()
            raise UserError(f"{what} now has the label {y!r:.60}, but had {before} before: give it the same each time")
        return x, y

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        """See `Store.take`. Raises UserError for the first sample of a batch that cannot be read."""
        wanted = [(mix(self.seed, part[0]), part) for part in (p.tolist() for p in order.split(batch_size))]
        options: Any = {"batch_size": None, "num_workers": self.workers, "collate_fn": _as_it_is}
        generator = torch.Generator()  # without one it would draw from PyTorch's global generator
        for batch in DataLoader(_Batches(self), sampler=wanted, generator=generator, **options):
            if isinstance(batch, str):
                raise UserError(batch)
            yield sent(batch, torch.device(self.device))


class Passes:
    """A loader, or a set that can only be iterated: a pass over it is an epoch, and samples have no numbers.

    size   the samples of a batch, or None where the run decides
    targets  what makes labels those of the task
    seed   of the run: loader, sampler and set draw from streams of (seed, epoch), as far as they draw from generators
           that are known
    """

    looks = True

    def __init__(self, source: Any, name: str, workers: int, device: torch.device) -> None:
        self.source, self.name, self.workers, self.device = source, name, workers, device
        self.targets: Callable[[Tensor], Tensor] = _as_it_is
        own = isinstance(source, DataLoader)
        self.size: int | None = source.batch_size if own else None
        self.inputs: Inputs | None = None
        with drawing(0), reading(name):
            first = next(iter(self._loader(self.size or 1)), None)
            if first is not None:
                self.inputs = inputs_of(pair(first, f"a batch of {name}")[0], f"a batch of {name}", batch=True)
            x, _ = self._pair(first)
        if own and self.size is None:
            self.size = len(x)
        self.image: Size = tuple(x.shape[1:])
        self.dtype = x.dtype
        self.count = self._samples()

    def __len__(self) -> int:
        return self.count

    def to(self, device: torch.device) -> Passes:
        return Passes(self.source, self.name, self.workers, device)

    def take(self, order: Tensor, batch_size: int) -> Iterator[Tensor]:
        raise UserError(
            f"{self.name} is iterated in its own order, but samples are needed by index: give a map-style "
            "dataset (with __getitem__ and __len__)"
        )

    def batches(self, epoch_seed: int, epoch: int, batch_size: int, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The first `steps` batches of a pass. Raises RunError where there are fewer, or one has another size."""
        loader = self._loader(batch_size)
        self._begin(loader, epoch_seed, epoch)
        with drawing(epoch_seed), reading(self.name):
            batches = iter(loader)
        for step in range(steps):
            with drawing(mix(epoch_seed, step)), reading(self.name):
                batch = next(batches, None)
            if batch is None:
                raise RunError(f"{self.name} ended after {step} of {steps} batches of an epoch: correct its __len__")
            x, y = self._pair(batch)
            if len(x) != batch_size or tuple(x.shape[1:]) != self.image or x.dtype != self.dtype:
                first = _kind_of(self.dtype, (batch_size, *self.image))
                raise RunError(f"batch {step} of {self.name} is {_kind(x)}, but the first one was {first}")
            yield sent(x, self.device), sent(y, self.device)

    def _loader(self, batch_size: int) -> Any:
        if isinstance(self.source, DataLoader):
            return self.source
        return DataLoader(self.source, batch_size, num_workers=self.workers, generator=torch.Generator())

    def _begin(self, loader: Any, seed: int, epoch: int) -> None:
        """Put what decides the order at the start of an epoch, as far as it is known."""
        for owner in (loader, loader.sampler, loader.batch_sampler, loader.dataset):
            if isinstance(own := getattr(owner, "generator", None), torch.Generator):
                own.manual_seed(seed)
            if callable(begin := getattr(owner, "set_epoch", None)):
                begin(epoch)

    def _pair(self, batch: Any) -> tuple[Tensor, Tensor]:
        if batch is None:
            raise UserError(f"{self.name} has no samples; a data set needs at least one")
        x, y = pair(batch, f"a batch of {self.name}")
        x = one_tensor(x, f"a batch of {self.name}", self.inputs, batch=True)
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise UserError(f"a batch of {self.name} is not finite (a NaN or infinity); correct it or take it out")
        return x, self.targets(as_targets(y, f"the labels of {self.name}"))

    def _samples(self) -> int:
        """How many samples a pass has. Raises UserError for a source without a length."""
        source, own = self.source, isinstance(self.source, DataLoader)
        try:
            if own and (source.batch_size is None or type(source.batch_sampler).__name__ != "BatchSampler"):
                return len(source) * (self.size or 1)
            several = own and not isinstance(source.dataset, IterableDataset)
            return len(source.sampler if several else source.dataset if own else source)
        except TypeError as error:
            raise UserError(
                f"{self.name} has no length, but an epoch must end: give it a __len__, the number of its samples"
            ) from error


def _kind(x: Tensor) -> str:
    return _kind_of(x.dtype, x.shape)


def _kind_of(dtype: torch.dtype, shape: Sequence[int]) -> str:
    return f"{str(dtype).removeprefix('torch.')} {list(shape)}"
