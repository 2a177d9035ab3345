"""Equilibrium propagation against a closed form, the gradient through the equilibrium, backpropagation through its last
steps, and a loop over one Phi of the whole net; and answers that take rounds."""

from __future__ import annotations

import re
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers import ROOT
from helpers.marks import slow
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.contract import Send
from locallearn.engine import SGD
from locallearn.engine.answer import answering_model
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.plan.measure import rehearse
from locallearn.runtime.choice import Pipeline
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.equilibrium import EquilibriumPropagation

RATE, B, C = 0.1, 5, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")
RHO = {
    "hard_sigmoid": lambda s: s.clamp(0, 1),
    "sigmoid": lambda s: 1 / (1 + torch.exp(-4 * (s - 0.5))),
    "linear": None,
}


def net(sizes=(6, 7, 5, 4), scale=1.0, act=nn.ReLU) -> BlockModel:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(n, m), act()) for n, m in pairwise(sizes)]
    model = BlockModel(units, nn.Linear(sizes[-1], C), image=(sizes[0],), classes=C, name="net").double()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(scale)
    return model


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 6, generator=g, dtype=torch.float64), torch.randint(C, (B,), generator=g)


def weights(model: BlockModel) -> list[torch.Tensor]:
    layers = [*(unit[0] for unit in model.units), model.head]
    return [p.detach().clone() for layer in layers for p in (layer.weight, layer.bias)]


def moved(strategy, model: BlockModel, blocks="max") -> list[torch.Tensor]:
    """The gradients of one step: a weight and a bias for each layer, from the input upward, then the head's."""
    learner = tiny_learner(strategy, model, blocks, optim=OPTIM)
    before = weights(learner.model)
    learner.step(*batch())
    return [(old - new) / RATE for old, new in zip(before, weights(learner.model), strict=True)]


