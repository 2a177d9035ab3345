"""What the labels say about every depth: a linear classifier, the nearest neighbours, and the blocks' own heads."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn.analysis.readout import features, linear_accuracy, neighbour_accuracy
from locallearn.figures.curves import over_epochs
from locallearn.figures.style import COLOURS, name_layers, panels, percent
from locallearn.probes import (
    CLASS_LABELS,
    Arrays,
    Data,
    Learner,
    Moment,
    Pictures,
    Probe,
    Row,
    Seen,
    by_layer,
    outputs,
    sample,
)
from locallearn.task import POSITION, SEGMENTATION, TOKENS

BATCH = 256
KINDS = {
    "linear_accuracy": "Linear classifier",
    "neighbour_accuracy": "Nearest neighbours",
    "block_accuracy": "Block's own head",
}
LEGEND: dict[str, Any] = {
    "loc": "lower center",
    "bbox_to_anchor": (0.5, 1.0),
    "handlelength": 1.5,
    "columnspacing": 1.0,
}


@dataclass(frozen=True)
class LinearProbe(Probe):
    """Accuracy on the test set of classifiers on each layer's frozen features (Alain & Bengio 2016): maps are averaged
    over space, sequences over time. Per layer (unit of the model):

    linear_accuracy     of a logistic regression, fitted to training samples
    neighbour_accuracy  of the vote among the nearest training samples, by cosine
    block_accuracy      of the head that training itself has for the block which ends with this layer, if it has one

    NaN where a feature is not finite or no sample has a label.

    samples     of the training set to fit to, and the most of the test set to score; tokens and pixels count as
                samples, and of a graph all labelled nodes are taken
    neighbours  how many of them vote
    """

    samples: Annotated[int, Ge(1)] = 2000
    neighbours: Annotated[int, Ge(1)] = 5
    tasks = CLASS_LABELS | {TOKENS, SEGMENTATION}

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        count, task = self.samples, learner.setup.task
        if task.form == POSITION:  # a token or a pixel counts as much as an image
            count = max(1, count // sample(data, "test", 1)[1].numel())
        (inputs, known), (others, asked) = (sample(data, split, count) for split in ("train", "test"))
        train = features(_batches(learner, inputs, known), lambda x: outputs(learner, x), task.flat)
        test = features(_batches(learner, others, asked), lambda x: outputs(learner, x), task.flat)
        rows: list[Row] = []
        for fit_on, score_on in zip(train, test, strict=True):
            linear = linear_accuracy(*fit_on, *score_on)
            neighbours = neighbour_accuracy(*fit_on, *score_on, self.neighbours)
            rows.append({"linear_accuracy": linear, "neighbour_accuracy": neighbours})
        for unit, accuracy in _heads(learner, others, asked).items():
            rows[unit]["block_accuracy"] = accuracy
        return Seen(by_layer(learner, rows))

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        epochs = sorted({row["epoch"] for row in rows})
        figure, (depth, time) = panels(2, width=3.4, height=2.9)
        for colour, (kind, label) in zip(COLOURS, KINDS.items(), strict=False):
            shown = {epochs[0]: ".:", epochs[-1]: ".-"} if kind != "block_accuracy" else {epochs[-1]: "x"}
            for epoch, style in shown.items():
                values = {r["layer"]: r[kind] for r in rows if r["epoch"] == epoch and r.get(kind) is not None}
                if values:
                    depth.plot([*values], [*values.values()], style, color=colour, label=f"{label}, epoch {epoch}")
        names = {row["layer"]: row["name"] for row in rows}
        name_layers(depth.xaxis, [names[i] for i in sorted(names)])
        depth.set(xlabel="Layer", ylabel="Test accuracy")
        depth.legend(**LEGEND, ncols=2)
        over_epochs(time, rows, "linear_accuracy")
        time.set_ylabel("Linear classifier, accuracy")
        if time.lines:
            time.legend(**LEGEND, ncols=4)
        time.sharey(depth)
        percent(depth.yaxis)
        return {self.name: figure}


def _batches(learner: Learner, inputs: Tensor, labels: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = len(inputs) if learner.model.samples is not None else BATCH
    return zip(inputs.split(size), labels.split(size), strict=True)


@torch.no_grad()
def _heads(learner: Learner, inputs: Tensor, labels: Tensor) -> dict[int, float]:
    """The accuracy of the blocks that can predict, by the unit that each ends with."""
    task = learner.setup.task
    sums: dict[int, Tensor] = {}
    for x, y in _batches(learner, inputs, labels):
        for units, logits in zip(learner.cut, learner.predict(x), strict=True):
            if logits is not None:
                sums[units[-1]] = sums.get(units[-1], 0.0) + task.sums(logits, y)
    known = int(task.count(labels))
    none = {"accuracy": math.nan}
    return {u: (task.numbers(None, own.tolist(), known) if known else none)["accuracy"] for u, own in sums.items()}
