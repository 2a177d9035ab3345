"""Information through the noise of the weights: against channels with a closed form, full matrices, and integrals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import locallearn
from locallearn.analysis.effective_information import (
    WeightNoise,
    mixture_information,
    noisy_outputs,
    tolerated,
    tolerated_alone,
)
from locallearn.analysis.fisher import drawn_labels
from locallearn.errors import UserError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*size, generator=seeded(seed), dtype=torch.float64)


# The mixture


def test_two_normals_of_unequal_width_by_an_integral():
    means, deviations = [0.0, 1.5], [0.5, 1.2]
    x = np.linspace(-15, 15, 400_001)
    parts = [
        np.exp(-(((x - m) / s) ** 2) / 2) / (s * math.sqrt(2 * math.pi)) for m, s in zip(means, deviations, strict=True)
    ]
    mixture = sum(parts) / 2
    exact = sum(np.trapezoid(np.where(p > 0, p * np.log2(np.clip(p, 1e-300, None) / mixture), 0), x) for p in parts) / 2
    found = mixture_information(
        torch.tensor(means).double()[:, None],
        torch.tensor(deviations).double().square()[:, None, None],
        seeded(),
        20_000,
    )
    assert found.bits == pytest.approx(exact, abs=0.01)
    assert found.lower <= exact <= found.upper
    assert found.upper <= 1


def test_far_apart_and_all_the_same():
    one = torch.eye(3, dtype=torch.float64).repeat(16, 1, 1)
    apart = mixture_information(100 * normal(16, 3), one, seeded())
    assert (apart.bits, apart.lower, apart.upper) == pytest.approx((4, 4, 4), abs=1e-6)
    same = mixture_information(normal(1, 3).repeat(16, 1), one, seeded())
    assert (same.bits, same.lower, same.upper) == pytest.approx((0, 0, 0), abs=1e-9)


@pytest.mark.slow
def test_a_linear_layer_is_an_additive_channel():
    """z = (W + n) x with noise of one deviation s on all weights and |x| fixed has noise of variance s^2 |x|^2; of x on
    a sphere of many dimensions W x is nearly normal."""
    x = nn.functional.normalize(normal(700, 60), dim=1) * 3
    layer = nn.Linear(60, 2, bias=False).double()
    nn.init.normal_(layer.weight, generator=seeded(1))
    s = 0.9
    nothing = WeightNoise({layer.weight: s}, {layer.weight: torch.zeros(1, 120, dtype=torch.float64)})
    means, covariances = noisy_outputs(layer, nothing, x)
    assert torch.allclose(means, x @ layer.weight.T)
    assert torch.allclose(covariances, s**2 * 9 * torch.eye(2, dtype=torch.float64), rtol=1e-5)
    found = mixture_information(means, covariances, seeded(2), 16)
    w = layer.weight.detach()
    channel = torch.eye(2).double() + w @ w.T * 9 / 60 / (s**2 * 9)
    assert found.bits == pytest.approx(float(torch.linalg.slogdet(channel).logabsdet) / 2 / math.log(2), abs=0.06)
    assert found.lower < found.bits < found.upper


# The noise


def test_of_two_redundant_weights_the_whole_matrix_counts():
    """Fisher information [[1, r], [r, 1]] times c, of which an output reads the first weight: precision c (1 - r^2)."""
    r, c = 0.8, 50.0
    layer = nn.Linear(2, 1, bias=False).double()
    rows = math.sqrt(c) * torch.linalg.cholesky(torch.tensor([[1, r], [r, 1]]).double()).T
    wide = 1e3  # the prior hardly counts
    noise = WeightNoise({layer.weight: wide}, {layer.weight: wide * rows})
    _, covariance = noisy_outputs(layer, noise, torch.tensor([[1.0, 0.0]]))
    assert 1 / float(covariance) == pytest.approx(c * (1 - r**2), rel=1e-4)


def test_covariances_are_those_of_all_weights_written_out():
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3)).double()
    x, read = normal(6, 1, 3, 3), normal(4, 1, 3, 3, seed=1)
    deviations = {p: 0.3 + k / 10 for k, p in enumerate(net.parameters())}
    noise = tolerated(net, x, deviations, 12.0, seeded(4))
    labels = drawn_labels(net, x, seeded(4))
    parameters = list(net.parameters())

    def row(value: torch.Tensor) -> torch.Tensor:
        grads = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return torch.cat(
            [
                torch.zeros(p.numel()).double() if g is None else g.flatten()
                for p, g in zip(parameters, grads, strict=True)
            ]
        )

    g = torch.stack([row(net(one[None]).log_softmax(1)[0, y]) for one, y in zip(x, labels, strict=True)])
    scale = torch.cat([torch.full((p.numel(),), deviations[p]) for p in parameters]).double()
    s = torch.linalg.inv(12.0 * g.T @ g / 6 + torch.diag(1 / scale**2))
    for part, width in ((net, 3), (net[:2], 2)):
        means, covariances = noisy_outputs(part, noise, read)
        for one, mean, covariance in zip(read, means, covariances, strict=True):
            out = part(one[None])[0]
            out = out.flatten(1).mean(1) if out.dim() == 3 else out
            j = torch.stack([row(out[k]) for k in range(width)])
            assert torch.allclose(mean, out)
            assert torch.allclose(covariance, j @ s @ j.T, rtol=1e-4, atol=1e-8)


def test_refusals():
    class Branching(nn.Linear):
        def forward(self, x):
            return super().forward(x) if float(x.sum()) > 0 else x

    net = Branching(3, 3)
    with pytest.raises(UserError, match=r"torch\.vmap"):
        tolerated(net, normal(4, 3), dict.fromkeys(net.parameters(), 1.0), 1.0, seeded())


def test_the_diagonal_alone():
    """Against the diagonal matrix written out."""
    layer = nn.Linear(3, 2).double()
    diagonal = {p: normal(*p.shape, seed=k).square() for k, p in enumerate(layer.parameters())}
    noise = tolerated_alone(diagonal, {layer.weight: 0.5, layer.bias: 2.0}, 7.0)
    x = normal(4, 3)
    _, covariances = noisy_outputs(layer, noise, x)
    for one, covariance in zip(x, covariances, strict=True):
        variance = (1 / (4 + 7 * diagonal[layer.weight])) @ one**2 + 1 / (0.25 + 7 * diagonal[layer.bias])
        assert torch.allclose(covariance, torch.diag(variance), rtol=1e-5)


# The probe


@pytest.mark.slow
def test_the_more_a_nat_costs_the_less_is_told(tmp_path):
    options = {"model.activation": "tanh", "model.width": [8, 70, 4], "probe.effective_information.every": 9}
    told = {}
    for beta in (1.0, 1e4):
        run = locallearn.train(
            strategy="dgl", auxiliary="linear", model="mlp", epochs=1, max_steps=20, evaluate_every="never", quiet=True,
            threads=1, out=str(tmp_path), probe="effective_information", **options,
            **{"probe.effective_information.samples": 30, "probe.effective_information.beta": beta},
            **{"probe.effective_information.curvature": "diagonal"},
        )  # fmt: skip
        file = run.run_dir / "probes" / "effective_information" / "rows.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        assert [row["name"] for row in rows] == ["fc1", "fc3"] * 2, "fc2 is too wide"
        for row in rows:
            assert row["effective_lower"] <= row["effective_information"] + 0.05
            assert row["effective_information"] <= row["effective_upper"] + 0.05
            assert row["effective_upper"] <= row["most"] == pytest.approx(math.log2(30))
        told[beta] = [row["effective_information"] for row in rows[-2:]]
    assert all(a > b + 0.3 for a, b in zip(*told.values(), strict=True))
    with pytest.raises(UserError, match="set it to 6 or more"):
        locallearn.train(
            strategy="backprop", model="mlp", quiet=True, out=str(tmp_path), probe="effective_information",
            **{"model.width": [9, 6], "probe.effective_information.units": 5},
        )  # fmt: skip
