"""Python's own objects as a run: what a loop by hand gives, to the same bits after a resume, and never by mistake."""

from __future__ import annotations

import re
import sys
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

import locallearn
from helpers.commands import run
from helpers.nets import assert_same
from locallearn.callbacks import Callback
from locallearn.errors import RunError, UserError
from locallearn.objectives import CrossEntropy
from locallearn.seeds import generator
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.greedy import DGL

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, :3].argmax(1)).to(torch.int16)
SETTINGS = {"quiet": True, "batch_size": 16, "blocks": 2, "device": "cpu", "threads": 1}


class Net(nn.Module):
    def __init__(self, width: int = 8):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


def net() -> Net:
    torch.manual_seed(0)
    return Net()


class Points(Dataset):
    """Each with a little noise, as a transform would make it."""

    def __len__(self):
        return len(X)

    def __getitem__(self, place):
        return X[place] + 0.1 * torch.randn(6), int(Y[place])


@dataclass(frozen=True)
class Halved(DGL):
    share: float = 0.5

    def loss(self, block, h, packet):
        return self.share * super().loss(block, h, packet)


class Stop(Callback):
    """Fails once, after a step."""

    def __init__(self, at: int):
        self.at = at

    def step(self, run):
        if run.step == self.at:
            self.at = 0
            raise RuntimeError("a mistake of mine")


class Locked(Backprop):
    def __init__(self):
        object.__setattr__(self, "lock", threading.Lock())


def falling(progress: float) -> float:
    return 1 - 0.5 * progress


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_module_data_and_an_optimizer_train_as_a_loop_by_hand(task, tmp_path):
    """Backpropagation with RMSprop on tensors, in the order of the seed; the module that was given stays as it was."""
    mine, reference = net(), net()
    y, loss = Y, lambda z, y: F.cross_entropy(z, y.long())
    if task == "regression":
        y, loss = X[:, :3].exp(), lambda z, y: F.mse_loss(z, (y - mean) / std)
        mean, std = y.mean(0), y.std(0, correction=0)
    result = locallearn.train(
        strategy=Backprop(), model=mine, data={"train": TensorDataset(X, y), "test": (X[:9].numpy(), y[:9].numpy())},
        optim=partial(torch.optim.RMSprop, lr=0.01, alpha=0.9), out=tmp_path, epochs=2, task=task,
        **{"data.validation": 0, "optim.schedule": falling}, **SETTINGS,
    )  # fmt: skip
    optimizer = torch.optim.RMSprop(reference.parameters(), lr=0.01, alpha=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: falling(step / 12))
    for epoch in range(2):
        for part in torch.randperm(96, generator=generator(0, "order", epoch)).split(16):
            optimizer.zero_grad()
            loss(reference(X[part]), y[part]).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        assert torch.allclose(result.model(X), reference(X), atol=1e-5)
    assert_same(mine, net())
    trained = locallearn.load(result.run_dir, model=mine)
    assert torch.equal(trained(X), mine(X))
    assert torch.equal(trained(X), result.model(X))
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert {"classification": "test/accuracy", "regression": "test/r2"}[task] in result.history[-1]
    config = yaml.safe_load((result.run_dir / "config.yaml").read_text())
    assert config["model"]["_object_"].endswith(".Net")
    assert config["model"]["_file_"] == __file__
    assert config["optim"]["_target_"] == "torch.optim.rmsprop.RMSprop"
    assert config["optim"]["schedule"]["_object_"].endswith(".falling")


@pytest.fixture(scope="module")
def given():
    return {
        "strategy": partial(Halved, share=0.5),
        "model": net(),
        "data": {"train": Points(), "test": (X, Y)},
        "optim": torch.optim.Adagrad,
    }


