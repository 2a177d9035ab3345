"""Feedback alignment and sign symmetry: backpropagation whose errors travel down through other weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeAlias, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn import seeds
from locallearn.contract import BlockSpec
from locallearn.errors import UserError
from locallearn.options import OneOf
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.twin import twin
from locallearn.uncompiled import called

Layer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
EXACT = (nn.LayerNorm, nn.RMSNorm, nn.Embedding)
"""Their weights may have several dimensions, but multiply element by element, or are looked up."""
STD = {
    "xavier": lambda fan_in, fan_out: math.sqrt(2 / (fan_in + fan_out)),
    "kaiming": lambda fan_in, fan_out: 1 / math.sqrt(3 * fan_in),  # what PyTorch gives to W
}
Geometry: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], int]
"""Stride, padding, dilation and groups of a convolution."""


class _Feedback(torch.autograd.Function):
    """y, unchanged, as a function of x too: dL/dx = B^T dL/dy. Saves B and the shape of x, but not x."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, weight: Tensor, geometry: Geometry | None) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.dtype, ctx.geometry = x.shape, x.dtype, geometry
        ctx.mark_dirty(y)  # y itself leaves, without a copy; a view of it would refuse an in-place ReLU, as in VGG
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (dy,) = grads
        weight = ctx.saved_tensors[0].to(dy.dtype)  # under autocast dy is bfloat16
        if ctx.geometry is None:
            dx = dy @ weight
        else:
            stride, padding, dilation, groups = ctx.geometry
            like = dy.new_empty(1).expand(ctx.shape)  # only its shape is read
            rest = (stride, padding, dilation, False, [0] * len(stride), groups, (True, False, False))
            dx = torch.ops.aten.convolution_backward(dy, like, weight, None, *rest)[0]
        return dy, dx.to(ctx.dtype), None, None


class FeedbackLayer(nn.Module):
    """A linear layer or convolution, y = W h + b, that answers with dh = B^T dy; dW and db are exact.

    layer     the layer itself
    std       of the entries of B, or of the M of a sign-symmetric one
    number    of this layer in its block
    feedback  what is fixed of B, of W's shape: B itself here
    """

    layer: Layer
    feedback: Tensor | None

    def __init__(self, layer: Layer, std: float, number: int) -> None:
        super().__init__()
        self.layer = layer
        self.std = std
        self.number = number
        self.register_buffer("feedback", self.fixed())

    @property
    def weight(self) -> Tensor:
        """W without a graph."""
        return self.layer.weight.detach()

    def fixed(self) -> Tensor | None:
        """What is drawn once, from the global generator; on the CPU in float32, so that B is the same everywhere."""
        return (torch.randn(self.weight.shape, device="cpu", dtype=torch.float32) * self.std).to(self.weight)

    def backward_weight(self) -> Tensor:
        """B for this forward pass, of W's shape."""
        assert self.feedback is not None
        return self.feedback

    def forward(self, h: Tensor) -> Tensor:
        if not (h.requires_grad and torch.is_grad_enabled()):
            return self.layer(h)
        back = self.backward_weight()  # before y: a compiled graph may break here, not between y and its marking
        y = self.layer(h.detach())
        if isinstance(self.layer, nn.Linear):
            return _Feedback.apply(y, h, back, None)
        stride, padding = self.layer.stride, self.layer.padding
        if isinstance(padding, str) or self.layer.padding_mode != "zeros":  # pad apart: autograd knows its gradient
            mode = "constant" if self.layer.padding_mode == "zeros" else self.layer.padding_mode
            h = F.pad(h, self.layer._reversed_padding_repeated_twice, mode=mode)
            padding = (0,) * len(stride)
        return _Feedback.apply(y, h, back, (stride, padding, self.layer.dilation, self.layer.groups))


class UniformMagnitude(FeedbackLayer):
    """B = std sign(W): nothing is drawn and nothing stored."""

    def fixed(self) -> None:
        return None

    def backward_weight(self) -> Tensor:
        return self.std * self.weight.sign()


class FixedMagnitude(FeedbackLayer):
    """B = |M| sign(W), with M drawn once."""

    def backward_weight(self) -> Tensor:
        return self.weight.sign() * super().backward_weight().abs()


class FreshMagnitude(UniformMagnitude):
    """B = |M| sign(W), with M drawn at every forward pass."""

    def backward_weight(self) -> Tensor:
        return self.weight.sign() * called(self.magnitude)  # a compiled graph would keep the seed of its first pass

    def magnitude(self) -> Tensor:
        """|M|, from a stream of its own: dropout draws what it draws under backprop. The engine seeds the global
        generator anew for every block, step and micro-batch, so that its seed stands for the pass."""
        weight = self.weight
        drawn = torch.empty(weight.shape, device=weight.device, dtype=torch.float32)
        with seeds.restarted(seeds.mix(torch.initial_seed(), self.number), weight.device):
            drawn.normal_(std=self.std)
        return drawn.abs_().to(weight.dtype)


