"""A small net with everything that makes training order-dependent, and learners over it."""

from __future__ import annotations

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional as F

from locallearn.engine import SGD, Learner, Optim, Place, Setup, Stage, assemble
from locallearn.models import BlockModel
from locallearn.models.coupling import Coupling
from locallearn.models.revnet import RevNet
from locallearn.strategies.petra import Petra

SIBLINGS = {
    *("vgg8b", "vgg11", "vgg11b", "vgg13", "vgg19"),  # of vgg16
    *("resnet18", "preact_resnet18", "resnet32", "resnet56", "resnet110"),  # of resnet20
}
"""Models of the zoo that are another one with more layers, or in another order."""


def tiny_model(units: int = 4, dropout: float = 0.0, seed: int = 0) -> BlockModel:
    """`units` times conv-BN-ReLU(-dropout) on 2x6x6 images, pooled into a linear head for 3 classes."""
    torch.manual_seed(seed)
    width = [2, 4, 5, 3, 6, 4, 5][: units + 1]
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout(dropout))
        for a, b in itertools.pairwise(width)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width[-1], 3))
    return BlockModel(layers, head, image=(2, 6, 6), classes=3, name="tiny")


def tiny_batches(steps: int = 5, batch: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(batch, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (batch,), generator=g))
        for _ in range(steps)
    ]


SGD_CONSTANT = SGD(lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="constant")


def tiny_revnet(dropout: float = 0.0, seed: int = 0) -> RevNet:
    """As `tiny_model()`, with couplings as units 1 and 3."""
    torch.manual_seed(seed)

    def layers(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]

    units: list[nn.Module] = []
    for a, b in ((2, 4), (4, 6)):
        units.append(nn.Sequential(*layers(a, b), nn.Dropout(dropout)))
        units.append(Coupling(*(nn.Sequential(*layers(b // 2, b // 2)) for _ in range(2))))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    return RevNet(units, head, image=(2, 6, 6), classes=3, name="tiny")


def fitting(strategy, model: BlockModel) -> BlockModel:
    """A copy of a tiny model; for a strategy that needs reversible units, one that has them."""
    if isinstance(strategy, Petra) and not isinstance(model, RevNet):
        return tiny_revnet(dropout=next((m.p for m in model.modules() if isinstance(m, nn.Dropout)), 0.0))
    return copy.deepcopy(model)


def without_norms(root: nn.Module) -> None:
    """Take batch norms, which join the samples of a batch, out of a module."""
    for module in root.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                setattr(module, name, nn.Identity())


def tiny_learner(strategy, model: BlockModel | None = None, blocks=4, **options) -> Learner:
    """A float64 learner over a copy of `model`."""
    model = fitting(strategy, model if model is not None else tiny_model())
    options = {"optim": SGD_CONSTANT, "precision": "fp64", **options}
    optim = options.pop("optim")
    return assembled(model, strategy, optim, model.cut(blocks), **options)


def assembled(model: BlockModel, strategy, optim: Optim, cut, *, stage=Stage, **options) -> Learner:
    """`assemble`, with the fields of `Setup` and `Place` by name."""
    place = Place(**{name: options.pop(name) for name in Place._fields if name in options})
    return assemble(model, strategy, optim, cut, Setup(**options), place, stage)


def bare_backprop(model: nn.Module, batches) -> nn.Module:
    """A copy of the model after the loop that everybody writes."""
    model = copy.deepcopy(model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def trained(strategy, batches, model=None, **options) -> Learner:
    """A learner that has learned from every batch once."""
    learner = tiny_learner(strategy, model, total_steps=len(batches), **options)
    for x, y in batches:
        learner.learn(x, y)
    return learner


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """Every parameter and buffer equal, bit for bit."""
    other = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, other[name]), f"{name} differs by {(tensor - other[name]).abs().max()}"


def dense_model(act=nn.ReLU, sizes: tuple[int, ...] = (6, 7, 5, 4), classes: int = 3) -> BlockModel:
    """Linear layers with an activation each and a linear head, in float64."""
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(n, m), act()) for n, m in itertools.pairwise(sizes)]
    return BlockModel(units, nn.Linear(sizes[-1], classes), image=(sizes[0],), classes=classes, name="net").double()


def dense_batch(samples: int = 5, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """For `dense_model`."""
    g = torch.Generator().manual_seed(1)
    return torch.randn(samples, 6, generator=g, dtype=torch.float64), torch.randint(classes, (samples,), generator=g)


def assert_descended(before, after, loss: torch.Tensor, rate: float, **tolerances: float) -> None:
    """A block has taken a step of plain SGD from `before` to `after` on this loss; what it does not reach stays."""
    old, new = ([p for root in (b.layers, b.auxiliary) for p in root.parameters()] for b in (before, after))
    for p, q, g in zip(old, new, torch.autograd.grad(loss, old, allow_unused=True), strict=True):
        torch.testing.assert_close(q, p if g is None else p - rate * g, **tolerances)
