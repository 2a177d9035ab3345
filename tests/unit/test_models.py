"""The zoo, cuts and costs. Expected numbers are published ones or computed by hand, never by the code under test."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib import import_module
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from helpers.marks import slow
from helpers.nets import SIBLINGS
from locallearn.errors import UserError
from locallearn.models import BlockModel, measure
from locallearn.models.cut import partition
from locallearn.models.plain import mlp
from locallearn.models.summary import render, summary

CONF = Path(__file__).parents[2] / "conf" / "model"
OTHER = {"rnn", "gcn", "gpt"}  # read no images; see test_new_models.py
NAMES = sorted({path.stem for path in CONF.glob("*.yaml")} - OTHER)
PLAIN = [name for name in NAMES if name not in ("torchvision", "timm")]


def builder(name: str) -> tuple[Any, dict[str, Any]]:
    options = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    module, _, function = options.pop("_target_").rpartition(".")
    return getattr(import_module(module), function), options


def build(name: str, image: tuple[int, ...] = (3, 32, 32), classes: int = 10, **changes: Any) -> BlockModel:
    function, options = builder(name)
    torch.manual_seed(0)
    return function(image, classes, **{**options, **changes})


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def models() -> dict[str, BlockModel]:
    """Each model once, shared by the tests that do not change it."""
    return {}


@pytest.fixture(params=[slow(n) if n in SIBLINGS else n for n in NAMES])
def model(request: pytest.FixtureRequest, models: dict[str, BlockModel]) -> BlockModel:
    if request.param not in models:
        models[request.param] = build(request.param)
    return models[request.param]


def test_the_zoo_is_complete():
    nets = (
        "mlp lenet basic_cnn vgg11 vgg13 vgg16 vgg19 vgg8b vgg11b allcnn resnet18 resnet20 resnet32 resnet56 resnet110"
    )
    assert set(NAMES) == {
        *nets.split(),
        "preact_resnet18",
        "plainnet",
        "gelan",
        "cspnet",
        "detector",
        "revnet",
        "vit",
        "torchvision",
        "timm",
    }


@pytest.mark.parametrize("name", NAMES)
def test_yaml_has_its_header_and_every_option_with_the_builder_type(name):
    first, second, *_ = (CONF / f"{name}.yaml").read_text().splitlines()
    assert first.startswith("# ")
    assert second.startswith("# paper: ")
    function, options = builder(name)
    keywords = [p for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert set(options) == {p.name for p in keywords}
    assert all(type(options[p.name]) is type(p.default) for p in keywords)


def test_forward_is_the_units_block_by_block_and_then_the_head(model):
    model.eval()
    h = x = torch.randn(2, *model.image)
    seen = []
    for units in model.cut([1, len(model.units) - 1] if len(model.units) > 2 else 1):
        for i in units:
            h = model.units[i](h)
            seen.append(tuple(h.shape[1:]))
    with torch.no_grad():
        assert torch.equal(model(x), model.head(h))
    assert model(x).shape == ((2, 21, 3 + 4 * 8 + 10) if model.form == "boxes" else (2, 10))
    assert model.shapes() == seen == [unit.shape for unit in measure(model)]
    assert len(set(model.names)) == len(model.units)


def test_no_unit_writes_into_its_input(model):
    model.train()
    h = torch.randn(2, *model.image)
    for name, unit in zip([*model.names, "head"], [*model.units, model.head], strict=True):
        h = h.detach()
        version, before = h._version, h.clone()
        out = unit(h)
        assert h._version == version, name
        assert torch.equal(h, before)
        h = out


def test_every_unit_can_learn(model):
    assert all(count(unit) > 0 for unit in model.units)


@pytest.mark.parametrize(
    "image", [(1, 8, 8), (2, 17, 30), *(pytest.param((c, n, n), marks=pytest.mark.slow) for c, n in ((1, 28), (3, 64)))]
)
@pytest.mark.parametrize(
    "name", [n for n in PLAIN if n not in ("vgg13", "vgg19", "resnet56", "resnet110", "resnet32", "detector")]
)
def test_zoo_reads_images_of_other_sizes(name, image):
    if name == "lenet" and min(image[1:]) < 12:
        return
    if name == "vit" and image[1] % 4:
        with pytest.raises(UserError, match=r"model\.patch=4 does not divide the sides of the images, 17x30"):
            build(name, image)
        return
    model = build(name, image, classes=7)
    assert model(torch.randn(2, *image)).shape == (2, 7)


def test_resnet_has_the_imagenet_stem_on_large_images():
    assert build("resnet18", (3, 96, 96)).shapes()[0] == (64, 24, 24)
    assert build("resnet18", (3, 64, 64)).shapes()[0] == (64, 64, 64)


def test_mlp_of_several_widths():
    """The net of the 12-bit task: 12-10-7-5-4-3-2."""
    model = mlp((12,), 2, width=[10, 7, 5, 4, 3], batch_norm=False)
    assert [tuple(p.shape) for p in model.parameters() if p.dim() == 2] == [
        (10, 12), (7, 10), (5, 7), (4, 5), (3, 4), (2, 3)
    ]  # fmt: skip


def test_mlp_without_biases():
    model = mlp((1, 4, 4), 3, width=8, depth=2, batch_norm=False, bias=False, activation="elu")
    assert [tuple(p.shape) for p in model.parameters()] == [(8, 16), (8, 8), (3, 8)]
    x = torch.randn(2, 1, 4, 4)
    h = x.flatten(1)
    for weight in list(model.parameters())[:2]:
        h = h @ weight.T
        h = torch.where(h > 0, h, h.exp() - 1)
    torch.testing.assert_close(model(x), h @ list(model.parameters())[2].T)


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_weights_begin_as_papers_say(name):
    """The deviation of 784 x 256 or 400 x 120 weights, in closed form; biases at zero."""
    options = {"width": 256, "batch_norm": False} if name == "mlp" else {}
    stds = {
        "xavier": lambda n, m: (2 / (n + m)) ** 0.5,
        "he": lambda n, m: (2 / n) ** 0.5,
        "fan_out": lambda n, m: m**-0.5,
    }
    for init, std in stds.items():
        model = build(name, (1, 28, 28), init=init, **options)
        weight = model.units[0 if name == "mlp" else 2][-2].weight
        assert weight.std().item() == pytest.approx(std(weight.shape[1], weight.shape[0]), rel=0.03), init
        assert all(not p.any() for p in model.parameters() if p.dim() == 1)
    weight = build(name, (1, 28, 28), init="orthogonal", **options).units[0 if name == "mlp" else 2][-2].weight
    torch.testing.assert_close(weight @ weight.T, torch.eye(len(weight)), atol=1e-5, rtol=0)
    default, zero = build("mlp", (12,)), build("mlp", (12,), init="xavier", zero_head=True)
    assert not zero.head.weight.any()
    assert default.initialise is None


def test_a_narrow_allcnn_with_batch_norm():
    convolutions = [
        (3, 24, 9),
        (24, 24, 9),
        (24, 24, 9),
        (24, 48, 9),
        (48, 48, 9),
        (48, 48, 9),
        (48, 48, 9),
        (48, 48, 1),
    ]
    expected = sum(a * b * k + 2 * b for a, b, k in convolutions) + 48 * 10 + 10
    model = build("allcnn", (3, 16, 16), width=0.25, batch_norm=True)
    assert count(model) == expected
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)


def test_mlp_reads_vectors():
    assert build("mlp", (12,))(torch.randn(2, 12)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "image", "units", "parameters"),
    [
        ("mlp", (1, 28, 28), 3, 2_913_290 + 3 * 2048),  # 784-1024-1024-1024-10 and batch normalisation
        ("lenet", (1, 28, 28), 4, 61_706),  # the usual count for LeNet-5
        ("allcnn", (3, 32, 32), 8, 1_369_738),  # 1.37 M in the paper
        ("vgg11", (3, 32, 32), 8, 9_231_114 - 2752),  # kuangliu's counts less the biases of the convolutions
        ("vgg13", (3, 32, 32), 10, 9_416_010 - 2944),
        ("vgg16", (3, 32, 32), 13, 14_728_266 - 4224),
        ("vgg19", (3, 32, 32), 16, 20_040_522 - 5504),
        ("resnet18", (3, 32, 32), 9, 11_173_962),  # kuangliu
        ("resnet18", (3, 224, 224), 9, 11_689_512 - 990 * 513),  # torchvision, with 10 classes
        ("preact_resnet18", (3, 32, 32), 9, 11_171_146 + 1024),  # kuangliu, and the last BN of the paper
        ("resnet20", (3, 32, 32), 10, 269_722),  # 0.27 M in the paper, and so on
        ("plainnet", (3, 32, 32), 19, 269_722),  # of the same size: shortcut A has no parameters
        ("resnet32", (3, 32, 32), 16, 464_154),
        ("resnet56", (3, 32, 32), 28, 853_018),
        ("resnet110", (3, 32, 32), 55, 1_727_962),
    ],
)
def test_size_is_the_published_one(name, image, units, parameters):
    model = build(name, image)
    assert (len(model.units), count(model)) == (units, parameters)


@pytest.mark.parametrize(
    ("name", "image", "units", "millions"),
    [("vgg8b", (1, 28, 28), 7, 7.3), ("vgg8b", (3, 32, 32), 7, 8.9), ("vgg11b", (3, 32, 32), 10, 11.6)],
)
def test_local_loss_nets_have_the_published_size(name, image, units, millions):
    model = build(name, image)
    assert (len(model.units), round(count(model) / 1e6, 1)) == (units, millions)
    assert round(count(build(name, image, width=2)) / 1e6, 1) > 2.5 * millions


def test_local_losses_read_before_dropout_and_pool_as_in_the_local_loss_code():
    """What a unit emits is what its activation made; dropout (of whole maps) and pool come on the way to the next."""
    layer = [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    dense = [nn.Flatten, nn.Linear, nn.BatchNorm1d, nn.ReLU]
    model = build("vgg8b", dropout=0.2)
    kinds = [[type(m) for m in unit] for unit in model.units]
    after_pool = [nn.Dropout2d, nn.MaxPool2d, *layer]
    assert kinds == [
        layer,
        [nn.Dropout2d, *layer],
        after_pool,
        [nn.Dropout2d, *layer],
        after_pool,
        after_pool,
        [nn.Dropout2d, nn.MaxPool2d, *dense],
    ]
    assert [type(m) for m in model.head] == [nn.Dropout, nn.Linear]
    mlp = build("mlp", dropout=0.2)
    assert [[type(m) for m in unit] for unit in mlp.units] == [dense, [nn.Dropout, *dense], [nn.Dropout, *dense]]
    assert [type(m) for m in mlp.head] == [nn.Dropout, nn.Linear]


def test_shortcut_a_keeps_every_second_pixel_and_adds_zero_channels():
    block = build("resnet20").units[4]
    x = torch.randn(1, 16, 8, 8)
    out = block.shortcut(x)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert out[:, :8].abs().sum() == out[:, 24:].abs().sum() == 0


def test_weights_are_a_function_of_the_seed():
    first, second = build("vgg11").state_dict(), build("vgg11").state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- costs


def test_vgg16_costs_its_convolutions():
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    widths = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    expected = [2 * 9 * i * o * s * s for (i, o), s in zip(pairwise(widths), sides, strict=True)]
    assert [unit.flops for unit in measure(build("vgg16"))] == expected
    assert sum(expected) == pytest.approx(626e6, rel=1e-3)


def small() -> BlockModel:
    units = [nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Dropout(0.5))]
    return BlockModel(units, nn.Linear(6, 3), image=(4,), classes=3, name="small", names=["a", "b"])


def test_unit_costs_by_hand():
    first, second = measure(small())
    assert (first.shape, first.parameters, first.flops) == ((8,), 4 * 8 + 8, 2 * 4 * 8)
    assert (second.shape, second.parameters, second.flops) == ((6,), 8 * 6 + 6, 2 * 8 * 6)
    assert first.memory == 4 * (4 + 8)  # the input, for the weight's gradient, and the ReLU's output
    assert second.memory == 4 * 6  # its input is the storage that the first ReLU saved already


class Restless(nn.Module):
    """Draws and counts even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + torch.randn_like(x)


