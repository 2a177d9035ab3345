"""Signal and noise of every layer's gradient over minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from locallearn import figures
from locallearn.analysis.gradient_noise import Noise, gradient_noise, norm, running_median, transition
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.gradients import strategy_gradients
from locallearn.errors import UserError
from locallearn.probes import curves
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.seeds import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class GradientSNR(Probe):
    """Mean and standard deviation over minibatches of the gradient that the strategy applies, per layer and per block
    (units and model head, no auxiliary networks), as in Shwartz-Ziv and Tishby 2017:

    gradient_mean, gradient_std   || mean ||_2 and || std ||_2 over minibatches
    gradient_mean_over_weights, gradient_std_over_weights   the same over the norm of the weights, where that is not 0
    gradient_snr, phase   mean / std; drift from 1 upward, diffusion below. Pure noise has about 1 / sqrt(batches - 1)

    At fixed weights, on the same minibatches of training samples at every look, without augmentation and with one
    dropout mask; in the literature the weights move within the epoch over which is averaged. The ratio grows with the
    root of the batch size. Of a graph, a minibatch is `batch_size` of its labelled training nodes. Layers that learn
    nothing at the moment are left out.

    A triangle in the picture marks the look from which the running median of the ratio, over five looks, stays below 1
    to the end, at the height of that median (see `analysis.gradient_noise.transition`); also the first look, where it
    never was above.

    batches, batch_size  minibatches and the samples in each; fewer samples where the training set has not so many
    """

    batches: Annotated[int, Ge(2)] = 32
    batch_size: Annotated[int, Ge(1)] = 64

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        return Seen(gradient_snr(learner, _minibatches(data, self.batches, self.batch_size)))

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        figure, (ratio, sizes) = figures.panels(columns=2, width=3.6)
        colours = figures.by_depth(1 + max((int(row["layer"] or 0) for row in rows if "layer" in row), default=0))
        for i, name, epochs, values in curves.series(rows, "layer", "gradient_snr"):
            at = transition(epochs, values)
            marker = "." if len(epochs) < 3 else None
            ratio.plot(
                epochs,
                values,
                color=colours[i],
                marker=marker,
                label=name if at is None else f"{name} (< 1 from {at})",
            )
            if at is not None:
                ratio.plot([at], [running_median(values)[epochs.index(at)]], "v", color=colours[i])
        ratio.axhline(1, color="#999999", linewidth=0.8)
        curves.lines(sizes, rows, "layer", "gradient_mean_over_weights", labelled=False)
        curves.lines(sizes, rows, "layer", "gradient_std_over_weights", style="--", labelled=False)
        figures.epoch_axis(ratio, (row["epoch"] for row in rows))
        ratio.set(yscale="log", ylabel="gradient signal-to-noise ratio")
        sizes.set(yscale="log", ylabel="gradient norm / weight norm")
        for style, what in (("-", "mean"), ("--", "standard deviation")):
            sizes.plot([], [], style, color="black", label=what)
        for axes in (ratio, sizes):
            axes.legend(fontsize=6, frameon=False)
        return {"gradient_snr": figure}


def gradient_snr(learner: Learner, minibatches: Iterable[tuple[Tensor, Tensor]]) -> list[Row]:
    """The numbers of `GradientSNR` for minibatches (inputs [B, ...], labels [B]): a row per layer, then per block."""
    model = learner.model
    own = [list(unit.parameters()) for unit in (*model.units, model.head)]
    learned: dict[int, list[nn.Parameter]] = {}

    def gradients() -> Iterator[dict[int, list[Tensor]]]:
        for inputs, labels in minibatches:
            found = {p: g for block in strategy_gradients(learner, inputs, labels) for p, g in block.parameters.items()}
            for i, parameters in enumerate(own):
                learned[i] = [p for p in parameters if p in found]
            yield {i: [found[p] for p in parameters] for i, parameters in learned.items() if parameters}

    noise = gradient_noise(gradients())
    names = [*model.names, "head"]
    rows: list[Row] = [{"layer": i, "name": names[i], **_numbers(n, norm(learned[i]))} for i, n in noise.items()]
    for k, units in enumerate(learner.cut):
        within = [*units, len(model.units)] if k == len(learner.cut) - 1 else units
        parts = [noise[i] for i in within if i in noise]
        if parts:
            mean, std = math.hypot(*(n.mean for n in parts)), math.hypot(*(n.std for n in parts))
            size = norm(p for i in within for p in learned[i])
            rows.append({"block": k, **_numbers(Noise(mean, std, parts[0].batches), size)})
    return rows


def _numbers(noise: Noise, weights: float) -> Row:
    row: Row = {"gradient_mean": noise.mean, "gradient_std": noise.std, "minibatches": noise.batches}
    if weights:
        row |= {"gradient_mean_over_weights": noise.mean / weights, "gradient_std_over_weights": noise.std / weights}
    if math.isfinite(noise.snr):
        row |= {"gradient_snr": noise.snr, "phase": "drift" if noise.snr >= 1 else "diffusion"}
    return row


def _minibatches(data: Data, batches: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The same full minibatches at every look, drawn without replacement."""
    split = data.train
    size = min(batch_size, len(split) // batches)
    if not size:
        raise UserError(
            f"probe.gradient_snr.batches={batches} is more than the {len(split)} training samples of {data.name}; "
            "choose fewer"
        )
    order = torch.randperm(len(split), generator=generator(data.seed, "gradient_snr"))[: batches * size]
    for part in (order,) if data.graph is None else order.split(size):
        yield from data.evaluation(split.at(part), size)
