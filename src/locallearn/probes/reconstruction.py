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
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures import by_depth, panels
from locallearn.options import OneOf
from locallearn.probes.base import Every, Moment, Probe, Row, Seen
from locallearn.probes.depth import outputs, sample
from locallearn.probes.features import CELL, as_pixels, bare, chosen, ends, show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DECODERS = ("linear", "network")
HELD_OUT = 500
SHOWN = 8
CHUNK = 256


@dataclass(frozen=True)
class Reconstruction(Probe):
    """Fits a decoder on the frozen output of each block, in eval mode, that puts the input back (see
    `analysis.decoder`), and tries it on the first 500 test samples:

    mse                 on the scale of pixels, 0 to 1 (of other inputs, on their own)
    explained_variance  1 - mse / variance about the mean input; what is missing to 1 was lost, or is there in a form
                        that this decoder cannot read in so many steps: a lower bound
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

    def unread(self) -> Mapping[str, str]:
        return {} if self.decoder == "network" else {"steps": "probe.reconstruction.decoder=network"}

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        batch, train, test = _samples(data, self.samples)
        truth = as_pixels(batch, data)
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
        if self.decoder == "linear":
            return ridge(*_between(h, inputs, held_out))[0]
        return reconstruct(h, inputs, held_out, steps=self.steps, seed=seed)

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        figures = {"reconstruction": _curves(rows)} if rows else {}
        for epoch in ends(arrays):
            figures[f"reconstruction-{epoch:05d}"] = _images(rows, arrays[epoch], epoch)
        return figures


def _between(h: Tensor, inputs: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The arguments of `ridge`, features standardised."""
    h, held_out = standardised(h, held_out)
    return h, inputs, held_out


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


def _curves(rows: Sequence[Row]) -> Figure:
    """Explained variance by depth, a line for each of at most six looks."""
    epochs = sorted({int(row["epoch"] or 0) for row in rows})
    shown = [epochs[round(k * (len(epochs) - 1) / 5)] for k in range(6)] if len(epochs) > 6 else epochs
    figure, (axis, *_) = panels()
    for epoch, colour in zip(shown, by_depth(len(shown)), strict=True):
        of = [row for row in rows if row["epoch"] == epoch]
        kept_shares = [float(row["explained_variance"] or 0) for row in of]
        axis.plot([float(row["layer"] or 0) for row in of], kept_shares, "o-", ms=3, color=colour, label=f"{epoch}")
    axis.set(xlabel="Layer (unit)", ylabel="Explained variance of the input", ylim=(min(0, axis.get_ylim()[0]), 1))
    axis.locator_params(axis="x", integer=True)
    axis.legend(title="Epoch", fontsize=7, title_fontsize=7, frameon=False)
    return figure


def _images(rows: Sequence[Row], arrays: Mapping[str, Tensor], epoch: int) -> Figure:
    """Originals in the first row, below them what was put back from each layer."""
    layers = sorted(name for name in arrays if name != "input")
    about = {row["layer"]: row for row in rows if row["epoch"] == epoch}
    columns = len(arrays["input"])
    figure, axes = panels(columns, 1 + len(layers), CELL, CELL)
    for k, name in enumerate(["input", *layers]):
        line = axes[k * columns : (k + 1) * columns]
        for axis, image in zip(line, arrays[name], strict=True):
            show(axis, image)
            bare(axis)
        row = about[int(name)] if k else {}
        bare(line[0], label=f"{row['name']}\n{row['explained_variance']:.2f}" if row else "image")
    when = "initial weights" if epoch == 0 else f"after epoch {epoch}"
    figure.suptitle(f"Reconstruction and explained variance, {when}", fontsize=8)
    return figure
