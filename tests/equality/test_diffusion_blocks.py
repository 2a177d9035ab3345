"""DiffusionBlocks against EDM's closed forms, numerical integrals and a step written by hand."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.nets import assert_descended, tiny_batches, tiny_learner
from locallearn import seeds
from locallearn.engine import SGD, Learner
from locallearn.strategies import diffusion_blocks
from locallearn.strategies.denoising import normal
from locallearn.strategies.diffusion_blocks import DiffusionBlocks, Scales, border, mean_weight, weight

PLAIN = SGD(lr=0.1, momentum=0.0, schedule="constant")
STRATEGY = DiffusionBlocks(width=7, steps=3, overlap=0.1)
SIGMAS = torch.logspace(math.log10(0.002), math.log10(80), 50, dtype=torch.float64)[:, None]


def learner_of(strategy=STRATEGY, **options) -> Learner:
    return tiny_learner(strategy, optim=PLAIN, total_steps=9, **options)


def density(x: np.ndarray) -> np.ndarray:
    """Of ln sigma, but for a factor."""
    return np.exp(-((x + 1.2) ** 2) / (2 * 1.2**2))


def integral(values: np.ndarray, x: np.ndarray) -> float:
    return float(((values[1:] + values[:-1]) / 2 * np.diff(x)).sum())


def test_the_preconditioning_of_edm():
    """What the net reads and what it shall answer have variance 1, and the answer's error is amplified least."""
    scale = Scales(SIGMAS)
    torch.testing.assert_close(scale.inner**2 * (0.25 + SIGMAS**2), torch.ones_like(SIGMAS), rtol=1e-12, atol=0)
    torch.testing.assert_close(weight(SIGMAS) * scale.outer**2, torch.ones_like(SIGMAS), rtol=1e-12, atol=0)
    # Of the target (u - c_skip (u + sigma eps)) / c_out with u of variance 1/4:
    variance = ((1 - scale.skip) ** 2 / 4 + scale.skip**2 * SIGMAS**2) / scale.outer**2
    torch.testing.assert_close(variance, torch.ones_like(SIGMAS), rtol=1e-9, atol=0)
    torch.testing.assert_close(scale.noise, 0.25 * SIGMAS.log())


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 12])
def test_borders_split_the_probability_in_equal_parts(depth):
    borders = [border(i, depth) for i in range(depth + 1)]
    assert borders[0] == pytest.approx(math.log(80))
    assert borders[-1] == pytest.approx(math.log(0.002))
    parts = []
    for high, low in pairwise(borders):
        x = np.linspace(low, high, 20001)
        parts.append(integral(density(x), x))
    assert parts == pytest.approx([parts[0]] * depth, rel=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-2.0, -0.4), (math.log(0.002), -3.0), (0.5, math.log(80))])
def test_the_mean_weight_of_a_range(low, high):
    x = np.linspace(low, high, 200001)
    p = density(x)
    wanted = integral(p * (np.exp(-2 * x) + 4), x) / integral(p, x)
    assert mean_weight(low, high) == pytest.approx(wanted, rel=1e-7)


def test_ranges_are_wider_while_training_but_not_at_the_ends():
    strategy = DiffusionBlocks(overlap=0.05)
    for k in range(3):
        low, high = strategy.widened(k, 3)
        below, above = border(k + 1, 3), border(k, 3)
        more = 0.05 * (above - below)
        assert low == pytest.approx(below - more * (k < 2))
        assert high == pytest.approx(above + more * (k > 0))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_an_oracle_ends_at_the_label(steps, monkeypatch):
    """If every block tells the class, z ends at u but for the noise of the lowest sigma."""
    learner = learner_of(DiffusionBlocks(width=7, steps=steps))
    x, y = tiny_batches(1)[0]
    u = torch.eye(3, dtype=torch.float64)[y]
    monkeypatch.setattr(DiffusionBlocks, "logits", lambda self, block, h, z, sigma: 1e3 * u)
    start = learner.strategy.look(next(learner.packets(x)).at(x), learner.blocks[0].spec).side[1]
    assert start.std() == pytest.approx(80, rel=0.4)
    *_, last = learner.packets(x)
    torch.testing.assert_close(last.side[1] - u, (start - u) * 0.002 / 80, rtol=1e-9, atol=1e-12)


