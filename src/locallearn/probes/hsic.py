"""How much every layer depends on the input and on the label, by kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt
from torch.nn import functional as F

from locallearn.analysis.hsic import gaussian_kernel, normalised
from locallearn.errors import UserError
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, by_layer, outputs, sample


@dataclass(frozen=True)
class HSICProbe(Probe):
    """Normalised HSIC of every unit with the input and with the label (Ma, Lewis & Kleijn 2020, arXiv 1908.01580; see
    `analysis.hsic`), on labelled samples without augmentation:

    nhsic_x, nhsic_y   nHSIC(h, x) and nHSIC(h, y), between 0 and samples - 1
    nhsic_shuffled     nHSIC(h, y) with the labels shuffled: what chance gives
    nhsic_samples, nhsic_scale   the convention; numbers of different ones cannot be compared

    samples  N^3 operations
    scale    s of the Gaussian kernels, in units of the root of the number of coordinates
    split    train, validation, test or all
    """

    samples: Annotated[int, Ge(4)] = 500
    scale: Annotated[float, Gt(0)] = 5.0
    split: str = "test"
    tasks = CLASS_LABELS
    curves = (
        Curve("nhsic_x", "nHSIC(h, x)"),
        Curve("nhsic_y", "nHSIC(h, y)"),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, self.split, self.samples)
        if not inputs.is_floating_point():
            raise UserError("probe.hsic reads numbers, but the inputs are tokens: choose probe=information_plane")
        known = labels >= 0
        y = labels[known]
        one_hot = F.one_hot(y, learner.model.classes)

        def r(t):  # type: ignore[no-untyped-def]
            return normalised(gaussian_kernel(t.double(), [self.scale]))

        of_x, of_y, shuffled = r(inputs[known]), r(one_hot), r(one_hot.roll(len(y) // 3, 0).flip(0))
        rows: list[Row] = []
        for h in outputs(learner, inputs):
            of_h = r(h[known])
            pairs = {"nhsic_x": of_x, "nhsic_y": of_y, "nhsic_shuffled": shuffled}
            row: Row = {name: float((of_h * other).sum()) for name, other in pairs.items()}
            rows.append(row | {"nhsic_samples": len(y), "nhsic_scale": self.scale})
        return Seen(by_layer(learner, rows))
