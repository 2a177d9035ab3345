"""Signal and noise of gradients: against numpy, the literature's linear net, and a loop over the strategy's steps."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locallearn
from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import make
from locallearn.analysis.gradient_noise import Moments, gradient_noise, transition
from locallearn.callbacks import Callback
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.probes import Moment, Row
from locallearn.probes.alignment import Alignment
from locallearn.probes.gradient_snr import GradientSNR, gradient_snr
from locallearn.strategies.backprop import Backprop


def load(*overrides: str):
    return experiment(*compose(list(overrides)), list(overrides)).source.load(0, torch.device("cpu"))


def test_against_numpy():
    g = torch.Generator().manual_seed(0)
    weight = torch.randn(20, 4, 3, generator=g) + torch.randn(4, 3, generator=g)
    bias = 1000 + torch.randn(20, 4, generator=g)
    found = gradient_noise({"layer": [w, b], "other": [b]} for w, b in zip(weight, bias, strict=True))
    vectors = np.concatenate([weight.double().numpy().reshape(20, -1), bias.double().numpy()], axis=1)
    mean, std = np.linalg.norm(vectors.mean(axis=0)), np.linalg.norm(vectors.std(axis=0))
    assert found["layer"].mean == pytest.approx(mean, rel=1e-6)
    assert found["layer"].std == pytest.approx(std, rel=1e-4), "a mean of 1000 must not swallow a deviation of 1"
    assert found["layer"].snr == pytest.approx(mean / std, rel=1e-4)
    assert found["other"].std == pytest.approx(np.linalg.norm(bias.double().numpy().std(axis=0)), rel=1e-4)


def test_edges():
    same = [[torch.ones(3)]] * 4
    noise = gradient_noise({"a": g} for g in same)["a"]
    assert (noise.mean, noise.std, noise.snr) == (pytest.approx(math.sqrt(3)), 0.0, math.inf)
    assert math.isnan(gradient_noise([{"a": [torch.zeros(2)]}] * 3)["a"].snr)
    with pytest.raises(UserError, match="at least 2 minibatches"):
        gradient_noise([{"a": [torch.ones(3)]}])
    half = Moments()
    for value in (1.0, 3.0):
        half.add([torch.full((5,), value, dtype=torch.bfloat16)])
    assert half.means[0].dtype == torch.float32
    assert half.read().snr == pytest.approx(2.0)


def test_pure_noise_has_the_ratio_of_the_documentation():
    g = torch.Generator().manual_seed(0)
    found = gradient_noise({"a": [torch.randn(100_000, generator=g)]} for _ in range(17))["a"]
    assert found.snr == pytest.approx(1 / math.sqrt(16), rel=0.02)


def test_transition():
    epochs = [0, 1, 2, 5, 10, 20, 50, 100, 200]
    assert transition(epochs, [9, 8, 7, 5, 3, 0.5, 0.4, 0.3, 0.2]) == 20
    assert transition(epochs, [9, 0.5, 8, 7, 5, 0.5, 0.4, 0.3, 3.0]) == 20, "single looks on the wrong side"
    assert transition(epochs, [9, 8, 7, 5, 3, 3, 4, 5, 2]) is None
    assert transition(epochs, [0.1] * 9) == 0
    assert transition(epochs, [0.1, 0.1, 0.1, 2, 2, 2, 0.1, 0.1, 0.1]) == 50
    assert transition([], []) is None


def test_linear_net_loses_its_signal_as_it_learns():
    """numbers.md 6.5: in a 1-1-1 linear net the ratio falls more than 1000-fold as the error comes down to the noise of
    the labels, though nothing is compressed."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2048, 1, generator=g, dtype=torch.float64)
    y = 0.5 * x + 0.01 * torch.randn(x.shape, generator=g, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)).double()
    for p in net.parameters():
        nn.init.constant_(p, 0.1)

    def ratios() -> list[float]:
        def gradients():
            for a, b in zip(x.split(256), y.split(256), strict=True):
                net.zero_grad()
                F.mse_loss(net(a), b).backward()
                yield {i: [layer.weight.grad] for i, layer in enumerate(net)}

        return [noise.snr for noise in gradient_noise(gradients()).values()]

    before = ratios()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        F.mse_loss(net(x), y).backward()
        optimizer.step()
    after = ratios()
    for early, late in zip(before, after, strict=True):
        assert early > 1 > late
        assert early / late > 1000


