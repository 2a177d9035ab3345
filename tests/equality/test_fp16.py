"""float16 with scaled gradients: the bits of a hand-written loop with a `torch.amp.GradScaler` for each block, through
steps that overflow; and for every strategy gradients that float16 alone would lose."""

from __future__ import annotations

import copy
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import assembled, assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, make, slow_where_alike
from locallearn import scaling
from locallearn.auxiliary import Linear
from locallearn.contract import Block, Packet, Route, Send, Step, Strategy, task_loss
from locallearn.engine import SGD, Learner
from locallearn.engine.gradients import strategy_gradients
from locallearn.errors import RunError, UserError
from locallearn.models import BlockModel
from locallearn.objectives import CrossEntropy
from locallearn.runs import checkpoint
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.greedy import DGL

RATE = {"lr": 0.01, "momentum": 0.9}
STEPS = 12
CLIP = 0.5


@pytest.fixture(autouse=True)
def grows_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scaling, "GROWTH_STEPS", 3)


def mlp() -> BlockModel:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(12, 12), nn.Tanh()), nn.Sequential(nn.Linear(12, 12), nn.ReLU())]
    return BlockModel(units, nn.Linear(12, 3), image=(12,), classes=3, name="mlp")


def batches(steps: int = STEPS) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """So large inputs that the first scales are too large for the gradients of the first layer."""
    g = torch.Generator().manual_seed(1)
    return [(40 * torch.randn(16, 12, generator=g), torch.randint(3, (16,), generator=g)) for _ in range(steps)]


def learner_of(strategy: Strategy, blocks: int = 2, model: BlockModel | None = None, **options) -> Learner:
    model = model or mlp()
    optim = SGD(**RATE, schedule="constant", weight_decay=0.0, clip=CLIP)
    return assembled(model, strategy, optim, model.cut(blocks), precision="fp16", **options)


class HandWritten:
    """Parts of a net with an optimizer and a scaler each, as PyTorch's documentation has it."""

    def __init__(self, *parts: list[nn.Module]) -> None:
        self.parameters = [[p for module in part for p in module.parameters()] for part in parts]
        self.optimizers = [torch.optim.SGD(parameters, **RATE, fused=True) for parameters in self.parameters]
        self.scalers = [torch.amp.GradScaler("cpu", growth_interval=3) for _ in parts]
        self.skipped = [0 for _ in parts]

    def apply(self, shares: int = 1) -> None:
        """The steps of all parts, whose gradients are scaled, and sums over so many shares of a batch."""
        for i, (scaler, optimizer) in enumerate(zip(self.scalers, self.optimizers, strict=True)):
            scaler.unscale_(optimizer)
            for p in self.parameters[i]:
                p.grad.div_(shares)
            nn.utils.clip_grad_norm_(self.parameters[i], CLIP)
            scaler.step(optimizer)
            before = scaler.get_scale()
            scaler.update()
            self.skipped[i] += scaler.get_scale() < before
            optimizer.zero_grad()


def one_part(model: BlockModel, x: torch.Tensor, y: torch.Tensor, hand: HandWritten) -> None:
    with torch.autocast("cpu", torch.float16):
        loss = F.cross_entropy(model.head(model.units[1](model.units[0](x))), y)
    hand.scalers[0].scale(loss).backward()


def chain(model: BlockModel, x: torch.Tensor, y: torch.Tensor, hand: HandWritten) -> None:
    """The gradient crosses the border in float32, without a scale."""
    lower, upper = hand.scalers
    with torch.autocast("cpu", torch.float16):
        below = model.units[0](x).float()
        border = below.detach().requires_grad_()
        loss = F.cross_entropy(model.head(model.units[1](border)), y)
    upper.scale(loss).backward()
    below.backward(lower.scale(border.grad / upper.get_scale()))


def local(model: BlockModel, x: torch.Tensor, y: torch.Tensor, hand: HandWritten, read_out: nn.Module) -> None:
    with torch.autocast("cpu", torch.float16):
        h = model.units[0](x)
        own = F.cross_entropy(read_out(h), y)
        loss = F.cross_entropy(model.head(model.units[1](h.detach())), y)
    hand.scalers[0].scale(own).backward()
    hand.scalers[1].scale(loss).backward()


@pytest.mark.parametrize("kind", ["one_part", "chain", "local"])
def test_the_bits_of_a_loop_with_grad_scalers(kind):
    strategy = DGL(objective=CrossEntropy(), auxiliary=Linear()) if kind == "local" else Backprop()
    learner = learner_of(strategy, 1 if kind == "one_part" else 2)
    model = copy.deepcopy(learner.model)
    read_out = copy.deepcopy(next(iter(learner.blocks[0].auxiliary.values()), nn.Identity()))
    lower, upper = [model.units[0]], [model.units[1], model.head]
    hand = HandWritten([*lower, *upper]) if kind == "one_part" else HandWritten([*lower, read_out], upper)
    noted = [0.0 for _ in hand.scalers]
    for x, y in batches():
        metrics = learner.step(x, y)
        steps = {"one_part": one_part, "chain": chain, "local": lambda *args: local(*args, read_out)}
        steps[kind](model, x, y, hand)
        hand.apply()
        assert_same(learner.model, model)
        assert [block.scaler.scale for block in learner.blocks] == [scaler.get_scale() for scaler in hand.scalers]
        noted = [count + metrics[f"block/{k:02d}/skipped_steps"] for k, count in enumerate(noted)]
    assert noted == hand.skipped
    assert 0 < hand.skipped[0] < STEPS  # some were, and afterwards it learned
    assert len(set(hand.skipped)) == len(hand.skipped) or kind == "chain"  # each block for itself


