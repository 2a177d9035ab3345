"""The tracker: what it writes against a direct forward and autograd, in anybody's loop, and nothing else changes."""

from __future__ import annotations

import copy
import tracemalloc

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locallearn
from helpers.nets import assert_same, tiny_batches, tiny_learner
from locallearn import Tracker
from locallearn.errors import UserError
from locallearn.strategies.backprop import Backprop


class Net(nn.Module):
    """Everything that makes recording hard: batch statistics, dropout, in-place and shared modules."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.5)
        self.fc1 = nn.Linear(4 * 36, 5)
        self.fc2 = nn.Linear(5, 3)

    def forward(self, x):
        h = self.dropout(self.relu(self.norm(self.conv1(x))))
        return self.fc2(self.relu(self.fc1(h.flatten(1))))


class Words(nn.Module):
    """A recurrent net that reads [B, T] indices, its layer [T, B, D]."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 3)
        self.lstm = nn.LSTM(3, 4)
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        h, _ = self.lstm(self.embed(x).transpose(0, 1))
        return self.fc(h[-1])


@pytest.fixture
def data():
    g = torch.Generator().manual_seed(0)
    return torch.randn(10, 2, 6, 6, generator=g), torch.randint(3, (10,), generator=g)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def by_hand(net, x):
    """Every step of `Net` in eval mode, out of place."""
    steps = {"conv1": F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1)}
    steps["norm"] = net.norm(steps["conv1"])
    steps["relu"] = F.relu(steps["norm"])
    steps["fc1"] = F.linear(steps["relu"].flatten(1), net.fc1.weight, net.fc1.bias)
    steps["relu@2"] = F.relu(steps["fc1"])
    steps["fc2"] = F.linear(steps["relu@2"], net.fc2.weight, net.fc2.bias)
    return steps


@pytest.mark.parametrize("batch_size", [3, 10, None])
def test_activations_and_gradients_are_those_of_a_direct_pass(net, data, tmp_path, batch_size):
    x, y = data
    net.double()
    with Tracker(net, folder=tmp_path, precision="float64", gradients=True) as tracker:
        tracker.record(x.double(), y, epoch=2, batch_size=batch_size)
    steps = by_hand(net.eval(), x.double())
    grads = torch.autograd.grad(F.cross_entropy(steps["fc2"], y), list(steps.values()))
    assert tracker.epochs == [2]
    assert tracker.layers == ["conv1", "norm", "relu", "dropout", "fc1", "relu@2", "fc2"]
    for (name, expected), grad in zip(steps.items(), grads, strict=True):
        found = tracker.activations(name, epoch=2)
        assert isinstance(found, np.memmap)
        np.testing.assert_allclose(found, expected.detach(), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(tracker.gradients(name, epoch=2), grad, rtol=1e-10, atol=1e-14)


def test_nothing_of_the_model_or_the_generators_changes(net, data, tmp_path):
    x, y = data
    F.cross_entropy(net(x), y).backward()
    net.conv1.requires_grad_(False)
    net.norm.eval()
    before, inputs = copy.deepcopy(net), x.clone()
    grads = {n: p.grad.clone() for n, p in net.named_parameters()}
    state = torch.get_rng_state()
    with Tracker(net, folder=tmp_path, gradients=True) as tracker:
        tracker.record(x, y, epoch=0)
        assert_same(before, net)
        assert torch.equal(state, torch.get_rng_state())
        assert [m.training for m in net.modules()] == [m.training for m in before.modules()]
        assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in before.parameters()]
        assert all(torch.equal(grads[n], p.grad) for n, p in net.named_parameters())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert torch.equal(x, inputs)
        tracker.record(x, y, epoch=1)
    np.testing.assert_array_equal(tracker.activations("fc2", 0), tracker.activations("fc2", 1))
    assert np.abs(tracker.gradients("conv1", 0)).max() > 0, "a frozen layer has a gradient, too"