def test_rows_are_those_of_the_updates_of_the_strategy():
    """With the same weights put back, the updates of DGL at rate 1 over the batches, taken with numpy."""
    batches = tiny_batches(6)
    learner = tiny_learner(make("dgl"), tiny_model(dropout=0.2), blocks=2, total_steps=8)
    rows = gradient_snr(learner, batches)
    updates: dict[str, list[np.ndarray]] = {}
    for x, y in batches:
        fresh = tiny_learner(make("dgl"), tiny_model(dropout=0.2), blocks=2, total_steps=8)
        before = {n: p.detach().clone() for n, p in fresh.model.named_parameters()}
        for block in fresh.blocks:
            for group in block.optimizers["main"].param_groups:
                group.update(base_lr=1.0, momentum=0.0, weight_decay=0.0)
        fresh.learn(x, y)
        for n, p in fresh.model.named_parameters():
            updates.setdefault(n, []).append((before[n] - p.detach()).numpy().ravel())
    names = ["unit0", "unit1", "unit2", "unit3", "head"]
    assert [(row["layer"], row["name"]) for row in rows[:5]] == list(enumerate(names))
    assert [row["block"] for row in rows[5:]] == [0, 1]
    prefixes = [
        *((f"units.{i}.",) for i in range(4)),
        ("head.",),
        ("units.0.", "units.1."),
        ("units.2.", "units.3.", "head."),
    ]
    for row, own in zip(rows, prefixes, strict=True):
        vectors = np.concatenate([np.array(u) for n, u in updates.items() if n.startswith(own)], axis=1)
        weights = [p.detach().numpy().ravel() for n, p in learner.model.named_parameters() if n.startswith(own)]
        mean, std, size = (
            np.linalg.norm(v) for v in (vectors.mean(axis=0), vectors.std(axis=0), np.concatenate(weights))
        )
        assert row["gradient_mean"] == pytest.approx(mean, rel=1e-6)
        assert row["gradient_std"] == pytest.approx(std, rel=1e-6)
        assert row["gradient_snr"] == pytest.approx(mean / std, rel=1e-6)
        assert row["gradient_std_over_weights"] == pytest.approx(std / size, rel=1e-6)
        assert row["phase"] == ("drift" if mean >= std else "diffusion")


def unchanged_by(look, learner: Learner) -> None:
    before = copy.deepcopy(learner.state())
    look()
    assert all(torch.equal(t, before[n]) for n, t in learner.state().items())
    assert all(p.grad is None for _, p in learner.parameters())


def test_the_probe_on_images():
    data = load("data=digits")
    learner = locallearn.build("dgl", "lenet", image=data.image, classes=10, blocks=2)
    probe = GradientSNR(batches=4, batch_size=32)
    unchanged_by(lambda: probe.look(learner, data, Moment(0, 0)), learner)
    rows = probe.look(learner, data, Moment(0, 0)).rows
    assert rows == probe.look(learner, data, Moment(1, 9)).rows, "the same minibatches at every look"
    assert all(row["minibatches"] == 4 for row in rows)
    assert len(rows) == 5 + 2


@pytest.mark.slow
def test_the_probe_takes_smaller_minibatches_of_a_small_set():
    data = load("data=digits")
    learner = locallearn.build("backprop", "lenet", image=data.image, classes=10, blocks=2)
    few = GradientSNR(batches=64, batch_size=10_000).look(learner, data, Moment(0, 0)).rows
    assert all(row["minibatches"] == 64 for row in few)
    with pytest.raises(UserError, match=r"probe\.gradient_snr\.batches=5000 is more than the .* choose fewer"):
        GradientSNR(batches=5000).look(learner, data, Moment(0, 0))
    for bad in ({"batches": 1}, {"batch_size": 0}):
        with pytest.raises(UserError, match=r"probe\.gradient_snr"):
            GradientSNR(**bad)


@pytest.mark.slow
def test_the_probe_on_a_graph_draws_labelled_nodes(real_root):
    data = load("data=cora", f"data.root={real_root}")
    learner = locallearn.build(
        "backprop", "gcn", image=data.image, classes=len(data.classes), graph=data.graph, blocks=2
    )
    rows = GradientSNR(batches=5, batch_size=28).look(learner, data, Moment(0, 0)).rows
    assert [row.get("name") for row in rows] == ["gcn1", "gcn2", "head", None, None]
    assert all(row["minibatches"] == 5 and row["gradient_std"] > 0 for row in rows)


def test_pictures():
    rows: list[Row] = []
    for epoch in (0, 1, 2, 3, 4, 5, 6):
        for i in range(2):
            snr = 4.0 / (1 + epoch)
            numbers = {"gradient_snr": snr, "gradient_mean_over_weights": snr, "gradient_std_over_weights": 1.0}
            rows.append({"epoch": epoch, "step": epoch, "layer": i, "name": f"fc{i}", **numbers})
            rows.append({"epoch": epoch, "step": epoch, "block": i, "update_cosine": 0.5, "update_angle": 60.0})
    figure = GradientSNR().draw(rows, {})["gradient_snr"]
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert labels == ["fc0 (< 1 from 4)", "fc1 (< 1 from 4)"]
    cosine, angle = Alignment().draw(rows, {})["alignment"].axes
    for axes, value in ((cosine, 0.5), (angle, 60.0)):
        assert [list(line.get_ydata()) for line in axes.lines[1:]] == [[value] * 7] * 2
    assert Alignment().draw([row for row in rows if "layer" in row], {}) == {}


