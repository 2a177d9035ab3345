"""Forward-Forward against a net in numpy; its verdicts against separate passes; what ships answers as the run did."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import locallearn
from helpers.nets import tiny_learner
from locallearn.contract import Packet
from locallearn.engine import SGD
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.strategies.forward_forward import ForwardForward, normalised, written
from locallearn.task import Classification

B, C = 6, 2  # of two classes the wrong one is certain
RATE = 0.1
OPTIM = SGD(lr=RATE, momentum=0.0, schedule="constant")


def net(classes: int = C) -> BlockModel:
    torch.manual_seed(0)
    sizes = [7, 6, 5, 8]
    units = [nn.Sequential(nn.Linear(n, m), nn.ReLU()) for n, m in pairwise(sizes)]
    model = BlockModel(units, nn.Linear(8, classes), image=(7,), classes=classes, name="net")
    return model.double()


def batch(classes: int = C) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(B, 7, generator=g, dtype=torch.float64), torch.randint(classes, (B,), generator=g)


def rms(h: np.ndarray) -> np.ndarray:
    return h / (np.sqrt((h**2).mean(1, keepdims=True)) + 1e-8)


def sigmoid(q: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-q))


def numpy_step(model, readout, x, y, means, peer, theta, linear):
    """Gradients of each layer and of the read-out, from the equations alone; and the next running means."""
    shown = [np.eye(C)[y], np.eye(C)[1 - y]] + ([np.full((B, C), 0.1)] if linear else [])
    h = np.concatenate([np.concatenate([each, x[:, C:]], 1) for each in shown])
    found, after, seen = [], [], []
    for k, unit in enumerate(model.units):
        weight, bias = unit[0].weight.detach().numpy(), unit[0].bias.detach().numpy()
        u = rms(h)
        h = np.maximum(u @ weight.T + bias, 0)
        rows = h[: 2 * B]
        q = (rows**2).sum(1) - theta * rows.shape[1]
        wanted = np.repeat([1.0, 0.0], B)
        dh = 2 * rows * ((sigmoid(q) - wanted) / (2 * B))[:, None]
        if peer:
            mean = 0.9 * means[k] + 0.1 * rows[:B].mean(0)
            away = -2 * (mean.mean() - mean) / len(mean)  # of the mean of squares; the inner mean's share sums to 0
            dh[:B] += peer * away * 0.1 / B
            after.append(mean)
        found += [dh.T @ u[: 2 * B], dh.sum(0)]  # goodness sends nothing where h is 0, and the peer loss passes there
        if linear and k:
            seen.append(rms(h[2 * B :]))
    if linear:
        features = np.concatenate(seen, 1)
        z = features @ readout.T
        p = np.exp(z - z.max(1, keepdims=True))
        found.append(((p / p.sum(1, keepdims=True) - np.eye(C)[y]) / B).T @ features)
    return found, after


@pytest.mark.parametrize("linear", [True, False])
@pytest.mark.parametrize(("peer", "theta"), [(0.03, 1.0), (0.0, 2.0)])
def test_two_steps_are_those_of_a_net_in_numpy(linear, peer, theta):
    strategy = ForwardForward(readout="linear" if linear else "goodness", peer=peer, threshold=theta)
    learner = tiny_learner(strategy, net(), "max", optim=OPTIM)
    x, y = batch()
    means = [np.full(n, 0.5) for n in (6, 5, 8)]
    for _ in range(2):
        readout = learner.blocks[-1].auxiliary["readout"] if linear else None
        trained = [p for unit in learner.model.units for p in unit.parameters()] + ([readout.weight] if linear else [])
        weight = readout.weight.detach().numpy().copy() if linear else None
        expected, means = numpy_step(learner.model, weight, x.numpy(), y.numpy(), means, peer, theta, linear)
        before = [p.detach().clone() for p in trained]
        learner.step(x, y)
        for old, new, gradient in zip(before, trained, expected, strict=True):
            np.testing.assert_allclose((old - new.detach()) / RATE, gradient, atol=1e-12)
        for block, mean in zip(learner.blocks, means, strict=False):
            np.testing.assert_allclose(block.auxiliary["activity"].mean, mean, atol=1e-12)


def test_goodness_is_backpropagated_exactly_through_the_layers_of_a_block():
    """Whether the last rectifier passes every gradient, for a peer loss that weighs nothing here, or not."""
    ends = []
    for peer in (0.0, 1e-30):
        learner = tiny_learner(ForwardForward(readout="goodness", peer=peer), net(), [2], optim=OPTIM)
        learner.step(*batch())
        ends.append([p.detach().clone() for p in learner.model.units.parameters()])
    assert all(torch.equal(p, q) for p, q in zip(*ends, strict=True))


def test_the_length_of_what_a_block_reads_changes_nothing():
    h = torch.randn(3, 4, 2, dtype=torch.float64)
    assert torch.allclose(normalised(3.7 * h), normalised(h), atol=1e-7)
    assert torch.allclose(normalised(h).square().flatten(1).mean(1), torch.ones(3, dtype=torch.float64), atol=1e-7)


def test_equal_positive_and_negative_images_teach_nothing_at_the_threshold():
    strategy = ForwardForward(readout="goodness", peer=0.0)
    learner = tiny_learner(strategy, net(), "max")
    h = torch.randn(B, 6, dtype=torch.float64)
    h = (h / h.square().mean(1, keepdim=True).sqrt()).requires_grad_()  # goodness is the threshold
    strategy.local_loss(learner.blocks[0], h, h, torch.zeros(B, dtype=torch.int64)).backward()
    assert float(h.grad.abs().max()) < 1e-15


def test_the_verdict_of_goodness_is_that_of_a_pass_for_each_class():
    classes = 4
    learner = tiny_learner(ForwardForward(readout="goodness"), net(classes), "max", optim=OPTIM)
    x, y = batch(classes)
    learner.step(x, y)
    columns = []
    for k in range(classes):
        h = x.clone()
        h[:, :classes] = torch.eye(classes, dtype=torch.float64)[k]
        total = torch.zeros(B, dtype=torch.float64)
        for i, unit in enumerate(learner.model.units):
            h = unit(h / h.square().mean(1, keepdim=True).sqrt())
            total = total + (h.square().sum(1) - h.shape[1] if i else 0)
        columns.append(total)
    assert torch.allclose(learner(x), torch.stack(columns, 1), atol=1e-6)
    first, second, _ = learner.predict(x)
    assert first is None
    assert second.shape == (B, classes)


def test_the_neutral_image_is_read_by_all_blocks_but_the_first():
    learner = tiny_learner(ForwardForward(), net(), "max", optim=OPTIM)
    x, y = batch()
    learner.step(x, y)
    seen, h = [], x.clone()
    h[:, :C] = 0.1
    for i, unit in enumerate(learner.model.units):
        h = unit(h / (h.square().mean(1, keepdim=True).sqrt() + 1e-8))
        seen += [h / (h.square().mean(1, keepdim=True).sqrt() + 1e-8)] if i else []
    truth = torch.cat(seen, 1) @ learner.blocks[-1].auxiliary["readout"].weight.t()
    assert torch.allclose(learner(x), truth, atol=1e-12)


def test_pixels_show_a_class_as_white_on_black():
    learner = tiny_learner(ForwardForward(), net(), "max")
    spec = learner.blocks[0].spec._replace(pixels=((-2.0,), (3.0,)))
    x, _ = batch()
    shown = written(x, torch.eye(C, dtype=torch.float64)[[0] * B], spec)
    assert torch.equal(shown[:, :C], torch.tensor([[3.0, -2.0]], dtype=torch.float64).expand(B, -1))
    assert torch.equal(shown[:, C:], x[:, C:])


@pytest.mark.parametrize("readout", ["linear", "goodness"])
def test_samples_without_a_label_are_left_out(readout):
    x, y = batch()
    ours, theirs = (tiny_learner(ForwardForward(readout=readout), net(), "max", optim=OPTIM) for _ in range(2))
    hidden = y.clone()
    hidden[B // 2 :] = -1
    ours.step(x, hidden)
    theirs.step(x[: B // 2], y[: B // 2])
    for mine, other in zip(ours.model.units.parameters(), theirs.model.units.parameters(), strict=True):
        assert torch.allclose(mine, other, atol=1e-12)
    before = {name: t.clone() for name, t in ours.state().items()}
    ours.step(x, torch.full_like(y, -1))
    assert all(torch.equal(t, before[name]) for name, t in ours.state().items() if not name.startswith("optimizer"))


def test_what_cannot_be_is_one_sentence():
    with pytest.raises(UserError, match="writes 9 classes into inputs of 7 numbers"):
        tiny_learner(ForwardForward(), net(9), "max")


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.Hardtanh()])
def test_a_threshold_that_no_goodness_can_exceed_is_refused(activation):
    """Features of at most 1 have a goodness of at most their number: nothing would be told apart."""
    bounded = net()
    for unit in bounded.units:
        unit[1] = activation
    with pytest.raises(UserError, match="emits numbers of at most 1: choose a lower threshold"):
        tiny_learner(ForwardForward(), bounded, "max")
    tiny_learner(ForwardForward(threshold=0.5), bounded, "max").step(*batch())
    for unit in bounded.units:
        unit[1] = nn.ReLU6()
    tiny_learner(ForwardForward(), bounded, "max").step(*batch())


def test_a_strategy_looks_without_labels():
    """What evaluation hands it has none, so that no verdict can read them."""
    seen = []

    class Spy(ForwardForward):
        def through(self, block, packet: Packet):
            seen.append(packet.y.numel())
            return super().through(block, packet)

    learner = tiny_learner(Spy(), net(), "max")
    x, y = batch()
    learner.evaluate(x, y)
    assert seen
    assert not any(seen)


SETTINGS = {"model": "mlp", "model.width": 32, "data": "digits", "epochs": 1, "blocks": "max", "device": "cpu"}


@pytest.mark.parametrize("readout", ["linear", "goodness"])
def test_a_run_answers_as_it_did_when_it_is_loaded(readout, tmp_path):
    options = {"strategy": "forward_forward", "strategy.readout": readout, **SETTINGS, "quiet": True, "threads": 1}
    result = locallearn.train(**options, out=str(tmp_path / "run"))
    loaded, x = locallearn.load(result.run_dir), torch.randn(5, 1, 32, 32)
    assert loaded(x).shape == (5, 10)
    assert torch.equal(loaded(x), result.model(x))
    assert locallearn.evaluate(result.run_dir)["accuracy"] == result.metrics["test/accuracy"]
    with pytest.raises(UserError, match="looks at the plain model"):
        locallearn.train(**options, out=str(tmp_path / "probed"), probe="alignment")


class Own(ForwardForward):
    """Of the user's own."""


@pytest.mark.slow
def test_a_strategy_from_python_that_answers_is_given_again(tmp_path):
    strategy = Own(readout="goodness")
    result = locallearn.train(strategy=strategy, **SETTINGS, quiet=True, threads=1, out=str(tmp_path / "run"))
    with pytest.raises(UserError, match="strategy is the object"):
        locallearn.load(result.run_dir)
    x = torch.randn(5, 1, 32, 32)
    assert torch.equal(locallearn.load(result.run_dir, strategy=strategy)(x), result.model(x))


def test_what_no_read_out_reads_is_refused():
    with pytest.raises(UserError, match=r"data\.smoothing and data\.class_weights must be off"):
        tiny_learner(ForwardForward(readout="goodness"), net(), "max", task=Classification(smoothing=0.1))
    tiny_learner(ForwardForward(), net(), "max", task=Classification(smoothing=0.1)).step(*batch())
