"""Noisy weights: their KL by torch.distributions, their outputs by drawing whole weights, their gradient by an explicit
sum in float64, and the evidence of a linear regression."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn
from torch.distributions import Normal, kl_divergence

import locallearn
from helpers.nets import tiny_batches, tiny_learner, tiny_model, without_norms
from helpers.strategies import make
from locallearn.engine.gradients import strategy_gradients
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.noisy_weights import GaussianWeights, NoisyWeights

SAMPLES = 50


def noisy(layer: nn.Module, **options) -> GaussianWeights:
    torch.manual_seed(0)
    found = GaussianWeights(layer.double(), NoisyWeights(warmup=0.0, **options), "layer").double()
    with torch.no_grad():
        found.noise += 0.1 * torch.randn_like(found.noise)
        found.layer.weight += 0.3 * torch.randn_like(found.layer.weight)
    found.samples = SAMPLES
    return found


@pytest.mark.parametrize("prior", ["initial", "zero"])
@pytest.mark.parametrize("layer", [nn.Linear(5, 4), nn.Conv2d(3, 4, 3)])
def test_kl_by_torch(layer, prior):
    before = [p.detach().double().clone() for p in (layer.weight, layer.bias)]
    module = noisy(layer, prior=prior, scale=2.0)
    deviation = 2.0 * before[0].square().mean().sqrt()
    expected = 0.0
    for mean, noise, start in zip(
        (module.layer.weight, module.layer.bias), (module.noise, module.bias_noise), before, strict=True
    ):
        centre = start if prior == "initial" else torch.zeros_like(start)
        q, p = Normal(mean, (10 * noise).exp()), Normal(centre, deviation.expand_as(centre))
        expected += kl_divergence(q, p).sum().item()
    assert module.nats().item() == pytest.approx(expected, rel=1e-6)  # lambda is a number of float32


def test_log_uniform_is_the_papers_up_to_a_constant():
    """-1/2 sum ln alpha, and w = mu e with ln e ~ N(-alpha / 2, alpha): mean mu, variance mu^2 (exp(alpha) - 1)."""
    module = noisy(nn.Linear(3, 2, bias=False), prior="log_uniform")
    alpha = (10 * module.noise).clamp(max=0).exp()
    assert module.nats().item() == pytest.approx(-0.5 * alpha.log().sum().item(), rel=1e-12)
    x = torch.tensor([[1.0, -2.0, 0.5]]).double()
    e = (-alpha / 2 + alpha.sqrt() * torch.randn(40_000, 2, 3).double()).exp()
    direct = ((module.layer.weight * e) * x).sum(2).detach()
    local = module.eval()
    local.observed = True
    drawn = local(x.expand(40_000, 3)).detach()
    assert torch.allclose(direct.mean(0), drawn.mean(0), atol=0.01)
    assert torch.allclose(direct.std(0), drawn.std(0), rtol=0.05)


@pytest.mark.parametrize(("layer", "size"), [(nn.Linear(5, 4), (5,)), (nn.Conv2d(3, 4, 3), (3, 3, 3))])
def test_local_noise_has_the_moments_of_weights_that_are_drawn_whole(layer, size):
    module = noisy(layer)
    x = torch.randn(*size).double()
    drawn = []
    with torch.no_grad():
        weight, bias = module.variances()
        for _ in range(10_000):
            w = module.layer.weight + weight.sqrt() * torch.randn_like(weight)
            b = module.layer.bias + bias.sqrt() * torch.randn_like(bias)
            drawn.append((w.flatten(1) @ x.flatten()) + b)
        direct = torch.stack(drawn)
        local = module.train()(x.expand(10_000, *size)).flatten(1)
    assert torch.allclose(direct.mean(0), local.mean(0), atol=5 * float(direct.std(0).max()) / 100)
    assert torch.allclose(direct.std(0), local.std(0), rtol=0.05)
    assert torch.equal(module.eval()(x[None]), module.layer(x[None])), "no noise in eval mode"


@pytest.mark.parametrize("name", ["backprop", "checkpoint", "dgl", "dfa"])
def test_the_gradient_is_that_of_the_explicit_sum(name):
    """What beta adds is beta / N times the gradient of each layer's KL, whatever the strategy: it meets no other."""
    x, y = tiny_batches(1)[0]
    found, learners = [], []
    for beta in (0.0, 0.7):
        model = tiny_model()
        without_norms(model)
        model = NoisyWeights(beta=beta, warmup=0.0).applied(model)
        learner = tiny_learner(make(name), model, blocks=2, total_steps=10)
        layers = [m for m in learner.model.modules() if isinstance(m, GaussianWeights)]
        for m in layers:
            m.samples = SAMPLES
        names = {p: n for n, p in learner.model.named_parameters()}
        blocks = strategy_gradients(learner, x, y)
        found.append({names[p]: g for b in blocks for p, g in b.parameters.items() if p in names})
        learners.append((learner, layers))
    learner, layers = learners[1]
    assert len(layers) == 5
    nats = sum(m.nats() for m in layers)
    parameters = dict(learner.model.named_parameters())
    of_kl = torch.autograd.grad(nats, list(parameters.values()), allow_unused=True)
    assert nats > 0
    for n, g in zip(parameters, of_kl, strict=True):
        added = found[1][n] - found[0][n]
        expected = torch.zeros_like(added) if g is None else 0.7 / SAMPLES * g
        # With its own noise, a layer below changes what those above emit and read, but not their prices.
        assert torch.allclose(added, expected, atol=1e-10), n
    learner.learn(x, y)
    recorded = sum(v for b in learner.blocks for k, v in b.read().items() if k.startswith("weight_bits"))
    assert recorded == pytest.approx(nats.item() / math.log(2), rel=1e-10)


