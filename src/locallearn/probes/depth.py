"""What every probe by depth needs: fixed samples, and what each unit of the model makes of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from locallearn.data import Data, Split
from locallearn.engine import Learner
from locallearn.errors import UserError, unknown
from locallearn.models import BlockModel
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
    found: list[tuple[Tensor, Tensor]] = []
    left = samples
    for part in parts[split]:
        if left is not None and left < len(part):
            part = part.at(torch.randperm(len(part), generator=generator(0, "sample"))[:left])
        for x, y in data.evaluation(part, 256):
            if left == 0:
                break
            found.append((x[:left], y[:left]))
            left = None if left is None else left - len(found[-1][0])
    if not found:
        raise UserError(f"split={split} of {data.name} has no samples; choose another of {', '.join(SPLITS)}")
    return torch.cat([x for x, _ in found]), torch.cat([y for _, y in found])


@torch.no_grad()
def outputs(learner: Learner, inputs: Tensor, other: BlockModel | None = None) -> Iterator[Tensor]:
    """What every unit of the model (or of another one like it) emits [B, ...] for inputs [B, *image], from the lowest
    upward, in eval mode; one at a time is held."""
    model = (other or learner.model).eval()  # `unchanged` puts the modes back
    h = learner.prepare(inputs)
    for unit in model.units:
        with learner.stage.autocast():
            h = unit(h)
        yield h