@pytest.fixture(scope="module")
def stopped(given, tmp_path_factory) -> tuple[Path, locallearn.api.Result]:
    """A run that has failed after 9 of 12 steps, and one that has not."""
    out = tmp_path_factory.mktemp("runs")
    settings = SETTINGS | {"epochs": 2, "out": out, "auxiliary": "linear", "checkpoint.every": "4it"}
    with pytest.raises(RunError, match="a mistake of mine"):
        locallearn.train(**given, callbacks=Stop(9), **settings)
    (failed,) = out.iterdir()
    return failed, locallearn.train(**given, callbacks=[Stop(0)], **settings)


def test_a_run_of_objects_goes_on_to_the_same_bits(given, stopped):
    failed, whole = stopped
    for wrong, sentence in {
        "other class": ({"model": nn.Sequential(nn.Linear(6, 3))}, r"model\._object_ was .*Net and is .*Sequential"),
        "other layers": ({"model": Net(9)}, r"model\._structure_ was"),
        "other options": ({"strategy": partial(Halved, share=0.4)}, r"strategy\.share was 0\.5 and is 0\.4"),
        "nothing": (
            {"model": None, "strategy": None},
            "strategy is the object .*Halved of .*py and model",
        ),
    }.values():
        objects = {k: v for k, v in {**given, "callbacks": Stop(0), **wrong}.items() if v is not None}
        with pytest.raises(UserError, match=sentence):
            locallearn.resume(failed, quiet=True, **objects)
    resumed = locallearn.resume(failed, quiet=True, **given, callbacks=[Stop(0)])
    assert resumed.run_dir == failed
    assert_same(resumed.model, whole.model)
    assert [r["train/loss"] for r in resumed.history] == [r["train/loss"] for r in whole.history]


def test_changed_source_is_a_warning(given, stopped, capsys):
    manifest = stopped[1].run_dir / "config.yaml"
    config = yaml.safe_load(manifest.read_text())
    config["strategy"]["_source_"] = "0" * 64
    manifest.write_text(yaml.safe_dump(config, sort_keys=False))
    locallearn.resume(stopped[1].run_dir, **given, callbacks=[Stop(0)])
    assert "the source of strategy has changed since" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["resume"], ["evaluate"], ["repeat"], ["probe", "probe=linear"]])
def test_the_command_line_says_what_only_python_can_give(words, stopped, capsys):
    code, out, err = run(*words[:1], str(stopped[1].run_dir), *words[1:], capsys=capsys)
    assert (code, out) == (2, "")
    assert "which no run folder holds" in err
    assert "locallearn.resume(RUN, strategy=..., model=..., data=..." in err
    assert ("callbacks=..." in err) == (words[0] in ("resume", "repeat"))


def test_another_look_from_python(given, stopped):
    objects = {name: given[name] for name in ("strategy", "model")}
    where = stopped[1].run_dir
    numbers = locallearn.evaluate(where, **objects, optim=given["optim"], data={"train": Points(), "test": (X, Y)})
    assert numbers["accuracy"] == stopped[1].metrics["test/accuracy"]
    with torch.no_grad():
        truth = (stopped[1].model(X).argmax(1) == Y).double().mean().item()
    assert numbers["accuracy"] == pytest.approx(truth)


