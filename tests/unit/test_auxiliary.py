"""Auxiliary networks and local losses, layer by layer against the papers' descriptions."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from torch import nn

from locallearn.auxiliary import CNN, MLP, ConvFC, Decoder, Linear, MLPSpatialReduction, PointwiseMLP, Projector
from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.contract import BlockSpec, Packet
from locallearn.errors import UserError
from locallearn.objectives import CrossEntropy, PredSim, Similarity
from locallearn.objectives.similarity import SimilarityProjection, similarity_matrix

SIZES = [(8, 16, 16), (8, 5, 7), (512, 1, 1), (3, 2, 2), (20,), (5, 12)]
RECIPES = [Linear(), Linear(64, True), MLP(), MLPSpatialReduction(), CNN(), ConvFC(), Projector(), Projector(6)]


def kinds(module: nn.Module) -> list[str]:
    return [type(m).__name__ for m in module.modules() if not list(m.children())]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_built_from_any_shape(recipe, size):
    net = recipe.build(size, 7)
    assert net(torch.randn(4, *size)).shape == (4, 7)


@pytest.mark.parametrize(
    "name", sorted({*choices("auxiliary")} - {"auglocal", "detect"})
)  # made of units, and for boxes
def test_every_yaml_builds_for_every_shape(name):
    recipe = instantiate(yaml.safe_load(choices("auxiliary")[name].read_text()), "auxiliary", [])
    axes = {"transformer": {2}, "pointwise_mlp": {3}}.get(name, {1, 2, 3})
    for size in [size for size in SIZES if len(size) in axes]:
        assert recipe.build(size, 7)(torch.randn(4, *size)).shape == (4, 7)


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_a_sequence_counts_as_its_mean(recipe):
    """A head on [20, 128] is as wide as one on [128], not 2560, and reads the same."""
    torch.manual_seed(0)
    sequence = recipe.build((20, 128), 7).eval()
    torch.manual_seed(0)
    vector = recipe.build((128,), 7).eval()
    h = torch.randn(4, 20, 128)
    assert [p.shape for p in sequence.parameters()] == [p.shape for p in vector.parameters()]
    assert torch.equal(sequence(h), vector(h.mean(1)))


@pytest.mark.parametrize(
    ("size", "channels", "stride"),
    [((16, 32, 32), 32, 2), ((32, 16, 16), 64, 2), ((64, 8, 8), 64, 1), ((64, 7, 9), 128, 2), ((6, 1, 1), 6, 1)],
)
def test_the_default_head_of_infopro_is_1c2f(size, channels, stride):
    """On a CIFAR ResNet: 16 -> 32 and 32 -> 64 with stride 2, 64 -> 64 with stride 1; then 128 features."""
    net = ConvFC().build(size, 10)
    body = ["Conv2d", "BatchNorm2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Linear"]
    assert kinds(net) == body
    conv, first, second = net[0], net[5], net[7]
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.bias) == (size[0], channels, (3, 3), None)
    assert conv.stride == (stride, stride)
    assert (first.in_features, first.out_features, second.in_features, second.out_features) == (channels, 128, 128, 10)
    assert net[3](net[0](torch.zeros(1, *size))).shape == (1, channels, 1, 1)


def test_projector_is_simclrs():
    net = Projector().build((8, 5, 5), 128)
    assert kinds(net) == ["AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Linear"]
    assert [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)] == [(8, 8), (8, 128)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image", [(3, 32, 32), (1, 9, 13), (30,), (6, 11)])
def test_decoders_reach_the_input_from_any_shape(size, image):
    assert Decoder().build(size, image)(torch.randn(2, *size)).shape == (2, *image)


def test_the_decoder_is_infopros():
    """Upsampling, 3x3 conv -> 12, BN, ReLU, 3x3 conv -> 3; the first convolution already sees the image's size."""
    net = Decoder().build((16, 8, 8), (3, 32, 32))
    assert kinds(net) == ["Upsample", "Conv2d", "BatchNorm2d", "ReLU", "Conv2d"]
    assert [(m.in_channels, m.out_channels) for m in net if isinstance(m, nn.Conv2d)] == [(16, 12), (12, 3)]
    h = torch.randn(1, 16, 8, 8)
    assert torch.equal(net[0](h), nn.functional.interpolate(h, (32, 32), mode="bilinear", align_corners=True))


