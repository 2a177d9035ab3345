"""What every probe by depth needs: fixed samples, and what each unit of the model makes of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from locallearn.data import Data, Split
from locallearn.engine import Learner
from locallearn.errors import UserError, unknown
from locallearn.models import BlockModel
from locallearn.models.pyramid import Pyramid
from locallearn.probes.base import Row
from locallearn.seeds import generator

SPLITS = ("train", "validation", "test", "all")


def sample(data: Data, split: str, samples: int | None = None) -> tuple[Tensor, Tensor]:
    """`samples` inputs [N, *image] and labels [N] of a split (`all`: train, validation and test, one after the other),
    without augmentation; all of them if there are fewer or `samples` is None. On the device. Where they are not all
    they are drawn, the same ones whenever and under whatever seed: many sets are sorted by class.

    Of a graph always all nodes; those without a label in the split have one below 0."""
    parts: dict[str, list[Split]] = {
        "train": [data.train],
        "validation": [data.validation],
        "test": [data.test],
        "all": [data.train, data.validation, data.test],
    }
    if split not in parts:
        raise unknown("split of a probe", split, SPLITS)
    if data.graph is not None:
        nodes, *labelled = [batch for part in parts[split] for batch in data.evaluation(part, 1)]
        labels = nodes[1]
        for _, more in labelled:
            labels = torch.where(labels < 0, more, labels)
        return nodes[0], labels
    batches: list[tuple[Tensor, Tensor]] = []
    left = samples
    for part in parts[split]:
        if left is not None:
            if left < len(part):
                part = part.at(torch.randperm(len(part), generator=generator(0, "sample"))[:left])
            left -= len(part)
        batches += data.evaluation(part, 256)
    if not batches:
        raise UserError(f"split={split} of {data.name} has no samples; choose another of {', '.join(SPLITS)}")
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


@torch.no_grad()
def outputs(learner: Learner, inputs: Tensor, model: BlockModel | None = None) -> Iterator[Tensor]:
    """What every unit of the model (or of another one like it) emits [B, ...] for inputs [B, *image], from the lowest
    upward, in eval mode; one at a time is held. Of a packed pyramid it is the newest map."""
    h = learner.prepare(inputs)
    for unit in (model or learner.model).eval().units:  # the caller of `look` puts the modes back
        with learner.stage.autocast():
            h = unit(h)
        levels = getattr(unit, "levels", ())
        yield Pyramid(levels).unpack(h)[-1] if levels else h


def by_layer(learner: Learner, numbers: Iterable[Row]) -> list[Row]:
    """The numbers of each unit of the model, from the lowest upward, as rows with its number and name."""
    named = enumerate(zip(learner.model.names, numbers, strict=True))
    return [{"layer": i, "name": name, **row} for i, (name, row) in named]


def layers(model: BlockModel) -> Iterator[tuple[Row, nn.Module]]:
    """The units of a model and, as the last layer, its head: the beginning of its row, and the module."""
    for i, (name, module) in enumerate(zip([*model.names, "head"], [*model.units, model.head], strict=True)):
        yield {"layer": i, "name": name}, module


def chosen(probe: str, layers: Sequence[int] | None, otherwise: Sequence[int], learner: Learner) -> list[int]:
    """The units to look at. Raises UserError for one that the model does not have."""
    last = len(learner.model.units) - 1
    for i in layers or ():
        if not 0 <= i <= last:
            raise UserError(f"probe.{probe}.layers={list(layers or ())}: {learner.model.name} has units 0-{last}")
    return sorted(set(layers or otherwise))
