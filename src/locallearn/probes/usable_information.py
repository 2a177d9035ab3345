"""How much of the label each depth lets a small network read: the picture of InfoPro."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from torch import Tensor

from locallearn import seeds
from locallearn.analysis.usable import label_entropy, usable_information
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.figures import by_depth, panels
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import outputs, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class UsableInformation(Probe):
    """I(h; Y) as a small network reads it from each unit's output h, and that network's accuracy (see
    `analysis.usable`): trained on the first `samples` of the training split, measured on as many of the test split.

    Per unit: `usable_information` (bits), `usable_accuracy`, `label_entropy` (bits, the most there is).

    samples  of each split; the outputs of one unit for all of them are held at once
    steps    of training for each unit's reader
    """

    samples: Annotated[int, Ge(10)] = 2000
    steps: Annotated[int, Ge(1)] = 300

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        others, truth = sample(data, "test", self.samples)
        known, asked = labels >= 0, truth >= 0
        seed = seeds.derive(data.seed, "usable_information")
        rows: list[Row] = []
        pairs = zip(outputs(learner, inputs), outputs(learner, others), strict=True)
        for layer, (h, held_out) in enumerate(pairs):
            found = usable_information(
                h[known], labels[known], held_out[asked], truth[asked],
                classes=len(data.classes), steps=self.steps, seed=seed,
            )  # fmt: skip
            rows.append(
                {
                    "layer": layer,
                    "name": learner.model.names[layer],
                    "usable_information": found.bits,
                    "usable_accuracy": found.accuracy,
                    "label_entropy": label_entropy(truth[asked]),
                }
            )
        return Seen(rows)

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        epochs = sorted({row["epoch"] for row in rows})
        shown = epochs if len(epochs) <= 6 else [epochs[round(i * (len(epochs) - 1) / 5)] for i in range(6)]
        figure, axes = panels(2)
        for epoch, colour in zip(shown, by_depth(len(shown)), strict=True):
            mine = [row for row in rows if row["epoch"] == epoch]
            for axis, key in zip(axes, ("usable_information", "usable_accuracy"), strict=True):
                axis.plot(
                    [r["layer"] for r in mine], [r[key] for r in mine], "o-", ms=3, color=colour, label=f"{epoch}"
                )
        axes[0].axhline(rows[0]["label_entropy"], color="#888888", lw=0.8, ls="--")
        axes[0].annotate("H(Y)", (0, rows[0]["label_entropy"]), va="bottom", fontsize=7, color="#666666")
        axes[0].set(xlabel="depth [units]", ylabel="I(h; Y) that a small net reads [bits]", ylim=(0, None))
        axes[1].set(xlabel="depth [units]", ylabel="its accuracy")
        axes[1].legend(title="epoch", fontsize=7)
        return {"usable_information": figure}
