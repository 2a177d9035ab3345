"""How much of a known nuisance each depth still tells, beside how much of the label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from locallearn import seeds
from locallearn.analysis.readout import density_ratio, label_entropy, usable_information
from locallearn.data.nuisance import asked_for_nuisance
from locallearn.prices import as_in_training, meters_of
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, by_layer, outputs, sample


@dataclass(frozen=True)
class Nuisance(Probe):
    """I(z; n) of each unit's output z and the nuisance n of `data.nuisance=`, in bits (Achille and Soatto 2018, arXiv
    1706.01350), behind the noise of `bottleneck=` where there is any. Per unit:

    i_z_n          H(n) - cross-entropy of a small net: a lower bound (`analysis.readout.usable_information`)
    i_z_n_ratio    by the ratio of densities that a net has learned: no bound (`analysis.readout.density_ratio`)
    i_z_n_bound    the bound of Donsker and Varadhan by that net
    nuisance_bits  H(n), the most there is
    i_z_y          H(y) - cross-entropy of a small net; label_bits  H(y)

    n is drawn without a look at y. So I(z; n) + I(z; y) <= I(z; x): what passes a bottleneck is at least the sum.

    samples  of the training split to learn from, and of the test split to measure on
    steps    of training for each net, of which a unit has three
    """

    samples: Annotated[int, Ge(10)] = 2000
    steps: Annotated[int, Ge(1)] = 300
    tasks = CLASS_LABELS
    curves = (
        Curve("i_z_n", "I(z; n) that a net reads, and H(n) [bits]", level="nuisance_bits", depth=True),
        Curve("i_z_n_bound", "I(z; n) by the ratio of densities [bits]", level="nuisance_bits", depth=True),
        Curve("i_z_y", "I(z; y) that a net reads, and H(y) [bits]", level="label_bits", depth=True),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        asked = asked_for_nuisance(data)
        seed = seeds.derive(data.seed, "nuisance")
        (inputs, n), (others, true_n) = (sample(asked, split, self.samples) for split in ("train", "test"))
        (_, y), (_, true_y) = (sample(data, split, self.samples) for split in ("train", "test"))
        known, sought = y >= 0, true_y >= 0
        values = 1 + int(max(n.max(), true_n.max()))
        entropies = {"nuisance_bits": label_entropy(true_n), "label_bits": label_entropy(true_y[sought])}
        rows: list[Row] = []
        with as_in_training(meters_of(learner.model.units)):
            for h, held_out in zip(outputs(learner, inputs), outputs(learner, others), strict=True):
                pairs = h, n, held_out, true_n
                ratio = density_ratio(*pairs, classes=values, steps=self.steps, seed=seed)
                row = {
                    "i_z_n": usable_information(*pairs, classes=values, steps=self.steps, seed=seed).bits,
                    "i_z_n_ratio": ratio.bits,
                    "i_z_n_bound": ratio.bound,
                    "i_z_y": usable_information(
                        h[known], y[known], held_out[sought], true_y[sought],
                        classes=len(data.classes), steps=self.steps, seed=seed,
                    ).bits,
                }  # fmt: skip
                rows.append(row | entropies)
        return Seen(by_layer(learner, rows))
