"""A step that raised, wherever it was and whatever it was: the next one is as if it had not been, or is refused."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch import nn

from helpers.marks import slow
from helpers.nets import SGD_CONSTANT, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, ROUTES, make
from locallearn.contract import Route
from locallearn.engine import Learner, Stage
from locallearn.engine.block import TrainedBlock
from locallearn.errors import RunError, UserError
from locallearn.runtime.replay import ReplayStage

ERRORS = [KeyboardInterrupt(), MemoryError("no memory"), RuntimeError("out of memory"), RunError("not finite")]


def learner_of(name: str, **options) -> Learner:
    return tiny_learner(make(name), tiny_model(dropout=0.2), total_steps=40, **options)


def batches():
    return tiny_batches(6)


class Broken:
    """Raises at the n-th call of one kind: the forward of a block, of the head, of an auxiliary module; a backward
    pass, before or after a block's gradients are complete; an optimizer's step."""

    def __init__(self, learner: Learner, where: str, k: int, monkeypatch, nth: int, error: BaseException) -> None:
        self.left, self.error = nth, error
        block = learner.blocks[k]
        self.handles = []
        if where == "forward":
            self.handles.append(block.layers.register_forward_hook(self.tick))
        elif where == "head":
            self.handles.append(learner.blocks[-1].head.register_forward_pre_hook(self.tick))
        elif where == "auxiliary":
            modules = [m for m in block.auxiliary.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
            self.handles += [m.register_forward_hook(self.tick) for m in modules[-1:]]
        elif where == "backward":
            self.handles += [p.register_hook(self.tick) for p in list(block.layers.parameters())[:1]]
        elif where == "update":
            true = TrainedBlock.update

            def update(this, part="main"):
                if this is block:
                    self.tick()
                true(this, part)

            monkeypatch.setattr(TrainedBlock, "update", update)
        elif where == "optimizer":
            optimizer = block.optimizers["main"]
            self.handles.append(optimizer.register_step_post_hook(self.tick))

    def tick(self, *_) -> None:
        self.left -= 1
        if self.left == 0:
            raise self.error

    def stop(self, monkeypatch) -> None:
        for handle in self.handles:
            handle.remove()
        monkeypatch.undo()


def assert_no_trace(learner: Learner) -> None:
    stage = learner.stage
    assert not any(stage._waiting)
    assert not any(stage._messages)
    assert stage._late is None
    assert all(p.grad is None for _, p in learner.parameters())
    for block in learner.blocks:
        assert not any(block._pending.values())
        assert not block._sums
        assert block.read() == {}


def assert_same_learner(a: Learner, b: Learner) -> None:
    """But for buffers, which the broken forward may have moved."""
    buffers = {f"model.{n}" for n, _ in a.model.named_buffers()}
    buffers |= {f"auxiliary.{k}.{n}" for k, block in enumerate(a.blocks) for n, _ in block.auxiliary.named_buffers()}
    expected, found = b.state(), a.state()
    assert found.keys() == expected.keys()
    assert not [n for n, t in expected.items() if n not in buffers and not torch.equal(t, found[n])]


def break_one(learner: Learner, batch, where: str, k: int, monkeypatch, nth: int = 1, error=ERRORS[0]) -> bool:
    """Take a step that raises; whether it did."""
    broken = Broken(learner, where, k, monkeypatch, nth, error)
    count = learner.step_count
    raised = None
    try:
        learner.learn(*batch)
    except type(error) as found:
        raised = found
    broken.stop(monkeypatch)
    assert raised in (None, error)
    assert learner.step_count == count + (raised is None)
    return raised is not None


WHERE = ["forward", "head", "auxiliary", "backward", "update", "optimizer"]


PARTS = [
    (name, parts) if name in ROUTES and parts == most else slow(name, parts)
    for name in sorted(FILES)
    for most in [1 if make(name).repeats else 2]
    for parts in range(1, most + 1)
]
"""Strategies with the parts that a batch is divided into; what learns several times from a batch takes it whole."""


@pytest.mark.parametrize("where", WHERE)
@pytest.mark.parametrize(("name", "micro_batches"), PARTS)
def test_the_next_step_is_undisturbed_or_refused(name, where, micro_batches, monkeypatch):
    """Nothing is left in any case. Under chain and broadcast the learner then learns what one does that has not seen
    the batch, or refuses; under the other routes it goes on, and has that state if no block had learned."""
    outcomes = set()
    for k in (0, 2, 3):
        broken, whole = (learner_of(name, micro_batches=micro_batches) for _ in range(2))
        stream = iter(batches())
        for learner_batch in (next(stream), next(stream)):
            for learner in (broken, whole):
                learner.learn(*learner_batch)
        before = {n: p.detach().clone() for n, p in broken.parameters()}
        updates = sum(block.updates for block in broken.blocks)
        nth = micro_batches if where == "head" else 1
        if not break_one(broken, next(stream), where, k, monkeypatch, nth):
            continue
        assert_no_trace(broken)
        learned = sum(block.updates for block in broken.blocks) > updates
        moved = any(not torch.equal(p, before[n]) for n, p in broken.parameters())
        assert learned or not moved
        if learned and broken.strategy.route in (Route.CHAIN, Route.BROADCAST, Route.ROUNDS):
            with pytest.raises(UserError, match=r"step 2 was broken off when some blocks had learned .* load_state"):
                broken.learn(*next(stream))
            broken.load_state({n: t.clone() for n, t in whole.state().items()})
            learned = False
            outcomes.add("refused")
        for batch in stream:
            for learner in (broken, whole):
                learner.learn(*batch)
        assert all(torch.isfinite(p).all() for _, p in broken.parameters())
        if not learned:
            assert_same_learner(broken, whole)
            outcomes.add("undisturbed")
        elif broken.strategy.route is Route.NONE:
            outcomes.add("goes on")
    if where in ("forward", "head") and make(name).route in (Route.CHAIN, Route.BROADCAST):
        assert outcomes == {"undisturbed"}, "no block learns before its feedback"


@pytest.mark.fault("F12", "F31")
@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("name", ["backprop", "dgl", "dni", "dfa"])
def test_whatever_was_raised(name, error, monkeypatch):
    broken, whole = learner_of(name), learner_of(name)
    first, second, *rest = batches()
    assert break_one(broken, first, "forward", 0, monkeypatch, error=error)
    assert_no_trace(broken)
    for batch in (second, *rest):
        broken.learn(*batch)
        whole.learn(*batch)
    assert_same_learner(broken, whole)


@pytest.mark.parametrize("name", ["backprop", "checkpoint", "pgi", "fa", "dfa"])
@pytest.mark.parametrize("where", ["forward", "head", "backward"])
def test_feedback_of_earlier_steps_still_arrives(name, where, monkeypatch):
    """With a staleness earlier batches are under way: a forward that breaks off leaves them, a backward half takes its
    own with it, and the learner refuses."""
    broken, whole = (learner_of(name, stage=partial(Stage, staleness=1), micro_batches=2) for _ in range(2))
    stream = iter(batches())
    for batch in tiny_batches(4, seed=2):
        broken.learn(*batch)
        whole.learn(*batch)
    waiting = [len(queue) for queue in broken.stage._waiting]
    assert waiting == [6, 4, 2, 0]
    assert break_one(broken, next(stream), where, 2, monkeypatch)
    if where == "backward":
        with pytest.raises(UserError, match="broken off"):
            broken.learn(*next(stream))
        assert_no_trace(broken)
        return
    assert [len(queue) for queue in broken.stage._waiting] == waiting
    for batch in stream:
        broken.learn(*batch)
        whole.learn(*batch)
    broken.stage.drain()
    whole.stage.drain()
    assert_same_learner(broken, whole)


@pytest.mark.parametrize("where", ["forward", "update"])
def test_asynchronous_blocks_go_on(where, monkeypatch):
    options = {"stage": partial(ReplayStage, buffer=3, slow=None)}
    learner = learner_of("dgl", **options)
    stream = iter(batches())
    for _ in range(3):
        learner.learn(*next(stream))
    assert break_one(learner, next(stream), where, 0, monkeypatch)
    assert_no_trace(learner)
    for batch in stream:
        learner.learn(*batch)
    assert all(torch.isfinite(p).all() for _, p in learner.parameters())


def test_a_batch_with_nan_is_refused_and_the_next_one_learns():
    broken, whole = learner_of("backprop"), learner_of("backprop")
    first, *rest = batches()
    bad = first[0].clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="the inputs hold NaN"):
        broken.learn(bad, first[1])
    for batch in rest:
        broken.learn(*batch)
        whole.learn(*batch)
    assert_same_learner(broken, whole)
    for block in broken.blocks:
        block.check()  # the sum of the norms is finite again


def test_a_gradient_that_is_refused_moves_nothing():
    """The first block to learn refuses it (with clipping, which looks at its norm), so that the net is whole."""
    optim = dataclasses.replace(SGD_CONSTANT, clip=1.0)
    broken, whole = learner_of("backprop", optim=optim), learner_of("backprop", optim=optim)
    first, *rest = batches()
    weight = broken.model.head[2].weight
    handle = weight.register_hook(lambda g: g * float("inf"))
    with pytest.raises(RunError, match="norm of the gradient"):
        broken.learn(*first)
    handle.remove()
    for batch in rest:
        broken.learn(*batch)
        whole.learn(*batch)
    assert_same_learner(broken, whole)


def test_a_loaded_state_forgets_what_was_under_way():
    """Feedback of the steps before belongs to other weights."""
    options = {"stage": partial(Stage, staleness=2)}
    used, fresh = learner_of("backprop", **options), learner_of("backprop", **options)
    start = {n: t.clone() for n, t in fresh.state().items()}
    for batch in batches()[:3]:
        used.learn(*batch)
    used.load_state(start)
    used.step_count = 0
    for batch in batches():
        used.learn(*batch)
        fresh.learn(*batch)
    used.stage.drain()
    fresh.stage.drain()
    assert_same_learner(used, fresh)
