"""Which samples are trained on, which are held out, and which labels are made wrong: seeded draws over labels [N]."""

from __future__ import annotations

import torch
from torch import Tensor

from locallearn.errors import UserError
from locallearn.seeds import generator


def stratified(labels: Tensor, keep: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide N samples at random into `keep` and the rest, each class in proportion.

    labels [N] -> indices kept [keep] and left [N - keep], both ascending. Every class that is present keeps at least
    one sample, so that more than `keep` are kept when there are more classes than that.
    """
    count = torch.bincount(labels)  # [classes]
    quota = _quotas(count, keep)
    shuffled = torch.randperm(len(labels), generator=draws)
    grouped = shuffled[torch.argsort(labels[shuffled], stable=True)]  # shuffled inside each class
    label = labels[grouped]
    rank = torch.arange(len(labels)) - (count.cumsum(0) - count)[label]  # place inside the class
    chosen = rank < quota[label]
    return grouped[chosen].sort().values, grouped[~chosen].sort().values


def _quotas(count: Tensor, keep: int) -> Tensor:
    """How many of each class [classes] to keep: largest remainders, in integers, then at least one of each."""
    total = int(count.sum())
    quota = count * keep // total
    remainder = count * keep % total
    quota[torch.argsort(remainder, descending=True, stable=True)[: keep - int(quota.sum())]] += 1
    for lost in ((quota == 0) & (count > 0)).nonzero().flatten():
        quota[lost] = 1
        if quota.max() > 1:
            quota[quota.argmax()] -= 1
    return quota


def balanced(labels: Tensor, keep: int, draws: torch.Generator) -> Tensor:
    """Choose `keep` of N samples at random, as many of each class as of any other while they last.

    labels [N] -> indices [keep], ascending. The classes take turns; what fewer keep is among what more keep.
    """
    count = torch.bincount(labels)  # [classes]
    shuffled = torch.randperm(len(labels), generator=draws)
    grouped = shuffled[torch.argsort(labels[shuffled], stable=True)]  # shuffled inside each class
    label = labels[grouped]
    rank = torch.arange(len(labels)) - (count.cumsum(0) - count)[label]  # place inside the class
    turn = torch.randperm(len(count), generator=draws)[label]
    order = grouped[torch.argsort(rank * len(count) + turn)]
    return order[:keep].sort().values


def divided(samples: int, validation: float, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Places among N samples without classes that are trained on and held out, both ascending: validation first, then
    fraction, as `DataSource` draws them. Raises UserError where nothing would be left."""
    held_out = round(validation * samples)
    kept = max(1, round(fraction * (samples - held_out)))
    if held_out >= samples or (validation and not held_out):
        raise UserError(f"data.validation={validation}: {samples} training samples are too few for it; choose another")
    order = torch.randperm(samples, generator=generator(seed, "split"))
    index, rest = order[held_out:], order[:held_out].sort().values
    if kept < len(index):
        index = index[torch.randperm(len(index), generator=generator(seed, "fraction"))[:kept]]
    return index.sort().values, rest


def noisy(labels: Tensor, share: float, classes: int, draws: torch.Generator) -> Tensor:
    """Labels [N] of which round(share * N) are drawn again, uniformly over all classes (so some stay right)."""
    wrong = torch.randperm(len(labels), generator=draws)[: round(share * len(labels))]
    labels = labels.clone()
    labels[wrong] = torch.randint(classes, (len(wrong),), generator=draws)
    return labels


def check_labels(part: str, labels: Tensor, samples: int, classes: tuple[str, ...]) -> None:
    """Refuse labels that would train a wrong model, in one pass. Raises UserError."""
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise UserError(f"the {part} labels are {labels.dtype} {list(labels.shape)}; they must be int64 [N]")
    if len(labels) != samples:
        raise UserError(f"the {part} part has {samples} samples but {len(labels)} labels; give each sample one label")
    if not samples:
        raise UserError(f"the {part} part has no samples; a data set needs at least one for training and one for test")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(classes):
        label = low if low < 0 else high
        raise UserError(
            f"the {part} labels hold {label}; with {len(classes)} classes they must be 0-{len(classes) - 1}"
        )


def check_classes(labels: Tensor, classes: tuple[str, ...]) -> None:
    """Refuse a training part without a single sample of some class. Raises UserError."""
    empty = [classes[i] for i in (torch.bincount(labels, minlength=len(classes)) == 0).nonzero().flatten()]
    if empty:
        raise UserError(
            f"class {empty[0]!r} has no training sample ({len(empty)} of {len(classes)} classes have none); "
            "add some or leave the class out"
        )
