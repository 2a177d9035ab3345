"""Overlapping updates against matrix formulas, whole-graph autograd and the strategies at their two ends, float64."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import SGD_CONSTANT, assert_same, tiny_batches, tiny_learner, tiny_model, trained
from locallearn.auxiliary import MLP, Auxiliary, Linear
from locallearn.contract import BlockSpec, Packet, Route
from locallearn.engine import SGD, Setup, assemble
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.objectives import CrossEntropy, LossAndLogits, Objective, PredSim
from locallearn.strategies.greedy import DGL, Greedy
from locallearn.strategies.overlapping import Overlapping

LOCAL = {"objective": CrossEntropy(), "auxiliary": MLP(layers=1, width=8)}


@dataclass(frozen=True)
class Quadratic(Objective):
    """Half the squared distance of a linear head to the one-hot label, mean over the batch."""

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"head": nn.Linear(spec.emits[0], spec.classes, bias=False)}

    def loss(self, spec: BlockSpec, modules: Mapping[str, nn.Module], h: Tensor, packet: Packet) -> LossAndLogits:
        logits = modules["head"](h)
        return 0.5 * (logits - F.one_hot(packet.y, 3)).pow(2).sum() / len(h), logits


@dataclass(frozen=True)
class Views(Objective):
    """A miniature SimCLR: two views of the image, and the distance between their features. Reads no labels."""

    labels: ClassVar[bool] = False

    def begin(self, packet: Packet) -> Packet:
        return Packet(torch.cat([packet.h, packet.h.flip(-1)]), packet.y.repeat(2), (packet.h,))

    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        return {"projector": nn.Linear(spec.emits[0], 3)}

    def loss(self, spec: BlockSpec, modules: Mapping[str, nn.Module], h: Tensor, packet: Packet) -> LossAndLogits:
        assert packet.side[0].shape[1:] == (2, 6, 6), "the image did not travel"
        return views_loss(modules["projector"], h), None


def views_loss(projector: nn.Module, h: Tensor) -> Tensor:
    first, second = F.normalize(projector(h.mean(dim=(2, 3))) + 1).chunk(2)
    return (first - second).pow(2).mean() - 0.1 * (first - first.mean(0)).pow(2).mean()


def heads_of(learner) -> list[nn.Module]:
    """Copies of what maps every block's output to its logits."""
    classifiers = [copy.deepcopy(block.auxiliary["classifier"]) for block in learner.blocks[:-1]]
    return [*classifiers, copy.deepcopy(learner.model.head)]


def groups(combine: str, reach: int, depth: int) -> list[dict[int, float]]:
    """For every block: which losses its units learn from, with what weight. Written as a table, not a formula."""
    table = []
    for k in range(depth):
        inside = [j for j in range(depth) if k <= j < k + reach]
        if combine == "next":
            table.append({inside[-1]: 1.0})
        else:
            table.append(dict.fromkeys(inside, 1.0 if combine == "sum" else 1.0 / len(inside)))
    return table


def by_autograd(learner, batches, combine: str, reach: int) -> nn.Module:
    """One uncut graph; for every block one autograd call on the losses of its group, one optimizer for all."""
    model, heads = copy.deepcopy(learner.model), heads_of(learner)
    units = list(model.units)
    parameters = [p for m in (*units, *heads) for p in m.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)
    for x, y in batches:
        losses, h = [], x
        for unit, head in zip(units, heads, strict=True):
            h = unit(h)
            losses.append(F.cross_entropy(head(h), y))
        for k, weights in enumerate(groups(combine, reach, len(units))):
            own = list(units[k].parameters())
            total = sum(w * losses[j] for j, w in weights.items())
            for p, g in zip(own, torch.autograd.grad(total, own, retain_graph=True), strict=True):
                p.grad = g
            own = list(heads[k].parameters())
            for p, g in zip(own, torch.autograd.grad(losses[k], own, retain_graph=True), strict=True):
                p.grad = g
        optimizer.step()
    model.head = heads[-1]
    return nn.ModuleList([model, *heads[:-1]])


