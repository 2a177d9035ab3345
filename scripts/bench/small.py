"""P18: nets so small that what the harness adds to a step shows: a learner against a loop written by hand.

Machines are loud, and 2 % are to be told. So the two alternate every few milliseconds, many times; a sample is the CPU
time of the one thread that both need, which does not grow while others hold the core; and a ratio comes with the
interval in which the median lies with a probability of 95 %.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.goals import Report
from bench.method import Bench, Found
from locallearn.auxiliary import Linear
from locallearn.contract import Size, Strategy
from locallearn.engine import SGD as Momentum
from locallearn.engine import Adam, Learner, Optim, Setup, assemble
from locallearn.models import BlockModel
from locallearn.models.plain import lenet, mlp
from locallearn.models.resnet import cifar_resnet
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.greedy import DGL

BATCH, BLOCKS, CLASSES = 64, 4, 10
SAMPLE_SECONDS = 0.03
ROUNDS = 150
OPTIMS: dict[str, Optim] = {
    "sgd": Momentum(lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="constant"),
    "adam": Adam(lr=1e-3, schedule="constant"),
}


class Subject(NamedTuple):
    build: Callable[[Size, int], BlockModel]
    image: Size


SUBJECTS = {
    "mlp": Subject(lambda image, classes: mlp(image, classes, width=1024, depth=3), (1, 28, 28)),
    "lenet": Subject(lenet, (1, 28, 28)),
    "resnet20": Subject(lambda image, classes: cifar_resnet(image, classes, depth=20), (3, 32, 32)),
}


def measure(bench: Bench, report: Report, name: str) -> None:
    """Backprop and DGL, with SGD and with Adam, each against the same step written by hand, fused optimizers on both
    sides."""
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    model = subject.build(subject.image, CLASSES)
    x = torch.randn(BATCH, *subject.image).contiguous(memory_format=torch.channels_last)
    y = torch.randint(CLASSES, (BATCH,))
    for optimizer, strategy in (("sgd", "backprop"), ("adam", "backprop"), ("sgd", "dgl")):
        learner, other = (learner_of(model, strategy, OPTIMS[optimizer]) for _ in range(2))
        bare = (by_hand if strategy == "backprop" else decoupled_by_hand)(other, optimizer, x, y)
        with learner.stage.random_state:
            rounds = 6 if bench.quick else ROUNDS
            found, (ours, theirs) = alternated(lambda learner=learner: learner.learn(x, y), bare, rounds)
        blocks = len(learner.blocks)
        why = f"{ours - theirs:.2f} ms more for {blocks} blocks: each has an optimizer, an autograd call and two seeds"
        on = f"{strategy}, {optimizer}, {blocks} blocks, batch {BATCH}"
        report.add(f"P18 {name}", on, found, why, harness_ms=ours, bare_ms=theirs)


def learner_of(model: BlockModel, strategy: str, optim: Optim) -> Learner:
    made: Strategy = Backprop() if strategy == "backprop" else DGL(objective=CrossEntropy(), auxiliary=Linear())
    cut = model.cut(min(BLOCKS, len(model.units)))
    return assemble(copy.deepcopy(model), made, optim, cut, Setup(channels_last=True))


def by_hand(learner: Learner, optimizer: str, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step of the loop that everybody writes, over the learner's model."""
    model, step = learner.model.train(), fused([learner.model], optimizer)

    def bare() -> None:
        step.zero_grad()
        F.cross_entropy(model(x), y).backward()
        step.step()

    return bare


def decoupled_by_hand(learner: Learner, optimizer: str, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step of DGL as its published code takes it: for each block a forward, a loss, a backward, a step."""
    parts = []
    for block in learner.blocks:
        head = block.head or block.auxiliary["classifier"]
        parts.append((block.layers.train(), head.train(), fused([block.layers, head], optimizer)))

    def bare() -> None:
        h = x
        for layers, head, step in parts:
            h = layers(h.detach())
            step.zero_grad()
            F.cross_entropy(head(h), y).backward()
            step.step()

    return bare


def fused(modules: list[nn.Module], optimizer: str) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters()]
    if optimizer == "adam":
        return torch.optim.Adam(parameters, lr=1e-3, fused=True)
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


def alternated(a: Callable[[], None], b: Callable[[], None], rounds: int) -> tuple[Found, tuple[float, float]]:
    """The median of a / b over rounds of a b b a, its 95 % interval, and the median milliseconds of both."""
    steps = max(1, round(SAMPLE_SECONDS / max(_seconds(b, 5), 1e-6)))
    _seconds(a, 5)
    ours, theirs = [], []
    for _ in range(rounds):
        first, second = _seconds(a, steps), _seconds(b, steps)
        theirs.append((second + _seconds(b, steps)) / 2)
        ours.append((first + _seconds(a, steps)) / 2)
    low, middle, high = interval([p / q for p, q in zip(ours, theirs, strict=True)])
    return Found(middle, low, high, rounds, 0), (statistics.median(ours) * 1e3, statistics.median(theirs) * 1e3)


def _seconds(action: Callable[[], None], steps: int) -> float:
    """CPU seconds of this thread for one step."""
    start = time.thread_time()
    for _ in range(steps):
        action()
    return (time.thread_time() - start) / steps


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median, between the bounds of its 95 % interval: order statistics, whatever the distribution."""
    ordered, n = sorted(values), len(values)
    away = math.ceil(0.98 * math.sqrt(n))
    return ordered[max(0, n // 2 - away)], statistics.median(ordered), ordered[min(n - 1, n // 2 + away)]
