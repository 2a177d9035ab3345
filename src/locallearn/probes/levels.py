"""Which level of a hierarchy a block has found: what a linear classifier reads of each from its output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from locallearn.analysis.readout import linear_accuracy
from locallearn.data import Split
from locallearn.data.levels import KnownLevel
from locallearn.errors import UserError
from locallearn.figures import panels
from locallearn.figures.curves import over_depth
from locallearn.probes import Arrays, Data, Learner, Moment, Pictures, Probe, Row, Seen, outputs
from locallearn.seeds import generator

BATCH = 256
WHOLE = 4
"""Positions to a side to which a map is averaged where the whole of it is read."""


@dataclass(frozen=True)
class LevelsProbe(Probe):
    """For data whose samples are made of parts of several levels (`data=hierarchical`), test accuracy of logistic
    regressions on the frozen output of each block, for each level NAME:

    NAME_accuracy  of a level with one part (the class) from the whole map, averaged to at most 4 x 4 positions; of
                   others from the vector at the part's centre (bilinear, of the four nearest), one classifier for each
                   of some parts, and the mean over them. Of an output that is not a map always from all of it

    and, in a row of its own, NAME_best, the accuracy of the exact posterior, and NAME_bits, its entropy.

    samples  of the training set to fit to, and the most of the test set to score
    parts    of a level that are read, the same ones always
    """

    samples: Annotated[int, Ge(1)] = 2000
    parts: Annotated[int, Ge(1)] = 4

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        if not data.levels:
            raise UserError(
                f"probe=levels reads parts of several levels, but data={data.name} has none that are known: "
                "choose data=hierarchical"
            )
        known, asked = _sample(data.train, self.samples), _sample(data.test, self.samples)
        tops = {units.stop - 1: k for k, units in enumerate(learner.cut)}
        best: Row = {f"{name}_best": level.accuracy for name, level in data.levels.items()}
        rows = [{**best, **{f"{name}_bits": level.bits for name, level in data.levels.items()}}]
        both = (_outputs(learner, data, split, tops) for split in (known, asked))
        for (unit, k), train, test in zip(tops.items(), *both, strict=True):
            row: Row = {"block": k, "layer": unit, "name": learner.model.names[unit]}
            for name, level in data.levels.items():
                row[f"{name}_accuracy"] = self._read(name, level, (train, known.index), (test, asked.index))
            rows.append(row)
        return Seen(rows)

    def _read(self, name: str, level: KnownLevel, known: tuple[Tensor, Tensor], asked: tuple[Tensor, Tensor]) -> float:
        """Mean accuracy over parts; `known` and `asked` are outputs [N, ...] and the places of their samples."""
        (train, fitted), (test, scored) = known, asked
        rows, columns = level.train.shape[1:]
        accuracies = []
        for part in torch.randperm(rows * columns, generator=generator(0, "levels", name))[: self.parts].tolist():
            r, c = divmod(part, columns)
            at = None if rows * columns == 1 else ((c + 0.5) / columns, (r + 0.5) / rows)
            accuracies.append(
                linear_accuracy(seen(train, at), level.train[fitted, r, c], seen(test, at), level.test[scored, r, c])
            )
        return fmean(accuracies)

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        levels = [key.removesuffix("_best") for key in rows[0] if key.endswith("_best")]
        figure, axes = panels(len(levels), width=3.0)
        for axis, level in zip(axes, levels, strict=True):
            axis.axhline(rows[0][f"{level}_best"], color="#999999", linewidth=0.8)
            over_depth(axis, rows, f"{level}_accuracy")
            axis.set(ylabel=f"{level}, test accuracy")
        axes[0].legend(title="epoch")
        return {self.name: figure}


def seen(h: Tensor, at: tuple[float, float] | None) -> Tensor:
    """Features [N, D] of outputs [N, ...]: of maps [N, C, H, W] the vector at a place (x, y), each from 0 to 1, between
    the centres of the four nearest positions; of the whole, or of what is not a map, all of it."""
    if h.dim() != 4:
        return h.flatten(1)
    if at is None:
        return F.adaptive_avg_pool2d(h, (min(WHOLE, h.shape[2]), min(WHOLE, h.shape[3]))).flatten(1)
    x, y = at
    place = torch.tensor([2 * x - 1, 2 * y - 1], dtype=h.dtype).expand(len(h), 1, 1, 2)
    return F.grid_sample(h, place, padding_mode="border", align_corners=False)[:, :, 0, 0]


def _sample(split: Split, count: int) -> Split:
    """At most so many samples, the same ones always."""
    return split.at(torch.randperm(len(split), generator=generator(0, "sample"))[:count])


def _outputs(learner: Learner, data: Data, split: Split, tops: dict[int, int]) -> list[Tensor]:
    """What each block emits for the samples of a split, in float32 on the CPU."""
    batches = [
        [h.float().cpu() for i, h in enumerate(outputs(learner, x)) if i in tops]
        for x, _ in data.evaluation(split, BATCH)
    ]
    return [torch.cat(of) for of in zip(*batches, strict=True)]
