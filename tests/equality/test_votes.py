"""Mono-Forward and Cascaded Forward against nets in numpy: what every block learns, and how they answer together."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from helpers.nets import tiny_learner
from locallearn.engine import SGD, Learner
from locallearn.models import BlockModel
from locallearn.strategies.votes import CaFo, MonoForward

RATE, B, C = 0.1, 5, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")
SIZES = (6, 7, 5, 4)


def learner_of(strategy: MonoForward | CaFo) -> Learner:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(n, m, bias=False), nn.Tanh()) for n, m in pairwise(SIZES)]
    head = nn.Linear(SIZES[-1], C)
    model = BlockModel(units, head, image=(SIZES[0],), classes=C, name="net").double()
    learner = tiny_learner(strategy, model, "max", optim=OPTIM)
    for block in learner.blocks:
        block.auxiliary.double()
    return learner


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, SIZES[0], generator=g, dtype=torch.float64), torch.randint(C, (B,), generator=g)


def numbers(learner: Learner) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray | None]]:
    """Weights of the units, and weights and biases of the classifiers."""
    units = [block.layers[0][0].weight.detach().numpy().copy() for block in learner.blocks]
    layers = [next(m for m in block.auxiliary.modules() if isinstance(m, nn.Linear)) for block in learner.blocks]
    biases = [None if layer.bias is None else layer.bias.detach().numpy().copy() for layer in layers]
    return units, [layer.weight.detach().numpy().copy() for layer in layers], biases


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def goodness(before: tuple, x: np.ndarray) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """What every block emits, the image first, and the logits of its classifier."""
    hs, logits = [x], []
    for w, m, b in zip(*before, strict=True):
        hs.append(np.tanh(hs[-1] @ w.T))
        logits.append(hs[-1] @ m.T + (0 if b is None else b))
    return hs, logits


def test_a_step_of_mono_forward_is_that_of_a_net_in_numpy():
    learner = learner_of(MonoForward(order="parallel"))
    x, y = batch()
    before = numbers(learner)
    hs, logits = goodness(before, x.numpy())
    learner.step(x, y)
    after = numbers(learner)
    assert before[2] == [None] * 3, "classifiers of Mono-Forward have no bias"
    for k, z in enumerate(logits):
        e = (softmax(z) - np.eye(C)[y]) / B
        delta = e @ before[1][k] * (1 - hs[k + 1] ** 2)  # to the block below goes nothing
        np.testing.assert_allclose((before[1][k] - after[1][k]) / RATE, e.T @ hs[k + 1], atol=1e-12)
        np.testing.assert_allclose((before[0][k] - after[0][k]) / RATE, delta.T @ hs[k], atol=1e-12)


def test_a_step_of_cafo_is_logistic_regression_on_random_features():
    learner = learner_of(CaFo())
    x, y = batch()
    before = numbers(learner)
    hs, logits = goodness(before, x.numpy())
    learner.step(x, y)
    after = numbers(learner)
    for k, z in enumerate(logits):
        e = (softmax(z) - np.eye(C)[y]) / B
        np.testing.assert_array_equal(before[0][k], after[0][k])
        np.testing.assert_allclose((before[1][k] - after[1][k]) / RATE, e.T @ hs[k + 1], atol=1e-12)
        np.testing.assert_allclose((before[2][k] - after[2][k]) / RATE, e.sum(0), atol=1e-12)


@pytest.mark.parametrize(
    ("strategy", "together"),
    [
        (MonoForward(order="parallel", answer="last"), lambda logits: softmax(logits[-1])),
        (MonoForward(order="parallel", answer="sum"), lambda logits: softmax(sum(logits))),
        (CaFo(answer="logits"), lambda logits: softmax(sum(logits))),
        (CaFo(), lambda logits: sum(map(softmax, logits)) / len(logits)),
    ],
)
def test_answers_are_votes(strategy, together):
    learner = learner_of(strategy)
    x, _ = batch()
    _, logits = goodness(numbers(learner), x.numpy())
    answer = learner.predict(x)[-1]
    assert answer is not None
    np.testing.assert_allclose(answer.softmax(1).numpy(), together(logits), atol=1e-12)
