"""Where the features of foreign modules are: known from the layers, asked for or refused, and read rightly by all."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import yaml
from torch import nn

import locallearn
from helpers.nets import assert_same
from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.contract import BlockSpec, Packet
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.models.axes import Axes, usual


class Permute(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x):
        return x.permute(self.axes)


class Reshape(nn.Module):
    """[B, ...] -> [B, *size]: nobody can tell what its axes are."""

    def __init__(self, *size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x):
        return x.reshape(-1, *self.size)


def convolutional(dimensions: int, *, width: int = 6) -> nn.Sequential:
    """Three convolutions of 1, 2 or 3 dimensions that read 2 channels, and a head for 4 classes."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dimensions - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dimensions - 1]
    sizes = [2, 8, width, width]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (conv(a, b, 3, padding=1), norm(b), nn.ReLU())]
    return nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(width, 4))


def last(width: int = 6) -> nn.Sequential:
    """A net whose inner layers hold maps as [H, W, C]."""
    inner = [Permute(0, 2, 3, 1), nn.LayerNorm(8), nn.Linear(8, width), nn.GELU(), nn.Linear(width, width), nn.GELU()]
    head = [Permute(0, 3, 1, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4)]
    return nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), *inner, *head)


NETS = {
    "1d": (lambda: convolutional(1), (2, 12), (12, 6)),
    "3d": (lambda: convolutional(3), (2, 6, 5, 4), (6, 6, 5, 4)),
    "channels_last": (last, (2, 6, 5), (6, 6, 5)),
}


def learner(kind: str, **settings) -> locallearn.Learner:
    make, image, _ = NETS[kind]
    torch.manual_seed(0)
    return locallearn.build(
        model=make(), image=image, classes=4, **{"blocks": "max", "steps": 4, "device": "cpu"} | settings
    )


def batch(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, *NETS[kind][1], generator=g), torch.randint(4, (8,), generator=g)


