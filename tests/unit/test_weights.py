"""Fisher information, information in the weights and Task2Vec: against closed forms, and on real digits."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, kl_divergence
from torch.nn import functional as F

import locallearn
from helpers.nets import tiny_batches, tiny_model
from locallearn.analysis.fisher import fisher_diagonal
from locallearn.analysis.readout import linear_head
from locallearn.analysis.task2vec import Pooled, embedding, task_distance, task_norm
from locallearn.analysis.weight_noise import cross_entropy, gaussian_information, tolerated_noise
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.engine.gradients import unchanged
from locallearn.errors import UserError
from locallearn.probes import Moment, Row
from locallearn.probes.depth import sample
from locallearn.probes.fisher import Fisher
from locallearn.probes.task2vec import Task2Vec
from locallearn.probes.weight_information import WeightInformation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def load(*overrides: str):
    return experiment(*compose(list(overrides)), list(overrides)).source.load(0, torch.device("cpu"))


def one_by_one(model: nn.Module, x: Tensor, random: torch.Generator, samples: range) -> dict[str, Tensor]:
    """The diagonal by a plain loop: one forward of everything, one backward for the drawn label of each sample."""
    labels = torch.multinomial(model(x).softmax(dim=1), 1, generator=random).squeeze(1) if samples else None
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for i in samples:
        model.zero_grad()
        model(x).log_softmax(dim=1)[i, labels[i]].backward()
        for name, p in model.named_parameters():
            total[name] += p.grad**2 / len(samples)
    model.zero_grad()
    return total


def test_fisher_of_softmax_regression():
    """Closed form: F = E_x[(diag(p) - p p^T) kron x x^T]. Its diagonal within five standard errors of the drawn labels,
    and the mean of the deviations in units of that error near 0."""
    x = torch.randn(5, 3, generator=seeded(), dtype=torch.float64)
    model = nn.Linear(3, 4).double()
    nn.init.normal_(model.weight, generator=seeded(1))
    p = model(x).softmax(dim=1).detach()
    fisher = torch.zeros(16, 16, dtype=torch.float64)
    for q, row in zip(p, torch.cat([x, torch.ones(5, 1)], dim=1), strict=True):  # the bias reads a 1
        fisher += torch.kron(torch.diag(q) - torch.outer(q, q), torch.outer(row, row)) / 5
    truth = fisher.diagonal().view(4, 4)
    draws = 4000
    found = fisher_diagonal(model, x.repeat(draws, 1), seeded(2))
    ours = torch.cat([found["weight"], found["bias"][:, None]], dim=1)
    ones = torch.cat([x, torch.ones(5, 1)], dim=1)
    residual = torch.eye(4)[None] - p[:, None]  # of sample, label, class
    fourth = torch.einsum("ny,nyc,nd->ncd", p, residual**4, ones**4)
    second = torch.einsum("ny,nyc,nd->ncd", p, residual**2, ones**2)
    error = ((fourth - second**2).sum(dim=0) / draws).sqrt() / 5
    deviation = (ours - truth) / error
    assert deviation.abs().max() < 5
    assert 0.2 < deviation.std() < 2, "as random as drawn labels are"
    assert float(ours.sum()) == pytest.approx(float(fisher.trace()), rel=0.02)


@pytest.mark.slow
def test_fisher_of_a_bernoulli_mean():
    """One logit w against 0: I(w) = p (1 - p), the textbook value."""

    class Coin(nn.Module):
        def __init__(self, logit: float) -> None:
            super().__init__()
            self.logit = nn.Parameter(torch.tensor(logit, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([torch.zeros_like(x[:, 0]), self.logit.expand(len(x))], dim=1)

    for logit in (-2.0, 0.0, 1.0):
        p = 1 / (1 + math.exp(-logit))
        n = 20_000
        found = float(fisher_diagonal(Coin(logit), torch.zeros(n, 1, dtype=torch.float64), seeded())["logit"])
        score = p * (1 - p) ** 4 + (1 - p) * p**4 - (p * (1 - p)) ** 2  # variance of the squared score
        assert abs(found - p * (1 - p)) <= 5 * math.sqrt(score / n) + 1e-12


class Branching(nn.Module):
    """Looks at its data in Python, which `vmap` cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.scale = nn.Linear(3, 4), nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.scale * x
        return self.linear(x) if float(x.detach().sum()) > 0 else 2 * self.linear(x)