def test_a_decoder_of_a_sequence_is_not_as_wide_as_all_its_steps():
    sequence = Decoder().build((65, 192), (3, 32, 32))
    assert max(p.numel() for p in sequence.parameters()) == 65 * 12 * 12 * 8 * 8


def test_mlp_sr_is_the_papers():
    """C x s x s -> ceil(s/4), three 1x1 convolutions, 2 x 2, three hidden layers of 4C, classes."""
    net = MLPSpatialReduction().build((64, 18, 18), 10)
    conv = ["Conv2d", "BatchNorm2d", "ReLU"] * 3
    dense = ["Linear", "BatchNorm1d", "ReLU"] * 3
    assert kinds(net) == ["AdaptiveAvgPool2d", *conv, "AdaptiveAvgPool2d", "Flatten", *dense, "Linear"]
    assert net[0](torch.zeros(1, 64, 18, 18)).shape[2:] == (5, 5)
    assert all(m.bias is None for m in net if isinstance(m, nn.Conv2d))
    linears = [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)]
    assert linears == [(256, 256)] * 3 + [(256, 10)]
    c = 64
    expected = 3 * (c * c + 2 * c) + 3 * ((4 * c) ** 2 + 4 * c + 2 * 4 * c) + 4 * c * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize(("channels", "count"), [(16, 635_146), (32, 637_194), (64, 641_290)])
def test_the_head_of_man_plus_plus_is_the_papers(channels, count):
    """C x s x s -> 8 x 8, three 1x1 convolutions to 128, the mean over space, three hidden layers of 512, classes."""
    net = PointwiseMLP().build((channels, 32, 32), 10)
    conv, dense = ["Conv2d", "BatchNorm2d", "ReLU"] * 3, ["Linear", "BatchNorm1d", "ReLU"] * 3
    found = [kind for kind in kinds(net) if kind != "Flatten"]
    assert found == ["AdaptiveAvgPool2d", *conv, "AdaptiveAvgPool2d", *dense, "Linear"]
    by_hand = channels * 128 + 2 * 128 * 128 + 3 * 2 * 128
    by_hand += 128 * 512 + 2 * 512 * 512 + 3 * 512 + 3 * 2 * 512 + 512 * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == by_hand == count


@pytest.mark.parametrize("size", [(20,), (5, 12), (4, 3, 8, 8)])
def test_the_head_of_man_plus_plus_needs_maps(size):
    with pytest.raises(UserError, match=r"convolves maps \[C, H, W\], but here it would read \[.+\]: choose a conv"):
        PointwiseMLP().build(size, 10)


def test_mlp_and_cnn_are_the_papers():
    assert kinds(MLP().build((8, 6, 6), 10))[:3] == ["AdaptiveAvgPool2d", "AdaptiveAvgPool2d", "Flatten"]
    cnn = CNN().build((8, 6, 6), 10)
    conv = ["Conv2d", "BatchNorm2d", "ReLU"] * 2
    assert kinds(cnn) == [*conv, "AdaptiveAvgPool2d", "BatchNorm2d", "Flatten", "Linear"]
    assert cnn[:6](torch.zeros(1, 8, 6, 6)).shape == (1, 8, 6, 6), "at full resolution"


@pytest.mark.parametrize("side", [1, 2, 3, 4, 5])
def test_dgls_heads_are_as_wide_on_small_maps(side):
    """As in the paper's code, the last pool enlarges: 4C features reach the hidden layers whatever the map."""
    for recipe in (MLP(), MLPSpatialReduction(), CNN()):
        first = next(m for m in recipe.build((6, side, side), 10).modules() if isinstance(m, nn.Linear))
        assert first.in_features == 24


def test_a_head_without_batch_norm_learns_from_one_sample():
    net = MLPSpatialReduction(batch_norm=False).build((6, 8, 8), 10)
    assert not any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules())
    nn.functional.cross_entropy(net(torch.randn(1, 6, 8, 8)), torch.tensor([3])).backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("convolutions", "layers", "convs", "linears"),
    [
        (0, 1, [], [(16, 10)]),
        (1, 3, [(16, 32, 2)], [(32, 9), (9, 9), (9, 10)]),
        (2, 2, [(16, 32, 2), (32, 32, 1)], [(32, 9), (9, 10)]),
    ],
)
def test_heads_of_infopro_by_numbers(convolutions, layers, convs, linears):
    net = ConvFC(convolutions, layers, width=9).build((16, 32, 32), 10)
    found = [(m.in_channels, m.out_channels, m.stride[0]) for m in net if isinstance(m, nn.Conv2d)]
    assert found == convs
    assert [(m.in_features, m.out_features) for m in net if isinstance(m, nn.Linear)] == linears