def test_a_plain_loop_trains_as_without(net, data, tmp_path):
    x, y = data

    def train(model, look):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        for epoch in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            look(epoch)
            optimizer.step()
        return model

    plain = train(copy.deepcopy(net), lambda epoch: None)
    with Tracker(net, ["fc*"], folder=tmp_path, gradients=True) as tracker:
        tracked = train(net, lambda epoch: tracker.record(x, y, epoch=epoch, batch_size=4))
    assert_same(plain, tracked)
    assert Tracker.open(tmp_path).epochs == [0, 1, 2]
    assert tracker.layers == ["fc1", "fc2"]
    assert not np.array_equal(tracker.activations("fc1", 0), tracker.activations("fc1", 2))


def test_watch_records_what_passes_by(net, data, tmp_path):
    """The user's own training steps: activations of the training mode, gradients as the user's backward makes them."""
    x, y = data
    seen, grads = [], []
    handle = net.fc1.register_forward_hook(lambda m, a, out: seen.append(out.detach().clone()))
    with Tracker(net, ["fc1", "relu"], folder=tmp_path, gradients=True) as tracker:
        with tracker.watch(epoch=7):
            for part in (slice(0, 6), slice(6, 10)):
                h = net.dropout(net.relu(net.norm(net.conv1(x[part])))).flatten(1)
                a = net.fc1(h)
                a.register_hook(grads.append)
                F.cross_entropy(net.fc2(F.relu(a)), y[part]).backward()
        net(x)
    handle.remove()
    np.testing.assert_array_equal(tracker.activations("fc1", 7), torch.cat(seen[:2]))
    np.testing.assert_array_equal(tracker.gradients("fc1", 7), torch.cat(grads))
    assert net.fc1.weight.grad is not None
    assert tracker.activations("relu", 7).shape == (10, 4, 6, 6)


def test_blocks_of_a_learner_by_pattern(tmp_path):
    (x, y), *_ = tiny_batches(1)
    learner = tiny_learner(Backprop(), total_steps=4)
    untouched = copy.deepcopy(learner.model)
    with Tracker(learner.model, ["units.*", "head"], folder=tmp_path, precision="float64", gradients=True) as tracker:
        tracker.record(x, y, epoch=0)
        assert_same(untouched, learner.model)
        with tracker.watch(epoch=1):
            learner.learn(x, y)
    assert tracker.layers == ["units.0", "units.1", "units.2", "units.3", "head"]
    h = x
    for i, unit in enumerate(untouched.double().eval().units):
        h = unit(h)
        np.testing.assert_allclose(tracker.activations(f"units.{i}", 0), h.detach(), rtol=1e-12, atol=1e-14)
    assert tracker.gradients("units.0", 1).shape == tracker.activations("units.0", 1).shape == (8, 4, 6, 6)


def test_recurrent_layers_give_their_first_tensor_sample_by_sample(tmp_path):
    torch.manual_seed(0)
    model = Words()
    x, y = torch.randint(7, (9, 5)), torch.randint(2, (9,))
    with Tracker(model, folder=tmp_path, gradients=True) as tracker:
        tracker.record(x, y, epoch=0, batch_size=4)
    h, _ = model.lstm(model.embed(x).transpose(0, 1))
    (grad,) = torch.autograd.grad(F.cross_entropy(model.fc(h[-1]), y), h)
    np.testing.assert_allclose(tracker.activations("lstm", 0), h.detach().transpose(0, 1), atol=1e-6)
    np.testing.assert_allclose(tracker.gradients("lstm", 0), grad.transpose(0, 1), atol=1e-7)
    assert tracker.activations("embed", 0).shape == (9, 5, 3)
    with Tracker(model.lstm, folder=tmp_path / "alone") as alone:
        alone.record(torch.randn(5, 2, 3), epoch=0, batch_size=None)
    assert alone.layers == ["LSTM"]