def assert_close(learner, expected: nn.Module) -> None:
    """The model and every head, up to the order of summation."""
    model, *heads = expected
    for name, p in model.named_parameters():
        assert torch.allclose(p, learner.model.get_parameter(name), rtol=1e-10, atol=1e-13), name
    for block, head in zip(learner.blocks, heads, strict=False):
        for name, p in head.named_parameters():
            q = block.auxiliary["classifier"].get_parameter(name)
            assert torch.allclose(p, q, rtol=1e-10, atol=1e-13), f"head {block.spec.index}: {name}"


@pytest.mark.parametrize("combine", ["sum", "mean", "next"])
def test_pairs_of_a_linear_net_by_matrix_formulas(combine):
    """h1 = A x, h2 = B h1, h3 = C h2 with quadratic local losses; numpy knows nothing of autograd."""
    torch.manual_seed(3)
    units = [nn.Linear(4, 5, bias=False), nn.Linear(5, 6, bias=False), nn.Linear(6, 4, bias=False)]
    model = BlockModel(units, nn.Linear(4, 3, bias=False), image=(4,), classes=3, name="linear")
    strategy = Overlapping(objective=Quadratic(), auxiliary=Linear(), combine=combine)
    plain = SGD(lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant")
    learner = assemble(model, strategy, plain, model.cut(3), Setup(precision="fp64"))
    x, y = torch.randn(7, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 0, 0])

    a, b, c = (unit.weight.detach().numpy().copy() for unit in learner.model.units)
    p, q = (block.auxiliary["head"].weight.detach().numpy().copy() for block in learner.blocks[:2])
    r = learner.model.head.weight.detach().numpy().copy()
    x0, onehot = x.numpy(), np.eye(3)[y.numpy()]
    h1 = x0 @ a.T
    h2 = h1 @ b.T
    h3 = h2 @ c.T
    e1, e2 = (h1 @ p.T - onehot) / 7, (h2 @ q.T - onehot) / 7  # dL/dlogits
    exp = np.exp(h3 @ r.T)
    e3 = (exp / exp.sum(1, keepdims=True) - onehot) / 7  # cross-entropy: softmax minus one-hot
    own_a, own_b, own_c = (e1 @ p).T @ x0, (e2 @ q).T @ h1, (e3 @ r).T @ h2
    next_a, next_b = (e2 @ q @ b).T @ x0, (e3 @ r @ c).T @ h1
    both = {"sum": (1.0, 1.0), "mean": (0.5, 0.5), "next": (0.0, 1.0)}[combine]
    step_a, step_b = (both[0] * own + both[1] * other for own, other in ((own_a, next_a), (own_b, next_b)))

    learner.learn(x, y)
    found = [*(unit.weight for unit in learner.model.units), learner.model.head.weight]
    found += [block.auxiliary["head"].weight for block in learner.blocks[:2]]
    steps = [(a, step_a), (b, step_b), (c, own_c), (r, e3.T @ h3), (p, e1.T @ h1), (q, e2.T @ h2)]
    for parameter, (old, gradient) in zip(found, steps, strict=True):
        np.testing.assert_allclose(parameter.detach().numpy(), old - 0.1 * gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("combine", ["sum", "mean", "next"])
@pytest.mark.parametrize("reach", [2, 3, 4, 7])
def test_every_block_learns_from_its_group(reach, combine):
    """All reaches over 4 blocks, above them too, with batch norm and momentum, against explicit autograd."""
    batches = tiny_batches()
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach, combine=combine))
    expected = by_autograd(learner, batches, combine, reach)
    for x, y in batches:
        learner.learn(x, y)
    assert_close(learner, expected)