class Shared(nn.Module):
    """Linear layers that are read twice, that share weights, and with what works in place after."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.one, self.other = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.one.weight
        self.inplace, self.out = nn.Sequential(nn.Linear(3, 5, bias=False), nn.ReLU(inplace=True)), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inplace(self.other(self.one(self.twice(self.twice(x))))))


class Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(3, 5, batch_first=True), nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def test_fisher_of_any_module_is_that_of_a_loop():
    (x, _), *_ = tiny_batches(1)
    cases = [
        (tiny_model(dropout=0.2).double(), x),
        (Sequence(), torch.randn(6, 7, 3, generator=seeded())),
        (Branching(), torch.randn(6, 3, generator=seeded()).abs()),
        (Shared(), torch.randn(6, 3, generator=seeded())),
    ]
    for model, inputs in cases:
        before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
        found = fisher_diagonal(model, inputs, seeded(3))
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert [m.training for m in model.modules()] == modes
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
        for name, truth in one_by_one(model.eval(), inputs, seeded(3), range(len(inputs))).items():
            assert torch.allclose(found[name], truth, rtol=1e-4, atol=1e-9), (type(model).__name__, name)


def test_fisher_does_not_depend_on_the_chunks(monkeypatch):
    model = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 3)).double()
    x = torch.randn(40, 1, 3, generator=seeded(), dtype=torch.float64)
    whole = fisher_diagonal(model, x, seeded(1))
    for numbers in (1, 7 * 6):  # one by one, and seven at a time
        monkeypatch.setattr("locallearn.analysis.fisher.NUMBERS", numbers)
        for name, found in fisher_diagonal(model, x, seeded(1)).items():
            assert torch.allclose(found, whole[name], rtol=1e-12)


def test_fisher_of_nodes():
    """A model that mixes its samples: the gradient of a node's own prediction, of the nodes asked for."""
    mixing = torch.softmax(torch.randn(6, 6, generator=seeded()), dim=1)

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.unused = nn.Linear(3, 4), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return mixing @ self.linear(x)

    model, x = Graph(), torch.randn(6, 3, generator=seeded(1))
    found = fisher_diagonal(model, x, seeded(2), nodes=torch.tensor([0, 1, 2]))
    labels = torch.multinomial(model(x)[:3].double().softmax(dim=1), 1, generator=seeded(2))
    residual = F.one_hot(labels[:, 0], 4) - model(x)[:3].softmax(dim=1)
    truth = torch.einsum("nc,nd->ncd", residual, (mixing @ x)[:3]).square().mean(dim=0)
    assert torch.allclose(found["linear.weight"], truth, atol=1e-6)
    assert not found["unused.weight"].any()


@pytest.mark.slow
def test_tolerated_noise_of_a_quadratic_loss():
    """Closed form for linear regression, E_n |X (w + s n) - y|^2 / 2N = loss + s^2 tr(H) / 2 with H = X^T X / N: the
    noise that costs t is sqrt(2 t / tr H), whatever the slope at w."""
    x = torch.randn(200, 12, generator=seeded(), dtype=torch.float64) * torch.linspace(0.2, 2, 12)
    y = torch.randn(200, generator=seeded(1), dtype=torch.float64)
    w = torch.randn(12, generator=seeded(2), dtype=torch.float64)

    def loss(weights) -> float:
        return float((x @ weights["w"] - y).square().sum() / 400)

    trace = float((x.T @ x / 200).trace())
    for tolerance in (1e-3, 0.1, 50.0):
        found = tolerated_noise(loss, {"w": w}, tolerance, seed=0, draws=500)
        assert found == pytest.approx(math.sqrt(2 * tolerance / trace), rel=0.05)
    few = [tolerated_noise(loss, {"w": w}, 0.1, seed=s, draws=4) for s in range(0, 400, 4)]
    assert np.mean(np.log(few)) == pytest.approx(math.log(math.sqrt(0.2 / trace)), abs=0.1)