def test_graph_layers(tmp_path):
    from torch_geometric import nn as gnn

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = gnn.GCNConv(4, 6), gnn.GCNConv(6, 2)

        def forward(self, x, edges):
            return self.second(self.first(x, edges).relu(), edges)

    torch.manual_seed(0)
    model = Graph()
    x, edges = torch.randn(5, 4), torch.tensor([[0, 1, 2, 3, 1, 0], [1, 2, 3, 4, 0, 4]])
    y = torch.tensor([0, 1, -100, -100, 1])  # of some nodes only
    with Tracker(model, ["first", "second"], folder=tmp_path, gradients=True) as tracker:
        tracker.record((x, edges), y, epoch=0, batch_size=None)
        with pytest.raises(UserError, match="batch_size=None for a graph"):
            tracker.record((x, edges), y, epoch=1)
    adjacency = torch.eye(5)
    adjacency[edges[1], edges[0]] = 1
    scale = adjacency.sum(dim=1).rsqrt()
    adjacency = scale[:, None] * adjacency * scale
    h = (adjacency @ x @ model.first.lin.weight.T + model.first.bias).detach().requires_grad_()
    out = adjacency @ h.relu() @ model.second.lin.weight.T + model.second.bias
    (grad,) = torch.autograd.grad(F.cross_entropy(out, y), h)
    np.testing.assert_allclose(tracker.activations("first", 0), h.detach(), atol=1e-6)
    np.testing.assert_allclose(tracker.activations("second", 0), out.detach(), atol=1e-6)
    np.testing.assert_allclose(tracker.gradients("first", 0), grad, atol=1e-7)
    assert tracker.epochs == [0]


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 1e-3), ("float32", 1e-6), ("float64", 1e-7)])
def test_precision_on_disk(net, data, tmp_path, precision, tolerance):
    with Tracker(net, ["fc1"], folder=tmp_path, precision=precision) as tracker:
        tracker.record(data[0], epoch=0)
    found = np.load(tmp_path / "epoch-00000" / "fc1.activations.npy")  # an ordinary file
    assert found.dtype == precision
    np.testing.assert_allclose(found, by_hand(net.eval(), data[0])["fc1"].detach(), rtol=tolerance, atol=tolerance)


def test_nan_comes_back_and_overflow_is_said(tmp_path):
    model = nn.Sequential(nn.Identity())
    x = torch.tensor([[1.0, float("nan")], [float("inf"), 1e6]])
    with Tracker(model, folder=tmp_path, precision="float16") as tracker, pytest.warns(UserWarning, match="precision"):
        tracker.record(x, epoch=0)
    found = tracker.activations("0", 0)
    assert np.isnan(found[0, 1])
    assert np.isinf(found[1, 0])
    with Tracker(model, folder=tmp_path) as tracker:
        tracker.record(x, epoch=0)  # replaces
    np.testing.assert_array_equal(tracker.activations("0", 0), x)


def test_an_epoch_cut_short_does_not_count(net, data, tmp_path):
    x, _ = data

    def fail(tracker, epoch, error):
        with tracker.watch(epoch):
            net(x + 1)
            raise error

    with Tracker(net, ["conv1"], folder=tmp_path) as tracker:
        tracker.record(x, epoch=0)
        before = np.array(tracker.activations("conv1", 0))
        for epoch, error in ((1, RuntimeError), (0, KeyboardInterrupt)):
            with pytest.raises(error):
                fail(tracker, epoch, error)
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
        assert tracker.epochs == [0]
        np.testing.assert_array_equal(tracker.activations("conv1", 0), before)
        tracker.record(x, epoch=2)
    left = tmp_path / ".unfinished-epoch-00003"  # as a killed process leaves it
    left.mkdir()
    assert Tracker.open(tmp_path).epochs == [0, 2]
    Tracker(net, folder=tmp_path)
    assert not left.exists()


def test_memory_is_one_batch(tmp_path):
    """64 MB of activations on disk, recorded in batches of 1 MB."""
    model = nn.Sequential(nn.Linear(4, 4096, bias=False))
    x = torch.randn(4096, 4)
    tracemalloc.start()  # sees NumPy and Python, and the bytes on their way to the file
    with Tracker(model, folder=tmp_path) as tracker:
        tracker.record(x, epoch=0, batch_size=64)
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    assert tracker.activations("0", 0).nbytes == 4096 * 4096 * 4
    np.testing.assert_allclose(tracker.activations("0", 0)[-3:], model(x[-3:]).detach(), rtol=1e-5, atol=1e-6)


