"""Fisher information of the weights of every layer, and the information in the weights that follows from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt
from torch import Tensor, nn

from locallearn.analysis.fisher import Scores, drawn_labels, fisher_diagonal, scores
from locallearn.analysis.kfac import by_parameter, kronecker
from locallearn.analysis.weight_nats import FORMS, curvature_nats, place_nats, spectrum
from locallearn.errors import UserError
from locallearn.models.noisy_weights import GaussianWeights
from locallearn.options import OneOf
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, layers, sample
from locallearn.seeds import generator


@dataclass(frozen=True)
class Fisher(Probe):
    """Trace of the Fisher information of the weights of every layer of the model and of its head, in nats^2:
    E_x E_{y ~ p(y|x)} || d log p(y|x) / d w ||^2, with labels drawn from the model (Achille, Rovere and Soatto 2019,
    arXiv 1711.08856), in eval mode and full precision.

    fisher_trace, fisher_trace_per_parameter   of a layer

    The labels are drawn anew at every look. Layers without parameters are left out. With `form` also, of each layer and
    in a last row of the net, the bits in the weights by the curvature of the loss (`analysis.weight_nats`):

    weight_bits_place      |w|^2 / (2 lambda^2), how far they are from 0
    weight_bits_diagonal   what is added by the diagonal of the Fisher information
    weight_bits_gram       what is added by all of it (`curvature=gram`), as `samples` samples show it
    weight_bits_gram_by_layer   of the net: the sum of its layers' weight_bits_gram
    weight_bits_kfac       what is added by K-FAC (`curvature=kfac`, `analysis.kfac`): the factors of linear layers and
                           convolutions, each layer by itself, and the diagonal for all else; it has no order

    In the forms cost and slide gram <= gram_by_layer <= diagonal; and on average over samples, gram <= what the Fisher
    information of all would give <= diagonal. lambda of a layer is `scale` / sqrt(numbers that one output reads), about
    the size of initial weights. The deviations of `bottleneck=weights` are no weights.

    samples    training samples; of a graph, labelled training nodes
    form       kl, cost or slide; None: the trace alone
    curvature  diagonal, gram or kfac
    beta       nats of the loss, summed over the N training samples, that a nat of the weights costs
    scale      of the prior
    """

    samples: Annotated[int, Ge(1)] = 512
    form: Annotated[str, OneOf(FORMS)] | None = None
    curvature: Literal["diagonal", "gram", "kfac"] = "diagonal"
    beta: Annotated[float, Gt(0)] = 1.0
    scale: Annotated[float, Gt(0)] = 1.0
    tasks = CLASS_LABELS
    curves = (
        Curve("fisher_trace", "trace of the Fisher information (nats²)", log=True),
        Curve("fisher_trace_per_parameter", "the same per parameter (nats²)", log=True),
        Curve("weight_bits_diagonal", "bits by curvature, diagonal", log=True),
        Curve("weight_bits_gram", "bits by curvature, gram", log=True),
        Curve("weight_bits_kfac", "bits by curvature, K-FAC", log=True),
    )

    def unread(self) -> Mapping[str, str]:
        names = ("curvature", "beta", "scale")
        return {} if self.form else dict.fromkeys(names, f"probe.fisher.form={', '.join(FORMS[:-1])} or {FORMS[-1]}")

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, "train", self.samples)
        model, x = learner.model, learner.prepare(inputs)
        random = generator(data.seed, "fisher", at.step)
        grams: dict[str, Tensor] = {}
        eigenvalues: dict[str, Tensor] = {}
        if self.form and self.curvature != "diagonal" and model.samples is not None:
            raise UserError(
                f"probe.fisher.curvature={self.curvature} is for samples that are read one by one, not for a graph: "
                "choose diagonal"
            )
        if self.form and self.curvature == "gram":
            found: dict[str, Scores] = dict(scores(model, x, drawn_labels(model, x, random)))
            diagonal = {name: each.squares for name, each in found.items()}
            grams = {name: each.gram / len(x) for name, each in found.items()}
        else:
            nodes = (labels >= 0).nonzero().squeeze(1)[: self.samples] if model.samples is not None else None
            diagonal = fisher_diagonal(model, x, random, nodes=nodes)
            if self.form and self.curvature == "kfac":
                eigenvalues = by_parameter(kronecker(model, x, drawn_labels(model, x, random)), diagonal)
        names = {p: name for name, p in model.named_parameters()}
        prior, factor = deviations(model, self.scale), len(data.train) / self.beta
        rows: list[Row] = []
        whole: list[_Curvature] = []
        for row, layer in layers(model):
            own = [p for p in layer.parameters() if p in names]  # shared weights count once
            if own:
                named = {names.pop(p): p for p in own}
                trace = sum(float(diagonal[name].double().sum()) for name in named)
                row |= {"fisher_trace": trace, "fisher_trace_per_parameter": trace / sum(p.numel() for p in own)}
                curvatures = [
                    _Curvature.of(p, prior[p], factor, diagonal[name], grams.get(name), eigenvalues.get(name))
                    for name, p in named.items()
                    if self.form and p in prior
                ]
                whole += curvatures
                rows.append(row | self._bits(curvatures) if curvatures else row)
        if not self.form:
            return Seen(rows)
        parts = [row["weight_bits_gram"] for row in rows if "weight_bits_gram" in row]
        return Seen([*rows, self._bits(whole) | ({"weight_bits_gram_by_layer": sum(parts)} if parts else {})])

    def _bits(self, of: Sequence[_Curvature]) -> Row:
        """Of some parameters together."""
        assert self.form is not None
        convention = f"{self.form}, beta {self.beta:g}, lambda {self.scale:g} / root of what is read"
        nats = {
            "weight_bits_place": sum(each.place for each in of),
            "weight_bits_diagonal": sum(curvature_nats(each.diagonal, self.form) for each in of),
        }
        if grams := [each.gram for each in of if each.gram is not None]:
            nats["weight_bits_gram"] = curvature_nats(spectrum(torch.stack(grams).sum(0)), self.form)
        if kfac := [each.kfac for each in of if each.kfac is not None]:
            nats["weight_bits_kfac"] = sum(curvature_nats(strengths, self.form) for strengths in kfac)
        return {key: value / math.log(2) for key, value in nats.items()} | {"convention": convention}


class _Curvature(NamedTuple):
    """Of a parameter: nats of its place, and the matrix of `weight_nats` by its diagonal, by its Gram matrix, and by
    the eigenvalues that K-FAC gives it; of the weights of a layer they are those of its bias as well."""

    place: float
    diagonal: Tensor
    gram: Tensor | None
    kfac: Tensor | None

    @classmethod
    def of(
        cls, weight: Tensor, deviation: float, factor: float, diagonal: Tensor, gram: Tensor | None, kfac: Tensor | None
    ) -> _Curvature:
        factor *= deviation**2
        scaled = [None if each is None else factor * each.double() for each in (gram, kfac)]
        return cls(place_nats(weight, deviation), factor * diagonal.double(), *scaled)


def deviations(model: nn.Module, scale: float) -> dict[Tensor, float]:
    """The lambda of every weight of a model; a number of a norm, which reads one number, has `scale`."""
    found: dict[Tensor, float] = {}
    for module in model.modules():
        if not isinstance(module, GaussianWeights):  # its own parameters are those of its noise
            own = list(module.parameters(recurse=False))
            reads = max((p[0].numel() for p in own if p.dim() > 1), default=1)
            found |= {p: scale / math.sqrt(reads) for p in own}
    return found
