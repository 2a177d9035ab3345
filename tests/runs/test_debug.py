"""Errors that nobody foresaw: in the user's own code they name the place, in ours they say how to see more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import SMALL, run
from locallearn import errors
from locallearn.data import doctor

SETTINGS = [*SMALL, "auxiliary=linear", "batch_size=128", "max_steps=1", "blocks=2"]
CODE = {
    "strategy": """
from dataclasses import dataclass
from locallearn.strategies.greedy import DGL
@dataclass(frozen=True)
class Mine(DGL):
    def loss(self, block, h, packet):
        return h.no_such_thing  # HERE
""",
    "constructor": """
from dataclasses import dataclass
from locallearn.strategies.greedy import DGL
@dataclass(frozen=True)
class Mine(DGL):
    def __post_init__(self):
        return None + 1  # HERE
""",
    "model": """
def Mine(image, classes):
    return {}["no such key"]  # HERE
""",
    "data": """
from dataclasses import dataclass
from locallearn.data.digits import Digits
@dataclass(frozen=True)
class Mine(Digits):
    def read(self, device):
        raise ZeroDivisionError("no data")  # HERE
""",
    "probe": """
from dataclasses import dataclass
from locallearn.probes.linear import LinearProbe
@dataclass(frozen=True)
class Mine(LinearProbe):
    def __post_init__(self):
        open("/no/such/file")  # HERE
""",
    "module": """
import json
json.loads("[")  # HERE
""",
    "import": """
import no_such_package  # HERE
""",
    "syntax": """
def Mine(:  # HERE
""",
}


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Make a module of the user's; the words that use it, and its line that is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def make(kind: str) -> tuple[list[str], str]:
        group = kind if kind in ("strategy", "model", "data", "probe") else "strategy"
        folder = tmp_path / "conf" / group
        folder.mkdir(parents=True)
        (folder / "mine.yaml").write_text("# Mine.\n_target_: of_mine.Mine\n")
        code = CODE[kind]
        (tmp_path / "conf" / "of_mine.py").write_text(code)
        number = next(n for n, line in enumerate(code.splitlines(), 1) if "# HERE" in line)
        own = [word for word in SETTINGS if not word.startswith(group)]
        return [f"{group}=mine", *own, "--config-dir", "conf"], f"{tmp_path}/conf/of_mine.py, line {number}: "

    yield make
    sys.modules.pop("of_mine", None)


@pytest.mark.slow
@pytest.mark.parametrize("kind", CODE)
def test_an_error_of_the_users_names_file_line_and_text(kind, mine, capsys):
    words, place = mine(kind)
    code, _, err = run(*words, capsys=capsys)
    assert code == 1
    assert err.count("\n") == 1, err
    assert place in err
    assert "# HERE" in err
    code, _, err = run("--debug", *words, capsys=capsys)
    assert code == 1
    assert "Traceback" in err
    assert place in err.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["strategy", "data"])
def test_in_a_sweep_too(kind, mine, capsys):
    words, place = mine(kind)
    code, out, err = run("-m", *words, "seed=0,1", capsys=capsys)
    assert code == 1
    assert err.count(place) == 2
    assert out.count(place) == 2, "the summary of the sweep does not say it"
    assert "Traceback" not in err


@pytest.mark.slow
def test_in_stages_too(mine):
    words, place = mine("strategy")
    command = [sys.executable, "-m", "locallearn", *words, "runtime=pipeline", "runtime.stages=2"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert place in done.stderr
    assert "Traceback" not in done.stderr


def test_an_error_of_ours_says_how_to_see_more(monkeypatch, capsys):
    def fails(*args, **options):
        raise IndexError("not foreseen")

    monkeypatch.setattr(doctor, "diagnose", fails)
    monkeypatch.setattr(errors, "_of_the_user", lambda file: False)  # this test is code of a user's, too
    code, _, err = run("doctor", capsys=capsys)
    assert (code, err.count("\n")) == (1, 1)
    assert "IndexError: not foreseen" in err
    assert "run again with --debug" in err
    monkeypatch.setenv("LOCALLEARN_DEBUG", "1")
    code, _, err = run("doctor", capsys=capsys)
    assert code == 1
    assert "Traceback" in err


def test_debug_ends_with_the_command(capsys, monkeypatch):
    import os

    monkeypatch.delenv("LOCALLEARN_DEBUG", raising=False)
    code, _, err = run("strategy=dlg", "--debug", capsys=capsys)
    assert code == 2
    assert "Traceback" in err
    assert "LOCALLEARN_DEBUG" not in os.environ
    assert "Traceback" not in run("strategy=dlg", capsys=capsys)[2]


def test_whose_code_it_is(tmp_path):
    import json

    import torch

    mine = tmp_path / "mine.py"
    mine.touch()
    assert errors._of_the_user(str(mine))
    for file in (errors.__file__, json.__file__, torch.__file__, "<string>", "<frozen importlib>", Path("/nowhere.py")):
        assert not errors._of_the_user(str(file))
