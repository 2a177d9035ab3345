"""CKA and read-outs against NumPy and scikit-learn, and the probes that run them on every depth."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

import locallearn
from helpers.nets import assert_same
from locallearn import figures
from locallearn.analysis.readout import linear_accuracy, neighbour_accuracy, pooled
from locallearn.analysis.similarity import cka, cka_matrix
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.probes.base import Moment
from locallearn.probes.depth import sample
from locallearn.probes.linear import LinearProbe
from locallearn.probes.similarity import SimilarityProbe
from locallearn.training.prepare import prepare

MOMENT = Moment(0, 0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cka_of_2019(a, b):
    """Kornblith et al. 2019, eq. 2 and 4: HSIC of the Gram matrices with the centring matrix written out."""
    n = len(a)
    centring = np.eye(n) - np.ones((n, n)) / n
    hsic = lambda k, m: np.trace(k @ centring @ m @ centring) / (n - 1) ** 2  # noqa: E731
    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


def cka_of_2021(a, b):
    """Nguyen et al. 2021, eq. 3: HSIC_1 as Song et al. 2012 print it."""
    n, one = len(a), np.ones(len(a))

    def hsic(k, m):
        k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
        product = (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
        return (np.trace(k @ m) + product - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    k, m = a @ a.T, b @ b.T
    return hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("shapes", [(3, 5), (3, 40), (40, 3), (50, 60), (1, 1)])
@pytest.mark.parametrize(("unbiased", "truth"), [(False, cka_of_2019), (True, cka_of_2021)])
def test_cka_is_the_published_formula(shapes, unbiased, truth):
    """Wider and narrower than the number of samples: both ways of computing it."""
    a = normal(20, shapes[0])
    b = normal(20, shapes[1], seed=1) + a[:, :1]
    assert cka(a, b, unbiased) == pytest.approx(truth(a.numpy(), b.numpy()), abs=1e-12)
    assert cka(a.float(), b.float() + 100, unbiased) == pytest.approx(truth(a.numpy(), b.numpy()), abs=1e-4)


@settings(max_examples=30, deadline=None)
@given(
    samples=st.integers(5, 30),
    widths=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    seed=st.integers(0, 1000),
    scale=st.floats(1e-6, 1e6),
    unbiased=st.booleans(),
)
def test_cka_invariances(samples, widths, seed, scale, unbiased):
    a, b = normal(samples, widths[0], seed=seed), normal(samples, widths[1], seed=seed + 1)
    before = cka(a, b, unbiased)
    rotation, _ = torch.linalg.qr(normal(widths[0], widths[0], seed=seed + 2))
    order = torch.randperm(samples, generator=torch.Generator().manual_seed(seed))
    assert cka(scale * (a @ rotation) + 3 * scale, b, unbiased) == pytest.approx(before, abs=1e-8)
    assert cka(a[order], b[order], unbiased) == pytest.approx(before, abs=1e-8)
    assert cka(b, a, unbiased) == pytest.approx(before, abs=1e-8)
    assert cka(a, -scale * a, unbiased) == pytest.approx(1.0, abs=1e-8)
    if not unbiased:
        assert 0 <= before <= 1 + 1e-12


def test_independent_activations_are_unlike_only_to_the_unbiased_estimator():
    a, b = normal(100, 2000).float(), normal(100, 2000, seed=1).float()
    assert cka(a, b, unbiased=False) > 0.9
    assert abs(cka(a, b)) < 0.05


def test_cka_without_an_answer():
    a = normal(10, 4)
    constant = torch.full((10, 300), 0.1)  # 0.1 is no float: its mean differs from it
    broken = a.clone()
    broken[3, 1] = torch.nan
    for unbiased in (False, True):
        assert math.isnan(cka(a, constant, unbiased))
        assert math.isnan(cka(a, broken, unbiased))
    with pytest.raises(UserError, match="at least 4"):
        cka(a[:3], a[:3])
    with pytest.raises(UserError, match="the same samples"):
        cka(a, a[:8])


@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_matrix(unbiased):
    """Maps, narrow and wide layers, from iterators; huge numbers do not overflow."""
    layers = [normal(30, 4), normal(30, 5, 3, 3, seed=1), 1e30 * normal(30, 7, seed=2).float(), normal(30, 90, seed=3)]
    found = cka_matrix(iter(layers), unbiased=unbiased)
    assert torch.equal(found, found.T)
    np.testing.assert_allclose(found.diagonal(), np.ones(4), atol=1e-6)
    truth = cka_of_2021 if unbiased else cka_of_2019
    flat = [x.double().flatten(1).numpy() for x in layers]
    expected = [[truth(a, b) for b in flat] for a in flat]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(cka_matrix(layers[:2], iter(layers[1:]), unbiased), found[:2, 1:], atol=1e-12)


def classes(samples, distance, width=6, seed=0):
    """Three classes, `distance` apart along their own axes."""
    labels = torch.arange(samples) % 3
    return normal(samples, width, seed=seed) + distance * torch.eye(3, width)[labels], labels


def test_separable_classes_are_read_and_random_labels_are_not():
    train, labels = classes(600, 30.0)
    test, truth = classes(300, 30.0, seed=1)
    assert linear_accuracy(train, labels, test, truth) == 1.0
    assert neighbour_accuracy(train, labels, test, truth) == 1.0
    chance = torch.randint(3, (2, 3000), generator=torch.Generator().manual_seed(0))
    noise = normal(3000, 4)
    for accuracy in (linear_accuracy, neighbour_accuracy):
        found = accuracy(noise, chance[0], normal(3000, 4, seed=1), chance[1])
        assert abs(found - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000), "within four standard errors"


def test_linear_accuracy_is_a_logistic_regression():
    train, labels = classes(300, 1.0)
    test, truth = classes(200, 1.0, seed=1)
    scale = StandardScaler().fit(train)
    expected = LogisticRegression(max_iter=1000).fit(scale.transform(train), labels)
    found = linear_accuracy(train * 1e-3, labels, test * 1e-3, truth)
    assert found == pytest.approx(expected.score(scale.transform(test), truth), abs=0.01)


@pytest.mark.parametrize("neighbours", [1, 5, 10_000])
def test_neighbour_accuracy_by_hand(neighbours):
    train, labels = classes(60, 1.0)
    test, truth = classes(40, 1.0, seed=1)
    right = 0
    for x, y in zip(test.numpy(), truth, strict=True):
        cosines = train.numpy() @ x / np.linalg.norm(train, axis=1) / np.linalg.norm(x)
        near = np.argsort(-cosines)[:neighbours]
        votes = np.bincount(labels[near], weights=1 / (1 - cosines[near]), minlength=3)
        right += int(votes.argmax() == y)
    assert neighbour_accuracy(train, labels, test, truth, neighbours) == right / 40


@pytest.mark.parametrize("accuracy", [linear_accuracy, neighbour_accuracy])
def test_read_outs_of_bad_features(accuracy):
    train, labels = classes(60, 5.0)
    test, truth = classes(30, 5.0, seed=1)
    one = torch.zeros_like(labels)
    assert accuracy(train, one, test, truth) == pytest.approx(1 / 3), "one class: always that"
    assert accuracy(train[:3], labels[:3], test, truth) > 1 / 3, "one sample per class"
    skewed = torch.tensor([2] * 40 + [0] * 20)
    constant = torch.ones(60, 4)
    assert accuracy(constant, skewed, constant[:30], truth) == pytest.approx(1 / 3), "always one class"
    assert 0 <= accuracy(torch.zeros(60, 4), labels, torch.zeros(30, 4), truth) <= 1
    broken = test.clone()
    broken[0, 0] = torch.nan
    assert math.isnan(accuracy(train, labels, broken, truth))
    assert math.isnan(accuracy(train, labels, test[:0], truth[:0]))
    assert math.isnan(accuracy(train[:0], labels[:0], test, truth))


def test_pooling():
    h = normal(4, 3, 5, 6)
    np.testing.assert_allclose(pooled(h), h.numpy().mean(axis=(2, 3)), atol=1e-12)
    np.testing.assert_allclose(pooled(h[:, 0]), h[:, 0].numpy().mean(axis=1), atol=1e-12)
    assert pooled(h[:, 0, 0]) is not None
    assert pooled(h[:, 0, 0]).shape == (4, 6)


@pytest.fixture(scope="module")
def trained():
    """LeNet on the digits, four blocks, after some steps of training."""
    chosen = ["model=lenet", "strategy=dgl", "blocks=2", "threads=1"]
    learner, data = prepare(experiment(*compose(chosen), chosen))
    for x, y in itertools.islice(data.batches(0, 64), 5):
        learner.learn(x, y)
    return learner, data


def contiguous(model):
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def by_unit(model, x):
    h, found = x, []
    for unit in copy.deepcopy(model).eval().units:
        h = unit(h)
        found.append(h)
    return found


@torch.no_grad()
def test_linear_probe(trained):
    learner, data = trained
    before = copy.deepcopy(learner.model)
    rows = LinearProbe(samples=200, neighbours=3).look(learner, data, MOMENT).rows
    assert_same(before, learner.model)
    assert [row["layer"] for row in rows] == [0, 1, 2, 3]
    assert [row["name"] for row in rows] == learner.model.names
    (x, y), (test, truth) = (sample(data, split, 200) for split in ("train", "test"))
    for row, fit_on, score_on in zip(rows, by_unit(learner.model, x), by_unit(learner.model, test), strict=True):
        a, b = (h.mean(dim=(2, 3)) if h.dim() == 4 else h for h in (fit_on, score_on))
        assert row["linear_accuracy"] == pytest.approx(linear_accuracy(a, y, b, truth), abs=0.011)
        assert row["neighbour_accuracy"] == pytest.approx(neighbour_accuracy(a, y, b, truth, 3), abs=0.011)
    heads = {row["layer"]: row["block_accuracy"] for row in rows if "block_accuracy" in row}
    logits = learner.predict(test)
    expected = {
        units[-1]: float((p.argmax(1) == truth).float().mean()) for units, p in zip(learner.cut, logits, strict=True)
    }
    assert heads == pytest.approx(expected)
    assert expected[3] == pytest.approx(float((before.eval()(test).argmax(1) == truth).float().mean()))


def test_linear_probe_of_a_broken_model(trained):
    learner, data = trained
    broken = copy.deepcopy(learner.model.units[2])
    with torch.no_grad():
        next(learner.model.units[2].parameters()).fill_(torch.nan)
    try:
        rows = LinearProbe(samples=50).look(learner, data, MOMENT).rows
        similar = SimilarityProbe(samples=50).look(learner, data, MOMENT)
    finally:
        learner.model.units[2].load_state_dict(broken.state_dict())
    assert [math.isnan(row["linear_accuracy"]) for row in rows] == [False, False, True, True]
    assert [math.isnan(row["cka_input"]) for row in similar.rows] == [False, False, True, True]
    drawn = [{**row, "cka_input": None, "linear_accuracy": None, "epoch": 0, "step": 0} for row in rows]
    assert LinearProbe().draw(drawn, {}).keys() == {"linear"}


@torch.no_grad()
def test_similarity_probe_between_depths_and_runs(trained, tmp_path):
    learner, data = trained
    other = copy.deepcopy(learner.model)
    for p in other.parameters():
        p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0))
    save_file(contiguous(other), tmp_path / "model.safetensors")
    before = copy.deepcopy(learner.model)
    seen = SimilarityProbe(samples=60, other=str(tmp_path)).look(learner, data, MOMENT)
    assert_same(before, learner.model)
    x, _ = sample(data, "test", 60)
    mine = [x, *by_unit(learner.model, x)]
    theirs = by_unit(other, x)
    flat = lambda h: h.double().flatten(1).numpy()  # noqa: E731
    np.testing.assert_allclose(
        seen.arrays["cka"], [[cka_of_2021(flat(a), flat(b)) for b in mine] for a in mine], atol=1e-4
    )
    np.testing.assert_allclose(
        seen.arrays["cka_other"], [[cka_of_2021(flat(a), flat(b)) for b in theirs] for a in mine[1:]], atol=1e-4
    )
    for i, row in enumerate(seen.rows):
        assert row["cka_input"] == seen.arrays["cka"][i + 1, 0]
        assert row["cka_below"] == seen.arrays["cka"][i + 1, i]
        assert row["cka_last"] == seen.arrays["cka"][i + 1, 4]
        assert row["cka_other"] == seen.arrays["cka_other"][i, i] < 1 - 1e-6
    save_file(contiguous(learner.model), tmp_path / "model.safetensors")
    seen = SimilarityProbe(samples=60, other=str(tmp_path)).look(learner, data, MOMENT)
    np.testing.assert_allclose(seen.arrays["cka_other"], seen.arrays["cka"][1:, 1:], atol=1e-6)


def test_another_run_that_does_not_fit(trained, tmp_path):
    learner, data = trained
    with pytest.raises(UserError, match=r"probe\.similarity\.other=.*no model\.safetensors there"):
        SimilarityProbe(other=str(tmp_path))
    state = contiguous(learner.model)
    first = next(iter(state))
    probe = lambda: SimilarityProbe(samples=20, other=str(tmp_path)).look(learner, data, MOMENT)  # noqa: E731
    for tensors, message in [
        ({**state, first: torch.zeros(3)}, f"does not fit this run's model: size mismatch for {first}"),
        ({n: t for n, t in state.items() if n != first}, f"{first} are not in both"),
    ]:
        save_file(tensors, tmp_path / "model.safetensors")
        with pytest.raises(UserError, match=message):
            probe()
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="cannot be read"):
        probe()


def test_options_are_checked():
    for make, message in [
        (lambda: LinearProbe(samples=0), r"probe\.linear\.samples=0"),
        (lambda: LinearProbe(neighbours=0), r"probe\.linear\.neighbours=0"),
        (lambda: SimilarityProbe(samples=3), r"probe\.similarity\.samples=3: must be a whole number of at least 4"),
        (lambda: SimilarityProbe(split="tset"), "did you mean 'test'"),
    ]:
        with pytest.raises(UserError, match=message):
            make()


@pytest.mark.parametrize("probe", [LinearProbe(samples=40), SimilarityProbe(samples=40)], ids=["linear", "similarity"])
def test_pictures(probe, trained, tmp_path):
    learner, data = trained
    rows, arrays = [], {}
    for epoch in (0, 1):
        seen = probe.look(learner, data, Moment(epoch, epoch))
        rows += [{**row, "epoch": epoch, "step": epoch} for row in seen.rows]
        arrays[epoch] = seen.arrays
    for name, figure in probe.draw(rows, arrays).items():
        svg, _ = figures.save(figure, tmp_path / name)
        text = svg.read_text()
        assert all(f">{layer}<" in text for layer in learner.model.names)


def test_graph_models():
    """A graph is always seen whole; its samples are the labelled nodes of a split."""
    nodes, edges = 30, torch.randint(30, (2, 60), generator=torch.Generator().manual_seed(0))
    graph = torch.cat([edges, torch.arange(30).repeat(2, 1)], dim=1)
    learner = locallearn.build("dgl", "gcn", image=(5,), classes=3, graph=graph)

    class Nodes:
        """As `GraphData`: all nodes are one batch, labels of other splits hidden."""

        graph, name = edges, "nodes"
        train, test = range(20), range(20, 30)
        x, y = normal(nodes, 5).float(), torch.arange(nodes) % 3

        def evaluation(self, split, batch_size):
            yield self.x, torch.where(torch.isin(torch.arange(nodes), torch.tensor(list(split))), self.y, -100)

        validation = range(0)

    rows = LinearProbe().look(learner, Nodes(), MOMENT).rows
    assert len(rows) == 2
    assert all(0 <= row["linear_accuracy"] <= 1 and round(10 * row["block_accuracy"], 6) % 1 == 0 for row in rows)
    seen = SimilarityProbe().look(learner, Nodes(), MOMENT)
    assert seen.arrays["cka"].shape == (3, 3)
    assert "30 samples" in seen.rows[0]["estimator"]
