"""Estimators of mutual information against closed forms, enumeration, Monte Carlo and quadrature done here."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from scipy.stats import norm

import locallearn
from locallearn import information
from locallearn.analysis.information import bounds, data_processing, gaussian_channel, mine, noise_from_distances
from locallearn.analysis.information import pairwise as pairwise_module
from locallearn.data.tishby import Tishby
from locallearn.errors import UserError

RHO = 0.8
OF_RHO = -0.5 * math.log2(1 - RHO**2)


def correlated(n: int, rho: float = RHO, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    x, e = np.random.default_rng(seed).normal(size=(2, n, 1))
    return x, rho * x + math.sqrt(1 - rho**2) * e


def monte_carlo(h, y, variance, draws, rng):
    """I(X;T) and I(T;Y) of the mixture of Gaussians at h [N, D], and four standard errors of each."""
    n, d = h.shape
    i = rng.integers(n, size=draws)
    t = h[i] + math.sqrt(variance) * rng.normal(size=(draws, d))
    log = -cdist(t, h, "sqeuclidean") / (2 * variance)
    everything = logsumexp(log, axis=1) - math.log(n)
    same = y[i][:, None] == y[None]
    own = logsumexp(np.where(same, log, -np.inf), axis=1) - np.log(same.sum(1))
    exact = log[np.arange(draws), i]
    return [
        (sample.mean(), 4 * sample.std() / math.sqrt(draws) + 1e-9)
        for sample in ((exact - everything) / math.log(2), (own - everything) / math.log(2))
    ]


# --- pairwise bounds


@pytest.mark.parametrize("variance", [0.003, 0.03, 0.3, 3.0])
def test_the_truth_lies_between_the_bounds(variance):
    rng = np.random.default_rng(round(1000 * variance))
    for kind in range(6):
        n, d = int(rng.integers(5, 80)), int(rng.integers(1, 5))
        y = rng.integers(0, 3, n)
        y[:3] = 0, 1, 2
        h = rng.normal(size=(n, d)) + (kind % 3) * rng.normal(size=(3, d))[y]
        if kind % 2:
            h = np.tanh(3 * h)  # clusters in the corners
        (x, x_error), (of_y, y_error) = monte_carlo(h, y, variance, 4000, rng)
        lower, upper = bounds(h, y, variance)
        assert lower.x - x_error <= x <= upper.x + x_error
        assert lower.x_range == upper.x_range == (lower.x, upper.x)
        assert upper.y_range[0] - y_error <= of_y <= upper.y_range[1] + y_error
        assert lower.y - y_error - 1e-3 <= of_y <= upper.y + y_error + 1e-3  # no bound, but this close to one


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])
def test_gaussian_channels_lie_between_the_bounds(scale):
    """T = W x + noise of variance 1, x normal: 4000 samples of x stand for it to 0.02 bits in one dimension."""
    x = np.random.default_rng(1).normal(size=(4000, 1))
    truth = 0.5 * math.log2(1 + scale**2)
    lower, upper = bounds(scale * x, noise_variance=1.0)
    assert lower.x <= truth + 0.02
    assert truth - 0.02 <= upper.x
    assert upper.x - lower.x < 1.1  # and both say something


def test_blocks_agree_with_one_matrix(monkeypatch):
    rng = np.random.default_rng(2)
    h, y, variance = 50 + rng.normal(size=(700, 40)), rng.integers(0, 9, 700), 4.0
    squared = cdist(h, h, "sqeuclidean")

    def value(v, rows, columns):
        return -np.mean(np.log2(np.exp(-squared[np.ix_(rows, columns)] / (2 * v)).mean(1)))

    every = np.arange(700)
    expected = []
    for v in (4 * variance, variance):
        inside = sum((y == c).mean() * value(v, every[y == c], every[y == c]) for c in range(9))
        expected += [value(v, every, every), value(v, every, every) - inside]
    for rows, columns, copied in ((1024, 2048, 2**24), (64, 7, 0), (100, 40, 2**24)):
        monkeypatch.setattr(pairwise_module, "ROWS", rows)
        monkeypatch.setattr(pairwise_module, "COLUMNS", columns)
        monkeypatch.setattr(pairwise_module, "COPIED", copied)
        lower, upper = bounds(h, y, variance)
        assert [lower.x, lower.y, upper.x, upper.y] == pytest.approx(expected, abs=1e-10)


def test_far_from_the_origin_little_cancels():
    """float32 activations near 1000 that differ by 1e-3: exact where float32 products would be off by 0.1."""
    h = (1000 + torch.randn(300, 5, dtype=torch.float64) * 0.05).float()
    exact = h.double() - 1000
    found, expected = (bounds(t, noise_variance=1e-3)[1].x for t in (h, exact))
    assert found == pytest.approx(expected, abs=1e-9)


def test_noise_from_distances():
    h = np.random.default_rng(3).normal(size=(400, 6))
    found = noise_from_distances(h)
    squared = cdist(h, h, "sqeuclidean")[np.triu_indices(400, 1)]
    assert found.noise_variance == pytest.approx(np.quantile(squared, 0.9) / 1000, rel=1e-3)
    assert found.counts.tolist() == np.histogram(squared, found.edges.numpy())[0].tolist()
    assert information(h, noise_variance="distances").noise_variance == found.noise_variance
    assert noise_from_distances(7 * h).noise_variance == pytest.approx(49 * found.noise_variance)
    assert noise_from_distances(torch.ones(5, 2)).noise_variance == 1.0


SPEED = """
import json, resource, sys, time, torch
from locallearn.analysis.information import bounds
torch.set_num_threads(1)
t, y = torch.randn(10000, int(sys.argv[1])), torch.randint(10, (10000,))
bounds(t[:1500], y[:1500])
before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
bounds(t, y, 20.0)
more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps([time.process_time() - started, more * 1024]))
"""


@pytest.mark.slow
def test_ten_thousand_samples_in_seconds_and_bounded_memory():
    """Both bounds, I(X;T) and I(T;Y), on one core: processor time, which a busy machine lengthens less."""
    done = subprocess.run([sys.executable, "-c", SPEED, "100"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    seconds, more = json.loads(done.stdout)
    assert seconds < 5
    assert more < 500e6


# --- binning


def test_binning_is_exact_enumeration():
    """All 6-bit inputs through a layer of three thresholds, counted by hand."""
    patterns = np.array([[i >> k & 1 for k in range(6)] for i in range(64)])
    layer = np.stack([patterns.sum(1), patterns[:, 0] * 2 - patterns[:, 1], patterns[:, :3].max(1)], 1)
    y = patterns[:, 0] ^ patterns[:, 5]

    def entropy(items):
        return sum(-c / 64 * math.log2(c / 64) for c in Counter(items).values())

    words = list(map(tuple, layer.tolist()))
    h_t, h_y, joint = entropy(words), entropy(y.tolist()), entropy(zip(words, y.tolist(), strict=True))
    for bins in (1.0, 0.5, torch.arange(-2, 8) - 0.5):
        found = information(layer, y, "binned", bins=bins)
        assert (found.x, found.y, found.h_y) == pytest.approx((h_t, h_t + h_y - joint, h_y), abs=1e-12)
        assert found.samples == 64


def test_bins_of_a_number_a_width_or_edges():
    t = np.array([[-1.0], [-0.5], [0.0], [0.49], [0.5], [1.0]])
    assert information(t, estimator="binned", bins=4).x == pytest.approx(math.log2(6) - 2 * 2 / 6)  # 1, 1, 2, 2
    assert information(t, estimator="binned", bins=[-1, 0, 1]).x == pytest.approx(
        -(1 / 3) * math.log2(1 / 3) - (2 / 3) * math.log2(2 / 3)
    )
    assert information(t, estimator="binned", bins=1.0).bins == "width 1"
    wide = np.random.default_rng(0).integers(0, 2, (500, 300))  # 300 columns do not fit into one word
    wide[250:] = wide[:250]
    assert information(wide, estimator="binned").x == pytest.approx(math.log2(250))
    apart = np.array([[0.0, 1e12], [1e12, 0.0], [0.0, 1e12], [0.0, 0.0]])
    assert information(apart, estimator="binned", bins=1e-4).x == pytest.approx(1.5)


def test_saturated_tanh_units_have_a_bin_of_their_own_as_in_the_original():
    """numpy.digitize with 30 edges: what is exactly 1.0 lies beyond the last one, what is just below it does not."""
    t = np.tanh(np.random.default_rng(0).normal(0, 8, (2000, 3))).astype(np.float32)
    assert 0.05 < (t == 1).mean() < 0.5
    codes = np.digitize(t, np.linspace(-1, 1, 30)) - 1
    assert set(codes[t == 1]) == {29}
    counts = np.unique(codes, axis=0, return_counts=True)[1] / len(t)
    found = information(t, estimator="binned", bins="tanh")
    assert found.x == pytest.approx(-(counts * np.log2(counts)).sum(), abs=1e-12)
    equal = information(t, estimator="binned", bins=np.linspace(-1, 1, 31).tolist())
    assert equal.x < found.x - 0.5, "30 bins of equal width tell less apart"


def test_the_12_bit_task(real_root):
    raw = Tishby(root=str(real_root)).read(torch.device("cpu"))
    patterns = torch.cat([part.images.samples for part in (raw.train, raw.test)])
    labels = torch.cat([raw.train.labels, raw.test.labels])
    for found in (information(patterns, labels, "binned"), information(patterns, labels, noise_variance=1e-3)):
        assert found.x == pytest.approx(12.0, abs=1e-12)
        assert found.h_y == pytest.approx(0.999157, abs=1e-6)
        assert found.y == pytest.approx(0.999157, abs=1e-6)


@pytest.mark.slow
def test_the_minimal_model_of_saxe():
    """h = tanh(w x), x normal, 30 bins on [-1, 1]: rises to nearly log2 30, then falls to 1 bit; with ReLU only rises.
    Against the masses of the bins under the normal distribution."""
    x = norm.ppf((np.arange(100_000) + 0.5) / 100_000)[:, None]
    edges = np.linspace(-1, 1, 31)
    weights = [0.03, 0.1, 0.3, 0.9, 1.2, 2, 4, 16, 64, 1000]
    found = [information(np.tanh(w * x), estimator="binned", bins=torch.from_numpy(edges)).x for w in weights]
    with np.errstate(divide="ignore"):
        cuts = np.arctanh(edges)
    for w, value in zip(weights, found, strict=True):
        mass = np.diff(norm.cdf(cuts / w))
        mass = mass[mass > 0]
        assert value == pytest.approx(-(mass * np.log2(mass)).sum(), abs=2e-3)
    peak = int(np.argmax(found))
    assert math.log2(30) - 0.1 < found[peak] < math.log2(30)
    assert found[: peak + 1] == sorted(found[: peak + 1])
    assert found[peak:] == sorted(found[peak:], reverse=True)
    assert found[-1] == pytest.approx(1.0, abs=0.05)
    grid = torch.linspace(0, 4 * 64, 101)
    relu = [information(np.maximum(w * x, 0), estimator="binned", bins=grid).x for w in weights[:-1]]
    assert relu == sorted(relu)


# --- Gaussian closed form


def test_gaussian_channels():
    rng = np.random.default_rng(4)
    w, a = rng.normal(size=(3, 5)), rng.normal(size=(5, 5))
    c = a @ a.T
    truth = 0.5 * np.linalg.slogdet(np.eye(3) + w @ c @ w.T / 0.7)[1] / math.log(2)
    assert gaussian_channel(torch.tensor(w), torch.tensor(c), 0.7) == pytest.approx(truth, abs=1e-10)
    x = rng.normal(size=(50_000, 5)) @ a.T
    assert information(x @ w.T, estimator="gaussian", noise_variance=0.7).x == pytest.approx(truth, abs=0.03)
    assert information(x @ w.T, x=x, estimator="gaussian", noise_variance=0.7).x == pytest.approx(truth, abs=0.03)
    noisy = x @ w.T + math.sqrt(0.7) * rng.normal(size=(50_000, 3))
    assert information(noisy, x=x, estimator="gaussian").x == pytest.approx(truth, abs=0.03)
    free = information(x @ w.T, x=x, estimator="gaussian")
    assert free.x == math.inf
    assert any("infinite" in sentence for sentence in free.warnings)


def test_a_deep_linear_net_never_compresses():
    """Gradient descent on a linear student of a linear teacher, x normal with covariance 1 (numbers.md C7)."""
    rng = np.random.default_rng(5)
    teacher = rng.normal(size=(2, 8))
    w1, w2 = 1e-4 * rng.normal(size=(6, 8)), 1e-4 * rng.normal(size=(2, 6))
    found = []
    for _ in range(600):
        found.append(gaussian_channel(torch.tensor(w1), torch.eye(8), 0.1))
        error = w2 @ w1 - teacher
        w1, w2 = w1 - 0.02 * w2.T @ error, w2 - 0.02 * error @ w1.T
    assert np.abs(w2 @ w1 - teacher).max() < 0.01  # it learned
    assert found[-1] > found[0] + 3
    assert min(np.diff(found)) > -1e-6  # while the initial weights turn


# --- nearest neighbours, MINE, Renyi


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_neighbours_find_correlated_gaussians(rho):
    x, t = correlated(3000, rho)
    assert information(t, x=x, estimator="ksg").x == pytest.approx(-0.5 * math.log2(1 - rho**2), abs=0.06)


@pytest.mark.slow
def test_neighbours_and_labels():
    """Two normal distributions at -1 and 1: I(T;Y) by quadrature."""
    y = np.arange(4000) % 2
    t = np.random.default_rng(6).normal(size=(4000, 1)) + (2 * y - 1)[:, None]
    grid = np.linspace(-9, 9, 20_001)
    p = 0.5 * (norm.pdf(grid, -1) + norm.pdf(grid, 1))
    truth = -(p * np.log2(p)).sum() * (grid[1] - grid[0]) - 0.5 * math.log2(2 * math.pi * math.e)
    for estimator, tolerance in (("ksg", 0.04), ("mine", 0.05)):
        found = information(t, y, estimator)
        assert found.x is None
        assert found.y == pytest.approx(truth, abs=tolerance)


def test_repeated_rows_are_no_work_for_neighbours():
    x, t = correlated(500)
    found = information(np.maximum(t, 0), x=x, estimator="ksg")
    assert any("repeat" in sentence for sentence in found.warnings)
    noisy = information(np.maximum(t, 0), x=x, estimator="ksg", noise_variance=0.1)
    assert not any("repeat" in sentence for sentence in noisy.warnings)


@pytest.mark.slow
def test_mine_finds_correlated_gaussians_and_draws_from_its_own_generator():
    x, t = correlated(4000)
    before = torch.get_rng_state()
    found = information(t, x=x, estimator="mine")
    assert torch.equal(torch.get_rng_state(), before)
    assert found.x == pytest.approx(OF_RHO, abs=0.1)
    assert len(found.curve) == 50
    assert found.curve[0] < found.curve[-1]
    assert not any("MINE has" in sentence or "MINE varies" in sentence for sentence in found.warnings)
    assert mine(t, x, steps=100).curve == mine(t, x, steps=100).curve


def test_mine_says_that_it_has_not_converged():
    x, t = correlated(4000, 0.99)
    assert any("not converged" in sentence for sentence in mine(t, x, steps=60).warnings)
    assert mine(np.ones((4000, 1)), x, steps=60).bits == pytest.approx(0.0, abs=0.02)


def test_renyi_of_clusters_is_renyi_of_their_sizes():
    """Equal samples have kernel 1, far ones 0: the eigenvalues are the shares of the clusters."""
    cluster = np.repeat([0, 1, 2, 3], [40, 30, 20, 10])
    t = 100.0 * np.eye(4)[cluster]
    p = np.array([0.4, 0.3, 0.2, 0.1])
    truth = math.log2((p**1.01).sum()) / (1 - 1.01)
    found = information(t, cluster, "renyi", noise_variance=1.0)
    assert (found.x, found.y) == pytest.approx((truth, truth), abs=1e-9)
    halves = np.tile([0, 1], 50)  # independent of the clusters
    assert information(t, halves, "renyi", noise_variance=1.0).y == pytest.approx(0.0, abs=1e-9)


def test_renyi_with_inputs():
    """Both kernels by Silverman's rule, in numpy."""
    x, t = correlated(150)

    def kernel(z):
        squared = (z - z.T) ** 2
        width = np.median(squared[np.triu_indices(150, 1)]) * 150 ** (-2 / 5)
        return np.exp(-squared / (2 * width)) / 150, width

    def entropy(matrix):
        return math.log2((np.linalg.eigvalsh(matrix).clip(0) ** 1.01).sum()) / (1 - 1.01)

    (a, _), (b, width) = kernel(x), kernel(t)
    found = information(t, x=x, estimator="renyi")
    assert found.noise_variance == pytest.approx(width, rel=1e-3)  # another of the two middle pairs
    assert found.x == pytest.approx(entropy(a) + entropy(b) - entropy(150 * a * b), abs=1e-3)


