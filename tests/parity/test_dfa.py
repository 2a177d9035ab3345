"""DFA as in TinyDFA (a layer's backward gets the projected error in the place of what comes from above) and in BioTorch
(every weight layer but the first answers with e B instead of W^T dy), both with our B."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner
from helpers.parity import Parity, apart
from locallearn.models import BlockModel
from locallearn.strategies.dfa import DFA


def net(kind: str, depth: int) -> BlockModel:
    torch.manual_seed(1)
    if kind == "dense":
        units = [nn.Sequential(nn.Flatten(), nn.Linear(72 if k == 0 else 9, 9), nn.Tanh()) for k in range(depth)]
        head: nn.Module = nn.Linear(9, 3)
    else:
        units = [
            nn.Sequential(nn.Conv2d(2 if k == 0 else 4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
            for k in range(depth)
        ]
        head = nn.Sequential(nn.Flatten(), nn.Linear(144, 3))
    return BlockModel(units, head, image=(2, 6, 6), classes=3, name=kind)


def tiny_dfa(model: BlockModel, matrices: list[Tensor], x: Tensor, y: Tensor) -> None:
    """The graph is cut behind every layer; after the output layer's backward the error is projected for each."""
    cut, h = [], x
    for unit in model.units:
        out = unit(h)
        cut.append(out)
        h = out.detach()
    logits = model.head(h)
    error = (torch.softmax(logits, dim=1) - F.one_hot(y, 3)).detach() / len(y)
    logits.backward(error)
    for out, matrix in zip(cut, matrices, strict=True):
        out.backward((error @ matrix).view(out.shape))


class Answer(torch.autograd.Function):
    """y as it is; what it sends on is the error of the output, projected."""

    @staticmethod
    def forward(ctx, h: Tensor, matrix: Tensor, error: list[Tensor]) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.matrix, ctx.error = matrix, error
        return h.clone()

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[no-untyped-def]
        return (ctx.error[0] @ ctx.matrix).view(_.shape), None, None


def biotorch(model: BlockModel, matrices: list[Tensor], x: Tensor, y: Tensor) -> None:
    """One graph, one backward: below each weight layer but the first, errors are e B."""
    error: list[Tensor] = []
    h = x
    for unit, matrix in zip(model.units, matrices, strict=True):
        h = Answer.apply(unit(h), matrix, error)
    logits = model.head(h)
    logits.register_hook(lambda gradient: error.append(gradient) if not error else None)
    F.cross_entropy(logits, y).backward()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("kind", ["dense", "convolutions"])
def test_dfa(parity: Parity, kind: str, depth: int) -> None:
    for peer, step in {"TinyDFA": tiny_dfa, "BioTorch": biotorch}.items():
        learner = tiny_learner(DFA(), net(kind, depth), "max", total_steps=10)
        model = copy.deepcopy(learner.model)
        matrices = [block.auxiliary["feedback"].matrix for block in learner.blocks]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        for x, y in tiny_batches(10):
            learner.learn(x, y)
            optimizer.zero_grad()
            step(model, matrices, x, y)
            optimizer.step()
        weights = apart(learner.model.state_dict(), model.state_dict())
        layers = f"{depth} hidden layer{'s' * (depth > 1)}"
        parity.equal(peer, f"DFA with the same B, {kind}, {layers}, 10 steps: weights", weights)
