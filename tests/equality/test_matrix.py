"""`locallearn list --matrix`: what it says of a pair is what happens when the pair is trained."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
import yaml

from helpers.nets import SIBLINGS
from helpers.strategies import make
from locallearn.config.compose import choices, compose
from locallearn.config.matrix import Matrix, matrix
from locallearn.config.settings import AUTO_BLOCKS
from locallearn.config.targets import model_builder
from locallearn.engine import SGD, Setup, assemble
from locallearn.errors import UserError
from locallearn.task import BOXES, Task
from locallearn.tasks import CLASSES, Detection, Tokens

MODELS = choices("model")
RING = torch.stack([torch.arange(8), torch.arange(8).roll(1)])
SAMPLES = {"images": (4, 3, 32, 32), "sequences": (4, 6, 5), "a graph": (8, 16), "tokens": (4, 6)}


@pytest.fixture(scope="module")
def found() -> Matrix:
    config, _ = compose(["auxiliary=linear"])
    return matrix(choices("strategy"), {n: MODELS[n] for n in ("mlp", "lenet", "allcnn", "rnn", "gcn", "gpt")}, config)


@pytest.mark.slow
def test_it_knows_what_goes_with_what(found):
    assert found.reads == {
        "mlp": "images",
        "lenet": "images",
        "allcnn": "images",
        "rnn": "sequences",
        "gcn": "a graph",
        "gpt": "tokens",
    }
    for model, cells in found.cells.items():
        assert cells.keys() == choices("strategy").keys()
        assert cells["backprop"] is None
        assert (cells["infomax"] is None) == (model == "allcnn"), "only allcnn ends in maps"
    text = found.render()
    assert text.count("\n(1) ") == 1
    assert "emits [1024]" in text


@pytest.mark.slow
def test_a_strategy_that_refuses_says_why_in_the_table(tmp_path):
    """ConvNeXt scales each channel by a matrix-shaped parameter, which feedback weights do not know."""
    file = tmp_path / "convnext.yaml"
    file.write_text("_target_: locallearn.models.foreign.torchvision_model\nname: convnext_tiny\ncuts: null\n")
    config, _ = compose(["auxiliary=linear"])
    chosen = {name: choices("strategy")[name] for name in ("backprop", "dfa", "fa")}
    found = matrix(chosen, {"convnext": file}, config)
    cells = found.cells["convnext"]
    assert cells["backprop"] is None
    assert cells["dfa"] is None
    assert "its layer_scale is [96, 1, 1]" in cells["fa"]
    assert "\n(1) block 0: " in found.render()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODELS.keys() - SIBLINGS))
def test_what_the_table_says_is_true(name):
    """One real step of every strategy on a small batch; what is refused raises the same sentence."""
    config, _ = compose(["auxiliary=linear"])
    found = matrix(choices("strategy"), {name: MODELS[name]}, config)
    shape = SAMPLES[found.reads[name]]
    graph = RING if found.reads[name] == "a graph" else None
    text = found.reads[name] == "tokens"
    model = model_builder(yaml.safe_load(MODELS[name].read_text()), [])(shape[1:], 10, graph, 10 if text else None)
    cut = model.cut(min(AUTO_BLOCKS, len(model.units)))
    x, y = torch.randn(shape), torch.arange(shape[0])
    task: Task = CLASSES
    if text:
        x, y, task = torch.randint(10, shape), torch.randint(10, shape), Tokens()
    if model.form == BOXES:
        y, task = torch.tensor([[[k, 4.0, 4.0, 24.0, 24.0]] for k in range(4)]), Detection(tuple("0123456789"))
    setup = Setup(total_steps=2, task=task)
    if graph is not None:
        y[2:] = -100
    for strategy, reason in found.cells[name].items():
        made, own = make(strategy), copy.deepcopy(model)
        if reason is not None:
            with pytest.raises(UserError, match=r"block|graph|boxes|the data ask for|the data are tokens"):
                assemble(own, made, SGD(lr=1e-4, schedule="constant"), cut, setup)
            continue
        learner = assemble(own, made, SGD(lr=1e-4, schedule="constant"), cut, setup)
        assert all(torch.isfinite(torch.tensor(v)) for v in learner.step(x, y).values()), strategy


@pytest.mark.slow
def test_the_command(tmp_path):
    call = [sys.executable, "-m", "locallearn", "list", "--matrix", "--config-dir", str(tmp_path)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 2
    assert "leave --config-dir out" in done.stderr