# --- bad input, and what warns


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"t": [[1.0, math.nan], [math.inf, 2.0], [0.0, 0.0]]}, "2 values that are NaN or infinite, in 2 of 3"),
        ({"t": torch.ones(3, 2), "y": [0, 1]}, r"y has shape \[2\], t has 3 samples"),
        ({"t": torch.ones(3, 2), "y": [0.5, 1, 2]}, "whole numbers"),
        ({"t": torch.ones(1, 2)}, "at least 2"),
        ({"t": torch.ones(3, 2), "y": [0, -1, -1]}, "1 samples with a label"),
        ({"t": torch.ones(3, 2), "x": torch.ones(2, 2), "estimator": "ksg"}, "x has 2 samples, t has 3"),
        ({"t": torch.ones(3, 2), "estimator": "kde_uper"}, "did you mean 'kde_upper'"),
        ({"t": torch.ones(3, 2), "noise_variance": 0.0}, "noise_variance=0.0: must be"),
        ({"t": torch.ones(3, 2), "noise_variance": "distance"}, "noise_variance=distance: must be"),
        ({"t": torch.ones(3, 2), "estimator": "binned", "bins": 0}, "bins=0"),
        ({"t": torch.ones(3, 2), "estimator": "binned", "bins": -0.1}, "bins=-0.1: the width"),
        ({"t": torch.ones(3, 2), "estimator": "binned", "bins": [1, 0]}, "ascending"),
        ({"t": torch.ones(3, 2), "estimator": "binned", "bins": "relu"}, "bins=relu: the only named bins"),
        ({"t": torch.ones(3, 2), "estimator": "ksg"}, r"needs the inputs: give x="),
        ({"t": torch.ones(3, 2), "estimator": "gaussian"}, "give noise_variance="),
        ({"t": torch.ones(5001, 1), "estimator": "renyi"}, "at most 5000"),
    ],
)
def test_mistakes_are_sentences(arguments, said):
    with pytest.raises(UserError, match=said):
        information(**arguments)