def test_the_best_q_of_a_linear_regression_costs_its_evidence():
    """y = X w + noise with orthogonal columns: the least of E_q[-ln p(y | w)] + KL(q || p) is -ln p(y)."""
    rng = np.random.default_rng(0)
    X = np.linalg.qr(rng.normal(size=(12, 3)))[0] * 2
    y, s = X @ np.array([0.5, -1.0, 0.2]) + 0.3 * rng.normal(size=12), 0.3
    module = noisy(nn.Linear(3, 1, bias=False), prior="zero")
    variance = 1 / ((X**2).sum(0) / s**2 + 1 / module.deviation**2)
    mean = variance * (X.T @ y) / s**2
    with torch.no_grad():
        module.layer.weight.copy_(torch.tensor(mean)[None])
        module.noise.copy_(torch.tensor(0.5 * np.log(variance))[None] / 10)
    squares = ((y - X @ mean) ** 2).sum() + (X**2 @ variance).sum()
    cost = 6 * math.log(2 * math.pi * s**2) + squares / (2 * s**2) + module.nats().item()
    covariance = module.deviation**2 * X @ X.T + s**2 * np.eye(12)
    assert cost == pytest.approx(-multivariate_normal(np.zeros(12), covariance).logpdf(y), rel=1e-9)
    for _ in range(5):  # and every other q costs more
        with torch.no_grad():
            module.noise.copy_(torch.tensor(0.5 * np.log(variance * rng.uniform(0.5, 2, 3)))[None] / 10)
        squares = ((y - X @ mean) ** 2).sum() + (X**2 @ module.variances()[0].detach().numpy()[0]).sum()
        assert 6 * math.log(2 * math.pi * s**2) + squares / (2 * s**2) + module.nats().item() > cost


@pytest.mark.slow
def test_a_run(tmp_path):
    """Labels that are drawn at random cannot be had for less than a nat a nat; at beta = 2 nothing is learned."""
    for beta in (0.003, 2.0):
        result = locallearn.train(
            quiet=True, strategy="backprop", model="mlp", data="digits", epochs=40, out=str(tmp_path), blocks=1,
            bottleneck="weights", probe="noisy_weights",
            **{
                "model.width": 32, "model.depth": 1, "model.batch_norm": False, "data.label_noise": 1.0,
                "data.fraction": 0.05, "bottleneck.beta": beta, "probe.noisy_weights.every": 40, "optim.lr": 0.01,
                "evaluate_every": 40, "bottleneck.warmup": 0.0,
            },
        )  # fmt: skip
        lines = (result.run_dir / "probes/noisy_weights/rows.jsonl").read_text().splitlines()
        row = json.loads(lines[-1])
        layers = [json.loads(line) for line in lines[-3:-1]]
        assert row["nats"] == pytest.approx(sum(r["weight_bits"] for r in layers) * math.log(2))
        assert row["nats"] > row["saved_nats"] - math.log(1000)
        assert 1 - row["train_accuracy"] < row["bound_kl"] <= 1
        assert (row["train_accuracy"] > 0.6) == (beta < 1)


def test_refusals():
    with pytest.raises(UserError, match="has no linear layer or convolution"):
        NoisyWeights().applied(BlockModel([nn.ReLU()], nn.Flatten(), image=(3,), classes=3, name="empty"))
    learner = tiny_learner(make("backprop"), NoisyWeights().applied(tiny_model()), blocks=2)
    with pytest.raises(UserError, match=r"only train\(\) knows"):
        learner.learn(*tiny_batches(1)[0])
    with pytest.raises(UserError, match="cannot have feedback weights"):
        tiny_learner(make("fa"), NoisyWeights().applied(tiny_model()), blocks=2)
