"""Bottlenecks on the main path: their KL by torch.distributions, their gradients by an explicit sum in float64, and the
same bits however a run is divided."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

import locallearn
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import make
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.engine.gradients import strategy_gradients
from locallearn.errors import UserError
from locallearn.models.bottleneck import Bottleneck, GaussianBottleneck, LogNormalBottleneck, Noisy
from locallearn.models.plain import mlp

LOCALLEARN = [sys.executable, "-m", "locallearn"]
BETA = 0.07
LOCAL = ("dgl", "greedy", "dfa", "sdfa", "drtp")
"""No gradient crosses a border."""
THROUGH = ("backprop", "checkpoint", "deep_supervision")


def kl(noise: nn.Module, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """Nats [] of a batch by the definition, for what the unit has read and emitted."""
    if isinstance(noise.layer, nn.Conv2d):  # of GaussianBottleneck: the code's two halves
        mean, rho = noise.layer(h).chunk(2, dim=1)
        deviation = F.softplus(rho - 5).clamp(math.exp(-6), math.exp(2))  # log variances of -12 to 4
        divergence = kl_divergence(Normal(mean, deviation), Normal(torch.zeros_like(mean), 1.0))
        return divergence.flatten(1).sum(1).mean()
    alpha = 0.001 + 0.7 * noise.layer(x).sigmoid()
    return -((alpha / 0.701).log() * (h > 0)).flatten(1).sum(1).mean()


def gradients(learner, x, y) -> dict[str, torch.Tensor]:
    names = {p: name for name, p in learner.model.named_parameters()}
    blocks = strategy_gradients(learner, x, y)
    return {names[p]: g for block in blocks for p, g in block.parameters.items() if p in names}


@pytest.mark.parametrize("kind", [GaussianBottleneck, LogNormalBottleneck])
@pytest.mark.parametrize("name", [*LOCAL, *THROUGH])
def test_the_gradient_is_that_of_the_explicit_sum(name, kind):
    """What beta adds is beta times the gradient of the KL by plain autograd, in the units that the strategy lets it
    reach: in float64, with the noise that each block has drawn."""
    (x, y), places = tiny_batches(1)[0], [1, 3]

    def learner(beta: float):
        model = kind(after=places, beta=beta, warmup=0.0).applied(tiny_model())
        return tiny_learner(make(name), model, blocks=2, total_steps=10)

    free, priced = learner(0.0), learner(BETA)
    added = {n: (g - gradients(free, x, y)[n]) for n, g in gradients(priced, x, y).items()}
    model = priced.model.train()
    for i in places:
        model.units[i].noise.beta = 0.0  # the sum below is the only one who charges
    expected = dict.fromkeys(added, 0.0)
    h, nats = x, []
    for k, (block, units) in enumerate(zip(priced.blocks, priced.cut, strict=True)):
        if name in LOCAL:
            h = h.detach()
        block.step, block.micro = 0, 0
        block.reseed("forward")
        for i in units:
            if isinstance(unit := model.units[i], Noisy):
                before = unit.unit(h)
                if name != "greedy" or k == 0:  # the first phase of greedy learning is that of block 0
                    nats.append(kl(unit.noise, h, before))
                h = unit.noise(h, before)
            else:
                h = unit(h)
    of_kl = torch.autograd.grad(sum(nats), list(model.parameters()), allow_unused=True)
    for (n, _), g in zip(model.named_parameters(), of_kl, strict=True):
        if g is not None and n in expected:
            expected[n] = BETA * g
    assert sum(float(torch.as_tensor(e).abs().sum()) for e in expected.values()) > 0.01
    for n, g in added.items():
        assert torch.allclose(g, torch.as_tensor(expected[n]).to(g).expand_as(g), atol=1e-11), n
    free.learn(x, y)
    for block, i, bits in zip(free.blocks, places, nats, strict=False):
        recorded = block.read()[f"{'bits' if kind is GaussianBottleneck else 'bits_relative'}_unit{i}"]
        assert recorded == pytest.approx(bits.item() / math.log(2), rel=1e-12)


def test_feedback_alignment_pays_in_its_own_block():
    """Behind the last layer of a block the price meets no feedback weights on its way to the noise."""
    x, y = tiny_batches(1)[0]
    found = []
    for beta in (0.0, BETA):
        model = GaussianBottleneck(after=[3], beta=beta, warmup=0.0).applied(tiny_model())
        found.append(gradients(tiny_learner(make("fa"), model, blocks=4, total_steps=10), x, y))
    changed = {n for n in found[0] if not torch.equal(found[0][n], found[1][n])}
    assert {"units.3.noise.layer.weight", "units.3.unit.0.weight", "units.0.0.weight"} <= changed
    assert not any(n.startswith("head") for n in changed)


@pytest.mark.parametrize("prior", ["log_uniform", "log_normal"])
def test_information_dropout_by_its_definition(prior):
    dropout = LogNormalBottleneck(prior=prior, after=[0], warmup=0.0)
    torch.manual_seed(0)
    noise = dropout.applied(tiny_model()).units[0].noise.double()
    noise.map, noise.observed = None, True
    x, h = torch.randn(5, 2, 6, 6).double(), torch.rand(5, 4, 6, 6).double() + 0.1
    h[0, 0, 0, 0] = 0.0
    z = noise(x, h)
    alpha = 0.001 + 0.7 * noise.layer(x).sigmoid()
    nats = -(alpha / 0.701).log() if prior == "log_uniform" else kl_divergence(
        Normal(h.clamp(min=1e-4).log(), alpha), Normal(noise.mean, noise.log_deviation.exp())
    )  # fmt: skip
    nats[0, 0, 0, 0] = 0.0
    assert torch.allclose(noise.map, nats, atol=1e-12)
    assert z[0, 0, 0, 0] == 0
    logs = torch.stack([(noise(x, h)[1:] / h[1:]).log() for _ in range(2000)])
    assert torch.allclose(logs.std(0), alpha[1:], rtol=0.12)
    assert logs.mean(0).abs().max() < 0.09
    noise.observed = False
    assert torch.equal(noise.eval()(x, h), h)


@pytest.mark.slow
def test_it_never_carries_less_than_is_read_and_collapses_at_a_high_price(tmp_path):
    """nats >= H(Y) - CE at any price and moment; at beta = 2 nothing passes, and CE = H(Y)."""
    runs = {}
    for beta in (1e-3, 2.0):
        result = train(
            tmp_path, epochs=60, batch_size=128, probe="bottleneck",
            **{
                "bottleneck.beta": beta, "bottleneck.warmup": 0.0,
                "optim.lr": 0.02,
                "probe.bottleneck.split": "train", "probe.bottleneck.every": 3,
            },
        )  # fmt: skip
        lines = (result.run_dir / "probes/bottleneck/rows.jsonl").read_text().splitlines()
        runs[beta] = rows = [json.loads(line) for line in lines]
        for place, head in zip(rows[::2], rows[1::2], strict=True):
            assert place["bits"] > head["i_z_y"] - 0.05
            assert place["warnings"] is None
    *_, place, head = runs[2.0]
    assert place["bits"] < 0.1
    assert head["i_z_y"] == pytest.approx(0.0, abs=0.02)
    *_, place, head = runs[1e-3]
    assert head["i_z_y"] > 3
    assert head["accuracy_draws"] >= head["accuracy_one_draw"] > 0.95


def train(out, **settings):
    small = {"strategy": "backprop", "data": "digits", "model": "mlp", "model.width": 32, "model.depth": 2}
    return locallearn.train(quiet=True, out=str(out), blocks=2, bottleneck="vib", **small | settings)


def test_none_is_the_model_itself():
    model = tiny_model()
    assert Bottleneck().applied(model) is model
    x, y = tiny_batches(1)[0]
    without = gradients(tiny_learner(make("dgl"), tiny_model(), blocks=2), x, y)
    again = gradients(tiny_learner(make("dgl"), Bottleneck().applied(tiny_model()), blocks=2), x, y)
    assert all(torch.equal(g, again[n]) for n, g in without.items())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("strategy=loco bottleneck=vib", "those of strategy=loco do not: choose one such as backprop"),
        ("strategy=backprop bottleneck.beta=1", "bottleneck.beta belongs to bottleneck="),
        ("strategy=backprop bottleneck=vib bottleneck.beta=-1", "bottleneck.beta=-1: must be a number of at least 0"),
    ],
)
def test_settings_that_are_refused(words, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        experiment(*compose(words.split()), words.split())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"after": ["fc9"]}, "bottleneck.after=fc9: must be of the model's units, fc1, fc2, fc3"),
        ({"after": ["fc1", 0]}, "names a unit twice"),
        ({"after": [0, 1], "beta": [0.1]}, "give one number, or one for each of 2 units"),
    ],
)
def test_places_that_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence.replace(".", r"\.")):
        GaussianBottleneck(**options).applied(mlp(image=(1, 4, 4), classes=3, width=8))


def test_a_module_of_ones_own_is_not_changed_in_place():
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(UserError, match="build trains a module of yours as it is"):
        locallearn.build("backprop", net, image=(1, 2, 2), classes=3, blocks=1, bottleneck="vib")


def test_warmup_and_power():
    """The cost of a step is beta min(1, progress / warmup) KL^power: seen in the gradient of the noise's bias."""
    x, h = torch.randn(4, 2, 6, 6), torch.rand(4, 4, 6, 6)

    def gradient(progress: float, power: int) -> torch.Tensor:
        torch.manual_seed(0)
        noise = (
            GaussianBottleneck(after=[0], beta=BETA, warmup=0.4, power=power)
            .applied(tiny_model())
            .units[0]
            .noise.train()
        )
        noise.progress = progress
        return torch.autograd.grad(0 * noise(x, h).sum(), noise.layer.bias)[0]

    whole = gradient(1.0, 1)
    assert torch.allclose(gradient(0.1, 1), whole / 4)
    torch.manual_seed(0)
    noise = GaussianBottleneck(after=[0]).applied(tiny_model()).units[0].noise
    assert torch.allclose(gradient(0.4, 2), whole * 2 * kl(noise, x, h).detach(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "kind"), [("backprop", "information_dropout"), ("dgl", "weights")])
