"""The information-plane probe: its rows against a direct forward, its pictures, the mean over seeds, its mistakes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import locallearn
from locallearn.analysis.information import bounds
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures.plane import plane
from locallearn.probes import Moment
from locallearn.probes.information_plane import InformationPlane
from locallearn.training.probing import START, look


def forward(learner: Learner, data: Data) -> tuple[list[np.ndarray], np.ndarray]:
    """Every unit's activations [N, D] for all test samples, and their labels."""
    h, y = next(data.evaluation(data.test, len(data.test)))
    found = []
    with torch.no_grad():
        for unit in learner.model.eval().units:
            h = unit(h)
            found.append(h.flatten(1).double().numpy())
    return found, y.numpy()


def test_rows_are_those_of_a_direct_forward(learner, data):
    seen = look("mine", InformationPlane(noise_variance=0.02), learner, data, START)
    layers, y = forward(learner, data)
    n = len(y)
    assert [(row["layer"], row["name"]) for row in seen.rows] == list(enumerate(learner.model.names))
    h_y = -sum(p * math.log2(p) for p in np.bincount(y) / n if p)
    for t, row in zip(layers, seen.rows, strict=True):
        squared = cdist(t, t, "sqeuclidean")
        for end, variance in (("lower", 0.08), ("upper", 0.02)):
            kernel = np.exp(-squared / (2 * variance))
            everything = -np.log2(kernel.mean(1)).mean()
            within = sum(-np.log2(kernel[y == c][:, y == c].mean(1)).sum() / n for c in range(10))
            assert row[f"i_x_t_{end}"] == pytest.approx(everything, abs=1e-6)
            assert row[f"i_t_y_{end}"] == pytest.approx(everything - within, abs=1e-6)
        assert (row["i_x_t"], row["i_t_y"]) == (row["i_x_t_upper"], row["i_t_y_upper"])
        assert row["h_y"] == pytest.approx(h_y)
        assert (row["noise_variance"], row["samples"], row["bins"]) == (0.02, n, None)
        assert row["i_x_t"] < 0.99 * math.log2(n) or "saturated" in row["warnings"]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["binned", "kde_lower", "ksg", "renyi", "gaussian", "mine"])
def test_every_estimator(estimator, learner, data, monkeypatch):
    module = __import__("locallearn.analysis.information.mine", fromlist=["mine"])
    quick = module.mine
    monkeypatch.setattr(module, "mine", lambda a, b: quick(a, b, steps=50))
    probe = InformationPlane(estimator=estimator, samples=60, noise_variance=None if estimator == "renyi" else 0.1)
    rows = look("mine", probe, learner, data, START).rows
    assert len(rows) == 4
    assert all(row["estimator"] == estimator for row in rows)
    assert all(isinstance(row["i_x_t"], float) for row in rows)
    assert all((row["i_t_y"] is None) == (estimator == "gaussian") for row in rows)
    assert (rows[0]["bins"] is not None) == (estimator == "binned")


@pytest.mark.slow
def test_noise_of_each_layer_is_drawn(learner, data):
    probe = InformationPlane(noise_variance="distances")
    rows, arrays = [], {}
    for epoch in (0, 3):
        seen = look("mine", probe, learner, data, Moment(epoch, epoch))
        rows += [{"epoch": epoch, "step": epoch, **row} for row in seen.rows]
        arrays[epoch] = seen.arrays
    for t, row in zip(forward(learner, data)[0], rows[:4], strict=True):
        expected = np.quantile(cdist(t, t, "sqeuclidean")[np.triu_indices(len(t), 1)], 0.9) / 1000
        assert row["noise_variance"] == pytest.approx(expected, rel=0.01)
        assert int(arrays[0][f"counts-{row['layer']:02d}"].sum()) == len(t) * (len(t) - 1) // 2
    pictures = probe.draw(rows, arrays)
    assert set(pictures) == {"plane", "distances"}
    assert [panel.get_title() for panel in pictures["distances"].axes] == [f"layer {k}" for k in range(4)]
    assert set(InformationPlane().draw(rows, {})) == {"plane"}


