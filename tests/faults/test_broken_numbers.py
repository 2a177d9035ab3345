"""NaN and infinity, put into every place where numbers flow, of every strategy: the run stops before it saves them."""

from __future__ import annotations

import json
import re

import pytest
import torch

from helpers.commands import run
from helpers.marks import slow
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, make, quick_of_each_route
from locallearn.contract import Route
from locallearn.engine import SGD, Learner, rounds
from locallearn.engine.block import TrainedBlock
from locallearn.engine.learner import CHECK_STEPS
from locallearn.errors import RunError
from locallearn.runs import checkpoint

STEP = 2
BROKEN = [float("nan"), float("inf")]
pytestmark = pytest.mark.fault("F16", "R10")


@pytest.fixture(params=quick_of_each_route(FILES))
def name(request) -> str:
    return request.param


@pytest.fixture(params=[BROKEN[0], slow(BROKEN[1])], ids=str)
def value(request) -> float:
    return request.param


def learner_of(name: str, **options) -> Learner:
    return tiny_learner(make(name), tiny_model(), total_steps=8, **options)


def learning(learner: Learner) -> list[TrainedBlock]:
    """The blocks that learn in the step of the fault."""
    phases = learner.strategy.phases(len(learner.blocks))
    return [learner.blocks[k] for k in phases[STEP * len(phases) // 8]]


def stops(learner: Learner, batches=None, within: int = 1) -> str:
    """Train until it refuses to go on, in the step of the fault or so many steps later; what it says."""
    batches = batches or tiny_batches(STEP + within)
    for i, batch in enumerate(batches):
        try:
            learner.learn(*batch)
        except RunError as error:
            assert i >= STEP, "before the fault"
            return str(error)
    raise AssertionError("it trained on")


def weights_are_finite(learner: Learner) -> bool:
    return all(bool(torch.isfinite(p).all()) for _, p in learner.parameters())


def poisoned(t: torch.Tensor, value: float) -> torch.Tensor:
    """The tensor with one wrong number."""
    t = t.detach().clone()
    t.view(-1)[0] = value
    return t


def test_in_the_gradient(name, value, record_property):
    """Of one parameter of each block in turn: the next loss shows it, and the step, the block and the parameter are
    named. A block that is broken could not be saved either."""
    injected = 0
    for k in range(4):
        learner = learner_of(name)
        block = learner.blocks[k]
        if block not in learning(learner) or (name == "shallow" and not block.last):
            continue
        learns = block.auxiliary if name == "cafo" else block.layers  # whose units are random
        where, parameter = next((n, p) for n, p in learns.named_parameters() if p.requires_grad)
        parameter.register_hook(lambda g, learner=learner: poisoned(g, value) if learner.step_count == STEP else g)
        said = stops(learner, within=2)
        named = rf"({re.escape(where)} of block {k}|and weights of 1 more block)"  # three are named
        assert re.match(rf"step {STEP + 1}: .*{named}.* not finite any more; block ", said), said
        assert f"step {STEP + 1}: the " in said
        block.reset()
        with pytest.raises(RunError, match=f"block {k} of 4, step {STEP + 1}: .*{where} "):
            block.check()
        injected += 1
    assert injected
    record_property("injected", injected)


def test_in_a_weight_that_no_loss_shows(value):
    """All weights are looked at every so many steps, whatever the losses say."""
    learner = learner_of("dgl")
    weight = next(learner.blocks[1].layers.parameters())
    weight.register_hook(lambda g: poisoned(g, value) if learner.step_count == STEP else g)
    learner.blocks[1].layers.register_forward_hook(lambda module, given, h: torch.nan_to_num(h, 0.0, 0.0, 0.0))
    said = stops(learner, tiny_batches(CHECK_STEPS), within=CHECK_STEPS)
    assert said.startswith(f"block 1 of 4, step {CHECK_STEPS - 1}: the weight 0.0.weight is nan")


def test_in_the_gradient_with_clipping(value):
    """Clipping divides by the norm, which would make every number of the block NaN."""
    learner = learner_of("dgl", optim=SGD(lr=0.1, clip=1.0, schedule="constant"))
    next(learner.blocks[1].layers.parameters()).register_hook(
        lambda g: poisoned(g, value) if learner.step_count == STEP else g
    )
    assert f"block 1 of 4, step {STEP}: the norm of the gradient" in stops(learner)
    assert weights_are_finite(learner)


def test_in_what_a_block_emits(name, value):
    """An activation: the block, or the first one above that looks at it, says so."""
    learner = learner_of(name)
    block = learning(learner)[0]
    block.layers.register_forward_hook(
        lambda module, given, h: h * torch.tensor(value) if learner.step_count == STEP else h
    )
    assert f"of 4, step {STEP}: the " in stops(learner)


def test_in_the_loss(name, value, monkeypatch):
    learner = learner_of(name)
    report = TrainedBlock.report

    def broken(block, loss, logits=None, y=None):
        report(block, loss * value if block.step == STEP else loss, logits, y)

    monkeypatch.setattr(TrainedBlock, "report", broken)
    assert f"step {STEP}: the loss is {value}" in stops(learner)
    assert name in ("dni", "cdni") or weights_are_finite(learner), "their blocks learn before the loss is known"


def test_in_the_feedback(name, value, record_property, monkeypatch):
    """What comes back to a block from above: a gradient, an error, or the target of a synthesizer. All of it is wrong:
    one wrong number would do no harm where a ReLU is closed."""
    if make(name).route is Route.NONE:
        return  # nothing comes back
    injected, resumed = 0, rounds._resumed
    for k in range(3):
        learner = learner_of(name)
        finish = learner.stage._finish

        def broken(running, message, k=k, finish=finish):
            hit = running.block.spec.index == k and running.moment.step == STEP and message is not None
            return finish(running, tuple(t if t is None else t * value for t in message) if hit else message)

        def broken_round(strategy, half, heard, *rest, k=k):
            hit = half.block.spec.index == k and half.moment.step == STEP and heard.above is not None
            above = tuple(t if t is None else t * value for t in heard.above) if hit else heard.above
            return resumed(strategy, half, heard._replace(above=above), *rest)

        learner.stage._finish = broken
        monkeypatch.setattr(rounds, "_resumed", broken_round)
        said = stops(learner, within=2)
        assert re.search(rf"step ({STEP}|{STEP + 1}): the ", said)
        spreads = learner.strategy.route is Route.ROUNDS  # to both sides, before anybody looks
        assert spreads or re.search(rf"block {k}\b", said)
        injected += 1
    record_property("injected", injected)


def test_in_the_input(name, value):
    learner = learner_of(name)
    batches = tiny_batches(STEP + 1)
    batches[STEP][0].view(-1)[5] = value
    said = stops(learner, batches)
    assert said.startswith(f"step {STEP}: the inputs hold NaN or infinity; block ")


def test_a_gradient_too_large_for_its_norm():
    """Finite numbers whose squares are not: clipping would divide them by infinity."""
    optim = SGD(lr=0.1, clip=1.0, schedule="constant")
    learner = tiny_learner(make("dgl"), tiny_model(), total_steps=8, precision="fp32", optim=optim)
    next(learner.blocks[0].layers.parameters()).register_hook(
        lambda g: g * 0 + 1e30 if learner.step_count == STEP else g
    )
    assert f"block 0 of 4, step {STEP}: the norm of the gradient is inf" in stops(learner)


STRATEGY = """
from dataclasses import dataclass

from locallearn.strategies.{module} import {base}


@dataclass(frozen=True)
class Poisoned({base}):
    def step(self, block, packet):
        if block.spec.index == 1 and block.step == 30:
            weight = next(block.layers.parameters())
            handle = weight.register_hook(lambda g: g * float("nan"))
        return (yield from super().step(block, packet))
"""
WHERE = {"dgl": ("greedy", "DGL"), "backprop": ("backprop", "Backprop"), "dni": ("dni", "DNI")}
RUNTIMES: dict[str, list[str]] = {"serial": [], "pipeline": ["runtime=pipeline", "runtime.stages=2"]}
LONG = [(s, r) for s in WHERE for r in RUNTIMES if (s, r) != ("dgl", "serial")]


@pytest.mark.parametrize(("strategy", "runtime"), [("dgl", "serial"), *(slow(*pair) for pair in LONG)])
def test_a_whole_run(strategy, runtime, tmp_path, capsys, monkeypatch):
    """It ends with code 1 and one sentence; what was saved before stays, and holds only finite numbers."""
    monkeypatch.chdir(tmp_path)
    module, base = WHERE[strategy]
    mine = tmp_path / "mine" / "strategy"
    mine.mkdir(parents=True)
    (mine.parent / f"poisoned_{strategy}.py").write_text(STRATEGY.format(module=module, base=base))
    (mine / "poisoned.yaml").write_text(f"_target_: poisoned_{strategy}.Poisoned\n")
    words = ["strategy=poisoned", "model=mlp", "model.width=16", "blocks=2", "epochs=1", "batch_size=32", "threads=1"]
    words += ["device=cpu", "checkpoint.every=7it", f"out={tmp_path / 'runs'}"]
    code, _, error = run("--config-dir", str(mine.parent), *words, *RUNTIMES[runtime], capsys=capsys)
    assert code == 1
    assert "step 31: " in error
    assert " of block 1 is not finite any more; block 1 of 2, step 31: the loss is nan" in error
    assert "Traceback" not in error
    (folder,) = (tmp_path / "runs").iterdir()
    assert [p.name for p in sorted((folder / "checkpoints").iterdir())] == ["step-00000021", "step-00000028"]
    saved = checkpoint.newest(folder / "checkpoints", pytest.fail)
    assert saved is not None
    assert all(bool(torch.isfinite(t).all()) for t in saved.tensors.values() if t.is_floating_point())
    status = json.loads((folder / "status.json").read_text())
    assert status["state"] == "failed"
    assert "block 1 of 2, step 31" in status["reason"]