def test_two_processes_and_an_interrupted_run_end_with_the_same_bits(strategy, kind, tmp_path):
    words = (
        f"strategy={strategy} data=digits model=mlp model.width=32 model.depth=2 blocks=2 epochs=3 micro_batches=2 "
        f"bottleneck={kind} checkpoint.every=7it" + (" bottleneck.after=[fc1,fc2]" if kind != "weights" else "")
    ).split()
    weights = []
    for runtime in ("serial", "pipeline"):
        out = tmp_path / runtime
        subprocess.run([*LOCALLEARN, *words, f"runtime={runtime}", f"out={out}"], check=True, capture_output=True)
        weights.append(next(out.glob("*/model.safetensors")).read_bytes())
    assert weights[0] == weights[1]
    out = tmp_path / "killed"
    with subprocess.Popen([*LOCALLEARN, *words, f"out={out}"], stdout=subprocess.DEVNULL) as process:
        while not [*out.glob("*/checkpoints/*")] and process.poll() is None:
            time.sleep(0.01)
        process.kill()
    (run,) = out.iterdir()
    assert not (run / "model.safetensors").exists()
    subprocess.run([*LOCALLEARN, "resume", str(run)], check=True, capture_output=True)
    assert (run / "model.safetensors").read_bytes() == weights[0]
