"""What a training step costs, against products counted by hand."""

from __future__ import annotations

import itertools

import pytest

from helpers.commands import run
from helpers.nets import dense_model, tiny_learner
from locallearn.auxiliary import Linear
from locallearn.objectives import CrossEntropy
from locallearn.plan.operations import backprop_flops, step_flops
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.greedy import DGL
from locallearn.strategies.predictive_coding import PredictiveCoding

SIZES, CLASSES = (6, 7, 5, 4), 3
LAYERS = [*itertools.pairwise(SIZES), (SIZES[-1], CLASSES)]


def product(inputs: int, outputs: int) -> int:
    """A sample through a matrix: forward, to its weight, or to its input."""
    return 2 * inputs * outputs


FORWARD = sum(product(*layer) for layer in LAYERS)
BACKPROP = 2 * FORWARD + sum(product(*layer) for layer in LAYERS[1:])


def test_backprop_is_counted_by_hand():
    learner = tiny_learner(Backprop(), dense_model(), "max")
    assert step_flops(learner) == backprop_flops(learner) == BACKPROP


def test_local_losses_save_what_goes_between_blocks_and_pay_for_their_heads():
    learner = tiny_learner(DGL(objective=CrossEntropy(), auxiliary=Linear()), dense_model(), "max")
    heads = sum(3 * product(width, CLASSES) for width in SIZES[1:-1])  # and the model's own, as under backprop
    layers = sum(2 * product(*layer) for layer in LAYERS[:-1]) + 3 * product(*LAYERS[-1])
    assert step_flops(learner) == layers + heads


@pytest.mark.parametrize("steps", [1, 4])
def test_every_round_of_a_method_that_settles_counts(steps):
    """Each step of the states takes from every layer above the first a product forward and one to its input; at the end
    all weights learn."""
    learner = tiny_learner(PredictiveCoding(steps=steps), dense_model(), "max")
    one, two = (step_flops(tiny_learner(PredictiveCoding(steps=n), dense_model(), "max")) for n in (steps, steps + 1))
    assert two - one == 2 * sum(product(*layer) for layer in LAYERS[1:])
    before = {name: tensor.clone() for name, tensor in learner.model.state_dict().items()}
    step_flops(learner)
    assert all((tensor == before[name]).all() for name, tensor in learner.model.state_dict().items())


@pytest.mark.slow
def test_a_dry_run_says_it(capsys):
    words = ["data=digits", "model=mlp", "model.width=16", "model.batch_norm=false", "blocks=max", "--dry-run"]
    pixels, rest = 1024, 2 * product(16, 16) + product(16, 10)
    code, out, _ = run("strategy=backprop", *words, capsys=capsys)
    assert code == 0
    forward = product(pixels, 16) + rest
    assert out.splitlines()[-1] == (
        f"a training step takes {(2 * forward + rest) / 1000:.3g} k FLOPs a sample, 1.00 times backprop's"
    )
    assert run("strategy=predictive_coding", *words, capsys=capsys)[1].endswith(" times backprop's\n")
