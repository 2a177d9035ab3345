"""Direct random target projection and the signs of the error, against a loop in numpy and what the labels alone say."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from helpers.nets import tiny_learner
from locallearn.engine import SGD
from locallearn.models import BlockModel
from locallearn.strategies.dfa import DFA, DRTP, SignDFA

RATE, B, C = 0.3, 7, 3
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


def net() -> BlockModel:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((4, 6), (6, 5), (5, 8))]
    return BlockModel(layers, nn.Linear(8, C), image=(4,), classes=C, name="net").double()


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 4, generator=g, dtype=torch.float64), torch.randint(C, (B,), generator=g)


def numpy_step(model: BlockModel, matrices: list[np.ndarray], x: np.ndarray, y: np.ndarray, signal: str) -> list:
    """The gradients of every layer and of the head, from the equations: dW = da^T x, da = that * (1 - h^2)."""
    layers = [unit[0] for unit in model.units]
    hs = [x]
    for layer in layers:
        hs.append(np.tanh(hs[-1] @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()))
    z = hs[-1] @ model.head.weight.detach().numpy().T + model.head.bias.detach().numpy()
    p = np.exp(z - z.max(1, keepdims=True))
    t = np.eye(C)[y]
    e = p / p.sum(1, keepdims=True) - t
    sent = {"target": t, "sign": np.sign(e)}[signal] / len(x)
    found = []
    for matrix, below, h in zip(matrices, hs, hs[1:], strict=False):
        da = (sent @ matrix) * (1 - h**2)
        found += [da.T @ below, da.sum(0)]
    return [*found, (e / len(x)).T @ hs[-1], e.sum(0) / len(x)]


@pytest.mark.parametrize(("strategy", "signal"), [(DRTP(), "target"), (SignDFA(), "sign")])
def test_a_step_is_that_of_a_net_in_numpy(strategy, signal):
    model = net()
    learner = tiny_learner(strategy, model, "max", optim=OPTIM)
    x, y = batch()
    matrices = [block.auxiliary["feedback"].matrix.double().numpy() for block in learner.blocks]
    expected = numpy_step(model, matrices, x.numpy(), y.numpy(), signal)
    before = [p.detach().clone() for p in learner.model.parameters()]
    learner.step(x, y)
    for old, new, gradient in zip(before, learner.model.parameters(), expected, strict=True):
        np.testing.assert_allclose((old - new.detach()) / RATE, gradient, atol=1e-12)
    for matrix, emits in zip(matrices, (6, 5, 8), strict=True):
        assert abs(matrix).max() <= np.sqrt(6 / emits)
        assert abs(matrix).max() > 0.8 * np.sqrt(6 / emits)


def test_below_a_broken_block_drtp_learns_the_same():
    """Nothing comes from above: with NaN in every weight above block 0 its gradient is the same."""
    x, y = batch()
    changed = []
    for broken in (False, True):
        learner = tiny_learner(DRTP(), net(), "max", optim=OPTIM)
        before = copy.deepcopy(learner.blocks[0].layers.state_dict())
        if broken:
            with torch.no_grad():
                for block in learner.blocks[1:]:
                    for p in block.layers.parameters():
                        p.fill_(torch.nan)
        learner.blocks[-1].report = lambda *numbers: None  # a loss that is not finite would end the step
        learner._learn(x, y)
        changed.append([v - before[k] for k, v in learner.blocks[0].layers.state_dict().items()])
    for one, other in zip(*changed, strict=True):
        assert torch.equal(one, other)
        assert bool(one.abs().sum() > 0)


def test_the_sign_of_the_error_tells_the_label_alone():
    """sign(softmax(z) - t) = 1 - 2t: blocks learn the same whatever the head answers."""
    x, y = batch()
    ends = []
    for scale in (1.0, -3.0):
        model = net()
        with torch.no_grad():
            model.head.weight.mul_(scale)
        learner = tiny_learner(SignDFA(), model, "max", optim=OPTIM)
        learner.step(x, y)
        ends.append([p.detach() for unit in learner.model.units for p in unit.parameters()])
    for one, other in zip(*ends, strict=True):
        assert torch.equal(one, other)


def test_they_draw_the_matrices_of_dfa():
    """One seed, one set of matrices but for their scale, so that the three differ in the signal alone."""
    found = [
        tiny_learner(s, net(), "max").blocks[1].auxiliary["feedback"].matrix for s in (DFA(scale=2), DRTP(scale=2))
    ]
    assert torch.equal(*found)
