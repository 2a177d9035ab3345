"""Signal propagation against autograd of its equations, and nets written anew in numpy."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.sigprop import SigProp, product

RATE, B, C = 0.1, 7, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


def net(act: type[nn.Module] = nn.Tanh, sizes: tuple[int, ...] = (6, 8, 5)) -> BlockModel:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(n, m, bias=False), act()) for n, m in pairwise(sizes)]
    return BlockModel(units, nn.Linear(sizes[-1], C, bias=False), image=(sizes[0],), classes=C, name="net").double()


def batch(labels: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 6, generator=g, dtype=torch.float64), torch.arange(B) % labels


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def embedded(labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Layer norm and ReLU of a linear layer, as they begin."""
    a = labels @ weight.T
    a = a - a.mean(1, keepdims=True)
    return np.maximum(a / np.sqrt((a**2).mean(1, keepdims=True) + 1e-5), 0)


def wanted(kind: str, near: np.ndarray, topk: int) -> np.ndarray:
    t = np.zeros_like(near)
    for i, row in enumerate(near):
        largest = [j for j in range(len(row)) if np.isclose(row[j], row.max(), rtol=1e-9, atol=0)]
        chosen = {"v9": largest, "v14": largest[:1], "v15": np.argsort(-row, kind="stable")[:topk]}[kind]
        t[i, chosen] = 1
    return t


@pytest.mark.parametrize("kind", ["v1", "v9", "v14", "v15"])
def test_a_step_is_that_of_a_net_in_numpy(kind):
    """The upper block and the head; the targets that it reads are an embedding of labels."""
    learner = tiny_learner(SigProp(loss=kind, topk=3), net(), "max", optim=OPTIM)
    x, y = batch()
    weights = [unit[0].weight.detach().numpy().copy() for unit in learner.model.units]
    head = learner.model.head.weight.detach().numpy().copy()
    embedding = learner.blocks[0].auxiliary["targets"].layers[0].weight.detach().numpy().copy()
    shown = np.eye(C) if kind == "v1" else np.eye(C)[y]
    below, r0 = np.tanh(x.numpy() @ weights[0].T), embedded(shown, embedding)
    h, r = np.tanh(below @ weights[1].T), np.tanh(r0 @ weights[1].T)
    z = h @ r.T
    if kind == "v15":  # which of several equal ones are taken is left open, so both take those of ours
        t = learner.strategy.wanted(torch.from_numpy(r0 @ r0.T)).numpy().astype(float)
        assert ((r0 @ r0.T)[t > 0].reshape(B, 3).min(1) >= np.sort(r0 @ r0.T, 1)[:, -3] - 1e-9).all()
    else:
        t = np.eye(C)[y] if kind == "v1" else wanted(kind, r0 @ r0.T, 3)
    dz = (softmax(z) * t.sum(1, keepdims=True) - t) / B
    expected = (dz @ r * (1 - h**2)).T @ below + (dz.T @ h * (1 - r**2)).T @ r0
    expected_head = ((softmax(h @ head.T) - np.eye(C)[y]) / B).T @ h
    learner.step(x, y)
    found = (weights[1] - learner.model.units[1][0].weight.detach().numpy()) / RATE
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose((head - learner.model.head.weight.detach().numpy()) / RATE, expected_head, atol=1e-12)


