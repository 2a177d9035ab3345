"""The arithmetic of a training step, whatever its strategy does in it: auxiliary networks, several passes, rounds."""

from __future__ import annotations

import copy

import torch

from locallearn.analysis.cost import Flops
from locallearn.engine import Learner
from locallearn.plan.measure import stage_copy, step_on_noise

SAMPLES = 8


def step_flops(learner: Learner) -> float:
    """FLOPs that a training step takes for one sample: matrix products, convolutions and attention of all its passes
    forward and backward, counted in one step on noise, on a copy of the blocks. Of a strategy whose blocks learn one
    after the other, the mean over its phases."""
    stage = stage_copy(learner, learner.strategy, 1)
    samples = learner.model.samples or SAMPLES
    with Flops() as counter:
        step_on_noise(learner, stage, samples)
    return counter.total / samples / len(learner.strategy.phases(len(learner.cut)))


def backprop_flops(learner: Learner) -> float:
    """FLOPs that backprop through the bare model takes for one sample."""
    model = copy.deepcopy(learner.model).train()
    x = learner.prepare(model.noise(SAMPLES, torch.Generator().manual_seed(0)).to(learner.device))
    with Flops() as counter:
        model(x).sum().backward()
    return counter.total / len(x)
