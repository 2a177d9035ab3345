"""What was lost on the way up: the input, put back from each block's output by a small decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn import seeds
from locallearn.analysis.decoder import kept, reconstruct, ridge, standardised
from locallearn.analysis.features import as_pixels
from locallearn.errors import UserError
from locallearn.figures.style import gallery
from locallearn.options import OneOf
from locallearn.probes import Curve, Data, Every, Learner, Moment, Probe, Row, Seen, chosen, outputs, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECODERS = ("linear", "network")
HELD_OUT = 500
SHOWN = 8
CHUNK = 256


@dataclass(frozen=True)
class ReconstructionProbe(Probe):
    """Fits a decoder on the frozen output of each block, in eval mode, that puts the input back (see
    `analysis.decoder`), and tries it on at most 500 test samples:

    mse                 on the scale of pixels, 0 to 1 (of other inputs, on their own)
    explained_variance  1 - mse / variance about the mean input; what is missing to 1 was lost, or is there in a form
                        that this decoder cannot read in these steps: a lower bound
    psnr                in dB; the peak is 1 (of other inputs, their range)

    Holds the output of one layer for all samples at a time.

    layers   units; None: the last unit of every block
    samples  of the training split
    decoder  linear: ridge regression in closed form, which is exact and needs no steps; network: a small one, of
             convolutions for maps and of one hidden layer for vectors
    steps    of training the network
    """

    every: Every = field(default="log", kw_only=True)
    layers: tuple[int, ...] | None = None
    samples: Annotated[int, Ge(2)] = 2000
    decoder: Annotated[str, OneOf(DECODERS)] = "linear"
    steps: Annotated[int, Ge(1)] = 300
    curves = (Curve("explained_variance", "explained variance of the input", depth=True),)

    def unread(self) -> Mapping[str, str]:
        return {} if self.decoder == "network" else {"steps": "probe.reconstruction.decoder=network"}

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        batch, train, test = _samples(data, self.samples)
        truth = as_pixels(batch, data.pixels)
        peak = 1.0 if data.pixels is not None else float(truth[test].max() - truth[test].min())
        images = len(data.image) == 3
        tops = [units.stop - 1 for units in learner.cut]
        rows: list[Row] = []
        arrays = {"input": truth[test][:SHOWN].half()} if images else {}
        for k, i in enumerate(chosen("reconstruction", self.layers, tops, learner)):
            h = _output(learner, batch, i, whole=data.graph is not None)
            decoded = self._decode(h[train], truth[train], h[test], seeds.derive(data.seed, "reconstruction", i))
            place: Row = {"layer": i} if self.layers else {"block": k, "layer": i}
            numbers = kept(decoded, truth[test], peak)._asdict()
            rows.append({**place, "name": learner.model.names[i], "decoder": self.decoder, **numbers})
            if images:
                arrays[f"{i:03d}"] = decoded[:SHOWN].half()
        return Seen(rows, arrays)

    def _decode(self, h: Tensor, inputs: Tensor, held_out: Tensor, seed: int) -> Tensor:
        if self.decoder == "network":
            return reconstruct(h, inputs, held_out, steps=self.steps, seed=seed)
        h, held_out = standardised(h, held_out)
        return ridge(h, inputs, held_out)[0]

    def snapshot(self, rows: Sequence[Row], arrays: Mapping[str, Tensor]) -> Figure:
        """Originals in the first line, below them what was put back from each layer."""
        lines = [("image", arrays["input"])]
        lines += [(f"{r['name']}\n{r['explained_variance']:.2f}", arrays[f"{r['layer']:03d}"]) for r in rows]
        return gallery([(label, [("", image) for image in images]) for label, images in lines])


def _samples(data: Data, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs [N, *image] to feed, and which of them the decoder learns from and is tried on (indices). Of a graph all
    nodes are fed, and those with a label in the split are used."""
    inputs, labels = sample(data, "train", count)
    if not inputs.is_floating_point():
        raise UserError(f"the inputs of {data.name} are indices, which no decoder can put back; choose other data")
    others, other_labels = sample(data, "test", HELD_OUT)
    if data.graph is not None:
        train, test = (labels >= 0).nonzero().flatten(), (other_labels >= 0).nonzero().flatten()
        return inputs, train[:count], test[:HELD_OUT]
    place = torch.arange(len(inputs) + len(others), device=inputs.device)
    return torch.cat([inputs, others]), place[: len(inputs)], place[len(inputs) :]


@torch.no_grad()
def _output(learner: Learner, batch: Tensor, unit: int, whole: bool) -> Tensor:
    """What a unit emits for a batch [N, ...], in float32."""
    parts = [batch] if whole else batch.split(CHUNK)
    return torch.cat([next(islice(outputs(learner, part), unit, None)).float() for part in parts])
