"""Tensors that a block reads of a block above it, against a loop that keeps every version."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch.nn import functional as F

from helpers.nets import SGD_CONSTANT, assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import Follower
from locallearn.contract import Published, Route
from locallearn.errors import UserError
from locallearn.runtime.replay import ReplayStage

STEPS = 9


def by_hand(every: int, lag: int, top: bool) -> torch.nn.Module:
    """The follower's training as a loop over one net."""
    model = copy.deepcopy(tiny_model()).double().train()
    optimizers = [torch.optim.SGD(u.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3) for u in model.units]
    optimizers[-1].add_param_group({"params": [*model.head.parameters()]})
    versions = []  # [step][block]: the mean of each tensor, summed
    for t, (x, y) in enumerate(tiny_batches(STEPS)):
        versions.append([sum(v.mean() for v in u.state_dict().values() if v.is_floating_point()) for u in model.units])
        read = versions[max(0, t - lag) // every * every]
        for k, unit in enumerate(model.units):
            x = unit(x.detach())
            goal = 0 if k == 3 else read[3 if top else k + 1]
            loss = F.cross_entropy(model.head(x), y) if k == 3 else (x.mean() - goal).square()
            optimizers[k].zero_grad()
            loss.backward()
            optimizers[k].step()
    return model


@pytest.mark.parametrize("top", [False, True])
@pytest.mark.parametrize(("every", "lag"), [(1, 0), (1, 1), (1, 3), (3, 0), (4, 2), (2, 5), (20, 0)])
def test_a_block_reads_the_version_that_it_asks_for(every, lag, top):
    learner = tiny_learner(Follower(every=every, lag=lag, top=top), total_steps=STEPS)
    for x, y in tiny_batches(STEPS):
        learner.learn(x, y)
    for ours, truth in zip(learner.model.parameters(), by_hand(every, lag, top).parameters(), strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("stop", [1, 2, 5, 6])
@pytest.mark.parametrize(("every", "lag"), [(1, 0), (1, 2), (3, 0), (3, 1), (2, 5)])
def test_a_run_goes_on_between_two_versions(every, lag, stop):
    batches = tiny_batches(STEPS)
    whole, first, second = (tiny_learner(Follower(every=every, lag=lag), total_steps=STEPS) for _ in range(3))
    for x, y in batches:
        whole.learn(x, y)
    for x, y in batches[:stop]:
        first.learn(x, y)
    second.load_state_dict(first.state_dict())
    assert second.state().keys() == first.state().keys()
    for x, y in batches[stop:]:
        second.learn(x, y)
    assert_same(whole.model, second.model)
    assert all(torch.equal(t, second.state()[name]) for name, t in whole.state().items())


def test_what_is_read_is_a_copy_that_nobody_trains():
    learner = tiny_learner(Follower(lag=1), total_steps=4)
    assert not any("published" in name for name in learner.state()), "there is no version yet"
    for x, y in tiny_batches(2):
        learner.learn(x, y)
    version, copies = learner.blocks[0].published("layers")
    assert version == 0
    own = {p.data_ptr() for p in learner.model.parameters()}
    assert not any(t.requires_grad or t.data_ptr() in own for t in copies)
    names = [name for name in learner.state() if name.startswith("published.")]
    assert {name.split(".")[1] for name in names} == {"0", "1", "2"}
    assert {name.split(".")[3] for name in names if name.startswith("published.0.")} == {"0", "1"}
    with pytest.raises(UserError, match=r"block\.published\('other'\): Strategy\.reads asks for layers"):
        learner.blocks[0].published("other")
    with pytest.raises(UserError, match=r"asks for nothing"):
        learner.blocks[3].published("layers")


def test_blocks_can_be_looked_at_before_the_first_step():
    learner = tiny_learner(Follower(), total_steps=4)
    x, y = tiny_batches(1)[0]
    learner.evaluate(x, y)
    expected = [t for t in learner.model.units[1].state_dict().values() if t.is_floating_point()]
    for copied, t in zip(learner.blocks[0].published("layers").tensors, expected, strict=True):
        assert torch.equal(copied, t)


def test_a_state_without_the_versions_is_refused():
    first, second = (tiny_learner(Follower(every=4), total_steps=8) for _ in range(2))
    for x, y in tiny_batches(3):
        first.learn(x, y)
    state = first.state_dict()
    second.load_state_dict({name: t for name, t in state.items() if not name.startswith("published.")})
    with pytest.raises(
        UserError, match="block 0 reads 'layers' as it was after 0 steps, which the state does not have"
    ):
        second.learn(*tiny_batches(1)[0])
    foreign = {**state, "published.3.layers.0.0": torch.zeros(1)}
    with pytest.raises(UserError, match=r"does not fit this run: published\.3\.layers\.0\.0 is not part of it"):
        second.load_state_dict(foreign)


@dataclass(frozen=True)
class Asking(Follower):
    """Asks for what `wish` says."""

    wish: ClassVar[Published]

    def reads(self, spec):
        return {"layers": self.wish} if spec.index == 1 else {}


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        (Published(1), "block 1 wants 'layers' of block 1: must be one of the blocks above, up to 3"),
        (Published(0), "must be one of the blocks above"),
        (Published(4), "must be one of the blocks above"),
        (Published(2, every=0), "every must be at least 1"),
        (Published(2, lag=-1), "lag at least 0"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(wish, said):
    strategy = type("Asks", (Asking,), {"wish": wish, "__module__": __name__})
    with pytest.raises(UserError, match=said):
        tiny_learner(strategy(), total_steps=4)


def test_two_intervals_for_one_name_are_refused():
    class Two(Follower):
        def reads(self, spec):
            return {} if spec.index > 1 else {"layers": Published(3, every=1 + spec.index)}

    with pytest.raises(UserError, match="block 1 wants 'layers' of block 3 every 2 steps, but another block does not"):
        tiny_learner(Two(), total_steps=4)


def test_replay_has_no_common_steps():
    with pytest.raises(UserError, match="runtime=replay lets blocks learn at different times, but Follower reads"):
        tiny_learner(Follower(), total_steps=4, stage=lambda *a, **k: ReplayStage(*a, buffer=2, slow=None, **k))


def test_it_costs_others_nothing():
    assert Follower.route is Route.NONE
    learner = tiny_learner(Follower(), total_steps=4, blocks=1, optim=SGD_CONSTANT)
    learner.learn(*tiny_batches(1)[0])
    assert not learner.blocks[0].copies
