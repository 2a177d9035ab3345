"""What the labels say about every depth: a linear classifier, the nearest neighbours, and the blocks' own heads."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn.analysis.readout import linear_accuracy, neighbour_accuracy, pooled
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.figures import COLOURS, by_depth, epoch_axis, name_layers, panels
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import outputs, sample

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BATCH = 256
KINDS = {
    "linear_accuracy": "Linear classifier",
    "neighbour_accuracy": "Nearest neighbours",
    "block_accuracy": "Block's own head",
}
LEGEND: dict[str, Any] = {
    "fontsize": 6,
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
    "frameon": False,
    "handlelength": 1.5,
    "columnspacing": 1.0,
}


@dataclass(frozen=True)
class Linear(Probe):
    """Accuracy on the test set of classifiers on each layer's frozen features (Alain & Bengio 2016): maps are averaged
    over space, sequences over time. Per layer (unit of the model):

    linear_accuracy     of a logistic regression, fitted to training samples
    neighbour_accuracy  of the vote among the nearest training samples, by cosine
    block_accuracy      of the head that training itself has for the block which ends with this layer, if it has one

    NaN where a feature is not finite or no sample has a label.

    samples     of the training set to fit to, and at most so many of the test set to score; of a graph, its labelled
                nodes
    neighbours  how many of them vote
    """

    samples: Annotated[int, Ge(1)] = 2000
    neighbours: Annotated[int, Ge(1)] = 5

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        train, labels, _ = _read(learner, *sample(data, "train", self.samples))
        test, truth, heads = _read(learner, *sample(data, "test", self.samples), heads=True)
        rows: list[Row] = []
        for i, (fit_on, score_on) in enumerate(zip(train, test, strict=True)):
            row: Row = {"layer": i, "name": learner.model.names[i]}
            row["linear_accuracy"] = linear_accuracy(fit_on, labels, score_on, truth)
            row["neighbour_accuracy"] = neighbour_accuracy(fit_on, labels, score_on, truth, self.neighbours)
            rows.append(row | ({"block_accuracy": heads[i]} if i in heads else {}))
        return Seen(rows)

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        epochs = sorted({row["epoch"] for row in rows})
        figure, (depth, time) = panels(2, width=3.4, height=2.9)
        for colour, (kind, label) in zip(COLOURS, KINDS.items(), strict=False):
            if epochs[0] != epochs[-1] and kind != "block_accuracy":
                _by_depth(depth, rows, epochs[0], kind, colour, ".:", f"{label}, epoch {epochs[0]}")
            line = "x" if kind == "block_accuracy" else ".-"
            _by_depth(depth, rows, epochs[-1], kind, colour, line, f"{label}, epoch {epochs[-1]}")
        names = {row["layer"]: row["name"] for row in rows}
        name_layers(depth.xaxis, [names[i] for i in sorted(names)])
        depth.set(xlabel="Layer", ylabel="Test accuracy (%)")
        depth.legend(**LEGEND, ncols=2)
        for (i, name), colour in zip(sorted(names.items()), by_depth(len(names)), strict=True):
            found = {r["epoch"]: r["linear_accuracy"] for r in rows if r["layer"] == i}
            shown = name if len(names) <= 8 or i in (0, len(names) - 1) else None
            time.plot(list(found), [_percent(v) for v in found.values()], color=colour, marker=".", label=shown)
        time.set_ylabel("Linear classifier, accuracy (%)")
        epoch_axis(time, epochs)
        time.legend(**LEGEND, ncols=4)
        time.sharey(depth)
        return {"linear": figure}


def _by_depth(axes: Axes, rows: Sequence[Row], epoch: int, kind: str, colour: str, line: str, label: str) -> None:
    found = {row["layer"]: row[kind] for row in rows if row["epoch"] == epoch and kind in row}
    if found:
        axes.plot(list(found), [_percent(v) for v in found.values()], line, color=colour, label=label)


def _percent(value: float | None) -> float:
    return math.nan if value is None else 100 * value


@torch.no_grad()
def _read(
    learner: Learner, inputs: Tensor, labels: Tensor, heads: bool = False
) -> tuple[list[Tensor], Tensor, dict[int, float]]:
    """Pooled features [N, D] of every unit and labels [N] of the samples that have one, on the CPU; with `heads` the
    accuracy of the blocks that can predict, by the unit each ends with."""
    size = len(inputs) if learner.model.samples is not None else BATCH
    features: list[list[Tensor]] = [[] for _ in learner.model.units]
    correct: dict[int, float] = {}
    for x, y in zip(inputs.split(size), labels.split(size), strict=True):
        for found, h in zip(features, outputs(learner, x), strict=True):
            found.append(pooled(h)[y >= 0].float().cpu())
        for units, logits in zip(learner.cut, learner.predict(x) if heads else (), strict=heads):
            if logits is not None:
                right = float((logits.argmax(dim=1) == y).sum())
                correct[units[-1]] = correct.get(units[-1], 0.0) + right
    known = int((labels >= 0).sum())
    shares = {i: n / known if known else math.nan for i, n in correct.items()}
    return [torch.cat(found) for found in features], labels[labels >= 0].cpu(), shares
