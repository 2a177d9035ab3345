"""Heads of DGL, local-loss, InfoPro and MAN++, with the weights of ours in a forward that follows the peer's code."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.parity import Parity, apart
from locallearn.auxiliary import CNN, MLP, ConvFC, Decoder, Linear, MLPSpatialReduction, PointwiseMLP

SIDES = [32, 16, 8, 7, 5, 4, 3, 2, 1]
DGL = {"mlp": MLP(), "mlp-sr": MLPSpatialReduction(), "cnn": CNN()}


def with_weights(net: nn.Module) -> Iterator[nn.Module]:
    """The layers with weights, in order: all that a restatement takes of ours."""
    return (m for m in net.modules() if any(True for _ in m.parameters(recurse=False)))


def normed(layer: nn.Module, x: Tensor) -> Tensor:
    """Batch statistics over all but the channels, then the layer's scale and shift."""
    dims = [0, 2, 3] if x.dim() == 4 else [0]
    shape = [1, -1, 1, 1] if x.dim() == 4 else [1, -1]
    x = (x - x.mean(dims, keepdim=True)) / (x.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return x * layer.weight.view(shape) + layer.bias.view(shape)


def dgl(kind: str, net: nn.Module, x: Tensor) -> Tensor:
    """auxiliary_nets_study: unless cnn, pool to ceil(side / 4); 0, 3 or 2 convolutions; pool to 2 x 2, whichever is
    larger; a BN of C channels if no MLP follows; flatten; 3 hidden layers or none."""
    layers, side = with_weights(net), x.shape[2]
    if kind != "cnn":
        x = F.adaptive_avg_pool2d(x, math.ceil(side / 4))
    for _ in range({"mlp": 0, "mlp-sr": 3, "cnn": 2}[kind]):
        x = F.conv2d(x, next(layers).weight, padding=1 if kind == "cnn" else 0)
        x = normed(next(layers), x).relu()
    x = F.adaptive_avg_pool2d(x, 2)
    x = (normed(next(layers), x) if kind == "cnn" else x).flatten(1)
    for _ in range(0 if kind == "cnn" else 3):
        linear = next(layers)
        x = normed(next(layers), x @ linear.weight.T + linear.bias).relu()
    linear = next(layers)
    return x @ linear.weight.T + linear.bias


@pytest.mark.parametrize("kind", DGL)
def test_heads_of_dgl(kind: str, parity: Parity) -> None:
    found = []
    for side in SIDES:
        torch.manual_seed(side)
        net, x = DGL[kind].build((6, side, side), 10).double(), torch.randn(9, 6, side, side, dtype=torch.float64)
        found.append(apart(net(x), dgl(kind, net, x)))
    parity.equal("DGL", f"logits of the {kind} head, maps of sides 1 to 32", max(found))


def test_parameters_of_the_mlp_sr_head_on_a_small_map(parity: Parity) -> None:
    """As many as in the peer's, also where the map is no larger than what it is pooled to."""
    c = 16
    theirs = 3 * (c * c + 2 * c) + 3 * (4 * c * 4 * c + 4 * c + 8 * c) + 4 * c * 10 + 10
    assert theirs == 14_378
    ours = sum(p.numel() for p in MLPSpatialReduction().build((c, 4, 4), 10).parameters())
    parity.equal("DGL", "parameters of the mlp-sr head for 16 x 4 x 4", abs(ours - theirs))


def local_loss_pool(x: Tensor, limit: int) -> Tensor:
    """Windows of a power of 2 per side, doubled in turn (height first) until at most `limit` numbers are left; a side
    that is not divided gets zeros, half of what is missing before and after; means over whole windows."""
    channels, side = x.shape[1:3]
    windows = [1, 1]
    left = [side, side]
    while channels * left[0] * left[1] > limit and windows[0] < side:
        for axis in (0, 1):
            if channels * left[0] * left[1] > limit:
                windows[axis] *= 2
                left[axis] = -(-side // windows[axis])
    zeros = [w * (n - side // w) // 2 for w, n in zip(windows, left, strict=True)]
    x = F.pad(x, (zeros[1], zeros[1], zeros[0], zeros[0]))
    rows = [x[:, :, i * windows[0] : (i + 1) * windows[0]].sum(2) for i in range(left[0])]
    cells = [
        torch.stack([row[:, :, j * windows[1] : (j + 1) * windows[1]].sum(2) for j in range(left[1])], 2)
        for row in rows
    ]
    return torch.stack(cells, 2) / math.prod(windows)


@pytest.mark.parametrize("limit", [64, 150, 1024])
def test_pool_before_the_local_loss_decoder(limit: int, parity: Parity) -> None:
    found = []
    for side in [*SIDES, 14, 28]:
        torch.manual_seed(side)
        net = Linear(features=limit).build((16, side, side), 10).double()
        x = torch.randn(5, 16, side, side, dtype=torch.float64)
        (layer,) = with_weights(net)
        found.append(apart(net(x), local_loss_pool(x, limit).flatten(1) @ layer.weight.T + layer.bias))
    parity.equal("local-loss", "logits of the pred decoder, maps of sides 1 to 32, odd ones too", max(found))


@pytest.mark.parametrize("name", ["0c1f", "0c2f", "1c1f", "1c2f", "1c3f", "2c2f"])
@pytest.mark.parametrize("channels", [16, 32, 64])
def test_heads_of_infopro(name: str, channels: int, parity: Parity) -> None:
    """On the maps of a CIFAR ResNet: strides 2, 2, 1 in the first convolution, which doubles channels but for 64."""
    torch.manual_seed(0)
    convolutions, linears, side = int(name[0]), int(name[2]), 512 // channels
    net = ConvFC(convolutions, linears).build((channels, side, side), 10).double()
    h = x = torch.randn(5, channels, side, side, dtype=torch.float64)
    layers = with_weights(net)
    for k in range(convolutions):
        weight = next(layers).weight
        assert weight.shape[0] == (64 if channels == 64 else 2 * channels)
        h = normed(next(layers), F.conv2d(h, weight, stride=2 if k == 0 and channels < 64 else 1, padding=1)).relu()
    h = h.mean((2, 3))
    for k in range(linears):
        linear = next(layers)
        h = h @ linear.weight.T + linear.bias
        assert k == linears - 1 or h.shape[1] == 128
        h = h.relu() if k < linears - 1 else h
    assert next(layers, None) is None
    parity.equal("InfoPro", "logits of the heads 0c1f to 2c2f", apart(net(x), h))


def cells(side: int) -> Tensor:
    """[8, side]: which positions of a side the cells of the pool are means over, also where it enlarges."""
    at = torch.arange(side)
    low = [i * side // 8 for i in range(8)]
    high = [-(-(i + 1) * side // 8) for i in range(8)]
    rows = torch.stack([(at >= a) & (at < b) for a, b in zip(low, high, strict=True)]).double()
    return rows / rows.sum(1, keepdim=True)


def test_head_of_man_plus_plus(parity: Parity) -> None:
    """auxDGL: pool to 8 x 8, three 1x1 convolutions, the mean over space, three hidden layers and the last one."""
    found = []
    for side in SIDES:
        torch.manual_seed(side)
        net, x = PointwiseMLP().build((6, side, side), 10).double(), torch.randn(9, 6, side, side, dtype=torch.float64)
        layers = with_weights(net)
        h = torch.einsum("ih,bchw,jw->bcij", cells(side), x, cells(side))
        for _ in range(3):
            h = torch.einsum("oc,bcij->boij", next(layers).weight[:, :, 0, 0], h)
            h = normed(next(layers), h).relu()
        h = h.mean((2, 3))
        for _ in range(3):
            linear = next(layers)
            h = normed(next(layers), h @ linear.weight.T + linear.bias).relu()
        linear = next(layers)
        found.append(apart(net(x), h @ linear.weight.T + linear.bias))
    parity.equal("MAN++", "logits of the head, maps of sides 1 to 32", max(found))


def between_corners(x: Tensor, side: int) -> Tensor:
    """Bilinear enlargement in which the outermost positions keep their numbers."""
    for dim in (2, 3):
        last = x.shape[dim] - 1
        at = torch.arange(side, dtype=x.dtype) * last / (side - 1)
        low = at.floor().long().clamp(max=last)
        share = (at - low).view([-1 if d == dim else 1 for d in range(4)])
        high = (low + 1).clamp(max=last)
        x = x.index_select(dim, low) * (1 - share) + x.index_select(dim, high) * share
    return x


@pytest.mark.parametrize("side", [16, 8, 5])
def test_decoder_of_infopro(side: int, parity: Parity) -> None:
    torch.manual_seed(side)
    net: nn.Module = Decoder().build((7, side, side), (3, 32, 32)).double()
    x = torch.randn(4, 7, side, side, dtype=torch.float64)
    first, norm, last = with_weights(net)
    h = F.conv2d(between_corners(x, 32), first.weight, first.bias, padding=1)
    theirs = F.conv2d(normed(norm, h).relu(), last.weight, last.bias, padding=1)
    parity.equal("InfoPro", "decoder, before its sigmoid", apart(net(x), theirs))