@pytest.mark.slow
def test_the_same_network_in_one_and_in_two_dimensions_learns_the_same():
    """What matters is in the channels and not in the place: a classifier that averages over channels cannot see it."""

    def waves(n: int, g: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.randint(4, (n,), generator=g)
        t, phase = torch.arange(64) / 64, 2 * math.pi * torch.rand(n, 1, generator=g)
        x = torch.sin(2 * math.pi * torch.tensor([4.0, 8.0, 12.0, 16.0])[y][:, None] * t + phase)
        return x[:, None] + 0.3 * torch.randn(n, 1, 64, generator=g), y

    def accuracies(two: bool) -> tuple[list[float], int]:
        torch.manual_seed(0)
        g = torch.Generator().manual_seed(1)
        conv, norm, pool = (nn.Conv1d, nn.BatchNorm1d, nn.AdaptiveAvgPool1d)
        sides: dict = {"kernel_size": 9, "padding": 4}
        if two:
            conv, norm, pool = (nn.Conv2d, nn.BatchNorm2d, nn.AdaptiveAvgPool2d)
            sides = {"kernel_size": (1, 9), "padding": (0, 4)}
        layers = [m for a, b in ((1, 16), (16, 16)) for m in (conv(a, b, **sides), norm(b), nn.ReLU())]
        net = nn.Sequential(*layers, pool(1), nn.Flatten(), nn.Linear(16, 4))
        image = (1, 1, 64) if two else (1, 64)
        settings = {"blocks": "max", "auxiliary": "linear", "optim.lr": 5e-3, "device": "cpu"}
        found = locallearn.build("dgl", net, image=image, classes=4, **settings)
        for _ in range(200):
            x, y = waves(32, g)
            found.step(x.view(-1, *image), y)
        x, y = waves(500, g)
        logits = found.predict(x.view(-1, *image))
        return [float((z.argmax(1) == y).double().mean()) for z in logits], found.blocks[0].auxiliary["classifier"]

    one, classifier = accuracies(two=False)
    two, _ = accuracies(two=True)
    assert min(*one, *two) > 0.99, (one, two)
    assert classifier[-1].in_features == 16, "one number per channel, pooled over the 64 positions"


def swin() -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    return models.SwinTransformer([4, 4], 12, [2, 2], [2, 2], [2, 2], num_classes=10)


@pytest.mark.slow
def test_a_swin_hands_on_maps_with_the_channels_first():
    built = locallearn.build("dgl", swin(), image=(3, 32, 32), classes=10, blocks=4, auxiliary="linear", device="cpu")
    emits = [block.spec.emits for block in built.blocks[:-1]]
    assert {size[0] for size in emits} <= {12, 24, 48}
    assert all(size[1] == size[2] for size in emits)
    heads = [block.auxiliary["classifier"][-1].in_features for block in built.blocks[:-1]]
    assert heads == [size[0] * 2 * 2 for size in emits]
    options = {"strategy.projection": "channel", "device": "cpu"}
    fed = locallearn.build("dfa", swin(), image=(3, 32, 32), classes=10, blocks=4, **options)
    columns = [block.auxiliary["feedback"].matrix.shape[1] for block in fed.blocks[:-1]]
    assert columns == [size[0] for size in emits]


@pytest.mark.parametrize("kind", NETS)
def test_turning_changes_no_number(kind):
    """Backprop over the blocks is the bare loop over the module, bit for bit: a turn is a view."""
    make, _image, emitted = NETS[kind]
    torch.manual_seed(0)
    net, twin = make(), make()
    twin.load_state_dict(net.state_dict())
    x, y = batch(kind)
    settings = {"blocks": "max", "device": "cpu", "precision": "fp64", "optim": "sgd"}
    if kind != "1d":  # which has no maps, whose memory layout it is
        settings["channels_last"] = False
    options = {"optim.lr": 0.1, "optim.momentum": 0, "optim.weight_decay": 0}
    built = locallearn.build("backprop", net, image=NETS[kind][1], classes=4, **settings, **options)
    assert emitted in [block.spec.emits for block in built.blocks]
    twin.double()
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    for _ in range(3):
        built.step(x, y)
        optimizer.zero_grad()
        nn.functional.cross_entropy(twin(x.double()), y).backward()
        optimizer.step()
    assert_same(net, twin)


REFUSED = {
    ("1d", "infomax"): "InfoNCE predicts rows of a map",
    ("3d", "infomax"): "InfoNCE predicts rows of a map",
    ("3d", "pgi"): "the auxiliary branch cannot read",
    ("3d", "pgi_causal"): "the auxiliary branch cannot read",
    ("1d", "infonce"): "InfoNCE predicts rows of a map",
    ("3d", "infonce"): "InfoNCE predicts rows of a map",
    ("1d", "inpainting"): "hides part of an image",
    ("3d", "inpainting"): "hides part of an image",
    ("1d", "simclr"): "crops images",
    ("3d", "simclr"): "crops images",
    ("1d", "cpc"): "cuts images into patches",
    ("3d", "cpc"): "cuts images into patches",
    ("1d", "masked"): "hides patches of an image",
    ("3d", "masked"): "hides patches of an image",
    ("1d", "transformer"): "sequence=6 is not divisible",
    ("3d", "transformer"): "reads sequences",
    ("channels_last", "transformer"): "reads sequences",
    ("3d", "pointwise_mlp"): "convolves maps",
    ("1d", "pointwise_mlp"): "convolves maps",
    **{(kind, "petra"): "no unit of this model is reversible" for kind in NETS},
    **{(kind, "detect"): "answers with boxes" for kind in NETS},
    **{(kind, "distil"): "init.teacher" for kind in NETS},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("group", "name"), [(g, n) for g in ("strategy", "objective", "auxiliary") for n in sorted(choices(g))]
)
@pytest.mark.parametrize("kind", NETS)
def test_every_choice_trains_with_the_defaults_or_says_why_not(kind, group, name):
    settings: dict = {"strategy": "dgl"} | {group: name}
    if kind == "channels_last" and name in ("infopro", "inpainting", "reconstruction"):  # of images
        settings["pixels"] = ((0, 0), (1, 1))
    x, y = batch(kind)
    if sentence := REFUSED.get((kind, name)):
        with pytest.raises(UserError, match=sentence):
            learner(kind, **settings)
        return
    built = learner(kind, **settings)
    before = {key: p.detach().clone() for key, p in built.parameters()}
    numbers = [built.step(x, y) for _ in range(4)][-1]
    assert all(math.isfinite(v) for v in numbers.values())
    assert any(not torch.equal(before[key], p) for key, p in built.parameters())
    built.predict(x)


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize(
    ("strategy", "options"),
    [
        ("dfa", {"strategy.projection": "channel"}),
        ("dfa", {"strategy.projection": "full"}),
        ("dfa", {"strategy.shared": True}),
        ("dni", {"strategy.synthetic_inputs": True}),
    ],
)
def test_options_that_read_axes(kind, strategy, options):
    built = learner(kind, strategy=strategy, **options)
    assert math.isfinite(built.step(*batch(kind))["loss"])
    if options.get("strategy.projection") == "channel":
        width = 6 if kind != "1d" else NETS[kind][2][1]
        assert built.blocks[-2].auxiliary["feedback"].matrix.shape[1] == width


@pytest.mark.parametrize("options", [{}, {"channels_last": False}, {"channels_last": True}])
def test_a_net_of_three_dimensions_trains_in_any_layout(options):
    assert math.isfinite(learner("3d", strategy="dgl", **options).step(*batch("3d"))["loss"])


@pytest.mark.parametrize("size", [(6, 5, 4), (6, 6, 5, 4)])
def test_pooled_linear_keeps_to_its_limit(size):
    from locallearn.auxiliary import Linear

    head = Linear(features=40).build(size, 3)
    assert head[-1].in_features <= 40
    assert head(torch.randn(2, *size)).shape == (2, 3)


def permuted(module: nn.Module, h: torch.Tensor, axis: int, order: torch.Tensor) -> torch.Tensor:
    return module(h.index_select(axis, order))


@pytest.mark.parametrize(
    "name", sorted({*choices("auxiliary")} - {"auglocal", "detect", "pointwise_mlp", "transformer"})
)  # of units, boxes, images, tokens
@pytest.mark.parametrize("kind", ["1d", "3d"])
def test_a_head_reads_the_channels_and_not_the_places(kind, name):
    """Shuffled positions of features that are alike in all change nothing; shuffled channels do."""
    recipe = instantiate(yaml.safe_load(choices("auxiliary")[name].read_text()), "auxiliary", [])
    size = NETS[kind][2]
    torch.manual_seed(0)
    head = recipe.build(size, 4).eval()
    nn.init.normal_([m for m in head.modules() if isinstance(m, nn.Linear)][-1].weight)
    channels = usual(len(size) + 1)
    h = torch.randn(3, size[channels - 1]).view(3, *[-1 if d == channels else 1 for d in range(1, len(size) + 1)])
    h = h.expand(3, *size).contiguous()
    order = torch.randperm(size[channels - 1], generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(head(h), permuted(head, h, channels, order), atol=1e-3)
    place = 1 if channels != 1 else 2
    order = torch.randperm(h.shape[place], generator=torch.Generator().manual_seed(0))
    assert torch.allclose(head(h), permuted(head, h, place, order), atol=1e-6)


def test_the_branch_of_pgi_reads_the_channels_of_its_image():
    built = learner("1d", strategy="pgi")
    assert built.blocks[-1].auxiliary["branch"].stem.conv.in_channels == 2
    causal = learner("1d", strategy="pgi_causal")
    assert causal.blocks[0].auxiliary["stem"].conv.in_channels == 2
    assert learner("channels_last", strategy="pgi").blocks[-1].auxiliary["branch"].stem.conv.in_channels == 2


@pytest.mark.parametrize("kind", NETS)
def test_probes_read_the_channels(kind):
    from locallearn.analysis.decoder import ridge, standardised
    from locallearn.analysis.features import as_maps
    from locallearn.analysis.readout import pooled, usable_information
    from locallearn.analysis.similarity import cka_matrix
    from locallearn.analysis.task2vec import embedding

    built = learner(kind, strategy="backprop")
    x, y = batch(kind)
    x, y = torch.cat([x, x + 0.1, x - 0.1]), y.repeat(3)
    with torch.no_grad():
        outputs = list(built.features(x))
    size = NETS[kind][2]
    channels = size[1] if len(size) == 2 else size[0]
    h = outputs[-2]
    assert pooled(h).shape == (len(x), channels)
    whole = tuple(d for d in range(1, h.dim()) if d != usual(h.dim()))
    assert torch.allclose(pooled(h), h.mean(whole), atol=1e-6)
    scaled, _ = standardised(h, h)
    if h.dim() > 3:  # one mean per channel, of samples and positions
        assert scaled.double().mean((0, *whole)).abs().max() < 1e-5
    assert as_maps(h[0]).dim() == 3
    assert math.isfinite(float(ridge(h, x, h)[0].sum()))
    assert usable_information(h, y, h, y, classes=4, steps=5).bits >= 0
    assert torch.isfinite(cka_matrix(iter([x, h]))).all()
    found = embedding(nn.Sequential(*built.model.units), x, y, torch.Generator().manual_seed(0))
    assert torch.isfinite(found).all()


class Token(nn.Module):
    """A learned token in front of the others."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, width))

    def forward(self, x):
        return torch.cat([self.token.expand(len(x), -1, -1), x], dim=1)


EMITTED = {
    "conv1d": (nn.Conv1d(3, 5, 1), (3, 7), 1),
    "conv2d": (nn.Conv2d(3, 5, 1), (3, 7, 7), 1),
    "conv3d": (nn.Conv3d(3, 5, 1), (3, 4, 4, 4), 1),
    "transposed": (nn.ConvTranspose1d(3, 5, 2), (3, 7), 1),
    "batch norm": (nn.BatchNorm1d(3), (3, 7), 1),
    "group norm": (nn.GroupNorm(1, 3), (3, 7), 1),
    "linear": (nn.Linear(7, 5), (3, 7), 2),
    "layer norm": (nn.LayerNorm(7), (3, 7), 2),
    "layer norm of a map": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.LayerNorm((5, 7, 7))), (3, 7, 7), 1),
    "recurrent": (nn.Sequential(nn.Linear(7, 5), nn.GELU()), (3, 7), 2),
    "prelu": (nn.Sequential(nn.Linear(7, 5), nn.PReLU()), (3, 7), 2),
    "pooled": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.AvgPool2d(3, padding=1)), (3, 7, 7), 1),
    "padded": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.ZeroPad2d(2), nn.ReLU()), (3, 7, 7), 1),
    "dropped": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Dropout2d()), (3, 7, 7), 1),
    "permuted": (nn.Sequential(nn.Conv2d(3, 5, 1), Permute(0, 2, 3, 1)), (3, 7, 7), 3),
    "in the middle": (nn.Sequential(nn.Conv2d(3, 5, 1), Permute(0, 2, 1, 3)), (3, 7, 7), 2),
    "tokens": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2), Permute(0, 2, 1)), (3, 7, 7), 2),
    "positions in a row": (nn.Sequential(nn.Conv2d(3, 5, 1), nn.Flatten(2)), (3, 7, 7), 1),
    "shuffled": (nn.Sequential(nn.Conv2d(3, 6, 1), nn.ChannelShuffle(2)), (3, 7, 7), 1),
    "split channels": (
        nn.Sequential(nn.Conv2d(3, 6, 1), Reshape(2, 3, 7, 7), Permute(0, 2, 1, 3, 4), Reshape(6, 7, 7)),
        (3, 7, 7),
        1,
    ),
    "features of a spectrogram": (nn.Sequential(nn.Conv2d(3, 5, 1), Permute(0, 3, 1, 2), nn.Flatten(2)), (3, 7, 9), 2),
    "with a class token": (nn.Sequential(nn.Linear(7, 5), Token(5)), (3, 7), 2),
    "mixed with places": (nn.Sequential(nn.Linear(21, 20), Reshape(4, 5)), (21,), None),
    "a map of numbers": (nn.Sequential(nn.Conv2d(3, 5, 1), Reshape(7, 35)), (3, 7, 7), None),
}


@pytest.mark.parametrize("name", EMITTED)
def test_what_made_a_tensor_tells_where_its_features_are(name):
    module, size, axis = EMITTED[name]
    with torch.no_grad(), Axes() as axes:
        h = module(torch.randn(2, *size))
    assert axes.of(h) == axis


@pytest.mark.parametrize(("reader", "axis"), [(nn.Conv1d(4, 2, 1), 1), (nn.Linear(5, 2), 2), (nn.LayerNorm(5), 2)])
def test_what_reads_a_tensor_tells_where_nobody_made_it(reader, axis):
    x = torch.randn(2, 4, 5)
    with torch.no_grad(), Axes() as axes:
        reader((x - 0.5) / 0.2)
    assert axes.of(x) == axis


class Mixer(nn.Module):
    """Across tokens and across channels, with shortcuts (MLP-Mixer)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens, self.channels = nn.Linear(tokens, tokens), nn.Linear(width, width)

    def forward(self, x):
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class Attention(nn.Module):
    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1)).softmax(-1)
        return x + self.out((weights @ v).transpose(1, 2).reshape(b, t, c))


