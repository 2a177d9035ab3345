"""Dual propagation against its closed form, a net in numpy, and a loop over functions that share no code with it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import dense_batch, dense_model, tiny_learner
from locallearn.engine import SGD
from locallearn.models import BlockModel
from locallearn.strategies.activations import activated, before_activation
from locallearn.strategies.dual_propagation import DualPropagation

RATE, B, C = 0.1, 5, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


def layers(model: BlockModel) -> list[nn.Linear]:
    return [*(unit[0] for unit in model.units), model.head]


def weights(model: BlockModel) -> list[np.ndarray]:
    return [p.detach().numpy().copy() for layer in layers(model) for p in (layer.weight, layer.bias)]


def moved(strategy, model: BlockModel, blocks="max") -> list[np.ndarray]:
    """The gradients of one step: a weight and a bias for each layer."""
    learner = tiny_learner(strategy, model, blocks, optim=OPTIM)
    before = weights(learner.model)
    learner.step(*dense_batch())
    return [(old - new) / RATE for old, new in zip(before, weights(learner.model), strict=True)]


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


@pytest.mark.parametrize("gamma", [1.0, 0.4, 1.7])
@pytest.mark.parametrize("output", ["squared", "task"])
def test_a_linear_net_learns_the_gradient_of_backprop_times_the_closed_form(gamma, output):
    """(p - m)_k = -4 gamma / (4 - gamma^2) gamma^(L - k) g_k of each sample, and layers learn -1 / gamma times that;
    with the error of the task the first factor is gamma."""
    model, (x, y) = dense_model(nn.Identity), dense_batch()
    z = model(x)
    target = F.one_hot(y, C).double()
    loss = (z - target).square().sum() / 2 if output == "squared" else F.cross_entropy(z, y, reduction="sum")
    parameters = [p for layer in layers(model) for p in (layer.weight, layer.bias)]
    true = torch.autograd.grad(loss / B, parameters)
    first = 4 * gamma / (4 - gamma**2) if output == "squared" else gamma
    found = moved(DualPropagation(gamma=gamma, output=output), model)
    for i, (ours, theirs) in enumerate(zip(found, true, strict=True)):
        factor = first / gamma * gamma ** (len(layers(model)) - 1 - i // 2)
        np.testing.assert_allclose(ours, factor * theirs.numpy(), atol=1e-12)


@pytest.mark.parametrize("output", ["squared", "task"])
@pytest.mark.parametrize("gamma", [1.0, 1.9])
def test_a_step_is_that_of_a_net_in_numpy(gamma, output):
    """Rectifiers that open and close: p and m of every layer by the equations of the paper."""
    model, (x, y) = dense_model(), dense_batch()
    ws, bs = (
        [p.detach().numpy() for p in part] for part in zip(*((q.weight, q.bias) for q in layers(model)), strict=True)
    )
    t, top = np.eye(C)[y], len(ws) - 1
    plus = [x.numpy()]
    for w, b in zip(ws[:-1], bs[:-1], strict=True):
        plus.append(np.maximum(plus[-1] @ w.T + b, 0))
    first = plus[-1]
    minus = [p.copy() for p in plus]
    z = first @ ws[-1].T + bs[-1]
    if output == "squared":
        plus.append((2 * z + gamma * t) / (2 + gamma))
        minus.append((2 * z - gamma * t) / (2 - gamma))
    else:
        plus.append(z - gamma / 2 * (softmax(z) - t))
        minus.append(z + gamma / 2 * (softmax(z) - t))
    crossed = 0
    for k in range(top, 0, -1):
        forward = (plus[k - 1] + minus[k - 1]) @ ws[k - 1].T + 2 * bs[k - 1]
        down = gamma * (plus[k + 1] - minus[k + 1]) @ ws[k]
        plus[k], minus[k] = (np.maximum(0.5 * (forward + sign * down), 0) for sign in (1, -1))
        crossed += int(((plus[k] == 0) != (minus[k] == 0)).sum())
    assert crossed or gamma == 1  # else the mean states are those of the forward pass
    expected = []
    for k in range(1, len(plus)):
        away = -(plus[k] - minus[k]) / (gamma * B)
        expected += [away.T @ (plus[k - 1] + minus[k - 1]) / 2, away.sum(0)]
    for ours, theirs in zip(moved(DualPropagation(gamma=gamma, output=output), model), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("blocks", [1, 2])
def test_within_a_deep_block_there_is_exact_backprop(blocks):
    """Two blocks of two layers, or one of four: functions of the weights, and autograd for what goes down."""
    model, (x, y) = dense_model(nn.Tanh, (6, 7, 5, 6, 4)), dense_batch()
    parameters = [p for layer in layers(model) for p in (layer.weight, layer.bias)]
    per = 4 // blocks

    def before(k, h):
        for i in range(per * k, per * (k + 1)):
            h = F.linear(torch.tanh(h) if i > per * k else h, *parameters[2 * i : 2 * i + 2])
        return h

    states = [x]
    for k in range(blocks):
        states.append(torch.tanh(before(k, states[-1])).detach().requires_grad_())
    z, target = F.linear(states[-1], *parameters[-2:]), F.one_hot(y, C).double()
    apart = ((2 * z + target) / 3 - (2 * z - target)).detach()
    differences, means = [apart], []
    (pull,) = torch.autograd.grad(z, states[-1], apart)
    for k in range(blocks - 1, -1, -1):
        a = before(k, states[k])
        plus, minus = torch.tanh(a + pull / 2), torch.tanh(a - pull / 2)
        differences.insert(0, (plus - minus).detach())
        means.insert(0, ((plus + minus) / 2).detach())
        pull = torch.autograd.grad(a, states[k], differences[0])[0] if k else None
    inputs = [x, *means]
    total = sum((before(k, inputs[k]) * differences[k]).sum() for k in range(blocks))
    total = total + (F.linear(inputs[-1], *parameters[-2:]) * apart).sum()
    expected = torch.autograd.grad(-total / B, parameters)
    for ours, theirs in zip(moved(DualPropagation(output="squared"), model, blocks), expected, strict=True):
        np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-12)


def test_samples_without_a_label_teach_nothing():
    x, y = dense_batch()
    ours, theirs = (tiny_learner(DualPropagation(), dense_model(), "max", optim=OPTIM) for _ in range(2))
    ours.step(torch.cat([x, torch.randn(2, 6, dtype=torch.float64)]), torch.cat([y, torch.full((2,), -1)]))
    theirs.step(x, y)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_block_without_its_last_activation(inplace):
    """Also before a max-pool, which picks the same numbers, and never where one module stands in two places."""
    conv, act, pool, x = nn.Conv2d(2, 3, 3), nn.ReLU(inplace=inplace), nn.MaxPool2d(2), torch.randn(3, 2, 6, 6)
    block = nn.Sequential(nn.Sequential(conv, act), pool)
    before = before_activation(block, x)
    assert torch.equal(before, pool(conv(x)))
    assert torch.equal(activated(block, before), block(x))
    assert before.min() < 0
    for other in (
        nn.Sequential(act, conv, act),
        nn.Sequential(conv, act, nn.AvgPool2d(2)),
        nn.Sequential(conv, nn.GELU()),
    ):
        assert torch.equal(before_activation(other, x), other(x))