def logits_of(block, image: Tensor, z: Tensor, sigma: Tensor) -> Tensor:
    own, total = block.auxiliary, sigma**2 + 0.25
    h = block.layers(own["image"](image) if "image" in own else image)
    made = own["denoiser"](h, torch.cat([z / total.sqrt(), 0.25 * sigma.log().expand(len(z), 1)], 1))
    mixed = 0.25 / total * z + 0.5 * sigma / total.sqrt() * made
    return mixed @ own["out"].weight.T + own["out"].bias


def test_a_step_by_hand(monkeypatch):
    drawn: list[Tensor] = []

    def draw(x: Tensor, size: int) -> Tensor:
        g = torch.Generator().manual_seed(len(drawn))
        drawn.append(torch.randn(len(x), size, generator=g, dtype=torch.float64))
        return drawn[-1]

    monkeypatch.setattr(diffusion_blocks, "draw", draw)
    learner, (x, y) = learner_of(), tiny_batches(1)[0]
    before = copy.deepcopy(learner)
    learner.learn(x, y)
    u = torch.eye(3, dtype=torch.float64)[y]
    for k, (block, after) in enumerate(zip(before.blocks, learner.blocks, strict=True)):
        low, high = learner.strategy.widened(k, 4)
        grid = np.linspace(low, high, 400001)  # the distribution of ln sigma in the range, turned around by a table
        p = density(grid)
        mass = np.concatenate([[0.0], np.cumsum((p[1:] + p[:-1]) / 2)])
        uniform = [0.5 * (1 + math.erf(g / math.sqrt(2))) for g in drawn[k][:, 3].tolist()]
        sigma = torch.tensor(np.exp(np.interp(uniform, mass / mass[-1], grid)))[:, None]
        logits = logits_of(block, x, u + sigma * drawn[k][:, :3], sigma)
        w = (sigma[:, 0] ** 2 + 0.25) / (sigma[:, 0] * 0.5) ** 2 / mean_weight(low, high)
        loss = (w * F.cross_entropy(logits, y, reduction="none")).mean()
        assert after.read()["loss"] == pytest.approx(loss.item(), rel=1e-7)
        assert_descended(block, after, loss, 0.1, rtol=1e-6, atol=1e-8)


def test_an_answer_by_hand():
    learner = learner_of()
    for x, y in tiny_batches(3):
        learner.learn(x, y)
    x, _ = tiny_batches(1)[0]
    found = learner.predict(x)
    for block in learner.blocks:
        for root in block.roots():
            root.eval()
    z = math.sqrt(1 + 80**2) * normal(x, seeds.derive(learner.setup.seed, "noise"), 3)
    with torch.no_grad():
        for k, block in enumerate(learner.blocks):
            high, low = math.exp(border(k, 4)), math.exp(border(k + 1, 4))
            levels = [high * (low / high) ** (i / 3) for i in range(4)]
            for now, then in pairwise(levels):
                logits = logits_of(block, x, z, torch.tensor([[now]], dtype=torch.float64))
                z = z + (then - now) * (z - logits.softmax(1)) / now
            if k == 3:
                logits = logits_of(block, x, z, torch.tensor([[0.002]], dtype=torch.float64))
            torch.testing.assert_close(found[k], logits, rtol=1e-9, atol=1e-11)
    parts = torch.cat([learner.predict(part)[-1] for part in x.split(3)])
    torch.testing.assert_close(parts, found[-1], rtol=1e-11, atol=1e-13)