class Recurrent(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


class Mean(nn.Module):
    def forward(self, x):
        return x.mean(1)


PATCHES = [nn.Conv2d(3, 8, 4, 4), nn.Flatten(2), Permute(0, 2, 1)]
WHOLE = {
    "mixer": (
        nn.Sequential(*PATCHES, Mixer(16, 8), Mixer(16, 8), Mean(), nn.Linear(8, 4)),
        (3, 16, 16),
        {(8, 4, 4), (16, 8)},
    ),
    "attention": (
        nn.Sequential(*PATCHES, Attention(8), Attention(8), Mean(), nn.Linear(8, 4)),
        (3, 16, 16),
        {(8, 4, 4), (16, 8)},
    ),
    "recurrent": (nn.Sequential(Recurrent(5, 8), Recurrent(8, 8), Mean(), nn.Linear(8, 4)), (9, 5), {(9, 8)}),
    "transformer": (
        nn.Sequential(
            nn.Linear(5, 8),
            *(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)),
            Mean(),
            nn.Linear(8, 4),
        ),
        (9, 5),
        {(9, 8)},
    ),
    "audio": (
        nn.Sequential(
            nn.Conv1d(1, 8, 5, 2),
            nn.GELU(),
            nn.Conv1d(8, 6, 5, 2),
            nn.GELU(),
            Permute(0, 2, 1),
            nn.LayerNorm(6),
            nn.Linear(6, 7),
            nn.GELU(),
            Mean(),
            nn.Linear(7, 4),
        ),
        (1, 40),
        {(18, 8), (7, 6), (7, 7)},
    ),
}