def test_a_linear_layer_with_fixed_prototypes_is_autograd_of_both_paths():
    learner = tiny_learner(SigProp(loss="v1"), net(nn.Identity), "max", optim=OPTIM)
    x, y = batch()
    block = learner.blocks[1]
    prototypes = learner.blocks[0].auxiliary["targets"](torch.eye(C, dtype=torch.float64)).detach()
    below = learner.model.units[0](x).detach()
    w = learner.model.units[1][0].weight.detach().clone().requires_grad_()
    F.cross_entropy(below @ w.t() @ (prototypes @ w.t()).t(), y).backward()
    before = block.layers[0][0].weight.detach().clone()
    learner.step(x, y)
    torch.testing.assert_close((before - block.layers[0][0].weight.detach()) / RATE, w.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("positions", [(), (3,), (2, 2)])
def test_equal_targets_of_a_class_want_exactly_their_samples(positions):
    """Also where matrix products round equal rows differently."""
    torch.manual_seed(0)
    y = torch.randint(10, (64,))
    r = torch.randn(10, 37, *positions)
    r = (r / r.flatten(1).norm(dim=1).view(-1, *[1] * (r.dim() - 1)))[y]
    same = y[:, None] == y
    assert torch.equal(SigProp(loss="v9").wanted(product(r, r)), same)
    first = SigProp(loss="v14").wanted(product(r, r))
    assert torch.equal(first.long().argmax(1), same.long().argmax(1))
    assert (first.sum(1) == 1).all()


def test_products_of_maps_and_sequences_are_means_over_positions():
    a, b = torch.randn(4, 5, 2, 3, dtype=torch.float64), torch.randn(6, 5, 2, 3, dtype=torch.float64)
    maps = torch.einsum("nchw,mchw->nm", a, b) / 6
    torch.testing.assert_close(product(a, b), maps, rtol=0, atol=1e-12)
    steps = product(a.flatten(2).transpose(1, 2), b.flatten(2).transpose(1, 2))
    torch.testing.assert_close(steps, maps, rtol=0, atol=1e-12)


def test_with_one_sample_of_each_class_v1_and_v14_are_the_same():
    g = torch.Generator().manual_seed(1)
    x, y = torch.randn(C, 6, generator=g, dtype=torch.float64), torch.tensor([2, 0, 1])
    found = []
    for kind in ("v1", "v14"):
        learner = tiny_learner(SigProp(loss=kind), net(sizes=(6, 8)), "max", optim=OPTIM)
        learner.step(x, y)
        found.append([*learner.model.parameters(), *learner.blocks[0].auxiliary.parameters()])
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_the_stream_of_targets_moves_no_statistics_and_has_its_own():
    learner = tiny_learner(SigProp(), blocks=4, total_steps=1)
    x, y = tiny_batches(1)[0]
    seen = []
    norm = learner.model.units[1][1]
    norm.register_forward_hook(lambda m, args, out: seen.append(args[0].detach()))
    before = norm.running_mean.clone()
    learner.learn(x, y)
    inputs, targets = seen
    assert not torch.allclose(inputs.mean((0, 2, 3)), targets.mean((0, 2, 3)))
    assert torch.allclose(norm.running_mean, 0.9 * before + 0.1 * inputs.mean((0, 2, 3)))


@pytest.mark.parametrize("kind", ["v1", "v9", "v14", "v15"])
def test_samples_without_a_label_teach_nothing(kind):
    x, y = batch()
    known = torch.arange(B) % 2 == 0
    ours, theirs = (tiny_learner(SigProp(loss=kind, topk=2), net(), "max", optim=OPTIM) for _ in range(2))
    ours.step(x, torch.where(known, y, -1))
    theirs.step(x[known], y[known])
    for p, q in zip((p for _, p in ours.parameters()), (q for _, q in theirs.parameters()), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_targets_pass_frozen_blocks_and_begin_in_the_first_one():
    model, (x, y) = tiny_model(), tiny_batches(1)[0]
    learner = tiny_learner(SigProp(), model, 4, train_blocks=frozenset({0, 2}), total_steps=1)
    learner.learn(x, y)
    frozen = learner.model.units[1].state_dict()
    assert all(torch.equal(t.double(), frozen[n]) for n, t in model.units[1].state_dict().items())
    assert not torch.equal(learner.model.units[2][0].weight, model.units[2][0].weight.double())
    learner = tiny_learner(SigProp(), model, 4, train_blocks=frozenset({1, 2}), total_steps=1)
    with pytest.raises(UserError, match="block 1 needs them: add 0 to train_blocks"):
        learner.learn(x, y)
