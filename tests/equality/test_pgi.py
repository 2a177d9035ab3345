"""PGI in both forms against plain forwards with one summed loss, written here from the copied parts, in float64."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.marks import slow
from helpers.nets import (
    SGD_CONSTANT,
    assembled,
    assert_same,
    bare_backprop,
    tiny_batches,
    tiny_learner,
    tiny_model,
    trained,
)
from locallearn.auxiliary import CNN, MLP, Linear
from locallearn.auxiliary.branch import Level, Routing, Stem
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.pgi import PGI, CausalPGI

NARROW = {"auxiliary": MLP(layers=1, width=8), "width": 6}
FORMS = {"pgi": PGI, "pgi_causal": CausalPGI}
WEIGHT = 0.25


@pytest.fixture(params=sorted(FORMS))
def form(request) -> type[PGI]:
    return FORMS[request.param]


def pooled_model() -> BlockModel:
    """Maps of 6x6, 3x3, 3x3 and 1x1, so that every kind of resizing happens."""
    torch.manual_seed(0)
    width, pools = [2, 4, 5, 3, 6], [1, 2, 1, 3]
    units = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.AvgPool2d(p))
        for (a, b), p in zip(itertools.pairwise(width), pools, strict=True)
    ]
    head = nn.Sequential(nn.Flatten(), nn.Linear(6, 3))
    return BlockModel(units, head, image=(2, 6, 6), classes=3, name="pooled")


def mixed_model() -> BlockModel:
    """Maps, then vectors."""
    torch.manual_seed(0)
    conv = nn.Sequential(nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU())
    units = [conv, nn.Sequential(nn.Flatten(), nn.Linear(36, 7), nn.ReLU()), nn.Sequential(nn.Linear(7, 5), nn.Tanh())]
    return BlockModel(units, nn.Linear(5, 3), image=(2, 6, 6), classes=3, name="mixed")


def vector_model() -> BlockModel:
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((9, 7), (7, 5), (5, 6))]
    return BlockModel(units, nn.Linear(6, 3), image=(9,), classes=3, name="vectors")


def sequence_model() -> BlockModel:
    """Sequences [T, D], and the last one's mean for the head."""
    torch.manual_seed(0)
    units = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((4, 7), (7, 5), (5, 6))]
    head = nn.Sequential(nn.Flatten(), nn.Linear(5 * 6, 3))
    return BlockModel(units, head, image=(5, 4), classes=3, name="sequences")