def test_tolerated_noise_at_its_limits():
    w = {"w": torch.ones(5)}
    assert tolerated_noise(lambda weights: 1.0, w, 0.1, seed=0) == math.inf, "a loss that does not care"
    assert tolerated_noise(lambda weights: float(not torch.equal(weights["w"], w["w"])), w, 0.1, seed=0) == 0.0
    bursting = tolerated_noise(lambda v: math.inf if (v["w"] - 1).abs().max() > 1 else 0.0, w, 0.1, seed=0)
    assert 0.2 < bursting < 1, "an infinite loss is too much"
    for bad in ({"tolerance": 0.0}, {"tolerance": 0.1, "draws": 0}):
        with pytest.raises(UserError, match="tolerance"):
            tolerated_noise(lambda weights: 1.0, w, seed=0, **bad)


def test_information_is_the_divergence_of_two_gaussians():
    w, sigma, v = torch.tensor([0.3, -1.2, 2.0, 0.1], dtype=torch.float64), 0.4, 1.7
    one = torch.eye(4, dtype=torch.float64)
    zero = torch.zeros(4, dtype=torch.float64)
    given = gaussian_information({"a": w[:1], "b": w[1:]}, sigma, prior_variance=v)
    q = MultivariateNormal(w, sigma**2 * one)
    assert given == pytest.approx(float(kl_divergence(q, MultivariateNormal(zero, v * one))) / math.log(2), rel=1e-12)
    best = gaussian_information({"a": w}, sigma)
    grid = [gaussian_information({"a": w}, sigma, u) for u in np.linspace(0.5, 4, 2000)]
    assert best == pytest.approx(min(grid), abs=1e-5), "the prior that makes it smallest"
    assert best == pytest.approx(2 * math.log2(1 + float(w @ w) / (4 * sigma**2)), rel=1e-12)
    assert gaussian_information({"a": 7 * w}, 7 * sigma) == pytest.approx(best, rel=1e-12)
    assert gaussian_information({"a": w}, math.inf) == 0.0
    assert gaussian_information({"a": w}, 0.0) == math.inf


def test_cross_entropy_with_other_weights():
    (x, y), *_ = tiny_batches(1)
    model = tiny_model(dropout=0.5).double()
    y[3] = -1
    before = copy.deepcopy(model.state_dict())
    loss = cross_entropy(model, x, y, batch=3)
    known = y >= 0
    other = {
        name: torch.randn(p.shape, generator=seeded(), dtype=p.dtype) for name, p in model.units[1].named_parameters()
    }
    twin = copy.deepcopy(model).eval()
    twin.units[1].load_state_dict({**twin.units[1].state_dict(), **other})
    truth = F.cross_entropy(twin(x)[known], y[known]).detach()
    assert loss({f"units.1.{name}": p for name, p in other.items()}) == pytest.approx(float(truth), rel=1e-12)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    with pytest.raises(UserError, match="labelled samples"):
        cross_entropy(model, x, torch.full_like(y, -1))


def digits(classes: range | tuple[int, ...], half: int) -> tuple[Tensor, Tensor]:
    """Every other sample of some classes."""
    found = load_digits()
    x, y = torch.from_numpy(found.images)[half::2, None].float() / 16, torch.from_numpy(found.target)[half::2]
    keep = torch.isin(y, torch.tensor(list(classes)))
    return x[keep], y[keep]