@pytest.mark.parametrize("name", WHOLE)
def test_units_of_whole_nets_hand_on_their_features_last_in_sequences(name):
    module, image, sizes = WHOLE[name]
    model = as_blocks(module, image=image)
    assert set(model.shapes()) == sizes


ZOO = ["swin_t", "swin_v2_t", "convnext_tiny", "shufflenet_v2_x0_5", "densenet121"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ZOO, "vit_b_16", "maxvit_t"])
def test_the_features_of_torchvision_models(name):
    from torchvision import models

    side = 224 if name in ("vit_b_16", "maxvit_t") else 64
    model = as_blocks(models.get_model(name, weights=None, num_classes=10), image=(3, side, side))
    for size in model.shapes():
        if len(size) == 3:
            assert size[1] == size[2] or size[2] == 49, "channels, then a square (or the windows of maxvit)"
        elif len(size) == 2:
            assert size == (197, 768), "tokens of a vit"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "square"),
    [
        ("swin_tiny_patch4_window7_224", True),
        ("mixer_s32_224", False),
        ("convmixer_768_32", True),
        ("poolformer_s12", True),
        ("levit_128s", False),
        ("sequencer2d_s", True),
        ("mambaout_femto", True),
    ],
)
def test_the_features_of_timm_models(name, square):
    import timm

    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    side = 224 if fixed or name == "sequencer2d_s" else 64
    model = as_blocks(timm.create_model(name, num_classes=10), image=(3, side, side))
    sizes = [size for size in model.shapes() if len(size) == 3]
    assert all(size[1] == size[2] for size in sizes)
    tokens = [size for size in model.shapes() if len(size) == 2]
    assert bool(tokens) != square
    assert all(math.isqrt(count) ** 2 == count and width > 100 for count, width in tokens)


