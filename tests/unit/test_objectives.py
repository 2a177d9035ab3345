"""Local losses against formulas written out by hand, and what every one of them must survive."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import math

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.distributions import Normal
from torch.nn import functional as F

from helpers.nets import assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.objectives import FILES, make
from locallearn.auxiliary import MLP, Linear, Projector
from locallearn.config.compose import header
from locallearn.contract import BlockSpec, Packet
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models.plain import mlp
from locallearn.objectives import (
    CPC,
    VIB,
    CrossEntropy,
    InfoNCE,
    InfoPro,
    InformationDropout,
    Inpainting,
    Masked,
    Objective,
    PredSim,
    Reconstruction,
    SimCLR,
    Similarity,
    SupCon,
)
from locallearn.objectives.contrastive import contrast
from locallearn.objectives.infonce import info_nce
from locallearn.objectives.reconstruction import Reconstructor
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.greedy import DGL
from locallearn.strategies.infomax import Infomax

MAPS, VECTOR, SEQUENCE = (8, 4, 4), (20,), (5, 12)
PIXELS = ((-1.0, -2.0, -0.5), (1.0, 3.0, 1.5))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def spec(emits=MAPS, image=(3, 8, 8), index=0, depth=4, pixels=PIXELS) -> BlockSpec:
    return BlockSpec(index, depth, image, image, emits, 3, pixels=pixels)


@pytest.fixture(params=sorted(FILES))
def objective(request) -> Objective:
    """Every yaml's objective with its defaults."""
    return make(request.param)


def modules_of(objective: Objective, block: BlockSpec, auxiliary=None) -> nn.ModuleDict:
    torch.manual_seed(3)
    return nn.ModuleDict(objective.modules(block, auxiliary or MLP(layers=1, width=16)))


# --- contrast ---------------------------------------------------------------------------------------------------------


def contrast_by_hand(z: np.ndarray, y: list[int], temperature: float) -> float:
    """Equation 2 of Khosla et al. 2020, pair by pair; samples with negative labels do not exist."""
    z = z / np.linalg.norm(z, axis=1, keepdims=True)
    there = [i for i in range(len(y)) if y[i] >= 0]
    losses = []
    for i in there:
        positives = [p for p in there if p != i and y[p] == y[i]]
        if not positives:
            continue
        total = sum(math.exp(z[i] @ z[a] / temperature) for a in there if a != i)
        losses.append(-np.mean([math.log(math.exp(z[i] @ z[p] / temperature) / total) for p in positives]))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    "y", [[0, 0, 1, 1, 1, 0], [0, 0, 1, 2, 2, 5], [0, -100, 0, 1, -1, 1], [4, 4, -100, 1, 2, -100]]
)
def test_supcon_pair_by_pair(y):
    z = torch.randn(6, 5, dtype=torch.float64)
    modules = {"projection": nn.Identity()}
    loss, logits = SupCon(temperature=0.3).loss(spec(), modules, z, Packet(z, torch.tensor(y)))
    assert logits is None
    assert loss.item() == pytest.approx(contrast_by_hand(z.numpy(), y, 0.3), rel=1e-12)


@pytest.mark.parametrize("y", [[0, 1, 2, 3], [-100, -100, 0, 1], [-100] * 4])
def test_supcon_without_a_pair_is_zero_and_has_a_graph(y):
    z = torch.randn(4, 5, requires_grad=True)
    loss = contrast(z, torch.tensor(y), 0.07)
    loss.backward()
    assert loss.item() == 0
    assert not z.grad.any()


def test_supcon_of_a_hundred_equal_and_a_hundred_opposite_pairs():
    """Two tight clusters, t -> 0: an anchor tells its 99 positives from the others, but not from each other: log 99."""
    z = torch.cat([torch.ones(100, 3), -torch.ones(100, 3)])
    y = torch.arange(2).repeat_interleave(100)
    assert contrast(z, y, 0.01).item() == pytest.approx(math.log(99), rel=1e-5)


def test_simclr_is_nt_xent_of_the_two_halves():
    """Chen et al. 2020, equation 1: one positive, 2B - 2 negatives, each view an anchor. Labels are not read."""
    z, temperature = torch.randn(8, 5, dtype=torch.float64), 0.5
    unit = (z / z.norm(dim=1, keepdim=True)).numpy()
    losses = []
    for i in range(8):
        j = (i + 4) % 8
        s = [math.exp(unit[i] @ unit[k] / temperature) for k in range(8)]
        losses.append(-math.log(s[j] / (sum(s) - s[i])))
    for y in (torch.zeros(8, dtype=torch.int64), torch.full((8,), -100)):
        loss, _ = SimCLR(temperature=temperature).loss(spec(), {"projection": nn.Identity()}, z, Packet(z, y))
        assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_views_of_one_image_are_half_a_batch_apart():
    x, y = torch.randn(5, 3, 8, 8), torch.arange(5)
    whole = SimCLR(crop=1.0, flip=False, jitter=0.0).begin(Packet(x, y))
    assert torch.allclose(whole.h, torch.cat([x, x]), atol=1e-5), "nothing is cropped, mirrored or jittered"
    assert torch.equal(whole.y, torch.cat([y, y]))
    packet = SimCLR().begin(Packet(x, y))
    assert packet.h.shape == (10, 3, 8, 8)
    assert not torch.allclose(packet.h[:5], packet.h[5:], atol=1e-2)


def test_views_are_mirrored_half_of_the_time_and_grey_ones_never():
    x = torch.randn(200, 3, 4, 4, dtype=torch.float64)
    views = SimCLR(crop=1.0, jitter=0.0).begin(Packet(x, torch.zeros(200))).h
    twice = torch.cat([x, x])
    same = (views - twice).abs().amax((1, 2, 3)) < 1e-6
    mirrored = (views - twice.flip(3)).abs().amax((1, 2, 3)) < 1e-6
    assert (same ^ mirrored).all()
    assert 140 < mirrored.sum() < 260
    assert (mirrored[:200] != mirrored[200:]).any(), "the two views have draws of their own"
    grey = x[:, :1]
    assert torch.allclose(SimCLR(crop=1.0, jitter=0.0).view(grey), grey, atol=1e-6)


