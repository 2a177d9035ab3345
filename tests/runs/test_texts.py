"""A text that is given from Python goes where it says, whatever it looks like; `~` is expanded once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import locallearn
from helpers.commands import run
from locallearn import paths
from locallearn.config.compose import compose
from locallearn.config.keywords import overrides as _overrides
from locallearn.errors import UserError

SETTINGS = {"model": "mlp", "model.width": 8, "auxiliary": "linear", "epochs": 1, "max_steps": 1, "threads": 1}
WORDS = [f"{key}={value}" for key, value in SETTINGS.items()]
TEXTS = [
    "20240101", "true", "False", "1e3", "0x10", "1_000", "null", "NaN", "inf", "-1", "+x", "[a]", "{a:1}", "[", "}",
    "a=b", "=", "${x}", "${oc.env:HOME}", r"\${x}", r"a\\${x}", "${", "$HOME", "1,2", "a,b", " ", " a ", "a b", "a: b",
    "#a", "r/a\\b", "\\", "a\\", "\\'", "'", '"', "''", "it's", "a\nb", "a\tb", "choice(1,2)", "glob(*)", "*", "?",
    "!a", "@a", "%s", "&", "|", "äöü", "数字", "e\u0301", "😀", "./~x", "a~b", "--out", "a" * 200,
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
def test_a_text_from_python_is_a_text(text):
    """Alone, in a list, and as a folder."""
    config, _ = compose(list(_overrides({"out": text, "record": "wandb", "record.wandb": {"tags": [text, "x"]}})))
    assert paths.expanded(config["out"]).absolute() == Path(text).absolute()
    assert config["record"]["wandb"]["tags"] == [text, "x"]
    again, _ = compose(list(_overrides({"record": "wandb", "record.wandb.project": text})))
    assert again["record"]["wandb"]["project"] == text


@pytest.mark.slow
@pytest.mark.parametrize("out", ["r/2024", "20240101", "true", "1e3", "r/a\\b", "r/a\nb", "null", "a=b", "${x}", "1,2"])
def test_a_run_goes_into_the_folder_that_was_said(out, elsewhere, tmp_path):
    result = locallearn.train(quiet=True, out=out, **SETTINGS)
    assert result.run_dir.parent == tmp_path / out
    assert locallearn.load(str(result.run_dir)).training is False


def test_what_no_setting_can_be_is_refused(elsewhere, tmp_path):
    for settings, said in [
        ({"out": "???"}, "three question marks"),
        ({"out": "a\0b"}, "null character"),
        ({"a=b": 1}, "not the name of a setting"),
        ({"model": {"a b": 1}}, "not the name of a setting"),
        ({"runtime": "replay", "runtime.slow": {2: 1.5, "a,b": 1}}, "cannot be a key"),
    ]:
        with pytest.raises(UserError, match=said):
            locallearn.train(quiet=True, **{**SETTINGS, **settings})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "the home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


@pytest.mark.slow
def test_a_tilde_is_the_home_folder_from_python_and_on_the_command_line(home, elsewhere, capsys):
    result = locallearn.train(quiet=True, out="~/a b", **SETTINGS)
    assert result.run_dir.parent == home / "a b"
    assert locallearn.load(f"~/a b/{result.run_dir.name}").training is False
    code, out, err = run(*WORDS, "out=~/c", capsys=capsys)
    assert code == 0, err
    assert Path(out.splitlines()[-1]).parent == home / "c"
    assert not Path("~").exists()


@pytest.mark.slow
def test_a_tilde_is_the_home_folder_in_every_command(home, elsewhere, capsys):
    result = locallearn.train(quiet=True, out=Path("~/a b"), **SETTINGS)
    assert result.run_dir.parent == home / "a b"
    code, out, err = run(*WORDS, "out='~/c'", capsys=capsys)
    assert code == 0, err
    assert Path(out.splitlines()[-1]).parent == home / "c"
    code, _, err = run("-m", *WORDS, "seed=0,1", "out=~/sweep", capsys=capsys)
    assert code == 0, err
    assert len(list((home / "sweep").glob("seed*"))) == 2
    name = result.run_dir.name
    for words in (
        ["evaluate", f"~/a b/{name}"],
        ["evaluate", f"~/a b/{name}", *map(str, (home / "sweep").glob("seed-0*"))],
        ["report", "~/sweep", "--to", "~/report"],
        ["compare", f"~/a b/{name}", f"~/a b/{name}", "--to=~/compared"],
        ["resume", f"~/a b/{name}"],
    ):
        code, _, err = run(*words, capsys=capsys)
        assert code == 0, err
    assert (home / "report" / "report.html").is_file()
    assert (home / "compared" / "compare.txt").is_file()
    assert not Path("~").exists()


@pytest.mark.slow
def test_what_is_expanded_is_not_expanded_again(home, elsewhere, tmp_path, capsys):
    """A folder whose own name begins with ~."""
    result = locallearn.train(quiet=True, out="./~x", **SETTINGS)
    assert result.run_dir.parent == tmp_path / "~x"
    assert run("evaluate", f"./~x/{result.run_dir.name}", capsys=capsys)[0] == 0
    assert run("report", "./~x", capsys=capsys)[0] == 0


NOBODY = [
    ["resume", "~nobody9/y"],
    ["repeat", "~nobody9"],
    ["evaluate", "~nobody9/y"],
    ["evaluate", "~nobody9/y", "~nobody9/z"],
    ["probe", "~nobody9/y", "probe=linear"],
    ["report", "~nobody9/y"],
    ["report", ".", "--to", "~nobody9/y"],
    ["compare", "~nobody9/y", "x"],
    ["out=~nobody9/y"],
    ["-m", "seed=0,1", "out=~nobody9/y"],
    ["data.root=~nobody9/y"],
    ["doctor", "data.root=~nobody9/y"],
    ["plan", "picture=~nobody9/y.svg"],
    ["tune", "space=~nobody9/y.yaml"],
    ["--config-dir", "~nobody9/y"],
    ["list", "--config-dir", "~nobody9/y"],
]


@pytest.mark.parametrize("words", NOBODY, ids=" ".join)
def test_the_home_of_nobody(words, elsewhere, capsys, tmp_path):
    code, _, err = run(*words, capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1, err
    assert "there is no home folder for ~nobody9; give the whole path" in err
    assert not list(tmp_path.iterdir())


def test_the_home_of_nobody_from_python(elsewhere, tmp_path):
    for call in (
        lambda: locallearn.train(quiet=True, out="~nobody9/y", **SETTINGS),
        lambda: locallearn.train(quiet=True, **{**SETTINGS, "data.root": "~nobody9/y"}),
        lambda: locallearn.load("~nobody9/y"),
        lambda: locallearn.load(Path("~nobody9/y")),
    ):
        with pytest.raises(UserError, match="no home folder for ~nobody9"):
            call()
    assert os.listdir(tmp_path) == []