@pytest.mark.parametrize("combine", ["sum", "mean", "next"])
@pytest.mark.parametrize("reach", [3, 4, 5])
def test_groups_in_a_deep_net(reach, combine):
    """Six blocks: losses end at several blocks at once, in the middle of the net."""
    batches, model = tiny_batches(3), tiny_model(units=6)
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach, combine=combine), model, blocks=6)
    expected = by_autograd(learner, batches, combine, reach)
    for x, y in batches:
        learner.learn(x, y)
    assert_close(learner, expected)


class Dropping(Auxiliary):
    """A classifier that draws: in which half of a step it runs can be seen."""

    def build(self, size: tuple[int, ...], classes: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.3), Linear().build(size, classes))


@pytest.mark.parametrize("objective", [CrossEntropy(), PredSim()])
@pytest.mark.parametrize("combine", ["sum", "mean", "next"])
def test_reach_one_is_dgl(combine, objective):
    batches, model = tiny_batches(), tiny_model(dropout=0.3)
    local = {"auxiliary": Dropping(), "objective": objective}
    strategy = Overlapping(**local, reach=1, combine=combine)
    assert strategy.route is Route.NONE
    ours, dgl = trained(strategy, batches, model).state(), trained(DGL(**local), batches, model).state()
    assert ours.keys() == dgl.keys()
    assert all(torch.equal(t, dgl[name]) for name, t in ours.items())


@pytest.mark.parametrize("reach", [4, 9])
def test_next_of_all_blocks_is_backprop(reach):
    """Bit for bit: the heads learn, and nobody learns from them."""
    batches = tiny_batches()
    model = tiny_model().double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    learner = trained(Overlapping(**LOCAL, reach=reach, combine="next"), batches)
    assert_same(learner.model, model)


def test_sum_of_all_blocks_is_the_summed_loss():
    """One graph, one loss, one backward: deep supervision with weight 1."""
    batches = tiny_batches()
    learner = tiny_learner(Overlapping(**LOCAL, reach=4))
    model, heads = copy.deepcopy(learner.model), heads_of(learner)
    everything = nn.ModuleList([*model.units, *heads])
    optimizer = torch.optim.SGD(everything.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for x, y in batches:
        learner.learn(x, y)
        h, loss = x, 0.0
        for unit, head in zip(model.units, heads, strict=True):
            h = unit(h)
            loss = loss + F.cross_entropy(head(h), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.head = heads[-1]
    assert_close(learner, nn.ModuleList([model, *heads[:-1]]))


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("reach", [2, 3])
def test_more_reach_than_blocks(blocks, reach):
    """One block is backprop; of two blocks, the lower one hears both losses."""
    batches = tiny_batches()
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach), blocks=[2] if blocks == 2 else 1)
    model, heads = copy.deepcopy(learner.model), heads_of(learner)
    everything = nn.ModuleList([*model.units, *heads])
    optimizer = torch.optim.SGD(everything.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for x, y in batches:
        learner.learn(x, y)
        middle = model.units[1](model.units[0](x))
        loss = F.cross_entropy(heads[-1](model.units[3](model.units[2](middle))), y)
        if blocks == 2:
            loss = loss + F.cross_entropy(heads[0](middle), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.head = heads[-1]
    assert_close(learner, nn.ModuleList([model, *heads[:-1]]))


@pytest.mark.parametrize("combine", ["sum", "next"])
@pytest.mark.parametrize("reach", [1, 2, 3])
def test_no_loss_from_further_away_arrives(reach, combine):
    """Another head at block j: the units of block k move by other bits exactly where k listens to L_j."""
    x, y = tiny_batches(1)[0]
    strategy = Overlapping(**LOCAL, reach=reach, combine=combine)
    plain = tiny_learner(strategy)
    plain.learn(x, y)
    for j in range(4):
        other = tiny_learner(strategy)
        head = other.blocks[j].head if j == 3 else other.blocks[j].auxiliary["classifier"]
        with torch.no_grad():
            for p in head.parameters():
                p.mul_(1.5)
        other.learn(x, y)
        for k in range(4):
            same = torch.equal(plain.model.units[k][0].weight, other.model.units[k][0].weight)
            assert same == (j not in groups(combine, reach, 4)[k]), f"L_{j} at block {k}"


@pytest.mark.parametrize("reach", [2, 3, 4])
def test_dropout_is_drawn_once(reach):
    """Hooks record the masks of the one forward; autograd with these masks gives the same update."""
    x, y = tiny_batches(1)[0]
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach), tiny_model(dropout=0.4))
    before, heads = copy.deepcopy(learner.model), heads_of(learner)
    masks: list[Tensor] = []
    for unit in learner.model.units:
        unit[3].register_forward_hook(lambda m, i, out: masks.append((out != 0).double() / 0.6))
    learner.learn(x, y)
    assert len(masks) == 4, "more than one forward per block"
    losses, h = [], x
    for unit, head, mask in zip(before.units, heads, masks, strict=True):
        h = unit[2](unit[1](unit[0](h))) * mask  # where ReLU gave 0 the mask does not matter
        losses.append(F.cross_entropy(head(h), y))
    for k, weights in enumerate(groups("sum", reach, 4)):
        own = list(before.units[k].parameters())
        gradients = torch.autograd.grad(sum(losses[j] for j in weights), own, retain_graph=True)
        for p, g, q in zip(own, gradients, learner.model.units[k].parameters(), strict=True):
            assert torch.allclose(p - 0.1 * (g + 1e-3 * p), q, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("reach", [2, 3])
def test_batch_statistics_move_once(reach):
    batches = tiny_batches(1)
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach))
    before = copy.deepcopy(learner.model.units)
    learner.learn(*batches[0])
    h = batches[0][0]
    for old, new in zip(before, learner.model.units, strict=True):
        mean = old[0](h).mean(dim=(0, 2, 3))
        h = old(h)
        assert torch.allclose(new[1].running_mean, 0.1 * mean)
        assert new[1].num_batches_tracked == 1