@pytest.mark.parametrize(
    "look", [measure, BlockModel.shapes, lambda m: m.cut(2, "time"), lambda m: summary(m, m.cut(2))]
)
def test_looking_leaves_no_trace(look):
    model = build("vgg8b", (3, 8, 8), dropout=0.5)
    model.units[1] = nn.Sequential(Restless(), *model.units[1])
    model.train()
    model.units[2].eval()
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    modes = [m.training for m in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    look(model)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), grads, strict=True))
    assert torch.is_grad_enabled()


# --- cuts


def brute_force(costs: list[int], blocks: int) -> list[int]:
    """Every split, judged one by one."""
    splits = [[0, *inner, len(costs)] for inner in combinations(range(1, len(costs)), blocks - 1)]
    sums = {tuple(edges): [sum(costs[a:b]) for a, b in pairwise(edges)] for edges in splits}
    return list(min(sums, key=lambda edges: (max(sums[edges]), sum(s * s for s in sums[edges]), edges)))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=9), st.data())
def test_partition_is_exact(costs, data):
    blocks = data.draw(st.integers(1, len(costs)))
    assert partition(costs, blocks) == brute_force(costs, blocks)


@pytest.mark.parametrize("balance", ["flops", "memory"])
def test_a_number_of_blocks_is_balanced_by_cost(balance):
    model = build("vgg16")
    units = measure(model)
    costs = [u.flops if balance == "flops" else u.memory * 128 + 4 * u.parameters for u in units]
    for blocks in (2, 4, 5):
        edges = brute_force(costs, blocks)
        assert model.cut(blocks, balance) == [range(a, b) for a, b in pairwise(edges)]
    assert model.cut(4, "flops") != model.cut(4, "memory")


