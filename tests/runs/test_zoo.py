"""The defaults train: every model of the zoo, as it comes, learns what it is for in the epochs that are the default."""

from __future__ import annotations

import pytest

from helpers.nets import SIBLINGS
from locallearn.config.compose import choices, compose
from locallearn.config.experiment import experiment
from locallearn.training.evaluate import evaluate
from locallearn.training.prepare import prepare

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


READS = {"torchvision": "data=synthetic", "rnn": "data=names", "gcn": "data=cora"}
"""What a model reads that does not read the digits, which are grey."""
GOALS = {"rnn": 0.65, "gcn": 0.75}
"""Where 0.95 is out of reach: the origin of a name is often a guess (the largest class has 0.47 of them; backprop gets
0.70 in two epochs, dgl 0.68 in five), and on Cora the paper has 0.815 with two layers."""
NEEDS = {
    "allcnn": ["optim.lr=5e-4", "model.input_dropout=0", "model.dropout=0"],
}
"""What a model needs beyond the defaults to learn in so few steps, as the first line of its yaml says. All-CNN has no
batch normalisation and rectifies its class scores: at the default rate it stays near chance. With the dropout of the
paper, which trains for 350 epochs, 200 steps were too few at every rate that was tried (0.10 to 0.78)."""
FALLS_SHORT = {
    ("vit", strategy): "0.60 after five epochs, 0.95 after 20: see the first line of its yaml"
    for strategy in ("dgl", "backprop")
}
"""Known not to reach the goal, with what was measured."""


NOT_BY_ACCURACY = {"gpt", "detector"}
OUT_OF_REACH = {"allcnn"}
"""Under dgl: 0.80 after five epochs; after the first, two rectified class scores are 0 everywhere."""
TRIED = [
    *((name, "dgl") for name in choices("model") if name not in NOT_BY_ACCURACY | SIBLINGS | OUT_OF_REACH),
    *((name, "backprop") for name in ("allcnn", "gcn", "lenet", "mlp", "vit")),
]
"""What learns in blocks learns whole, too: backprop is tried on small nets, and where blocks are known to fail."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "strategy"), TRIED)
def test_a_model_learns_in_the_epochs_of_the_defaults(
    name: str, strategy: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = [f"model={name}", f"strategy={strategy}", READS.get(name, "data=digits"), *NEEDS.get(name, [])]
    if name in ("rnn", "gcn"):
        monkeypatch.setenv("LOCALLEARN_DATA", str(request.getfixturevalue("real_root")))
    if name == "gcn":  # a whole graph is one step an epoch
        settings += ["epochs=200", "optim.lr=0.01", *(["auxiliary=linear"] if strategy == "dgl" else [])]
    goal = GOALS.get(name, 0.95)
    if reason := FALLS_SHORT.get((name, strategy)):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    assert reached(goal, *settings) >= goal