@pytest.mark.parametrize("reach", [2, 3, 4])
def test_an_objective_without_labels(reach):
    """All blocks learn from it, views begin at block 0, and the head only reads out."""
    batches = tiny_batches(3)
    learner = tiny_learner(Overlapping(objective=Views(), auxiliary=Linear(), reach=reach))
    model, projectors = (
        copy.deepcopy(learner.model),
        [copy.deepcopy(b.auxiliary["projector"]) for b in learner.blocks],
    )
    everything = nn.ModuleList([model, *projectors])
    optimizer = torch.optim.SGD(everything.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for x, y in batches:
        learner.learn(x, y)
        losses, h = [], torch.cat([x, x.flip(-1)])
        for unit, projector in zip(model.units, projectors, strict=True):
            h = unit(h)
            losses.append(views_loss(projector, h))
        read = F.cross_entropy(model.head(h.detach()), y.repeat(2))
        optimizer.zero_grad()
        for k, weights in enumerate(groups("sum", reach, 4)):
            parts = [(sum(losses[j] for j in weights), model.units[k]), (losses[k], projectors[k])]
            for loss, module in [*parts, *([(read, model.head)] if k == 3 else [])]:
                own = list(module.parameters())
                for p, g in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
                    p.grad = g
        optimizer.step()
    for name, p in model.named_parameters():
        assert torch.allclose(p, learner.model.get_parameter(name), rtol=1e-9, atol=1e-12), name
    for block, projector in zip(learner.blocks, projectors, strict=True):
        assert torch.allclose(projector.weight, block.auxiliary["projector"].weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("reach", "alive"), [(2, 2), (3, 4)])
def test_a_graph_lives_until_its_feedback_came(reach, alive):
    """Pairs hold two graphs, a chain all: counted by an autograd node that every unit's forward makes."""
    held: set[int] = set()
    most = []

    class Watch(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h, k):
            ctx.watch = Token(k)
            return h.view_as(h)

        @staticmethod
        def backward(ctx, g):
            return g, None

    class Token:
        def __init__(self, k):
            self.k = k
            held.add(k)
            most.append(len(held))

        def __del__(self):
            held.discard(self.k)

    class Watched(nn.Module):
        def __init__(self, unit, k):
            super().__init__()
            self.unit, self.k = unit, k

        def forward(self, h):
            h = self.unit(h)
            return Watch.apply(h, self.k) if self.training else h

    model = tiny_model()
    for k in range(4):
        model.units[k] = Watched(model.units[k], k)
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach), model)
    most.clear()
    learner.learn(*tiny_batches(1)[0])
    assert max(most) == alive
    assert not held


