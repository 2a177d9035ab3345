"""What each layer says of the input through the noise that the weights tolerate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt
from torch import nn

from locallearn.analysis.effective_information import mixture_information, noisy_outputs, tolerated, tolerated_alone
from locallearn.analysis.fisher import fisher_diagonal
from locallearn.analysis.readout import pooled
from locallearn.errors import UserError
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, outputs, sample
from locallearn.probes.fisher import deviations
from locallearn.seeds import generator


@dataclass(frozen=True)
class EffectiveInformation(Probe):
    """I(x; z) in bits of each unit's output z through normal noise on the weights, of covariance beta (N F + beta /
    lambda^2)^-1, F the Fisher information (`analysis.effective_information`); maps are averaged. Per unit:

    effective_information   by draws; effective_lower, effective_upper   what it lies between
    most                    log2 of the samples, the most that it can be

    To first order in the noise, of a net without dropout and without the noise of a bottleneck. A rectifier that is off
    has no noise: which are off tells the samples apart, and the number is near `most`.

    samples    of the split that z is taken of, and of the training split by which the noise is measured
    split      train, validation, test or all
    units      wider layers are left out: their cost grows with the square of the width
    draws      for each sample
    curvature  gram: all of F, as the training samples show it, and the prior's noise where they show nothing, so that
               few make the number small. diagonal: as if no two weights did the same
    beta       nats of the loss, summed over the N training samples, that a nat of the weights costs
    scale      of the prior's lambda, as of probe=fisher
    """

    samples: Annotated[int, Ge(2)] = 128
    split: str = "test"
    units: Annotated[int, Ge(1)] = 64
    draws: Annotated[int, Ge(1)] = 32
    curvature: Literal["gram", "diagonal"] = "gram"
    beta: Annotated[float, Gt(0)] = 1.0
    scale: Annotated[float, Gt(0)] = 1.0
    tasks = CLASS_LABELS
    curves = (Curve("effective_information", "I(x; z) through the weights' noise [bits]", level="most", depth=True),)

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        model = learner.model.eval()  # put back by the caller
        if model.samples is not None:
            raise UserError(
                "probe.effective_information is for samples that are read one by one, not for a graph: leave it out"
            )
        trained, read = (learner.prepare(sample(data, split, self.samples)[0]) for split in ("train", self.split))
        widths = [pooled(h).shape[1] for h in outputs(learner, sample(data, self.split, 1)[0])]
        if min(widths) > self.units:
            raise UserError(
                f"probe.effective_information.units={self.units}: every unit of {model.name} emits more numbers; "
                f"set it to {min(widths)} or more"
            )
        random = generator(data.seed, "effective_information", at.step)
        prior, factor = deviations(model, self.scale), len(data.train) / self.beta
        if self.curvature == "gram":
            noise = tolerated(model, trained, prior, factor, random)
        else:
            diagonal = fisher_diagonal(model, trained, random)
            noise = tolerated_alone({p: diagonal[name] for name, p in model.named_parameters()}, prior, factor)
        most, convention = math.log2(len(read)), f"{self.curvature}, beta {self.beta:g}, lambda {self.scale:g}"
        rows: list[Row] = []
        for i, (name, width) in enumerate(zip(model.names, widths, strict=True)):
            if width <= self.units:
                moments = noisy_outputs(nn.Sequential(*model.units[: i + 1]), noise, read)
                bits, lower, upper = mixture_information(*moments, random, self.draws)
                own = {"effective_information": bits, "effective_lower": lower, "effective_upper": upper, "most": most}
                rows.append({"layer": i, "name": name} | own | {"convention": convention})
        return Seen(rows)
