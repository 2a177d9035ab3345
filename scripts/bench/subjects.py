"""What is measured: models, batches, learners, and the loop that everybody writes."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import Linear, MLPSpatialReduction
from locallearn.contract import Feedback, Packet, Strategy
from locallearn.engine import SGD, Adam, Learner, Optim, Place, Setup, assemble
from locallearn.models import BlockModel
from locallearn.models.plain import mlp
from locallearn.models.resnet import cifar_resnet
from locallearn.models.vgg import vgg
from locallearn.models.vit import vit
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop, Checkpoint
from locallearn.strategies.dfa import DFA
from locallearn.strategies.dni import DNI
from locallearn.strategies.greedy import DGL
from locallearn.strategies.overlapping import Overlapping

IMAGE, CLASSES = (3, 32, 32), 10
OPTIM: Optim = SGD(lr=0.01, momentum=0.9, weight_decay=5e-4, schedule="constant")
DNI_WIDTH = 32  # hidden channels of narrow synthesizers; as wide as what they read, they cost twice a vgg16
MODELS: dict[str, Callable[[], BlockModel]] = {
    "vgg11": lambda: vgg(IMAGE, CLASSES, depth=11),
    "vgg16": lambda: vgg(IMAGE, CLASSES, depth=16),
    "mlp4": lambda: mlp(IMAGE, CLASSES, width=1024, depth=4),
    "resnet32": lambda: cifar_resnet(IMAGE, CLASSES, depth=32),
    "vit": lambda: vit(IMAGE, CLASSES),
}
STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "backprop": Backprop,
    "checkpoint": Checkpoint,
    "dgl linear": lambda: DGL(objective=CrossEntropy(), auxiliary=Linear()),
    "dgl mlp_sr": lambda: DGL(objective=CrossEntropy(), auxiliary=MLPSpatialReduction()),
    "dni": DNI,
    "dni narrow": lambda: DNI(width=DNI_WIDTH),
    "loco": lambda: Overlapping(objective=CrossEntropy(), auxiliary=MLPSpatialReduction()),
    "dfa": DFA,
}


def model_of(name: str, quick: bool) -> BlockModel:
    """The same weights in every process; in a quick try the smallest net that has four units."""
    torch.manual_seed(0)
    return cifar_resnet(IMAGE, CLASSES, depth=14) if quick else MODELS[name]()


def batch_of(quick: bool, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Random images [B, 3, 32, 32] in channels_last, and labels [B]."""
    size = size or (16 if quick else 128)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(size, *IMAGE, generator=g).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(CLASSES, (size,), generator=g)


def learner_of(
    model: BlockModel, strategy: str, cut: list[range], optim: Optim = OPTIM, micro_batches: int = 1, **place: Any
) -> Learner:
    """A learner over a copy of the model, in channels_last; `place` has the fields of `Place`."""
    setup = Setup(channels_last=True, micro_batches=micro_batches)
    return assemble(copy.deepcopy(model), STRATEGIES[strategy](), optim, cut, setup, Place(**place))


def optimizer_of(*modules: nn.Module, optim: Optim = OPTIM) -> torch.optim.Optimizer:
    """What the harness would make of its options, fused as there."""
    parameters = [p for module in modules for p in module.parameters()]
    if isinstance(optim, Adam):
        return torch.optim.Adam(parameters, lr=optim.lr, fused=True)
    assert isinstance(optim, SGD)
    decay = optim.weight_decay
    return torch.optim.SGD(parameters, lr=optim.lr, momentum=optim.momentum, weight_decay=decay, fused=True)


def by_hand(model: nn.Module, optim: Optim = OPTIM) -> Callable[[Tensor, Tensor], None]:
    """One step of the loop that everybody writes, on a batch."""
    optimizer = optimizer_of(model.train(), optim=optim)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def bare(model: nn.Module, x: Tensor, y: Tensor, channels_last: bool = True) -> Callable[[], None]:
    """That step with a copy of the model on one batch."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    step, x = by_hand(copy.deepcopy(model).to(memory_format=layout)), x.contiguous(memory_format=layout)
    return lambda: step(x, y)


class Recorded:
    """A link to nobody: what would come over it is there at once, what is sent goes nowhere."""

    def __init__(self, packet: Packet | None, feedback: Feedback | None) -> None:
        self.below, self.above = packet is not None, feedback is not None
        self._packet, self._feedback = packet, feedback

    def recv_forward(self) -> Packet:
        assert self._packet is not None
        return self._packet

    def send_forward(self, packet: Packet) -> None:
        pass

    def recv_backward(self) -> Feedback | None:
        return self._feedback

    def send_backward(self, feedback: Feedback | None) -> None:
        pass


def alone(
    model: BlockModel, strategy: str, cut: list[range], own: range, x: Tensor, y: Tensor
) -> tuple[Learner, Callable[[], None]]:
    """The `own` blocks of a cut, and one step of them by themselves on what the blocks below made of x."""
    below, emitted = cut[own.start].start, cut[own.stop - 1].stop
    copied = copy.deepcopy(model).to(memory_format=torch.channels_last).train()
    with torch.no_grad():
        h = copied.block(range(below))(x)
        out = copied.block(range(below, emitted))(h)
    packet = Packet(h, y) if own.start else None
    error = torch.randn(len(y), CLASSES) if strategy == "dfa" else torch.randn_like(out)
    feedback = (error / len(y),) if own.stop < len(cut) else None
    learner = learner_of(model, strategy, cut, own=own, link=Recorded(packet, feedback))
    return learner, (lambda: learner.learn(None, None)) if own.start else (lambda: learner.learn(x, y))