def test_views_show_a_window_of_the_image():
    """On a ramp the view is a ramp from the window's left to its right: at least half the side, inside the image."""
    ramp = torch.linspace(-1, 1, 64, dtype=torch.float64).expand(2000, 1, 6, 64)
    view = SimCLR(crop=0.25, jitter=0.0).view(ramp)
    left, right = view[:, 0, 5, 0], view[:, 0, 5, -1]
    width = (right - left) / 2
    assert (view.diff(dim=3) >= 0).all()
    assert 0.45 < width.min() < 0.55
    assert width.max() > 0.95
    assert width.square().mean() == pytest.approx((0.25 + 1) / 2, abs=0.05), "the area is uniform from `crop` to 1"
    assert left.min() < -0.95
    assert left.max() > -0.2


def test_jitter_is_a_contrast_and_a_brightness_per_image():
    x = torch.randn(100, 1, 4, 4, dtype=torch.float64)
    view = SimCLR(crop=1.0, jitter=0.4).view(x)
    a = torch.stack([torch.ones_like(x).flatten(1), x.flatten(1)], dim=2)  # [100, 16, 2]
    fit = torch.linalg.lstsq(a, view.flatten(1)[..., None]).solution[..., 0]
    assert torch.allclose((a @ fit[..., None])[..., 0], view.flatten(1), atol=1e-5), "an affine map of each image"
    brightness, scale = fit.T
    assert 0.3 < brightness.abs().max() <= 0.4 + 1e-6
    assert 0.3 < (scale - 1).abs().max() <= 0.4 + 1e-6


# --- InfoNCE ----------------------------------------------------------------------------------------------------------


def test_infonce_with_zero_scores_is_log_17():
    modules = modules_of(InfoNCE(), spec((4, 7, 7)))
    for layer in modules["predictions"].layers:
        nn.init.zeros_(layer.weight)
    loss, logits = InfoNCE().loss(
        spec((4, 7, 7)), modules, torch.randn(3, 4, 7, 7), Packet(torch.empty(0), torch.empty(0))
    )
    assert logits is None
    assert loss.item() == pytest.approx(math.log(17), rel=1e-6)


@pytest.mark.parametrize(
    ("size", "steps", "distances"),
    [
        ((4, 7, 7), 5, [2, 3, 4, 5, 6]),
        ((4, 32, 32), 5, [2, 3, 4, 5, 6]),
        ((4, 4, 4), 5, [2, 3]),
        ((4, 3, 9), 5, [2]),
        ((4, 2, 2), 5, [1]),
        ((4, 7, 7), 2, [2, 3]),
    ],
)
def test_infonce_predicts_as_many_rows_as_there_are(size, steps, distances):
    predictions = InfoNCE(steps=steps).modules(spec(size), Linear())["predictions"]
    assert list(predictions.distances) == distances
    assert [tuple(layer.weight.shape) for layer in predictions.layers] == [(4, 4, 1, 1)] * len(distances)
    assert all(layer.bias is None for layer in predictions.layers)


def test_info_nce_by_hand():
    c, p, n = (torch.randn(*s, dtype=torch.float64) for s in ((3, 4), (3, 4), (3, 2, 4)))
    losses = []
    for m in range(3):
        scores = np.exp([float(c[m] @ p[m]), *(float(c[m] @ n[m, j]) for j in range(2))])
        losses.append(-math.log(scores[0] / scores.sum()))
    assert info_nce(c, p, n).item() == pytest.approx(np.mean(losses), rel=1e-12)


@pytest.mark.parametrize("same_position", [True, False])
def test_infonce_position_by_position(same_position):
    """The whole loss in loops over images, rows and columns, with the same draws: of an image for the positive's own
    position, or of one of all 3 * 5 * 2 vectors."""
    h = torch.randn(3, 4, 5, 2, dtype=torch.float64)
    objective = InfoNCE(steps=2, negatives=6, same_position=same_position)
    modules = modules_of(objective, spec((4, 5, 2))).double()
    torch.manual_seed(9)
    loss, _ = objective.loss(spec(), modules, h, Packet(h, torch.full((3,), -100)))
    torch.manual_seed(9)
    means = []
    for k, layer in zip((2, 3), modules["predictions"].layers, strict=True):
        w, losses, at = layer.weight[:, :, 0, 0].detach(), [], 0
        drawn = torch.randint(3 if same_position else 3 * 5 * 2, (3 * (5 - k) * 2, 6)).tolist()
        for b in range(3):
            for i in range(5 - k):
                for j in range(2):
                    c = w @ h[b, :, i, j]
                    scores = [c @ h[b, :, i + k, j]]
                    for d in drawn[at]:
                        image, r, s = (d, i + k, j) if same_position else (d // 10, d // 2 % 5, d % 2)
                        scores.append(c @ h[image, :, r, s])
                    losses.append(-torch.stack(scores).log_softmax(0)[0].item())
                    at += 1
        means.append(np.mean(losses))
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-12)


