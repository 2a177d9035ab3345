"""A label below 0 means that the sample has none: in every strategy and every objective."""

from __future__ import annotations

import math

import pytest
import torch
import yaml
from torch.nn import functional as F

import locallearn
from helpers.nets import assembled, fitting, tiny_batches, tiny_learner, tiny_model, without_norms
from helpers.objectives import FILES as OBJECTIVES
from helpers.objectives import make as make_objective
from helpers.strategies import FILES, make, slow_where_alike
from locallearn.auxiliary import Linear
from locallearn.config.targets import instantiate
from locallearn.contract import cross_entropy
from locallearn.engine import SGD, Learner
from locallearn.engine.gradients import true_gradients
from locallearn.errors import UserError
from locallearn.objectives import CrossEntropy
from locallearn.strategies.greedy import DGL
from locallearn.task import Classification

PLAIN = SGD(lr=0.1, momentum=0.0, schedule="constant")
GUESSES = ("dni", "cdni")  # the prediction of a gradient is regressed on all samples, for a label may reach any
SHOWN = (
    "noprop",
    "diffusion_blocks",
)  # blocks that learn from images with a noisy label, and that say nothing of how well they would do
NONE_READ = ("infomax",)  # no block reads a label; the head does
NOISY = ("dtp",)  # what is drawn for a batch depends on how many samples it has; see test_targets.py


def learner_of(strategy, micro_batches: int = 1) -> Learner:
    """Without batch norm, which joins the samples of a batch."""
    torch.manual_seed(0)
    model = fitting(strategy, tiny_model())
    without_norms(model)
    options = {"precision": "fp64", "total_steps": 1, "micro_batches": micro_batches}
    learner = assembled(model, strategy, PLAIN, model.cut("max"), **options)
    for block in learner.blocks:
        without_norms(block.auxiliary)
    return learner


def strategy_of(name: str):
    config = yaml.safe_load(FILES[name].read_text())
    return instantiate(config, "strategy", [], objective=CrossEntropy(), auxiliary=Linear())


def compared(name: str, learner: Learner) -> list[str]:
    """The parameters that learn from labels alone."""
    names = [n for n, p in learner.parameters() if p.requires_grad]
    if name in GUESSES:
        return [n for n in names if n.startswith(("model.units.3.", "model.head."))]
    return [n for n in names if n.startswith("model.head.")] if name in NONE_READ + NOISY else names


@pytest.mark.parametrize("hidden", [[-1] * 8, [-100, -1, -7, -1, -2, -(2**40), -1, -1]])
@pytest.mark.parametrize("name", slow_where_alike(FILES))
def test_a_strategy_learns_from_the_labelled_samples_alone(name, hidden):
    """The same step as with a batch of these, which the code under test cannot tell from any other batch."""
    x, y = tiny_batches(1, batch=16)[0]
    known = torch.arange(16) % 2 == 0
    masked = torch.where(known, y, 0)
    masked[~known] = torch.tensor(hidden)
    ours, truth = learner_of(strategy_of(name)), learner_of(strategy_of(name))
    found, expected = ours.step(x, masked), truth.step(x[known], y[known])
    names = compared(name, ours)
    assert names
    moved, wanted = dict(ours.parameters()), dict(truth.parameters())
    for n in names:
        assert torch.allclose(moved[n], wanted[n], rtol=1e-9, atol=1e-12), n
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-9)
    assert ("accuracy" in found) == (name not in SHOWN)
    assert found.get("accuracy") == expected.get("accuracy")
    assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("name", slow_where_alike(FILES))
def test_a_batch_without_any_label_has_the_loss_0_and_teaches_nothing(name, micro_batches):
    if micro_batches > 1 and make(name).repeats:
        pytest.skip("its batches cannot be divided")
    x, _ = tiny_batches(1)[0]
    learner = learner_of(strategy_of(name), micro_batches)
    before = {n: p.detach().clone() for n, p in learner.parameters()}
    found = learner.step(x, torch.full((8,), -1))
    assert found["loss"] == 0
    assert "accuracy" not in found
    assert all(math.isfinite(value) for value in found.values())
    after = dict(learner.parameters())
    assert all(torch.isfinite(p).all() for p in after.values())
    for n in compared(name, learner):
        assert torch.equal(after[n], before[n]), n