class Whole:
    """The same dynamics for the whole net at once: one Phi, and autograd for all states. `per`: layers of a block, of
    which the inner ones are rectified."""

    def __init__(self, model: BlockModel, activation: str, output: str, rate: float, per: int = 1) -> None:
        self.parameters = [p.requires_grad_() for p in weights(model)]
        self.rho = RHO[activation] or (lambda s: s)
        self.output, self.rate, self.per = output, rate, per
        self.x, self.y = batch()

    def layer(self, i, h):
        return F.linear(h, *self.parameters[2 * i : 2 * i + 2])

    def block(self, k, h):
        for i in range(self.per * k, self.per * (k + 1)):
            h = self.layer(i, h.relu() if i > self.per * k else h)
        return h

    def functions(self):
        count = (len(self.parameters) // 2 - 1) // self.per
        blocks = [lambda h, k=k: self.block(k, h) for k in range(count)]
        return blocks if self.output == "task" else [*blocks, lambda h: self.layer(-1 % (len(self.parameters) // 2), h)]

    def loss(self, states):
        """Summed over samples."""
        if self.output == "squared":
            return (states[-1] - F.one_hot(self.y, C)).square().sum() / 2
        return F.cross_entropy(self.answer(states), self.y, reduction="sum")

    def answer(self, states):
        return self.layer(len(self.parameters) // 2 - 1, states[-1]) if self.output == "task" else states[-1]

    def first(self):
        states = []
        for f in self.functions():
            states.append(self.rho(f(states[-1] if states else self.x)))
        return states

    def phi(self, states):
        below = [self.x, *states[:-1]]
        return sum((s * f(b)).sum() for s, f, b in zip(states, self.functions(), below, strict=True))

    def steps(self, states, count, beta=0.0, graph=False):
        for _ in range(count):
            if not graph:
                states = [s.detach().requires_grad_() for s in states]
            energy = self.phi(states) - (beta * self.loss(states) if beta else 0.0)
            forces = torch.autograd.grad(energy, states, create_graph=graph)
            states = [s + self.rate * (self.rho(f) - s) for s, f in zip(states, forces, strict=True)]
        return states if graph else [s.detach() for s in states]

    def gradients(self, free, nudged, beta, centred):
        """What equilibrium propagation says of every parameter."""
        settled = self.steps(self.first(), free)
        plus = self.steps(settled, nudged, beta)
        minus = self.steps(settled, nudged, -beta) if centred else settled
        total = (self.phi(minus) - self.phi(plus)) / ((1 + centred) * beta)
        if self.output == "task":
            total = total + ((self.loss(plus) + self.loss(minus)) / 2 if centred else self.loss(plus))
        return torch.autograd.grad(total / B, self.parameters), self.answer(settled).detach()


def assert_close(ours, theirs, rtol=0.0, atol=1e-10):
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=atol)


@pytest.mark.parametrize("output", ["task", "squared"])
@pytest.mark.parametrize("activation", ["hard_sigmoid", "sigmoid"])
@pytest.mark.parametrize(
    ("blocks", "centred", "rate"), [(1, True, 0.5), (2, False, 0.5), (4, True, 1.0), (4, True, 0.3)]
)
def test_a_step_and_an_answer_are_those_of_a_loop_over_the_whole_net(blocks, centred, rate, activation, output):
    model = net((6, 7, 5, 6, 4))
    strategy = EquilibriumPropagation(
        free=12, nudged=7, rate=rate, beta=0.3, centred=centred, activation=activation, output=output
    )
    whole = Whole(model, activation, output, rate, per=4 // blocks)
    expected, answer = whole.gradients(12, 7, 0.3, centred)
    assert_close(moved(strategy, model, blocks), expected, atol=1e-12)
    learner = tiny_learner(strategy, model, blocks)
    x, _ = batch()
    torch.testing.assert_close(learner(x), answer, rtol=0, atol=1e-12)
    one_by_one = torch.cat([learner(sample) for sample in x.split(1)])
    torch.testing.assert_close(one_by_one, answer, rtol=0, atol=1e-12)


def test_a_chain_of_three_scalars_is_its_closed_form():
    """s_2 = w1 w2 x / (1 - w2^2), whose error has the gradients (s_2 - t) w2 x / (1 - w2^2) and, of w2,
    (s_2 - t) w1 x (1 + w2^2) / (1 - w2^2)^2."""
    torch.manual_seed(0)
    model = BlockModel(
        [nn.Sequential(nn.Linear(1, 1, bias=False))], nn.Linear(1, 1, bias=False), image=(1,), classes=1, name="chain"
    ).double()
    with torch.no_grad():
        model.units[0][0].weight.fill_(0.7)
        model.head.weight.fill_(0.4)
    strategy = EquilibriumPropagation(free=200, nudged=200, beta=1e-4, activation="linear", output="squared")
    learner = tiny_learner(strategy, model, 1, optim=OPTIM)
    x, w1, w2 = 1.5, 0.7, 0.4
    state = w1 * w2 * x / (1 - w2**2)
    inputs = torch.full((1, 1), x, dtype=torch.float64)
    assert float(learner(inputs)) == pytest.approx(state, abs=1e-12)
    learner.step(inputs, torch.tensor([0]))  # the target of the only class is 1
    found = [(w - float(p.detach())) / RATE for w, p in zip((w1, w2), learner.model.parameters(), strict=True)]
    true = [(state - 1) * w2 * x / (1 - w2**2), (state - 1) * w1 * x * (1 + w2**2) / (1 - w2**2) ** 2]
    assert found == pytest.approx(true, rel=1e-6)


@pytest.mark.parametrize("output", [slow("task"), "squared"])
@pytest.mark.parametrize(("centred", "ratio"), [(True, 4.0), slow(False, 2.0)])
def test_the_error_of_the_gradient_falls_with_beta(centred, ratio, output):
    """As beta or as its square, against the gradient through the settling."""
    model = net(scale=0.4)
    whole = Whole(model, "sigmoid", output, 0.5)
    states = whole.steps([s.detach().requires_grad_() for s in whole.first()], 150, graph=True)
    true = torch.autograd.grad(whole.loss(states) / B, whole.parameters)
    errors = []
    for beta in (0.2, 0.1, 0.05):
        strategy = EquilibriumPropagation(150, 150, beta=beta, centred=centred, activation="sigmoid", output=output)
        found = moved(strategy, model)
        errors.append(sum((a - b).square().sum() for a, b in zip(found, true, strict=True)).sqrt().item())
    assert errors[0] / errors[1] == pytest.approx(ratio, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(ratio, rel=0.1)


@pytest.mark.parametrize("output", ["task", "squared"])
@pytest.mark.parametrize("nudged", [1, 2, 3, 6])
def test_so_many_nudged_steps_are_backpropagation_through_so_many_free_ones(nudged, output):
    """From a settled free phase (Ernoult et al. 2019): the estimate after each step, and so every increment."""
    model = net(scale=0.3)
    whole = Whole(model, "linear", output, 1.0)
    settled = whole.steps(whole.first(), 200)
    states = whole.steps([s.requires_grad_() for s in settled], nudged, graph=True)
    true = torch.autograd.grad(whole.loss(states) / B, whole.parameters, materialize_grads=True)
    strategy = EquilibriumPropagation(200, nudged, rate=1.0, beta=1e-4, activation="linear", output=output)
    found = moved(strategy, model)
    assert_close(found, true, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("output", ["task", "squared"])
def test_samples_without_a_label_teach_nothing(output, centred):
    x, y = batch()
    strategy = EquilibriumPropagation(free=3, nudged=3, output=output, centred=centred)
    ours, theirs = (tiny_learner(strategy, net(), "max", optim=OPTIM) for _ in range(2))
    ours.step(torch.cat([x, torch.randn(2, 6, dtype=torch.float64)]), torch.cat([y, torch.full((2,), -1)]))
    theirs.step(x, y)
    assert_close(weights(ours.model), weights(theirs.model), atol=1e-12)


# --- an answer in rounds ---------------------------------------------------------------------------------------------


def of_page(name: str) -> ModuleType:
    """A file of docs/own-strategy.md as a module."""
    code = re.search(rf"```python\n# {name}\.py\n(.*?)```", (ROOT / "docs" / "own-strategy.md").read_text(), re.DOTALL)
    assert code
    module = sys.modules[name] = ModuleType(name)
    exec(code[1], module.__dict__)
    return module


LooksTwice = of_page("looks_twice").LooksTwice


def test_a_settled_answer_is_that_of_a_loop_by_hand():
    learner = tiny_learner(LooksTwice(), tiny_model(dropout=0.3))
    (x, y), units = tiny_batches(1)[0], learner.model.units.eval()
    first = [x]
    for unit in units:
        first.append(unit(first[-1]))
    louder = [h * above.mean((1, 2, 3))[:, None, None, None] for h, above in pairwise(first[1:])]
    expected = [louder[0], *(unit(h) for unit, h in zip(units[1:], louder, strict=True))]
    units.train()
    for ours, theirs in zip(learner.features(x), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    logits = learner.model.head(expected[-1])
    torch.testing.assert_close(learner(x), logits, rtol=0, atol=1e-12)
    assert learner.evaluate(x, y)["loss"] == pytest.approx(F.cross_entropy(logits, y).item(), rel=1e-6)


@pytest.mark.parametrize("strategy", [LooksTwice(), EquilibriumPropagation(free=3)], ids=["look", "equilibrium"])
def test_what_is_exported_settles_as_well_also_in_inference_mode(strategy):
    learner, x = tiny_learner(strategy, tiny_model(dropout=0.3)), tiny_batches(1)[0][0]
    logits = learner(x)
    model = answering_model(learner)
    assert torch.equal(model(x), logits)
    with torch.inference_mode():
        assert torch.equal(model(x + 0), logits)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("count", "times"), [(2, 0), (2, 1), (1, 2)])
def test_who_settles_in_more_or_fewer_rounds_than_promised_is_told(count, times):
    class Odd(LooksTwice):
        def settles(self, depth):
            return count

        def settle(self, block, packet):
            for _ in range(times):
                yield Send(packet.at(block.layers(packet.h)))
            return packet

    with pytest.raises(UserError, match=rf"Odd.settle .*yielded.*, but settles\(4\) promises {count}"):
        rehearse(tiny_learner(Odd(), total_steps=1), *tiny_batches(1)[0])  # before a run has a folder


def test_messages_that_lose_bits_are_one_sentence():
    with pytest.raises(
        UserError, match=r"runtime\.message=bf16 rounds what blocks send, but strategy=equilibrium needs"
    ):
        Pipeline(message="bf16").stage("equilibrium", EquilibriumPropagation(), 1)
    Pipeline(message="bf16").stage("backprop", Backprop(), 1)
