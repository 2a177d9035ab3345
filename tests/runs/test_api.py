"""The Python API, as a script or a notebook uses it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locallearn
from helpers.nets import assert_same
from locallearn.errors import UserError
from locallearn.objectives.reconstruction import Reconstructor


def test_train_returns_metrics_model_and_folder(tmp_path):
    result = locallearn.train(
        strategy="dgl", model="basic_cnn", data="digits", blocks=3, epochs=1, seed=0, max_steps=4, quiet=True,
        out=tmp_path / "my runs", auxiliary="linear", optim={"lr": 0.001}, **{"data.validation": 0.2},
    )  # fmt: skip
    assert result.run_dir.parent == tmp_path / "my runs"
    assert 0 < result.metrics["test/accuracy"] < 1
    assert [r["step"] for r in result.history] == [4]
    assert result.model(torch.randn(2, 1, 32, 32)).shape == (2, 10)
    config = (result.run_dir / "config.yaml").read_text()
    assert "lr: 0.001" in config
    assert "validation: 0.2" in config


def test_words_of_the_command_line_are_not_taken_for_quiet():
    with pytest.raises(TypeError, match="positional"):
        locallearn.train("strategy=dgl")


@pytest.mark.slow
def test_mistakes_are_user_errors(tmp_path):
    for settings, sentence in [
        ({"strategy": "dlg"}, "did you mean 'dgl'"),
        ({"epochs": 0}, "at least 1"),
        ({"optim": {"lrr": 1}}, "did you mean 'optim.lr'"),
        ({"seed": object()}, "must be a number"),
    ]:
        with pytest.raises(UserError, match=sentence):
            locallearn.train(out=tmp_path, quiet=True, **settings)


def test_build_gives_a_learner_for_a_loop_of_ones_own():
    learner = locallearn.build(strategy="dgl", model="lenet", image=(1, 28, 28), classes=7, blocks=2, device="cpu")
    assert len(learner.blocks) == 2
    x, y = torch.randn(16, 1, 28, 28), torch.randint(7, (16,))
    first = learner.step(x, y)
    assert {"loss", "accuracy", "block/00/loss", "block/01/loss"} <= first.keys()
    for _ in range(30):
        last = learner.step(x, y)
    assert last["loss"] < first["loss"]
    learner.model.eval()
    assert learner.model(x).shape == (16, 7)
    learner.step(x, y)
    assert learner.model.units[0].training, "a step after eval() must train"


@pytest.mark.parametrize("objective", ["infopro", "reconstruction", "inpainting"])
def test_a_loop_of_ones_own_reconstructs_pixels_or_is_told_to_say_what_they_are(objective):
    """It is the loss of a run: binary cross-entropy of pixels from 0 to 1, not the squared error of normalised ones."""
    options = {"image": (3, 8, 8), "blocks": 2, "objective": objective, "device": "cpu"}
    with pytest.warns(UserWarning, match=f"objective={objective} reconstructs by squared error, .*give pixels="):
        locallearn.build("dgl", "vgg11", **options)
    learner = locallearn.build("dgl", "vgg11", pixels=((-1, -1, -2), (1, 1, 2)), **options)
    (decoder,) = (m for m in learner.blocks[0].auxiliary.modules() if isinstance(m, Reconstructor))
    torch.nn.init.zeros_(decoder.decoder[-1].weight)
    torch.nn.init.zeros_(decoder.decoder[-1].bias)
    h = torch.randn(4, *learner.blocks[0].spec.emits)
    images = torch.rand(4, 3, 8, 8)
    loss = decoder.loss(h, images * torch.tensor([2, 2, 4.0])[:, None, None] - torch.tensor([1, 1, 2.0])[:, None, None])
    assert loss.item() == pytest.approx(math.log(2)), "a logit of 0 costs ln 2 whatever the pixel"


@pytest.mark.parametrize("pixels", [((0,), (1,)), (0, 1), ((0, 0, 0), (1, 1, 0)), ((0, 0, 0),), "black"])
def test_pixels_are_a_number_per_channel(pixels):
    with pytest.raises(UserError, match=r"for inputs \[3, 8, 8\]: give pixels=\(black, white\)"):
        locallearn.build("dgl", "vgg11", image=(3, 8, 8), pixels=pixels)


def test_build_trains_a_module_of_the_users_in_place():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 4))
    reference = copy.deepcopy(net)
    settings = {"optim": "sgd", "precision": "fp64", "channels_last": False, "device": "cpu"}
    learner = locallearn.build("backprop", net, image=(3, 16, 16), classes=4, blocks=2, **settings)
    x, y = torch.randn(8, 3, 16, 16, dtype=torch.float64), torch.randint(4, (8,))
    reference.double()
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, fused=True)
    for _ in range(3):
        learner.step(x, y)
        optimizer.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        optimizer.step()
    assert_same(net, reference)


@pytest.mark.slow
def test_torchvision_models_are_cut_by_name():
    options = {"model.name": "mobilenet_v3_small", "auxiliary": "linear"}
    learner = locallearn.build("dgl", "torchvision", image=(3, 64, 64), blocks=3, device="cpu", **options)
    numbers = learner.step(torch.randn(4, 3, 64, 64), torch.randint(10, (4,)))
    assert {"block/00/loss", "block/01/loss", "block/02/loss"} <= numbers.keys()


def test_a_sequential_strategy_must_know_how_long():
    with pytest.raises(UserError, match="steps="):
        locallearn.build("greedy", "lenet", image=(1, 28, 28), device="cpu")
    learner = locallearn.build("greedy", "lenet", image=(1, 28, 28), device="cpu", steps=8)
    learner.step(torch.randn(8, 1, 28, 28), torch.randint(10, (8,)))


@pytest.mark.slow
def test_one_run_leaks_nothing_into_the_next(tmp_path):
    settings = {"model": "mlp", "model.width": 32, "epochs": 1, "max_steps": 5, "quiet": True, "out": tmp_path}
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    alone = locallearn.train(strategy="dgl", threads=1, **settings)
    locallearn.train(strategy="backprop", seed=3, threads=1, **settings)
    again = locallearn.train(strategy="dgl", threads=1, **settings)
    assert_same(alone.model, again.model)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["backprop", "dgl"])
@pytest.mark.parametrize(
    ("data", "model", "least"),
    [("mnist", "mlp", 0.9), ("fashion_mnist", "lenet", 0.6), ("cifar10", "basic_cnn", 0.3)],
)
def test_real_sets_are_learnt_in_a_few_steps(strategy, data, model, least, real_root, tmp_path):
    """120 steps: far above chance, and every block of DGL above twice of it."""
    options = {"model.hidden": 64, "model.width": 32} if model == "basic_cnn" else {}
    options |= {"auxiliary": "linear"} if strategy == "dgl" else {}
    result = locallearn.train(
        strategy=strategy, model=model, data=data, batch_size=128, epochs=1, max_steps=120,
        quiet=True, out=tmp_path, optim={"schedule": "constant"}, **{"data.root": real_root}, **options,
    )  # fmt: skip
    accuracies = [v for k, v in result.metrics.items() if k.endswith("test_accuracy")]
    assert len(accuracies) == (1 if strategy == "backprop" else (3 if model == "mlp" else 4))
    assert result.metrics["test/accuracy"] > least
    assert min(accuracies) > 0.2