class Rows(nn.Module):
    """An image [B, C, H, W] as a sequence of its rows [B, H, C * W]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


def rows_model() -> BlockModel:
    """An image, sequences, a vector."""
    torch.manual_seed(0)
    units = [
        nn.Sequential(Rows(), nn.Linear(12, 7), nn.Tanh()),
        nn.Sequential(nn.Linear(7, 5), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(30, 6), nn.Tanh()),
        nn.Sequential(nn.Linear(6, 6), nn.Tanh()),
    ]
    return BlockModel(units, nn.Linear(6, 3), image=(2, 6, 6), classes=3, name="rows")


MODELS = {
    "maps": tiny_model,
    "pooled": pooled_model,
    "mixed": mixed_model,
    "vectors": vector_model,
    "sequences": sequence_model,
    "rows": rows_model,
}


def batches_for(model: BlockModel, steps: int = 5, batch: int = 8) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(batch, *model.image, generator=g, dtype=torch.float64), torch.randint(3, (batch,), generator=g))
        for _ in range(steps)
    ]


class Plain(nn.Module):
    """The whole net and its branch as anybody would write them, on copies of the learner's parts: one uncut graph.

    Shares with the strategy only the convolutions, norms and classifiers; wiring, views, resizing and coupling are
    written again. `local` cuts the main path between blocks and `detached` the taps.
    """

    def __init__(self, learner, causal: bool, taps: str = "gradient") -> None:
        super().__init__()
        self.model = copy.deepcopy(learner.model)
        blocks = copy.deepcopy([block.auxiliary for block in learner.blocks])
        branch = None if causal else blocks[-1]["branch"]
        self.stem = blocks[0]["stem"] if causal else branch.stem
        self.routings = nn.ModuleList([b["routing"] for b in blocks[:-1]])
        self.levels = nn.ModuleList([b["level"] for b in blocks[:-1]] if causal else branch.levels)
        self.causal, self.taps = causal, taps

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        h, maps = x, []
        for unit in self.model.units:
            h = unit(h.detach() if self.taps == "local" else h)
            maps.append(h.detach() if self.taps == "detached" else h)
        true = F.cross_entropy(self.model.head(h), y)
        routes = [r.conv(as_map(m)) for r, m in zip(self.routings, maps[:-1], strict=True)]
        a, losses = self.stem.rest(self.stem.conv(as_map(x))), []
        for k, level in enumerate(self.levels):
            grid = as_map(maps[k]).shape[2:]
            a = resized(a, grid)
            for r in routes[k : k + 1] if self.causal else routes[k:]:
                a = a + resized(r, grid)
            for unit in level.couplings:
                left, right = a[:, : a.shape[1] // 2], a[:, a.shape[1] // 2 :]
                left = left + unit.f(right)
                a = torch.cat([left, right + unit.g(left)], dim=1)
            losses.append(F.cross_entropy(level.classifier(a), y))
        return true, losses


def as_map(t: Tensor) -> Tensor:
    if t.dim() == 2:
        return t[:, :, None, None]
    return t if t.dim() == 4 else t.permute(0, 2, 1)[:, :, :, None]


def resized(t: Tensor, grid: torch.Size) -> Tensor:
    """Means of equal cells, or copies: enough for sides that divide each other."""
    for dim, target in zip((2, 3), grid, strict=True):
        side = t.shape[dim]
        if side >= target:
            assert side % target == 0
            t = t.unflatten(dim, (target, side // target)).mean(dim + 1)
        else:
            t = t.repeat_interleave(target // side, dim)
    return t


def everything(learner) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.parameters()}


def as_learner(plain: Plain) -> dict[str, nn.Parameter]:
    """Plain's parameters under the learner's names."""
    last = len(plain.model.units) - 1
    names = {f"model.{n}": p for n, p in plain.model.named_parameters()}
    for k, (routing, level) in enumerate(zip(plain.routings, plain.levels, strict=True)):
        names |= {f"auxiliary.{k}.routing.{n}": p for n, p in routing.named_parameters()}
        at = f"auxiliary.{k}.level" if plain.causal else f"auxiliary.{last}.branch.levels.{k}"
        names |= {f"{at}.{n}": p for n, p in level.named_parameters()}
    at = "auxiliary.0.stem" if plain.causal else f"auxiliary.{last}.branch.stem"
    return names | {f"{at}.{n}": p for n, p in plain.stem.named_parameters()}


@pytest.mark.parametrize("taps", ["gradient", *map(slow, ("detached", "local"))])
@pytest.mark.parametrize("kind", sorted(MODELS))
def test_both_forms_are_one_summed_loss(form, kind, taps):
    """5 steps of one optimizer on one graph: the model, the routing, the branch and its classifiers agree."""
    model = MODELS[kind]()
    batches = batches_for(model)
    learner = tiny_learner(form(**NARROW, taps=taps, couplings=2), model, blocks="max")
    plain = Plain(learner, form is CausalPGI, taps)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    start = everything(learner)
    for x, y in batches:
        learner.learn(x, y)
        optimizer.zero_grad()
        true, losses = plain(x, y)
        (true + WEIGHT * sum(losses)).backward()
        optimizer.step()
    expected, found = as_learner(plain), everything(learner)
    assert expected.keys() == found.keys()
    for name, p in expected.items():
        assert torch.allclose(p, found[name], rtol=1e-10, atol=1e-12), name
        assert not torch.equal(start[name], found[name]), f"{name} does not learn"


def test_detached_taps_leave_backprop_alone(form):
    """Bit for bit, with dropout too; the branch still learns."""
    batches, model = tiny_batches(), tiny_model()
    assert_same(trained(form(**NARROW, taps="detached"), batches).model, bare_backprop(model, batches))
    model = tiny_model(dropout=0.3)
    backprop = trained(Backprop(), batches, model)
    assert_same(trained(form(**NARROW, taps="detached"), batches, model).model, backprop.model)
    with pytest.raises(AssertionError):
        assert_same(trained(form(**NARROW), batches, model).model, backprop.model)


def test_without_weight_it_is_backprop(form):
    batches = tiny_batches()
    assert_same(trained(form(**NARROW, weight=0.0), batches).model, trained(Backprop(), batches).model)


def test_local_taps_are_the_only_teacher(form):
    """With the main path cut, block k's gradient is that of the auxiliary losses alone, the last block's that of the
    true one, and another head changes nothing below it."""
    (x, y), lr = tiny_batches(1)[0], 0.1
    optim = SGD(lr=lr, momentum=0.0, weight_decay=0.0, schedule="constant")
    learner = tiny_learner(form(**NARROW, taps="local"), optim=optim)
    plain = Plain(learner, form is CausalPGI, "local")
    other = tiny_learner(form(**NARROW, taps="local"), optim=optim)
    with torch.no_grad():
        other.model.head[2].weight.mul_(3.0)
    learner.learn(x, y)
    other.learn(x, y)
    true, losses = plain(x, y)
    for k, unit in enumerate(plain.model.units):
        own = list(unit.parameters())
        teacher = true if k == 3 else WEIGHT * sum(losses)
        gradients = torch.autograd.grad(teacher, own, retain_graph=True)
        for p, g, q in zip(own, gradients, learner.model.units[k].parameters(), strict=True):
            assert torch.allclose(p - lr * g, q, rtol=1e-11, atol=1e-14)
        same = torch.equal(learner.model.units[k][0].weight, other.model.units[k][0].weight)
        assert same == (k < 3)


def test_which_level_teaches_which_block():
    """Full: every level reaches every tap, as it or a later level reads the map. Causal: level j hears blocks <= j."""
    x, y = tiny_batches(1)[0]
    for form in (PGI, CausalPGI):
        plain = Plain(tiny_learner(form(**NARROW, taps="local")), form is CausalPGI, "local")
        _, losses = plain(x, y)
        for j, k in itertools.product(range(3), repeat=2):
            weight = plain.model.units[k][0].weight
            (g,) = torch.autograd.grad(losses[j], weight, retain_graph=True, allow_unused=True)
            assert (g is not None) == (form is PGI or k <= j)


def test_one_block_has_no_branch(form):
    learner = tiny_learner(form(**NARROW), blocks=1, total_steps=1)
    assert not list(learner.blocks[0].auxiliary.parameters())


def test_the_branch_does_not_ship(form):
    batches = tiny_batches()
    learner = trained(form(**NARROW), batches)
    assert learner.model.state_dict().keys() == tiny_model().state_dict().keys()
    x = batches[0][0]
    with_branch = learner.predict(x)
    assert [z is None for z in with_branch] == [True, True, True, False]
    for block in learner.blocks:
        block.auxiliary.clear()
    assert torch.equal(learner.predict(x)[-1], with_branch[-1])
    assert torch.equal(learner.model.eval()(x), with_branch[-1])


def test_units_of_the_branch_can_be_inverted():
    """Input from output, through all couplings of a level: in eval mode and with batch statistics."""
    torch.manual_seed(0)
    for size in ((4, 6, 5), (7, 3), (9,)):
        level = Level(size, 8, 3, lambda features: Linear().build(features, 3)).double()
        for training in (True, False):
            level.train(training)
            a = torch.randn(4, 8, *level.grid, dtype=torch.float64)
            b = level(a, [])
            assert (a - b).abs().max() > 0.1
            for unit in reversed(level.couplings):
                b = unit.inverse(b)
            assert torch.allclose(a, b, rtol=0, atol=1e-10)


def test_the_stem_sees_every_pixel():
    """Down to a single position, no pixel is skipped; and the image pays for no gradient."""
    torch.manual_seed(0)
    for image, grid in [((2, 28, 28), (1, 1)), ((3, 32, 32), (16, 16)), ((1, 8, 8), (2, 4)), ((6, 4), (1, 1))]:
        conv = Stem(image, 4, grid).double().conv
        side = image[1:] if len(image) == 3 else (image[0], 1)
        x = torch.zeros(1, image[0] if len(image) == 3 else image[1], *side, dtype=torch.float64, requires_grad=True)
        conv(x).sum().backward()
        assert (x.grad.abs().amax(1) > 0).all(), f"{image} at {grid}"
        assert conv(x).shape[2:] == grid
    x = tiny_batches(1)[0][0].requires_grad_()
    stem = Stem((2, 6, 6), 4, (6, 6)).double()
    stem(x).sum().backward()
    assert x.grad is None
    assert stem.conv.weight.grad is not None


def test_messages(form):
    """One gradient per map or for the branch, none for the image; block 0 answers with none."""
    learner = tiny_learner(form(**NARROW))
    answers = {}
    original = learner.stage._finish

    def finish(running, message):
        answer = original(running, message)
        answers[running[0].spec.index] = [g is not None for g in answer]
        return answer

    learner.stage._finish = finish  # type: ignore[method-assign]
    learner.learn(*tiny_batches(1)[0])
    full = {3: [True, False, True, True, True], 2: [True, False, True, True], 1: [True, False, True], 0: [False]}
    causal = {3: [True], 2: [True, True], 1: [True, True], 0: [False]}
    assert answers == (full if form is PGI else causal)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(MODELS))
@pytest.mark.parametrize("auxiliary", [MLP(layers=1), CNN(), Linear()])
def test_two_samples_are_enough(form, kind, auxiliary):
    """Batch norm over the two values that vectors leave; bf16 and channels-last as well."""
    model = MODELS[kind]()
    strategy = form(auxiliary=auxiliary, width=4)
    for options in ({"precision": "fp64"}, {"precision": "bf16", "channels_last": True}):
        learner = assembled(copy.deepcopy(model), strategy, SGD_CONSTANT, model.cut("max"), **options)
        for x, y in batches_for(model, steps=2, batch=2):
            learner.learn(x, y)
        assert all(torch.isfinite(p).all() for _, p in learner.parameters())


def test_nodes_without_labels_are_ignored(form):
    """A graph's nodes are one batch: the losses read only those with a label, and the rest still passes through."""
    model = vector_model()
    (x, y), *_ = batches_for(model, batch=12)
    hidden = y.clone()
    hidden[4:] = -100
    learner = tiny_learner(form(**NARROW), model, blocks="max")
    plain = Plain(learner, form is CausalPGI)
    learner.learn(x, hidden)
    true, losses = plain(x, hidden)
    assert all(loss.isfinite() for loss in [true, *losses])
    (true + WEIGHT * sum(losses)).backward()
    for name, p in as_learner(plain).items():
        p0 = p.detach() - 0.1 * (p.grad + 1e-3 * p.detach())
        assert torch.allclose(p0, dict(learner.parameters())[name], rtol=1e-10, atol=1e-13), name


