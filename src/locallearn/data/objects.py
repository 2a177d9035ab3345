"""Data that a script or a notebook has: tensors, arrays, data sets, loaders, or a mapping of these to the parts."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from locallearn.data.asked import asked, describe_inputs, fifth, targets
from locallearn.data.augment import Augment
from locallearn.data.dataset import Data, Split
from locallearn.data.items import Items, Passes, drawing, reading
from locallearn.data.listed import class_names, label_column, labels_of, labels_read, name_of
from locallearn.data.normalise import FIXED, Normalisation, Normaliser
from locallearn.data.passed import PassedData
from locallearn.data.source import PIXELS, DataSource, Raw, RawSplit, whole
from locallearn.data.store import Memory, Store, check_samples
from locallearn.data.values import as_targets, inputs_of, one_tensor, pair
from locallearn.errors import UserError
from locallearn.inputs import several
from locallearn.task import CLASSIFICATION

PARTS = ("train", "validation", "test")
KINDS = (
    "a pair (inputs, labels) of tensors or arrays, a Dataset, a DataLoader, or a mapping of train, validation and test "
    "to these"
)
CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ObjectSource(DataSource):
    """What was given as `data=` from Python. Without a test part a fixed fifth, of classes a fifth of each, is the
    test set.

    parts    the sets by part
    task     what is asked: the name of a task, or one with options. Numbers that are asked for are standardised, unless
             the task says how
    workers  processes that read samples of a set ahead of the training step
    """

    name: ClassVar[str] = "objects"
    measured: ClassVar[int | None] = 10_000

    task: Any = CLASSIFICATION
    workers: Annotated[int, Ge(0)] = 0
    parts: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise UserError(
                "data=_objects stands for what Python gives, as in locallearn.train(data=...): choose a set"
            )

    def unread(self) -> Mapping[str, str]:
        unread = {**super().unread(), "root": "data=NAME that has files"}
        if isinstance(self.parts["train"], DataLoader):
            unread["workers"] = "data=DATASET; a DataLoader has its own num_workers"
        if self._passes:
            of_numbers = ("validation", "fraction", "labelled", "label_noise", "smoothing", "class_weights")
            names = (*of_numbers, *PIXELS, "deficit", "nuisance")
            unread |= dict.fromkeys(names, "data=DATASET with __getitem__, whose samples have numbers")
        return unread

    @property
    def _passes(self) -> bool:
        """Whether the training part can only be iterated, in an order of its own."""
        return isinstance(_opened(self.parts["train"], train=True), DataLoader | IterableDataset)

    def place(self) -> str:
        return "given from Python"

    def read(self, device: torch.device) -> Raw:
        parts = {name: self._part(given, name) for name, given in self.parts.items()}
        for name, part in parts.items():
            self._check(name, part, parts["train"].images)
        task = asked(self.task, parts["train"].labels)
        parts = {name: RawSplit(part.images, targets(task, part.labels)) for name, part in parts.items()}
        classes = self._classes(parts.values())
        train, test = parts["train"], parts.get("test")
        if test is None:
            train, test = (_chosen(train, places) for places in fifth(train.labels, task))
        return Raw(classes, train, test, parts.get("validation"), task=task)

    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> Data:
        if not self._passes:
            data = super().load(seed, device, normalisation)
            describe_inputs(data)
            return data
        if "test" not in self.parts:
            raise UserError(
                f"{name_of(self.parts['train'])} is iterated in its own order, so no test set can be drawn from it: "
                'give data={"train": ..., "test": ...}'
            )
        store = Passes(self.parts["train"], name_of(self.parts["train"]), self.workers, device)
        rest = {name: self._part(given, name) for name, given in self.parts.items() if name != "train"}
        task = asked(self.task, None)
        store.targets = functools.partial(targets, task)
        for name, part in rest.items():
            self._check(name, part, store)
            rest[name] = RawSplit(part.images, targets(task, part.labels))
            check_samples(f"{name} samples of data={self.name}", part.images, store.image)
        unknown = torch.full((len(store),), -1, device=device)
        train = Split(store, torch.arange(len(store)), unknown)
        test, validation = (whole(rest[name], device) if name in rest else None for name in ("test", "validation"))
        assert test is not None
        splits = (train, validation or test.at(torch.arange(0)), test)
        normaliser = Normaliser.of(normalisation, device) if normalisation else None
        if store.dtype == torch.uint8 and normaliser is None:
            if self.normalise not in FIXED:
                raise UserError(
                    f"{store.name} gives pixels, whose mean is not known before they are read: give floats, or choose "
                    "data.normalise=symmetric or unit"
                )
            normaliser = Normaliser.fixed(self.normalise, store.image[0], device)
        data = PassedData(self.name, self._classes(rest.values()), splits, seed, Augment(), normaliser, task=task)
        describe_inputs(data)
        return data

    def _check(self, name: str, part: RawSplit, train: Store) -> None:
        """Refuse labels for other samples, and samples of another type than those that are trained on."""
        if len(part.labels) != len(part.images):
            raise UserError(
                f"the {name} part has {len(part.images)} samples but {len(part.labels)} labels; give each sample one"
            )
        theirs, ours = (getattr(store, "inputs", None) for store in (part.images, train))
        if theirs != ours:
            shown = [each or "one tensor" for each in (theirs, ours)]
            raise UserError(
                f"a sample of the {name} part is {shown[0]} and of the training part {shown[1]}: give the same for both"
            )
        if part.images.dtype != train.dtype:
            kinds = [str(store.dtype).removeprefix("torch.") for store in (part.images, train)]
            raise UserError(
                f"the {name} samples are {kinds[0]} and the training samples {kinds[1]}: give both as one type"
            )

    def _part(self, given: Any, part: str) -> RawSplit:
        """The raw samples and labels of one part. Raises UserError for a part without samples."""
        workers = given.num_workers if isinstance(given, DataLoader) else self.workers
        given, what = _opened(given, part == "train"), f"data[{part!r}]"
        if isinstance(given, TensorDataset) and len(given.tensors) == 2:
            given = given.tensors
        if _is_pair(given):
            return _in_memory(given[0], given[1], f"the inputs of {what}", f"the labels of {what}", what)
        if isinstance(given, DataLoader | IterableDataset):
            return self._read_once(given)
        if not len(given):
            raise UserError(f"{name_of(given)} has no samples; a data set needs at least one")
        label = label_column(given)
        with drawing(0), reading(name_of(given)):
            x, _ = pair(given[0], f"sample 0 of {name_of(given)}", label)
        inputs = inputs_of(x, f"sample 0 of {name_of(given)}")
        x = one_tensor(x, f"sample 0 of {name_of(given)}", inputs)
        _pixels(x[None], what)
        labels = labels_of(given)
        known = labels is not None and len(labels) == len(given)
        targets = labels if labels is not None and known else labels_read(given, label, workers)
        return RawSplit(Items(given, name_of(given), targets, tuple(x.shape), x.dtype, label, inputs, workers), targets)

    def _read_once(self, given: Any) -> RawSplit:
        """A validation or test part that can only be iterated is kept in memory."""
        loader = given if isinstance(given, DataLoader) else DataLoader(given, 64, num_workers=self.workers)
        with drawing(0), reading(name_of(given)):
            batches = [pair(batch, f"a batch of {name_of(given)}") for batch in loader]
        if not batches:
            raise UserError(f"{name_of(given)} has no samples; a data set needs at least one")
        batch = f"a batch of {name_of(given)}"
        inputs = inputs_of(batches[0][0], batch, batch=True)
        samples = torch.cat([one_tensor(x, batch, inputs, batch=True) for x, _ in batches])
        labels = torch.cat([as_targets(y, f"the labels of {name_of(given)}") for _, y in batches])
        return RawSplit(Memory(samples, inputs=inputs), labels)

    def _classes(self, parts: Collection[RawSplit]) -> tuple[str, ...]:
        """The names of the classes: those that a set has, else numbers up to the highest label."""
        for given in self.parts.values():
            if names := class_names(given):
                return names
        labels = next(iter(parts)).labels
        if labels.is_floating_point():  # a number for each output
            return tuple(map(str, range(labels.shape[1] if labels.dim() > 1 else 1)))
        highest = max((int(part.labels.max()) for part in parts if part.labels.numel()), default=0)
        return tuple(map(str, range(highest + 1)))


def by_part(given: Any) -> dict[str, Any]:
    """What `data=` was given as, by part. Raises UserError for what is not data."""
    if isinstance(given, Mapping):
        if unknown := [str(name) for name in given if name not in PARTS]:
            raise UserError(f"data has a part {unknown[0]!r}: its parts must be train, validation and test")
        if "train" not in given:
            raise UserError('data has no part "train": give one; its parts are train, validation and test')
        parts = dict(given)
    else:
        parts = {"train": given}
    for name, part in parts.items():
        gone_through = isinstance(part, DataLoader | IterableDataset)
        if not gone_through and not _is_pair(part) and not (hasattr(part, "__getitem__") and hasattr(part, "__len__")):
            raise UserError(f"data: {name} is a {type(part).__name__}; it must be {KINDS}")
    return parts


def batch_of(given: Any) -> int | None:
    """The batch size that a loader has been told."""
    train = by_part(given)["train"]
    return train.batch_size if isinstance(train, DataLoader) else None


def _opened(given: Any, train: bool) -> Any:
    """A loader that only shuffles and stacks the samples of a map-style set is that set: the run has an order of its
    own, from which it can go on. One that keeps the order of the set is it only where nothing is trained on it."""
    if not isinstance(given, DataLoader) or isinstance(given.dataset, IterableDataset):
        return given
    sampler, size = given.sampler, len(given.dataset) if hasattr(given.dataset, "__len__") else -1
    shuffled = isinstance(sampler, RandomSampler) and not sampler.replacement and len(sampler) == size
    usual = type(given.batch_sampler).__name__ == "BatchSampler" and given.collate_fn is default_collate
    return given.dataset if usual and (shuffled or (not train and isinstance(sampler, SequentialSampler))) else given


def kinds(given: Any) -> list[Any]:
    """The objects by which data are known, the training set first."""
    return [part.dataset if isinstance(part, DataLoader) else part for part in by_part(given).values()]


def _chosen(part: RawSplit, places: Tensor) -> RawSplit:
    """Some of the samples of a part, by their numbers."""
    if isinstance(part.images, Memory):
        return RawSplit(part.images.at(places), part.labels[places])
    assert isinstance(part.images, Items)
    subset = Subset(part.images.dataset, places.tolist())
    return RawSplit(replace(part.images, dataset=subset, labels=part.images.labels[places]), part.labels[places])


def _is_pair(given: Any) -> bool:
    if not isinstance(given, list | tuple) or len(given) != 2 or not hasattr(given[1], "shape"):
        return False
    return hasattr(given[0], "shape") or several(given[0])


def _in_memory(x: Any, y: Any, inputs: str, labels: str, what: str) -> RawSplit:
    """Tensors of samples and their labels."""
    kinds = inputs_of(x, inputs, batch=True)
    samples = _pixels(one_tensor(x, inputs, kinds, batch=True), what)
    return RawSplit(Memory(samples, inputs=kinds), as_targets(y, labels))


def _pixels(samples: Tensor, what: str) -> Tensor:
    """Samples [N, ...]; grey pictures without a channel get one. Raises UserError for pictures with the channels last,
    which would be trained on as if they were one line high."""
    if samples.dtype != torch.uint8:
        return samples
    if samples.dim() == 3:
        return samples[:, None]
    if samples.dim() == 4 and samples.shape[3] in CHANNELS and samples.shape[1] not in CHANNELS:
        raise UserError(
            f"{what} has pictures {list(samples.shape[1:])}, but a model reads [channels, height, width]: use "
            "tensor.permute(0, 3, 1, 2), or array.transpose(0, 3, 1, 2)"
        )
    return samples