def test_a_micro_batch_without_labels_counts_with_a_gradient_of_0():
    x, y = tiny_batches(1)[0]
    hidden = y.clone()
    hidden[4:] = -1
    ours, half = learner_of(strategy_of("backprop"), micro_batches=2), learner_of(strategy_of("backprop"))
    start = dict(learner_of(strategy_of("backprop")).parameters())
    ours.learn(x, hidden)
    half.learn(x[:4], y[:4])
    wanted = dict(half.parameters())
    for n, p in ours.parameters():
        assert torch.allclose(p - start[n], (wanted[n] - start[n]) / 2, rtol=1e-9, atol=1e-12), n


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_every_objective_takes_them(name):
    """One that reads labels has the loss of the labelled samples (its noise and its terms without labels aside), one
    that reads none does not notice."""
    x, y = tiny_batches(1, batch=16)[0]
    known = torch.arange(16) % 2 == 0
    strategies = [DGL(objective=make_objective(name), auxiliary=Linear()) for _ in range(3)]
    ours, truth, none = map(learner_of, strategies)
    found = ours.step(x, torch.where(known, y, -1))
    assert all(math.isfinite(value) for value in found.values())
    assert all(torch.isfinite(p).all() for _, p in ours.parameters())
    if name in ("cross_entropy", "similarity", "predsim", "supcon"):
        truth.step(x[known], y[known])
        wanted = dict(truth.parameters())
        for n, p in ours.parameters():
            assert torch.allclose(p, wanted[n], rtol=1e-8, atol=1e-11), n
    if not strategies[0].objective.labels:
        truth.step(x, y)
        wanted = dict(truth.parameters())
        assert all(torch.equal(p, wanted[n]) for n, p in ours.parameters() if not n.startswith("model.head"))
    without = none.step(x, torch.full((16,), -1))
    assert without["loss"] == 0
    assert all(math.isfinite(value) for value in without.values())
    assert all(torch.isfinite(p).all() for _, p in none.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_with_every_label_there_it_is_cross_entropy_bit_for_bit(dtype):
    z = torch.randn(37, 5).to(dtype).requires_grad_()
    y = torch.randint(5, (37,))
    ours, truth = cross_entropy(z, y), F.cross_entropy(z, y)
    assert torch.equal(ours, truth)
    assert torch.equal(*(torch.autograd.grad(0.3 * loss, z)[0] for loss in (ours, truth)))


@pytest.mark.parametrize("labelled", [1, 3, 6, 7])
def test_the_mean_is_over_the_labelled_ones(labelled):
    z = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(4, (7,))
    y[labelled:] = -3
    loss = cross_entropy(z, y)
    assert loss.item() == pytest.approx(-z.log_softmax(1)[range(labelled), y[:labelled]].mean().item(), rel=1e-12)
    (grad,) = torch.autograd.grad(loss, z)
    assert not grad[labelled:].any()
    assert grad[:labelled].any(dim=1).all()


def test_the_true_gradient_of_a_probe_is_that_of_the_labelled_samples():
    x, y = tiny_batches(1)[0]
    known = torch.arange(8) < 5
    learner = learner_of(make("backprop"))
    ours, truth = (true_gradients(learner, *batch) for batch in ((x, torch.where(known, y, -1)), (x[known], y[known])))
    for a, b in zip(ours, truth, strict=True):
        for p, gradient in b.parameters.items():
            assert torch.allclose(a.parameters[p], gradient, rtol=1e-9, atol=1e-12)


def test_one_hot_labels_of_none_are_zeros():
    """Conditional synthesizers see no class in place of a missing one."""
    learner = locallearn.build("cdni", "mlp", image=(12,), classes=3, blocks=2, precision="fp64")
    synthesizer = learner.blocks[0].auxiliary["synthesizer"].eval()
    with torch.no_grad():
        for p in synthesizer.parameters():
            p.normal_()
    h = torch.randn(4, *learner.blocks[0].spec.emits, dtype=torch.float64)
    with torch.no_grad():
        blank = synthesizer(h, torch.full((4,), -1))
        synthesizer.context.weight.zero_()
        assert torch.equal(blank, synthesizer(h, torch.arange(4) % 3))


SQUARED = sorted(name for name in FILES if "output: task" in FILES[name].read_text())


@pytest.mark.parametrize("name", SQUARED)
@pytest.mark.parametrize("asked", [{"smoothing": 0.1}, {"weights": (1.0, 2.0, 3.0)}])
def test_a_squared_error_with_another_loss_over_classes_is_one_sentence(name, asked):
    task = Classification(**asked)
    with pytest.raises(UserError, match=r"strategy.output=squared has no loss .* choose strategy.output=task"):
        tiny_learner(make(f"{name} output=squared"), task=task)
    tiny_learner(make(name), task=task, total_steps=2).step(*tiny_batches(1)[0])


def test_all_rules_with_a_squared_error_are_known():
    assert SQUARED == ["dual_propagation", "equilibrium", "predictive_coding"]