def test_a_rise_between_layers_is_said_in_the_row(data):
    """A layer scaled down against the noise, then up again."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(1024, 5), torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)]
    with torch.no_grad():
        layers[1].weight.copy_(1e-3 * torch.eye(5))
        layers[2].weight.copy_(1e5 * torch.eye(5))
    net = torch.nn.Sequential(torch.nn.Flatten(), *layers, torch.nn.Linear(5, 10))
    learner = locallearn.build("backprop", net, image=(1, 32, 32), blocks=1, device="cpu")
    rows = look("mine", InformationPlane(samples=100), learner, data, START).rows
    said = [row["layer"] for row in rows if "data-processing" in (row["warnings"] or "")]
    (shrunk,) = (row["layer"] for row in rows if row["i_x_t"] < 0.5)
    assert said == [shrunk + 1]


def test_the_plane_is_a_mean_over_seeds():
    def rows(shift: float, epochs: list[int]) -> list[dict]:
        return [
            {"epoch": e, "layer": k, "i_x_t": 5 - k + 0.1 * e + shift, "i_t_y": 0.5, "i_x_t_lower": 1.0 + shift,
             "i_x_t_upper": 6.0, "i_t_y_lower": 0.4, "i_t_y_upper": 0.6}
            for e in epochs for k in range(3)
        ]  # fmt: skip

    figure = plane([rows(0.0, [0, 1, 2, 3]), rows(1.0, [0, 1, 3])])
    left, right, *_ = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("I(X;T) [bits]", "I(T;Y) [bits]")
    line = right.lines[1]
    assert line.get_xdata().tolist() == [0, 1, 3]  # what both have
    assert line.get_ydata().tolist() == pytest.approx([4.5, 4.6, 4.8])
    paths = [c for c in left.collections if type(c).__name__ == "LineCollection"]
    assert len(paths) == 3
    assert paths[1].get_segments()[1].tolist() == [pytest.approx([4.6, 0.5]), pytest.approx([4.8, 0.5])]
    band = right.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((1.5, 6.0))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"estimator": "kd"}, "probe.information_plane.estimator=kd: did you mean 'kde'"),
        ({"split": "tset"}, "did you mean 'test'"),
        ({"samples": 1}, "probe.information_plane.samples=1: must be a whole number of at least 2"),
        ({"noise_variance": -0.1}, "probe.information_plane.noise_variance=-0.1: must be"),
        ({"noise_variance": "distance"}, "noise_variance=distance: did you mean 'distances'"),
        ({"estimator": "gaussian"}, "give probe.information_plane.noise_variance="),
    ],
)
def test_mistakes_are_sentences(options, said):
    with pytest.raises(UserError, match=said):
        InformationPlane(**options)


def test_labels_left_out(learner, data, monkeypatch):
    """Nodes of a graph without a label in the split count for nothing."""
    x, y = next(data.evaluation(data.test, 90))
    monkeypatch.setattr(
        "locallearn.probes.information_plane.sample", lambda *_: (x, torch.where(torch.arange(90) < 40, y, -1))
    )
    for row in look("mine", InformationPlane(), learner, data, START).rows:
        assert row["samples"] == 40


def test_a_variance_for_each_layer(learner, data):
    """Each layer has the bits that a single variance of that size gives it; scaled by c with its variance by c^2, as
    many as before (by definition of the noise)."""
    names = learner.model.names
    variances = [0.5, 0.02, 0.1, 3.0]
    singly = [look("mine", InformationPlane(noise_variance=v), learner, data, START).rows for v in variances]
    for given in (variances, dict(zip(reversed(names), reversed(variances), strict=True))):
        rows = look("mine", InformationPlane(noise_variance=given), learner, data, START).rows
        assert [row["noise_variance"] for row in rows] == variances
        assert [row["i_x_t"] for row in rows] == [singly[k][k]["i_x_t"] for k in range(4)]
    for wrong in ([0.1] * 3, {"nowhere": 0.1}):
        with pytest.raises(UserError, match=f"has 4 units: give a number, or one for each of {', '.join(names)}"):
            look("mine", InformationPlane(noise_variance=wrong), learner, data, START)
    t = forward(learner, data)[0][1]
    pair = [bounds(c * t, None, c * c * 0.05)[1].x for c in (1.0, 30.0)]
    assert pair[0] == pytest.approx(pair[1], abs=1e-9)


def test_the_percentile_of_the_distances_is_numpys(learner, data):
    rows = look("mine", InformationPlane(noise_variance="distances", percentile=0.5, divisor=20), learner, data, START)
    for t, row in zip(forward(learner, data)[0], rows.rows, strict=True):
        squared = cdist(t, t, "sqeuclidean")[np.triu_indices(len(t), 1)]
        expected = np.sort(squared)[round(0.5 * len(squared)) - 1] / 20
        assert row["noise_variance"] == pytest.approx(expected, rel=1e-5)  # activations of float32
    assert set(InformationPlane(noise_variance=0.1).unread()) == {"bins", "percentile", "divisor"}