def test_cut_by_time_is_a_cut():
    cut = build("lenet").cut(3, "time")
    assert len(cut) == 3
    assert [i for units in cut for i in units] == [0, 1, 2, 3]


def test_cut_by_hand_and_by_word():
    model = build("vgg16")
    assert model.cut([2, 4, 7]) == [range(0, 2), range(2, 4), range(4, 7), range(7, 13)]
    assert model.cut("max") == model.cut(13) == model.cut("13") == [range(i, i + 1) for i in range(13)]
    assert model.cut(1) == model.cut([]) == [range(13)]


def test_a_cut_does_not_alter_the_model():
    model = build("vgg11")
    keys, units = list(model.state_dict()), list(model.units)
    for blocks in (1, 3, "max", [2, 5]):
        model.cut(blocks)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(model.units, units, strict=True))


@pytest.mark.parametrize("blocks", [20, 0, -1, "many", True, 2.5, None])
def test_a_wrong_number_of_blocks_is_one_sentence(blocks):
    with pytest.raises(UserError) as error:
        build("vgg16").cut(blocks)
    assert str(error.value) == f"blocks={blocks} but vgg16 has 13 units; choose 1-13, max, or a list of cut points"


@pytest.mark.parametrize("blocks", [[0, 3], [4, 2], [3, 3], [13], ["a"], [2.0]])
def test_wrong_cut_points_are_one_sentence(blocks):
    with pytest.raises(UserError) as error:
        build("vgg16").cut(blocks)
    assert str(error.value) == (
        f"blocks={blocks} but vgg16 has 13 units; choose increasing cut points between 1 and 12, or 13 as the last, "
        "which makes the head a block of its own"
    )