def test_the_auxiliary_loss_is_noted(form):
    x, y = tiny_batches(1)[0]
    learner = tiny_learner(form(**NARROW))
    true, losses = Plain(learner, form is CausalPGI)(x, y)
    found = learner.step(x, y)
    assert found["loss"] == pytest.approx(true.item(), rel=1e-12)
    if form is PGI:
        assert found["block/03/auxiliary_loss"] == pytest.approx(sum(losses).item(), rel=1e-12)
    else:
        notes = [found[f"block/0{k}/auxiliary_loss"] for k in range(3)]
        assert notes == pytest.approx([loss.item() for loss in losses], rel=1e-12)


def test_batch_statistics_move_once(form):
    learner = tiny_learner(form(**NARROW))
    learner.learn(*tiny_batches(1)[0])
    norms = [m for block in learner.blocks for m in (*block.layers.modules(), *block.auxiliary.modules())]
    assert {int(m.num_batches_tracked) for m in norms if isinstance(m, nn.modules.batchnorm._BatchNorm)} == {1}


def test_integer_inputs_are_read():
    """Indices, as of words, enter the stem as numbers."""
    assert Stem((5,), 4, (1, 1))(torch.arange(10).view(2, 5)).shape == (2, 4, 1, 1)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"weight": -1.0}, "weight=-1.0: must be a number of at least 0"),
        ({"weight": math.inf}, "must be a finite number"),
        ({"taps": "detach"}, "did you mean 'detached'"),
        ({"width": 7}, "must be a whole number of at least 2 and divisible by 2"),
        ({"width": 0}, "at least 2"),
        ({"couplings": 0}, "couplings=0: must be a whole number of at least 1"),
    ],
)
def test_options_are_refused_in_a_sentence(form, options, sentence):
    with pytest.raises(UserError, match=sentence):
        form(auxiliary=Linear(), **options)


def test_a_shape_that_is_no_map_is_refused():
    with pytest.raises(UserError, match=r"cannot read \[2, 3, 4, 5\]"):
        Routing((2, 3, 4, 5), 4)