def unknowable() -> nn.Sequential:
    """A vector that is read as 4 x 5 numbers."""
    return nn.Sequential(
        nn.Linear(8, 20),
        nn.Tanh(),
        Reshape(4, 5),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    )


def test_unknown_axes_are_asked_for():
    net = unknowable()
    assert as_blocks(net, image=(8,)).shapes() == [(20,), (6,)], "there is no cut where nobody knows the axes"
    with pytest.raises(UserError) as error:
        as_blocks(net, ["3"], image=(8,), name="net")
    assert str(error.value) == (
        "net cannot be cut after '3': it emits [4, 5], and the layers do not tell which axis holds the features; say "
        "it with axes={'3': 'channels_first'} or 'channels_last', or cut after '1' or '4' instead"
    )
    for axes, size in (({"3": "channels_first"}, (5, 4)), ("channels_last", (4, 5))):
        assert as_blocks(net, ["3"], image=(8,), axes=axes).shapes() == [size, (6,)]
    built = locallearn.build("dgl", net, image=(8,), classes=3, axes="channels_last", blocks="max", device="cpu")
    assert [block.spec.emits for block in built.blocks] == [(4, 5), (6,)]


def test_what_was_asked_wins_over_the_layers():
    model = as_blocks(convolutional(1), ["2"], image=(2, 12), axes={"2": "channels_last"})
    assert model.shapes()[0] == (8, 12)


