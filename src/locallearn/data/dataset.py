"""What a run works with: three splits, and batches that are a pure function of (seed, epoch, step); or one graph whose
nodes are the samples, every batch being the whole graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from locallearn.accelerator import sent, sent_ahead
from locallearn.data.augment import Augment, Deficit, draw
from locallearn.data.distortion import Distorter
from locallearn.data.levels import KnownLevel
from locallearn.data.mixing import UNMIXED
from locallearn.data.normalise import Normaliser
from locallearn.data.split import balanced
from locallearn.data.store import Elsewhere, Memory, Size, Store
from locallearn.data.stream import Stream
from locallearn.errors import UserError
from locallearn.inputs import Inputs
from locallearn.seeds import derive, generator
from locallearn.task import CLASSES, SEGMENTATION, Task
from locallearn.tasks import Regression

UNKNOWN = -1
"""The label of a sample whose own was taken away."""
HIDDEN = -100
"""The label of a node that is not asked for: below 0, as of every sample without one."""


@dataclass(frozen=True)
class Split:
    """Some samples of a store: their places `index` [N] (CPU) and their labels, int64 [N] (or targets [N, ...], as the
    task has them) on the device."""

    store: Store
    index: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.index)

    def at(self, places: Tensor) -> Split:
        """The samples at the places [M] of this split, as a split."""
        return Split(self.store, self.index[places], self.labels[places.to(self.labels.device)])

    def drawing(self, seed: int) -> Split:
        """This split as it is read in one epoch, where reading it draws random numbers."""
        draw = getattr(self.store, "drawing", None)
        return self if draw is None else replace(self, store=draw(seed))

    def take(self, order: Tensor, batch_size: int, change: Distorter | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Raw samples [B, *image] and labels [B] at the places `order` [M] of this split, in runs of `batch_size`; with
        `change` each sample distorted."""
        if len(order):
            labels = self.labels[sent(order, self.labels.device)].split(batch_size)
            yield from zip(self._samples(self.index[order], batch_size, change), labels, strict=True)

    def _samples(self, index: Tensor, batch_size: int, change: Distorter | None) -> Iterator[Tensor]:
        if change is None:
            yield from self.store.take(index, batch_size)
        elif isinstance(self.store, Stream):  # its workers do it
            yield from self.store.take(index, batch_size, change)
        else:
            host = getattr(self.store, "host", None) or self.store
            for samples, places in zip(host.take(index, batch_size), index.split(batch_size), strict=True):
                pairs = zip(samples.cpu(), places.tolist(), strict=True)  # a GPU would round in another way
                yield sent(torch.stack([change(*pair) for pair in pairs]), self.labels.device)


