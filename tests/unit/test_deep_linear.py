"""Deep linear nets: the exact solutions against numbers known by hand and a net of the zoo that learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import locallearn
from locallearn.analysis.deep_linear import pathways, strengths
from locallearn.errors import UserError


def test_known_numbers():
    times = [0.5, 1, 2, 3]
    assert strengths(2, 0.01, times) == pytest.approx([0.0716, 0.4306, 1.8748, 1.9976], abs=5e-5)
    half = math.log((2 - 0.01) / 0.01) / (2 * 2)
    assert strengths(2, 0.01, [half]) == pytest.approx([1.0])
    u = 0.01  # Euler at 1e-4
    for _ in range(10_000):
        u += 1e-4 * 2 * u * (2 - u)
    assert u == pytest.approx(0.4306, abs=3e-4)
    for n in (1, 2, 3, 4):
        ahead, behind = strengths(1.5, 0.05, [0.6 + 1e-4, 0.6 - 1e-4], n)
        (at,) = strengths(1.5, 0.05, [0.6], n)
        assert (ahead - behind) / 2e-4 == pytest.approx(n * at ** (2 - 2 / n) * (1.5 - at), rel=1e-5)
    with pytest.raises(UserError, match="a mode needs s and start above 0"):
        strengths(0, 0.1, [1])


@pytest.mark.parametrize("blocks", [1, "max"])
@pytest.mark.parametrize("matrices", [2, 3])
def test_a_net_of_the_zoo_learns_by_them(matrices, blocks):
    """backprop on model=mlp with activation=identity, whatever the blocks: mode by mode, strongest first."""
    rng = np.random.default_rng(0)
    size, modes, start, rate = 4, np.array([2.0, 1.0, 0.4]), 0.05, 2e-3
    U, V = np.linalg.qr(rng.normal(size=(3, 3)))[0], np.linalg.qr(rng.normal(size=(size, size)))[0]
    x = math.sqrt(16) * np.linalg.qr(rng.normal(size=(16, size)))[0]  # whitened: x^T x / 16 = 1
    y = x @ (U @ np.diag(modes) @ V[:, :3].T).T
    steps = 600
    learner = locallearn.build(
        "backprop", "mlp", image=(size,), classes=3, task="regression", steps=steps, precision="fp64", blocks=blocks,
        optim="sgd",
        **{
            "model.width": size, "model.depth": matrices - 1, "model.activation": "identity", "model.bias": False,
            "model.batch_norm": False, "optim.schedule": "constant", "optim.momentum": 0.0,
            "optim.lr": rate * 3 / 2,  # the mean over 3 outputs of squares is 2 / 3 of the loss above
        },
    )  # fmt: skip
    weights = list(learner.model.parameters())
    each = start ** (1 / matrices) * np.eye(size)
    first, *middle, last = weights
    with torch.no_grad():
        first.copy_(torch.tensor(each @ V.T))
        for w in middle:
            w.copy_(torch.tensor(each))
        last.copy_(torch.tensor(U @ each[:3]))
    inputs, targets = torch.tensor(x), torch.tensor(y)
    for step in range(1, steps + 1):
        learner.step(inputs, targets)
        if step % 150 == 0:
            product = weights[0]
            for w in weights[1:]:
                product = w @ product
            found = np.diag(U.T @ product.detach().numpy() @ V[:, :3])
            expected = [strengths(s, start, [step * rate], matrices)[0] for s in modes]
            assert found == pytest.approx(expected, abs=0.02)
            assert list(found) == sorted(found, reverse=True)


def test_two_paths_of_one_matrix_in_closed_form():
    """While the first is off the other takes what is left, r -> r exp(-t); then both halve it, r -> r exp(-2 t)."""
    s, start, gap = 2.0, 0.1, 0.7
    times = [0.3, 0.7, 1.0, 4.0]
    first, second = pathways(s, start, times, 1, off=(0, gap))
    assert first[:2] == pytest.approx([start, start], rel=1e-8)
    assert second[:2] == pytest.approx([s - (s - start) * math.exp(-t) for t in times[:2]], rel=1e-8)
    left = (s - start) * math.exp(-gap) - start
    for t, a, b in zip(times[2:], first[2:], second[2:], strict=True):
        gained = left * (1 - math.exp(-2 * (t - gap))) / 2
        assert a == pytest.approx(start + gained, rel=1e-7)
        assert b == pytest.approx(s - (s - start) * math.exp(-gap) + gained, rel=1e-7)
    with pytest.raises(UserError, match="two paths need s and start above 0"):
        pathways(1, 0, [1], 2)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "off"), [(2, (0, 0)), (3, (0, 6)), (4, (3, 9))])
def test_two_paths_of_matrices_follow_the_equation(depth, off):
    """Gradient descent by autograd on both products, mode by mode."""
    modes, start, rate, end = torch.tensor([1.5, 0.7], dtype=torch.float64), 0.45, 5e-3, 12
    paths = [[torch.eye(2, dtype=torch.float64).mul(start).requires_grad_() for _ in range(depth)] for _ in range(2)]
    marks, found = [2, 5, 8, 12], []
    for step in range(round(end / rate)):
        on = not off[0] <= step * rate < off[1]
        heard = [path for path, is_on in zip(paths, (on, True), strict=True) if is_on]
        error = torch.diag(modes) - sum(torch.linalg.multi_dot(path) for path in heard)
        weights = [w for path in heard for w in path]
        grads = torch.autograd.grad(error.square().sum() / 2, weights)
        with torch.no_grad():
            for w, grad in zip(weights, grads, strict=True):
                w -= rate * grad
        if any(abs((step + 1) * rate - mark) < rate / 2 for mark in marks):
            found.append([torch.linalg.multi_dot(path).diag().detach() for path in paths])
    for k, s in enumerate(modes.tolist()):
        for path, expected in enumerate(pathways(s, start, marks, depth, off)):
            assert [float(look[path][k]) for look in found] == pytest.approx(expected, abs=8e-3)
