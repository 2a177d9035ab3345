"""Information in the weights by curvature: against torch's KL of Gaussians, against matrices of all weights, and
the order of its forms."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence

import locallearn
from helpers.nets import tiny_batches, tiny_model
from locallearn.analysis.fisher import drawn_labels, fisher_diagonal, scores
from locallearn.analysis.kfac import by_parameter, kronecker
from locallearn.analysis.weight_nats import curvature_nats, place_nats, spectrum
from locallearn.errors import UserError
from locallearn.models.noisy_weights import NoisyWeights
from locallearn.models.plain import mlp
from locallearn.probes.fisher import deviations


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """[N, weights], by one backward pass after the other."""
    rows = []
    for one, label in zip(x, y, strict=True):
        value = model(one[None]).log_softmax(1)[0, label]
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, list(model.parameters()))]))
    return torch.stack(rows)


# The forms


def test_kl_and_cost_are_those_of_the_best_gaussian():
    """By torch.distributions, and no other covariance costs less."""
    k, samples, deviation, beta = 5, 300, 0.7, 0.4
    root = torch.randn(k, k, generator=seeded(), dtype=torch.float64) / 4
    fisher, w = root @ root.T, torch.randn(k, generator=seeded(1), dtype=torch.float64)
    prior = MultivariateNormal(torch.zeros(k, dtype=torch.float64), deviation**2 * torch.eye(k, dtype=torch.float64))

    def costs(covariance: Tensor) -> tuple[float, float]:
        kl = float(kl_divergence(MultivariateNormal(w, covariance), prior))
        rise = samples / 2 * float((fisher @ covariance).trace())  # E v^T F v of noise with this covariance
        return kl, kl + rise / beta

    best = beta * torch.linalg.inv(samples * fisher + beta / deviation**2 * torch.eye(k, dtype=torch.float64))
    kl, cost = costs(best)
    s = torch.linalg.eigvalsh(fisher) * deviation**2 * samples / beta
    place = place_nats(w, deviation)
    assert place + curvature_nats(s, "kl") == pytest.approx(kl, rel=1e-9)
    assert place + curvature_nats(s, "cost") == pytest.approx(cost, rel=1e-9)
    for other in (1.2 * best, 0.8 * best, torch.diag(best.diagonal())):
        assert costs(other)[1] > cost


def test_the_slides_form_is_at_most_half_a_log_two_a_direction_above_the_cost():
    s = torch.tensor([0.0, 1e-3, 1.0, 1e3, 1e9])
    for one in s:
        gap = curvature_nats(one[None], "slide") - curvature_nats(one[None], "cost")
        assert 0 <= gap <= math.log(2) / 2 + 1e-12
    assert curvature_nats(s, "slide") == pytest.approx(0.5 * float((2 * s.double()).log1p().sum()))


# The Gram matrix


def models() -> list[tuple[nn.Module, Tensor]]:
    (x, _), *_ = tiny_batches(1)
    conv = tiny_model().double().eval()
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    return [(conv, x), (net, torch.randn(9, 4, generator=seeded(), dtype=torch.float64))]


@pytest.mark.parametrize("which", [0, 1])
def test_grams_and_squares_are_those_of_the_gradients_one_by_one(which, monkeypatch):
    model, x = models()[which]
    y = drawn_labels(model, x, seeded(3))
    g = gradients(model, x, y)
    for numbers, columns in ((2**24, 2**14), (1, 5)):  # together, and one by one with few columns at a time
        monkeypatch.setattr("locallearn.analysis.fisher.NUMBERS", numbers)
        monkeypatch.setattr("locallearn.analysis.fisher.COLUMNS", columns)
        found = dict(scores(model, x, y))
        assert set(found) == {name for name, _ in model.named_parameters()}
        gram = torch.stack([each.gram for each in found.values()]).sum(0)
        assert torch.allclose(gram, g @ g.T, rtol=1e-9, atol=1e-12)
        squares = torch.cat([found[name].squares.flatten() for name, _ in model.named_parameters()])
        assert torch.allclose(squares, g.square().mean(0), rtol=1e-9, atol=1e-12)


def test_the_log_determinant_of_all_weights_and_the_order_of_the_bounds():
    model, x = models()[1]
    y = drawn_labels(model, x, seeded(3))
    g, found = gradients(model, x, y), dict(scores(model, x, y))
    factor, n = 40.0, len(x)
    whole = torch.stack([each.gram for each in found.values()]).sum(0) * factor / n
    matrix = torch.eye(g.shape[1], dtype=torch.float64) + factor / n * g.T @ g
    gram = curvature_nats(spectrum(whole), "cost")
    assert gram == pytest.approx(0.5 * float(torch.linalg.slogdet(matrix).logabsdet), rel=1e-9)
    by_layer = sum(
        curvature_nats(spectrum((found[f"{k}.weight"].gram + found[f"{k}.bias"].gram) * factor / n), "cost")
        for k in (0, 2)
    )
    diagonal = sum(curvature_nats(factor * each.squares, "cost") for each in found.values())
    assert gram < by_layer < diagonal


def test_few_samples_show_less_than_all():
    """Softmax regression, whose Fisher information has a closed form: on average over drawn labels the form by the Gram
    matrix lies below that of the exact matrix, which lies below that of its diagonal."""
    x = torch.randn(8, 3, generator=seeded(), dtype=torch.float64)
    model = nn.Linear(3, 4, bias=False).double()
    nn.init.normal_(model.weight, generator=seeded(1))
    p = model(x).softmax(1).detach()
    exact = sum(
        torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(row, row)) / 8 for q, row in zip(p, x, strict=True)
    )
    factor = 25.0
    truth = curvature_nats(torch.linalg.eigvalsh(factor * exact).clamp(min=0), "cost")
    random = seeded(5)
    draws = [dict(scores(model, x, drawn_labels(model, x, random)))["weight"].gram for _ in range(60)]
    found = [curvature_nats(spectrum(gram * factor / 8), "cost") for gram in draws]
    assert 0.7 * truth < sum(found) / 60 < truth < curvature_nats(factor * exact.diagonal(), "cost")


def test_gradients_that_are_too_many_are_refused(monkeypatch):
    monkeypatch.setattr("locallearn.analysis.fisher.HELD", 100)
    model, x = models()[0]
    with pytest.raises(UserError, match="take fewer samples"):
        dict(scores(model, x, torch.zeros(len(x), dtype=torch.int64)))


# K-FAC


def test_the_factors_of_one_sample_are_exact():
    """Against the Gram matrix of its gradients, of a linear layer, a bias, and a convolution with one position."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 9, 4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(9, 3, bias=False)).double()
    net = models()[1][0]
    for model, x in ((net, models()[1][1]), (conv, torch.randn(1, 2, 4, 4, generator=seeded(), dtype=torch.float64))):
        one = x[:1]
        y = drawn_labels(model, one, seeded(3))
        exact, found = dict(scores(model, one, y)), kronecker(model, one, y)
        assert set(found) == {name for name, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        for name, factors in found.items():
            gram = sum(each.gram for key, each in exact.items() if key.rpartition(".")[0] == name)
            strengths = factors.eigenvalues.flatten().sort(descending=True).values
            assert strengths[0] == pytest.approx(float(gram), rel=1e-9)
            assert strengths[0] > 0
            assert strengths[1:].abs().max() < 1e-9 * strengths[0]


def test_the_factors_against_loops_over_samples_and_positions():
    """A padded convolution with strides, and a linear layer at every position of a sequence."""

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.each, self.head = nn.Conv2d(2, 3, 3, 2, 1), nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            h = self.conv(x).flatten(2).movedim(1, 2)  # [B, T, 3]
            return self.head(torch.tanh(self.each(h)).mean(1))

    torch.manual_seed(0)
    model = Twice().double()
    x = torch.randn(5, 2, 5, 5, generator=seeded(), dtype=torch.float64)
    y = drawn_labels(model, x, seeded(3))
    found = kronecker(model, x, y)
    padded = nn.functional.pad(x, (1, 1, 1, 1))
    A = {"conv": torch.zeros(19, 19).double(), "each": torch.zeros(4, 4).double()}
    G = {"conv": torch.zeros(3, 3).double(), "each": torch.zeros(4, 4).double()}
    for n in range(5):
        maps = model.conv(x[n : n + 1])
        h = maps.flatten(2).movedim(1, 2)
        each = model.each(h)
        value = model.head(torch.tanh(each).mean(1)).log_softmax(1)[0, y[n]]
        by_map, by_token = torch.autograd.grad(value, [maps, each])
        for i in range(3):
            for j in range(3):
                patch = padded[n, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].flatten()
                a, g = torch.cat([patch, torch.ones(1).double()]), by_map[0, :, i, j]
                A["conv"] += torch.outer(a, a) / 5
                G["conv"] += torch.outer(g, g) / 45
                a, g = torch.cat([h[0, 3 * i + j].detach(), torch.ones(1).double()]), by_token[0, 3 * i + j]
                A["each"] += torch.outer(a, a) / 5
                G["each"] += torch.outer(g, g) / 45
    for name in ("conv", "each"):
        whole = torch.linalg.eigvalsh(torch.kron(A[name], G[name]))
        assert torch.allclose(found[name].eigenvalues.flatten().sort().values, whole, rtol=1e-9, atol=1e-14)


def test_what_has_no_factors_keeps_its_diagonal():
    """A norm, and two layers that share a weight."""
    tied = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    tied[1].weight = tied[0].weight
    model = nn.Sequential(tied[0], nn.LayerNorm(4), tied[1], nn.Linear(4, 3)).double()
    x = torch.randn(6, 4, generator=seeded(), dtype=torch.float64)
    y = drawn_labels(model, x, seeded(3))
    found = kronecker(model, x, y)
    assert [*found] == ["3"]
    diagonal = fisher_diagonal(model, x, seeded(3))
    each = by_parameter(found, diagonal)
    assert each.keys() == diagonal.keys()
    assert all(each[name] is diagonal[name] for name in ("0.weight", "1.weight", "1.bias"))
    assert each["3.weight"].shape == (5, 3)
    assert each["3.bias"].numel() == 0
    trace = sum(float(diagonal[f"3.{kind}"].sum()) for kind in ("weight", "bias"))
    assert 0.3 * trace < float(each["3.weight"].sum()) < 3 * trace


# The probe


def looked(tmp_path: Path, curvature: str, steps: int) -> tuple[Any, list[dict[str, Any]]]:
    """A run, and the rows of its look at the end."""
    options = {"probe.fisher.form": "cost", "probe.fisher.curvature": curvature, "probe.fisher.samples": 40}
    run = locallearn.train(
        strategy="dgl", auxiliary="linear", model="mlp", epochs=1, max_steps=steps, evaluate_every="never", quiet=True,
        threads=1, out=str(tmp_path), probe="fisher", **options, **{"probe.fisher.every": 9, "model.width": 8},
    )  # fmt: skip
    rows = [json.loads(line) for line in (run.run_dir / "probes/fisher/rows.jsonl").read_text().splitlines()]
    return run, [row for row in rows if row["epoch"] == 1]


@pytest.mark.slow
def test_a_run_with_factors(tmp_path):
    """Of every layer and of the net; what is no layer of weights counts by its diagonal."""
    _, (*layers, net) = looked(tmp_path, "kfac", 2)
    assert net["weight_bits_kfac"] == pytest.approx(sum(row["weight_bits_kfac"] for row in layers))
    assert all(0 < row["weight_bits_kfac"] < 3 * row["weight_bits_diagonal"] for row in layers)
    assert "weight_bits_gram" not in net


@pytest.mark.slow
def test_a_run_with_both_sides(tmp_path):
    run, (*layers, net) = looked(tmp_path, "gram", 5)
    assert net["weight_bits_gram_by_layer"] == pytest.approx(sum(row["weight_bits_gram"] for row in layers))
    assert net["weight_bits_diagonal"] == pytest.approx(sum(row["weight_bits_diagonal"] for row in layers))
    assert 0 < net["weight_bits_gram"] < net["weight_bits_gram_by_layer"] < net["weight_bits_diagonal"]
    assert "cost, beta 1" in net["convention"]
    place = 0.0
    for module in run.model.modules():
        for p in module.parameters(recurse=False):
            reads = module.weight[0].numel() if module.weight.dim() > 1 else 1
            place += float(p.detach().double().square().sum()) * reads / 2 / math.log(2)
    assert net["weight_bits_place"] == pytest.approx(place, rel=1e-6)


def test_lambda_of_each_weight_and_none_of_the_deviations_of_noisy_weights():
    model = NoisyWeights().applied(mlp((1, 4, 4), 3, width=5, depth=2))
    found = {name: deviations(model, 2.0).get(p) for name, p in model.named_parameters()}
    assert {name for name, each in found.items() if each is None} == {
        name for name in found if name.endswith(("noise", "bias_noise"))
    }
    assert found["units.0.1.layer.weight"] == found["units.0.1.layer.bias"] == 2 / 4
    assert found["head.layer.weight"] == pytest.approx(2 / math.sqrt(5))
    assert found["units.0.2.weight"] == 2.0
