"""Synthetic gradients as in the replication by AlonNT and in dni-pytorch: a synthesizer predicts the gradient of the
mean loss, and learns from the squared error summed over features, as soon as the layer above has sent its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner
from helpers.parity import Parity, apart
from locallearn.auxiliary.synthesizer import Synthesizer
from locallearn.engine import Adam, Learner
from locallearn.strategies.dni import CDNI, DNI

PAGE = "docs/strategies/dni.md"


class Predictor(nn.Module):
    """Three 5x5 convolutions with batch norm and ReLU between; the one-hot label, through a linear layer, is added to
    the map of the first one. With the weights of ours, the last layer divided by the batch size."""

    def __init__(self, ours: Synthesizer, batch: int) -> None:
        super().__init__()
        ours = copy.deepcopy(ours)
        self.first, self.context = ours.first, ours.context
        self.norm1, _, self.second, self.norm2, _, self.third = ours.rest
        with torch.no_grad():
            for p in self.third.parameters():
                p.div_(batch)

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        h = self.first(h)
        if self.context is not None:
            h = h + self.context(F.one_hot(y, 3).to(h.dtype))[:, :, None, None]
        return self.third(F.relu(self.norm2(self.second(F.relu(self.norm1(h))))))


def awake(learner: Learner) -> Learner:
    """With synthesizers that predict something."""
    torch.manual_seed(7)
    for block in learner.blocks[:-1]:
        nn.init.normal_(block.auxiliary["synthesizer"].last_layer.weight, std=0.1)
    return learner


def step(
    model: nn.Module, predictors: list[Predictor], x: Tensor, y: Tensor, inputs: list[nn.Module | None]
) -> Iterator[Tensor]:
    """Gradients of one step for every layer and predictor; yields the loss of each predictor, divided by that of zero.
    `inputs` predict what a layer reads."""
    image, h, below = x, x, None
    for k, layer in enumerate(model.units):
        guess = inputs[k]
        x = (h if guess is None else guess(image, y)).detach().requires_grad_()
        out = layer(x)
        if k < len(predictors):
            out.backward(predictors[k](out.detach(), y).detach())
        else:
            F.cross_entropy(model.head(out), y).backward()
        if k:
            at = below if guess is None else x.detach()
            loss = (predictors[k - 1](at, y) - x.grad).pow(2).sum() / len(y)
            loss.backward()
            yield loss.detach() / (x.grad.pow(2).sum() / len(y))
        h = below = out.detach()


@pytest.mark.parametrize("synthetic_inputs", [False, True])
@pytest.mark.parametrize(("name", "kind"), [("DNI", DNI), ("cDNI", CDNI)])
def test_gradients(parity: Parity, name: str, kind: type[DNI], synthetic_inputs: bool) -> None:
    name += ", synthetic inputs" if synthetic_inputs else ""
    peer = "dni-pytorch" if synthetic_inputs else "Thesis, dni-pytorch"
    learner = awake(tiny_learner(kind(synthetic_inputs=synthetic_inputs)))
    x, y = tiny_batches(1)[0]
    model = copy.deepcopy(learner.model)
    predictors = [Predictor(block.auxiliary["synthesizer"], len(y)) for block in learner.blocks[:-1]]
    guessed = [synthetic_inputs and block.spec.index > 0 for block in learner.blocks]
    inputs = [
        copy.deepcopy(block.auxiliary["inputs"]) if guess else None
        for block, guess in zip(learner.blocks, guessed, strict=True)
    ]
    list(step(model, predictors, x, y, inputs))
    for block in learner.blocks:
        block.update = lambda part="main": None  # type: ignore[method-assign]
        block.updated = True  # as if it had
    learner.learn(x, y)
    ours = {n: p.grad for n, p in learner.model.named_parameters()}
    parity.equal(
        peer, f"{name}: gradients of the layers", apart(ours, {n: p.grad for n, p in model.named_parameters()})
    )
    words = "the gradient of a synthesizer's output layer is B/D times as large here, that of its other layers B^2/D"
    for layer, block, predictor in zip(model.units, learner.blocks, predictors, strict=False):
        times = len(y) / (36 * layer[0].out_channels)  # B/D
        hidden, last = gradients(block.auxiliary["synthesizer"])
        their_hidden, their_last = gradients(predictor)
        scaled = [*(times * len(y) * g for g in their_hidden), *(times * g for g in their_last)]
        what = "gradients of the synthesizers, times B/D in the output layer and B^2/D in others"
        parity.equal(peer, f"{name}: {what}", apart([*hidden, *last], scaled))
        plain = max(float((own - g).norm() / g.norm()) for own, g in zip(last, their_last, strict=True))
        words = (
            "the gradient of a synthesizer's output layer is B/D times as large here, that of its other layers B^2/D"
        )
        parity.documented(peer, f"{name}: gradient of a synthesizer's output layer, relative", plain, PAGE, words)


def gradients(synthesizer: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Those of the hidden layers, in the order of ours, and those of the output layer."""
    found = [p.grad for p in synthesizer.parameters()]
    if isinstance(synthesizer, Predictor):
        s = synthesizer
        modules = [s.first, *([s.context] if s.context is not None else []), s.norm1, s.second, s.norm2, s.third]
        found = [p.grad for module in modules for p in module.parameters()]
    return found[:-2], found[-2:]


def test_adam(parity: Parity) -> None:
    """The same rate and steps; theirs predicts the gradient of the mean loss."""
    steps, batch = 15, 16
    adam = Adam(lr=1e-3, schedule="constant")
    learner = tiny_learner(CDNI(), optim=adam, total_steps=steps)
    model = copy.deepcopy(learner.model)
    predictors = [Predictor(block.auxiliary["synthesizer"], 1) for block in learner.blocks[:-1]]
    everything = nn.ModuleList([model, *predictors])
    optimizer = torch.optim.Adam(everything.parameters(), lr=1e-3)
    for x, y in tiny_batches(steps, batch):
        found = learner.step(x, y)
        optimizer.zero_grad()
        errors = list(step(model, predictors, x, y, [None] * 4))
        optimizer.step()
    ours = [found[f"block/{k:02d}/synthesizer_loss"] for k in range(3)]
    difference = max(their - own for their, own in zip(map(float, errors), ours, strict=True))
    what = "cDNI with Adam, 15 steps: normalised error of a synthesizer, theirs less ours"
    parity.documented("Thesis, dni-pytorch", what, difference, PAGE, "predicting `B g_k` is not predicting `g_k`")
