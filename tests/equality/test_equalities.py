"""Strategies against code that shares nothing with them: whole-graph autograd and hand-written loops, float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.nets import assert_same, bare_backprop, tiny_batches, tiny_learner, tiny_model, trained
from locallearn.auxiliary import MLP, Linear
from locallearn.engine import SGD
from locallearn.objectives import CrossEntropy, InfoPro, Inpainting, Masked, PredSim, SimCLR
from locallearn.strategies.backprop import Backprop, Checkpoint
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.greedy import DGL, Greedy, Shallow

LOCAL = {"objective": CrossEntropy(), "auxiliary": MLP(layers=1, width=8)}
STRATEGIES = {
    "backprop": Backprop(),
    "checkpoint": Checkpoint(),
    "deep_supervision": DeepSupervision(**LOCAL),
    "dgl": DGL(**LOCAL),
    "greedy": Greedy(**LOCAL),
    "shallow": Shallow(),
}


@pytest.mark.parametrize("blocks", [1, 2, 4, [1], [1, 3]])
def test_backprop_over_any_cut_is_the_bare_loop(blocks):
    batches = tiny_batches()
    assert_same(trained(Backprop(), batches, blocks=blocks).model, bare_backprop(tiny_model(), batches))


def test_dropout_follows_from_the_seed():
    batches, model = tiny_batches(), tiny_model(dropout=0.3)
    one, other = (trained(Backprop(), batches, model, blocks=1, seed=seed).model for seed in (0, 1))
    assert not torch.equal(one.head[2].weight, other.head[2].weight)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("blocks", [2, 4])
def test_checkpoint_is_backprop(blocks, dropout):
    batches, model = tiny_batches(), tiny_model(dropout=dropout)
    plain = trained(Backprop(), batches, model, blocks=blocks)
    assert_same(trained(Checkpoint(), batches, model, blocks=blocks).model, plain.model)


def test_deep_supervision_without_weight_is_backprop():
    batches = tiny_batches()
    silent = trained(DeepSupervision(weight=0.0, **LOCAL), batches)
    assert_same(silent.model, bare_backprop(tiny_model(), batches))


def test_deep_supervision_is_the_summed_loss():
    """One graph, one summed loss, one optimizer."""
    batches, weight = tiny_batches(), 0.3
    learner = tiny_learner(DeepSupervision(weight=weight, anneal="linear", **LOCAL), total_steps=len(batches))
    model = copy.deepcopy(learner.model)
    heads = [copy.deepcopy(block.auxiliary["classifier"]) for block in learner.blocks[:-1]]
    parameters = [*model.parameters(), *(p for head in heads for p in head.parameters())]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    for step, (x, y) in enumerate(batches):
        learner.learn(x, y)
        optimizer.zero_grad()
        h, loss = x, 0.0
        for unit, head in zip(model.units, [*heads, None], strict=True):
            h = unit(h)
            if head is not None:
                loss = loss + weight * (1 - step / len(batches)) * F.cross_entropy(head(h), y)
        (loss + F.cross_entropy(model.head(h), y)).backward()
        optimizer.step()
    for name, p in model.named_parameters():  # the order of summation differs: a few units in the last place
        assert torch.allclose(p, learner.model.get_parameter(name), rtol=1e-11, atol=1e-13), name


@pytest.mark.parametrize("objective", ["pred", "predsim"])
def test_dgl_is_a_hand_written_loop(objective):
    batches = tiny_batches()
    loss_of = PredSim(beta=0.99) if objective == "predsim" else CrossEntropy()
    learner = tiny_learner(DGL(objective=loss_of, auxiliary=Linear()), total_steps=len(batches))
    model = copy.deepcopy(learner.model)
    heads = [copy.deepcopy(block.auxiliary) for block in learner.blocks[:-1]] + [
        nn.ModuleDict({"classifier": model.head})
    ]
    optimizers = [
        torch.optim.SGD([*unit.parameters(), *head.parameters()], lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
        for unit, head in zip(model.units, heads, strict=True)
    ]
    for x, y in batches:
        learner.learn(x, y)
        h = x
        for unit, head, optimizer in zip(model.units, heads, optimizers, strict=True):
            h = unit(h.detach())
            loss = F.cross_entropy(head["classifier"](h), y)
            if "similarity" in head:
                loss = 0.01 * loss + 0.99 * hand_similarity(head["similarity"].layer(h), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for name, p in model.named_parameters():
        close = torch.equal if objective == "pred" else lambda a, b: torch.allclose(a, b, rtol=1e-9, atol=1e-11)
        assert close(p, learner.model.get_parameter(name)), name


def hand_similarity(maps, y, classes=3):
    """Nokland & Eidnes' similarity loss for maps [B, C > 3, H, W], pair by pair."""
    b, c = maps.shape[:2]
    rows = (maps.flatten(2).var(dim=2) + 1e-8).sqrt() if c > 3 else maps.flatten(1)
    targets = torch.eye(classes, dtype=maps.dtype)[y]

    def cosine(u, v):
        u, v = u - u.mean(), v - v.mean()
        return (u * v).sum() / ((u.norm() + 1e-8) * (v.norm() + 1e-8))

    return (
        sum((cosine(rows[i], rows[j]) - cosine(targets[i], targets[j])) ** 2 for i in range(b) for j in range(b)) / b**2
    )


