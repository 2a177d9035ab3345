"""MAN and SOLO, which read weights of blocks above, against loops over one net that keep every version."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import assert_same, tiny_batches, tiny_learner
from locallearn.auxiliary import Linear, PointwiseMLP
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.gpt import gpt
from locallearn.models.plain import lenet
from locallearn.models.revnet import revnet
from locallearn.objectives import CrossEntropy
from locallearn.strategies.man import MAN
from locallearn.strategies.solo import SOLO
from locallearn.tasks.tokens import Tokens

RATE, STEPS = 0.1, 6
OPTIM = SGD(lr=RATE, momentum=0.0, weight_decay=0.0, schedule="constant")


def man(**options) -> MAN:
    return MAN(objective=CrossEntropy(), auxiliary=Linear(), **options)


def learned(strategy, model=None, **options):
    learner = tiny_learner(strategy, model, optim=OPTIM, total_steps=STEPS, **options)
    start = copy.deepcopy([learner.model, [block.auxiliary for block in learner.blocks]])
    losses = [learner.step(x, y) for x, y in tiny_batches(STEPS)]
    return learner, start, losses


def descend(*modules: nn.Module) -> None:
    with torch.no_grad():
        for module in modules:
            for p in module.parameters():
                if p.grad is not None:
                    p -= RATE * p.grad
                    p.grad = None


def close(ours: nn.Module, truth: nn.Module) -> None:
    for (name, a), b in zip(ours.named_parameters(), truth.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(("every", "lag"), [(1, 1), (1, 0), (2, 1), (3, 4)])
def test_man_against_a_loop(every, lag, scaled):
    m = 0.7
    learner, (model, auxiliary), _ = learned(man(momentum=m, every=every, lag=lag, scaled=scaled))
    versions, taken = [], [-1] * 3
    for t, (x, y) in enumerate(tiny_batches(STEPS)):
        versions.append([[p.detach().clone() for p in unit.parameters()] for unit in model.units])
        version = max(0, t - lag) // every * every
        for k, unit in enumerate(model.units):
            h = unit(x)
            if k == 3:
                loss, parts = F.cross_entropy(model.head(h), y), [unit, model.head]
            else:
                ahead, parts = auxiliary[k]["ahead"], [unit, auxiliary[k]]
                if version > taken[k]:
                    taken[k] = version
                    for p, w in zip(ahead.weights(), versions[version][k + 1], strict=True):
                        p.copy_(m**every * p + (1 - m**every) * w)
                s = ahead.scale if scaled else 1
                u = s * ahead.own(h) + (2 - s) * ahead.average(h)
                loss = F.cross_entropy(auxiliary[k]["classifier"](u), y)
            x = h.detach()
            loss.backward()
            descend(*parts)
    close(learner.model, model)
    for block, truth in zip(learner.blocks, auxiliary, strict=True):
        close(block.auxiliary, truth)
        for a, b in zip(*(a["ahead"].weights() if "ahead" in a else [] for a in (block.auxiliary, truth)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert scaled == any(ahead.scale.requires_grad for ahead in (b.auxiliary["ahead"] for b in learner.blocks[:3]))


def test_without_memory_a_head_reads_the_next_block_as_it_was():
    """m = 0 and nothing of its own: u = W_next(h) with the weights before the step before."""
    learner = tiny_learner(man(momentum=0.0), optim=OPTIM, total_steps=STEPS)
    ahead = learner.blocks[1].auxiliary["ahead"]
    for p in ahead.own.parameters():
        p.requires_grad_(False).zero_()
    before = copy.deepcopy(learner.model.units[2])
    for x, y in tiny_batches(3):
        previous, before = before, copy.deepcopy(learner.model.units[2])
        learner.step(x, y)
    h = torch.randn(8, 5, 6, 6, dtype=torch.float64)
    assert torch.equal(ahead(h), previous.train()(h))


def test_a_scale_of_one_is_man():
    """MAN++ whose s stays at 1 takes the steps of MAN, bit for bit; s at 1 that learns is the first step of it."""
    scaled, plain = (tiny_learner(man(scaled=s), optim=OPTIM, total_steps=STEPS) for s in (True, False))
    for block in scaled.blocks[:3]:
        block.auxiliary["ahead"].scale.requires_grad_(False)
    losses = [[learner.step(x, y) for x, y in tiny_batches(STEPS)] for learner in (scaled, plain)]
    assert losses[0] == losses[1]
    assert_same(scaled.model, plain.model)
    free = learned(man(scaled=True))[2]
    assert free[0] == losses[1][0]
    assert free[-1] != losses[1][-1]


def test_man_plus_plus_goes_on_from_a_state_to_the_same_bits():
    """With its own head, between two versions of what it reads."""
    strategy = MAN(objective=CrossEntropy(), auxiliary=PointwiseMLP(width=8), scaled=True, every=2, lag=3)
    whole, first, second = (tiny_learner(strategy, total_steps=STEPS) for _ in range(3))
    batches = tiny_batches(STEPS)
    for learner, part in ((whole, batches), (first, batches[:3])):
        for x, y in part:
            learner.step(x, y)
    second.load_state_dict(first.state_dict())
    for x, y in batches[3:]:
        second.step(x, y)
    states = whole.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(t, states[1][name]) for name, t in states[0].items())
    assert any("scale" in name for name in states[0])


def test_the_head_of_man_plus_plus_needs_maps_ahead():
    """The last block of lenet that emits maps looks through a unit that emits vectors."""
    strategy = MAN(objective=CrossEntropy(), auxiliary=PointwiseMLP(width=8))
    with pytest.raises(UserError, match=r"convolves maps \[C, H, W\], but here it would read \[120\]: choose a conv"):
        tiny_learner(strategy, lenet((1, 12, 12), 3), "max")


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_a_version_counts_once_however_a_batch_is_divided(micro_batches):
    whole, parts = learned(man(momentum=0.5))[0], learned(man(momentum=0.5), micro_batches=micro_batches)[0]
    seen = [int(learner.blocks[0].auxiliary["ahead"].seen) for learner in (whole, parts)]
    assert seen == [STEPS - 2] * 2
    learner = tiny_learner(man(momentum=0.5), optim=OPTIM, total_steps=STEPS, micro_batches=micro_batches)
    ahead = learner.blocks[0].auxiliary["ahead"]
    start = [p.clone() for p in ahead.weights()]
    weights = [p.detach().clone() for p in learner.model.units[1].parameters()]
    learner.step(*tiny_batches(1)[0])
    for p, a, w in zip(ahead.weights(), start, weights, strict=True):
        torch.testing.assert_close(p, (a + w) / 2)


@pytest.mark.parametrize("above", [[nn.ReLU()], [nn.ReLU(), nn.Linear(4, 4)]])
def test_man_needs_weights_in_the_next_block(above):
    model = BlockModel([nn.Linear(4, 4), *above], nn.Linear(4, 3), image=(4,), classes=3, name="own")
    with pytest.raises(UserError, match="MAN follows weights of block 1, which has none: cut the model into fewer"):
        tiny_learner(man(), model, "max")


def test_man_follows_units_that_are_joined_in_a_block():
    model = revnet((3, 8, 8), 3, depth=26)
    learner = tiny_learner(man(momentum=0.0), model, [1, 3], optim=OPTIM, total_steps=2)
    first = [p.detach().clone() for p in learner.model.units[1].parameters()]
    learner.step(torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8) % 3)
    for p, w in zip(learner.blocks[0].auxiliary["ahead"].weights(), first, strict=True):
        assert torch.equal(p, w)


# --- SOLO ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readout", ["shared", "private", "random"])
@pytest.mark.parametrize(("every", "lag"), [(1, 0), (2, 1), (4, 0)])
def test_solo_against_a_loop(every, lag, readout):
    learner, (model, auxiliary), _ = learned(SOLO(readout=readout, every=every, lag=lag))
    versions = []
    for t, (x, y) in enumerate(tiny_batches(STEPS)):
        versions.append(model.head[2].weight.detach().clone())
        for k, unit in enumerate(model.units):
            h = unit(x)
            if k == 3:
                loss, parts = F.cross_entropy(model.head(h), y), [unit, model.head]
            else:
                answer, parts = auxiliary[k]["answer"], [unit, auxiliary[k]]
                features = answer.transform(h)
                features = features / (features.square().mean(1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt()
                weight = versions[max(0, t - lag) // every * every] if readout == "shared" else answer.weight
                loss = F.cross_entropy(answer.tau * (features * answer.norm.weight) @ weight.T + answer.bias, y)
            x = h.detach()
            loss.backward()
            descend(*parts)
    close(learner.model, model)
    for block, truth in zip(learner.blocks, auxiliary, strict=True):
        close(block.auxiliary, truth)
    if readout == "random":
        weights = [
            [b["answer"].weight for b in list(a)[:3]] for a in ([b.auxiliary for b in learner.blocks], auxiliary)
        ]
        assert all(torch.equal(p, q) for p, q in zip(*weights, strict=True))


def test_at_temperature_zero_it_knows_nothing():
    learner = tiny_learner(SOLO(), optim=OPTIM, total_steps=STEPS)
    for block in learner.blocks[:3]:
        block.auxiliary["answer"].tau.data.zero_()
    losses = learner.step(*tiny_batches(1)[0])
    assert [losses[f"block/0{k}/loss"] for k in range(3)] == pytest.approx([math.log(3)] * 3)


def test_language_models_answer_at_each_step():
    torch.manual_seed(0)
    model = gpt((8,), 11, 11, layers=4, heads=2, width=12)
    learner = tiny_learner(SOLO(layers=1, every=2), model, 5, optim=OPTIM, total_steps=4, task=Tokens())
    tokens = torch.randint(11, (6, 9))
    first = learner.step(tokens[:, :-1], tokens[:, 1:])
    for _ in range(3):
        last = learner.step(tokens[:, :-1], tokens[:, 1:])
    for k in range(5):
        assert last[f"block/0{k}/loss"] < first[f"block/0{k}/loss"]
    assert learner.predict(tokens[:, :-1])[0].shape == (6, 8, 11)


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (
            lenet((1, 12, 12), 3),
            {"layers": 0},
            "answers from 6 features of block 0, but the read-out has 84",
        ),
        (
            BlockModel([nn.Linear(4, 4), nn.Linear(4, 4)], nn.Softmax(1), image=(4,), classes=4, name="own"),
            {},
            "ends the model's head and reads 4 features, but there is none",
        ),
    ],
)
def test_what_solo_cannot_share_is_one_sentence(model, options, said):
    with pytest.raises(UserError, match=said):
        tiny_learner(SOLO(**options), model, "max", optim=OPTIM, total_steps=4)
