"""How much noise the weights of every layer tolerate, and the information that they hold by that."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from locallearn import figures
from locallearn.analysis.weight_noise import cross_entropy, gaussian_information, tolerated_noise
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.probes import curves
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import sample
from locallearn.seeds import derive

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        model = learner.model.eval()  # put back by the caller
        h = learner.prepare(inputs)
        units = [*model.units, model.head]
        rows: list[Row] = []
        for i, name in enumerate([*model.names, "head"]):
            weights = {f"0.{key}": p.detach() for key, p in units[i].named_parameters()}
            if weights:  # what lies below the layer stays as it is
                loss = cross_entropy(nn.Sequential(*units[i:]), h, labels, batch=model.samples or 512)
                seed = derive(data.seed, "weight_information", i)
                sigma = tolerated_noise(loss, weights, self.tolerance, seed, self.draws)
                rows.append({"layer": i, "name": name, **_numbers(weights, sigma), "tolerance": self.tolerance})
            with torch.no_grad():
                h = units[i](h)
        return Seen(rows)

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        figure, (noise, information) = figures.panels(columns=2, width=3.6)
        curves.lines(noise, rows, "layer", "tolerated_noise_over_weights")
        curves.lines(information, rows, "layer", "weight_information_per_parameter")
        noise.set(yscale="log", ylabel="tolerated noise / rms weight")
        information.set(ylabel="information (bits per weight)")
        noise.legend(fontsize=6, frameon=False)
        return {"weight_information": figure}


def _numbers(weights: Mapping[str, Tensor], sigma: float) -> Row:
    count = sum(w.numel() for w in weights.values())
    size = math.sqrt(sum(float(w.double().square().sum()) for w in weights.values()) / count)
    row: Row = {}
    if math.isfinite(sigma):
        row |= (
            {"tolerated_noise": sigma, "tolerated_noise_over_weights": sigma / size}
            if size
            else {"tolerated_noise": sigma}
        )
    information = gaussian_information(weights, sigma)
    if math.isfinite(information):
        row |= {"weight_information": information, "weight_information_per_parameter": information / count}
    return row