@pytest.fixture(scope="module")
def body() -> nn.Module:
    """Two convolutions that have learned all ten digits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3), nn.ReLU()
        )
        model = nn.Sequential(layers, Pooled(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        x, y = digits(range(10), 0)
        for _ in range(10):
            for i in torch.randperm(len(x)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(x[i]), y[i]).backward()
                optimizer.step()
    return layers


@pytest.mark.slow
def test_the_same_task_is_nearer_than_another(body):
    a, again, other = (
        embedding(body, *digits(classes, half), seeded(half))
        for classes, half in ((range(5), 0), (range(5), 1), (range(5, 10), 1))
    )
    assert a.shape == (16 + 32,), "one number for each filter"
    assert task_distance(a, a) == pytest.approx(0.0, abs=1e-12)
    assert task_distance(a, other) == task_distance(other, a)
    assert 1.5 * task_distance(a, again) < task_distance(a, other) <= 1


def test_the_norm_grows_with_the_number_of_classes(body):
    norms = [task_norm(embedding(body, *digits(classes, 1), seeded())) for classes in ((0, 1), range(5), range(10))]
    assert norms == sorted(norms)


def test_distance_in_closed_form():
    a, b = torch.tensor([1.0, 3.0, 0.0, 0.0]), torch.tensor([3.0, 1.0, 0.0, 2.0])
    u, v = np.array([0.25, 0.75, 0.0]), np.array([0.75, 0.25, 1.0])  # the third filter is silent in both
    assert task_distance(a, b) == pytest.approx(1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v), rel=1e-12)
    assert task_distance(torch.zeros(4), torch.zeros(4)) == 0.0
    with pytest.raises(UserError, match="one probe network"):
        task_distance(a, b[:2])


@pytest.mark.parametrize("classes", [(3, 7), (1, 4, 8)])
def test_the_head_is_the_regression_that_was_fitted(classes):
    """For two classes, whose regression has a single logit, too."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y = digits(classes, 0)
    features = x.flatten(1)
    layer = linear_head(features, y)
    standard = StandardScaler().fit_transform(features.double().numpy())
    truth = LogisticRegression(max_iter=200, tol=1e-3).fit(standard, y.numpy()).predict_proba(standard)
    assert np.allclose(layer(features).softmax(dim=1).detach().numpy(), truth, atol=1e-4)


def test_embedding_of_what_is_no_task(body):
    x, y = digits((3,), 0)
    with pytest.raises(UserError, match="at least 2 classes"):
        embedding(body, x, y, seeded())
    with pytest.raises(UserError, match="filters or output units"):
        embedding(nn.Flatten(), *digits((1, 2), 0), seeded())
    x, y = digits((1, 2), 0)
    unlabelled = torch.cat([y, torch.full_like(y, -1)])
    assert torch.equal(embedding(body, torch.cat([x, x]), unlabelled, seeded()), embedding(body, x, y, seeded()))


PROBES = [Fisher(samples=40), WeightInformation(samples=40, draws=1), Task2Vec(samples=40)]


def looked(learner, data) -> dict[str, list[Row]]:
    """The rows of all three, which must change nothing."""
    before = copy.deepcopy(learner.state())
    modes = [m.training for m in learner.model.modules()]
    found = {}
    for probe in PROBES:
        with unchanged(learner):
            found[type(probe).__name__] = probe.look(learner, data, Moment(0, 0)).rows
    assert all(torch.equal(t, before[name]) for name, t in learner.state().items())
    assert all(p.grad is None for _, p in learner.parameters())
    assert [m.training for m in learner.model.modules()] == modes
    return found


@pytest.mark.parametrize("model", ["lenet", "mlp"])
def test_the_probes_on_images(model):
    data = load("data=digits")
    settings = {"model.width": 32} if model == "mlp" else {}
    learner = locallearn.build("dgl", model, image=data.image, classes=10, blocks=2, **settings)
    found = looked(learner, data)
    names = [*learner.model.names, "head"]
    for probe, key in (("Fisher", "fisher_trace"), ("WeightInformation", "weight_information")):
        assert [row["name"] for row in found[probe]] == names
        assert all(row[key] >= 0 for row in found[probe])
    fisher = found["Fisher"][-1]
    assert fisher["fisher_trace_per_parameter"] * sum(
        p.numel() for p in learner.model.head.parameters()
    ) == pytest.approx(fisher["fisher_trace"])
    assert found["Task2Vec"][0]["task_norm"] > 0


