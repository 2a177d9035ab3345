"""The defaults train: every model of the zoo, as it comes, learns what it is for in the epochs that are the default."""

from __future__ import annotations

import pytest

from locallearn.compose import choices, compose
from locallearn.config.experiment import experiment
from locallearn.training.evaluate import evaluate
from locallearn.training.prepare import prepare

OTHER = {"rnn", "gcn"}  # read no images
LOOK = 20  # steps from one look at the test set to the next, about half an epoch


def reached(goal: float, *overrides: str) -> float:
    """The first test accuracy of a run that is at least `goal`, or the highest."""
    exp = experiment(*compose([*overrides, "threads=1", "device=cpu"]), [])
    learner, data = prepare(exp)
    highest = 0.0
    for epoch in range(exp.settings.epochs):
        steps = data.steps(exp.settings.batch_size)
        for step, (inputs, labels) in enumerate(data.batches(epoch, exp.settings.batch_size), 1):
            learner.learn(inputs, labels)
            if step % LOOK == 0 or step == steps:
                found = evaluate(learner, data.evaluation(data.test, 256))["accuracy"]
                highest = max(highest, found)
                if highest >= goal:
                    return highest
    return highest


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["backprop", "dgl"])
@pytest.mark.parametrize("name", sorted(set(choices("model")) - OTHER))
def test_a_model_learns_the_digits(name: str, strategy: str, request: pytest.FixtureRequest) -> None:
    assert reached(0.95, f"model={name}", f"strategy={strategy}") >= 0.95
