"""Any nn.Module as blocks: the same function, the same parameters, and a sentence where it cannot be."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.marks import slow
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.models.foreign import timm_model, torchvision_model


def seeded(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(1)
    return module(x.clone())


def assert_same_function(model: BlockModel, original: nn.Module) -> None:
    """Outputs, gradients and buffers in training mode, then outputs in evaluation mode, bit for bit."""
    twin = copy.deepcopy(original)  # as_blocks shares parameters, so the comparison needs its own
    x = torch.randn(4, *model.image, generator=torch.Generator().manual_seed(3))
    model.train()
    twin.train()
    ours, theirs = seeded(model, x), seeded(twin, x)
    assert torch.equal(ours, theirs)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for (name, p), q in zip(original.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, b), c in zip(original.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(b, c), name
    assert torch.equal(seeded(model.eval(), x), seeded(twin.eval(), x))


def assert_units_leave_their_input_alone(model: BlockModel) -> None:
    model.train()
    h = torch.randn(2, *model.image)
    for name, unit in zip([*model.names, "head"], [*model.units, model.head], strict=True):
        h = h.detach()
        version = h._version
        out = unit(h)
        assert h._version == version, name
        h = out


@pytest.fixture
def resnet() -> nn.Module:
    from torchvision import models

    torch.manual_seed(0)
    return models.resnet18(weights=None, num_classes=10)


FAST = ["resnet18", "mobilenet_v3_small", "efficientnet_b0"]
SLOW = [
    "vgg11_bn",
    "mobilenet_v2",
    "densenet121",
    "regnet_y_400mf",
    "googlenet",
    "shufflenet_v2_x0_5",
    "convnext_tiny",
    "alexnet",
]


@pytest.mark.parametrize("name", [*FAST, *map(slow, SLOW)])
def test_torchvision_nets_compute_the_same(name):
    from torchvision import models

    options = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    torch.manual_seed(0)
    original = models.get_model(name, weights=None, num_classes=10, **options)
    model = as_blocks(original, image=(3, 64, 64))
    assert len(model.units) > 5
    assert {id(p) for p in model.parameters()} == {id(p) for p in original.parameters()}
    assert all(sum(p.numel() for p in unit.parameters()) for unit in model.units)
    owners = [id(p) for unit in [*model.units, model.head] for p in unit.parameters()]
    assert len(owners) == len(set(owners))
    assert_units_leave_their_input_alone(model)
    assert_same_function(model, original)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", slow("vit_tiny_patch16_224")])
def test_timm_nets_compute_the_same(name):
    import timm

    torch.manual_seed(0)
    options = {"img_size": 32, "drop_path_rate": 0.3} if "vit" in name else {"drop_path_rate": 0.3, "drop_rate": 0.2}
    original = timm.create_model(name, num_classes=10, in_chans=1, **options)
    model = as_blocks(original, image=(1, 32, 32))
    assert len(model.units) >= 9
    assert_units_leave_their_input_alone(model)
    assert_same_function(model, original)


def test_units_of_resnet18_are_its_residual_blocks(resnet):
    model = as_blocks(resnet)
    assert model.names == ["maxpool", *(f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1))]
    assert model.shapes()[0] == (64, 8, 8)
    assert model.shapes()[-1] == (512, 1, 1)  # the map: pooling and flattening belong to the head
    assert sum(p.numel() for p in model.head.parameters()) == 512 * 10 + 10
    assert (model.classes, model.name) == (10, "ResNet")


@pytest.mark.slow
def test_cuts_by_name(resnet):
    model = as_blocks(resnet, ["layer1", "layer2"])
    assert model.names == ["layer1", "layer2", "layer4"]
    stage = {id(p) for p in resnet.layer2.parameters()}
    assert {id(p) for p in model.units[1].parameters()} == stage
    assert_same_function(model, resnet)
    assert as_blocks(resnet, ["layer3.0", "bn1"]).names == ["bn1", "layer3.0", "layer4"]
    assert as_blocks(resnet, ["avgpool"]).names == ["avgpool"]


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        (
            "layer1.0.conv1",
            "net cannot be cut after 'layer1.0.conv1': the forward branches at 'maxpool', whose output is still needed "
            "behind it; cut after 'maxpool' or 'layer1.0' instead",
        ),
        (
            "layr2",
            "net has no module 'layr2': did you mean 'layer2'? cut after one of conv1, bn1, relu, maxpool, layer1",
        ),
        ("fc", "net cannot be cut after 'fc': it returns the logits, so nothing is left for the head"),
        ("layer1.0.relu", "net runs 'layer1.0.relu' 2 times, so a cut after it is ambiguous"),
    ],
)
def test_an_impossible_cut_is_one_sentence(resnet, word, sentence):
    with pytest.raises(UserError) as error:
        as_blocks(resnet, ["layer1", word], name="net")
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


def test_as_blocks_leaves_no_trace(resnet):
    resnet.train()
    resnet.layer3.eval()
    modes = [m.training for m in resnet.modules()]
    state = {key: value.clone() for key, value in resnet.state_dict().items()}
    random = torch.get_rng_state()
    as_blocks(resnet)
    assert torch.equal(torch.get_rng_state(), random)
    assert [m.training for m in resnet.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in resnet.state_dict().items())
    assert all(p.grad is None for p in resnet.parameters())
    assert "training" not in vars(nn.Module)


def test_nested_sequential():
    features = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(inplace=True)),
    )
    net = nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
    model = as_blocks(net)
    assert model.names == ["0.0", "0.1", "4"]
    assert model.shapes() == [(8, 15, 15), (8, 13, 13), (16,)]
    assert_units_leave_their_input_alone(model)
    assert_same_function(model, net)


def test_an_in_place_operation_behind_a_named_cut_works_on_a_copy():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    model = as_blocks(net, ["1"], image=(3, 2, 2))
    assert model.names == ["1"]
    assert_units_leave_their_input_alone(model)
    assert_same_function(model, net)


def test_an_in_place_operation_on_the_image_works_on_a_copy():
    net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    model = as_blocks(net, image=(3, 2, 2))
    assert_units_leave_their_input_alone(model)
    assert_same_function(model, net)


class Functional(nn.Module):
    """Reads `self.training` in its forward, writes in place through a view, and has an argument nobody gives."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x, scale=None):
        h = self.a(x.flatten(1))
        h.view(-1).mul_(2)
        h = F.dropout(F.relu(h), 0.5, training=self.training)
        if scale is not None:
            h = h * scale
        h = self.b(h)
        h += 1
        return self.c(F.relu(h, inplace=True))


