"""MAN++ as its authors' program trains a net: the stem has a loss of its own, each loss is passed back at once, copies
take in the next module's weights before these step, and one optimizer steps for all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.marks import slow
from helpers.nets import tiny_learner
from helpers.parity import Parity, apart
from locallearn.auxiliary import PointwiseMLP
from locallearn.engine import SGD
from locallearn.engine.learner import Learner
from locallearn.models.resnet import cifar_resnet
from locallearn.objectives import CrossEntropy
from locallearn.strategies.man import MAN

STEPS, M = 3, 0.8
RATES = {"lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4}
MODULES = {3: [1, 3, 5], 6: "max"}
"""By the number of modules: where a ResNet of six residual blocks is cut so that the stem is alone."""


def batch(step: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(step)
    return torch.randn(8, 3, 8, 8, generator=g, dtype=torch.float64), torch.arange(8) % 4


def man_plus_plus(modules: int) -> Learner:
    torch.manual_seed(modules)
    model = cifar_resnet((3, 8, 8), 4, depth=14, shortcut="B")
    strategy = MAN(objective=CrossEntropy(), auxiliary=PointwiseMLP(width=8), momentum=M, scaled=True)
    return tiny_learner(strategy, model, MODULES[modules], optim=SGD(schedule="constant", **RATES), total_steps=STEPS)


class Program(nn.Module):
    """What the authors' program holds: stem, modules, last layer, and LB, EMA, s and a head for each border."""

    def __init__(self, ours: Learner) -> None:
        super().__init__()
        aheads = [block.auxiliary["ahead"] for block in ours.blocks[:-1]]
        self.modules_ = copy.deepcopy(nn.ModuleList(block.layers for block in ours.blocks))
        self.fc = copy.deepcopy(ours.model.head)
        self.lb = copy.deepcopy(nn.ModuleList(ahead.own for ahead in aheads))
        self.heads = copy.deepcopy(nn.ModuleList(block.auxiliary["classifier"] for block in ours.blocks[:-1]))
        self.s = nn.ParameterList(torch.ones((), dtype=torch.float64) for _ in aheads)
        self.ema = copy.deepcopy(self.lb).requires_grad_(False)
        for net, ahead in zip(self.ema, aheads, strict=True):
            for p, weight in zip(net.parameters(), ahead.weights(), strict=True):
                p.copy_(weight)

    def take_in(self, k: int) -> None:
        """EMA <- m EMA + (1 - m) W of the first residual block of the next module."""
        for p, weight in zip(self.ema[k].parameters(), self.modules_[k + 1][0].parameters(), strict=True):
            p.data = M * p.data + (1 - M) * weight.data

    def losses(self, x: Tensor, y: Tensor, takes: bool) -> list[Tensor]:
        """Of the stem and of every module, each passed back at once."""
        found = []
        for k, module in enumerate(self.modules_):
            x = module(x)
            last = k == len(self.lb)
            u = x if last else self.s[k] * self.lb[k](x) + (2 - self.s[k]) * self.ema[k](x)
            loss = F.cross_entropy((self.fc if last else self.heads[k])(u), y)
            loss.backward()
            found.append(loss)
            x = x.detach()
            if takes and not last:
                self.take_in(k)
        return found


@pytest.mark.parametrize("modules", [3, slow(6)])
def test_man_plus_plus(modules: int, parity: Parity) -> None:
    """K modules have K + 1 losses. The copy has taken in the first weights before the first step, as ours has, and
    not yet those of the last step, as ours does when it reads next."""
    ours = man_plus_plus(modules)
    program = Program(ours)
    optimizer = torch.optim.SGD([p for p in program.parameters() if p.requires_grad], **RATES)
    for k in range(modules):
        program.take_in(k)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        theirs = program.losses(x, y, takes=0 < step < STEPS - 1)
        optimizer.step()
        found = ours.step(x, y)
        assert len(theirs) == modules + 1
        losses = apart([found[f"block/{k:02d}/loss"] for k in range(modules + 1)], theirs)
        parity.equal("MAN++", f"{modules} modules, {modules + 1} losses, 3 steps: losses", losses)
    end = Program(ours)
    end.s = nn.ParameterList(block.auxiliary["ahead"].scale for block in ours.blocks[:-1])
    weights = apart(dict(end.named_parameters()), dict(program.named_parameters()))
    parity.equal("MAN++", f"{modules} modules, {modules + 1} losses, 3 steps: weights, heads, copies, s", weights)
    assert min((s - 1).abs().item() for s in program.s) > 1e-6, "s has learned"


@pytest.mark.parametrize(("blocks", "last"), [(8, [0, 2, 4, 6, 8, 10, 12]), (15, [*range(14)])])
def test_cuts_of_man(blocks: int, last: list[int], parity: Parity) -> None:
    """The residual blocks, counted from 0 through the net, after which ResNet-32 is cut for K = 8 and 16; the stem is
    in the first module. What is called 16 are fifteen modules: one for each residual block."""
    cut = cifar_resnet((3, 32, 32), 10, depth=32, shortcut="B").cut(blocks)
    parity.equal("MAN", "where ResNet-32 is cut for K = 8, 16", apart([u.stop - 2 for u in cut[:-1]], last))


def test_the_first_step_of_man_plus_plus(parity: Parity) -> None:
    """The authors' copy is random in the first step."""
    ours = man_plus_plus(3)
    theirs = Program(ours).losses(*batch(0), takes=True)
    found = ours.step(*batch(0))
    difference = apart([found[f"block/0{k}/loss"] for k in range(4)], theirs)
    words = "is taken in before the first step, not after it"
    parity.documented("MAN++", "losses of the first step", difference, "docs/strategies/man.md", words)
