"""Usable information: below the true information and near it where a small network suffices; nothing from noise."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locallearn.analysis.readout import label_entropy, usable_information
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.probes import Moment
from locallearn.probes.usable_information import UsableInformation
from locallearn.training.prepare import prepare


def gaussians(n: int, distance: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two classes, unit variance in 5 dimensions, `distance` apart."""
    draw = np.random.default_rng(seed)
    y = draw.integers(0, 2, n)
    h = draw.normal(size=(n, 5))
    h[:, 0] += distance * y
    return torch.from_numpy(h).float(), torch.from_numpy(y)


def true_information(distance: float) -> float:
    """I(h; Y) in bits by numerical integration of the posterior's entropy along the line between the means."""
    x = np.linspace(-12, 12 + distance, 200_001)
    one, other = (np.exp(-((x - m) ** 2) / 2) / np.sqrt(2 * np.pi) for m in (0.0, distance))
    joint = np.stack([one, other]) / 2
    share = joint / joint.sum(0)
    entropy = -(np.where(share > 0, share * np.log2(np.clip(share, 1e-300, 1)), 0)).sum(0)
    return float(1 - np.trapezoid(joint.sum(0) * entropy, x))


@pytest.mark.parametrize("distance", [1.0, 2.0, 4.0])
def test_near_the_truth_and_not_above_it(distance):
    h, y = gaussians(4000, distance, 0)
    held_out, truth = gaussians(4000, distance, 1)
    found = usable_information(h, y, held_out, truth, classes=2)
    expected = true_information(distance)
    error = 3 / np.sqrt(4000)  # three standard errors of a mean of log-probabilities with deviation of at most 1 bit
    assert expected - 0.05 - error < found.bits < expected + error


def test_labels_that_have_nothing_to_do_with_the_features():
    h, _ = gaussians(1000, 0.0, 0)
    held_out, truth = gaussians(1000, 0.0, 1)
    labels = torch.from_numpy(np.random.default_rng(2).integers(0, 2, 1000))
    assert usable_information(h, labels, held_out, truth, classes=2).bits < 0.02


@pytest.mark.slow
def test_what_is_read_from_maps_needs_their_positions():
    """The label is where the bright pixel is; the mean over the map knows nothing."""
    draw = np.random.default_rng(0)
    y = torch.from_numpy(draw.integers(0, 4, 1200))
    maps = torch.from_numpy(0.1 * draw.normal(size=(1200, 1, 6, 6))).float()
    for i, k in enumerate(y.tolist()):
        maps[i, 0, 1 + 3 * (k // 2), 1 + 3 * (k % 2)] += 3
    found = usable_information(maps[:800], y[:800], maps[800:], y[800:], classes=4)
    assert found.bits > 1.9
    assert found.accuracy == 1.0


def test_constant_features_and_few_samples():
    y = torch.arange(40) % 2
    assert usable_information(torch.ones(40, 3), y, torch.ones(40, 3), y, classes=2).bits == pytest.approx(0, abs=0.02)
    with pytest.raises(UserError, match="at least 10"):
        usable_information(torch.ones(4, 3), y[:4], torch.ones(4, 3), y[:4], classes=2)
    broken = torch.ones(40, 3)
    broken[3, 1] = float("nan")
    with pytest.raises(UserError, match="NaN"):
        usable_information(broken, y, broken, y, classes=2)


def test_the_global_generator_is_left_alone_and_the_seed_decides():
    h, y = gaussians(200, 2.0, 0)
    before = torch.get_rng_state()
    first = usable_information(h, y, h, y, classes=2, seed=3, steps=50)
    assert torch.equal(torch.get_rng_state(), before)
    assert usable_information(h, y, h, y, classes=2, seed=3, steps=50) == first


def test_entropy_of_labels():
    assert label_entropy(torch.tensor([0, 1, 2, 3])) == pytest.approx(2.0)
    assert label_entropy(torch.tensor([1, 1])) == 0.0


@pytest.mark.slow
def test_what_is_learned_by_heart_is_read_on_the_training_split_alone():
    """Labels drawn anew say nothing: a reader of features knows those it has seen, and nothing of the test split."""
    learner, data = prepare(experiment(*compose(["data=digits", "data.label_noise=1", "model=mlp", "model.width=64"])))
    bits = {}
    for split in ("train", "test"):
        probe = UsableInformation(samples=100, steps=150, split=split)
        bits[split] = probe.look(learner, data, Moment(0, 0)).rows[0]["usable_information"]
    assert bits["train"] > 0.5
    assert bits["test"] == 0
