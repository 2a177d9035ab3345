"""The information bottleneck's curve against closed forms: a noisy binary label, labels that are a function of the
input, and a Gaussian pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from locallearn.analysis.information import bottleneck_curve
from locallearn.errors import UserError


def h(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q)


def test_of_a_binary_label_that_is_turned():
    """I(T;Y) = 1 - h(eps * h^-1(1 - I(X;T))) with a * b = a (1 - b) + b (1 - a) (Witsenhausen & Wyner 1975)."""
    eps = 0.1
    joint = [[0.45, 0.05], [0.05, 0.45]]
    expected = {20: (1.00000, 0.53100), 3: (0.94895, 0.51660), 2: (0.69643, 0.40723), 1.7: (0.36660, 0.22603)}
    for point in bottleneck_curve(joint, expected):
        assert point.i_x_t == pytest.approx(expected[point.beta][0], abs=2e-5)
        assert point.i_t_y == pytest.approx(expected[point.beta][1], abs=2e-5)
        d = brentq(lambda d, x=point.i_x_t: h(d) - (1 - min(x, 1.0)), 0, 0.5) if point.i_x_t < 1 else 0.0
        assert point.i_t_y == pytest.approx(1 - h(d * (1 - eps) + eps * (1 - d)), abs=1e-8)
    for point in bottleneck_curve(joint, [1.55, 0.5]):  # below the critical 1 / (1 - 2 eps)^2 = 1.5625
        assert (point.i_x_t, point.i_t_y) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))


def test_of_labels_that_are_a_function_of_the_input():
    """The 4,096 patterns are two kinds of input, and every beta above 1 gives the corner (H(Y), H(Y))."""
    labels = np.random.default_rng(0).random(4096) < 0.48
    joint = np.stack([labels, ~labels], axis=1)
    corner = h(labels.mean())
    for beta, i_x_t, i_t_y in bottleneck_curve(joint, [50, 5, 1.5, 1.1, 0.9]):
        assert (i_x_t, i_t_y) == pytest.approx((corner, corner) if beta > 1 else (0, 0), abs=1e-6)


@pytest.mark.slow
def test_of_a_gaussian_pair():
    """Correlation 0.8 on a grid: I_Y = -1/2 log2(1 - 0.64 (1 - 2^(-2 I_X))) (Chechik et al. 2005)."""
    grid = np.linspace(-3.5, 3.5, 24)
    joint = norm.pdf(grid)[:, None] * norm.pdf(grid[None], 0.8 * grid[:, None], 0.6)
    for _, i_x_t, i_t_y in bottleneck_curve(joint, [3.5, 2.5, 2.0]):
        assert 0.2 < i_x_t < 2
        assert i_t_y == pytest.approx(-0.5 * math.log2(1 - 0.64 * (1 - 2 ** (-2 * i_x_t))), abs=0.01)


def test_refusals():
    with pytest.raises(UserError, match="joint: must be"):
        bottleneck_curve([[1.0, -1.0]], [2.0])
    with pytest.raises(UserError, match="beta=0: must be a number above 0"):
        bottleneck_curve([[1.0, 1.0]], [0])