@pytest.mark.slow
def test_the_probe_perturbs_the_layer_that_it_names():
    """What the probe finds for a layer, whose input it takes as given, is what the whole model tolerates there."""
    data = load("data=digits")
    learner = locallearn.build("backprop", "lenet", image=data.image, classes=10, blocks=2)
    probe = WeightInformation(samples=64, draws=1, tolerance=0.05)
    with unchanged(learner):
        rows = probe.look(learner, data, Moment(0, 0)).rows
    x, y = sample(data, "train", 64)
    model = copy.deepcopy(learner.model).eval()
    base = float(F.cross_entropy(model(x), y).detach())
    sigma, rise = rows[3]["tolerated_noise"], []
    for draw in range(60):
        noisy = copy.deepcopy(model)
        with torch.no_grad():
            for p in noisy.units[3].parameters():
                p += sigma * torch.randn(p.shape, generator=seeded(draw))
            rise.append(float(F.cross_entropy(noisy(x), y)) - base)
    assert 0.02 < np.mean(rise) < 0.1


@pytest.mark.slow
def test_the_probes_on_sequences_and_graphs(real_root):
    names = load("data=names", f"data.root={real_root}")
    found = looked(
        locallearn.build(
            "backprop", "rnn", image=names.image, classes=len(names.classes), blocks=2, **{"model.width": 8}
        ),
        names,
    )
    assert [row["name"] for row in found["Fisher"]] == ["layer1", "layer2", "layer3", "head"]
    cora = load("data=cora", f"data.root={real_root}")
    found = looked(
        locallearn.build("backprop", "gcn", image=cora.image, classes=len(cora.classes), graph=cora.graph, blocks=2),
        cora,
    )
    assert [row["name"] for row in found["Fisher"]] == ["gcn1", "gcn2", "head"]
    assert all(row["fisher_trace"] > 0 for row in found["Fisher"])


def test_options_and_pictures():
    for make in (
        lambda: Fisher(samples=0),
        lambda: WeightInformation(tolerance=0.0),
        lambda: WeightInformation(draws=0),
        lambda: Task2Vec(samples=1),
    ):
        with pytest.raises(UserError, match=r"probe\.\w+\.\w+=[\d.]+: must be"):
            make()
    rows: list[Row] = []
    for epoch in range(4):
        rows.append({"epoch": epoch, "step": epoch, "task_norm": 1.0 + epoch, "filters": 3})
        for i in range(2):
            keys = ("fisher_trace", "fisher_trace_per_parameter", "tolerated_noise_over_weights")
            row: Row = {"epoch": epoch, "step": epoch, "layer": i, "name": f"fc{i}", **dict.fromkeys(keys, 1.0 + epoch)}
            rows.append(row | {"weight_information_per_parameter": 2.0 + epoch})
    for probe, key in ((Fisher(), "fisher"), (WeightInformation(), "weight_information")):
        axes = probe.draw([row for row in rows if "layer" in row], {})[key].axes
        assert list(axes[0].lines[1].get_ydata()) == [1, 2, 3, 4]
        assert [text.get_text() for text in axes[0].get_legend().get_texts()] == ["fc0", "fc1"]
    arrays = {epoch: {"embedding": torch.tensor([1.0, 2.0, 1.0 + epoch])} for epoch in range(4)}
    sizes, moved, _ = Task2Vec().draw([row for row in rows if "task_norm" in row], arrays)["task2vec"].axes
    assert list(sizes.lines[0].get_ydata()) == [1, 2, 3, 4]
    distances = list(moved.lines[0].get_ydata())
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] == pytest.approx(0.0, abs=1e-12)