def test_functional_forward_keeps_both_modes():
    net = Functional()
    model = as_blocks(net, image=(3, 2, 2))
    assert len(model.units) == 2
    assert_units_leave_their_input_alone(model)
    assert_same_function(model, net)
    x = torch.randn(2, 3, 2, 2)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model.units[0](x), model.units[0](x))


def test_weights_that_no_submodule_holds():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(8, n)) for n in (12, 8))
            self.c, self.shift = nn.Linear(8, 3), nn.Parameter(torch.randn(1, 8))

        def forward(self, x):
            h = F.linear(x.flatten(1), self.a).tanh() + self.shift
            return self.c(F.linear(h, self.b).tanh())

    net = Bare()
    model = as_blocks(net, image=(3, 2, 2))
    assert [sum(p.numel() for p in unit.parameters()) for unit in model.units] == [12 * 8 + 8, 8 * 8]
    assert_same_function(model, net)


def test_a_dropout_used_twice_has_a_mode_of_its_own_in_each_unit():
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.drop = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3), nn.Dropout(0.5)

        def forward(self, x):
            return self.c(self.drop(self.b(self.drop(self.a(x.flatten(1))))))

    model = as_blocks(Shared(), image=(3, 2, 2))
    model.units[0].eval()
    x = torch.randn(2, 3, 2, 2)
    h = model.units[0](x)
    assert torch.equal(h, model.units[0](x))
    assert not torch.equal(model.units[1](h), model.units[1](h))


