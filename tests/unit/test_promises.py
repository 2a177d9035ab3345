"""What a strategy promises: whoever breaks it is told in one sentence that names the class, before anything learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from torch import nn

from helpers.commands import SMALL, run
from helpers.nets import tiny_batches, tiny_learner
from locallearn.auxiliary import Linear
from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.contract import Route, Send, Strategy, task_loss
from locallearn.engine.promises import check_class
from locallearn.errors import UserError
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop

SETTINGS = [*SMALL, "epochs=1", "max_steps=1"]
HEAD = """
from dataclasses import dataclass
from torch import nn
from locallearn.contract import Route, Send, Strategy, task_loss
from locallearn.strategies.backprop import Backprop


"""


class NoRoute(Strategy):
    def step(self, block, packet):
        yield Send(packet.at(block.layers(packet.h)))


class TextForRoute(NoRoute):
    route: ClassVar[Any] = "none"


class NoGenerator(Backprop):
    def step(self, block, packet):  # type: ignore[override]
        block.update()


class TextForSeparate(Backprop):
    separate = "head"  # type: ignore[assignment]


class NumbersForSeparate(Backprop):
    separate = frozenset({1})  # type: ignore[arg-type]


class UnknownSeparate(Backprop):
    separate: ClassVar = frozenset({"absent"})


class ListOfModules(Backprop):
    def modules(self, spec):
        return [nn.Linear(2, 2)]


class NumberForModule(Backprop):
    def modules(self, spec):
        return {"scale": 3}


class DotInName(Backprop):
    def modules(self, spec):
        return {"a.b": nn.Linear(2, 2)}


class NoPhase(Backprop):
    def phases(self, depth):
        return []


class PhaseBeyond(Backprop):
    def phases(self, depth):
        return [range(depth + 1)]


class PhaseBelow(Backprop):
    def phases(self, depth):
        return [range(-1, depth)]


class EmptyPhase(Backprop):
    def phases(self, depth):
        return [range(depth), range(0)]


class ListForPhase(Backprop):
    def phases(self, depth):
        return [[0, 1]]


BROKEN = {
    NoRoute: "has no route: say where feedback comes from",
    TextForRoute: "has route = 'none'",
    NoGenerator: "is not a generator function: it must yield",
    TextForSeparate: "must be a frozenset of names",
    NumbersForSeparate: "must be a frozenset of names",
    UnknownSeparate: "names absent, but no block has such a module",
    ListOfModules: "must be a mapping of names to torch modules",
    NumberForModule: "must be a mapping of names to torch modules",
    DotInName: "the name must be a text without a dot",
    NoPhase: "must be a list of ranges within range",
    PhaseBeyond: "must be a list of ranges within range",
    PhaseBelow: "must be a list of ranges within range",
    EmptyPhase: "must be a list of ranges within range",
    ListForPhase: "must be a list of ranges within range",
}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_a_broken_promise_is_one_sentence(kind):
    with pytest.raises(UserError) as error:
        tiny_learner(kind(), total_steps=2)
    said = str(error.value)
    assert said.startswith(kind.__name__)
    assert BROKEN[kind] in said
    assert "\n" not in said


@pytest.mark.parametrize("name", choices("strategy"))
def test_every_strategy_keeps_them(name):
    content = yaml.safe_load(choices("strategy")[name].read_text())
    strategy = instantiate(content, "strategy", [], objective=CrossEntropy(), auxiliary=Linear())
    check_class(strategy)
    learner = tiny_learner(strategy, total_steps=4)
    learner.learn(*tiny_batches(1)[0])
    assert any(block.updates for block in learner.blocks)


class NeverUpdates(Backprop):
    def step(self, block, packet):
        out = packet.at(block.layers(packet.h))
        loss = task_loss(block, out.h, out.y) if block.last else None
        yield Send(out)
        if loss is not None:
            loss.backward()


class UpdatesOne(NeverUpdates):
    route: ClassVar[Route] = Route.NONE

    def step(self, block, packet):
        yield from super().step(block, packet)
        if block.last:
            block.update()


class OtherPart(Backprop):
    def step(self, block, packet):
        yield Send(packet.at(block.layers(packet.h)))
        block.update("head")


def test_a_strategy_that_never_updates_is_told_after_its_first_step():
    learner = tiny_learner(NeverUpdates(), total_steps=4)
    before = [p.detach().clone() for p in learner.model.parameters()]
    with pytest.raises(UserError, match=r"NeverUpdates\.step trains nothing: no block has called block\.update\(\)"):
        learner.learn(*tiny_batches(1)[0])
    assert all(map(torch.equal, before, learner.model.parameters()))
    tiny_learner(UpdatesOne(), total_steps=4).learn(*tiny_batches(1)[0])


def test_a_part_that_no_block_has():
    with pytest.raises(UserError, match=r"block\.update\('head'\): a block has the parts main"):
        tiny_learner(OtherPart(), total_steps=4).learn(*tiny_batches(1)[0])


FORWARD = "yield Send(packet.at(block.layers(packet.h)))"
SOURCES = {
    "class Mine(Strategy):\n    def step(self, block, packet):\n        yield": "Mine has no route",
    f"class Mine(Backprop):\n    def step(self, block, packet):\n        {FORWARD}": "Mine.step trains nothing",
    f"class Mine(Backprop):\n    def step(self, block, packet):\n        {FORWARD}\n        {FORWARD}": (
        "Mine.step yielded twice"
    ),
    f"class Mine(Backprop):\n    def step(self, block, packet):\n        block.update('head')\n        {FORWARD}": (
        "block.update('head'): a block has the parts main"
    ),
    "class Mine(Backprop):\n    def step(self, block, packet):\n        yield block.lairs": (
        "Mine cannot take a step: AttributeError: "
    ),
    "class Mine(Backprop):\n    def modules(self, spec):\n        return None": "Mine.modules returned None",
}


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda text: SOURCES[text][:30])
@pytest.mark.usefixtures("elsewhere")
def test_a_run_with_it_writes_nothing(source, capsys, monkeypatch):
    folder = Path("conf") / "strategy"
    folder.mkdir(parents=True)
    name = f"mine{list(SOURCES).index(source)}"
    (folder.parent / f"{name}.py").write_text(HEAD + "@dataclass(frozen=True)\n" + source + "\n")
    (folder / "mine.yaml").write_text(f"_target_: {name}.Mine\n")
    code, _, err = run("--config-dir", "conf", "strategy=mine", *SETTINGS, capsys=capsys)
    assert code == (1 if "cannot take a step" in err else 2), err  # a bug is no mistake in what was asked for
    assert SOURCES[source] in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("method", "answer", "said"),
    [
        ("reads", {}, "Half has reads and no publish: add the method that gives what blocks read"),
        ("settles", 2, "Half has settles and no settle: add the method that answers in rounds"),
    ],
)
def test_half_of_a_promise_is_one_sentence(method, answer, said):
    strategy = type("Half", (Backprop,), {method: lambda self, _: answer})
    with pytest.raises(UserError, match=said):
        tiny_learner(strategy(), total_steps=2)
