"""Local forward gradient against autograd, closed forms, finite differences and what theory says of its noise."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.contract import Packet
from locallearn.engine import SGD, Learner
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.forward_gradient import HEADS, ForwardGradient, LocalHeads, weighed
from locallearn.strategies.forward_mode import layers_of

B, D, C = 4, 6, 3
RATE = 0.1
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


@dataclasses.dataclass(frozen=True)
class Given(ForwardGradient):
    """With noise that a test has chosen, by draw and layer."""

    vectors: tuple[tuple[Tensor, ...], ...] = ()

    def noise(self, out: Tensor, draw: int, number: int) -> Tensor:
        return self.vectors[draw][number].expand_as(out).clone()


def net(act: type[nn.Module] = nn.Tanh, layers: int = 1, norm: bool = True) -> BlockModel:
    torch.manual_seed(0)
    sizes = [5, *[D] * layers]
    parts = [
        part for n, m in pairwise(sizes) for part in (nn.Linear(n, m), *([nn.LayerNorm(m)] if norm else []), act())
    ]
    head = nn.Linear(D, C)
    return BlockModel([nn.Sequential(*parts)], head, image=(5,), classes=C, name="net").double()


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 5, generator=g, dtype=torch.float64), torch.randint(C, (B,), generator=g)


def learner_of(strategy: ForwardGradient, model: BlockModel) -> Learner:
    """With heads that already say something."""
    learner = tiny_learner(strategy, model, 1, optim=OPTIM)
    torch.manual_seed(3)
    nn.init.normal_(learner.blocks[0].auxiliary[HEADS].weight)
    return learner


def local_loss(learner: Learner, h: Tensor, y: Tensor) -> Tensor:
    """Of each sample and group [B, G], written anew."""
    heads = learner.blocks[0].auxiliary[HEADS]
    found = []
    for weight, bias, part in zip(heads.weight, heads.bias, h.chunk(heads.groups, 1), strict=True):
        away = part - part.mean(1, keepdim=True)
        z = away / (away.square().mean(1, keepdim=True) + 1e-5).sqrt() @ weight + bias
        found.append(F.cross_entropy(z, y, reduction="none"))
    return torch.stack(found, 1)


def true_gradients(learner: Learner, x: Tensor, y: Tensor) -> list[Tensor]:
    units = learner.model.units
    loss = local_loss(learner, units[0](x), y).sum() / len(y)
    return list(torch.autograd.grad(loss, list(units.parameters())))


def step(learner: Learner, x: Tensor, y: Tensor) -> list[Tensor]:
    """What stood in the place of the gradients of the units."""
    before = [p.detach().clone() for p in learner.model.units.parameters()]
    learner.step(x, y)
    return [(old - p.detach()) / RATE for old, p in zip(before, learner.model.units.parameters(), strict=True)]


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.Sigmoid])
@pytest.mark.parametrize("groups", [1, 3])
def test_over_all_unit_vectors_it_is_autograd(act, groups):
    """With groups, whose losses read their own features alone, as many draws as a group has features do."""
    size = D // groups
    vectors = [torch.eye(size, dtype=torch.float64)[i].repeat(groups) * math.sqrt(size) for i in range(size)]
    strategy = Given(draws=size, groups=groups, vectors=tuple((v,) for v in vectors))
    learner = learner_of(strategy, net(act))
    expected = true_gradients(learner, *batch())
    for ours, truth in zip(step(learner, *batch()), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)


def test_over_all_unit_vectors_of_two_layers_it_is_autograd():
    """One vector has an entry in one layer alone."""
    entries = torch.eye(2 * D, dtype=torch.float64) * math.sqrt(2 * D)
    strategy = Given(draws=2 * D, vectors=tuple((each[:D], each[D:]) for each in entries))
    learner = learner_of(strategy, net(layers=2))
    expected = true_gradients(learner, *batch())
    for ours, truth in zip(step(learner, *batch()), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)


def test_the_gradients_of_heads_are_exact():
    learner = learner_of(ForwardGradient(draws=3, groups=2), net())
    heads, model = learner.blocks[0].auxiliary[HEADS], learner.model
    x, y = batch()
    h = model.units[0](x).detach()
    loss = local_loss(learner, h, y).sum() / B + F.cross_entropy(model.head(h), y)
    parameters = [heads.weight, heads.bias, *model.head.parameters()]
    expected = torch.autograd.grad(loss, parameters)
    before = [p.detach().clone() for p in parameters]
    learner.step(x, y)
    for old, p, truth in zip(before, parameters, expected, strict=True):
        torch.testing.assert_close((old - p.detach()) / RATE, truth, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("draws", "cosine"),
    [(1, math.gamma(D / 2) / math.gamma((D + 1) / 2) / math.sqrt(math.pi)), (4, math.sqrt(4 / (4 + D)))],
)
def test_length_and_direction_are_those_of_theory(draws, cosine):
    """E|g|^2 = (n + 2) |true|^2 for one draw, (n + 1 + M) / M for M of them. The cosine to the true one is that
    to a random direction for one draw, about sqrt(M / (M + n)) for M; n = D here. Every row is the same sample, with
    noise of its own."""
    rows = 20_000
    learner = learner_of(ForwardGradient(), net(norm=False))
    x, y = (t[:1].expand(rows, *t.shape[1:]) for t in batch())
    (bias,) = true_gradients(learner, x[:1], y[:1])[1:]  # which only adds what stands for the output of the layer
    found = torch.zeros(rows, D, dtype=torch.float64)
    block, strategy = learner.blocks[0], learner.strategy
    for draw in range(draws):
        tried = strategy.tried(block, x, draw)
        grad = weighed(tried.layers[0], strategy.change(block, tried, y), tried.h, last=True)
        found += rows * grad / draws
    error = (found.mean(0) - bias).norm() / bias.norm()
    assert error < 4 * math.sqrt((D + 1) / (draws * rows)), "no bias"
    length = found.square().sum(1).mean() / bias.square().sum()
    assert length.item() == pytest.approx((D + 1 + draws) / draws, rel=0.05)
    found_cosine = F.cosine_similarity(found, bias[None]).mean().item()
    assert found_cosine == pytest.approx(cosine, rel=0.01 if draws == 1 else 0.08)


def forward_mode(learner: Learner, x: Tensor, y: Tensor) -> Tensor:
    """Of each group and sample [G, B], over the number of samples."""
    block, strategy = learner.blocks[0], learner.strategy
    assert isinstance(strategy, ForwardGradient)
    return strategy.change(block, strategy.tried(block, x, 0), y)


def test_the_derivative_is_a_central_difference():
    """Of a net of two layers, with noise in both."""
    vectors = torch.randn(2, B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    learner = learner_of(Given(vectors=(tuple(vectors),)), net(layers=2))
    x, y = batch()
    parts = list(learner.model.units[0])

    def loss(size: float) -> Tensor:
        h = parts[1](parts[0](x)) + size * vectors[0]
        h = parts[4](parts[3](parts[2](h))) + size * vectors[1]
        return local_loss(learner, parts[5](h), y)

    with torch.no_grad():
        expected = (loss(1e-5) - loss(-1e-5)) / 2e-5
    torch.testing.assert_close(forward_mode(learner, x, y), expected.t() / B, rtol=0, atol=1e-9)


def test_with_noise_that_weights_would_make_it_is_the_weight_perturbed_derivative():
    """V x in the outputs is V in the weights: of one sample, dL by `torch.func.jvp` over the parameters."""
    x, y = (t[:1] for t in batch())
    g = torch.Generator().manual_seed(5)
    model = net(norm=False, layers=2)
    shapes = [model.units[0][k].weight.shape for k in (0, 2)]
    a, b = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in shapes)
    hidden = model.units[0][1](model.units[0][0](x)).detach()
    learner = learner_of(Given(vectors=((x @ a.t(), hidden @ b.t()),)), model)
    unit = learner.model.units[0]
    names = ("0.weight", "2.weight")
    weights = {n: p.detach() for n, p in unit.named_parameters()}

    def loss(first: Tensor, second: Tensor) -> Tensor:
        h = torch.func.functional_call(unit, weights | dict(zip(names, (first, second), strict=True)), (x,))
        return local_loss(learner, h, y).sum()

    _, expected = torch.func.jvp(loss, tuple(weights[n] for n in names), (a, b))
    torch.testing.assert_close(forward_mode(learner, x, y).sum(), expected, rtol=0, atol=1e-12)


def test_broken_weights_above_change_nothing():
    model = tiny_model(dropout=0.2)
    ours, broken = (tiny_learner(ForwardGradient(draws=2, groups=2), model) for _ in range(2))
    (x, y), *_ = tiny_batches(1)
    with torch.no_grad():
        for p in (*broken.model.units[2].parameters(), *broken.blocks[2].auxiliary.parameters()):
            p.fill_(1e300)
    ours.learn(x, y)
    with pytest.raises(Exception, match="block 2"):
        broken.learn(x, y)
    for k in (0, 1):
        for p, q in zip(ours.model.units[k].parameters(), broken.model.units[k].parameters(), strict=True):
            assert torch.equal(p, q)


def test_draws_see_the_same_dropout_and_move_statistics_once():
    """Of more draws the first is that of one draw; what is averaged is the same net."""
    model = tiny_model(dropout=0.5)
    learners = [tiny_learner(ForwardGradient(draws=n), model, total_steps=1) for n in (1, 3)]
    (x, y), *_ = tiny_batches(1)
    for learner in learners:
        learner.learn(x, y)
    one, three = ({n: t for n, t in each.state().items() if "running" in n} for each in learners)
    assert one
    assert all(torch.equal(t, three[n]) for n, t in one.items())


class Doubled(nn.Module):
    """A layer that is used twice, and a rectifier between that no `nn.Sequential` shows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(F.relu(self.layer(x)))