def test_greedy_trains_block_after_block():
    batches = tiny_batches(steps=8)
    learner = tiny_learner(Greedy(**LOCAL), total_steps=8)
    initial = copy.deepcopy(learner.model)
    for step, (x, y) in enumerate(batches):
        before = copy.deepcopy(learner.model)
        learner.learn(x, y)
        learning = step // 2
        for k, unit in enumerate(learner.model.units):
            moved = any(not torch.equal(t, before.units[k].state_dict()[n]) for n, t in unit.state_dict().items())
            assert moved == (k == learning), f"step {step}: block {k} moved: {moved}"
    assert not torch.equal(learner.model.head[2].weight, initial.head[2].weight)


def test_greedy_first_phase_is_its_block_alone():
    """Remove everything above: the first block learns the same, and the schedule runs through within its phase."""
    batches = tiny_batches(steps=4)
    optim = SGD(lr=0.1, momentum=0.9, weight_decay=0.0, schedule="linear")
    learner = tiny_learner(Greedy(**LOCAL), optim=optim, total_steps=16)
    unit, head = copy.deepcopy(learner.model.units[0]), copy.deepcopy(learner.blocks[0].auxiliary["classifier"])
    by_hand = torch.optim.SGD([*unit.parameters(), *head.parameters()], lr=0.1, momentum=0.9, fused=True)
    for step, (x, y) in enumerate(batches):
        learner.learn(x, y)
        by_hand.param_groups[0]["lr"] = 0.1 * (1 - step / 4)
        by_hand.zero_grad()
        F.cross_entropy(head(unit(x)), y).backward()
        by_hand.step()
    assert_same(learner.model.units[0], unit)


def test_shallow_trains_the_last_block_on_random_features():
    batches = tiny_batches()
    learner = trained(Shallow(), batches)
    initial = tiny_model().double()
    for k in range(3):
        for name, p in initial.units[k].named_parameters():
            assert torch.equal(p, learner.model.units[k].get_parameter(name))
    assert not torch.equal(learner.model.units[3][0].weight, initial.units[3][0].weight)


@pytest.mark.parametrize("name", ["dgl", "greedy", "shallow"])
def test_no_loss_reaches_another_block(name, monkeypatch):
    """After every single backward half, only the parameters of that very block have gradients."""
    from locallearn.engine.block import TrainedBlock

    learner = tiny_learner(STRATEGIES[name], tiny_model(dropout=0.2), total_steps=4)
    seen = []

    def look(block, part="main"):
        have = {
            n.split(".")[1] for n, p in learner.model.named_parameters() if n.startswith("units") and p.grad is not None
        }
        seen.append(have == {str(block.spec.index)})
        original(block, part)

    original = TrainedBlock.update
    monkeypatch.setattr(TrainedBlock, "update", look)
    for x, y in tiny_batches(steps=4):
        learner.learn(x, y)
    assert seen
    assert all(seen)