@pytest.mark.parametrize(
    ("ratios", "label", "marker"),
    [
        ([9, 8, 7, 5, 0.9, 6, 0.5, 0.4, 1.2, 0.3, 0.2], "fc (< 1 from 5)", (5, 0.9)),
        ([0.5, 0.4, 0.3, 0.2, 0.1], "fc (< 1 from 0)", (0, 0.4)),  # it never was above
        ([9, 8, 0.3, 0.2, 5, 6, 7], "fc", None),
        ([9, 8, 7, 6, 5], "fc", None),
    ],
)
def test_the_marker_stands_where_the_running_median_falls_below_1_for_good(ratios, label, marker):
    """On the median's own height, which is below 1 where the ratio of that look may not be."""
    rows: list[Row] = [
        {"epoch": k, "step": k, "layer": 0, "name": "fc", "gradient_snr": float(value)}
        for k, value in enumerate(ratios)
    ]
    axes = GradientSNR().draw(rows, {})["gradient_snr"].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [label]
    markers = [(*line.get_xdata(), *line.get_ydata()) for line in axes.lines if line.get_marker() == "v"]
    assert markers == ([marker] if marker else [])


def test_the_ratio_of_backprop_is_that_of_the_plain_loop():
    batches = tiny_batches(4)
    learner = tiny_learner(Backprop(), total_steps=8)
    model = copy.deepcopy(learner.model).train()

    def gradients():
        for x, y in batches:
            model.zero_grad()
            F.cross_entropy(model(x), y).backward()
            yield {i: [p.grad for p in unit.parameters()] for i, unit in enumerate(model.units)}

    plain = gradient_noise(gradients())
    for row in gradient_snr(learner, batches)[:4]:
        assert row["gradient_snr"] == pytest.approx(plain[row["layer"]].snr, rel=1e-9)


@pytest.mark.slow
def test_the_epochs_own_steps_are_those_that_plain_sgd_has_taken(tmp_path):
    """At a constant rate without momentum the mean gradient of an epoch of n steps is (start - end) / (rate n); numpy
    has the deviation over the same steps, from the weights that a callback has seen."""

    rate, seen = 0.05, []

    class Weights(Callback):
        def step(self, run):
            seen.append([p.detach().double().numpy().copy() for p in run.learner.model.head.parameters()])

    result = locallearn.train(
        quiet=True, strategy="backprop", model="mlp", data="digits", epochs=2, blocks=2, optim="sgd", out=str(tmp_path),
        callbacks=Weights(), probe="gradient_snr",
        **{
            "model.width": 8, "model.depth": 2, "data.fraction": 0.3, "optim.lr": rate, "optim.momentum": 0.0,
            "optim.schedule": "constant", "probe.gradient_snr.over": "epoch", "probe.gradient_snr.biases": False,
        },
    )  # fmt: skip
    folder = result.run_dir / "probes/gradient_snr"
    steps = len(seen) // 2
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    (row,) = [row for row in rows if row.get("name") == "head" and row["epoch"] == 2]
    weight = np.stack([before[0] for before in seen[steps - 1 :]])  # before the epoch's first step, and after each
    gradients = -np.diff(weight, axis=0) / rate
    assert row["minibatches"] == steps == len(gradients)
    mean, std = (weight[0] - weight[-1]) / (rate * steps), gradients.std(axis=0)
    assert row["gradient_mean"] == pytest.approx(np.linalg.norm(mean), rel=1e-4)
    assert row["gradient_std"] == pytest.approx(np.linalg.norm(std), rel=1e-3)
    assert row["gradient_mean_over_weights"] == pytest.approx(
        np.linalg.norm(mean) / np.linalg.norm(weight[-1]), rel=1e-4
    )
    assert not [row for row in rows if row["epoch"] == 0], "nothing has been learned yet"
    assert (folder / "gradient_snr.png").is_file()


def test_one_weight_has_the_moments_of_regression():
    """y = a x + noise with one weight w: the gradient of the mean squared error of B samples has mean -2 E x^2 (a - w)
    and variance Var(2 x (w x - y)) / B."""
    a, w, sigma, size = 1.5, 0.25, 0.3, 16
    g = torch.Generator().manual_seed(0)
    moments = Moments()
    for _ in range(4000):
        x, noise = torch.randn(2, size, generator=g, dtype=torch.float64)
        moments.add([(2 * x * (w * x - (a * x + sigma * noise))).mean()[None]])
    found = moments.read()
    variance = 4 * ((w - a) ** 2 * (3 - 1) + sigma**2)  # of 2 x^2 (w - a) - 2 sigma x n, with E x^4 = 3
    assert found.mean == pytest.approx(2 * (a - w), rel=0.02)
    assert found.std == pytest.approx(math.sqrt(variance / size), rel=0.05)


def test_what_watches_every_step_is_refused_where_there_are_none(tmp_path):
    words = ["probe=gradient_snr", "probe.gradient_snr.over=epoch"]
    with pytest.raises(UserError, match=r"probe\.gradient_snr watches every step .*: choose runtime=serial"):
        experiment(*compose([*words, "runtime=pipeline"]), [*words, "runtime=pipeline"])
    with pytest.raises(UserError, match=r"batches=8 is read only with probe\.gradient_snr\.over=fixed"):
        experiment(*compose([*words, "probe.gradient_snr.batches=8"]), [*words, "probe.gradient_snr.batches=8"])
