"""Estimators of mutual information, CKA and Task2Vec, each as its published program computes it, in numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.special import digamma, logsumexp
from torch import nn
from torch.nn import functional as F

from helpers.parity import Parity, apart
from locallearn.analysis.fisher import fisher_diagonal
from locallearn.analysis.information import information, mine
from locallearn.analysis.similarity import cka
from locallearn.analysis.task2vec import task_distance

N = 120
BITS = math.log(2)


def layer(columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(N, columns))


def labels() -> np.ndarray:
    return np.arange(N) % 3


def plug_in(rows: np.ndarray) -> float:
    p = np.unique(rows, axis=0, return_counts=True)[1] / len(rows)
    return float(-(p * np.log2(p)).sum())


def binned(codes: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """I(X;T) and I(T;Y): the entropy of the codes, less its mean within the classes."""
    total = plug_in(codes)
    return total, total - sum((y == c).mean() * plug_in(codes[y == c]) for c in np.unique(y))


def test_bins_of_idnns(parity: Parity) -> None:
    """np.linspace(-1, 1, 30) and np.digitize: 29 intervals, and what is exactly 1.0 beyond the last edge."""
    t = np.tanh(4 * layer(2)).astype(np.float32)
    t[::5] = 1.0
    theirs = binned(np.digitize(t, np.linspace(-1, 1, 30)), labels())
    found = information(t, labels(), "binned", bins="tanh")
    parity.equal("IDNNs", "bins of tanh units, an eighth of them saturated", apart([found.x, found.y], theirs))


@pytest.mark.parametrize("width", [0.07, 0.5])
def test_floor_bins_of_ibsgd(width: float, parity: Parity) -> None:
    theirs = binned(np.floor(layer() / width).astype(int), labels())
    found = information(layer(), labels(), "binned", bins=width)
    parity.equal("ibsgd", "bins of a width (floor)", apart([found.x, found.y], theirs))


def kl_entropy(t: np.ndarray, variance: float) -> float:
    """kde.entropy_estimator_kl, in nats."""
    n, d = t.shape
    squared = ((t[:, None] - t[None]) ** 2).sum(2) / (2 * variance)
    log_p = logsumexp(-squared, axis=1) - math.log(n) - d / 2 * math.log(2 * math.pi * variance)
    return d / 2 - log_p.mean()


def bd_entropy(t: np.ndarray, variance: float) -> float:
    """kde.entropy_estimator_bd, in nats."""
    return kl_entropy(t, 4 * variance) + math.log(0.25) * t.shape[1] / 2


@pytest.mark.parametrize("estimator", ["kde_upper", "kde_lower"])
@pytest.mark.parametrize("variance", [0.1, 1e-3])
def test_pairwise_bounds_of_ibsgd(estimator: str, variance: float, parity: Parity) -> None:
    entropy = kl_entropy if estimator == "kde_upper" else bd_entropy
    t, y = layer(4) * 0.3, labels()
    total, noise = entropy(t, variance), 2 * (math.log(2 * math.pi * variance) + 1)
    within = sum((y == c).mean() * entropy(t[y == c], variance) for c in range(3))
    found = information(t, y, estimator, noise_variance=variance)
    theirs = [(total - noise) / BITS, (total - within) / BITS]
    parity.equal("ibsgd", "pairwise bounds, upper and lower", apart([found.x, found.y], theirs))


def largest(t: np.ndarray) -> np.ndarray:
    """Distances of the largest coordinate [N, N]."""
    return np.abs(t[:, None] - t[None]).max(2)


def test_nearest_neighbours_of_npeet(parity: Parity) -> None:
    """npeet.mi with k = 3, without its noise of 1e-10: points nearer than the third joint neighbour, itself too."""
    x, t = layer(2), layer(2, seed=1) + layer(2)
    dx, dt = largest(x), largest(t)
    radius = np.sort(np.maximum(dx, dt), axis=1)[:, 3][:, None]
    near = [digamma((d < radius).sum(1)).mean() for d in (dx, dt)]
    theirs = (digamma(3) + digamma(N) - sum(near)) / BITS
    parity.equal(
        "NPEET", "mutual information by 3 nearest neighbours", apart(information(t, None, "ksg", x=x).x, theirs)
    )


def test_labels_by_nearest_neighbours_of_scikit_learn(parity: Parity) -> None:
    """feature_selection's estimate for continuous and discrete variables (Ross 2014), for several columns."""
    y = np.minimum(labels() * (np.arange(N) % 7 > 0), 2)
    t = layer(2) + y[:, None]
    d = largest(t)
    counts = np.bincount(y)[y]
    radius = np.array([np.sort(d[i][y == y[i]])[3] for i in range(N)])
    within = (d < radius[:, None]).sum(1)  # of all classes, itself included
    theirs = (digamma(N) + digamma(3) - digamma(counts).mean() - digamma(within).mean()) / BITS
    parity.equal(
        "scikit-learn",
        "information about labels by 3 nearest neighbours (Ross)",
        apart(information(t, y, "ksg", x=layer(1)).y, theirs),
    )


def kernel(t: np.ndarray, variance: float) -> np.ndarray:
    return np.exp(-((t[:, None] - t[None]) ** 2).sum(2) / (2 * variance))


def entropy_of(matrix: np.ndarray, alpha: float = 1.01) -> float:
    """log2 tr(A^alpha) / (1 - alpha) for A with trace 1."""
    values = np.abs(np.linalg.eigvalsh(matrix / matrix.trace()))
    return math.log2((values**alpha).sum()) / (1 - alpha)