@pytest.mark.parametrize("name", STRATEGIES)
def test_micro_batches_average_the_gradient(name):
    """Without batch norm, two halves give the gradient of the whole batch."""
    torch.manual_seed(0)
    model = tiny_model()
    for unit in model.units:
        unit[1] = nn.Identity()
    strategy = {"auxiliary": Linear(), "objective": CrossEntropy()}
    chosen = type(STRATEGIES[name])(**strategy) if hasattr(STRATEGIES[name], "auxiliary") else STRATEGIES[name]
    batches = tiny_batches(steps=4)
    whole = trained(chosen, batches, model)
    halves = trained(chosen, batches, model, micro_batches=2)
    for n, p in whole.model.named_parameters():
        assert torch.allclose(p, halves.model.get_parameter(n), rtol=1e-9, atol=1e-12), n


@pytest.mark.parametrize("name", STRATEGIES)
def test_batch_statistics_move_once_a_step(name):
    batches = tiny_batches(steps=1)
    learner = tiny_learner(STRATEGIES[name], total_steps=1)
    before = copy.deepcopy(learner.model.units[0])
    mean = before[0](batches[0][0]).mean(dim=(0, 2, 3))
    learner.learn(*batches[0])
    assert torch.allclose(learner.model.units[0][1].running_mean, 0.9 * before[1].running_mean + 0.1 * mean)
    assert learner.model.units[0][1].num_batches_tracked == 1


def test_clipping_is_per_block():
    batches = tiny_batches(steps=1)
    learner = tiny_learner(DGL(**LOCAL), optim=SGD(lr=1.0, momentum=0.0, schedule="constant", clip=1e-3), total_steps=1)
    before = dict(copy.deepcopy(list(learner.parameters())))
    learner.learn(*batches[0])
    moved: dict[int, float] = {}
    for name, p in learner.parameters():
        kind, index = name.split(".")[0], name.split(".")[1]
        block = int(index) if kind == "auxiliary" else int(name.split(".")[2]) if index == "units" else 3
        moved[block] = moved.get(block, 0.0) + (p - before[name]).pow(2).sum().item()
    for total in moved.values():
        assert math.sqrt(total) == pytest.approx(1e-3, rel=1e-3)


def test_training_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained_once = tiny_learner(DGL(**LOCAL), tiny_model(dropout=0.5), total_steps=1)
    torch.manual_seed(5)
    trained_once.learn(*tiny_batches(1)[0])
    assert torch.equal(torch.rand(3), expected)


def test_strategies_start_from_the_same_weights():
    for strategy in STRATEGIES.values():
        for blocks in (1, 2, 4):
            assert_same(tiny_learner(strategy, blocks=blocks, total_steps=4).model, tiny_model().double())


def test_a_loop_of_ones_own_draws_new_dropout_at_every_step():
    """Without a number of steps training stays at its beginning, but the masks must not."""
    (x, y), *_ = tiny_batches(1)
    learner = tiny_learner(Backprop(), tiny_model(dropout=0.5), optim=SGD(lr=0.0, momentum=0.0, schedule="constant"))
    losses = {round(learner.step(x, y)["loss"], 12) for _ in range(4)}
    assert len(losses) == 4


@pytest.mark.parametrize("objective", [InfoPro(), SimCLR(), Inpainting(), Masked()], ids=lambda o: type(o).__name__)
def test_frozen_blocks_read_what_the_objective_begins_with(objective):
    """Views and masks reach the learning block through the frozen ones, and the image reaches it beside them."""
    learner = tiny_learner(Greedy(objective=objective, auxiliary=Linear()), total_steps=8)
    losses = [learner.step(x, y) for x, y in tiny_batches(8)]
    assert all(math.isfinite(found["loss"]) for found in losses)
    learning = [next(name.split("/")[1] for name in found if name.startswith("block/")) for found in losses]
    assert learning == ["00", "00", "01", "01", "02", "02", "03", "03"]