class Data:
    """A loaded set.

    name        as in `data=NAME`
    image       shape of one sample: (C, H, W), or (D,) for vectors
    classes     the names of what is answered, in order: of classes, labels, numbers or tokens
    task        what is asked
    vocabulary  how many tokens there are where inputs are token numbers; else None
    inputs      what the tensors are where a sample has several, which come as one vector; else None
    train, validation, test     `validation` is empty with data.validation=0
    unlabelled  training samples whose labels were taken away; None where all have kept theirs
    pool        what batches are drawn from: `train`, perhaps with what is unlabelled
    left_out    what lies beside the set and is not part of it, in words
    levels      by name what the samples are made of, the class first; mostly none is known
    graph       edges between the samples, int64 [2, E], or None (see `GraphData`)

    Inputs are float32 [B, *image], labels int64 [B], both on the device. Nothing has to be stored to resume: the
    order follows from (seed, epoch), augmentation and deficit from (seed, epoch, step), and what is done to one picture
    after another from (seed, epoch, place). Samples that are float32
    already are neither augmented nor normalised (`normaliser` is None).
    """

    draws = 5  # rows of `augment.draw` that a step uses

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        splits: tuple[Split, Split, Split],
        seed: int,
        augment: Augment,
        normaliser: Normaliser | None,
        deficit: Deficit | None = None,
        left_out: str = "",
        task: Task = CLASSES,
    ) -> None:
        self.name, self.classes, self.seed, self.task = name, classes, seed, task
        self.train, self.validation, self.test = splits
        self.unlabelled: Split | None = None
        self.pool = self.train
        self.augment, self.normaliser = augment, normaliser
        self.deficit = deficit or Deficit()
        self.left_out = left_out
        self.levels: Mapping[str, KnownLevel] = {}
        self.graph: Tensor | None = None
        self.vocabulary: int | None = None
        self.inputs: Inputs | None = None

    def measure_in(self, task: Regression) -> None:
        """Standardise the targets as another set was: that of a run whose model answers in these units."""
        assert isinstance(self.task, Regression)
        before, self.task = self.task, task
        self.train, self.validation, self.test = (
            replace(split, labels=task.standardised(before.original(split.labels)))
            for split in (self.train, self.validation, self.test)
        )

    @property
    def image(self) -> Size:
        return self.train.store.image

    @property
    def pixels(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The inputs that a black and a white pixel become, one number per channel each; None for other samples."""
        return None if self.normaliser is None else self.normaliser.pixels

    @property
    def own_validation(self) -> bool:
        """Whether the validation part is the set's own, and none of the training part."""
        return self.validation.store is not self.train.store

    def keep_labels(self, count: int) -> None:
        """Take away all but `count` labels of the training samples, class by class; see `balanced`. Raises UserError
        for fewer than one of each class, and for more than there are."""
        labels = self.train.labels.cpu()
        known = (labels >= 0).nonzero().flatten()
        least, most = len(self.classes), len(known)
        if not least <= count <= most:
            raise UserError(f"data.labelled={count}: must be from {least}, one of each class, to {most}, which is all")
        kept = known[balanced(labels[known], count, generator(self.seed, "labelled"))]
        others = torch.ones(len(labels), dtype=torch.bool)
        others[kept] = False
        rest = self.train.at(others.nonzero().flatten())
        self.unlabelled = Split(rest.store, rest.index, torch.full_like(rest.labels, UNKNOWN))
        self.train = self.pool = self.train.at(kept)

    def use_unlabelled(self) -> None:
        """Draw batches from all training samples, also those without a label. Raises UserError if labels are mixed."""
        if self.unlabelled is not None:
            if self.augment.mixing != UNMIXED:
                raise UserError(
                    f"data.labelled={len(self.train)} leaves images without a label, from which this objective learns: "
                    "data.mixup and data.cutmix, which mix labels, must be 0"
                )
            parts = self.train, self.unlabelled
            index, labels = (torch.cat([getattr(part, name) for part in parts]) for name in ("index", "labels"))
            self.pool = Split(self.train.store, index, labels)

    def leave_samples(self) -> None:
        """Let go of samples in memory, and read no files; labels stay. For a process that gets from another what its
        blocks read."""

        def bare(split: Split) -> Split:
            return replace(split, store=Elsewhere(split.store)) if isinstance(split.store, Memory | Stream) else split

        self.train, self.validation, self.test = map(bare, (self.train, self.validation, self.test))
        self.pool, self.normaliser = bare(self.pool), None
        self.unlabelled = bare(self.unlabelled) if self.unlabelled is not None else None

    def batch(self, batch_size: int) -> int:
        """Samples in a batch: `batch_size`, or all of a set that is smaller."""
        return min(_positive(batch_size), len(self.pool))

    def steps(self, batch_size: int) -> int:
        """Batches in an epoch: the full ones, or one short batch of a set that is smaller than `batch_size`."""
        return max(1, len(self.pool) // _positive(batch_size))

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches of one epoch: shuffled, distorted, under a deficit if it is its time, augmented and
        normalised.

        Args:
            epoch: from 0.
            batch_size: samples in a batch, at least 1; an incomplete last batch is left out.
            start: steps to skip: what follows is exactly what an uninterrupted epoch would have given.

        Returns: inputs float32 [B, *image] and labels int64 [B] of each step, on the device; under mixup and cutmix the
            labels are the share of each class, float32 [B, classes].

        Raises UserError for a batch size below 1 and, with a streamed folder, for an image that cannot be read.
        """
        size = self.batch(batch_size)
        order = torch.randperm(len(self.pool), generator=generator(self.seed, "order", epoch))
        order = order[start * size : self.steps(batch_size) * size]
        deficit = self.deficit.now(epoch)
        change = self.augment.distortion.at(self.seed, epoch)
        pool = self.pool.drawing(derive(self.seed, "samples", epoch))
        steps = range(start, self.steps(batch_size))
        draws = sent_ahead(
            partial(draw, self.seed, epoch, images=size, rows=self.draws), steps, self.pool.labels.device
        )
        for step, (images, labels) in zip(steps, pool.take(order, size, change), strict=True):
            if deficit:
                images, labels = self.deficit.apply(images, labels, len(self.classes), self.seed, epoch, step)
            images, labels = self._prepare(images, labels, draws)
            yield self.augment.mixing(images, labels, len(self.classes), self.seed, epoch, step)

    def evaluation(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Every sample of a split once, in order, normalised; the last batch may be short. Nothing if it is empty."""
        for images, labels in split.take(torch.arange(len(split)), _positive(batch_size)):
            yield self._normalise(images), labels

    def _prepare(self, images: Tensor, labels: Tensor, drawn: Iterator[Tensor]) -> tuple[Tensor, Tensor]:
        """Augmented, with the draws of the step, and normalised."""
        if not self.augment:
            return self._normalise(images), labels
        draws = next(drawn)
        if self.task.kind == SEGMENTATION:  # masks move with their images; from beyond the border comes 0, no class
            labels = self.augment.move((labels + 1).to(torch.uint8)[:, None], draws)[:, 0].long() - 1
        return self.augment.cut(self._normalise(self.augment.move(images, draws)), draws), labels

    def _normalise(self, images: Tensor) -> Tensor:
        return images if self.normaliser is None else self.normaliser(images)


class GraphData(Data):
    """`Data` of one graph: inputs are all nodes [N, D], labels [N] with -100 outside the split in question.

    graph  directed edges, int64 [2, E] on the device: a model whose builder declares `graph` gets them
    An epoch is one step, whatever the batch size; nothing is shuffled.
    """

    def __init__(
        self,
        name: str,
        classes: tuple[str, ...],
        nodes: Memory,
        graph: Tensor,
        splits: tuple[Split, Split, Split],
        seed: int,
    ) -> None:
        super().__init__(name, classes, splits, seed, Augment(), None)
        self.nodes, self.graph = nodes, graph

    def batch(self, batch_size: int) -> int:
        return len(self.nodes)

    def steps(self, batch_size: int) -> int:
        return 1

    def batches(self, epoch: int, batch_size: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The one step of an epoch: all nodes, with the training labels."""
        if not start:
            yield from self.evaluation(self.train, batch_size)

    def evaluation(self, split: Split, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All nodes, with the labels of one split."""
        labels = torch.full((len(self.nodes),), HIDDEN, device=split.labels.device)
        labels[sent(split.index, labels.device)] = split.labels
        yield self.nodes.samples, labels


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1")
    return batch_size