# --- mistakes


@pytest.mark.parametrize(
    ("name", "image", "changes", "part"),
    [
        ("lenet", (1, 8, 8), {}, "lenet needs images of at least 12x12, but these are 8x8; choose"),
        ("vgg16", (784,), {}, "vgg16 reads images (channels, height, width), but the data has shape [784]; use mlp"),
        ("vgg16", (3, 32, 32), {"depth": 12}, "model.depth=12: must be 4, 11, 13, 16 or 19"),
        ("resnet20", (3, 32, 32), {"depth": 21}, "model.depth=21: must be 6n+2 layers"),
        ("plainnet", (3, 32, 32), {"depth": 21}, "model.depth=21: must be 6n+2 layers"),
        ("resnet20", (3, 32, 32), {"shortcut": "C"}, "model.shortcut=C: must be A or B"),
        ("mlp", (4,), {"activation": "rleu"}, "did you mean 'relu'?"),
        ("mlp", (4,), {"dropout": 1.5}, "model.dropout=1.5: must be a number of at least 0 and below 1"),
        ("mlp", (4,), {"depth": 0}, "depth=0"),
        ("mlp", (4,), {"width": [3, 0]}, "model.width[1]=0: must be"),
        ("mlp", (4,), {"width": []}, "width=[]"),
        ("basic_cnn", (3, 8, 8), {"width": 0}, "model.width=0: must be a whole number of at least 1"),
        ("basic_cnn", (3, 8, 8), {"hidden": -1}, "hidden=-1"),
        ("vgg8b", (3, 8, 8), {"width": 0}, "width=0"),
    ],
)
def test_a_mistake_is_one_sentence(name, image, changes, part):
    with pytest.raises(UserError) as error:
        build(name, image, **changes)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_balance():
    with pytest.raises(UserError, match="did you mean 'flops'"):
        build("lenet").cut(2, "flop")


