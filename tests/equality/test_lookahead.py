"""Nesterov's look-ahead with late gradients (AsyncPP, arXiv 2505.01099): scalar nets by hand, and a quadratic loss, for
which weights follow the powers of a matrix."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from helpers.marks import slow
from helpers.nets import assembled
from locallearn.engine import SGD, NAdamW, Optim, Stage
from locallearn.models import BlockModel
from locallearn.strategies.backprop import Backprop
from locallearn.tasks.regression import Regression


def scalar_learner(weights: list[float | None], optim: Optim, staleness: int):
    """A float64 net of one weight a block (None: a block without), z = product of weights times x, L = (z - y)^2."""
    units = [nn.Identity() if w is None else nn.Linear(1, 1, bias=False, dtype=torch.float64) for w in weights]
    with torch.no_grad():
        for unit, w in zip(units, weights, strict=True):
            for p in unit.parameters():
                p.fill_(w)
    model = BlockModel(units, nn.Identity(), image=(1,), classes=1, name="scalar")
    cut = [range(k, k + 1) for k in range(len(units))]
    options = {"precision": "fp64", "task": Regression(), "stage": partial(Stage, staleness=staleness)}
    return assembled(model, Backprop(), optim, cut, **options)


class Nesterov:
    """v <- mu v + g, w <- w - lr (g + mu v)"""

    optim = SGD(lr=0.03, momentum=0.8, nesterov=True, schedule="constant")

    def __init__(self):
        self.v = 0.0

    def step(self, w: float, g: float) -> float:
        self.v = 0.8 * self.v + g
        return w - 0.03 * (g + 0.8 * self.v)


class NesterovAdam:
    """Dozat's rule with decoupled decay: the gradient of the moment counts 1 - mu_t, the momentum mu_{t+1}."""

    optim = NAdamW(lr=0.02, beta1=0.99, beta2=0.9, eps=1e-6, momentum_decay=0.5, weight_decay=0.1, schedule="constant")

    def __init__(self):
        self.t, self.m, self.v, self.product = 0, 0.0, 0.0, 1.0

    def mu(self, t: int) -> float:
        return 0.99 * (1 - 0.5 * 0.96 ** (0.5 * t))

    def step(self, w: float, g: float) -> float:
        self.t += 1
        self.m, self.v = 0.99 * self.m + 0.01 * g, 0.9 * self.v + 0.1 * g * g
        now, ahead = self.mu(self.t), self.mu(self.t + 1)
        self.product = float(np.float32(self.product) * np.float32(now))  # PyTorch keeps it in float32
        root = math.sqrt(self.v / (1 - 0.9**self.t)) + 1e-6
        direction = (1 - now) * g / (1 - self.product) + ahead * self.m / (1 - self.product * ahead)
        return w * (1 - 0.02 * 0.1) - 0.02 * direction / root


@pytest.mark.parametrize("rule", [Nesterov, NesterovAdam])
@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_two_stages_of_one_weight_by_hand(rule, staleness):
    """Block 0 at step t steps by g(w_{t-n}), block 1 by g(w_t)."""
    a, b = 0.7, -1.3
    learner = scalar_learner([a, b], rule.optim, staleness)
    lower, upper, late = rule(), rule(), []
    for x, y in [(1.0, 0.5), (-0.5, 1.0), (0.75, -0.25), (1.5, 0.25), (-1.25, -0.5), (0.25, 0.75)]:
        learner.learn(torch.tensor([[x]], dtype=torch.float64), torch.tensor([[y]], dtype=torch.float64))
        error = 2 * (a * b * x - y)
        late.append(error * b * x)
        b = upper.step(b, error * a * x)
        if len(late) > staleness:
            a = lower.step(a, late[-1 - staleness])
        found = [p.item() for p in learner.model.parameters()]
        assert found == pytest.approx([a, b], rel=1e-12)


def companion(curvature: float, optim: SGD, delay: int) -> np.ndarray:
    """The matrix that takes (w_t, w_{t-1}, ..., w_{t-n}, v_t) one step on, with L = curvature w^2 / 2."""
    lr, mu, n = optim.lr, optim.momentum, delay
    matrix = np.zeros((n + 2, n + 2))
    matrix[-1, n], matrix[-1, -1] = curvature, mu  # v <- mu v + c w_{t-n}
    ahead = 1.0 if optim.nesterov else 0.0
    matrix[0] = -lr * ((mu if optim.nesterov else 1.0) * matrix[-1])  # of the new v
    matrix[0, n] -= lr * ahead * curvature
    matrix[0, 0] += 1
    for i in range(1, n + 1):
        matrix[i, i - 1] += 1
    return matrix


def radius(matrix: np.ndarray) -> float:
    return float(abs(np.linalg.eigvals(matrix)).max())


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("delay", [1, 2, 4])
def test_with_a_quadratic_loss_the_weights_are_powers_of_a_matrix(delay, nesterov):
    optim = SGD(lr=0.06, momentum=0.9, nesterov=nesterov, schedule="constant")
    learner = scalar_learner([1.0] + [None] * delay, optim, 1)
    x, y = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    weights = []
    for _ in range(40):
        learner.learn(x, y)
        weights.append(next(learner.model.parameters()).item())
    assert weights[:delay] == [1.0] * delay, "nothing has come back yet"
    matrix = companion(2.0, optim, delay)  # L = w^2
    state = np.array([1.0] * (delay + 1) + [0.0])
    for found in weights[delay:]:
        state = matrix @ state
        assert found == pytest.approx(state[0], rel=1e-10, abs=1e-12)


@pytest.mark.parametrize(("delay", "lr"), [(1, 0.06), slow(2, 0.035), (4, 0.015)])
def test_the_look_ahead_keeps_late_gradients_from_diverging(delay, lr):
    """A rate at which the largest eigenvalue is above 1 without it, and below 1 with it."""
    plain, ahead = (SGD(lr=lr, momentum=0.9, nesterov=nesterov, schedule="constant") for nesterov in (False, True))
    assert radius(companion(2.0, ahead, delay)) < 1 < radius(companion(2.0, plain, delay))
    largest = []
    for optim in (plain, ahead):
        learner = scalar_learner([1.0] + [None] * delay, optim, 1)
        weights = []
        for _ in range(600):
            learner.learn(torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64))
            weights.append(abs(next(learner.model.parameters()).item()))
        largest.append(max(weights[-100:]))
    assert largest[1] < 0.5 < 2 < largest[0]
