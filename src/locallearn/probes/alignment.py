"""How well a strategy's update points where backpropagation's would, per block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn import figures
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.gradients import Gradients, strategy_gradients, true_gradients
from locallearn.probes import curves
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Alignment(Probe):
    """Cosine, angle and norm ratio to backpropagation's gradient at the same weights, on a fixed batch of training
    samples without augmentation (Lillicrap et al. 2016; Bartunov et al. 2018). Per block that learns:

    update_cosine, update_angle (degrees), update_norm_ratio   of the gradient of its units' parameters (and its head's)
    feedback_cosine, feedback_norm_ratio   of what arrives at its output: the synthetic gradient of DNI, the projected
        error of DFA, the gradient of a local loss

    The norm ratio is the strategy's over the true one. Holds the activations of the whole model for that batch.

    samples  size of the batch
    """

    samples: Annotated[int, Ge(2)] = 256

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        return Seen(alignment(learner, *sample(data, "train", self.samples)))

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        if not any("update_cosine" in row for row in rows):  # no block has a true gradient to compare with
            return {}
        figure, (cosine, angle) = figures.panels(columns=2, width=3.4)
        for axes, key in ((cosine, "update_cosine"), (angle, "update_angle")):
            axes.axhline(0 if axes is cosine else 90, color="#999999", linewidth=0.8)  # orthogonal
            curves.lines(axes, rows, "block", key)
        cosine.set(ylabel="cosine to backpropagation's gradient", ylim=(min(-0.05, cosine.get_ylim()[0]), 1.05))
        angle.set(ylabel="angle to it (degrees)", ylim=(-2, max(95, angle.get_ylim()[1])))
        cosine.legend(fontsize=6, frameon=False)
        return {"alignment": figure}


def alignment(learner: Learner, inputs: Tensor, labels: Tensor) -> list[Row]:
    """The numbers of `Alignment` for inputs [B, ...] and labels [B], a row per block. A block that gets no gradient is
    left out."""
    ours, truth = strategy_gradients(learner, inputs, labels), true_gradients(learner, inputs, labels)
    rows: list[Row] = []
    for k, (mine, true) in enumerate(zip(ours, truth, strict=True)):
        found: Row = {}
        cosine, ratio = _compare(*_parameters(mine, true))
        if cosine is not None:
            angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
            found |= {"update_cosine": cosine, "update_angle": angle, "update_norm_ratio": ratio}
        if mine.output is not None and true.output is not None and mine.output.shape == true.output.shape:
            cosine, ratio = _compare([mine.output], [true.output])
            if cosine is not None:
                found |= {"feedback_cosine": cosine, "feedback_norm_ratio": ratio}
        if found:
            rows.append({"block": k, **found})
    return rows


def _parameters(mine: Gradients, true: Gradients) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the parameters that both have, in the same order."""
    both = [p for p in true.parameters if p in mine.parameters]
    return [mine.parameters[p] for p in both], [true.parameters[p] for p in both]


def _compare(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[float | None, float]:
    """Cosine and norm ratio of two lists of tensors as one vector each; None where one of them is zero."""

    def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
        return sum(float(torch.sum(x.double() * y.double())) for x, y in zip(left, right, strict=True))

    norm_a, norm_b = math.sqrt(dot(a, a)), math.sqrt(dot(b, b))
    if not norm_a or not norm_b:
        return None, 0.0
    return dot(a, b) / (norm_a * norm_b), norm_a / norm_b
