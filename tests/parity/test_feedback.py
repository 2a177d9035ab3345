"""BioTorch's FA, uSF and frSF: layers whose backward multiplies with B, stated in numpy for linear layers and by the
gradient of a convolution for the others; and the scales of its initialisations."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner
from helpers.parity import Parity, apart
from locallearn.contract import BlockSpec
from locallearn.models import BlockModel
from locallearn.models.plain import lenet
from locallearn.strategies.feedback_alignment import (
    FeedbackAlignment,
    FeedbackLayer,
    FixedRandomSign,
    UniformSign,
)

SPEC = BlockSpec(0, 1, (1, 28, 28), (1, 28, 28), (10,), 10)


class Backward(torch.autograd.Function):
    """y = layer(x) with exact gradients of weight and bias, and B in the place of the weight for x."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, back: Tensor, stride: int, padding: int) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight, back)
        ctx.geometry = stride, padding
        return F.linear(x, weight, bias) if x.dim() == 2 else F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx, dy: Tensor):  # type: ignore[no-untyped-def]
        x, weight, back = ctx.saved_tensors
        if x.dim() == 2:
            return dy @ back, dy.T @ x, dy.sum(0), None, None, None
        geometry = dict(zip(("stride", "padding"), ctx.geometry, strict=True))
        dx = nn.grad.conv2d_input(x.shape, back, dy, **geometry)
        return dx, nn.grad.conv2d_weight(x, weight.shape, dy, **geometry), dy.sum((0, 2, 3)), None, None, None


class Residual(nn.Module):
    """A unit of a residual net: norms are exact, every convolution has its own B."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.norm(self.first(x)))))


def small_net() -> BlockModel:
    torch.manual_seed(1)
    units = [
        nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU()),
        Residual(4),
        nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh()),
    ]
    return BlockModel(units, nn.Linear(8, 3), image=(2, 6, 6), classes=3, name="small")


def answering(module: nn.Module, layers: list[FeedbackLayer], magnitude: object) -> nn.Module:
    """A copy whose weight layers are BioTorch's, with the B that `magnitude` gives for each."""
    copied = copy.deepcopy(module)
    own = [m for m in copied.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer, ours in zip(own, layers, strict=True):
        fixed = None if ours.feedback is None else ours.feedback.clone()

        def forward(x: Tensor, layer: nn.Module = layer, fixed: Tensor | None = fixed) -> Tensor:
            stride, padding = (layer.stride, layer.padding) if isinstance(layer, nn.Conv2d) else (1, 0)
            back = magnitude(layer.weight.detach(), fixed)  # type: ignore[operator]
            return Backward.apply(x, layer.weight, layer.bias, back, stride, padding)

        layer.forward = forward  # type: ignore[method-assign]
    return copied


def xavier(weight: Tensor) -> float:
    inputs, outputs = weight[0].numel(), weight[:, 0].numel()
    return math.sqrt(2 / (inputs + outputs))


RULES = {
    "FA": (FeedbackAlignment(), lambda w, fixed: fixed),
    "uSF": (UniformSign(), lambda w, fixed: xavier(w) * w.sign()),
    "frSF": (FixedRandomSign(), lambda w, fixed: fixed.abs() * w.sign()),
}


@pytest.mark.parametrize("name", RULES)
def test_gradients_and_weights(parity: Parity, name: str) -> None:
    strategy, rule = RULES[name]
    learner = tiny_learner(strategy, small_net(), "max", total_steps=10)
    parts = [m for block in learner.blocks for m in (block.layers, block.head) if m is not None]
    layers = [m for part in parts for m in part.modules() if isinstance(m, FeedbackLayer)]
    model = answering(learner.model, layers, rule)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step, (x, y) in enumerate(tiny_batches(10)):
        learner.learn(x, y)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        if step in (0, 9):
            weights = apart(dict(learner.model.named_parameters()), dict(model.named_parameters()))
            parity.equal("BioTorch", f"{name} with the same W and B, 1 and 10 steps: weights", weights)


def scale(init: str, layer: nn.Module) -> float:
    """The s of our uSF, in which B = s sign(W)."""
    twin = UniformSign(init=init).adapt(layer, SPEC)
    assert isinstance(twin, FeedbackLayer)
    return twin.backward_weight().abs().max().item()


def test_scales(parity: Parity) -> None:
    for layer in (nn.Linear(100, 40), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 16, 3, groups=4)):
        kaiming = 1 / math.sqrt(3 * layer.weight[0].numel())
        found = apart(scale("kaiming", layer), kaiming), apart(scale("xavier", layer), xavier(layer.weight))
        parity.equal("BioTorch", "scale of init=kaiming, 1/sqrt(3 fan_in)", found[0], within=1e-8)
        parity.equal("BioTorch", "scale of init=xavier, sqrt(2/(fan_in + fan_out))", found[1], within=1e-8)


def test_distribution_of_feedback(parity: Parity) -> None:
    """Theirs ends at sqrt(3) standard deviations, ours does not."""
    torch.manual_seed(0)
    twin = FeedbackAlignment().adapt(nn.Linear(300, 200), SPEC)
    assert isinstance(twin, FeedbackLayer)
    theirs = nn.init.xavier_uniform_(torch.empty(200, 300))
    assert twin.backward_weight().std() == pytest.approx(theirs.std(), rel=0.01)
    largest = (twin.backward_weight().abs().max() / theirs.abs().max() - 1).item()
    words = "`B`'s entries are normal; BioTorch draws them uniformly, with the same standard deviation"
    parity.documented("BioTorch", "FA: largest of B's entries, relative", largest, "docs/strategies/fa.md", words)


def test_lenet_of_the_benchmark(parity: Parity) -> None:
    page = "conf/experiment/feedback_lenet.yaml"
    torch.manual_seed(0)
    model = lenet((1, 28, 28), 10)
    head = model.head
    assert isinstance(head, nn.Linear)
    deviation = abs(head.weight.std().item() - xavier(head.weight))
    words = "weights begin as PyTorch's do (there as Xavier's, and biases at 0)"
    parity.documented("BioTorch", "LeNet: deviation of W's entries, output layer", deviation, page, words)
    third = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)][2]
    ratio = scale("xavier", third) / xavier(torch.empty(120, 16, 5, 5))
    words = "the third layer is linear (there a convolution over 5x5, for which Xavier's B is 2.6 times smaller)"
    assert ratio == pytest.approx(2.56, abs=0.01)
    parity.documented("BioTorch", "LeNet: scale of B in the third layer, relative", ratio - 1, page, words)
