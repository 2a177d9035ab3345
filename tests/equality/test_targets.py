"""Target propagation with fixed inverses and counter-current learning, against nets in numpy and closed forms."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from helpers.nets import tiny_batches, tiny_learner
from locallearn.engine import SGD, Learner
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.targets import DTP, CounterCurrent, FixedWeightDTP, Inverse
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
    with pytest.raises(UserError, match="have 2,147,483,648 numbers together, but at most 134,217,728 are allowed"):
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


# Learned inverses


def learned(strategy: DTP, model: BlockModel, vs: list[np.ndarray]) -> Learner:
    """A learner whose inverses begin with given V [above, below], the head's last."""
    learner = tiny_learner(strategy, model, "max", optim=OPTIM)
    for matrix, v in zip(matrices(learner), vs, strict=True):
        matrix.data.copy_(torch.from_numpy(v))
    return learner


def matrices(learner: Learner) -> list[torch.Tensor]:
    found = [b.auxiliary["inverse"].matrix for b in learner.blocks[1:]]
    return [*found, learner.blocks[-1].auxiliary["head_inverse"].matrix]


def random_vs(model: BlockModel) -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [0.4 * rng.standard_normal(w.shape) for w in weights(model)[1:]]


def silent(monkeypatch) -> None:
    """Noise is a number, by what it is for, so that a net in numpy has the same."""
    steady = lambda t, *counters: torch.full_like(t, 0.3 + 0.1 * counters[-1])  # noqa: E731
    monkeypatch.setattr("locallearn.seeds.noise_like", steady)


@pytest.mark.parametrize("kind", ["dtp", "l_drl"])
def test_a_step_of_an_inverse_is_that_of_its_closed_form(kind, monkeypatch):
    silent(monkeypatch)
    sigma = 0.5
    model = net()
    vs = random_vs(model)
    learner = learned(DTP(reconstruction=kind, noise=sigma, feedback_steps=1), model, vs)
    before = weights(learner.model)
    x, y = batch()
    hs = states(before, x.numpy())
    hs.append(hs[-1] @ before[-1].T)
    learner.step(x, y)
    for k, (v, after) in enumerate(zip(vs, matrices(learner), strict=True), start=1):
        of_head = k == len(vs)
        below, above = hs[k], hs[k + 1]
        q = below + sigma * (0.4 if of_head else 0.3)
        up = q @ before[k].T if of_head else np.tanh(q @ before[k].T)
        if kind == "dtp":
            g = np.tanh(up @ v)
            expected = up.T @ (2 * (g - q) * (1 - g**2)) / B
        else:
            r = above + sigma * (0.6 if of_head and k > 1 else 0.5)
            g, g_up, g_r = (np.tanh(each @ v) for each in (above, up, r))
            e, back = q - below, g_r - g
            expected = -up.T @ (e * (1 - g_up**2)) + above.T @ (e * (1 - g**2))
            expected += r.T @ (back * (1 - g_r**2)) - above.T @ (back * (1 - g**2))
            expected /= B
        np.testing.assert_allclose((v - after.detach().numpy()) / RATE, expected, atol=1e-11)


def test_targets_come_from_the_inverses_after_their_updates():
    """A step of the units is that of FW-DTP with the V to which this batch has led."""
    model = net()
    ours = learned(DTP(step_size=0.7, noise=0.3, feedback_steps=3), model, random_vs(model))
    theirs = tiny_learner(FixedWeightDTP(step_size=0.7), model, "max", optim=OPTIM)
    start = [v.detach().clone() for v in matrices(ours)]
    ours.step(*batch())
    assert all(not torch.equal(v, old) for v, old in zip(matrices(ours), start, strict=True))
    for fixed, v in zip(matrices(theirs), matrices(ours), strict=True):
        fixed.copy_(v.detach())
    theirs.step(*batch())
    for p, q in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-12)


@pytest.mark.slow
def test_at_its_least_the_difference_reconstruction_loss_has_the_transposed_jacobian():
    """In a linear net, with small V where tanh is its argument: V = W, as g(h) = h V."""
    torch.manual_seed(0)
    unit = [nn.Linear(6, 6, bias=False) for _ in range(2)]
    model = BlockModel(unit, nn.Linear(6, C, bias=False), image=(6,), classes=C, name="linear").double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.1)
    strategy = DTP(reconstruction="l_drl", step_size=1e-12, noise=1e-2, feedback_steps=200, bound=1e-3)
    learner = tiny_learner(strategy, model, "max", optim=SGD(lr=1000.0, momentum=0.0, schedule="constant"))
    g = torch.Generator().manual_seed(1)
    x = 1e-3 * torch.randn(64, 6, generator=g, dtype=torch.float64)
    learner.step(x, torch.randint(C, (64,), generator=g))
    w = learner.model.units[1].weight
    v = learner.blocks[1].auxiliary["inverse"].matrix
    assert ((v - w).norm() / w.norm()).item() < 0.2
    assert torch.nn.functional.cosine_similarity(v.flatten(), w.flatten(), dim=0).item() > 0.98


def test_inverses_that_are_exact_give_the_exact_pull_back():
    """g = f^-1 of an orthogonal linear layer: the target is what the layer should have read."""
    torch.manual_seed(0)
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    strategy = FixedWeightDTP()
    h, tau = torch.randn(2, B, 6, dtype=torch.float64)
    inverse = Transposed(q)  # h q, for f(x) = x q^T
    x = h @ q
    assert torch.allclose(x + inverse(h, tau - h), torch.linalg.solve(q, tau.t()).t(), atol=1e-12)
    assert not Inverse((6,), (6,), 0.1, learns=False)(h, torch.zeros_like(h)).any(), "tau_L = h_L: nobody moves"
    assert strategy.feedback_steps == 0


def test_unlabelled_samples_teach_inverses_nothing():
    x, y = batch()
    y = torch.cat([y[:3], torch.full((2,), -1)])
    found = []
    for hidden in (x[3:], 5 * x[3:]):
        learner = tiny_learner(DTP(noise=0.3), net(), "max", optim=OPTIM)
        learner.step(torch.cat([x[:3], hidden]), y)
        found.append([*learner.model.parameters(), *matrices(learner)])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_noise_is_new_in_each_update_and_moves_no_statistics():
    torch.manual_seed(0)
    drawn = []
    strategy = DTP(feedback_steps=3)
    learner = tiny_learner(strategy, blocks=4, total_steps=1)
    x, y = tiny_batches(1)[0]
    learner.blocks[2].layers.register_forward_pre_hook(lambda m, args: drawn.append(args[0].clone()))
    before = learner.model.units[2][1].num_batches_tracked.clone()
    learner.step(x, y)
    read, *noisy = drawn
    assert len(noisy) == 3
    assert all(0 < (each - read).std() < 2e-2 for each in noisy)
    assert not torch.equal(noisy[0], noisy[1])
    assert learner.model.units[2][1].num_batches_tracked == before + 1


def test_a_batch_that_inverses_learn_from_several_times_cannot_be_divided():
    with pytest.raises(UserError, match="several times in a batch, so a batch cannot be divided"):
        tiny_learner(DTP(), blocks=4, micro_batches=2)
    tiny_learner(DTP(feedback_steps=1), blocks=4, micro_batches=2).step(*tiny_batches(1)[0])
