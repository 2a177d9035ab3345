"""Distances between tasks: of embeddings, against numpy and symmetries of nets; by definition, against theorems."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locallearn.analysis.task2vec import asymmetric_distance, distances, embedding, task_distance, trivial_task
from locallearn.figures.tasks import draw, tree
from locallearn.training.task_information import information, information_distances


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convolutions() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(1, 5, 3), nn.Tanh(), nn.Conv2d(5, 4, 3), nn.Tanh()).double()


def test_asymmetric_distance_in_closed_form():
    tasks = np.array([[1.0, 3.0, 2.0], [3.0, 1.0, 5.0], [4.0, 4.0, 1.0]])

    def apart(a: np.ndarray, b: np.ndarray) -> float:
        u, v = a / (a + b), b / (a + b)
        return 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)

    symmetric, asymmetric = distances([torch.tensor(task) for task in tasks])
    constant = np.full(3, tasks.mean())
    for i in range(3):
        assert symmetric[i, i] == asymmetric[i, i] == 0
        for j in {0, 1, 2} - {i}:
            assert float(symmetric[i, j]) == pytest.approx(apart(tasks[i], tasks[j]), rel=1e-12)
            by_hand = apart(tasks[i], tasks[j]) - 0.15 * apart(tasks[i], constant)
            assert float(asymmetric[i, j]) == pytest.approx(by_hand, rel=1e-12)
    one = torch.full((3,), 2.0)
    assert asymmetric_distance(one, torch.tensor(tasks[0]), trivial_task([one])) == pytest.approx(
        apart(np.full(3, 2.0), tasks[0]), rel=1e-12
    ), "a trivial task has nothing that could be taken over"
    assert task_distance(one, 10 * one) == pytest.approx(0, abs=1e-12)


def test_the_order_of_the_filters_is_of_no_account():
    """A net whose filters change places is the same function: its embeddings change places, the distances stay."""
    net, order = convolutions(), torch.tensor([3, 0, 4, 1, 2])
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order])
        other[0].bias.copy_(net[0].bias[order])
        other[2].weight.copy_(net[2].weight[:, order])
    x = torch.randn(40, 1, 6, 6, generator=seeded(), dtype=torch.float64)
    labels = [(x.mean(dim=(1, 2, 3)) > 0).long(), (x[:, 0, 0, 0] > 0).long(), torch.arange(40) % 3]
    one, two = ([embedding(each, x, y, seeded(1)) for y in labels] for each in (net, other))
    for a, b in zip(one, two, strict=True):
        assert b[:5].tolist() == pytest.approx(a[:5][order].tolist(), rel=1e-6)
    for a, b in zip(distances(one), distances(two), strict=True):
        assert torch.allclose(a, b, atol=1e-7)


def test_the_tree_joins_the_nearest_first():
    apart = [[0, 5, 1, 6], [5, 0, 4, 2], [1, 4, 0, 7], [6, 2, 7, 0]]
    joined = tree(apart)
    assert [set(row[:2]) for row in joined.tolist()] == [{0, 2}, {1, 3}, {4, 5}]
    assert joined[:, 2].tolist() == [1, 2, 7], "complete linkage: the farthest of two groups"
    matrix, branches, bars, *_ = draw(["a", "b", "c", "d"], apart, [1, 2, 3, 4]).axes
    order = [text.get_text() for text in matrix.get_yticklabels()]
    assert order in (["a", "c", "b", "d"], ["d", "b", "c", "a"]), "c and b are nearer than a and d"
    assert max(max(line.get_xdata()) for line in branches.lines) == 7
    assert [bar.get_width() for bar in bars.patches] == ["abcd".index(name) + 1 for name in order]


def net(inputs: int = 6) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(inputs, 12), nn.Tanh())


def task(kind: str, samples: int = 80) -> tuple[Tensor, Tensor]:
    x = torch.randn(samples, 6, generator=seeded())
    if kind == "random":
        return x, torch.randint(2, (samples,), generator=seeded(1))
    return x, ((x[:, 0] > 0) if kind == "plane" else (x[:, 0] * x[:, 1] > 0)).long()


@pytest.mark.slow
def test_a_dear_nat_is_not_bought():
    x, y = task("random")
    found = information(net(), [(x, y)], beta=100.0, steps=500, seed=0)
    assert found.body + found.heads < 1
    assert found.loss == pytest.approx(math.log(2), abs=0.02)


@pytest.mark.slow
def test_a_memorised_nat_costs_a_nat():
    """Of labels that are drawn at random no q, whatever it is, knows more than its weights hold: KL(q || p) >=
    N (ln K - CE) - ln(1 / delta), but with probability delta = 1e-3."""
    x, y = task("random", 40)
    found = information(net(), [(x, y)], beta=0.02, steps=1500, seed=0)
    saved = len(x) * (math.log(2) - found.loss)
    assert saved > 12, "something was learned by heart"
    assert found.body + found.heads >= saved - math.log(1000)


@pytest.mark.slow
def test_the_asymmetry_is_one_number_for_each_task():
    """d(1 -> 2) - d(2 -> 1) = I(D2; w) - I(D1; w), whatever was learned; the body is left as it is."""
    body = net()
    before = copy.deepcopy(body.state_dict())
    found = information_distances(body, [task(kind) for kind in ("plane", "product", "random")], 0.1, 20, 0)
    alone = torch.tensor([own.body for own in found.alone], dtype=torch.float64)
    assert torch.allclose(found.away - found.away.T, alone[None] - alone[:, None])
    assert len(set(alone.tolist())) == 3
    assert all(torch.equal(t, before[name]) for name, t in body.state_dict().items())


@pytest.mark.slow
def test_distances_by_definition():
    """As published: it is nearer to a simpler task, a copy costs little, and random labels are far from anything."""
    kinds = ("plane", "plane", "random")
    found = information_distances(net(), [task(kind, 40) for kind in kinds], 0.01, 1500, 0)
    plane, copied, noise = range(3)
    alone = [own.body for own in found.alone]
    assert all(own.loss < 0.3 for own in found.alone), "all were learned"
    assert alone[noise] > 1.2 * alone[plane]
    assert found.away[plane, copied] < alone[plane] / 2
    assert found.away[noise, plane] < found.away[plane, noise] / 1.5
    assert found.away[plane, noise] > 2 * found.away[plane, copied]
