"""Signal and noise of every layer's gradient over minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from locallearn.analysis.gradient_noise import Noise, gradient_noise, norm, running_median, transition
from locallearn.engine.gradients import strategy_gradients
from locallearn.errors import UserError
from locallearn.figures import panels
from locallearn.figures.curves import over_epochs, series
from locallearn.probes import Arrays, Data, Learner, Moment, Pictures, Probe, Row, Seen, layers
from locallearn.seeds import generator


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

    A triangle marks the look from which the running median of the ratio over five looks stays below 1 to the end, at
    the height of that median (see `analysis.gradient_noise.transition`); the first look, where it never was above.

    batches, batch_size  minibatches and the samples in each; fewer samples where the training set has not so many
    """

    batches: Annotated[int, Ge(2)] = 32
    batch_size: Annotated[int, Ge(1)] = 64
    single: ClassVar[bool] = True

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        return Seen(gradient_snr(learner, _minibatches(data, self.batches, self.batch_size)))

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        figure, (ratio, sizes) = panels(2, width=3.6)
        over_epochs(ratio, rows, "gradient_snr")
        for line, (name, colour, epochs, values) in zip(ratio.lines[:], series(rows, "gradient_snr"), strict=True):
            at = transition(epochs, values)
            if at is not None:
                line.set_label(f"{name} (< 1 from {at})")
                ratio.plot([at], [running_median(values)[epochs.index(at)]], "v", color=colour)
        ratio.axhline(1, color="#999999", linewidth=0.8)
        for key, style, what in (("mean", "-", "mean"), ("std", "--", "standard deviation")):
            over_epochs(sizes, rows, f"gradient_{key}_over_weights", style, labelled=False)
            sizes.plot([], [], style, color="black", label=what)
        ratio.set(yscale="log", ylabel="gradient signal-to-noise ratio")
        sizes.set(yscale="log", ylabel="gradient norm / weight norm")
        ratio.legend()
        sizes.legend()
        return {self.name: figure}


def gradient_snr(learner: Learner, minibatches: Iterable[tuple[Tensor, Tensor]]) -> list[Row]:
    """The numbers of `GradientSNR` for minibatches (inputs [B, ...], labels [B]): a row per layer, then per block."""
    own = [list(layer.parameters()) for _, layer in layers(learner.model)]
    learned: dict[int, list[nn.Parameter]] = {}

    def gradients() -> Iterator[dict[int, list[Tensor]]]:
        for inputs, labels in minibatches:
            of = {p: g for block in strategy_gradients(learner, inputs, labels) for p, g in block.parameters.items()}
            learned.update((i, [p for p in parameters if p in of]) for i, parameters in enumerate(own))
            yield {i: [of[p] for p in parameters] for i, parameters in learned.items() if parameters}

    noise = gradient_noise(gradients())
    starts = [row for row, _ in layers(learner.model)]
    rows: list[Row] = [starts[i] | _numbers(n, norm(learned[i])) for i, n in noise.items()]
    for k, units in enumerate(learner.cut):
        within = [*units, len(own) - 1] if k == len(learner.cut) - 1 else units
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