def test_a_weight_used_twice_stays_in_one_unit():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            h = self.a(x.flatten(1)).tanh()
            h = self.b(h).tanh()
            return self.c(F.linear(h, self.b.weight).tanh())

    net = Tied()
    model = as_blocks(net, image=(3, 2, 2))
    assert [sum(p.numel() for p in unit.parameters()) for unit in model.units] == [12 * 8 + 8, 8 * 8 + 8]
    assert_same_function(model, net)
    with pytest.raises(UserError, match="cannot be cut after 'b': a layer before it is used again behind it"):
        as_blocks(net, ["b"], image=(3, 2, 2))


class Deciding(nn.Module):
    """What fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.out = nn.Linear(12, 8), nn.Linear(8, 8)

    def forward(self, x):
        h = self.inner(x.flatten(1))
        if h.sum() > 0:
            h = h * 2
        return self.out(h)


def test_a_submodule_that_decides_on_values_stays_in_one_piece():
    net = nn.Sequential(nn.Identity(), Deciding(), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 3))
    model = as_blocks(net, image=(3, 2, 2))
    assert model.names == ["2", "3"]
    assert_same_function(model, net)
    with pytest.raises(
        UserError, match=r"'1\.inner': '1' stays in one piece, as its forward makes a decision on the val"
    ):
        as_blocks(net, ["1.inner"], image=(3, 2, 2))


def test_a_module_that_decides_on_values_is_refused():
    with pytest.raises(
        UserError, match="Deciding cannot be cut: its forward makes a decision on the values of a tensor"
    ):
        as_blocks(Deciding(), image=(3, 2, 2))


def test_another_way_in_training_is_refused():
    class Branching(Functional):
        def forward(self, x):
            h = self.a(x.flatten(1))
            return self.c(self.b(h)) if self.training else self.c(h)

    with pytest.raises(UserError, match="takes another path in training than in evaluation"):
        as_blocks(Branching(), image=(3, 2, 2))


def test_other_mistakes(resnet):
    with pytest.raises(UserError, match="classes=7 but ResNet returns 10 logits"):
        as_blocks(resnet, classes=7)
    with pytest.raises(UserError, match="ResNet cannot read images of 1x32x32"):
        as_blocks(resnet, image=(1, 32, 32))
    with pytest.raises(UserError, match=r"returns \[2, 4, 30, 30\] for a batch of 2"):
        as_blocks(nn.Sequential(nn.Conv2d(3, 4, 3)))
    with pytest.raises(UserError, match="Sequential has no place for a cut"):
        as_blocks(nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)))


def test_builders():
    model = torchvision_model((3, 32, 32), 7, name="squeezenet1_1")
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert torchvision_model((3, 32, 32), 7, name="resnet18", cuts=["layer2"]).names == ["layer2", "layer4"]
    with pytest.raises(UserError, match="unknown torchvision model 'resnet81': did you mean 'resnet"):
        torchvision_model((3, 32, 32), 10, name="resnet81")
    with pytest.raises(UserError, match="reads 3 channels, but these images have 1; choose model=timm"):
        torchvision_model((1, 32, 32), 10)


@pytest.mark.slow
def test_timm_builder():
    assert timm_model((1, 28, 28), 7)(torch.randn(2, 1, 28, 28)).shape == (2, 7)
    with pytest.raises(UserError, match="unknown timm model 'resnet81': did you mean 'resnet"):
        timm_model((3, 32, 32), 10, name="resnet81")
    with pytest.raises(UserError, match="botnet26t_256 cannot read images of 3x16x16"):
        timm_model((3, 16, 16), 10, name="botnet26t_256")


@pytest.mark.fault("F30")
def test_absent_timm_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as error:
        timm_model((3, 32, 32), 10)
    assert str(error.value) == "timm is not installed; pip install 'locallearn[timm]'"


@pytest.mark.slow
def test_a_traced_model_can_be_copied_and_saved(resnet, tmp_path):
    model = as_blocks(resnet).eval()
    twin = copy.deepcopy(model)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(twin(x), model(x))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = torchvision_model((3, 32, 32), 10, name="resnet18").eval()
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_last_layer_with_one_output_is_the_head(outputs):
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))
    assert as_blocks(net, image=(5,)).names == ["1", "3"]