def test_matrix_based_renyi_entropy(parity: Parity) -> None:
    t, y, variance = layer(3), labels(), 0.5
    k, same = kernel(t, variance), (y[:, None] == y[None]).astype(float)
    theirs = [entropy_of(k), entropy_of(k) + entropy_of(same) - entropy_of(k * same)]
    found = information(t, y, "renyi", noise_variance=variance)
    parity.equal("Renyi", "matrix-based S(T) and I(T;Y), alpha = 1.01", apart([found.x, found.y], theirs))


@pytest.mark.slow
def test_mine(parity: Parity) -> None:
    """A statistics network of two hidden layers trained on the bound of Donsker and Varadhan with the moving average,
    both on the same correlated Gaussians. Both are lower bounds by chance; the truth is 1.2 bits."""
    g = torch.Generator().manual_seed(0)
    a = torch.randn(4000, 1, generator=g)
    b = 0.9 * a + math.sqrt(1 - 0.81) * torch.randn(4000, 1, generator=g)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    average = 1.0

    def scores(rows: slice | torch.Tensor, shuffled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return net(torch.cat([a[rows], b[rows]], 1)), net(torch.cat([a[rows], b[shuffled]], 1)).exp()

    for _ in range(1000):
        rows, other = torch.randint(3000, (512,)), torch.randint(3000, (512,))
        joint, product = scores(rows, other)
        average = 0.99 * average + 0.01 * product.mean().item()
        optimizer.zero_grad()
        (product.mean() / average - joint.mean()).backward()
        optimizer.step()
    held = slice(3000, 4000)
    joint, product = scores(held, 3000 + torch.randperm(1000))
    theirs = (joint.mean() - product.mean().log()).item() / BITS
    truth = -0.5 * math.log2(1 - 0.81)
    ours = mine(a, b).bits
    assert ours < truth + 0.1
    parity.equal("MINE", "correlated Gaussians of 1.2 bits, another network and other draws", apart(ours, theirs), 0.2)


def google(x: np.ndarray, y: np.ndarray, debiased: bool) -> float:
    """CKA of google-research from Gram matrices, centred or, without bias, as Szekely and Rizzo do."""

    def centred(gram: np.ndarray) -> np.ndarray:
        n = len(gram)
        if not debiased:
            h = np.eye(n) - 1 / n
            return h @ gram @ h
        gram = gram - np.diag(np.diag(gram))
        means = gram.sum(0) / (n - 2)
        means = means - means.sum() / (2 * (n - 1))
        gram = gram - means[:, None] - means[None, :]
        return gram - np.diag(np.diag(gram))

    a, b = centred(x @ x.T), centred(y @ y.T)
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """torch_cka: the unbiased estimate of Song et al. from Gram matrices whose diagonals are taken off."""
    n = len(k)
    k, m = k - np.diag(np.diag(k)), m - np.diag(np.diag(m))
    value = np.trace(k @ m) + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 * (k @ m).sum() / (n - 2)
    return float(value / (n * (n - 3)))


@pytest.mark.parametrize("columns", [5, 300])
def test_cka(columns: int, parity: Parity) -> None:
    x, y = layer(columns), layer(7, seed=1)
    y[:, :3] += x[:, :3]
    for debiased in (False, True):
        ours = cka(torch.from_numpy(x), torch.from_numpy(y), unbiased=debiased)
        parity.equal("google-research", "linear CKA, with and without bias", apart(ours, google(x, y, debiased)))
    k, m = x @ x.T, y @ y.T
    theirs = hsic(k, m) / math.sqrt(hsic(k, k) * hsic(m, m))
    parity.equal("torch_cka", "CKA of one batch", apart(cka(torch.from_numpy(x), torch.from_numpy(y)), theirs))


def test_task2vec(parity: Parity) -> None:
    """Labels drawn from the model, then the squared gradient: sample by sample (theirs with a batch of 1), or of the
    mean loss of a minibatch, as their default has it."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(64, 5, dtype=torch.float64)
    ours = fisher_diagonal(net, x, torch.Generator().manual_seed(1))
    drawn = torch.multinomial(net(x).detach().softmax(1), 1, generator=torch.Generator().manual_seed(1)).squeeze(1)

    def fisher(batch: int) -> dict[str, torch.Tensor]:
        found = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
        for part, y in zip(x.split(batch), drawn.split(batch), strict=True):
            grads = torch.autograd.grad(F.cross_entropy(net(part), y), list(net.parameters()))
            for name, grad in zip(found, grads, strict=True):
                found[name] += grad.square() / (64 // batch)
        return found

    parity.equal("Task2Vec", "diagonal Fisher information, minibatches of 1", apart(ours, fisher(1)))
    theirs = fisher(32)
    ratio = sum(f.sum() for f in ours.values()) / sum(f.sum() for f in theirs.values())
    assert 16 < ratio < 64
    page, words = "src/locallearn/analysis/task2vec.py", "squares the gradient of a minibatch's mean loss"
    parity.documented("Task2Vec", "their minibatches of 32", apart(ours, theirs), page, words)


def test_distance_of_task2vec(parity: Parity) -> None:
    a, b = np.random.default_rng(0).uniform(0.1, 2, size=(2, 50))
    u, v = a / (a + b + 1e-8), b / (a + b + 1e-8)
    theirs = 1 - u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    ours = task_distance(torch.from_numpy(a), torch.from_numpy(b))
    parity.equal("Task2Vec", "distance of two tasks (theirs adds 1e-8)", apart(ours, theirs), 1e-7)
