"""Bounds against numbers worked out by hand, and against the truth of a thousand small experiments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar

from locallearn.analysis.pac_bayes import LAMBDAS, best_lambda, divergence, kl_bound, kl_inverse, linear_bound
from locallearn.errors import UserError


def linear(loss: float, nats: float, samples: int, delta: float, each: float) -> float:
    return (loss + each * (nats + math.log(1 / delta)) / samples) / (1 - 1 / (2 * each))


def excess(q: float, p: float, limit: float) -> float:
    return (p * math.log(p / q) if p else 0.0) + (1 - p) * math.log((1 - p) / (1 - q)) - limit


def test_known_numbers():
    """L = 0.05, KL = 500, N = 10,000, delta = 0.05."""
    assert best_lambda(0.05, 500, 10_000) == pytest.approx(1.364, abs=5e-4)
    assert linear_bound(0.05, 500, 10_000, lambdas=[1.364]) == pytest.approx(0.1872, abs=5e-5)
    assert linear_bound(0.05, 500, 10_000, lambdas=[1.0]) == pytest.approx(0.2006, abs=5e-5)
    assert linear_bound(0.05, 500, 10_000, lambdas=[2.0]) == pytest.approx(0.2008, abs=5e-5)
    assert kl_bound(0.05, 500, 10_000) == pytest.approx(0.1501, abs=5e-5)
    each = best_lambda(0.0, 0.0, 10_000)
    assert linear_bound(0.0, 0.0, 10_000, lambdas=[each]) == pytest.approx(0.0006, abs=5e-5)


def test_the_best_lambda_and_the_inverse_by_search():
    found = minimize_scalar(lambda each: linear(0.1, 300, 5000, 0.05, each), bounds=(0.51, 20), method="bounded")
    assert best_lambda(0.1, 300, 5000) == pytest.approx(found.x, rel=1e-3)
    assert linear_bound(0.1, 300, 5000) == pytest.approx(
        min(linear(0.1, 300, 5000, 0.05 / len(LAMBDAS), each) for each in LAMBDAS), rel=1e-12
    )
    for p, limit in ((0.0, 0.3), (0.2, 0.01), (0.5, 1.0)):
        q = brentq(excess, p, 1 - 1e-12, args=(p, limit))
        assert kl_inverse(p, limit) == pytest.approx(q, abs=1e-9)
    assert divergence(1.0, 1.0) == 0.0
    assert linear_bound(0.9, 1e6, 100) == 1.0


def test_it_is_broken_as_seldom_as_it_says():
    """Labels are the sign of x in [-1, 1], one in ten turned; a learner takes the best of 16 thresholds on 60 samples.
    With a uniform prior over them KL = ln 16, and the true error of a threshold t is 0.1 + 0.8 |t| / 2."""
    rng = np.random.default_rng(0)
    thresholds = np.linspace(-0.9, 0.9, 16)
    true = 0.1 + 0.4 * np.abs(thresholds)
    broken = {kl_bound: 0, linear_bound: 0}
    for _ in range(1000):
        x = rng.uniform(-1, 1, 60)
        y = (x > 0) ^ (rng.uniform(size=60) < 0.1)
        errors = ((x[:, None] > thresholds) != y[:, None]).mean(0)
        best = int(errors.argmin())
        for bound in broken:
            broken[bound] += true[best] > bound(float(errors[best]), math.log(16), 60, 0.05)
    assert max(broken.values()) <= 50
    assert kl_bound(0.1, math.log(16), 60) < linear_bound(0.1, math.log(16), 60) < 1


def test_refusals():
    with pytest.raises(UserError, match="a bound needs a loss from 0 to 1"):
        kl_bound(1.5, 1, 10)
    with pytest.raises(UserError, match="a delta between 0 and 1"):
        linear_bound(0.5, 1, 10, delta=0)