# --- CPC --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "side", "grid"),
    [
        ((64, 64), 16, (7, 7)), ((32, 32), 8, (7, 7)), ((28, 28), 8, (6, 6)), ((24, 24), 6, (7, 7)),
        ((8, 8), 2, (7, 7)), ((64, 96), 16, (7, 11)), ((96, 96), 24, (7, 7)), ((33, 34), 8, (7, 7)),
    ],
)  # fmt: skip
def test_patches_of_cpc_overlap_by_half(size, side, grid):
    objective = CPC()
    x = torch.randn(3, 2, *size)
    packet = objective.begin(Packet(x, torch.tensor([5, -1, 7])))
    assert objective.grid((2, *size)) == grid
    assert packet.h.shape == (3 * grid[0] * grid[1], 2, side, side)
    n = 0
    for image, label in zip(x, (5, -1, 7), strict=True):
        for r in range(grid[0]):
            for c in range(grid[1]):
                top, left = r * side // 2, c * side // 2
                assert torch.equal(packet.h[n], image[:, top : top + side, left : left + side])
                assert packet.y[n] == label
                n += 1
    block = spec((4, size[0] // 2, size[1] // 2), image=(2, *size))
    vectors = objective.vectors(block, packet.h)
    assert torch.equal(vectors[1, :, 2, 3], packet.h[grid[0] * grid[1] + 2 * grid[1] + 3].mean((1, 2)))


@pytest.mark.parametrize("layers", [0, 1, 4])
def test_the_context_of_cpc_sees_no_row_below(layers):
    """dc[row i] / dz[row > i] is 0 to the bit; row i and those above it count, as far as the layers reach."""
    torch.manual_seed(1)
    context = CPC(layers=layers).modules(spec((3, 4, 4)), Linear())["context"].double()
    z = torch.randn(2, 3, 7, 7, dtype=torch.float64, requires_grad=True)
    for row in range(7):
        (g,) = torch.autograd.grad(context(z)[:, :, row].square().sum(), z)
        assert not g[:, :, row + 1 :].any()
        reached = g.abs().sum((0, 1, 3)) > 0
        assert reached.tolist() == [row - layers <= r <= row for r in range(7)]


def cpc_loss(images: int = 3, zero: bool = False, **options) -> tuple[CPC, nn.ModuleDict, torch.Tensor, torch.Tensor]:
    """An objective, its modules, h of random patches, and the loss."""
    objective, block = CPC(**options), spec((4, 4, 4))
    modules = modules_of(objective, block).double()
    if zero:
        for layer in modules["predictions"].layers:
            nn.init.zeros_(layer.weight)
    h = torch.randn(images * 49, 4, 1, 1, dtype=torch.float64)
    torch.manual_seed(9)
    return objective, modules, h, objective.loss(block, modules, h, Packet(h, torch.zeros(len(h))))[0]


def test_cpc_with_zero_scores_is_log_17():
    *_, loss = cpc_loss(zero=True)
    assert loss.item() == pytest.approx(math.log(17), rel=1e-12)


def test_cpc_position_by_position():
    """In loops over images, rows and columns: the context at row i against row i + 1 + k, with the same draws from all
    patches of the batch."""
    _, modules, h, loss = cpc_loss(steps=3, negatives=5)
    z = h.view(3, 7, 7, 4)
    c = modules["context"](z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach()
    every = h.view(-1, 4)
    torch.manual_seed(9)
    means = []
    for k, layer in enumerate(modules["predictions"].layers, start=1):
        w, losses, at = layer.weight[:, :, 0, 0].detach(), [], 0
        drawn = torch.randint(3 * 49, (3 * (6 - k) * 7, 5)).tolist()
        for b in range(3):
            for i in range(6 - k):
                for j in range(7):
                    score = [(w @ c[b, i, j]) @ other for other in (z[b, i + 1 + k, j], *every[drawn[at]])]
                    losses.append(-torch.stack(score).log_softmax(0)[0].item())
                    at += 1
        means.append(np.mean(losses))
    assert len(means) == 3
    assert loss.item() == pytest.approx(np.mean(means), rel=1e-12)


def test_cpc_never_says_more_than_the_bound():
    """z of a patch is one of 4 codes, the same for all patches of an image: I(c; z) = log 4, and log 17 - loss stays
    below it however well it learns (over the noise of a batch), but comes near."""
    torch.manual_seed(0)
    block, objective = spec((4, 4, 4)), CPC(layers=0, steps=2)
    modules = modules_of(objective, block)
    optimizer = torch.optim.Adam(modules.parameters(), lr=0.3)
    gains = []
    for step in range(120):
        code = torch.arange(40) % 4
        h = F.one_hot(code, 4).float().repeat_interleave(49, 0)[..., None, None]
        loss, _ = objective.loss(block, modules, h, Packet(h, code))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step >= 100:
            gains.append(math.log(17) - loss.item())
    assert math.log(4) - 0.15 < np.mean(gains) < math.log(4) + 0.02


def test_the_head_of_cpc_reads_all_patches_as_one_map():
    """Under DGL with one block: the head learns from the map of the patches' vectors, by whole-graph autograd."""
    x, y = tiny_batches(1)[0]
    learner = tiny_learner(DGL(objective=CPC(), auxiliary=Linear()), blocks=1, optim=SGD(lr=1.0, momentum=0.0))
    before = copy.deepcopy(learner.model)
    learner.step(x, y)
    patches = CPC().begin(Packet(x, y)).h
    model = before.train()
    h = model.units[3](model.units[2](model.units[1](model.units[0](patches))))
    grid = F.adaptive_avg_pool2d(h.mean((2, 3)).view(8, 5, 5, -1).permute(0, 3, 1, 2), (6, 6))
    F.cross_entropy(model.head(grid.detach()), y).backward()
    head = model.head[2]
    assert torch.allclose(learner.model.head[2].weight, head.weight - head.weight.grad, atol=1e-12)


@pytest.mark.parametrize(
    ("options", "image", "emits", "said"),
    [
        ({"patch": 3}, (3, 8, 8), MAPS, r"objective\.patch=3: must be an even number of at most 4"),
        ({"patch": 6}, (3, 8, 8), MAPS, "at most 4 for images of 8 x 8"),
        ({}, (3, 2, 2), MAPS, "at most 0"),
        ({}, (3, 32, 32), (8, 2, 2), "block 0 makes .* model=allcnn"),
        ({}, (3, 32, 32), (20,), "block 0 makes"),
    ],
)
def test_what_cannot_be_cut_into_patches(options, image, emits, said):
    with pytest.raises(UserError, match=said):
        CPC(**options).modules(spec(emits, image=image), Linear())


# --- reconstruction ---------------------------------------------------------------------------------------------------


class Says(nn.Module):
    """A decoder that always says the same."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image = image

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.image


def test_reconstruction_is_binary_cross_entropy_against_unnormalised_pixels():
    """Pixels p in [0, 1] as the data set normalises them, black + p * (white - black); a decoder with known logits."""
    p, logits = np.random.default_rng(0).random((2, 3, 8, 8)), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    black, white = (np.array(x)[:, None, None] for x in PIXELS)
    image = torch.tensor(black + p * (white - black))
    reconstructor = Reconstructor(spec()).double()
    reconstructor.decoder = Says(logits)
    q = 1 / (1 + np.exp(-logits.numpy()))
    expected = -(p * np.log(q) + (1 - p) * np.log(1 - q)).mean()
    loss, _ = Reconstruction().loss(spec(), {"decoder": reconstructor}, image, Packet(image, torch.zeros(2), (image,)))
    assert loss.item() == pytest.approx(expected, rel=1e-6), "black and white are kept in float32"


def test_reconstruction_of_what_are_no_pixels_is_the_mean_squared_error():
    image, said = torch.randn(2, 3, 8, 8, dtype=torch.float64), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    reconstructor = Reconstructor(spec(pixels=None))
    reconstructor.decoder = Says(said)
    assert reconstructor.loss(image, image).item() == pytest.approx(((image - said) ** 2).mean().item(), rel=1e-12)


def test_nothing_flows_into_the_target():
    image = torch.randn(2, 3, 8, 8, requires_grad=True)
    h = torch.randn(2, *MAPS, requires_grad=True)
    Reconstructor(spec()).loss(h, image).backward()
    assert image.grad is None
    assert h.grad.any()


@pytest.mark.parametrize("mask", [0.25, 0.5, 1.0])
def test_inpainting_hides_a_square_and_reads_nothing_else(mask):
    x = torch.randn(40, 3, 8, 8)
    objective = Inpainting(mask=mask)
    packet = objective.begin(Packet(x, torch.full((40,), -100)))
    image, hidden = packet.side
    assert torch.equal(image, x)
    assert hidden.shape == (40, 1, 8, 8)
    side = round(8 * mask)
    rows, columns = hidden.any(3)[:, 0], hidden.any(2)[:, 0]
    assert (rows.sum(1) == side).all()
    assert torch.equal(hidden[:, 0], rows[:, :, None] & columns[:, None, :]), "a rectangle"
    assert mask == 1 or len({tuple(r) for r in rows.int().tolist()}) > 2, "images have draws of their own"
    assert not packet.h[hidden.expand_as(x)].any()
    assert torch.equal(packet.h[~hidden.expand_as(x)], x[~hidden.expand_as(x)])

    reconstructor = Reconstructor(spec())
    said = torch.randn(40, 3, 8, 8, requires_grad=True)
    reconstructor.decoder = Says(said)
    loss, _ = objective.loss(spec(), {"decoder": reconstructor}, x, packet)
    loss.backward()
    assert not said.grad[~hidden.expand_as(x)].any()
    assert said.grad[hidden.expand_as(x)].all()
    black, white = (torch.tensor(v)[:, None, None] for v in PIXELS)
    target = ((x - black) / (white - black)).clamp(0, 1)
    one_by_one = F.binary_cross_entropy(said.sigmoid(), target, reduction="none")[hidden.expand_as(x)].mean()
    assert loss.item() == pytest.approx(one_by_one.item(), rel=1e-5)


# --- masked patches ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "side", "of_16"), [(0.6, 2, 10), (0.75, 2, 12), (0.01, 2, 1), (0.99, 2, 15)])
def test_masked_hides_just_so_many_patches(share, side, of_16):
    x = torch.randn(60, 3, 8, 8)
    packet = Masked(hidden=share).begin(Packet(x, torch.full((60,), -100)))
    image, hidden = packet.side
    corners = hidden[:, 0, ::side, ::side]
    assert torch.equal(image, x)
    assert (corners.flatten(1).sum(1) == of_16).all()
    for row in range(8):
        for column in range(8):
            assert torch.equal(hidden[:, 0, row, column], corners[:, row // side, column // side]), "whole patches"
    assert torch.allclose(corners.double().mean(0), torch.tensor(of_16 / 16).double(), atol=0.25), "all of them"
    assert torch.equal(packet.h, torch.where(hidden, torch.zeros(()), x))


@pytest.mark.parametrize(
    ("size", "side"),
    [((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((96, 96), 12), ((24, 36), 2), ((2, 2), 1), ((7, 14), 7)],
)
def test_the_side_of_a_masked_patch(size, side):
    assert Masked().side((3, *size)) == side


def test_masked_loss_patch_by_patch():
    """In loops: each hidden patch against its pixels at mean 0 and variance 1. Nothing flows into the images, nor
    from what is seen."""
    x = torch.randn(3, 2, 6, 9, dtype=torch.float64, requires_grad=True)
    said = torch.randn(3, 2, 6, 9, dtype=torch.float64, requires_grad=True)
    objective = Masked(patch=3)
    packet = objective.begin(Packet(x, torch.zeros(3)))
    hidden = packet.side[1]
    block = spec((4, 2, 2), image=(2, 6, 9))
    reconstructor = modules_of(objective, block)["decoder"]
    reconstructor.decoder = Says(said)
    loss, logits = objective.loss(block, {"decoder": reconstructor}, x, packet)
    pixels, made, losses = x.detach().numpy(), said.detach().numpy(), []
    for i in range(3):
        for r in range(0, 6, 3):
            for c in range(0, 9, 3):
                if hidden[i, 0, r, c]:
                    patch = pixels[i, :, r : r + 3, c : c + 3]
                    wanted = (patch - patch.mean()) / np.sqrt(patch.var() + 1e-6)
                    losses.append(((made[i, :, r : r + 3, c : c + 3] - wanted) ** 2).mean())
    assert len(losses) == 3 * round(0.6 * 6)
    assert loss.item() == pytest.approx(np.mean(losses), rel=1e-12)
    assert logits is None
    loss.backward()
    assert x.grad is None
    assert not said.grad[~hidden.expand_as(x)].any()
    assert said.grad[hidden.expand_as(x)].all()


@pytest.mark.parametrize("normalise", [True, False])
def test_predicting_the_mean_of_a_patch_has_its_variance_as_loss(normalise):
    x = 5 + 3 * torch.randn(4, 3, 8, 8, dtype=torch.float64)
    objective = Masked(normalise=normalise)
    packet = objective.begin(Packet(x, torch.zeros(4)))
    means = F.interpolate(F.avg_pool2d(x.mean(1, keepdim=True), 2), scale_factor=2).expand_as(x)
    reconstructor = Reconstructor(spec())
    reconstructor.decoder = Says(torch.zeros_like(x) if normalise else means)
    loss, _ = objective.loss(spec(), {"decoder": reconstructor}, x, packet)
    spread = (x - means).square()[packet.side[1].expand_as(x)].mean()
    assert loss.item() == pytest.approx(1 if normalise else spread.item(), rel=1e-5)


def test_a_patch_of_one_colour_has_the_target_zero():
    x, objective = torch.full((2, 3, 8, 8), 0.7), Masked()
    packet = objective.begin(Packet(x, torch.zeros(2)))
    reconstructor = Reconstructor(spec())
    reconstructor.decoder = Says(torch.full_like(x, 2.0))
    assert objective.loss(spec(), {"decoder": reconstructor}, x, packet)[0].item() == pytest.approx(4, rel=1e-4)


def test_the_last_block_learns_from_a_share_of_the_true_loss():
    """Its gradient is that of its own loss and `task` times that of the label on the masked images, by whole-graph
    autograd; the head and the blocks below do not notice."""
    x, y = tiny_batches(1)[0]

    def step(task: float) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
        learner = tiny_learner(DGL(objective=Masked(task=task), auxiliary=Linear()), optim=SGD(lr=1.0, momentum=0.0))
        read: list[torch.Tensor] = []
        learner.model.units[0].register_forward_pre_hook(lambda module, args: read.append(args[0].detach().clone()))
        before = {n: p.detach().clone() for n, p in learner.parameters()}
        learner.step(x, y)
        return {n: before[n] - p.detach() for n, p in learner.parameters()}, read

    (none, read), (half, again) = step(0.0), step(0.5)
    assert torch.equal(read[0], again[0])
    assert (read[0] == 0).double().mean() == pytest.approx(round(0.6 * 9) / 9)
    model = tiny_model().double().train()
    F.cross_entropy(model(read[0]), y).backward()
    for n, p in model.named_parameters():
        share = 0.5 * p.grad if n.startswith("units.3.") else 0 * p.grad
        assert torch.allclose(half[f"model.{n}"] - none[f"model.{n}"], share, atol=1e-12), n
    assert all(torch.equal(none[n], half[n]) for n in none if not n.startswith("model.units.3."))


def test_who_learns_by_the_true_loss_anyhow_refuses_a_share_of_it():
    with pytest.raises(UserError, match=r"leave out objective\.task"):
        DeepSupervision(objective=Masked(task=0.5), auxiliary=Linear())
    DeepSupervision(objective=Masked(), auxiliary=Linear())


@pytest.mark.parametrize(
    ("options", "image", "said"),
    [
        ({"patch": 3}, (3, 8, 8), "does not divide images of 8 x 8 pixels into patches: choose 1 or 2 or 4"),
        ({"patch": 8}, (3, 8, 8), "choose 1 or 2 or 4"),
        ({}, (3, 1, 1), "one pixel"),
        ({}, (5, 12), r"the input is \[5, 12\]"),
    ],
)
def test_what_cannot_be_masked(options, image, said):
    with pytest.raises(UserError, match=said):
        Masked(**options).modules(spec(image=image), Linear())


@pytest.mark.parametrize("objective", [Inpainting(), Masked(), Masked(normalise=False)], ids=str)
@pytest.mark.parametrize("pixels", [PIXELS, None])
def test_what_is_filled_in_knows_nothing_of_what_is_hidden(objective, pixels):
    """The same whatever is hidden, and of a decoder that says it all, right: the image."""
    block = spec(pixels=pixels)
    x, h = torch.rand(4, 3, 8, 8) - 0.5, torch.randn(4, *MAPS)
    modules = modules_of(objective, block).eval()
    packet = objective.begin(Packet(x, torch.zeros(4)))
    hidden = packet.side[1]
    filled = objective.fill(modules, h, packet)
    other = torch.where(hidden, torch.randn_like(x), x)
    assert torch.equal(filled, objective.fill(modules, h, packet.at(h, other, hidden)))
    assert filled.shape == x.shape
    seen = [x[i][~hidden[i].expand(3, 8, 8)] for i in range(4)]
    mean = torch.stack([s.mean() for s in seen])[:, None, None, None]
    deviation = torch.stack([s.std(correction=0) for s in seen])[:, None, None, None]
    black, contrast = modules["decoder"].black, modules["decoder"].contrast
    right = (x - mean) / deviation if isinstance(objective, Masked) and objective.normalise else x
    if isinstance(objective, Inpainting) and pixels:
        right = ((x - black) / contrast).logit()
    modules["decoder"].decoder = Says(right)
    assert torch.allclose(objective.fill(modules, h, packet), x, atol=1e-5)


# --- InfoPro ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "expected"),
    [
        (2, [(5.0, 0.1)]),
        (3, [(5.0, 0.1), (1.0, 0.5)]),
        (5, [(5.0, 0.1), (11 / 3, 0.7 / 3), (7 / 3, 1.1 / 3), (1.0, 0.5)]),
    ],
)
def test_weights_of_infopro_go_linearly_from_the_first_local_block_to_the_last(depth, expected):
    objective = InfoPro(reconstruction_first=5.0, reconstruction_last=1.0, task_first=0.1, task_last=0.5)
    found = [objective.weights(k, depth) for k in range(depth - 1)]
    assert np.allclose(found, expected, rtol=1e-12)
    assert found[0] == (5.0, 0.1)
    assert depth == 2 or found[-1] == (1.0, 0.5)


@pytest.mark.parametrize("task", [CrossEntropy(), SupCon()])
def test_infopro_is_the_weighted_sum_of_its_parts(task):
    name = "supcon" if isinstance(task, SupCon) else "cross_entropy"
    objective = InfoPro(name, reconstruction_first=3.0, task_first=0.25)
    modules = modules_of(objective, spec()).eval()
    h, image, y = torch.randn(6, *MAPS), torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    packet = objective.begin(Packet(image, y)).at(h)
    loss, logits = objective.loss(spec(), modules, h, packet)
    expected = (
        3.0 * Reconstruction().loss(spec(), modules, h, packet)[0] + 0.25 * task.loss(spec(), modules, h, packet)[0]
    )
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (logits is None) == (name == "supcon") == (objective.predict(modules, h) is None)


def test_what_infopro_weighs_nothing_it_does_not_build():
    objective = InfoPro(reconstruction_first=1.0, task_first=0.0, reconstruction_last=0.0, task_last=1.0)
    first, last = modules_of(objective, spec(index=0)), modules_of(objective, spec(index=2))
    assert set(first) == {"decoder"}
    assert set(last) == {"classifier"}
    assert objective.predict(first, torch.randn(2, *MAPS)) is None


def test_infopro_without_reconstruction_is_dgl_bit_for_bit():
    alone = InfoPro(reconstruction_first=0.0, reconstruction_last=0.0, task_first=1.0, task_last=1.0)
    assert alone.begin(Packet(torch.randn(2, 3, 8, 8), torch.zeros(2))).side == ()
    ours = tiny_learner(DGL(objective=alone, auxiliary=MLP(layers=1)))
    theirs = tiny_learner(DGL(objective=CrossEntropy(), auxiliary=MLP(layers=1)))
    for x, y in tiny_batches(5):
        assert ours.step(x, y) == theirs.step(x, y)
    assert_same(ours.model, theirs.model)


# --- bottlenecks ------------------------------------------------------------------------------------------------------


def test_vib_charges_the_nats_of_its_code():
    objective = VIB(beta=0.5, features=4)
    modules = modules_of(objective, spec(VECTOR), Linear()).double()
    h, y = torch.randn(6, 20, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, -100])
    code = modules["classifier"]
    mean, log_variance = code.encoder(h).chunk(2, dim=1)
    normal = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    nats = torch.distributions.kl_divergence(normal, unit).sum(1).mean()
    modules.eval()
    loss, logits = objective.loss(spec(), modules, h, Packet(h, y))
    assert torch.allclose(logits, code.classifier(mean)), "no noise in eval mode"
    assert loss.item() == pytest.approx((F.cross_entropy(logits, y) + 0.5 * nats).item(), rel=1e-12)
    assert torch.equal(objective.predict(modules, h), logits)


def test_bottlenecks_record_their_bits():
    """Of a run: block/00/bits is the mean over the steps of the KL in bits by torch.distributions, taken from the code
    that each step has computed; of information dropout the sum of log2(alpha_max / alpha) over the numbers."""
    for objective, name in ((VIB(features=4), "bits"), (InformationDropout(alpha_max=0.6), "bits_relative")):
        learner = tiny_learner(DGL(objective=objective, auxiliary=Linear()), tiny_model(), blocks=2, total_steps=3)
        module = learner.blocks[0].auxiliary["classifier" if name == "bits" else "noise"]
        inner, expected = module.encoder if name == "bits" else module.layer, []

        def watch(_, args, output, name=name, expected=expected):
            if name == "bits":
                mean, log_variance = output.detach().double().chunk(2, dim=1)
                normal, unit = Normal(mean, (0.5 * log_variance).exp()), Normal(torch.zeros(4).double(), 1.0)
                expected.append(torch.distributions.kl_divergence(normal, unit).sum(1).mean().item() / math.log(2))
            else:
                expected.append(-output.detach().double().sigmoid().log2().flatten(1).sum(1).mean().item())

        inner.register_forward_hook(watch)
        for x, y in tiny_batches(3):
            learner.learn(x, y)
        numbers = learner.blocks[0].read()
        assert numbers[name] == pytest.approx(sum(expected) / 3, rel=1e-5)
        assert len(expected) == 3
        learner.evaluate([(x, y)])
        assert not module.readings, "an evaluation measures nothing"
        assert learner.blocks[0].read()[name] == numbers[name]


def test_the_code_of_vib_has_the_stated_mean_and_variance():
    objective = VIB(features=3)
    modules = modules_of(objective, spec(VECTOR), Linear()).double()
    h = torch.randn(1, 20, dtype=torch.float64)
    code = modules["classifier"]
    code.classifier = nn.Identity()
    mean, log_variance = code.encoder(h).chunk(2, dim=1)
    z, _ = code(h.expand(40000, 20))
    assert torch.allclose(z.mean(0), mean[0], atol=0.03)
    assert torch.allclose(z.var(0).log(), log_variance[0], atol=0.05)


def test_information_dropout_by_its_definition():
    """z = h * exp(alpha * noise): log z / h is normal with deviation alpha; the KL is -log alpha + const."""
    objective = InformationDropout(beta=2.0, alpha_max=0.6)
    modules = modules_of(objective, spec(VECTOR), Linear()).double()
    h = torch.rand(1, 20, dtype=torch.float64) + 0.5
    alpha = 0.6 * torch.sigmoid(modules["noise"].layer(h))
    z, nats = modules["noise"](h.expand(40000, 20))
    logs = (z / h).log()
    assert torch.allclose(logs.std(0), alpha[0], rtol=0.03)
    assert torch.allclose(logs.mean(0), torch.zeros_like(alpha[0]), atol=0.02)
    assert nats.item() == pytest.approx(-(alpha / 0.6).log().mean().item(), rel=1e-9)
    modules.eval()
    y = torch.tensor([1])
    loss, logits = objective.loss(spec(), modules, h, Packet(h, y))
    assert torch.equal(logits, modules["classifier"](h)), "no noise in eval mode"
    assert loss.item() == pytest.approx((F.cross_entropy(logits, y) + 2.0 * nats).item(), rel=1e-9)


def test_the_kl_of_information_dropout_is_that_of_a_log_normal_to_a_log_uniform_up_to_a_constant():
    """KL(p || q) = E_p[log p - log q] with q(z) = c / z, integrated numerically over log z: -log alpha + const."""

    def kl(alpha: float) -> float:
        u = np.linspace(-12 * alpha, 12 * alpha, 20001)  # log z - log h
        density = np.exp(-(u**2) / (2 * alpha**2)) / (alpha * math.sqrt(2 * math.pi))  # of log z; q is uniform there
        return float(np.trapezoid(density * np.log(density + 1e-300), u))

    assert kl(0.1) - kl(0.7) == pytest.approx(math.log(0.7) - math.log(0.1), rel=1e-6)
    layer = nn.Linear(1, 1)
    for alpha in (0.1, 0.3):
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, math.log(alpha / (0.7 - alpha)))
        modules = InformationDropout(alpha_max=0.7).modules(spec((1,)), Linear())
        modules["noise"].layer = layer
        _, nats = modules["noise"](torch.ones(2, 1))
        assert nats.item() == pytest.approx(kl(alpha) - kl(0.7), rel=1e-5)


def test_without_noise_and_price_it_is_cross_entropy_bit_for_bit():
    ours = tiny_learner(DGL(objective=InformationDropout(beta=0.0, alpha_max=0.0), auxiliary=MLP(layers=1)))
    theirs = tiny_learner(DGL(objective=CrossEntropy(), auxiliary=MLP(layers=1)))
    for x, y in tiny_batches(5):
        found, expected = ours.step(x, y), theirs.step(x, y)
        assert {name: found[name] for name in expected} == expected
    assert_same(ours.model, theirs.model)


# --- what every loss must survive -------------------------------------------------------------------------------------

SIZES = {"maps": MAPS, "one position": (8, 1, 1), "vector": VECTOR, "sequence": SEQUENCE}


def of_rows(objective: Objective, size: tuple[int, ...]) -> tuple[int, ...]:
    """What a block emits of a row of the batch: of a patch, less than of an image."""
    return (size[0], size[1] // 4, size[2] // 4) if isinstance(objective, CPC) else size


def run_on(objective: Objective, size, batch=4, dtype=torch.float32, y=None):
    """The loss of a fresh block output, with its gradients checked."""
    block = spec(size)
    modules = modules_of(objective, block).to(dtype)
    torch.manual_seed(4)
    y = torch.arange(batch) % 3 if y is None else y
    packet = objective.begin(Packet(torch.randn(batch, *block.image, dtype=dtype), y))
    h = torch.randn(len(packet.h), *of_rows(objective, size), dtype=dtype, requires_grad=True)
    loss, logits = objective.loss(block, modules, h, packet.at(h))
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert torch.isfinite(h.grad).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in modules.parameters())
    assert logits is None or logits.shape == (len(h), 3)
    predicted = objective.predict(modules, h)
    assert (predicted is None) == (logits is None)
    return loss, h


def suits(objective: Objective, size) -> bool:
    if isinstance(objective, CPC):
        return len(size) == 3 and size[1] >= 4  # patches of 2 x 2 of images of 8 x 8
    return not isinstance(objective, InfoNCE) or (len(size) == 3 and size[1] > 1)


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("batch", [2, 5])
def test_sizes(objective, size, batch):
    if not suits(objective, size):
        with pytest.raises(UserError, match=r"block 0 (emits|makes) .* choose"):
            modules_of(objective, spec(size))
        return
    _, h = run_on(objective, size, batch)
    if batch == 5 and not isinstance(objective, Similarity):
        assert h.grad.any()


@pytest.mark.parametrize("image", [(20,), (5, 12)])
def test_inputs_that_are_no_images(objective, image):
    block = spec(VECTOR, image=image, pixels=None)
    if isinstance(objective, SimCLR | Inpainting | Masked | CPC):
        with pytest.raises(UserError, match=r"the input is \[.*choose objective="):
            modules_of(objective, block)
    elif isinstance(objective, InfoNCE):
        with pytest.raises(UserError, match=r"block 0 emits \[20\]"):
            modules_of(objective, block)
    else:
        modules = modules_of(objective, block)
        packet = objective.begin(Packet(torch.randn(4, *image), torch.arange(4) % 3))
        h = torch.randn(4, *VECTOR, requires_grad=True)
        loss, _ = objective.loss(block, modules, h, packet.at(h))
        loss.backward()
        assert torch.isfinite(h.grad).all()


def test_indices_cannot_be_reconstructed():
    packet = Packet(torch.zeros(2, 7, dtype=torch.int64), torch.zeros(2))
    for objective in (Reconstruction(), InfoPro()):
        with pytest.raises(UserError, match="indices"):
            objective.begin(packet)


def test_float64(objective):
    loss, _ = run_on(objective, MAPS, dtype=torch.float64)
    assert loss.dtype == torch.float64


def test_bf16(objective):
    """Under autocast the loss stays within what rounding the network's output can do, and its gradients finite."""
    modules = modules_of(objective, spec()).eval()
    packet = objective.begin(Packet(torch.randn(8, 3, 8, 8), torch.arange(8) % 3))
    h = torch.randn(len(packet.h), *of_rows(objective, MAPS), requires_grad=True)
    torch.manual_seed(1)
    exact, _ = objective.loss(spec(), modules, h, packet.at(h))
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = objective.loss(spec(), modules, h.bfloat16(), packet.at(h))
    rounded.backward()
    assert rounded.dtype == torch.float32
    assert rounded.item() == pytest.approx(exact.item(), rel=0.02)
    assert torch.isfinite(h.grad).all()


def test_similarities_are_not_rounded_to_bf16():
    z, y = torch.randn(16, 64), torch.arange(16) % 4
    c, p, n = torch.randn(9, 64), torch.randn(9, 64), torch.randn(9, 16, 64)
    exact = contrast(z, y, 0.07), info_nce(c, p, n)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(contrast(z, y, 0.07), exact[0])
        assert torch.equal(info_nce(c, p, n), exact[1])


HIDDEN = [(name, hidden) for name in sorted(FILES) for hidden in (-100, -1)]


@pytest.mark.parametrize(("objective", "hidden"), HIDDEN, indirect=["objective"])
def test_negative_labels_are_not_read(objective, hidden):
    """A loss that reads labels is that of the labelled samples alone (noisy ones: finite); the others never look."""
    y = torch.tensor([0, 1, hidden, 0, 2, hidden, 1])
    run_on(objective, MAPS, 7, y=y)
    if isinstance(objective, CrossEntropy | PredSim | Similarity | SupCon):
        modules, h, there = modules_of(objective, spec()).eval(), torch.randn(7, *MAPS), y >= 0
        all_of_them, _ = objective.loss(spec(), modules, h, Packet(h, y))
        labelled, _ = objective.loss(spec(), modules, h[there], Packet(h[there], y[there]))
        assert all_of_them.item() == pytest.approx(labelled.item(), rel=1e-5)
    if not objective.labels:
        assert run_on(objective, MAPS, 7, y=y)[0].item() == run_on(objective, MAPS, 7, y=y * 0)[0].item()


@pytest.mark.parametrize("name", ["similarity", "supcon"])
def test_no_labels_at_all(name):
    loss, h = run_on(make(name), MAPS, 4, y=torch.full((4,), -100))
    assert loss.item() == 0
    assert not h.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [2, 7, 128])
def test_similarity_with_every_label_has_the_bits_of_the_plain_formula(dtype, batch):
    modules = modules_of(PredSim(), spec()).to(dtype)
    h = torch.randn(batch, *MAPS, dtype=dtype, requires_grad=True)
    y = torch.randint(3, (batch,))

    def cosines(x):
        x = x - x.mean(dim=1, keepdim=True)
        x = x / (x.norm(dim=1, keepdim=True) + 1e-8)
        return (x @ x.T).clamp(-1, 1)

    plain = F.mse_loss(cosines(modules["similarity"](h)), cosines(F.one_hot(y, 3).to(dtype)))
    ours, _ = Similarity().loss(spec(), modules, h, Packet(h, y))
    assert torch.equal(ours, plain)
    for weight in (1.0, 0.99):
        a, b = (torch.autograd.grad(weight * loss, h, retain_graph=True)[0] for loss in (ours, plain))
        assert torch.equal(a, b)


# --- inside a strategy ------------------------------------------------------------------------------------------------


def test_yaml_lists_every_option_and_the_paper():
    for path in FILES.values():
        config, facts = yaml.safe_load(path.read_text()), header(path)
        module, _, name = config.pop("_target_").rpartition(".")
        target = getattr(importlib.import_module(module), name)
        fields = [f for f in dataclasses.fields(target) if f.name != "teacher"]  # it is filled
        made = {f.name: f.default_factory() for f in fields if f.default_factory is not dataclasses.MISSING}
        defaults = {f.name: f.default for f in fields} | made
        assert config == defaults, path
        assert facts["summary"].endswith("."), path
        assert facts["paper"], path


def trained(objective: Objective, steps: int, **options):
    learner = tiny_learner(DGL(objective=objective, auxiliary=Projector(width=8)), tiny_model(dropout=0.2), **options)
    for x, y in tiny_batches(steps):
        found = learner.step(x, y)
        assert all(math.isfinite(value) for value in found.values())
        assert {f"block/0{k}/loss" for k in range(4)} <= set(found)
        assert ("block/03/local_loss" in found) == (not objective.labels)
    return learner


@pytest.mark.parametrize("options", [{}, {"micro_batches": 2}, {"pixels": ((-1.0, -1.0), (1.0, 1.0))}])
def test_two_steps_teach_every_block_and_repeat_bit_for_bit(objective, options):
    learner, again = trained(objective, 2, **options), trained(objective, 2, **options)
    assert_same(learner.model, again.model)
    for (name, p), q in zip(learner.model.named_parameters(), tiny_model().parameters(), strict=True):
        assert not torch.equal(p, q), f"{name} has not moved"


def test_no_gradient_crosses_a_border_and_the_read_out_sends_none(objective):
    """autograd.grad of block k's loss for every parameter there is; at the last block, with and without the head."""
    reached: dict[int, set[str]] = {}
    owned: dict[int, set[str]] = {}

    class Watched(DGL):
        def loss(self, block, h, packet):
            torch.manual_seed(7)
            loss = super().loss(block, h, packet)
            names, parameters = zip(*learner.parameters(), strict=True)
            grads = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            modules = (block.layers, block.head, block.auxiliary)
            own = {id(p) for m in modules if m is not None for p in m.parameters()}
            owned[block.spec.index] = {n for n, p in zip(names, parameters, strict=True) if id(p) in own}
            reached[block.spec.index] = {n for n, g in zip(names, grads, strict=True) if g is not None}
            if block.last and not self.objective.labels:
                torch.manual_seed(7)
                alone, _ = self.objective.loss(block.spec, block.auxiliary, h, packet)
                mine, its = (torch.autograd.grad(part, h, retain_graph=True)[0] for part in (loss, alone))
                assert torch.equal(mine, its), "the head's loss reached the features"
            return loss

    learner = tiny_learner(Watched(objective=objective, auxiliary=MLP(layers=1)))
    for x, y in tiny_batches(2):
        learner.learn(x, y)
    assert reached.keys() == {0, 1, 2, 3}
    for k, names in reached.items():
        assert names == owned[k], f"block {k}"


def test_infomax_is_dgl_with_infonce_bit_for_bit():
    ours = tiny_learner(Infomax(steps=2, negatives=4))
    theirs = tiny_learner(DGL(objective=InfoNCE(steps=2, negatives=4), auxiliary=MLP()))
    for x, y in tiny_batches(4):
        assert ours.step(x, y) == theirs.step(x, y)
    assert_same(ours.model, theirs.model)


def test_infomax_ignores_labels_below_the_head():
    ours, theirs = tiny_learner(Infomax()), tiny_learner(Infomax())
    for x, y in tiny_batches(3):
        ours.learn(x, y)
        theirs.learn(x, (y + 1) % 3)
    assert_same(ours.model.units, theirs.model.units)
    assert not torch.equal(ours.model.head[2].weight, theirs.model.head[2].weight)


@pytest.mark.parametrize(
    ("target", "options", "sentence"),
    [
        (SupCon, {"temperature": 0.0}, "temperature=0.0: must be a number above 0"),
        (SupCon, {"features": 0}, "features=0: must be a whole number of at least 1"),
        (SimCLR, {"crop": 0.0}, "crop=0.0: must be a number above 0"),
        (SimCLR, {"jitter": 1.0}, "jitter=1.0: must be a number of at least 0 and below 1"),
        (InfoNCE, {"steps": 0}, "steps=0: must be a whole number of at least 1"),
        (Infomax, {"negatives": 0}, "negatives=0: must be a whole number of at least 1"),
        (InfoPro, {"task": "supcom"}, "did you mean 'supcon'"),
        (InfoPro, {"task_first": -1.0}, "task_first=-1.0: must be a number of at least 0"),
        (InfoPro, {"task_last": 0.0, "reconstruction_last": 0.0}, "the last local block would learn nothing"),
        (Inpainting, {"mask": 0.0}, "mask=0.0: must be a number above 0"),
        (VIB, {"beta": -1.0}, "beta=-1.0: must be a number of at least 0"),
        (VIB, {"features": 0}, "features=0: must be a whole number of at least 1"),
        (InformationDropout, {"alpha_max": math.inf}, "alpha_max=inf: must be a finite number"),
    ],
)
def test_options_are_checked(target, options, sentence):
    with pytest.raises(UserError, match=sentence):
        target(**options)


@pytest.mark.parametrize("objective", [Inpainting(), SimCLR()])
def test_an_input_is_refused_even_where_no_block_has_the_loss(objective):
    """Of a single block deep supervision asks for no local loss, and yet the objective prepares the batch."""
    strategy = DeepSupervision(objective=objective, auxiliary=Linear())
    with pytest.raises(UserError, match=r"the input is \[4\]"):
        tiny_learner(strategy, mlp((4,), 3, width=8, depth=1), blocks=1)
