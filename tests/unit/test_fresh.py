"""New units like those of a model, and the heads that are made of them."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from torch import nn

from helpers.nets import tiny_learner, tiny_model
from locallearn.auxiliary import MLP, AugLocal
from locallearn.config.compose import choices
from locallearn.config.targets import model_builder
from locallearn.contract import BlockSpec
from locallearn.engine import Setup
from locallearn.engine.assemble import specs_of
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.models.gpt import gpt
from locallearn.models.plain import lenet, mlp
from locallearn.models.resnet import BasicBlock, cifar_resnet, preact_resnet
from locallearn.objectives import CrossEntropy
from locallearn.strategies.greedy import DGL

MAPS = {"resnet": cifar_resnet, "preact": preact_resnet, "lenet": lenet, "mlp": mlp}


def specs(model: BlockModel, blocks: int | str = "max") -> list[BlockSpec]:
    return specs_of(model, model.cut(blocks), Setup())


def values(module: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in module.state_dict().values()]


@pytest.mark.parametrize("name", MAPS)
def test_a_new_unit_is_like_the_old_one_with_numbers_of_its_own(name):
    model = MAPS[name]((3, 16, 16), 5)
    before = values(model)
    for unit, old in zip(specs(model)[0].above, model.units[1:], strict=True):
        torch.manual_seed(3)
        new, again = unit.build(unit.reads), unit.build(unit.reads)
        torch.manual_seed(3)
        repeated = unit.build(unit.reads)
        assert [t.shape for t in values(new)] == [t.shape for t in old.state_dict().values()]
        assert new(torch.randn(4, *unit.reads)).shape[1:] == unit.emits
        assert {id(p) for p in new.parameters()}.isdisjoint({id(p) for p in model.parameters()})
        weights = [p for p in new.parameters() if p.dim() > 1]
        assert weights
        for p, q, r in zip(weights, (p for p in again.parameters() if p.dim() > 1), old.parameters(), strict=False):
            assert not torch.equal(p, q)
            assert r.shape != p.shape or not torch.equal(p, r)
        assert all(torch.equal(p, q) for p, q in zip(new.parameters(), repeated.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(before, values(model), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*choices("model")} - {"torchvision", "timm"}))
def test_every_unit_of_the_zoo_can_be_built(name):
    recipe = model_builder(yaml.safe_load(choices("model")[name].read_text()), [])
    shape, words, graph = (3, 32, 32), None, None
    if name == "gcn":
        shape, graph = (16,), torch.stack([torch.arange(8), torch.arange(8).roll(1)])
    elif name == "rnn":
        shape = (6, 5)
    elif name == "gpt":
        shape, words = (6,), 10
    model = recipe(shape, 10, graph, words)
    (spec,) = specs_of(model, [range(0, 1)], Setup()) if len(model.units) > 1 else specs(model)
    for unit in spec.above:
        count = model.samples or 2
        built = unit.build(unit.reads)
        assert built(torch.randn(count, *unit.reads)).shape == (count, *unit.emits)
        assert all(torch.isfinite(t).all() for t in built.state_dict().values() if t.is_floating_point())


def test_it_begins_as_units_of_the_model_do():
    """He's fan-out deviation in a residual net, N(0, 0.02) in a transformer; statistics at 0 and 1, also after
    training has moved those of the old one."""
    model = cifar_resnet((3, 16, 16), 5, depth=20)
    model(torch.randn(8, 3, 16, 16) + 3)  # moves the statistics
    torch.manual_seed(0)
    new = specs(model)[0].above[-1].build((64, 4, 4))
    deviation = math.sqrt(2 / (64 * 9))
    assert new.conv1.weight.std().item() == pytest.approx(deviation, rel=0.02)
    assert torch.equal(new.bn1.running_mean, torch.zeros(64))
    assert int(new.bn1.num_batches_tracked) == 0
    tokens = gpt((16,), 50, 50, layers=3, width=64)
    block = specs(tokens)[0].above[-1].build((16, 64))
    assert block.expand.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert block.reduce.weight.std().item() == pytest.approx(0.02 / math.sqrt(6), rel=0.05)
    assert not block.expand.bias.any()


@pytest.mark.parametrize(
    "moved", [{"dtype": torch.float64}, {"memory_format": torch.channels_last}, {"device": "meta"}]
)
def test_what_became_of_the_units_does_not_matter(moved):
    """Those of another stage of a pipeline are nowhere, those of this one have been moved."""
    model = cifar_resnet((3, 16, 16), 5, depth=20)
    above = specs(model)[0].above
    torch.manual_seed(1)
    here = above[4].build(above[4].reads)
    model.units.to(**moved)
    torch.manual_seed(1)
    assert all(
        torch.equal(p, q) for p, q in zip(here.parameters(), above[4].build(above[4].reads).parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("model", "index", "reads", "emits"),
    [
        (cifar_resnet((3, 32, 32), 5, depth=20), 9, (16, 32, 32), (64, 16, 16)),
        (cifar_resnet((3, 32, 32), 5, depth=20), 9, (16, 8, 8), (64, 8, 8)),
        (preact_resnet((3, 32, 32), 5), 8, (64, 32, 32), (512, 16, 16)),
        (lenet((1, 28, 28), 5), 2, (3, 9, 9), (120,)),
        (mlp((1, 28, 28), 5, width=[30, 20]), 1, (77,), (20,)),
        (tiny_model(), 3, (2, 12, 12), (6, 6, 6)),
    ],
)
def test_another_input_halves_the_sides_where_they_are_twice_as_long(model, index, reads, emits):
    (unit,) = [unit for unit in specs(model)[0].above if unit.index == index]
    assert unit.build(reads)(torch.randn(2, *reads)).shape[1:] == emits


def test_what_cannot_be_built_is_one_sentence():
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return x * self.scale

    model = BlockModel([nn.Linear(4, 4), Own()], nn.Linear(4, 2), image=(4,), classes=2, name="own")
    (unit,) = specs(model)[0].above
    with pytest.raises(UserError, match=r"Own, which holds tensors of its own, has no reset_parameters\(\)"):
        unit.build((4,))
    tokens = gpt((16,), 50, 50, layers=3, width=64)
    with pytest.raises(UserError, match=r"new TransformerBlock is needed for inputs \[16, 32\]"):
        specs(tokens)[0].above[1].build((16, 32))


def test_units_of_a_users_own_module():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 5))
    calls = []
    net[2].register_forward_hook(lambda *_: calls.append(1))
    model = as_blocks(net, image=(3, 8, 8))
    calls.clear()
    above = specs(model)[0].above
    calls.clear()
    for unit in above:
        assert unit.build(unit.reads)(torch.randn(2, *unit.reads)).shape[1:] == unit.emits
    assert not calls, "a hook of the user's belongs to the user's module"


# --- AugLocal --------------------------------------------------------------------------------------------------------


def heads(model: BlockModel, **options) -> list[list[int]]:
    return [[unit.index for unit in AugLocal(**options).chosen(spec.above)] for spec in specs(model)[:-1]]


def test_which_layers_a_head_is_like():
    """The stem and 15 blocks of a ResNet-32, by hand: d falls from 2 to max(1, round(2 - q)), q = l / 28."""
    chosen = heads(cifar_resnet((3, 32, 32), 10, depth=32), layers=2)
    assert chosen[0] == [8, 15]
    expected = []
    for lowest in range(15):
        q = 0.5 * lowest / 14
        d = max(1, round(2 * (1 - q) + q))
        expected.append([*range(lowest + 1, 16)] if d >= 15 - lowest else [
            round(lowest + (15 - lowest) / d * i) for i in range(1, d + 1)
        ])  # fmt: skip
    assert chosen == expected
    assert chosen[14] == [15]
    assert heads(cifar_resnet((3, 32, 32), 10, depth=32), layers=9)[14] == [15], "one block for every d"
    assert all(indices == sorted(set(indices)) for indices in heads(lenet((1, 28, 28), 10), layers=3, decay=0.0))


def test_a_head_of_a_resnet_32_halves_twice():
    spec = specs(cifar_resnet((3, 32, 32), 10, depth=32))[0]
    first, second, *rest = AugLocal(layers=2).build_below(spec.above, spec.emits, 10)
    assert isinstance(first, BasicBlock)
    assert [first.conv2.out_channels, second.conv2.out_channels] == [32, 64]
    assert [first.conv1.stride, second.conv1.stride] == [(2, 2), (2, 2)]
    assert [type(layer).__name__ for layer in rest] == ["AdaptiveAvgPool2d", "Flatten", "Linear"]
    one = AugLocal(layers=1).build_below(spec.above, spec.emits, 10)
    assert [type(layer).__name__ for layer in one] == [
        "BasicBlock", "AdaptiveAvgPool2d", "Flatten", "BatchNorm1d", "Linear",
    ]  # fmt: skip
    assert one[0].conv1.stride == (2, 2)


def test_with_all_layers_and_the_weights_of_the_trunk_it_answers_as_the_model():
    model = cifar_resnet((3, 16, 16), 10, depth=20).eval()
    spec = specs(model)[3]
    head = AugLocal(layers=20, decay=0.0).build_below(spec.above, spec.emits, 10).eval()
    trunk = nn.Sequential(*model.units[4:], *model.head)
    head.load_state_dict(trunk.state_dict())
    x = torch.randn(4, *spec.emits)
    assert torch.equal(head(x), trunk(x))


def test_it_trains_every_block_and_leaves_the_model_as_it_began():
    model = tiny_model()
    strategy = DGL(objective=CrossEntropy(), auxiliary=AugLocal(layers=2))
    learner = tiny_learner(strategy, model, total_steps=4)
    plain = tiny_learner(DGL(objective=CrossEntropy(), auxiliary=MLP()), model, total_steps=4)
    pairs = zip(learner.model.parameters(), plain.model.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    x, y = torch.randn(8, 2, 6, 6, dtype=torch.float64), torch.randint(3, (8,))
    for name, loss in learner.step(x, y).items():
        assert math.isfinite(loss), name
    changed = [not torch.equal(p, q) for p, q in zip(learner.model.parameters(), plain.model.parameters(), strict=True)]
    assert all(changed)


def test_a_loss_that_reads_other_features_refuses():
    with pytest.raises(UserError, match="auxiliary=auglocal is made of units like those above a block"):
        AugLocal().build((4,), 3)