REFUSED = {
    "options beside an object": ({"model": net(), "model.width": 9}, "model.width is not read beside model=Net"),
    "an objective beside a strategy": (
        {"strategy": Backprop(), "objective": "infonce"},
        "objective is not read",
    ),
    "no strategy": ({"strategy": net()}, "must be a name, a mapping, or an object of a class derived from"),
    "an optimizer with weights": ({"optim": torch.optim.SGD(net().parameters())}, "or a class of torch.optim"),
    "an option twice": ({"optim": partial(torch.optim.SGD, lr=1), "optim.lr": 2}, "optim.lr is given twice"),
    "plateau": ({"optim": {"schedule": "plateau"}}, "function of progress alone"),
    "a batch size": (
        {"data": DataLoader(Points(), 8), "batch_size": 9},
        "batch_size=9, but the loader",
    ),
    "no option of data": ({"data": (X, Y), "data.size": 3}, "data.size is not an option"),
    "share of a stream": (
        {"data": {"train": DataLoader(Points(), 8), "test": (X, Y)}, "data.fraction": 0.5},
        "data.fraction=0.5 is read only with data=DATASET",
    ),
    "a lock": (
        {"model": net(), "strategy": Locked(), "runtime": "pipeline"},
        "cannot be sent to the processes",
    ),
    "two callbacks": ({"callbacks": [Stop(1), Stop(2)]}, "two of Stop, Stop have the same name"),
    "an objective that nobody reads": ({"strategy": "backprop", "objective": CrossEntropy()}, "objective=crossentropy"),
    "no folder": ({"config_dir": "nowhere"}, "there is no such folder"),
    "another size": ({"model": locallearn.as_blocks(net(), image=(6,)), "data": (X[:, :5], Y)}, r"Net reads \[6\]"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mistake_is_one_sentence_and_leaves_nothing(kind, tmp_path):
    settings, sentence = REFUSED[kind]
    with pytest.raises(UserError, match=sentence) as caught:
        locallearn.train(quiet=True, out=tmp_path / "runs", **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


ONLY_TRAIN = [({"callbacks": [Stop(1)]}, "train()"), ({"data": (X, Y)}, "train()")]


@pytest.mark.parametrize(("settings", "reader"), [*ONLY_TRAIN, ({"optim.schedule": falling}, "steps=NUMBER")])
def test_build_refuses_objects_that_only_train_reads(settings, reader):
    with pytest.raises(UserError, match=f"is read only with {re.escape(reader)}"):
        locallearn.build("backprop", net(), image=(6,), classes=3, **settings)


@pytest.mark.slow
def test_a_folder_of_yaml_files_from_python(tmp_path, monkeypatch):
    """As `--config-dir`: what they name is found and trusted, in a run and whatever comes after it."""
    (tmp_path / "conf/strategy").mkdir(parents=True)
    (tmp_path / "conf/optim").mkdir()
    (tmp_path / "conf/strategy/quarter.yaml").write_text("_target_: quarter_of_mine.Quarter\nlast: joint\n")
    (tmp_path / "conf/optim/rprop.yaml").write_text("_target_: torch.optim.Rprop\nlr: 0.02\netas: [0.4, 1.1]\n")
    (tmp_path / "conf/quarter_of_mine.py").write_text(
        "from locallearn.strategies.greedy import DGL\nclass Quarter(DGL):\n    pass\n"
    )
    monkeypatch.setattr("sys.path", [*sys.path])
    where = {"config_dir": tmp_path / "conf"}
    result = locallearn.train(
        strategy="quarter", optim="rprop", model="mlp", data=(X, Y), auxiliary="linear", epochs=1, max_steps=2,
        out=tmp_path, **where, **SETTINGS,
    )  # fmt: skip
    with pytest.raises(UserError, match="lies outside locallearn"):
        locallearn.load(result.run_dir)
    assert torch.equal(locallearn.load(result.run_dir, **where)(X), result.model(X))
    assert type(locallearn.build("quarter", "mlp", image=(6,), **where).strategy).__name__ == "Quarter"


@pytest.mark.slow
@pytest.mark.parametrize("data", ["numbered", "in its own order"])
def test_a_pipeline_of_objects_has_the_bits_of_the_serial_run(data, given, tmp_path):
    objects = given if data == "numbered" else given | {"data": {"train": DataLoader(Points(), 16), "test": (X, Y)}}
    settings = {**SETTINGS, "out": tmp_path, "auxiliary": "linear", "epochs": 2}
    one, two = (locallearn.train(**objects, **settings, runtime=name) for name in ("serial", "pipeline"))
    assert_same(one.model, two.model)
    assert [r["train/loss"] for r in one.history] == [r["train/loss"] for r in two.history]