@pytest.mark.parametrize(
    ("reach", "combine", "passes"),
    [
        (1, "sum", [1, 1, 1, 1]),
        (2, "sum", [1, 2, 2, 2]),
        (2, "next", [1, 2, 2, 2]),
        (3, "sum", [1, 2, 3, 1]),
        (4, "sum", [1, 1, 1, 1]),
        (9, "next", [1, 1, 1, 1]),
    ],
)
def test_passes_through_a_block(reach, combine, passes):
    """What it costs: backward passes through every block's units in one step, for inputs or for parameters."""
    counts = [0] * 4

    class Count(torch.autograd.Function):
        @staticmethod
        def forward(ctx, h, k):
            ctx.k = k
            return h.view_as(h)

        @staticmethod
        def backward(ctx, g):
            counts[ctx.k] += 1
            return g, None

    learner = tiny_learner(Overlapping(**LOCAL, reach=reach, combine=combine))
    for k, unit in enumerate(learner.model.units):
        unit.register_forward_hook(lambda m, i, h, k=k: Count.apply(h, k))
    learner.learn(*tiny_batches(1)[0])
    assert counts == passes


def test_a_block_without_parameters_passes_on():
    """A pooling block learns nothing itself, and what passes through it is what autograd says."""
    model = tiny_model(units=3)
    model.units.insert(1, nn.AvgPool2d(2))
    model.names.insert(1, "pool")
    for reach in (2, 3, 4):
        batches = tiny_batches(3)
        learner = tiny_learner(Overlapping(**LOCAL, reach=reach), model)
        reference = copy.deepcopy(learner.model), heads_of(learner)
        units, heads = list(reference[0].units), reference[1]
        optimizer = torch.optim.SGD(nn.ModuleList([*units, *heads]).parameters(), **_sgd())
        for x, y in batches:
            learner.learn(x, y)
            losses, h = [], x
            for unit, head in zip(units, heads, strict=True):
                h = unit(h)
                losses.append(F.cross_entropy(head(h), y))
            optimizer.zero_grad()
            for k, weights in enumerate(groups("sum", reach, 4)):
                for loss, module in [(sum(losses[j] for j in weights), units[k]), (losses[k], heads[k])]:
                    own = list(module.parameters())
                    if own:
                        for p, g in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
                            p.grad = g
            optimizer.step()
        for mine, theirs in zip(units, learner.model.units, strict=True):
            for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
                assert torch.allclose(p, q, rtol=1e-10, atol=1e-13)


def _sgd() -> dict[str, float]:
    return {"lr": SGD_CONSTANT.lr, "momentum": SGD_CONSTANT.momentum, "weight_decay": SGD_CONSTANT.weight_decay}


def test_micro_batches_average_the_gradient():
    """Without batch norm, two halves give the gradient of the whole batch, over the chain too."""
    model = tiny_model()
    for unit in model.units:
        unit[1] = nn.Identity()
    local = {"objective": CrossEntropy(), "auxiliary": Linear()}
    for reach in (2, 3):
        whole = trained(Overlapping(**local, reach=reach), tiny_batches(3), model).state()
        halves = trained(Overlapping(**local, reach=reach), tiny_batches(3), model, micro_batches=2).state()
        assert all(torch.allclose(t, halves[name], rtol=1e-9, atol=1e-12) for name, t in whole.items())


