"""Any optimizer of PyTorch without a wrapper, and schedules: against PyTorch's own in a hand-written loop."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from locallearn.config.targets import instantiate
from locallearn.engine import Setup, assemble
from locallearn.engine.optim import SGD, one_cycle
from locallearn.engine.torch_optim import of_class
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.backprop import Backprop

STEPS = 4
CLASSES = [getattr(torch.optim, name) for name in dir(torch.optim) if isinstance(getattr(torch.optim, name), type)]
REFUSED = {
    torch.optim.LBFGS: "several times a step",
    torch.optim.SparseAdam: "dense gradient",
    torch.optim.Optimizer: "must have an argument lr",
}


class Counting(torch.optim.SGD):
    """It keeps a number for each parameter and one for the group, beside tensors."""

    def __init__(self, params, lr=0.1, rounds=0):
        super().__init__(params, lr=lr)
        self.defaults["rounds"] = rounds
        for group in self.param_groups:
            group["rounds"] = rounds

    def step(self, closure=None):
        for group in self.param_groups:
            group["rounds"] += 1
            for p in group["params"]:
                state = self.state[p]
                state["seen"] = state.get("seen", 0) + 1
                p.data.sub_(p.grad, alpha=group["lr"] * group["rounds"] / (1 + state["seen"]))


def model() -> BlockModel:
    """Matrices alone, which every optimizer can read (Muon no others)."""
    torch.manual_seed(0)
    units = [
        nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh()),
        nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh()),
    ]
    return BlockModel(units, nn.Linear(6, 3, bias=False), image=(6,), classes=3, name="net")


def batches(count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 6, generator=draws), torch.randint(3, (8,), generator=draws)) for _ in range(count)]


def learner_of(net: BlockModel, optim, steps: int | None = STEPS):
    return assemble(net, Backprop(), optim, [range(0, 1), range(1, 2)], Setup(total_steps=steps))


@pytest.mark.parametrize(
    "kind", [each for each in (*CLASSES, Counting) if each not in REFUSED], ids=lambda k: k.__name__
)
def test_an_optimizer_does_what_it_does_alone_and_goes_on_from_its_state(kind):
    """Its own defaults under a schedule, one for each block; state put back half way gives the same bits."""
    net = model()
    reference = copy.deepcopy(net)
    optim = of_class(kind)(schedule="linear")
    learner = learner_of(net, optim)
    alone = [kind(list(block), lr=optim.lr) for block in (reference.units[0].parameters(), [
        *reference.units[1].parameters(), *reference.head.parameters()])]  # fmt: skip
    for step, (x, y) in enumerate(batches(STEPS)):
        learner.step(x, y)
        F.cross_entropy(reference(x), y).backward()
        for optimizer in alone:
            optimizer.param_groups[0]["lr"] = optim.lr * (1 - step / STEPS)
            optimizer.step()
            optimizer.zero_grad()
        if step == 1:
            saved = learner.state_dict()
    for ours, theirs in zip(net.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-7)
    again = learner_of(model(), of_class(kind)(schedule="linear"))
    again.load_state_dict(saved)
    for x, y in batches(STEPS)[2:]:
        again.step(x, y)
    assert all(map(torch.equal, again.model.parameters(), net.parameters()))
    assert again.step_count == STEPS


@pytest.mark.parametrize(("kind", "sentence"), REFUSED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_what_a_block_cannot_learn_with_is_refused(kind, sentence):
    with pytest.raises(UserError, match=sentence):
        of_class(kind)()


class Listing(Counting):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["past"] = [p.grad]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"_target_": "torch.optim.RMSprop", "alpa": 0.9}, "unknown key optim.alpa: did you mean 'alpha'"),
        ({"_target_": "torch.optim.RMSprop", "alpha": -1}, "RMSprop cannot be built: Invalid alpha"),
        ({"_target_": "torch.optim.RMSprop", "lr": -1}, "optim.lr=-1: must be"),
        ({"_target_": "torch.nn.Linear"}, "lies outside locallearn"),
        ({"_target_": "locallearn.engine.optim.SGD", "schedule": "plateau"}, "function of progress alone"),
        ({"_target_": "locallearn.engine.optim.SGD", "schedule": "cosin"}, "did you mean 'cosine'"),
        ({"_target_": "locallearn.engine.optim.SGD", "schedule": {"_target_": "math.cos"}}, "lies outside locallearn"),
    ],
    ids=lambda value: "",
)
def test_a_mistake_is_one_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        instantiate(options, "optim", [])


def test_state_that_no_checkpoint_holds_is_refused():
    with pytest.raises(UserError, match="keeps a list as 'past'"):
        of_class(Listing)()


def test_weight_decay_is_named_where_the_class_has_none():
    rprop = instantiate({"_target_": "torch.optim.Rprop", "lr": None, "weight_decay": None}, "optim", [])
    assert (rprop.lr, rprop.weight_decay) == (0.01, 0.0)
    assert "weight_decay" in rprop.unread()
    assert "weight_decay" not in of_class(torch.optim.RMSprop)(weight_decay=0.1).unread()
    assert of_class(torch.optim.AdamW)().weight_decay == 0.01, "the default of the class"


def test_one_cycle_is_that_of_pytorch():
    steps, weight = 1001, nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=steps, cycle_momentum=False)
    top = 0.3 * steps - 1  # its phases end at a step, ours at a share
    for step in range(steps):
        progress = 0.3 * step / top if step <= top else 0.3 + 0.7 * (step - top) / (steps - 1 - top)
        assert one_cycle(progress) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def half(progress: float, share: float = 0.5) -> float:
    return 1 - share * progress


def test_late_linear_is_that_of_forward_forward():
    """loeweX/Forward-Forward: constant to the half, then 2 (1 + E - epoch) / E with epochs that count from 1; in one of
    them, the first of that, theirs is 1 + 2 / E."""
    optim, epochs = SGD(schedule="late_linear"), 100
    theirs = [1.0 if epoch < epochs // 2 else 2 * (1 + epochs - epoch) / epochs for epoch in range(1, epochs + 1)]
    ours = [optim.factor((epoch - 1) / epochs) for epoch in range(1, epochs + 1)]
    assert max(theirs) == theirs[epochs // 2 - 1] == 1 + 2 / epochs
    assert ours == pytest.approx([min(1.0, factor) for factor in theirs])


def test_a_rate_that_is_held_begins_its_schedule_late():
    """Behind the warm-up, and then as a run of its own would have it from the start."""
    held, own = SGD(schedule="cosine", hold=0.25), SGD(schedule="cosine")
    assert [held.factor(p) for p in (0.0, 0.1, 0.25)] == [1.0, 1.0, 1.0]
    for progress in (0.1, 0.5, 1.0):
        assert held.factor(0.25 + 0.75 * progress) == pytest.approx(own.factor(progress), abs=1e-12)
    warmed = SGD(schedule="linear", warmup=0.2, hold=0.5)
    assert [warmed.factor(p) for p in (0.1, 0.2, 0.6, 0.8, 1.0)] == pytest.approx([0.5, 1, 1, 0.5, 0], abs=1e-12)


def test_a_schedule_of_ones_own_is_followed_after_the_warm_up():
    optim = SGD(schedule=partial(half, share=0.8), warmup=0.2)
    assert optim.factor(0.1) == 0.5
    assert optim.factor(0.6) == pytest.approx(1 - 0.8 * 0.5)
    named = {"_target_": "test_torch_optim.half", "share": 0.8}
    for wrong, sentence in [
        (lambda p: math.nan, "is nan at progress 0"),
        (lambda: 1, "TypeError"),
        (named, "lies out"),
    ]:
        with pytest.raises(UserError, match=sentence):
            instantiate({"_target_": "locallearn.engine.optim.SGD", "schedule": wrong}, "optim", [])
