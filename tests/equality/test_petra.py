"""PETRA against backpropagation, and against a loop that inverts by hand at the weights of the moment."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import assembled, tiny_batches, tiny_model
from locallearn.engine import SGD, Learner, Stage
from locallearn.engine.block import TrainedBlock
from locallearn.errors import UserError
from locallearn.models.coupling import Coupling
from locallearn.models.revnet import RevNet, revnet
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.petra import Petra

PLAIN = SGD(lr=0.1, momentum=0.0, schedule="constant")


def reversible_learner(strategy, optim=PLAIN, blocks=6, staleness=0, **options) -> Learner:
    """8 units of a float64 RevNet with batch norm: stem, coupling, two downsampling units, couplings between them."""
    torch.manual_seed(0)
    model = revnet((2, 6, 6), 3, depth=26)
    options = {"precision": "fp64", "total_steps": 9, "stage": partial(Stage, staleness=staleness), **options}
    return assembled(model, strategy, optim, model.cut(blocks), **options)


@pytest.mark.parametrize("blocks", [1, 2, 3, 6, "max"])
def test_without_staleness_it_is_backprop(blocks):
    ours, truth = reversible_learner(Petra(), blocks=blocks), reversible_learner(Backprop(), blocks=blocks)
    for x, y in tiny_batches(4):
        ours.learn(x, y)
        truth.learn(x, y)
    expected = truth.model.state_dict()
    for name, t in ours.model.state_dict().items():
        torch.testing.assert_close(t, expected[name], rtol=1e-10, atol=1e-12)
        assert blocks != 1 or torch.equal(t, expected[name])


def gradients(learner: Learner, batches) -> list[list[Tensor]]:
    """All gradients of each batch, of every block; the weights stay."""
    found: list[list[list[Tensor]]] = [[] for _ in learner.blocks]

    def collect(block: TrainedBlock) -> None:
        parameters = [p for root in block.roots() for p in root.parameters()]
        found[block.spec.index].append([p.grad.clone() for p in parameters])
        for p in parameters:
            p.grad = None

    for block in learner.blocks:
        block.update = partial(collect, block)
    for x, y in batches:
        learner.learn(x, y)
    learner.stage.drain()
    return [[g for block in found for g in block[i]] for i in range(len(batches))]


@pytest.mark.parametrize("staleness", [1, 2])
def test_with_frozen_weights_late_gradients_and_inverses_are_exact(staleness):
    """Every gradient is backprop's of its batch, and what goes down as a block's input is what the block has read."""
    batches = tiny_batches(3)
    learner, truth = reversible_learner(Petra(), staleness=staleness), reversible_learner(Backprop())
    read: list[list[Tensor]] = [[] for _ in learner.blocks]
    sent: list[list[Tensor]] = [[] for _ in learner.blocks]
    for block in learner.blocks:
        block.layers.register_forward_pre_hook(
            lambda m, args, own=read[block.spec.index]: None if len(args) == 3 else own.append(args[0].detach().clone())
        )
    finish = learner.stage._finish

    def watched(pending, message):
        answer = finish(pending, message)
        sent[pending.block.spec.index].append(answer[1])
        return answer

    learner.stage._finish = watched
    for ours, theirs in zip(gradients(learner, batches), gradients(truth, batches), strict=True):
        for p, q in zip(ours, theirs, strict=True):
            torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
    errors = [
        max(float((a - b).abs().max()) for a, b in zip(*pair, strict=True)) for pair in zip(read, sent, strict=True)
    ]
    assert max(errors) < 1e-12
    assert sum(error > 0 for error in errors) >= 2, "computed from outputs"


def by_hand(weights: list[list[Tensor]], head: Tensor, batches, staleness: int) -> None:
    """Couplings y1 = x1 + tanh(F x2), y2 = x2 + tanh(G y1), one a block; the last one has the head as well."""
    depth = len(weights)

    def forward(k: int, x: Tensor) -> Tensor:
        f, g = weights[k]
        x1, x2 = x.chunk(2, 1)
        y1 = x1 + torch.tanh(x2 @ f.T)
        return torch.cat([y1, x2 + torch.tanh(y1 @ g.T)], 1)

    def inverse(k: int, y: Tensor) -> Tensor:
        f, g = weights[k]
        y1, y2 = y.chunk(2, 1)
        x2 = y2 - torch.tanh(y1 @ g.T)
        return torch.cat([y1 - torch.tanh(x2 @ f.T), x2], 1)

    messages: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(depth)]
    for now in range(len(batches) + staleness * (depth - 1)):
        h = None
        if now < len(batches):
            h, y = batches[now]
            with torch.no_grad():
                for k in range(depth - 1):
                    h = forward(k, h)
        for k in reversed(range(depth)):
            if not 0 <= now - staleness * (depth - 1 - k) < len(batches):
                continue
            own = [w.requires_grad_() for w in (*weights[k], *([head] if k == depth - 1 else []))]
            if k == depth - 1:
                x = h.detach().requires_grad_()
                root = F.cross_entropy(forward(k, x) @ head.T, y)
            else:
                gradient, out = messages[k].pop(0)
                with torch.no_grad():
                    x = inverse(k, out)
                x = x.requires_grad_()
                root = (forward(k, x) * gradient).sum()
            below, *grads = torch.autograd.grad(root, [x, *own])
            if k:
                messages[k - 1].append((below, x.detach()))
            for w, gradient in zip(own, grads, strict=True):
                w.requires_grad_(False).sub_(PLAIN.lr * gradient)


class Couple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


@pytest.mark.parametrize("staleness", [0, 1, 2])
def test_moving_weights_by_hand(staleness):
    torch.manual_seed(0)
    couplings = [Coupling(Couple(), Couple()) for _ in range(4)]
    model = RevNet(couplings, nn.Linear(6, 3, bias=False), image=(6,), classes=3, name="couplings").double()
    weights = [[u.f.linear.weight.detach().clone(), u.g.linear.weight.detach().clone()] for u in couplings]
    head = model.head.weight.detach().clone()
    batches = [(torch.randn(5, 6, dtype=torch.float64), torch.randint(3, (5,))) for _ in range(7)]
    stage = partial(Stage, staleness=staleness)
    learner = assembled(model, Petra(), PLAIN, model.cut("max"), precision="fp64", stage=stage)
    before = [w.clone() for w in model.state_dict().values()]
    for x, y in batches:
        learner.learn(x, y)
    learner.stage.drain()
    by_hand(weights, head, batches, staleness)
    found = list(model.state_dict().values())
    for p, q, old in zip(found, [*(w for pair in weights for w in pair), head], before, strict=True):
        torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)
        assert not torch.allclose(p, old)


def test_nothing_is_kept_of_a_reversible_block():
    """Between the halves a block holds the inputs of its units that are not reversible, and no other tensor."""
    learner = reversible_learner(Petra(), blocks="max", staleness=1)
    x, y = tiny_batches(1)[0]
    learner.stage.step(x, y, 0, None)
    waiting = [half for own in learner.stage._waiting for half in own]
    assert len(waiting) == len(learner.blocks) - 1
    for half in waiting:
        assert half.generator.gi_frame is not None
        values = half.generator.gi_frame.f_locals.values()
        lists = [t for value in values if isinstance(value, list | tuple) for t in value]
        held = [t for t in (*values, *lists) if isinstance(t, Tensor) and t is not y and not t.is_meta]
        assert len(held) == (0 if half.block.spec.reversible[half.block.spec.index] else 1)


def test_a_model_without_reversible_units_is_refused():
    with pytest.raises(UserError, match="choose model=revnet, or strategy=checkpoint"):
        assembled(tiny_model(), Petra(), PLAIN, [range(4)])
