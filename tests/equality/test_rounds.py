"""Route ROUNDS: what the driver promises; PEPITA and predictive coding against nets in numpy and closed forms."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from helpers.nets import assert_same, dense_batch, dense_model, tiny_batches, tiny_learner, tiny_model
from locallearn.auxiliary import Linear
from locallearn.contract import Packet, Route, Send, backward, task_loss
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.greedy import DGL
from locallearn.strategies.pepita import Pepita
from locallearn.strategies.predictive_coding import PredictiveCoding

RATE, B, C = 0.1, 5, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


# --- the driver ------------------------------------------------------------------------------------------------------


class OneRound(DGL):
    """DGL whose messages say nothing."""

    route: ClassVar[Route] = Route.ROUNDS


class PassedDown(Backprop):
    """Backprop whose gradients go down one block in each round."""

    route: ClassVar[Route] = Route.ROUNDS

    def rounds(self, depth):
        return max(1, depth - 1)

    def step(self, block, packet):
        spec = block.spec
        x = packet.leaves() if spec.index else packet
        out = x.at(block.layers(x.h))
        grads = None
        if spec.last:
            backward(task_loss(block, out.h, packet.y))
            block.update()
            grads = x.take_grads() if spec.index else None
        heard = yield Send(out, grads)
        mine = spec.depth - 1 - spec.index
        for number in range(1, self.rounds(spec.depth) + 1):
            grads = None
            if number == mine:
                backward(None, out, heard.above)
                block.update()
                grads = x.take_grads() if spec.index else None
            if number < self.rounds(spec.depth):
                heard = yield Send(None, grads)


@pytest.mark.parametrize(
    ("ours", "truth"),
    [
        (OneRound(objective=CrossEntropy(), auxiliary=Linear()), DGL(objective=CrossEntropy(), auxiliary=Linear())),
        (PassedDown(), Backprop()),
    ],
)
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_rounds_with_the_messages_of_another_route_are_that_route(ours, truth, micro_batches):
    model, batches = tiny_model(dropout=0.2), tiny_batches(3)
    learners = [tiny_learner(s, model, total_steps=3, micro_batches=micro_batches) for s in (ours, truth)]
    for x, y in batches:
        for learner in learners:
            learner.learn(x, y)
    assert_same(learners[0].model, learners[1].model)


class Heard(PassedDown):
    """Notes who hears what, when."""

    log: ClassVar[list] = []

    def rounds(self, depth):
        return 3

    def step(self, block, packet):
        k = block.spec.index
        h = block.layers(packet.h)
        heard = yield Send(packet.at(h), (h.new_full((1,), 10.0 * k),))
        for number in range(1, 4):
            said = [
                None if t is None else float(t.flatten()[0])
                for t in (heard.below and heard.below.h, heard.above and heard.above[0])
            ]
            self.log.append((number, k, *said))
            if number < 3:
                heard = yield Send(
                    Packet(h.new_full((1,), 10.0 * k + number), packet.y), (h.new_full((1,), 10.0 * k + number),)
                )
        backward(h.sum())
        block.update()


def test_both_neighbours_are_heard_one_round_later():
    Heard.log.clear()
    tiny_learner(Heard(), blocks=4)._learn(*tiny_batches(1)[0])
    expected = []
    for number in (1, 2, 3):
        for k in range(4):
            below = None if k == 0 or number == 1 else 10.0 * (k - 1) + number - 1
            above = None if k == 3 else 10.0 * (k + 1) + number - 1
            expected.append((number, k, below, above))
    assert Heard.log == expected


class Many(PassedDown):
    def rounds(self, depth):
        return 1 if depth == 4 else 3

    def step(self, block, packet):
        h = block.layers(packet.h)
        for _ in range(5):
            yield Send(packet.at(h))


class InTurn(PassedDown):
    def phases(self, depth):
        return [range(k, k + 1) for k in range(depth)]


@pytest.mark.parametrize(
    ("strategy", "why"),
    [
        (Many(), r"yielded more than 1 times, but rounds\(4\) promises 1"),
        (InTurn(), "under route rounds all blocks take their steps together"),
    ],
)
def test_a_strategy_that_keeps_no_promise_is_told(strategy, why):
    with pytest.raises(UserError, match=why):
        tiny_learner(strategy, blocks=4, total_steps=4).learn(*tiny_batches(1)[0])


def test_a_strategy_that_ends_too_early_is_told():
    class Early(PassedDown):
        def step(self, block, packet):
            yield Send(packet.at(block.layers(packet.h)))

    with pytest.raises(UserError, match=r"yielded 1 times, but rounds\(4\) promises 3"):
        tiny_learner(Early(), blocks=4).learn(*tiny_batches(1)[0])


# --- PEPITA ----------------------------------------------------------------------------------------------------------


def weights(model: BlockModel) -> list[tuple[np.ndarray, np.ndarray]]:
    layers = [*(unit[0] for unit in model.units), model.head]
    return [(layer.weight.detach().numpy().copy(), layer.bias.detach().numpy().copy()) for layer in layers]


def softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def moved(model: BlockModel, before: list) -> list[np.ndarray]:
    return [
        (old - new) / RATE
        for pair, after in zip(before, weights(model), strict=True)
        for old, new in zip(pair, after, strict=True)
    ]


@pytest.mark.parametrize("blocks", ["max", 1])
def test_a_step_of_pepita_is_that_of_a_net_in_numpy(blocks):
    model = dense_model() if blocks == "max" else dense_model(sizes=(6, 7))
    learner = tiny_learner(Pepita(scale=0.7), model, blocks, optim=OPTIM)
    x, y = dense_batch()
    before, f = weights(learner.model), learner.blocks[0].auxiliary["projection"].matrix.double().numpy()
    *hidden, (w, b) = before

    def passed(h):
        hs = [h]
        for weight, bias in hidden:
            hs.append(np.maximum(hs[-1] @ weight.T + bias, 0))
        return hs

    first, t = passed(x.numpy()), np.eye(C)[y]
    e = softmax(first[-1] @ w.T + b) - t
    second = passed(x.numpy() + e @ f)
    expected = []
    for k in range(len(hidden)):
        delta = (first[k + 1] - second[k + 1]) / B
        expected += [delta.T @ second[k], delta.sum(0)]
    delta = (softmax(second[-1] @ w.T + b) - t) / B
    expected += [delta.T @ second[-1], delta.sum(0)]
    learner.step(x, y)
    for ours, theirs in zip(moved(learner.model, before), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_without_a_projection_only_the_head_of_pepita_learns_as_backprop_does():
    ours, truth = (tiny_learner(s, dense_model(), "max", optim=OPTIM) for s in (Pepita(), Backprop()))
    ours.blocks[0].auxiliary["projection"].matrix.zero_()
    before = weights(ours.model)
    for learner in (ours, truth):
        learner.step(*dense_batch())
    assert_same(ours.model.head, truth.model.head)
    assert all(not move.any() for move in moved(ours.model, before)[:-2])


# --- predictive coding -----------------------------------------------------------------------------------------------


def relaxed(
    before: list, x: np.ndarray, y: np.ndarray, steps: int, rate: float, momentum: float, squared: bool, beta: float
):
    """States and gradients by the equations alone, for tanh; the energy's gradient of each weight over B."""
    t = np.eye(C)[y]

    def answer(h):
        w, b = before[-1]
        return np.tanh(h[-2] @ before[-2][0].T + before[-2][1]) @ w.T + b

    def predictions(h):
        return [np.tanh(h[k] @ w.T + b) for k, (w, b) in enumerate(before[:-2])]

    h = [x]
    for w, b in before[:-2]:
        h.append(np.tanh(h[-1] @ w.T + b))
    h.append(None)  # of the answer
    goal = answer(h) + beta * (t - answer(h))
    velocity = [np.zeros_like(each) for each in h[1:-1]]

    def top_error(h):
        z = answer(h)
        return (goal - z) if squared else -(softmax(z) - t)

    def pulls(h):
        """dE/dh of each free state."""
        u = predictions(h)
        errors = [a - p for a, p in zip(h[1:-1], u, strict=True)]
        found = []
        for k in range(len(errors)):
            if k + 1 < len(errors):
                w = before[k + 1][0]
                found.append(errors[k] - ((errors[k + 1] * (1 - u[k + 1] ** 2)) @ w))
            else:
                inner = np.tanh(h[-2] @ before[-2][0].T + before[-2][1])
                found.append(errors[k] - ((top_error(h) @ before[-1][0]) * (1 - inner**2)) @ before[-2][0])
        return found

    for _ in range(steps):
        for k, pull in enumerate(pulls(h)):
            velocity[k] = momentum * velocity[k] + pull
            h[k + 1] = h[k + 1] - rate * velocity[k]
    u, gradients = predictions(h), []
    for k, (a, p) in enumerate(zip(h[1:-1], u, strict=True)):
        delta = -(a - p) * (1 - p**2) / (len(x) * beta)
        gradients += [delta.T @ h[k], delta.sum(0)]
    inner = np.tanh(h[-2] @ before[-2][0].T + before[-2][1])
    top = -top_error(h) / (len(x) * beta)
    delta = (top @ before[-1][0]) * (1 - inner**2)
    return h, [*gradients, delta.T @ h[-2], delta.sum(0), top.T @ inner, top.sum(0)]


