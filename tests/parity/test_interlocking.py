"""Interlocking backpropagation (Gomez et al. 2022): a component learns from the loss of the one that is the
communication distance further on, and its auxiliary network from its own loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner
from helpers.parity import Parity, apart
from locallearn.auxiliary import Linear
from locallearn.objectives import CrossEntropy
from locallearn.strategies.overlapping import Overlapping

NAMES = {0: "local", 1: "pairwise", 2: "3-wise", 3: "end to end"}


@pytest.mark.parametrize("distance", NAMES)
def test_interlocking(parity: Parity, distance: int) -> None:
    strategy = Overlapping(objective=CrossEntropy(), auxiliary=Linear(), reach=distance + 1, combine="next")
    learner = tiny_learner(strategy, total_steps=10)
    model = copy.deepcopy(learner.model)
    heads = [*(copy.deepcopy(block.auxiliary) for block in learner.blocks[:-1]), model.head]
    optimizers = [
        torch.optim.SGD([*unit.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=1e-3)
        for unit, head in zip(model.units, heads, strict=True)
    ]
    for x, y in tiny_batches(10):
        learner.learn(x, y)
        losses = []
        for unit, head in zip(model.units, heads, strict=True):
            x = unit(x)
            losses.append(F.cross_entropy(head(x) if head is model.head else head["classifier"](x), y))
        for k, (unit, head) in enumerate(zip(model.units, heads, strict=True)):
            heard = losses[min(k + distance, len(losses) - 1)]
            for loss, parameters in ((heard, [*unit.parameters()]), (losses[k], [*head.parameters()])):
                gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
                for p, gradient in zip(parameters, gradients, strict=True):
                    p.grad = gradient
        for optimizer in optimizers:
            optimizer.step()
    weights = apart(learner.model.state_dict(), model.state_dict())
    parity.equal("Interlocking backpropagation", f"{NAMES[distance]}, 4 components, 10 steps: weights", weights)
