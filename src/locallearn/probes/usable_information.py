"""How much of the label each depth lets a small network read: the picture of InfoPro."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from locallearn import seeds
from locallearn.analysis.readout import label_entropy, usable_information
from locallearn.options import OneOf
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, by_layer, outputs, sample
from locallearn.probes.depth import SPLITS


@dataclass(frozen=True)
class UsableInformation(Probe):
    """I(h; Y) as a small network reads it from each unit's output h, and that network's accuracy (see
    `analysis.readout`): trained on `samples` of the training split, measured on as many of the test split or of
    another. Measured on the training split, from which it has learned itself, it shows beside the test split what was
    learned by heart.

    Per unit: `usable_information` (bits), `usable_accuracy`, `label_entropy` (bits, the most there is).

    samples  of each split; the outputs of one unit for all of them are held at once
    steps    of training for each unit's reader
    split    what is measured on: train, validation, test or all
    """

    samples: Annotated[int, Ge(10)] = 2000
    steps: Annotated[int, Ge(1)] = 300
    split: Annotated[str, OneOf(SPLITS)] = "test"
    tasks = CLASS_LABELS
    curves = (
        Curve("usable_information", "I(h; Y) that a net reads, and H(Y) (bits)", level="label_entropy", depth=True),
        Curve("usable_accuracy", "its accuracy", depth=True),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        others, truth = sample(data, self.split, self.samples)
        known, asked = labels >= 0, truth >= 0
        seed = seeds.derive(data.seed, "usable_information")
        rows: list[Row] = []
        for h, held_out in zip(outputs(learner, inputs), outputs(learner, others), strict=True):
            bits, accuracy = usable_information(
                h[known], labels[known], held_out[asked], truth[asked],
                classes=len(data.classes), steps=self.steps, seed=seed,
            )  # fmt: skip
            rows.append({"usable_information": bits, "usable_accuracy": accuracy})
        return Seen(by_layer(learner, (row | {"label_entropy": label_entropy(truth[asked])} for row in rows)))