def test_axes_that_nothing_reads_are_refused():
    flat = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    with pytest.raises(UserError, match="every unit of Sequential hands on vectors"):
        as_blocks(flat, image=(8,), axes="channels_first")
    with pytest.raises(UserError, match="axes of 'stem': no unit of Sequential ends there"):
        as_blocks(convolutional(1), image=(2, 12), axes={"stem": "channels_first"})
    with pytest.raises(UserError, match="unknown axes 'chanels_last': did you mean 'channels_last'"):
        as_blocks(convolutional(1), image=(2, 12), axes="chanels_last")
    with pytest.raises(UserError, match="axes='channels_last' is read only for a module that build cuts"):
        locallearn.build("dgl", "lenet", axes="channels_last")


def test_no_place_for_a_cut_but_for_the_axes():
    net = nn.Sequential(Reshape(4, 2), nn.Tanh(), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(UserError, match="the layers do not tell which axis holds the features; say it with axes="):
        as_blocks(net, image=(8,))


def test_a_block_model_with_other_axes_is_refused():
    head = nn.Sequential(nn.Flatten(), nn.Linear(8 * 12, 3))
    layers = [nn.Conv1d(2, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)]
    model = BlockModel(layers, head, image=(2, 12), classes=3, name="mine", names=["a", "b"])
    with pytest.raises(UserError, match=r"'a' of mine emits batches of \[2, 8, 12\].*end it with \.movedim\(1, 2\)"):
        locallearn.build("dgl", model, device="cpu")


@pytest.mark.parametrize("balance", ["flops", "time"])
def test_a_unit_that_returns_more_than_a_tensor_is_one_sentence(balance):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    units = [nn.Linear(8, 8), Pair(), nn.Linear(8, 8)]
    model = BlockModel(units, nn.Linear(8, 3), image=(8,), classes=3, name="mine", names=["a", "pair", "c"])
    with pytest.raises(
        UserError, match="unit 'pair' of mine returns a tuple, but what goes from block to block is one"
    ):
        locallearn.build("dgl", model, blocks=2, balance=balance, device="cpu")


def test_objectives_read_maps_of_three_dimensions_by_channel():
    from locallearn.auxiliary import Linear
    from locallearn.objectives import Similarity
    from locallearn.objectives.bottleneck import InformationDropout

    spec = BlockSpec(0, 2, (2, 6, 5, 4), (2, 6, 5, 4), (7, 6, 5, 4), 4)
    h, y = torch.randn(8, 7, 6, 5, 4), torch.randint(4, (8,))
    similar = Similarity().modules(spec, Linear())
    assert [m.in_channels for m in similar["similarity"].modules() if isinstance(m, nn.Conv3d)] == [7]
    dropout = InformationDropout().modules(spec, Linear())
    assert dropout["noise"].layer.in_channels == 7
    for objective, modules in ((Similarity(), similar), (InformationDropout(), dropout)):
        loss, _ = objective.loss(spec, modules, h, Packet(h, y))
        assert torch.isfinite(loss)
