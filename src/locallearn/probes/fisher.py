"""Fisher information of the weights of every layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn import figures
from locallearn.analysis.fisher import fisher_diagonal
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.probes import curves
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import sample
from locallearn.seeds import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Fisher(Probe):
    """Trace of the Fisher information of the weights of every layer of the model and of its head, in nats^2:
    E_x E_{y ~ p(y|x)} || d log p(y|x) / d w ||^2, with labels drawn from the model (Achille, Rovere and Soatto 2019,
    arXiv 1711.08856), in eval mode and full precision.

    fisher_trace, fisher_trace_per_parameter   of a layer

    The labels are drawn anew at every look. Layers without parameters are left out.

    samples  training samples; of a graph, labelled training nodes
    """

    samples: Annotated[int, Ge(1)] = 512

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        nodes = (labels >= 0).nonzero().squeeze(1)[: self.samples] if learner.model.samples is not None else None
        random = generator(data.seed, "fisher", at.step)
        diagonal = fisher_diagonal(learner.model, learner.prepare(inputs), random, nodes=nodes)
        return Seen(traces(learner, diagonal))

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        figure, (total, mean) = figures.panels(columns=2, width=3.6)
        curves.lines(total, rows, "layer", "fisher_trace")
        curves.lines(mean, rows, "layer", "fisher_trace_per_parameter")
        total.set(yscale="log", ylabel="trace of the Fisher information (nats²)")
        mean.set(yscale="log", ylabel="the same per parameter (nats²)")
        total.legend(fontsize=6, frameon=False)
        return {"fisher": figure}


def traces(learner: Learner, diagonal: Mapping[str, Tensor]) -> list[Row]:
    """A row per layer of the model, and one for its head, from the diagonal by parameter name."""
    model = learner.model
    rows: list[Row] = []
    for i, name in enumerate([*model.names, "head"]):
        prefix = "head." if i == len(model.units) else f"units.{i}."
        own = [torch.sum(d.double()) for key, d in diagonal.items() if key.startswith(prefix)]
        count = sum(d.numel() for key, d in diagonal.items() if key.startswith(prefix))
        if count:
            trace = float(torch.stack(own).sum())
            rows.append({"layer": i, "name": name, "fisher_trace": trace, "fisher_trace_per_parameter": trace / count})
    return rows