def test_what_a_tracker_maps_from_disk_is_taken_without_a_warning(tmp_path):
    kept = np.memmap(tmp_path / "t", np.float32, "w+", shape=(50, 3))
    kept[:] = np.random.default_rng(0).normal(size=(50, 3))
    mapped = np.memmap(tmp_path / "t", np.float32, "r", shape=(50, 3))
    torch.set_warn_always(True)  # else PyTorch says it once in a process
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert information(mapped).x == information(np.array(kept)).x
    finally:
        torch.set_warn_always(False)


@pytest.mark.parametrize("estimator", ["kde_upper", "kde_lower", "binned", "renyi", "gaussian", "ksg"])
def test_constant_activations_carry_nothing(estimator):
    x = torch.randn(60, 2)
    found = information(torch.full((60, 3), 0.7), torch.arange(60) % 2, estimator, 0.1, x=x)
    assert found.x == pytest.approx(0.0, abs=0.25 if estimator == "ksg" else 0.02)
    if found.y is not None:
        assert found.y == pytest.approx(0.0, abs=0.25 if estimator == "ksg" else 0.02)
    assert any("carries nothing" in sentence for sentence in found.warnings)


def test_saturation_and_lonely_classes_warn():
    t, y = torch.randn(64, 20), torch.arange(64)
    found = information(t, y, noise_variance=1e-3)
    assert (found.x, found.y, found.h_y) == pytest.approx((6.0, 6.0, 6.0))
    assert any("saturated at log2 N = 6.00" in sentence for sentence in found.warnings)
    assert any(sentence.startswith("every class has one sample") for sentence in found.warnings)
    assert information(t, y // 32, noise_variance=50.0).warnings == ()


def test_above_the_entropy_of_the_labels_warns():
    """Nearest neighbours overestimate where the classes lie apart: psi(N) - psi(N_y) > log2 of their number."""
    y = torch.arange(12) % 2
    found = information(torch.randn(12, 1) + 100 * y[:, None], y, "ksg")
    assert found.y > found.h_y
    assert any("above H(Y)" in sentence for sentence in found.warnings)


def test_data_processing_flags_what_contradicts():
    t = torch.randn(200, 5)
    narrow, wide = bounds(0.01 * t, noise_variance=0.1)[1], bounds(10 * t, noise_variance=0.1)[1]
    assert data_processing([wide, narrow]) == ()
    ((layer, said),) = data_processing([wide, narrow, wide])
    assert layer == 2
    assert "I(X;T) rises by" in said
    coarse, fine = (information(t, t[:, 0] > 0, "binned", bins=bins) for bins in (1, 30))
    assert [layer for layer, _ in data_processing([coarse, fine])] == [1, 1]  # I(X;T) and I(T;Y)


def test_arrays_and_tensors_and_labels_left_out():
    rng = np.random.default_rng(7)
    t, y = rng.normal(size=(40, 3, 2)).astype(np.float32), rng.integers(-1, 3, 40)
    found = locallearn.information(t, y)
    keep = y >= 0
    same = locallearn.information(torch.from_numpy(t[keep]).flatten(1), torch.from_numpy(y[keep] + 5))
    assert found == same
    assert found.samples == keep.sum()
    half = locallearn.information(torch.from_numpy(t).bfloat16(), y)
    assert half.x == pytest.approx(found.x, abs=0.05)


# --- what may change nothing


@st.composite
def layers(draw):
    n, d = draw(st.integers(4, 40)), draw(st.integers(1, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    t = np.round(rng.normal(size=(n, d)) * draw(st.sampled_from([0.1, 1.0, 5.0])), draw(st.sampled_from([0, 6])))
    return t, rng.integers(0, 3, n), rng, draw(st.sampled_from([0.01, 0.3, 10.0]))


NAMES = ["kde_upper", "kde_lower", "binned", "renyi"]


@pytest.mark.parametrize("estimator", NAMES)
@settings(max_examples=30, deadline=None)
@given(layers())
def test_invariances(estimator, layer):
    """To the order of the samples, the scale of activations and noise, a constant column, the names of the classes."""
    t, y, rng, variance = layer
    noise = None if estimator == "binned" else variance
    found = information(t, y, estimator, noise)
    order = rng.permutation(len(t))
    others = [(t[order], y[order], noise), (t, 2 - y, noise), (8 * t, y, noise and 64 * noise)]
    if estimator != "binned":  # a constant would widen the range of the layer
        others.append((np.concatenate([t, np.full((len(t), 1), 3.0)], 1), y, noise))
    for other in others:
        again = information(other[0], other[1], estimator, other[2])
        assert (again.x, again.y) == pytest.approx((found.x, found.y), abs=1e-6 if estimator == "renyi" else 1e-9)
    assert -1e-12 <= found.x <= math.log2(len(t)) + 1e-9
    assert -1e-12 <= found.y <= found.h_y + 1e-6


@settings(max_examples=60, deadline=None)
@given(layers())
def test_the_lower_bound_is_below_the_upper(layer):
    t, y, _, variance = layer
    lower, upper = bounds(t, y, variance)
    assert 0 <= lower.x <= upper.x + 1e-12
    assert 0 <= upper.y_range[0] <= upper.y_range[1] <= upper.h_y
    finer = bounds(t, y, variance / 2)
    assert lower.x <= finer[0].x + 1e-12  # less noise, more information
    assert upper.x <= finer[1].x + 1e-12
