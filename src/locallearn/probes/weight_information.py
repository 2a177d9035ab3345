"""How much noise the weights of every layer tolerate, and the information that they hold by that."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from locallearn.analysis.weight_noise import cross_entropy, gaussian_information, tolerated_noise
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, layers, sample
from locallearn.seeds import derive


@dataclass(frozen=True)
class WeightInformation(Probe):
    """Gaussian noise on the weights of one layer at a time that raises the model's expected cross-entropy on training
    samples by `tolerance`, and the information in bits that these weights then hold (Achille and Soatto 2018, arXiv
    1706.01350; equations in `analysis.weight_noise`). Per layer of the model, and for its head:

    tolerated_noise   its standard deviation; left out where any noise is tolerated, as at some initial weights
    tolerated_noise_over_weights   the same over the root mean square of the weights
    weight_information, weight_information_per_parameter   bits

    In eval mode and full precision. Each layer has the whole tolerance to itself: the numbers of layers do not add up.

    tolerance  rise of the mean cross-entropy in nats
    samples    training samples; of a graph, all that have a label
    draws      pairs of noise and its negative
    """

    tolerance: Annotated[float, Gt(0)] = 0.1
    samples: Annotated[int, Ge(1)] = 256
    draws: Annotated[int, Ge(1)] = 4
    tasks = CLASS_LABELS
    curves = (
        Curve("tolerated_noise_over_weights", "tolerated noise / rms weight", log=True),
        Curve("weight_information_per_parameter", "information (bits per weight)"),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        model = learner.model.eval()  # put back by the caller
        h = learner.prepare(inputs)
        rows: list[Row] = []
        modules = [layer for _, layer in layers(model)]
        for i, (row, layer) in enumerate(layers(model)):
            weights = {f"0.{key}": p.detach() for key, p in layer.named_parameters()}
            if weights:  # what lies below the layer stays as it is
                loss = cross_entropy(nn.Sequential(*modules[i:]), h, labels, batch=model.samples or 512)
                seed = derive(data.seed, "weight_information", i)
                sigma = tolerated_noise(loss, weights, self.tolerance, seed, self.draws)
                rows.append({**row, **_numbers(weights, sigma), "tolerance": self.tolerance})
            with torch.no_grad():
                h = layer(h)
        return Seen(rows)


def _numbers(weights: Mapping[str, Tensor], sigma: float) -> Row:
    count = sum(w.numel() for w in weights.values())
    size = math.sqrt(sum(float(w.double().square().sum()) for w in weights.values()) / count)
    row: Row = {}
    if math.isfinite(sigma):
        row |= {"tolerated_noise": sigma} | ({"tolerated_noise_over_weights": sigma / size} if size else {})
    information = gaussian_information(weights, sigma)
    if math.isfinite(information):
        row |= {"weight_information": information, "weight_information_per_parameter": information / count}
    return row
