"""Networks that predict a tensor of a given shape: the gradient of an activation, or a block's input (Jaderberg et al.
2017, "Decoupled Neural Interfaces using Synthetic Gradients", arXiv 1608.05343)."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary.networks import Size
from locallearn.task import CLASSES, Task


class Synthesizer(nn.Module):
    """Layers that keep the shape of what they read, with batch norm and ReLU between them: 5x5 convolutions for maps
    [C, H, W] (5x5x5 for [C, D, H, W]), convolutions over 5 steps for sequences [T, D], linear layers for vectors [D].

    width       channels of the hidden layers; 0: those of what it reads
    depth       hidden layers; 0: the prediction is linear
    batch_norm  before every ReLU
    classes     0, or the number of classes: what the task shows of the targets (one-hot labels, say) then goes through
                a linear layer and is added to the first layer's output: at each step, averaged into each cell of a map,
                or broadcast over positions. Items without a target add nothing
    task        what the targets are

    The last layer starts at zero, weight and bias, so that the first prediction is zero and not noise.
    """

    def __init__(
        self,
        size: Size,
        *,
        width: int = 0,
        depth: int = 2,
        batch_norm: bool = True,
        classes: int = 0,
        task: Task = CLASSES,
    ) -> None:
        super().__init__()
        self.classes, self.task = classes, task
        self.sequence = len(size) == 2
        features = size[-1] if self.sequence else size[0]
        layer, norm = _kinds(size)
        widths = [width or features] * depth + [features]
        self.first = layer(features, widths[0])
        self.context = nn.Linear(classes, widths[0], bias=False) if classes else None
        self.rest = nn.Sequential()
        for inputs, outputs in pairwise(widths):
            self.rest.extend([*([norm(inputs)] if batch_norm else []), nn.ReLU(), layer(inputs, outputs)])
        for parameter in self.last_layer.parameters():
            nn.init.zeros_(parameter)
        if self.context is not None and not depth:
            nn.init.zeros_(self.context.weight)

    @property
    def last_layer(self) -> nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d:
        layer = self.rest[-1] if len(self.rest) else self.first
        assert isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
        return layer

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        """[B, *size] and targets [B, ...] -> [B, *size]"""
        if self.sequence:
            h = h.transpose(1, 2)  # [B, D, T]
        out = self.first(h)
        if self.context is not None:
            shown = self.task.context(y, self.classes).to(self.context.weight.dtype)
            if shown.dim() == 4:  # maps [B, classes, H, W], with the features last for the linear layer
                shown = F.adaptive_avg_pool2d(shown, tuple(out.shape[2:])).movedim(1, 3)
            context = self.context(shown).movedim(-1, 1)  # [B, width, ...]
            out = out + context.view(*context.shape, *(1,) * (out.dim() - context.dim()))
        out = self.rest(out)
        return out.transpose(1, 2) if self.sequence else out


class InputSynthesizer(nn.Module):
    """Predicts what a block reads from what the network reads ("synthetic inputs", section 2.3 of the paper): a linear
    layer (vectors, sequences) or a convolution at the resolution of the block (maps), then a `Synthesizer`, whose last
    layer starts here from PyTorch's initialisation and not from zero.

    [B, *image], labels [B] -> [B, *reads]; `body` is for tensors of the shape `reads`
    """

    def __init__(self, image: Size, reads: Size, body: Synthesizer) -> None:
        super().__init__()
        self.reads = reads
        self.maps = len(image) == 3 and len(reads) == 3
        if self.maps:
            self.stem: nn.Module = nn.Conv2d(image[0], reads[0], 5, padding=2)
        else:
            self.stem = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image), math.prod(reads)))
        self.body = body
        body.last_layer.reset_parameters()

    def forward(self, image: Tensor, y: Tensor) -> Tensor:
        if self.maps:
            h = F.adaptive_avg_pool2d(self.stem(image), (self.reads[1], self.reads[2]))
        else:
            h = self.stem(image).view(len(image), *self.reads)
        return self.body(F.relu(h), y)


def _kinds(size: Size) -> tuple:
    """The layer (inputs, outputs) and the batch norm for maps, sequences and vectors."""
    if len(size) == 4:
        return (lambda i, o: nn.Conv3d(i, o, 5, padding=2)), nn.BatchNorm3d
    if len(size) == 3:
        return (lambda i, o: nn.Conv2d(i, o, 5, padding=2)), nn.BatchNorm2d
    if len(size) == 2:
        return (lambda i, o: nn.Conv1d(i, o, 5, padding=2)), nn.BatchNorm1d
    return nn.Linear, nn.BatchNorm1d