def test_a_layer_that_is_used_twice_learns_from_both():
    model = BlockModel([Doubled()], nn.Linear(D, C), image=(D,), classes=C, name="twice").double()
    entries = torch.eye(2 * D, dtype=torch.float64) * math.sqrt(2 * D)
    strategy = Given(draws=2 * D, vectors=tuple((each[:D], each[D:]) for each in entries))
    learner = learner_of(strategy, model)
    x = torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = batch()[1]
    expected = true_gradients(learner, x, y)
    for ours, truth in zip(step(learner, x, y), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)


def test_what_all_samples_see_learns_from_all_of_them():
    """A table of positions gives no row for each sample, also where there are as many."""

    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Embedding(B, 2)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.position(torch.arange(x.shape[1]))

    units = [nn.Sequential(Embedding(), nn.Tanh(), nn.Flatten())]
    model = BlockModel(units, nn.Linear(2 * B, C), image=(B, 2), classes=C, name="places").double()
    entries = torch.eye(2 * B, dtype=torch.float64).view(-1, B, 2) * math.sqrt(2 * B)
    learner = learner_of(Given(draws=2 * B, vectors=tuple((each,) for each in entries)), model)
    x, y = torch.randn(B, B, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), batch()[1]
    expected = true_gradients(learner, x, y)
    for ours, truth in zip(step(learner, x, y), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)