CASES = [
    (5, 0.2, 0.35, "task", 1.0),
    (1, 0.5, 0.0, "squared", 1.0),
    (4, 0.1, 0.5, "squared", 0.4),
    (4, 0.1, 0.5, "squared", -0.3),
]


@pytest.mark.parametrize(("steps", "rate", "momentum", "output", "beta"), CASES)
def test_a_step_of_predictive_coding_is_that_of_a_net_in_numpy(steps, rate, momentum, output, beta):
    strategy = PredictiveCoding(steps=steps, rate=rate, momentum=momentum, output=output, beta=beta)
    learner = tiny_learner(strategy, dense_model(nn.Tanh), "max", optim=OPTIM)
    before, (x, y) = weights(learner.model), dense_batch()
    _, expected = relaxed(before, x.numpy(), y.numpy(), steps, rate, momentum, output == "squared", beta)
    learner.step(x, y)
    for ours, theirs in zip(moved(learner.model, before), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_blocks_further_from_the_last_one_than_the_states_have_steps_learn_nothing():
    learner = tiny_learner(PredictiveCoding(steps=1), dense_model(nn.Tanh), "max", optim=OPTIM)
    before = weights(learner.model)
    learner.step(*dense_batch())
    first, second, third = (moved(learner.model, before)[i] for i in (0, 2, 4))
    assert not first.any()
    assert second.any()
    assert third.any()


def test_the_first_states_move_along_the_gradient_of_backprop():
    """With one step of rate g, e_k = -g dL/dh_k of each sample: its weights learn backprop's gradient times g."""
    rate = 0.01
    ours = tiny_learner(PredictiveCoding(steps=1, rate=rate, momentum=0.0), dense_model(nn.Tanh), "max", optim=OPTIM)
    truth = tiny_learner(Backprop(), dense_model(nn.Tanh), "max", optim=OPTIM)
    before = weights(ours.model)
    for learner in (ours, truth):
        learner.step(*dense_batch())
    np.testing.assert_allclose(moved(ours.model, before)[2], rate * moved(truth.model, before)[2], atol=1e-12)


def test_a_scalar_chain_settles_where_the_closed_form_says():
    """x -> h -> y, linear: h* = (w1 x + w2 y) / (1 + w2^2), whose error is w2 (y - w2 w1 x) / (1 + w2^2)."""
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(1, 1, bias=False)), nn.Sequential(nn.Identity())]
    model = BlockModel(units, nn.Linear(1, 1, bias=False), image=(1,), classes=1, name="chain").double()
    learner = tiny_learner(
        PredictiveCoding(steps=400, rate=0.2, momentum=0.0, output="squared"), model, "max", optim=OPTIM
    )
    w1, w2 = float(learner.model.units[0][0].weight.detach()), float(learner.model.head.weight.detach())
    x, y = torch.tensor([[1.5]], dtype=torch.float64), torch.tensor([0])  # the target of the only class is 1
    learner.step(x, y)
    error = w2 * (1 - w2 * w1 * 1.5) / (1 + w2**2)
    state = (w1 * 1.5 + w2) / (1 + w2**2)
    assert w1 - float(learner.model.units[0][0].weight.detach()) == pytest.approx(-RATE * error * 1.5, abs=1e-10)
    assert w2 - float(learner.model.head.weight.detach()) == pytest.approx(-RATE * (1 - w2 * state) * state, abs=1e-10)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_incremental_predictive_coding_learns_with_every_step_of_the_states(steps):
    """iPC by hand: states and weights take a step along the gradient of the same energy, and the states are kept."""
    rate = 0.2
    strategy = PredictiveCoding(steps=steps, rate=rate, momentum=0.0, order="each", output="squared")
    learner = tiny_learner(strategy, dense_model(nn.Tanh, (6, 7, 4)), "max", optim=OPTIM)
    x, y = dense_batch()
    goal = torch.eye(C, dtype=torch.float64)[y]
    twin = dense_model(nn.Tanh, (6, 7, 4))
    h = twin.units[0](x).detach()
    for _ in range(steps):
        h = h.detach().requires_grad_()
        energy = (h - twin.units[0](x)).square().sum() / 2 + (goal - twin.head(twin.units[1](h))).square().sum() / 2
        twin.zero_grad()
        energy.backward()
        assert h.grad is not None
        h = h - rate * h.grad
        with torch.no_grad():
            for p in twin.parameters():
                p -= RATE * p.grad / B
    learner.step(x, y)
    for ours, theirs in zip(learner.model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-12)


@pytest.mark.parametrize("strategy", [Pepita(), PredictiveCoding()], ids=["pepita", "predictive_coding"])
def test_samples_without_a_label_teach_nothing(strategy):
    x, y = dense_batch()
    ours, theirs = (tiny_learner(strategy, dense_model(nn.Tanh), "max", optim=OPTIM) for _ in range(2))
    hidden = torch.cat([y, torch.full((2,), -1)])
    ours.step(torch.cat([x, torch.randn(2, 6, dtype=torch.float64)]), hidden)
    theirs.step(x, y)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)


def test_what_learns_several_times_from_a_batch_is_not_divided():
    with pytest.raises(UserError, match="updates its weights several times in a batch, so a batch cannot be divided"):
        tiny_learner(PredictiveCoding(order="each"), dense_model(nn.Tanh), "max", micro_batches=2)