OWN_SIZE = {"dfa", "sdfa", "drtp", "fa", "frsf", "brsf", "usf", "infomax", "forward_forward", "cafo", "pepita"}
OWN_SIZE |= {"forward_gradient", "sigprop", "equilibrium"}
"""Their gradients pass through other weights than the head's, do not shrink with these, are none, or are differences,
no smaller than the rounding of what they are between, which processors do differently."""


SCALES = {"forward_forward": 2.0**6, "sigprop": 2.0**6, "sdfa": 2.0**12, "fw_dtp": 2.0**22, "dtp": 2.0**22}
"""Where a scale comes to whose gradients are large, or (with inverses of 0.001) far too small for the first one."""


def shrink(module: nn.Module, factor: float) -> None:
    for p in module.parameters():
        p.data.mul_(factor)


def relative(found: torch.Tensor, true: torch.Tensor) -> float:
    return ((found - true).norm() / true.norm()).item()


@pytest.mark.parametrize("name", slow_where_alike(FILES))
def test_small_gradients_survive_under_every_strategy(name):
    """Heads so small that what passes through them is below what float16 can hold."""
    model = tiny_model()
    (x, y), _ = tiny_batches(2, batch=32)
    wide, narrow = (tiny_learner(make(name), model, precision=p, total_steps=2) for p in ("fp32", "fp16"))
    for learner in (wide, narrow):
        shrink(learner.model.head, 1e-5)
        for block in learner.blocks:
            own = {
                "counter_current": 0.05,
                "dtp": 1.0,
                "man": 1e-2,
                "solo": 1.0,
                "noprop": 0.02,
                "diffusion_blocks": 0.05,
            }
            factor = own.get(name, 3e-3 if learner.strategy.plain else 5e-6)
            shrink(block.auxiliary, factor)  # of two layers, of one, or of one for each block
            if block.scaler and name in SCALES:
                block.scaler.state[0] = SCALES[name]
    true, found = (strategy_gradients(learner, x.float(), y) for learner in (wide, narrow))
    small = 0
    for a, b, wide_block, block in zip(true, found, wide.blocks, narrow.blocks, strict=True):
        for p, q in zip(wide_block.layers.parameters(), block.layers.parameters(), strict=True):
            if p in a.parameters and p.dim() > 1 and a.parameters[p].norm() > 0:
                # Without a scale it is 1. A softmax of sums over all numbers of a map feels their rounding.
                assert relative(b.parameters[q], a.parameters[p]) < (0.3 if name == "sigprop" else 0.12)
                small += bool(a.parameters[p].abs().max() < 1e-6)
    assert small or name in OWN_SIZE


def test_state_and_micro_batches(tmp_path: Path):
    """Of two micro-batches the gradients are summed, and what a checkpoint holds goes on with the same bits."""
    options = {"micro_batches": 2, "total_steps": STEPS}
    whole, again = (learner_of(Backprop(), **options) for _ in range(2))
    half = STEPS // 2
    for x, y in batches()[:half]:
        whole.learn(x, y)
    assert [block.scaler.scale for block in whole.blocks] != [2.0**16] * 2
    checkpoint.save(tmp_path, half, whole.state(), {"epoch": 0, "offset": half, "seconds": 0.0, "blocks": []}, keep=1)
    again.load_state(checkpoint.newest(tmp_path, pytest.fail).tensors)
    again.step_count = half
    for x, y in batches()[half:]:
        whole.learn(x, y)
        again.learn(x, y)
    assert_same(whole.model, again.model)
    assert all(torch.equal(t, again.state()[name]) for name, t in whole.state().items())
    model = mlp()
    hand = HandWritten([model.units[0]], [model.units[1], model.head])
    for x, y in batches():
        for part in zip(x.chunk(2), y.chunk(2), strict=True):
            chain(model, *part, hand)
        hand.apply(2)
    assert_same(whole.model, model)


def test_what_no_scale_can_hold_stops_the_run():
    class Blows(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = x.clone()
            if x.requires_grad:
                x.register_hook(lambda g: g * float("inf"))
            return x

    model = BlockModel([nn.Linear(12, 12), Blows()], nn.Linear(12, 3), image=(12,), classes=3, name="blows")
    learner = learner_of(Backprop(), 1, model)
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RunError, match=r"block 0 of 1, step 16: the gradient is inf"):
        deque((learner.learn(x, y) for x, y in batches(20)), maxlen=0)
    assert learner.blocks[0].scaler.scale == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


@dataclass(frozen=True)
class OwnBackward(Strategy):
    route: ClassVar[Route] = Route.NONE

    def step(self, block: Block, packet: Packet) -> Step:
        h = block.layers(packet.h)
        yield Send(packet.at(h))
        (task_loss(block, h, packet.y) if block.last else h.square().mean()).backward()
        block.update()
        return None


def test_a_strategy_that_writes_gradients_by_itself_is_told():
    with pytest.raises(UserError, match=r"call backward\(loss\) instead of loss.backward\(\)"):
        learner_of(OwnBackward()).learn(*batches(1)[0])