def test_layers_are_what_holds_parameters_with_the_norm_behind_it():
    unit = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Doubled(), nn.Sequential(nn.Linear(4, 4)))
    found = [([type(m).__name__ for m in layer.modules], layer.rectified) for layer in layers_of(unit)]
    assert found == [(["Conv2d", "BatchNorm2d"], True), (["Linear"], False), (["Linear"], False)]


@pytest.mark.parametrize(("emits", "most", "groups"), [((12, 4, 4), 5, 4), ((7,), 4, 1), ((3, 10), 64, 10)])
def test_groups_divide_what_a_block_emits(emits, most, groups):
    spec = tiny_learner(ForwardGradient(), blocks=4).blocks[0].spec._replace(emits=emits)
    heads = LocalHeads(spec, most)
    assert heads(torch.randn(B, *emits)).shape == (groups * B, C)


def test_samples_without_a_label_teach_nothing():
    x, y = batch()
    found = []
    for hidden in (x[2:], 7 * x[2:]):
        learner = learner_of(ForwardGradient(groups=2), net())
        learner.step(torch.cat([x[:2], hidden]), torch.cat([y[:2], torch.full((2,), -1)]))
        found.append([p.detach() for p in learner.model.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*found, strict=True))


def test_what_has_no_forward_mode_is_one_sentence():
    class Far(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cdist(x[:, None], x[:, None] * 0).flatten(1)

    units = [nn.Sequential(nn.Linear(5, D), Far())]
    model = BlockModel(units, nn.Linear(1, C), image=(5,), classes=C, name="far").double()
    with pytest.raises(UserError, match=r"a forward mode of all that block 0 computes, .* has none .*cdist"):
        tiny_learner(ForwardGradient(), model, 1).step(*batch())


@pytest.mark.slow
def test_a_compiled_block_learns_the_same():
    model = net()
    plain, compiled = (tiny_learner(ForwardGradient(), model, 1, optim=OPTIM, compiled=c) for c in (False, True))
    for learner in (plain, compiled):
        learner.step(*batch())
    for p, q in zip(plain.model.parameters(), compiled.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)


def test_evaluation_answers_with_the_head_and_inner_blocks_with_the_mean_of_their_groups():
    learner = tiny_learner(ForwardGradient(groups=2))
    (x, y), *_ = tiny_batches(1)
    learner.step(x, y)
    *inner, last = learner.predict(x)
    assert all(each is not None for each in inner)
    assert torch.equal(last, learner.model.eval()(x))
    block = learner.blocks[0]
    heads = block.auxiliary[HEADS]
    h = block.layers.eval()(x)
    assert torch.allclose(inner[0], heads(h).view(heads.groups, len(x), -1).mean(0))
    assert learner.strategy.predict(block, Packet(h, y)) is not None


def test_a_layer_in_two_places_is_one_or_refused():
    torch.manual_seed(0)
    shared = nn.Linear(D, D)
    pair = nn.Sequential(nn.Sequential(shared, nn.Tanh()), nn.Sequential(shared, nn.Tanh()))
    model = BlockModel([pair], nn.Linear(D, C), image=(D,), classes=C, name="shared").double()
    entries = torch.eye(2 * D, dtype=torch.float64) * math.sqrt(2 * D)
    learner = learner_of(Given(draws=2 * D, vectors=tuple((each[:D], each[D:]) for each in entries)), model)
    x, y = torch.randn(B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), batch()[1]
    expected = true_gradients(learner, x, y)
    for ours, truth in zip(step(learner, x, y), expected, strict=True):
        torch.testing.assert_close(ours, truth, rtol=0, atol=1e-12)
    pair = nn.Sequential(nn.Sequential(shared, nn.LayerNorm(D)), nn.Sequential(shared, nn.Tanh()))
    model = BlockModel([pair], nn.Linear(D, C), image=(D,), classes=C, name="shared").double()
    with pytest.raises(UserError, match="is used in two places"):
        tiny_learner(ForwardGradient(), model, 1).step(x, y)
