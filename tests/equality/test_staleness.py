"""Delayed gradients against a loop that keeps every old set of weights and differentiates the whole network at once."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.func import functional_call
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import make
from locallearn.engine import SGD, Stage
from locallearn.errors import UserError

BLOCKS = 4
PLAIN = SGD(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")


def by_hand(batches, staleness: int, drained: bool) -> dict[str, torch.Tensor]:
    """Block k at step T subtracts the gradient of batch T - d(k) at the weights of step T - d(k), d(k) = n(K-1-k)."""
    model = tiny_model().double()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    history = []

    def descend(now: int) -> None:
        for name, w in weights.items():
            block = int(name.split(".")[1]) if name.startswith("units.") else BLOCKS - 1
            then = now - staleness * (BLOCKS - 1 - block)
            if 0 <= then < len(history) and (now, block) not in done:
                weights[name] = w - PLAIN.lr * history[then][name]
        done.update((now, block) for block in range(BLOCKS))

    done: set[tuple[int, int]] = set()
    for now, (x, y) in enumerate(batches):
        leaves = {n: w.clone().requires_grad_() for n, w in weights.items()}
        loss = F.cross_entropy(functional_call(model, leaves, (x.double(),)), y)
        history.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
        descend(now)
    for late in range(staleness * (BLOCKS - 1) if drained else 0):
        descend(len(batches) + late)
    return weights


@pytest.mark.parametrize("drained", [False, True])
@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_delayed_gradients(staleness, drained):
    batches = tiny_batches(9)
    model = tiny_model()
    learner = tiny_learner(
        make("backprop"), model, precision="fp64", optim=PLAIN, stage=partial(Stage, staleness=staleness)
    )
    for x, y in batches:
        learner.learn(x, y)
    if drained:
        learner.stage.drain()
    expected = by_hand(batches, staleness, drained)
    for name, p in learner.model.named_parameters():
        torch.testing.assert_close(p.detach(), expected[name], rtol=1e-11, atol=1e-13)


def test_staleness_changes_what_is_learned():
    """So that the test above compares something."""
    batches = tiny_batches(9)
    first, second = by_hand(batches, 1, True), by_hand(batches, 0, True)
    assert not all(torch.allclose(first[n], second[n]) for n in first)


@pytest.mark.parametrize("name", ["dgl", "dni"])
def test_only_feedback_can_be_late(name):
    with pytest.raises(UserError, match=r"choose runtime\.staleness=0"):
        tiny_learner(make(name), tiny_model(), total_steps=4, stage=partial(Stage, staleness=1))