class Odd(nn.Module):
    def forward(self, x):
        return "text"


class WithOdd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.odd, self.unused = nn.Linear(2, 2), Odd(), nn.Linear(2, 2)
        self.total = nn.Flatten(0)

    def forward(self, x):
        self.odd(x)
        self.total(x[0, :1])
        return self.fc(x)


def test_layers_that_cannot_be_recorded(tmp_path):
    model, x = WithOdd(), torch.randn(4, 2)
    for name, message in [
        ("odd", "emits a str, which holds no tensor"),
        ("total", r"emits shape \[1\] for 4 samples, whose first axis is not the sample"),
        ("unused", "unused did not run in epoch 0"),
    ]:
        with Tracker(model, ["fc", name], folder=tmp_path) as tracker, pytest.raises(UserError, match=message):
            tracker.record(x, epoch=0)
        assert tracker.epochs == []
    with Tracker(model, folder=tmp_path) as tracker, pytest.warns(UserWarning, match="not recorded"):
        tracker.record(x, epoch=0)
    assert tracker.layers == ["fc"], "of all layers, those that can"


def test_mistakes_are_sentences(net, data, tmp_path):
    x, y = data
    with pytest.raises(UserError, match=r"no module of the model matches 'con1': did you mean 'conv1'\?"):
        Tracker(net, ["con1"], folder=tmp_path)
    with pytest.raises(UserError, match="its modules are conv1, norm"):
        Tracker(net, ["units.*"], folder=tmp_path)
    with pytest.raises(UserError, match="did you mean 'float16'"):
        Tracker(net, folder=tmp_path, precision="float1")
    with pytest.raises(UserError, match="layers=\\[\\]"):
        Tracker(net, [], folder=tmp_path)
    with pytest.raises(UserError, match="holds no recorded epoch"):
        Tracker.open(tmp_path)
    with Tracker(net, ["fc1", "fc2"], folder=tmp_path, gradients=True) as tracker:
        for arguments, message in [
            ((x,), "needs targets"),
            ((x, y[:3]), "10, 3 samples"),
            ((x[:0], y[:0]), "0, 0 samples"),
        ]:
            with pytest.raises(UserError, match=message):
                tracker.record(*arguments, epoch=0)
        with pytest.raises(UserError, match="must be at least 0"):
            tracker.record(x, y, epoch=-1)
        with pytest.raises(UserError, match="one number"):
            tracker.record(x, y, epoch=0, loss=lambda out, y: out)
        with tracker.watch(0):
            net(x)
            with pytest.raises(UserError, match="recording already"):
                tracker.record(x, y, epoch=1)
        assert tracker.epochs == [0]
        with pytest.raises(UserError, match=r"'fc3' is not recorded.*did you mean"):
            tracker.activations("fc3", 0)
        with pytest.raises(UserError, match="epoch 5 is not recorded"):
            tracker.activations("fc1", 5)
        with pytest.raises(UserError, match="no gradient of 'fc1'"):
            tracker.gradients("fc1", 0)


def test_patterns(net, tmp_path):
    deep = nn.ModuleDict({"a": nn.ModuleList([net, nn.Linear(1, 1)]), "tied": net.fc1})
    names = lambda *patterns: list(Tracker(deep, patterns, folder=tmp_path)._modules)  # noqa: E731
    assert names("a.*") == ["a.0", "a.1"]
    assert names("a.*.fc*") == ["a.0.fc1", "a.0.fc2"]
    assert names("**fc1", "tied") == ["a.0.fc1"], "one module is recorded once"
    assert names("tied") == ["tied"]


def test_exported():
    assert locallearn.Tracker is Tracker
    assert "Tracker" in locallearn.__all__