# --- summary


class NeedsLabels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, h, y):
        assert y.dtype == torch.int64
        return self.linear(h)


class NeedsTheImage(NeedsLabels):
    def forward(self, h, y, image):
        return self.linear(h)


def test_summary_by_hand():
    model = small()
    rows = summary(model, model.cut("max"), [{"head": nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))}, {}])
    assert (rows[0].units, rows[0].emits, rows[0].parameters, rows[0].flops) == ("a", (8,), 40, 64)
    assert (rows[0].aux_parameters, rows[0].aux_flops, rows[0].share) == (16 + 27, 48, 0.75)
    assert (rows[1].parameters, rows[1].flops) == (54 + 21, 96 + 36)  # with the model's head
    assert (rows[1].aux_parameters, rows[1].aux_flops) == (0, 0)
    text = render(rows)
    assert "75.0%" in text
    assert text.splitlines()[-1] == "inference drops the auxiliary networks: 43 of 158 parameters (27.2%)"


def test_an_auxiliary_may_read_labels_and_one_that_needs_more_counts_parameters_only():
    model = small()
    rows = summary(model, model.cut("max"), [{"synthesizer": NeedsLabels()}, {}])
    assert (rows[0].aux_parameters, rows[0].aux_flops, rows[0].share) == (72, 128, 2.0)
    rows = summary(model, model.cut("max"), [{"branch": NeedsTheImage()}, {}])
    assert (rows[0].aux_parameters, rows[0].aux_flops, rows[0].share) == (72, None, None)
    assert "n/a" in render(rows)


@pytest.mark.slow
def test_the_table_fits_100_columns():
    names = [f"features.{i}.block.conv_expansion" for i in range(2)]
    units = [nn.Sequential(nn.Conv2d(3, 512, 3, padding=1)), nn.Sequential(nn.Conv2d(512, 2048, 1, stride=2))]
    head = nn.Sequential(nn.Flatten(), nn.Linear(2048 * 49, 1000))
    model = BlockModel(units, head, image=(3, 14, 14), classes=1000, name="wide", names=names)
    auxiliary = {"head": nn.Sequential(nn.Flatten(), nn.Linear(512 * 196, 999))}
    text = render(summary(model, model.cut("max"), [auxiliary, {}]))
    assert max(map(len, text.splitlines())) <= 100
    assert "512x14x14" in text


def test_importing_the_models_imports_neither_torchvision_nor_timm():
    code = "import sys, locallearn.models; print([m for m in ('torchvision', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