@dataclass(frozen=True)
class FeedbackAlignment(Backprop):
    """Feedback alignment (Lillicrap, Cownden, Tweed & Akerman 2016, Nature Communications 7, arXiv 1411.0247).

    Every linear layer and convolution y = W h + b answers with dh = B^T dy, B fixed and random, where backprop has
    W^T dy: no weight transport. dW = dy h^T, db and all else (norms, activations, pools, sums) are exact. The forward
    weights come to agree with B by learning. It cures no locking: the message still passes through all blocks, and
    detaches and sends what backprop does. The first layer of the net answers nobody and its B is never read.

    init  scale of B's normal entries: xavier, std = sqrt(2 / (fan_in + fan_out)), or kaiming, 1 / sqrt(3 fan_in), both
          as in BioTorch; the latter is the scale with which PyTorch's layers begin. The scale compounds over the
          layers, and is the usual reason why a deep net does not learn; ReLU nets without norms die at rates that
          backprop bears (lenet on 8x8 digits, momentum 0.9: at a rate of 0.05 it dies, at 0.01 it learns)

    Raises UserError for a module with a weight matrix of its own that is no linear layer or convolution.
    """

    init: Annotated[str, OneOf(STD)] = "xavier"
    layer: ClassVar[type[FeedbackLayer]] = FeedbackLayer

    def adapt(self, layers: nn.Module, spec: BlockSpec) -> nn.Module:
        """A twin of `layers` with the same parameters and buffers, in which weight layers answer through B. It shares
        the layers themselves, and so their modes and hooks; only what contains weight layers is copied."""
        return self._replaced(twin(layers, _is_weight_layer), f"block {spec.index}: layers", {})

    def _replaced(self, module: nn.Module, path: str, done: dict[nn.Module, FeedbackLayer]) -> nn.Module:
        """`module` with every weight layer in it wrapped; a layer that stands in two places is one, with one B."""
        if _is_weight_layer(module):
            if module not in done:
                weight = module.weight
                std = STD[self.init](weight[0].numel(), weight[:, 0].numel())
                done[module] = self.layer(module, std, len(done))
            return done[module]
        for name, p in module.named_parameters(recurse=False):
            if p.dim() > 1 and not isinstance(module, EXACT):
                raise UserError(
                    f"{path} is a {type(module).__name__}, which cannot have feedback weights: its {name} is "
                    f"{list(p.shape)}, and only linear layers and convolutions are known; build the model of these, or "
                    "choose strategy=dfa, which needs no weights of the layers"
                )
        for name, child in list(module._modules.items()):  # named_children would leave out a second name
            if child is not None:
                setattr(module, name, self._replaced(child, f"{path}.{name}", done))
        return module


def _is_weight_layer(module: nn.Module) -> TypeGuard[Layer]:
    """A linear layer or convolution, or a subclass that computes the same (a parametrised one, not one that pads)."""
    methods = ("forward", "_conv_forward")
    return any(
        isinstance(module, kind)
        and all(getattr(type(module), name, None) is getattr(kind, name, None) for name in methods)
        for kind in LAYERS
    )


@dataclass(frozen=True)
class UniformSign(FeedbackAlignment):
    """uSF, uniform sign-concordant feedback (Liao, Leibo & Poggio 2016, arXiv 1510.05067): B = s sign(W).

    Feedback alignment that knows one bit of every weight. `init` gives s: xavier, sqrt(2 / (fan_in + fan_out)), or
    kaiming, 1 / sqrt(3 fan_in). Sends and detaches what backprop does.
    """

    layer: ClassVar[type[FeedbackLayer]] = UniformMagnitude


@dataclass(frozen=True)
class FixedRandomSign(FeedbackAlignment):
    """frSF, fixed random-magnitude sign-concordant feedback (same paper): B = |M| sign(W), M drawn once.

    `init` gives the scale of M's normal entries. Sends and detaches what backprop does.
    """

    layer: ClassVar[type[FeedbackLayer]] = FixedMagnitude


@dataclass(frozen=True)
class BatchRandomSign(FeedbackAlignment):
    """brSF, batchwise random-magnitude sign-concordant feedback (same paper): B = |M| sign(W), M new in every pass.

    `init` gives the scale of M's normal entries, which have a random stream of their own. Sends and detaches what
    backprop does.
    """

    layer: ClassVar[type[FeedbackLayer]] = FreshMagnitude
