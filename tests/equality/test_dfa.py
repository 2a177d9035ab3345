"""Direct feedback alignment against a net written in numpy, backpropagation, and real digits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.feedback import (
    accuracy,
    angles,
    assert_close,
    digits,
    gradients,
    loss,
    np_gradients,
    np_model,
    odd_batches,
    odd_model,
    teach,
    true_gradients,
)
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from locallearn.contract import BlockSpec
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.models.plain import mlp
from locallearn.strategies.dfa import DFA
from locallearn.strategies.greedy import Shallow

SIZES = ((4, 6, 6), (5, 3, 3), (7, 8), (11,), (3,))


def spec(index: int, seed: int = 0) -> BlockSpec:
    return BlockSpec(index, 5, (2, 6, 6), SIZES[index - 1], SIZES[index], 3, SIZES, seed)


def projection(strategy: DFA, index: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(index)  # as the engine does: a stream for each block
    return strategy.modules(spec(index, seed))["feedback"]


def matrices(learner: Learner) -> list[torch.Tensor]:
    return [block.auxiliary["feedback"].matrix for block in learner.blocks]


def headed(model: BlockModel) -> BlockModel:
    """The same net with its last unit, the classifier, as the head."""
    *units, head = model.units
    return BlockModel(units, head, image=model.image, classes=model.classes, name=model.name)


@pytest.mark.parametrize("blocks", [[1, 2], [1], [2]])
@pytest.mark.parametrize("kind", ["full", "channel"])
@pytest.mark.parametrize("head", [True, False])
def test_gradients_are_those_of_a_net_in_numpy(blocks, kind, head):
    """Some blocks have two layers: inside them the seed passes by exact backprop. Without weights in the head the
    classifier is in the last block, and no error is projected there."""
    net = np_model()
    model, blocks = (headed(net), blocks[:-1]) if head else (net, blocks)
    learner = tiny_learner(DFA(projection=kind), model, blocks or 1)
    draw, injected = np.random.default_rng(0), {}
    sizes, ends = [(3, 6, 6), (4, 3, 3)], [*blocks, 2] if head else blocks
    for end, matrix in zip(ends, matrices(learner), strict=head):
        given = draw.normal(size=matrix.shape)
        matrix.copy_(torch.from_numpy(given))
        spatial = given.reshape(3, *sizes[end - 1]) if kind == "full" else given[:, :, None, None]
        injected[end - 1] = np.broadcast_to(spatial, (3, *sizes[end - 1]))
    x, y = tiny_batches(1)[0]
    weights = [m.weight.detach().numpy() for m in learner.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    truth = np_gradients(learner.model, x, y, weights, injected)
    found = gradients(learner, x, y)
    assert found.keys() == truth.keys()
    for key, gradient in found.items():
        assert_close(gradient, torch.from_numpy(truth[key]), key)


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_only_the_head_learns_as_under_backprop(blocks):
    learner = tiny_learner(DFA(), tiny_model(), blocks, total_steps=3)
    for x, y in tiny_batches(3):
        true, found = true_gradients(learner.model, x, y), gradients(learner, x, y)
        assert found.keys() == true.keys()
        for key, gradient in found.items():
            if key.startswith("head"):
                assert_close(gradient, true[key], key)
            elif not key.endswith("0.bias"):  # those before a batch norm are zero
                assert (gradient - true[key]).norm() > 0.1 * true[key].norm(), key
        learner.learn(x, y)


def test_one_hidden_layer_learns_from_the_projected_error():
    """Nokland's equations: dW = (e B * f'(a))^T x for the hidden layer, the true gradient for the head."""
    learner = tiny_learner(DFA(), mlp((2, 6, 6), 3, width=7, depth=1, activation="tanh", batch_norm=False), "max")
    x, y = tiny_batches(1)[0]
    hidden, head = (m for m in learner.model.modules() if isinstance(m, nn.Linear))
    found = gradients(learner, x, y)
    with torch.no_grad():
        h = torch.tanh(hidden(x.flatten(1)))
        e = (torch.softmax(head(h), dim=1) - torch.eye(3, dtype=torch.float64)[y]) / len(y)
        a = (e @ matrices(learner)[0]) * (1 - h**2)
    truth = {id(hidden.weight): a.T @ x.flatten(1), id(hidden.bias): a.sum(0)}
    truth |= {id(head.weight): e.T @ h, id(head.bias): e.sum(0)}
    for key, gradient in found.items():
        assert_close(gradient, truth[id(learner.model.get_parameter(key))], key)


def test_a_frozen_head_still_gives_the_error():
    learner, frozen = (tiny_learner(DFA(), headed(np_model()), 2) for _ in range(2))
    frozen.model.head.requires_grad_(False)
    x, y = tiny_batches(1)[0]
    whole, below = gradients(learner, x, y), gradients(frozen, x, y)
    assert whole.keys() - below.keys() == {"head.1.weight", "head.1.bias"}
    for key, gradient in below.items():
        assert torch.equal(gradient, whole[key]), key


def test_with_the_true_projection_it_is_backprop():
    """A linear net: dL/dh_k = e W_K ... W_{k+1}, so that product is a feedback matrix that makes no error."""
    torch.manual_seed(0)
    layers = [nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 4)]
    model = BlockModel(layers, nn.Linear(4, 3), image=(5,), classes=3, name="linear")
    learner = tiny_learner(DFA(), model, 3, total_steps=3)
    bare = copy.deepcopy(learner.model)
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    g = torch.Generator().manual_seed(0)
    for _ in range(3):
        x, y = torch.randn(8, 5, generator=g, dtype=torch.float64), torch.randint(3, (8,), generator=g)
        head = learner.model.head.weight.detach()
        above = head @ learner.model.units[2].weight.detach()
        matrices(learner)[2].copy_(head)
        matrices(learner)[1].copy_(above)
        matrices(learner)[0].copy_(above @ learner.model.units[1].weight.detach())
        learner.learn(x, y)
        optimizer.zero_grad()
        F.cross_entropy(bare(x), y).backward()
        optimizer.step()
    for key, p in bare.named_parameters():
        assert_close(learner.model.get_parameter(key), p, key)


def test_a_sample_without_a_label_teaches_nothing():
    (x, y), other = odd_batches(1)[0], torch.randn(2, 2, 8, 8, dtype=torch.float64)
    model = odd_model()
    model.units[1][1] = nn.Identity()  # batch norm lets samples meet
    hidden = gradients(tiny_learner(DFA(), model, 4), torch.cat([x, other]), torch.cat([y, torch.tensor([-100, -100])]))
    for key, gradient in gradients(tiny_learner(DFA(), model, 4), x, y).items():
        assert_close(hidden[key], gradient, key)


def test_micro_batches_use_their_own_error():
    model = odd_model()
    model.units[1][1] = nn.Identity()
    (x, y), learners = odd_batches(1)[0], []
    for micro in (1, 3):
        learners.append(tiny_learner(DFA(), model, 4, micro_batches=micro))
        learners[-1].learn(x, y)
    for key, p in learners[0].model.named_parameters():
        assert_close(learners[1].model.get_parameter(key), p, key)


# ---- the matrices


@pytest.mark.parametrize("index", range(5))
def test_shapes_and_scale(index):
    size = SIZES[index]
    for kind in ("full", "channel"):
        feedback = projection(DFA(projection=kind), index)
        assert not list(feedback.parameters())
        e = torch.randn(9, 3)
        ghat = feedback(e)
        assert ghat.shape == (9, *size)
        n = math.prod(size)
        assert 0.8 / math.sqrt(n) < feedback.matrix.abs().max() <= 1 / math.sqrt(n)
        assert torch.equal(projection(DFA(projection=kind, scale=4.0), index).matrix, 4 * feedback.matrix)
        by_hand = torch.einsum("bc,cn->bn", e, feedback.matrix)
        if kind == "full":
            assert torch.allclose(ghat.flatten(1), by_hand)
            assert feedback.matrix.shape == (3, n)
        else:
            features = size[-1] if len(size) == 2 else size[0]
            assert feedback.matrix.shape == (3, features)
            rows = ghat if len(size) == 2 else ghat.flatten(2).transpose(1, 2) if len(size) == 3 else ghat[:, None]
            for position in range(rows.shape[1]):
                assert torch.allclose(rows[:, position], by_hand)


@pytest.mark.parametrize("kind", ["full", "channel"])
def test_shared_blocks_read_the_leading_columns_of_one_matrix(kind):
    strategy = DFA(projection=kind, shared=True)
    found = [projection(strategy, k).matrix for k in range(5)]
    widest = max(found, key=lambda m: m.shape[1])
    for matrix in found:
        assert torch.equal(matrix, widest[:, : matrix.shape[1]])
    assert 0.9 / 12 < widest.abs().max() <= 1 / 12  # sqrt(4 * 6 * 6)
    assert not torch.equal(widest, max((projection(strategy, k, seed=1).matrix for k in range(4)), key=torch.numel))
    apart = [projection(DFA(projection=kind), k).matrix for k in range(4)]
    assert not torch.equal(apart[1][0, :3], apart[0][0, :3])


def test_matrices_stay_are_saved_and_belong_to_no_optimizer():
    batches = tiny_batches(6)
    learner = tiny_learner(DFA(), total_steps=6)
    before = [m.clone() for m in matrices(learner)]
    for x, y in batches[:3]:
        learner.learn(x, y)
    assert all(torch.equal(m, b) for m, b in zip(matrices(learner), before, strict=True))
    assert not any("feedback" in name for name, _ in learner.parameters())
    saved = [key for key in learner.state() if "feedback" in key]
    assert saved == [f"auxiliary.{k}.feedback.matrix" for k in range(4)]


def test_a_block_without_parameters():
    torch.manual_seed(0)
    units = [nn.AvgPool2d(2), nn.Sequential(nn.Flatten(), nn.Linear(18, 4)), nn.Tanh(), nn.Linear(4, 4)]
    model = BlockModel(units, nn.Linear(4, 3), image=(2, 6, 6), classes=3, name="pool")
    learner = tiny_learner(DFA(), model, 4)
    before = learner.model.units[1][1].weight.clone()
    learner.learn(*tiny_batches(1)[0])
    assert not torch.equal(learner.model.units[1][1].weight, before)


def test_options_are_checked():
    with pytest.raises(UserError, match=r"strategy.projection=chanel: did you mean 'channel'"):
        DFA(projection="chanel")
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"strategy.scale=.*must be a (number above 0|finite number)"):
            DFA(scale=scale)


# ---- does it learn


@pytest.mark.parametrize("strategy", [DFA(), DFA(shared=True)], ids=["independent", "shared"])
@pytest.mark.parametrize("seed", [0, 1])
def test_weights_come_to_agree_with_the_feedback(strategy, seed):
    learner, x, y = digits(64, strategy, seed, classifier="head")
    before, start = angles(learner, x[:256], y[:256]), loss(learner, x, y)
    assert len(before) == 3
    assert all(60 < angle < 120 for angle in before), before
    teach(learner, x, y, 300)
    after = angles(learner, x[:256], y[:256])
    assert all(angle < 85 for angle in after), after
    assert sum(after) / 3 < 75
    assert loss(learner, x, y) < 0.2 * start


@pytest.mark.slow
def test_hidden_layers_of_a_narrow_net_learn_something():
    """Against the control in which only the classifier learns."""
    learner, x, y = digits(12, DFA(), seed=0, classifier="head")
    control, _, _ = digits(12, Shallow(), seed=0, classifier="head")
    teach(learner, x, y, 400)
    teach(control, x, y, 400)
    assert accuracy(learner, x, y) > accuracy(control, x, y) + 0.05
