"""The alignment probe: true gradients against the whole graph, a strategy's against its own update, nothing changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional as F

import locallearn
from helpers.nets import assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, make
from locallearn.engine import SGD
from locallearn.engine.gradients import strategy_gradients, true_gradients
from locallearn.probes.alignment import alignment
from locallearn.strategies.backprop import Backprop

PLAIN = SGD(lr=1.0, momentum=0.0, weight_decay=0.0, schedule="constant")


def test_true_gradients_are_those_of_the_whole_graph():
    (x, y), *_ = tiny_batches(1)
    learner = tiny_learner(Backprop(), total_steps=4)
    model = copy.deepcopy(learner.model).train()
    F.cross_entropy(model(x), y).backward()
    found = {p: g for block in true_gradients(learner, x, y) for p, g in block.parameters.items()}
    for name, p in learner.model.named_parameters():
        assert torch.equal(found[p], model.get_parameter(name).grad), name


@pytest.mark.parametrize("name", sorted(name for name in FILES if not make(name).repeats))
def test_what_is_measured_is_what_the_strategy_applies(name):
    """With SGD at rate 1 the update is the gradient; and the measurement changes nothing."""
    (x, y), *_ = tiny_batches(1)
    learner = tiny_learner(make(name), tiny_model(dropout=0.2), optim=PLAIN, total_steps=4)
    untouched = copy.deepcopy(learner.state())
    gradients = strategy_gradients(learner, x, y)
    alignment(learner, x, y)
    assert all(torch.equal(t, untouched[n]) for n, t in learner.state().items())
    assert all(p.grad is None for _, p in learner.parameters())
    before = {p: p.detach().clone() for p in learner.model.parameters()}
    learner.learn(x, y)
    collected = {p: g for block in gradients for p, g in block.parameters.items()}
    for p, old in before.items():
        expected = old - collected[p] if p in collected else old
        assert torch.equal(p, expected)


def test_backprop_is_aligned_with_itself():
    (x, y), *_ = tiny_batches(1)
    rows = alignment(tiny_learner(Backprop(), tiny_model(dropout=0.2), total_steps=4), x, y)
    assert [row["block"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert row["update_cosine"] == pytest.approx(1.0, abs=1e-12)
        assert row["update_angle"] == pytest.approx(0.0, abs=1e-3)
        assert row["update_norm_ratio"] == pytest.approx(1.0, abs=1e-12)
        assert row["feedback_cosine"] == pytest.approx(1.0, abs=1e-12)


@pytest.mark.slow
def test_a_run_with_the_probe_ends_with_the_same_weights(tmp_path):
    settings = {"model": "lenet", "epochs": 1, "max_steps": 6, "strategy": "cdni", "threads": 1, "quiet": True}
    plain = locallearn.train(out=str(tmp_path), **settings)
    probed = locallearn.train(out=str(tmp_path), probe="alignment", **settings)
    assert_same(plain.model, probed.model)
    record = probed.history[-1]
    assert {"block/00/update_angle", "block/00/feedback_norm_ratio", "block/00/synthesizer_loss"} <= record.keys()
    assert record["block/03/update_cosine"] == pytest.approx(1.0, abs=1e-5), "the last block has the true gradient"
