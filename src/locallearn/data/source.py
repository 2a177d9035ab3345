"""What every data set can be told, and how its raw parts become a `Data`.

A set is one frozen dataclass: its fields are the keys of its yaml, and `read` is all it has to write.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge, Interval
from torch import Tensor

from locallearn import paths
from locallearn.data.augment import DEFICITS, Augment, Deficit
from locallearn.data.dataset import Data, Split
from locallearn.data.distortion import POLICIES, UNDISTORTED, Distortion
from locallearn.data.levels import KnownLevel
from locallearn.data.mixing import Mixing
from locallearn.data.normalise import NORMALISATIONS, Normalisation, normaliser
from locallearn.data.nuisance import NUISANCES, with_nuisance
from locallearn.data.split import check_classes, check_labels, noisy, stratified
from locallearn.data.store import Memory, Store, check_samples
from locallearn.errors import UserError
from locallearn.options import OneOf, Options
from locallearn.seeds import generator
from locallearn.task import CLASSES, DETECTION, SEGMENTATION, Classification, Task

MOVING = ("resized_crop", "policy")
PIXELS = ("crop", "flip", "cutout", "resized_crop", "policy", "jitter", "blur", "mixup", "cutmix")
"""Options that change training images."""
OF_CLASSES = ("labelled", "label_noise", "smoothing", "class_weights", "mixup", "cutmix", "deficit", "nuisance")
"""Options that need classes."""


class RawSplit(NamedTuple):
    """Raw samples and their labels, int64 [N] (or targets [N, ...], as the task has them) on the CPU."""

    images: Store
    labels: Tensor


class Raw(NamedTuple):
    """What a set reads. It must not depend on the seed of a run; `validation` only if the set brings its own.
    `left_out` says what was found and is not part of it, `task` what is asked if not a class, `levels` is as in
    `Data`."""

    classes: tuple[str, ...]
    train: RawSplit
    test: RawSplit
    validation: RawSplit | None = None
    left_out: str = ""
    task: Task = CLASSES
    levels: Mapping[str, KnownLevel] = {}


def with_fixed_test(name: str, classes: tuple[str, ...], samples: Tensor, labels: Tensor, test: int) -> Raw:
    """A set without a test part of its own: `test` of its samples [N, ...] with labels [N] are drawn for it, class by
    class, the same ones whatever the seed of a run."""
    train, rest = stratified(labels, len(labels) - test, generator(0, name, "test"))
    return Raw(classes, RawSplit(Memory(samples[train]), labels[train]), RawSplit(Memory(samples[rest]), labels[rest]))


@dataclass(frozen=True)
class Source(Options, ABC):
    """Anything that can be loaded as a set, with the options that every set has.

    root         folder of the files; null: the environment variable LOCALLEARN_DATA, or ~/.cache/locallearn
    validation   share of the training set that is held out
    fraction     share of the rest that is trained on
    """

    _group = "data"

    name: ClassVar[str]
    verified: ClassVar[str] = "nothing to check"  # or what `read` insists on

    root: str | None = None
    validation: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    fraction: Annotated[float, Interval(gt=0, le=1)] = 1.0

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        return {}

    @abstractmethod
    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> Data:
        """Read the set and put it on a device.

        Args:
            seed: of the run, from which the splits, the label noise and every batch follow, but not the test set.
            device: where samples in memory lie, and streamed ones go.
            normalisation: that of a trained model, instead of the one of this training split.

        Raises UserError for files that are missing or wrong and for options that do not fit.
        """

    def verify(self) -> str:
        """Look for faults that `load` may not see; what was checked, in words. Raises UserError."""
        return self.verified

    def place(self) -> str:
        """Where the files lie, for a report."""
        return str(self.folder())

    def folder(self) -> Path:
        text = self.root or os.environ.get("LOCALLEARN_DATA") or "~/.cache/locallearn"
        try:
            return paths.expanded(text)
        except UserError as error:
            raise UserError(f"data.root={error}") from None


@dataclass(frozen=True)
class DataSource(Source):
    """A set of samples with a label each (or with other targets, see `Raw.task`): a subclass has to write only `read`.

    validation   share of the training set that is held out, class by class
    fraction     share of the rest that is trained on, at least one image of each class
    labelled     training images that keep their label, as many of each class; None: all. The others stay, without one,
                 where the objective learns from such images, and are else left out: in a supervised loss they count
                 nothing, and would only thin out the batches
    label_noise  share of the training labels drawn again, uniformly over all classes; validation and test stay clean
    smoothing    see `Classification`
    class_weights  of the classes in the training loss: a number for each, or `balanced`, N / (classes N_c)
    normalise    standard (per channel, mean 0 and deviation 1 over the training split), unit ([0, 1]),
                 symmetric ([-1, 1]) or imagenet (the published mean and deviation of ImageNet, which pretrained weights
                 expect)
    crop, flip, cutout   see `Augment`
    resized_crop, policy, jitter, blur   see `Distortion`
    mixup, cutmix   see `Mixing`
    deficit, deficit_from, deficit_until   see `Deficit`; deficit_length of epochs may stand in place of deficit_until
    nuisance     see `nuisance.disturbed`: on all images, those of the test set included
    """

    measured: ClassVar[int | None] = None  # at most so many images are read to find mean and deviation

    labelled: Annotated[int, Ge(1)] | None = None
    label_noise: Annotated[float, Interval(ge=0, le=1)] = 0.0
    smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    class_weights: list[Annotated[float, Ge(0)]] | Literal["balanced"] | None = None
    normalise: Annotated[str, OneOf(NORMALISATIONS)] = "standard"
    crop: Annotated[int, Ge(0)] = 0
    flip: bool = False
    cutout: Annotated[int, Ge(0)] = 0
    resized_crop: Annotated[float, Interval(ge=0, le=1)] = 0.0
    policy: Annotated[str, OneOf(POLICIES)] | None = None
    jitter: Annotated[float, Interval(ge=0, le=2.5)] = 0.0
    blur: Annotated[float, Interval(ge=0, le=1)] = 0.0
    mixup: Annotated[float, Ge(0)] = 0.0
    cutmix: Annotated[float, Ge(0)] = 0.0
    deficit: Annotated[str, OneOf(DEFICITS)] | None = None
    deficit_from: Annotated[int, Ge(0)] = 0
    deficit_until: int | None = None
    deficit_length: Annotated[int, Ge(0)] | None = None
    nuisance: Annotated[str, OneOf(NUISANCES)] | None = None

    def unread(self) -> Mapping[str, str]:
        ends = ("deficit_from", "deficit_until", "deficit_length")
        return {} if self.deficit else dict.fromkeys(ends, "data.deficit=blur, flip, permutation or noise")

    def __post_init__(self) -> None:
        super().__post_init__()
        until, least, length = self.deficit_until, self.deficit_from, self.deficit_length
        require(until is None or until >= least, "deficit_until", until, f"at least data.deficit_from={least}, or null")
        require(None in (until, length), "deficit_length", length, f"null beside data.deficit_until={until}")

    @abstractmethod
    def read(self, device: torch.device) -> Raw:
        """The raw parts; stores may lie anywhere, `load` moves them to `device`. Raises UserError."""

    def load(self, seed: int, device: torch.device, normalisation: Normalisation | None = None) -> Data:
        raw = self.read(device)
        of_classes = isinstance(raw.task, Classification)
        for name, part in (("training", raw.train), ("test", raw.test), ("validation", raw.validation)):
            if part is not None:
                check_samples(f"{name} samples of data={self.name}", part.images, raw.train.images.image)
                if of_classes:
                    check_labels(name, part.labels, len(part.images), raw.classes)
                else:
                    raw.task.checked(part.labels, len(part.images), len(raw.classes))
        if of_classes:
            check_classes(raw.train.labels, raw.classes)
        else:
            self._refuse_class_options(raw.task)
        raw = self._disturbed(raw, seed)
        augment = self._augment(raw.train.images)
        images = raw.train.images
        on_device = images.to(device)
        if augment.distortion != UNDISTORTED and isinstance(images, Memory) and isinstance(on_device, Memory):
            on_device.host = images
        classes = raw.train.labels if of_classes else torch.zeros(len(raw.train.images), dtype=torch.int64)
        index, held_out = self._divide(classes, seed, self.validation if raw.validation is None else 0.0)
        labels = raw.train.labels[index]
        if self.label_noise:
            labels = noisy(labels, self.label_noise, len(raw.classes), generator(seed, "label_noise"))
        train = Split(on_device, index, labels.to(device))
        validation = Split(on_device, held_out, raw.train.labels[held_out].to(device))
        if raw.validation is not None:
            validation = whole(raw.validation, device)
        splits = (train, validation, whole(raw.test, device))
        end = self.deficit_until if self.deficit_length is None else self.deficit_from + self.deficit_length
        deficit = Deficit(self.deficit, self.deficit_from, end)
        of_pixels = normaliser(self.name, self.normalise, on_device, index, device, normalisation, self.measured)
        data = Data(self.name, raw.classes, splits, seed, augment, of_pixels, deficit, raw.left_out, raw.task)
        data.levels = raw.levels
        if self.labelled is not None:
            data.keep_labels(self.labelled)
        if of_classes:
            data.task = self._classification(raw.task, data.train.labels.cpu(), raw.classes)
        return data

    def _disturbed(self, raw: Raw, seed: int) -> Raw:
        """All parts under the nuisance, that of the test set under every seed the same."""
        for name, own in (("train", seed), ("validation", 0), ("test", 0)):
            part: RawSplit | None = getattr(raw, name)
            if self.nuisance is not None and part is not None:
                images = with_nuisance(self.name, part.images, self.nuisance, generator(own, "nuisance", name))
                raw = raw._replace(**{name: RawSplit(images, part.labels)})  # type: ignore[arg-type]
        return raw

    def _classification(self, given: Task, labels: Tensor, classes: tuple[str, ...]) -> Task:
        """The task with the options of this set, unless the given one has its own; training has `labels` [N]."""
        if given != CLASSES:
            names = ("smoothing", "class_weights", "mixup", "cutmix")
            if both := next((name for name in names if getattr(self, name)), None):
                raise UserError(f"data.{both} and a task with options of its own conflict: give one of them")
            return given
        weights = self.class_weights or ()
        if weights == "balanced":
            counts = torch.bincount(labels, minlength=len(classes)).double()
            weights = (len(labels) / (len(classes) * counts.clamp(min=1))).tolist()
        count = len(classes)
        require(len(weights) in (0, count), "class_weights", weights, f"{count} numbers, one for each class")
        return Classification(self.smoothing, tuple(map(float, weights)), mixed=bool(self.mixup or self.cutmix))

    def _refuse_class_options(self, task: Task) -> None:
        moves = {SEGMENTATION: MOVING, DETECTION: ("crop", "flip", "cutout", *MOVING)}
        masks = moves.get(task.kind, ())  # they move pixels
        for name in (*OF_CLASSES, *masks):
            if value := getattr(self, name):
                reason = "moves pixels away from their masks or boxes" if name in masks else "is for classes"
                asks = f"data={self.name} asks for {task.wanted}"
                raise UserError(f"data.{name}={value} {reason}, and {asks}: leave it out")

    def _divide(self, labels: Tensor, seed: int, share: float) -> tuple[Tensor, Tensor]:
        """Places of the training and of the validation samples among labels [N]: validation first, then fraction."""
        index, held_out = torch.arange(len(labels)), torch.arange(0)
        if share:
            keep = len(labels) - max(1, round(share * len(labels)))
            index, held_out = stratified(labels, keep, generator(seed, "split"))
            if not len(held_out):
                raise UserError(
                    f"data.validation={share}: {len(labels)} training images are too few to hold any out and keep "
                    "one of each class; use data.validation=0 or more images"
                )
        if self.fraction < 1:
            keep = round(self.fraction * len(index))
            index = index[stratified(labels[index], keep, generator(seed, "fraction"))[0]]
        return index, held_out

    def _augment(self, images: Store) -> Augment:
        """What is done to training images. Raises UserError where it, or a deficit, does not fit them."""
        distortion = Distortion(self.resized_crop, self.policy, self.jitter, self.blur)
        augment = Augment(self.crop, self.flip, self.cutout, distortion, Mixing(self.mixup, self.cutmix))
        on = [name for name in (*PIXELS, "deficit", "nuisance") if getattr(self, name)]
        if not on:
            return augment
        if images.dtype != torch.uint8 or len(images.image) != 3:
            options = " and ".join(f"data.{name}" for name in on)
            raise UserError(f"data={self.name} has no pixels: {options} must be off")
        channels, side = images.image[0], min(images.image[1:])
        if (self.policy or self.jitter) and channels not in (1, 3):
            named = f"data={self.name} has {channels} channels, no colours"
            raise UserError(f"{named}: data.policy and data.jitter must be off")
        require(not self.blur or side >= 3, "blur", self.blur, f"0 for images of {side} pixels")
        require(self.crop <= side, "crop", self.crop, f"at most {side}, the side of the image")
        require(self.cutout <= side, "cutout", self.cutout, f"at most {side}, the side of the image")
        return augment


def require(holds: bool, name: str, value: object, rule: str) -> None:
    """Raise UserError `data.NAME=VALUE: must be RULE` unless it holds."""
    if not holds:
        raise UserError(f"data.{name}={value}: must be {rule}")


def whole(part: RawSplit, device: torch.device) -> Split:
    """All samples of a part."""
    return Split(part.images.to(device), torch.arange(len(part.images)), part.labels.to(device))
