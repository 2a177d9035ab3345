"""How well a strategy's update points where backpropagation's would, per block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from locallearn.analysis.feedback import FeedbackAngles, feedback_angles
from locallearn.engine import TrainedBlock
from locallearn.engine.gradients import strategy_gradients, true_gradients
from locallearn.probes import Curve, Data, Learner, Moment, Probe, Row, Seen, sample
from locallearn.strategies.feedback_alignment import FeedbackLayer


@dataclass(frozen=True)
class Alignment(Probe):
    """Cosine, angle and norm ratio to backpropagation's gradient at the same weights, on a fixed batch of training
    samples without augmentation (Lillicrap et al. 2016; Bartunov et al. 2018). Per block that learns:

    update_cosine, update_angle (degrees), update_norm_ratio   of the gradient of its units' parameters (and its head's)
    feedback_cosine, feedback_norm_ratio   of what arrives at its output: the synthetic gradient of DNI, the projected
        error of DFA, the gradient of a local loss
    transpose_angle, pseudo_inverse_angle   of feedback alignment: degrees from the feedback weights to the transposed
        weights and to their pseudo-inverse (`analysis.feedback`), mean over the linear layers that answer

    The norm ratio is the strategy's over the true one. Holds the activations of the whole model for that batch.

    samples  size of the batch
    """

    samples: Annotated[int, Ge(2)] = 256
    single: ClassVar[bool] = True
    curves = (
        Curve("update_cosine", "cosine to backpropagation's gradient", level=0),
        Curve("update_angle", "angle to it (degrees)", level=90),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        return Seen(alignment(learner, *sample(data, "train", self.samples)))


def alignment(learner: Learner, inputs: Tensor, labels: Tensor) -> list[Row]:
    """The numbers of `Alignment` for inputs [B, ...] and labels [B], a row for each block that gets a gradient."""
    ours, truth = strategy_gradients(learner, inputs, labels), true_gradients(learner, inputs, labels)
    rows: list[Row] = []
    for k, (mine, true) in enumerate(zip(ours, truth, strict=True)):
        row: Row = {}
        both = [p for p in true.parameters if p in mine.parameters]
        cosine, ratio = _compare([mine.parameters[p] for p in both], [true.parameters[p] for p in both])
        if cosine is not None:
            angle = math.degrees(math.acos(max(-1.0, min(1.0, cosine))))
            row |= {"update_cosine": cosine, "update_angle": angle, "update_norm_ratio": ratio}
        if mine.output is not None and true.output is not None and mine.output.shape == true.output.shape:
            cosine, ratio = _compare([mine.output], [true.output])
            if cosine is not None:
                row |= {"feedback_cosine": cosine, "feedback_norm_ratio": ratio}
        row |= _feedback(learner.blocks[k])
        if row:
            rows.append({"block": k, **row})
    return rows


def _feedback(block: TrainedBlock) -> Row:
    """The angles of the feedback weights of a block, if it has some; the first layer of the net answers nobody."""
    layers = [m for root in block.roots() for m in root.modules() if isinstance(m, FeedbackLayer)]
    dense = [m for m in layers[0 if block.spec.index else 1 :] if isinstance(m.layer, nn.Linear)]
    found = [angles for m in dense if (angles := feedback_angles(m.backward_weight(), m.weight)) is not None]
    if not found:
        return {}
    return {f"{name}_angle": fmean(getattr(angles, name) for angles in found) for name in FeedbackAngles._fields}


def _compare(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[float | None, float]:
    """Cosine and norm ratio of two lists of tensors as one vector each; None where one of them is zero."""
    ab, aa, bb = (
        sum(float((x.double() * y.double()).sum()) for x, y in zip(left, right, strict=True))
        for left, right in ((a, b), (a, a), (b, b))
    )
    return (ab / (math.sqrt(aa) * math.sqrt(bb)), math.sqrt(aa) / math.sqrt(bb)) if aa and bb else (None, 0.0)