def test_pooled_linear_keeps_at_most_so_many_features_and_starts_at_zero():
    net = Linear(features=2048, zero_init=True).build((128, 16, 16), 10)
    linear = net[-1]
    assert linear.in_features == 128 * 4 * 4
    assert not linear.weight.any()
    h = torch.randn(3, 128, 16, 16, requires_grad=True)
    nn.functional.cross_entropy(net(h), torch.tensor([0, 1, 2])).backward()
    assert not h.grad.any(), "the first gradient into the block is zero"


def test_options_are_checked():
    with pytest.raises(UserError, match=r"auxiliary\.layers=-1"):
        MLP(layers=-1)
    with pytest.raises(UserError, match=r"auxiliary\.width=0"):
        ConvFC(width=0)
    with pytest.raises(UserError, match=r"objective\.beta=2"):
        PredSim(beta=2.0)


def spec(size=(8, 4, 4), classes=3) -> BlockSpec:
    return BlockSpec(0, 4, (3, 8, 8), (3, 8, 8), size, classes)


def test_similarity_matrix_facts():
    x = torch.randn(6, 9, dtype=torch.float64)
    r = similarity_matrix(x)
    assert torch.allclose(r, r.T)
    assert torch.allclose(r.diagonal(), torch.ones(6, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(r, similarity_matrix(3 * x + 5), atol=1e-6), "shift and scale of a sample do not matter"
    assert torch.allclose(r, torch.corrcoef(x), atol=1e-6)


def test_similarity_of_labels_is_one_or_minus_one_over_classes_minus_one():
    """Centred one-hot vectors of N classes: 1 within a class, -1 / (N - 1) between two."""
    y = torch.tensor([0, 0, 1, 4])
    r = similarity_matrix(torch.eye(5, dtype=torch.float64)[y])
    same = y[:, None] == y[None]
    assert torch.allclose(r[same], torch.ones(int(same.sum()), dtype=torch.float64), atol=1e-6)
    assert torch.allclose(r[~same], torch.full((int((~same).sum()),), -1 / 4, dtype=torch.float64), atol=1e-6)


def test_similarity_loss_of_perfect_features_is_zero():
    """A vector block whose output is the one-hot label, seen through an identity projection."""
    modules = Similarity().modules(spec((5,), 5), Linear())
    nn.init.eye_(modules["similarity"].layer.weight)
    y = torch.tensor([0, 1, 1, 3])
    h = torch.eye(5)[y]
    loss, logits = Similarity().loss(spec((5,), 5), modules, h, Packet(h, y))
    assert loss.item() < 1e-9
    assert logits is None


def test_constant_maps_have_finite_gradients():
    h = torch.ones(4, 8, 4, 4, requires_grad=True)
    projection = SimilarityProjection((8, 4, 4))
    nn.init.zeros_(projection.layer.weight)
    loss, _ = Similarity().loss(spec(), {"similarity": projection}, h, Packet(h, torch.tensor([0, 1, 2, 0])))
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(h.grad).all()
    assert torch.isfinite(projection.layer.weight.grad).all()


def test_predsim_mixes_prediction_and_similarity():
    h, y = torch.randn(6, 8, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    modules = PredSim().modules(spec(), Linear())
    pred, _ = CrossEntropy().loss(spec(), modules, h, Packet(h, y))
    sim, _ = Similarity().loss(spec(), modules, h, Packet(h, y))
    mixed, logits = PredSim(beta=0.9).loss(spec(), modules, h, Packet(h, y))
    assert torch.allclose(mixed, 0.1 * pred + 0.9 * sim)
    assert torch.equal(logits, modules["classifier"](h))
    assert torch.equal(PredSim(beta=0.0).loss(spec(), modules, h, Packet(h, y))[0], pred)
