"""Signal and noise of every layer's gradient over minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from locallearn.analysis.gradient_noise import Moments, Noise, gradient_noise, norm, running_median, transition
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

    over=fixed is at fixed weights, on the same minibatches of training samples at every look, without augmentation and
    with one dropout mask. Of a graph, a minibatch is `batch_size` of its labelled training nodes. over=epoch takes the
    steps of the epoch that has just ended, as the literature does: the gradients that the optimizers got, before they
    were clipped, of the run's own batches, between which the weights have moved; there is nothing to see at the
    initial weights, nor afterwards (`locallearn probe`), and it holds two copies of the weights beside them. The ratio
    grows with the root of the batch size. Layers that learn nothing at the moment are left out.

    A triangle marks the look from which the running median of the ratio over five looks stays below 1 to the end, on
    that median, which is dotted (see `analysis.gradient_noise.transition`); the first look, where it never was above.

    over    fixed or epoch
    biases  whether biases and other vectors count; the code of Shwartz-Ziv and Tishby has the matrices alone
    batches, batch_size  of over=fixed: minibatches and the samples in each; fewer samples where the training set does
            not have as many
    """

    over: Literal["fixed", "epoch"] = "fixed"
    biases: bool = True
    batches: Annotated[int, Ge(2)] = 32
    batch_size: Annotated[int, Ge(1)] = 64

    @property
    def single(self) -> bool:  # type: ignore[override]
        return self.over == "fixed"

    @property
    def follows(self) -> bool:  # type: ignore[override]
        return self.over == "epoch"

    def unread(self) -> Mapping[str, str]:
        of_fixed = dict.fromkeys(("batches", "batch_size"), "probe.gradient_snr.over=fixed")
        return {} if self.over == "fixed" else of_fixed

    def follow(self, learner: Learner, steps: int) -> None:
        for block in learner.blocks:
            own = {p for root in (block.layers, block.head) if root is not None for p in root.parameters()}
            layers = {i: [p for p in of if p in own] for i, of in enumerate(_parameters(learner, self.biases))}
            block.observers.append(EpochMoments({i: of for i, of in layers.items() if of}, steps))

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        if self.over == "fixed":
            minibatches = _minibatches(data, self.batches, self.batch_size)
            return Seen(gradient_snr(learner, minibatches, self.biases))
        observers = [each for block in learner.blocks for each in block.observers if isinstance(each, EpochMoments)]
        noise: dict[int, Noise] = {}
        learned: dict[int, list[nn.Parameter]] = {}
        for each in observers:
            if each.epoch == at.epoch - 1:
                noise |= {i: moments.read() for i, moments in each.moments.items() if moments.count > 1}
                learned |= each.layers
        return Seen(_rows(learner, noise, {i: learned[i] for i in noise}))

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        figure, (ratio, sizes) = panels(2, width=3.6)
        over_epochs(ratio, rows, "gradient_snr")
        for line, (name, colour, epochs, values) in zip(ratio.lines[:], series(rows, "gradient_snr"), strict=True):
            at, median = transition(epochs, values), running_median(values)
            ratio.plot(epochs, median, ":", color=colour, linewidth=0.8)
            if at is not None:
                line.set_label(f"{name} (< 1 from {at})")
                ratio.plot([at], [median[epochs.index(at)]], "v", color=colour)
        ratio.axhline(1, color="#999999", linewidth=0.8)
        for key, style, what in (("mean", "-", "mean"), ("std", "--", "standard deviation")):
            over_epochs(sizes, rows, f"gradient_{key}_over_weights", style, labelled=False)
            sizes.plot([], [], style, color="black", label=what)
        ratio.set(yscale="log", ylabel="gradient signal-to-noise ratio")
        sizes.set(yscale="log", ylabel="gradient norm / weight norm")
        ratio.legend()
        sizes.legend()
        return {self.name: figure}


class EpochMoments:
    """An observer of a block: mean and variance of the gradients of its `layers` over the steps of one epoch."""

    def __init__(self, layers: Mapping[int, list[nn.Parameter]], steps: int) -> None:
        self.layers = layers
        self.steps = steps
        self.epoch = -1
        self.moments: dict[int, Moments] = {}

    def __call__(self, step: int) -> None:
        if step // self.steps != self.epoch:
            self.epoch, self.moments = step // self.steps, {}
        for i, parameters in self.layers.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if len(gradients) == len(parameters):
                self.moments.setdefault(i, Moments()).add(gradients)


def gradient_snr(learner: Learner, minibatches: Iterable[tuple[Tensor, Tensor]], biases: bool = True) -> list[Row]:
    """The numbers of `GradientSNR` for minibatches (inputs [B, ...], labels [B]): a row per layer, then per block."""
    own = _parameters(learner, biases)
    learned: dict[int, list[nn.Parameter]] = {}

    def gradients() -> Iterator[dict[int, list[Tensor]]]:
        for inputs, labels in minibatches:
            of = {p: g for block in strategy_gradients(learner, inputs, labels) for p, g in block.parameters.items()}
            learned.update((i, [p for p in parameters if p in of]) for i, parameters in enumerate(own))
            yield {i: [of[p] for p in parameters] for i, parameters in learned.items() if parameters}

    return _rows(learner, gradient_noise(gradients()), learned)


def _parameters(learner: Learner, biases: bool) -> list[list[nn.Parameter]]:
    """Of each unit of the model, and of its head."""
    return [[p for p in layer.parameters() if biases or p.dim() > 1] for _, layer in layers(learner.model)]


def _rows(learner: Learner, noise: Mapping[int, Noise], learned: Mapping[int, list[nn.Parameter]]) -> list[Row]:
    """A row for each layer that has learned, and for each block."""
    starts = [row for row, _ in layers(learner.model)]
    rows: list[Row] = [starts[i] | _numbers(n, norm(learned[i])) for i, n in sorted(noise.items())]
    for k, units in enumerate(learner.cut):
        within = [*units, len(starts) - 1] if k == len(learner.cut) - 1 else units
        parts = [noise[i] for i in within if i in noise]
        if parts:
            mean, std = math.hypot(*(n.mean for n in parts)), math.hypot(*(n.std for n in parts))
            size = norm(p for i in within for p in learned.get(i, ()))
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
