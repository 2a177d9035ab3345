"""Fisher information of the weights of every layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge

from locallearn.analysis.fisher import fisher_diagonal
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, layers, sample
from locallearn.seeds import generator


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
    tasks = CLASS_LABELS
    curves = (
        Curve("fisher_trace", "trace of the Fisher information (nats²)", log=True),
        Curve("fisher_trace_per_parameter", "the same per parameter (nats²)", log=True),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        model = learner.model
        nodes = (labels >= 0).nonzero().squeeze(1)[: self.samples] if model.samples is not None else None
        random = generator(data.seed, "fisher", at.step)
        diagonal = fisher_diagonal(model, learner.prepare(inputs), random, nodes=nodes)
        traces = {p: float(diagonal[name].double().sum()) for name, p in model.named_parameters()}
        rows: list[Row] = []
        for row, layer in layers(model):
            own = {p: traces.pop(p) for p in layer.parameters() if p in traces}  # shared weights count once
            if own:
                trace = sum(own.values())
                mean = trace / sum(p.numel() for p in own)
                rows.append(row | {"fisher_trace": trace, "fisher_trace_per_parameter": mean})
        return Seen(rows)
