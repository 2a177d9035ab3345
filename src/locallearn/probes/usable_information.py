"""How much of the label each depth lets a small network read: the picture of InfoPro."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from locallearn import seeds
from locallearn.analysis.usable import label_entropy, usable_information
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.figures import panels
from locallearn.figures.curves import over_depth
from locallearn.probes.base import Arrays, Moment, Pictures, Probe, Row, Seen
from locallearn.probes.depth import by_layer, outputs, sample


@dataclass(frozen=True)
class UsableInformation(Probe):
    """I(h; Y) as a small network reads it from each unit's output h, and that network's accuracy (see
    `analysis.usable`): trained on the first `samples` of the training split, measured on as many of the test split.

    Per unit: `usable_information` (bits), `usable_accuracy`, `label_entropy` (bits, the most there is).

    samples  of each split; the outputs of one unit for all of them are held at once
    steps    of training for each unit's reader
    """

    samples: int = 2000
    steps: int = 300

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(samples=10, steps=1)

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        others, truth = sample(data, "test", self.samples)
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

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        figure, (information, accuracy) = panels(2)
        over_depth(information, rows, "usable_information")
        over_depth(accuracy, rows, "usable_accuracy")
        most = rows[0]["label_entropy"]
        information.axhline(most, color="#888888", lw=0.8, ls="--")
        information.annotate("H(Y)", (0, most), va="bottom", fontsize=7, color="#666666")
        information.set(ylabel="I(h; Y) that a small net reads (bits)", ylim=(0, None))
        accuracy.set(ylabel="its accuracy")
        return {self.name: figure}