def test_routes_follow_the_reach():
    routes = [Overlapping(**LOCAL, reach=reach).route for reach in (1, 2, 3, 4)]
    assert routes == [Route.NONE, Route.NEIGHBOR, Route.CHAIN, Route.CHAIN]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"reach": 0}, "must be a whole number of at least 1"),
        ({"combine": "nxt"}, "did you mean 'next'"),
        ({"combine": "max"}, "must be sum, mean or next"),
    ],
)
def test_options_are_refused_in_a_sentence(options, sentence):
    with pytest.raises(UserError, match=sentence):
        Overlapping(**LOCAL, **options)


@pytest.mark.parametrize(("reach", "combine"), [(1, "sum"), (2, "sum"), (2, "next"), (3, "mean"), (4, "sum")])
def test_a_last_block_with_a_loss_of_its_own(reach, combine):
    """The losses of all blocks but the head's; that reads features which no longer hear of it. Reach 1 is DGL."""
    batches = tiny_batches(3)
    learner = tiny_learner(Overlapping(**LOCAL, reach=reach, combine=combine, last="local"))
    model, classifiers = (
        copy.deepcopy(learner.model),
        [copy.deepcopy(b.auxiliary["classifier"]) for b in learner.blocks],
    )
    everything = nn.ModuleList([model, *classifiers])
    optimizer = torch.optim.SGD(everything.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for x, y in batches:
        found = learner.step(x, y)
        losses, h = [], x
        for unit, classifier in zip(model.units, classifiers, strict=True):
            h = unit(h)
            losses.append(F.cross_entropy(classifier(h), y))
        read = F.cross_entropy(model.head(h.detach()), y)
        assert found["block/03/loss"] == pytest.approx(read.item())
        assert found["block/03/local_loss"] == pytest.approx(losses[3].item())
        optimizer.zero_grad()
        for k, weights in enumerate(groups(combine, reach, 4)):
            parts = [(sum(w * losses[j] for j, w in weights.items()), model.units[k]), (losses[k], classifiers[k])]
            for loss, module in [*parts, *([(read, model.head)] if k == 3 else [])]:
                own = list(module.parameters())
                for p, g in zip(own, torch.autograd.grad(loss, own, retain_graph=True), strict=True):
                    p.grad = g
        optimizer.step()
    assert_close(learner, nn.ModuleList([model, *classifiers]))


def test_local_greedy_learns_a_block_a_phase_and_the_head_in_the_last():
    learner = tiny_learner(Greedy(**LOCAL, last="local"), total_steps=8)
    initial = copy.deepcopy(learner.model)
    for x, y in tiny_batches(6):
        learner.learn(x, y)
    assert_same(learner.model.units[3], initial.units[3])
    assert_same(learner.model.head, initial.head)
    modules = initial.units[3], learner.blocks[3].auxiliary, initial.head
    unit, classifier, head = (copy.deepcopy(m).train() for m in modules)
    parameters = [*unit.parameters(), *classifier.parameters(), *head.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3)
    below = copy.deepcopy(learner.model.units[:3]).eval()
    for x, y in tiny_batches(2, seed=5):
        learner.learn(x, y)
        h = unit(nn.Sequential(*below)(x).detach())
        optimizer.zero_grad()
        (F.cross_entropy(classifier["classifier"](h), y) + F.cross_entropy(head(h.detach()), y)).backward()
        optimizer.step()
    assert_same(learner.model.units[3], unit)
    assert_same(learner.model.head, head)


@pytest.mark.parametrize("strategy", [DGL, Greedy, Overlapping])
def test_other_words_for_the_last_block_are_refused(strategy):
    with pytest.raises(UserError, match=r"strategy.last=locla: did you mean 'local'"):
        strategy(**LOCAL, last="locla")
