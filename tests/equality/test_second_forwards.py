"""A second forward (recomputation, prediction, a probe) moves no buffer of any module, and no mode."""

from __future__ import annotations

import copy
import itertools
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from helpers.marks import slow
from helpers.nets import SGD_CONSTANT, assembled, assert_same, tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, make, slow_where_alike
from locallearn.analysis.quiet import Rerun, undisturbed
from locallearn.engine.gradients import strategy_gradients, true_gradients
from locallearn.models import BlockModel
from locallearn.models.coupling import Coupling, Reversible
from locallearn.strategies.backprop import Backprop, Checkpoint


class Mean(nn.Module):
    """Takes off the batch's mean, and keeps a running one: in place, or as another tensor at every step."""

    def __init__(self, channels: int, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x):
        now = x.mean((0, 2, 3)) if self.training else self.mean
        if self.training and self.in_place:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(now, alpha=0.1)
        elif self.training:
            self.mean = (0.9 * self.mean + 0.1 * now).detach()
        return x - now[:, None, None]


class Momentum(nn.Module):
    """Computes with the buffer that it moves, which autograd saves, in both modes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))

    def forward(self, x):
        with torch.no_grad():
            self.scale.mul_(0.5).add_(x.std((0, 2, 3)), alpha=0.5)
        return x / self.scale.clone()[:, None, None] * self.scale[:, None, None].sqrt()


class Shifted(nn.BatchNorm2d):
    """A batch norm with a forward of its own, which moves its statistics whatever it is told."""

    def forward(self, x):
        mean = x.mean((0, 2, 3))
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
        return x - mean[:, None, None] * self.weight[:, None, None]


def spectral(channels: int) -> nn.Module:
    return parametrizations.spectral_norm(nn.Conv2d(channels, channels, 1))


def old_spectral(channels: int) -> nn.Module:
    return nn.utils.spectral_norm(nn.Conv2d(channels, channels, 1))


MOVERS = {
    "batch norm": nn.BatchNorm2d,
    "batch norm without statistics": partial(nn.BatchNorm2d, track_running_stats=False),
    "batch norm with a forward of its own": Shifted,
    "instance norm": partial(nn.InstanceNorm2d, affine=True, track_running_stats=True),
    "a running mean, in place": partial(Mean, in_place=True),
    "a running mean, replaced": partial(Mean, in_place=False),
    "a buffer that it computes with": Momentum,
    "spectral norm": spectral,
    "spectral norm of older versions": old_spectral,
}


@pytest.fixture(params=sorted(MOVERS))
def model(request) -> BlockModel:
    torch.manual_seed(0)
    make_norm, width = MOVERS[request.param], [2, 4, 5, 4]
    units = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), make_norm(b), nn.ReLU(), nn.Dropout(0.2))
        for a, b in itertools.pairwise(width)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    return BlockModel(units, head, image=(2, 6, 6), classes=3, name="mover").double()


def learner_of(model: BlockModel, strategy, **options):
    model = copy.deepcopy(model)
    return assembled(model, strategy, SGD_CONSTANT, model.cut("max"), precision="fp64", **options)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_recomputation_is_backprop_in_weights_and_buffers(model, micro_batches):
    ours, truth = (learner_of(model, strategy, micro_batches=micro_batches) for strategy in (Checkpoint(), Backprop()))
    for x, y in tiny_batches(4):
        ours.learn(x, y)
        truth.learn(x, y)
    assert_same(ours.model, truth.model)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_recomputation_keeps_to_norms_in_eval_mode(frozen):
    ours, truth = (learner_of(tiny_model(), strategy) for strategy in (Checkpoint(), Backprop()))
    for learner in (ours, truth):
        norm = learner.model.units[frozen][1].eval()
        before = norm.running_mean.clone()
        for x, y in tiny_batches(3):
            learner.learn(x, y)
        assert torch.equal(norm.running_mean, before)
        assert not norm.training
    assert_same(ours.model, truth.model)


def state(learner) -> dict:
    """Every buffer, as object and as value, and every mode."""
    modules = dict.fromkeys(m for b in learner.blocks for root in [learner.model, *b.roots()] for m in root.modules())
    return {
        (i, name): (id(b), b.clone()) for i, m in enumerate(modules) for name, b in m.named_buffers(recurse=False)
    } | {i: (m.training, torch.empty(0)) for i, m in enumerate(modules)}


LOOKS = {
    "predict": lambda learner, x, y: learner.predict(x),
    "features": lambda learner, x, y: list(learner.features(x)),
    "strategy_gradients": strategy_gradients,
    "true_gradients": true_gradients,
}


def assert_nothing_moves(learner, look) -> None:
    x, y = tiny_batches(1)[0]
    before = state(learner)
    with torch.no_grad() if look in ("predict", "features") else torch.enable_grad():
        LOOKS[look](learner, x, y)
    after = state(learner)
    assert before.keys() == after.keys()
    for key, (what, values) in before.items():
        assert what == after[key][0], key
        assert torch.equal(values, after[key][1]), key


@pytest.mark.parametrize("look", LOOKS)
def test_looking_moves_no_buffer_and_no_mode(model, look):
    learner = learner_of(model, Backprop())
    learner.learn(*tiny_batches(1)[0])
    learner.model.units[1][1].eval()
    learner.model.head.eval()
    assert_nothing_moves(learner, look)


@pytest.mark.parametrize("look", ["strategy_gradients", *map(slow, sorted(LOOKS.keys() - {"strategy_gradients"}))])
@pytest.mark.parametrize("name", slow_where_alike(FILES))
def test_looking_changes_no_strategy(name, look):
    """Neither what it holds nor what it learns next, with a norm that its user keeps in eval mode."""
    seen, undisturbed_one = (tiny_learner(make(name), tiny_model(dropout=0.2), total_steps=4) for _ in range(2))
    for learner in (seen, undisturbed_one):
        learner.model.units[0][1].eval()
    for x, y in tiny_batches(4):
        for learner in (seen, undisturbed_one):
            learner.learn(x, y)
        assert_nothing_moves(seen, look)
    ours = seen.state()
    assert all(torch.equal(t, ours[k]) for k, t in undisturbed_one.state().items())
    assert seen.model.units[0][1].num_batches_tracked == 0


def test_a_model_in_eval_mode_is_put_to_training_but_a_part_stays():
    learner = tiny_learner(make("dgl"), total_steps=9)
    batches = iter(tiny_batches(4))
    learner.model.eval()
    learner.learn(*next(batches))
    assert all(m.training for b in learner.blocks for m in b.layers.modules()), "as model.train() would"
    learner.model.units[2].eval()  # a whole block
    before = learner.model.units[2][1].running_mean.clone()
    learner.learn(*next(batches))
    assert torch.equal(learner.model.units[2][1].running_mean, before)
    assert not any(m.training for m in learner.model.units[2].modules())
    learner.model.train()
    learner.learn(*next(batches))
    assert not torch.equal(learner.model.units[2][1].running_mean, before)


def test_a_frozen_phase_gives_modes_back():
    """Greedy: a block waits in eval mode, and learns in the modes that its user had given it."""
    learner = tiny_learner(make("greedy"), tiny_model(), total_steps=8)
    learner.model.units[2][1].eval()
    for step, (x, y) in enumerate(tiny_batches(8)):
        learner.learn(x, y)
        modes = [learner.model.units[k][1].training for k in range(4)]
        assert modes == [k == step // 2 and k != 2 for k in range(4)]
        assert learner.model.units[2][2].training == (step // 2 == 2)
    assert learner.model.units[2][1].num_batches_tracked == 0


@pytest.mark.parametrize("kind", ["spectral norm", "instance norm", "a running mean, in place", "batch norm"])
def test_reversible_units_move_their_buffers_once(kind):
    torch.manual_seed(0)
    units = [Coupling(MOVERS[kind](3), MOVERS[kind](3)) for _ in range(2)]
    reversible = Reversible(units).double().train()
    plain = copy.deepcopy(reversible)
    x = torch.randn(4, 6, 5, 5, dtype=torch.float64, requires_grad=True)
    x2 = x.detach().clone().requires_grad_()
    reversible(x).square().sum().backward()
    y = x2
    for unit in plain.units:
        y = unit(y)
    y.square().sum().backward()
    for name, b in plain.named_buffers():
        assert torch.equal(b, reversible.get_buffer(name)), name
    assert torch.allclose(x.grad, x2.grad, rtol=1e-9)
    for name, p in plain.named_parameters():
        assert torch.allclose(p.grad, reversible.get_parameter(name).grad, rtol=1e-8, atol=1e-10), name


def test_a_buffer_of_two_modules_stays_one():
    a, b = Mean(2, in_place=True), Mean(2, in_place=True)
    b.mean = a.mean
    net, x = nn.Sequential(a, b), torch.randn(4, 2, 3, 3) + 1
    expected, own = copy.deepcopy(net)(x), a.mean
    with Rerun(net):
        assert a.mean is b.mean is not own
        assert torch.equal(net(x), expected)
    assert a.mean is b.mean is own
    assert not own.any()


def test_what_replaces_a_buffer_is_undone():
    net, x = nn.Sequential(Mean(2, in_place=False)), torch.randn(4, 2, 3, 3) + 1
    own = net[0].mean
    with undisturbed(net):
        net.train()
        net(x)
        assert net[0].mean is not own
    assert net[0].mean is own
    assert not own.any()
