"""The search for settings: what it tries, remembers and prints, and what it does with runs that fail or are killed."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from helpers.commands import SMALL, run
from locallearn.config.compose import choices, compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.studies import tune as module
from locallearn.studies.options import TuneOptions
from locallearn.studies.space import Range, override
from locallearn.studies.tune import space_of
from locallearn.training.stopping import Interrupted

pytestmark = pytest.mark.usefixtures("elsewhere")
SETTINGS = [*SMALL, "strategy=dgl", "auxiliary=linear", "epochs=2", "batch_size=256"]
NAMES = {"optim": "adam", "strategy": "dgl"}


def folders() -> list[Path]:
    return sorted(path for path in Path("runs").iterdir() if path.is_dir() and not path.name.startswith("."))


def accuracy(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["validation/accuracy"]


@pytest.mark.slow
def test_search_goes_on_where_it_stopped(capsys, monkeypatch):
    """Two trials; then four, the third of which is stopped half way; then the same command again."""
    code, out, err = run("tune", *SETTINGS, "trials=2", capsys=capsys)
    assert code == 0, err
    first = {path: (path / "status.json").stat().st_mtime_ns for path in folders()}
    assert len(first) == 2
    command = shlex.split(out.splitlines()[-1].partition("locallearn ")[2])
    lr = experiment(*compose(command)).optim.lr
    of = {yaml.safe_load((path / "config.yaml").read_text())["optim"]["lr"]: accuracy(path) for path in folders()}
    assert of[lr] == max(of.values())
    assert f"best: optim.lr={lr:.3g}, validation accuracy {of[lr]:.4f}" in out

    start = module.runner.start

    def stopped(*arguments):
        start(*arguments)
        path = next(path for path in folders() if path not in first)
        (path / "status.json").write_text(json.dumps({"state": "interrupted"}))
        (path / "summary.json").unlink()
        raise Interrupted(2)

    monkeypatch.setattr(module.runner, "start", stopped)
    code, out, err = run("tune", *SETTINGS, "trials=4", capsys=capsys)
    assert code == 130
    assert "run the same command again to go on" in err
    monkeypatch.setattr(module.runner, "start", start)
    code, out, _ = run("tune", *SETTINGS, "trials=4", capsys=capsys)
    assert code == 0
    assert "trial 3 of 4" in out
    assert "(resumed)" in out
    assert "4 trials, in runs" in out
    assert len(folders()) == 4, "a trial was done twice"
    assert first.items() <= {path: (path / "status.json").stat().st_mtime_ns for path in folders()}.items()
    code, out, _ = run("tune", *SETTINGS, "trials=4", capsys=capsys)
    assert code == 0
    assert out.startswith("4 trials, in runs\nbest: "), "it tried something again"


@pytest.mark.slow
def test_what_diverges_is_worse_than_what_does_not(capsys, tmp_path):
    (tmp_path / "wild.yaml").write_text("optim.lr: [0.01, 1e30]\noptim.schedule: [constant]\n")
    code, out, _ = run("tune", *SETTINGS, "space=wild.yaml", "trials=3", capsys=capsys)
    assert code == 0
    assert "failed: block 0 of 2" in out
    assert "more failed" in out
    assert "best: optim.lr=0.01 optim.schedule=constant" in out
    (tmp_path / "all.yaml").write_text("optim.lr: [1e29, 1e30]\n")
    code, out, _ = run("tune", *SETTINGS, "optim.schedule=constant", "space=all.yaml", "trials=1", capsys=capsys)
    assert code == 1
    assert "0 trials, 1 more failed" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["trials=0"], "trials=0: must be a whole number of at least 1"),
        (["trials=many"], "at least 1"),
        (["space=lr_decya"], "did you mean 'lr_decay'?"),
        (["space=nowhere.yaml"], "cannot be read"),
        (["space=file.yaml"], "must map keys to ranges"),
        (["space=wrong.yaml"], "unknown key optim.rl"),
        (["optim.lr=0.1"], "leave it out"),
        (["seed=0,1"], "call it for each of them"),
        (["strategy=dlg"], "did you mean 'dgl'?"),
        (["data.validation=0"], "hold some samples out"),
        (["epochs=0"], "epochs=0"),
        (["out=file.yaml/x"], "cannot write into file.yaml/x"),
        (["--config-dir", "nowhere"], "no such folder"),
        (["fast"], "neither a command nor"),
    ],
)
def test_bad_input(arguments, sentence, capsys, tmp_path):
    (tmp_path / "file.yaml").write_text("- 1\n")
    (tmp_path / "wrong.yaml").write_text("optim.rl: {low: 1, high: 2}\n")
    code, out, err = run("tune", *SETTINGS, *arguments, capsys=capsys)
    assert code == 2, out
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.yaml", "wrong.yaml"]


def test_without_optuna(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, _, err = run("tune", *SETTINGS, capsys=capsys)
    assert code == 2
    assert err == "locallearn: tune needs optuna: pip install 'locallearn[tune]'\n"


def test_a_record_that_is_none(capsys, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tune.db").write_text("this is no database, whatever its name says " * 50)
    code, _, err = run("tune", *SETTINGS, capsys=capsys)
    assert code == 2
    assert "is not the record of a search" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", choices("tune"))
@pytest.mark.parametrize("optim", choices("optim"))
def test_ready_spaces_fit_every_optimizer(name, optim):
    found = space_of(name, {"optim": optim})
    assert "optim.lr" in found
    for end in ("low", "high"):
        exp = experiment(*compose([f"optim={optim}", *(override(k, getattr(r, end)) for k, r in found.items())]))
        assert exp.optim.lr == getattr(found["optim.lr"], end)
    default = experiment(*compose([f"optim={optim}"])).optim.lr
    assert 0.2 < found["optim.lr"].share(default) < 0.8, "the default lies at an end"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("optim.lr: {low: 1, high: 0.1}", "low=1 must be less than high=0.1"),
        ("optim.lr: {low: 0, high: 1, log: true}", "with log more than 0"),
        ("optim.lr: {low: 0, high: 1, log: 3}", "log=3: must be true or false"),
        ("optim.lr: {low: 0, hihg: 1}", "must be {low: NUMBER"),
        ("optim.lr: {low: a, high: 1}", "low=a: must be a number"),
        ("optim.lr: []", "or a list of values"),
        ("optim.lr: 3", "or a list of values"),
        ("optim=adam: 3", "under optim=adam there must be keys"),
        ("optim=sgd: {optim.lr: [1]}", "no key for optim=adam"),
        ("a: [", "cannot be read"),
    ],
)
def test_spaces_that_mean_nothing(text, sentence, tmp_path):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^space=space") as error:
        space_of("space.yaml", NAMES)
    assert sentence in str(error.value)


def test_spaces_and_values(tmp_path):
    (tmp_path / "space.yaml").write_text(
        "model.width: {low: 8, high: 64, log: true}\nstrategy: [dgl, null, true]\n"
        "optim=adam:\n  optim.lr: {low: 1e-4, high: 1.0}\nstrategy=dni:\n  strategy.width: [1]\n"
    )
    found = space_of("space.yaml", NAMES)
    assert found == {
        "model.width": Range(8, 64, log=True),
        "strategy": ["dgl", None, True],
        "optim.lr": Range(1e-4, 1.0),
    }
    assert Range(1e-4, 1.0, log=True).share(1e-2) == pytest.approx(0.5)
    texts = [override("a", value) for value in (0.0123456, 12, None, True, "dgl", "a b")]
    assert texts == ["a=0.0123", "a=12", "a=null", "a=true", "a=dgl", "a='a b'"]
    assert TuneOptions.parse(["trials=3", "epochs=2", "space=x"]) == (TuneOptions(3, "x"), ["epochs=2"])
