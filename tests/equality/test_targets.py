"""Target propagation with fixed inverses and counter-current learning, against nets in numpy and closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from helpers.nets import tiny_learner
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.targets import CounterCurrent, FixedWeightDTP
from locallearn.task import Classification

RATE, B, C = 0.1, 5, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


def net(act=nn.Tanh, sizes=(6, 7, 5, 4)) -> BlockModel:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(n, m, bias=False), act()) for n, m in pairwise(sizes)]
    head = nn.Linear(sizes[-1], C, bias=False)
    return BlockModel(units, head, image=(sizes[0],), classes=C, name="net").double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 6, generator=g, dtype=torch.float64), torch.randint(C, (B,), generator=g)


def weights(model: BlockModel) -> list[np.ndarray]:
    return [layer.weight.detach().numpy().copy() for layer in (*(unit[0] for unit in model.units), model.head)]


def moved(model: BlockModel, before: list[np.ndarray]) -> list[np.ndarray]:
    return [(old - new) / RATE for old, new in zip(before, weights(model), strict=True)]


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def states(before: list[np.ndarray], x: np.ndarray, act=np.tanh) -> list[np.ndarray]:
    hs = [x]
    for w in before[:-1]:
        hs.append(act(hs[-1] @ w.T))
    return hs


def test_a_step_of_fw_dtp_is_that_of_a_net_in_numpy():
    learner = tiny_learner(FixedWeightDTP(step_size=0.7, bound=0.4), net(), "max", optim=OPTIM)
    x, y = batch()
    before = weights(learner.model)
    inverses = [b.auxiliary["inverse"].matrix.double().numpy() for b in learner.blocks[1:]]
    inverses.append(learner.blocks[-1].auxiliary["head_inverse"].matrix.double().numpy())
    hs = states(before, x.numpy())
    z = hs[-1] @ before[-1].T
    e = softmax(z) - np.eye(C)[y]
    outputs, targets = [*hs[1:], z], [z - 0.7 * e]
    for k in range(len(inverses) - 1, -1, -1):
        v, h = inverses[k], outputs[k + 1]
        targets.insert(0, np.tanh(targets[0] @ v) + outputs[k] - np.tanh(h @ v))
    expected = []
    for k, (h, target) in enumerate(zip(hs[1:], targets, strict=False)):
        delta = 2 * (h - target) / B * (1 - h**2)
        expected.append(delta.T @ hs[k])
    expected.append((2 * 0.7 * e / B).T @ hs[-1])
    learner.step(x, y)
    for ours, theirs in zip(moved(learner.model, before), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_without_inverses_only_the_top_learns_and_its_head_as_backprop_does_times_two_alpha():
    ours, truth = (tiny_learner(s, net(), "max", optim=OPTIM) for s in (FixedWeightDTP(step_size=0.3), Backprop()))
    for block in ours.blocks:
        for module in block.auxiliary.values():
            module.matrix.zero_()
    before = weights(ours.model)
    for learner in (ours, truth):
        learner.step(*batch())
    *hidden, head = moved(ours.model, before)
    assert all(not each.any() for each in hidden)
    np.testing.assert_allclose(head, 2 * 0.3 * moved(truth.model, before)[-1], atol=1e-12)


class Transposed(nn.Module):
    """g(h) = h W: the inverse that makes target propagation backprop in linear nets."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, h: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
        return away @ self.weight


def test_with_transposed_weights_in_a_linear_net_it_is_backprop_times_two_alpha():
    alpha = 0.2
    ours, truth = (
        tiny_learner(s, net(nn.Identity), "max", optim=OPTIM) for s in (FixedWeightDTP(step_size=alpha), Backprop())
    )
    layers = [*(unit[0] for unit in ours.model.units), ours.model.head]
    for block, layer in zip(ours.blocks[1:], layers[1:], strict=False):
        block.auxiliary["inverse"] = Transposed(layer.weight.detach().clone())
    ours.blocks[-1].auxiliary["head_inverse"] = Transposed(layers[-1].weight.detach().clone())
    before = weights(ours.model)
    for learner in (ours, truth):
        learner.step(*batch())
    for mine, other in zip(moved(ours.model, before), moved(truth.model, before), strict=True):
        np.testing.assert_allclose(mine, 2 * alpha * other, atol=1e-10)


def elu(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, np.expm1(x))


def slope(h: np.ndarray) -> np.ndarray:
    """Of ELU, by what it has given."""
    return np.where(h > 0, 1.0, h + 1)


def test_a_step_of_counter_current_learning_is_that_of_its_closed_form():
    learner = tiny_learner(CounterCurrent(), net(nn.ELU), "max", optim=OPTIM)
    x, y = batch()
    before = weights(learner.model)
    feedback = [b.auxiliary["feedback"][0].weight for b in learner.blocks]
    vs = [v.detach().numpy().copy() for v in feedback]
    hs, t = states(before, x.numpy(), elu), np.eye(C)[y]
    cs = [np.eye(C)]
    for v in reversed(vs):
        cs.insert(0, elu(cs[0] @ v.T))
    expected, expected_v = [], []
    for k in range(len(vs)):
        h, c = hs[k + 1], cs[k]
        away = 256 / (B * C * h.shape[1]) * (h @ c.T - t)
        expected.append(((away @ c) * slope(h)).T @ hs[k])
        expected_v.append(((away.T @ h) * slope(c)).T @ cs[k + 1])
    expected.append(((softmax(hs[-1] @ before[-1].T) - t) / B).T @ hs[-1])
    learner.step(x, y)
    for ours, theirs in zip(moved(learner.model, before), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)
    for old, new, theirs in zip(vs, feedback, expected_v, strict=True):
        np.testing.assert_allclose((old - new.detach().numpy()) / RATE, theirs, atol=1e-12)


@pytest.mark.parametrize("strategy", [FixedWeightDTP(), CounterCurrent()], ids=["fw_dtp", "counter_current"])
def test_samples_without_a_label_teach_nothing(strategy):
    x, y = batch()
    ours, theirs = (tiny_learner(strategy, net(), "max", optim=OPTIM) for _ in range(2))
    ours.step(torch.cat([x, torch.randn(2, 6, dtype=torch.float64)]), torch.cat([y, torch.full((2,), -1)]))
    theirs.step(x, y)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


@pytest.mark.parametrize("strategy", [FixedWeightDTP(), CounterCurrent()], ids=["fw_dtp", "counter_current"])
def test_matrices_that_would_fill_the_memory_are_one_sentence(strategy):
    maps = [nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 3, padding=1)]
    head = nn.Sequential(nn.Flatten(), nn.Linear(32 * 32 * 32, C))
    model = BlockModel(maps, head, image=(3, 32, 32), classes=C, name="maps").double()
    with pytest.raises(UserError, match="have 2,147,483,648 numbers together, and at most 134,217,728 are allowed"):
        tiny_learner(strategy, model, "max")


def test_classes_may_weigh_differently():
    """The error is then that of autograd, also where no gradients are taken."""
    task = Classification(weights=(1.0, 3.0, 0.5))
    z, (_, y) = torch.randn(B, C, dtype=torch.float64), batch()
    with torch.no_grad():
        error = task.error(z, y)
    leaf = z.clone().requires_grad_()
    task.loss(leaf, y).backward()
    assert torch.allclose(error, leaf.grad, atol=1e-12)
    tiny_learner(FixedWeightDTP(), net(), "max", task=task).step(*batch())
