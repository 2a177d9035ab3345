"""What noisy weights know of the training set, and what that guarantees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.analysis.pac_bayes import kl_bound, kl_inverse, linear_bound
from locallearn.errors import UserError
from locallearn.models.noisy_weights import GaussianWeights
from locallearn.prices import as_in_training
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, sample

BATCH = 500


@dataclass(frozen=True)
class NoisyWeightsProbe(Probe):
    """Of a run with `bottleneck=weights`. Per layer, in order:

    weight_bits   KL(q || p) in bits; under prior=log_uniform but for a constant

    and for the net, in a row of its own:

    nats, samples   KL of all layers, and the training samples N
    train_nats, train_accuracy, test_accuracy   mean cross-entropy and accuracies of the noisy net, over the draws
    saved_nats   N (ln K - train_nats): how many nats the noisy net saves on the training labels. Of labels drawn at
                 random it cannot exceed `nats` by more than ln(1 / delta), with probability 1 - delta
    bound_kl, bound_linear   on the test error of the noisy net (see `analysis.pac_bayes`): with probability 1 - delta,
                 half of which covers that the training error is a mean over draws. Of nets of linear layers: in a
                 convolution every position has noise of its own, which no noise of the weights gives

    draws, delta
    test  test samples
    """

    draws: Annotated[int, Ge(1)] = 20
    delta: Annotated[float, Gt(0), Interval(lt=1)] = 0.05
    test: Annotated[int, Ge(2)] = 2000
    tasks = CLASS_LABELS
    curves = (Curve("weight_bits", "KL of a layer [bits]", log=True),)

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        model = learner.model.eval()
        layers = [m for m in model.modules() if isinstance(m, GaussianWeights)]
        if not layers:
            raise UserError("probe.noisy_weights looks at noisy weights, but there are none: choose bottleneck=weights")
        with torch.no_grad():
            rows: list[Row] = [
                {"layer": i, "name": layer.name, "weight_bits": float(layer.nats()) / math.log(2)}
                for i, layer in enumerate(layers)
            ]
            with as_in_training(layers):
                (nats, trained), (_, tested) = (
                    self._answers(learner, *sample(data, split, size))
                    for split, size in (("train", None), ("test", self.test))
                )
        count = len(data.train)
        total = sum(row["weight_bits"] for row in rows) * math.log(2)
        own: Row = {"nats": total, "samples": count, "train_nats": nats, "train_accuracy": trained}
        own |= {"test_accuracy": tested, "saved_nats": count * (math.log(model.classes) - nats)}
        if layers[0].options.prior != "log_uniform" and all(isinstance(m.layer, nn.Linear) for m in layers):
            # The noise of each draw and sample is its own: as many independent coins.
            error = kl_inverse(1 - trained, math.log(2 / (self.delta / 2)) / (self.draws * count))
            bound = {"bound_kl": kl_bound, "bound_linear": linear_bound}
            own |= {name: of(error, total, count, self.delta / 2) for name, of in bound.items()}
        return Seen([*rows, own])

    def _answers(self, learner: Learner, inputs: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean cross-entropy in nats and accuracy over draws of the weights, one for each draw and sample."""
        nats, right = [], []
        for _ in range(self.draws):
            logits = []
            for x in inputs.split(BATCH):
                with learner.stage.autocast():
                    logits.append(learner.model(learner.prepare(x)).double())
            answers = torch.cat(logits)
            nats.append(float(F.cross_entropy(answers, labels)))
            right.append(float((answers.argmax(1) == labels).double().mean()))
        return fmean(nats), fmean(right)
