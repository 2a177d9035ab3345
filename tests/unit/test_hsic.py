"""HSIC against numpy's covariances, the normalised form against a projection by hand, and what the objective learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.analysis.hsic import gaussian_kernel, hsic, normalised
from locallearn.analysis.similarity import cka
from locallearn.auxiliary import Linear
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.contract import BlockSpec, Packet
from locallearn.errors import UserError
from locallearn.objectives import HSIC
from locallearn.strategies.greedy import DGL
from locallearn.training.prepare import prepare


def random(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_of_linear_kernels_it_is_the_squared_covariance():
    x, y = random(30, 4), random(30, 3, seed=1) + random(30, 4)[:, :3]
    covariance = np.cov(x.numpy().T, y.numpy().T, bias=True)[:4, 4:]
    assert hsic(x @ x.T, y @ y.T).item() == pytest.approx((covariance**2).sum(), rel=1e-12)
    points, labels = torch.tensor([[1.0, 0], [1, 1], [0, 2]]), torch.tensor([[1.0], [3], [2]])
    assert hsic(points @ points.T, labels @ labels.T).item() == pytest.approx(1 / 9, rel=1e-6)
    ratio = hsic(x @ x.T, y @ y.T) / (hsic(x @ x.T, x @ x.T) * hsic(y @ y.T, y @ y.T)).sqrt()
    assert float(ratio) == pytest.approx(biased_cka(x.numpy(), y.numpy()), rel=1e-12)
    assert abs(float(ratio) - cka(x, y)) < 0.2, "which takes the bias off"


def biased_cka(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def by_numpy(x: np.ndarray, s: float, epsilon: float) -> np.ndarray:
    """R by the eigenvalues of the centred kernel."""
    n = len(x)
    kernel = np.array([[math.exp(-((a - b) ** 2).sum() / (2 * s * s * x.shape[1])) for b in x] for a in x])
    centring = np.eye(n) - 1 / n
    values, vectors = np.linalg.eigh(centring @ kernel @ centring)
    return vectors @ np.diag(values / (values + epsilon * n)) @ vectors.T


def test_the_normalised_form_is_that_of_the_eigenvalues():
    x, y = random(20, 5), random(20, 2, seed=1)
    for s, epsilon in ((1.0, 1e-5), (3.0, 1e-2)):
        of_x, of_y = (normalised(gaussian_kernel(t, [s]), epsilon=epsilon) for t in (x, y))
        assert np.allclose(of_x.numpy(), by_numpy(x.numpy(), s, epsilon), atol=1e-8)
        assert float((of_x * of_y).sum()) == pytest.approx(
            np.trace(by_numpy(x.numpy(), s, epsilon) @ by_numpy(y.numpy(), s, epsilon)), rel=1e-7
        )
    assert float((of_x * of_x).sum()) <= 19
    strangers = normalised(gaussian_kernel(x, [0.01]))
    assert float((strangers * strangers).sum()) == pytest.approx(19, rel=1e-3), "a small s saturates it"
    two = gaussian_kernel(x, [1.0, 3.0])
    assert torch.equal(two, gaussian_kernel(x, [1.0]) + gaussian_kernel(x, [3.0]))


def test_samples_without_a_label_are_as_if_they_were_not_there():
    x, known = random(12, 5), torch.tensor([True] * 7 + [False, True, False, False, True])
    some = normalised(gaussian_kernel(x, [2.0]), known)
    assert torch.allclose(some[known][:, known], normalised(gaussian_kernel(x[known], [2.0])), atol=1e-10)
    assert not some[~known].abs().max()


def test_the_loss_is_the_papers():
    """nHSIC(h, x) - weight nHSIC(h, y), and its gradient by central differences."""
    h, image, y = random(9, 6), random(9, 2, 3, 3, seed=1), torch.tensor([0, 1, 2, 0, 1, 2, 2, 1, 0])
    objective = HSIC(weight=3.0, scales=[2.0], epsilon=1e-3)
    spec = BlockSpec(0, 2, (2, 3, 3), (2, 3, 3), (6,), 3)

    def loss(h: torch.Tensor) -> torch.Tensor:
        return objective.loss(spec, {}, h, Packet(h, y, (image,)))[0]

    of_h, of_x, of_y = (
        by_numpy(t.flatten(1).numpy(), 2.0, 1e-3) for t in (h, image, F.one_hot(y, 3).to(torch.float64))
    )
    assert loss(h).item() == pytest.approx(np.trace(of_h @ of_x) - 3 * np.trace(of_h @ of_y), rel=1e-9)
    leaf = h.clone().requires_grad_()
    loss(leaf).backward()
    for i, j in ((0, 0), (4, 3)):
        step = torch.zeros_like(h)
        step[i, j] = 1e-5
        assert leaf.grad[i, j].item() == pytest.approx(float(loss(h + step) - loss(h - step)) / 2e-5, rel=1e-5)


def test_it_makes_the_layers_depend_on_the_label():
    learner = tiny_learner(DGL(objective=HSIC(scales=[1.0]), auxiliary=Linear()), tiny_model(), blocks=2)
    x, y = tiny_batches(1, batch=24)[0]

    def dependence() -> float:
        with torch.no_grad():
            h = next(learner.features(x))
        return float(
            (normalised(gaussian_kernel(h, [1.0])) * normalised(gaussian_kernel(F.one_hot(y, 3), [1.0]))).sum()
        )

    left = 2 - dependence()  # of the 2 that three classes allow
    for _ in range(30):
        learner.learn(x, y)
    assert 2 - dependence() < 0.1 * left


def test_refusals():
    words = ["strategy=dgl", "objective=hsic", "model=mlp", "data=digits"]
    with pytest.raises(UserError, match="objective=hsic is read only with blocks=2 or more"):
        prepare(experiment(*compose([*words, "blocks=1"]), [*words, "blocks=1"]))
    with pytest.raises(UserError, match="auxiliary=cnn is read only with objective="):
        experiment(*compose([*words, "auxiliary=cnn"]), [*words, "auxiliary=cnn"])
    with pytest.raises(UserError, match=r"data\.smoothing and data\.class_weights must be off"):
        prepare(experiment(*compose([*words, "data.smoothing=0.1"]), [*words, "data.smoothing=0.1"]))
