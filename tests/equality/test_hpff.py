"""HPFF against its two streams, written out: three forwards of each inner block, as in the paper."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.auxiliary import Linear
from locallearn.auxiliary.decoder import Decoder
from locallearn.engine import SGD
from locallearn.objectives import CrossEntropy
from locallearn.strategies.overlapping import HPFF, Overlapping

RATE = 0.1
OPTIM = SGD(lr=RATE, momentum=0.0, weight_decay=0.0, schedule="constant")


def hpff(**options) -> HPFF:
    return HPFF(objective=CrossEntropy(), auxiliary=Linear(), **options)


@pytest.mark.parametrize("weight", [0.001, 0.3, 0.0, 1.0])
def test_the_gradients_are_those_of_two_streams(weight):
    learner = tiny_learner(hpff(weight=weight), optim=OPTIM, total_steps=2)
    model, auxiliary = copy.deepcopy([learner.model, [b.auxiliary for b in learner.blocks]])
    (x, y), *_ = tiny_batches(1)
    learner.step(x, y)
    single, pair = x, x  # what the next block reads of the first stream, and the last two blocks of the second
    below = None
    for k, unit in enumerate(model.units):
        h = unit(single)
        if k:
            z = unit(below(pair))
            first, second = (model.head(h), model.head(z)) if k == 3 else (
                auxiliary[k]["own_classifier"](h) if weight else None, auxiliary[k]["classifier"](z)
            )  # fmt: skip
            loss = (1 - weight) * F.cross_entropy(second, y)
            loss = loss if first is None else loss + weight * F.cross_entropy(first, y)
            loss.backward()
            pair = below(pair).detach()
        single, below = h.detach(), unit
    with torch.no_grad():
        for truth, before in zip(learner.model.parameters(), model.parameters(), strict=True):
            step = 0 if before.grad is None else RATE * before.grad
            torch.testing.assert_close(truth, before - step, rtol=1e-9, atol=1e-12)
        for k in (1, 2):
            for truth, before in zip(learner.blocks[k].auxiliary.parameters(), auxiliary[k].parameters(), strict=True):
                torch.testing.assert_close(truth, before - RATE * before.grad, rtol=1e-9, atol=1e-12)


def test_without_the_single_stream_it_is_loco_whose_first_block_has_no_loss():
    class Silent(Overlapping):
        def own_gradient(self, block, h, packet):
            return None if block.spec.index == 0 else super().own_gradient(block, h, packet)

    losses = {}
    for name, strategy in {
        "hpff": hpff(weight=0.0),
        "loco": Silent(objective=CrossEntropy(), auxiliary=Linear(), reach=2),
    }.items():
        learner = tiny_learner(strategy, tiny_model(dropout=0.3), optim=OPTIM, total_steps=6)
        for k in range(1, 3):  # heads are drawn alike, for both draw them first
            torch.manual_seed(k)
            for p in learner.blocks[k].auxiliary["classifier"].parameters():
                p.data.normal_()
        for x, y in tiny_batches(6):
            learner.step(x, y)
        losses[name] = learner.model.state_dict()
    for name, t in losses["hpff"].items():
        torch.testing.assert_close(t, losses["loco"][name], rtol=1e-9, atol=1e-11, msg=name)


def test_a_quarter_of_the_image_comes_from_that_of_the_maps():
    torch.manual_seed(0)
    decoder = Decoder(quarters=True).build((5, 4, 7), (3, 9, 16)).double()
    h = torch.randn(2, 5, 4, 7, dtype=torch.float64, requires_grad=True)
    image = decoder.eval()(h)
    assert image.shape == (2, 3, 9, 16)
    rows, columns = (slice(0, 2), slice(2, 4)), (slice(0, 3), slice(3, 7))
    places = (slice(0, 4), slice(4, 9)), (slice(0, 8), slice(8, 16))
    for i in range(4):
        r, c = rows[i // 2], columns[i % 2]
        expected = decoder.decoders[i](h[:, :, r, c])
        assert torch.equal(image[:, :, places[0][i // 2], places[1][i % 2]], expected)
        (gradient,) = torch.autograd.grad(expected.sum(), h)
        outside = gradient.clone()
        outside[:, :, r, c] = 0
        assert not outside.any()
    assert not hasattr(Decoder(quarters=True).build((5,), (3, 9, 16)), "decoders"), "a vector has no quarters"
