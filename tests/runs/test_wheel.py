"""The wheel, installed in a clean environment and used in an empty folder: what a user of `pip install` gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers.commands import SMALL, Installed, obey_signals

MINE = '''
from dataclasses import dataclass
from locallearn.strategies.greedy import DGL

@dataclass(frozen=True)
class Mine(DGL):
    """DGL with a scaled loss."""
    beta: float = 0.99

    def loss(self, block, h, packet):
        return self.beta * super().loss(block, h, packet)
'''
SETTINGS = [*SMALL, "auxiliary=linear", "epochs=1", "max_steps=3"]
PROGRAMS = [["locallearn"], ["python", "-m", "locallearn"]]


def test_it_is_the_wheel_that_runs(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("python", "-c", "import locallearn; print(locallearn.__file__)", folder=tmp_path)
    assert str(installed.programs.parent) in done.out
    done = installed.run("python", "-m", "locallearn", "--cfg", "job", "strategy=dgl", folder=tmp_path)
    assert done.code == 0, done.err
    assert "locallearn.strategies.greedy.DGL" in done.out


def test_console_script_trains_in_an_empty_folder(installed: Installed, tmp_path: Path) -> None:
    done = installed.run("locallearn", "strategy=dgl", *SETTINGS, folder=tmp_path)
    assert done.code == 0, done.err
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_without_arguments_it_is_the_default_run(installed: Installed, tmp_path: Path, program: list[str]) -> None:
    """It trains in the folder it is started in; Ctrl-C ends it with the line that goes on with it."""
    process = subprocess.Popen(
        [str(installed.programs / program[0]), *program[1:]],
        cwd=tmp_path,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=obey_signals,
    )
    end = time.monotonic() + 300
    while not list(tmp_path.glob("runs/*/status.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(2.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert out.startswith("dgl on vgg16 (4 blocks), digits")
    assert "Traceback" not in out + err
    (folder,) = tmp_path.glob("runs/*/")
    assert str(folder.relative_to(tmp_path)) in err.partition(" resume ")[2]
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_a_run_is_used_from_another_directory(
    installed: Installed, tmp_path: Path, program: list[str], terminal: bool
) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    done = installed.run(*program, "strategy=dgl", *SETTINGS, folder=here, terminal=terminal)
    assert done.code == 0, done.err
    (run,) = here.glob("runs/*/")
    assert done.out.rstrip().endswith(str(run.relative_to(here)))
    for words in (["evaluate"], ["resume"], ["report"], ["repeat"]):
        done = installed.run(*program, *words, str(run), folder=other, terminal=terminal)
        assert done.code == 0, done.err
        assert "Traceback" not in done.out + done.err
    assert list(other.iterdir()) == []


@pytest.mark.slow
def test_a_strategy_of_ones_own_in_one_file_and_one_yaml(installed: Installed, tmp_path: Path) -> None:
    """As `python -m` and as the console script, which does not see the current folder by itself."""
    (tmp_path / "my_conf" / "strategy").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_conf" / "strategy" / "mine.yaml").write_text("# Mine.\n_target_: mine.Mine\nbeta: 0.9\n")
    for program in PROGRAMS:
        done = installed.run(*program, "--config-dir", "my_conf", "strategy=mine", *SETTINGS, folder=tmp_path)
        assert done.code == 0, done.err
        run = done.out.splitlines()[-1]
        assert json.loads((tmp_path / run / "status.json").read_text())["state"] == "done"
    done = installed.run("locallearn", "evaluate", run, "--allow", "mine", folder=tmp_path)
    assert done.code == 0, done.err
    done = installed.run("locallearn", "--config-dir", "my_conf", "strategy=mine", "strategy.bta=1", folder=tmp_path)
    assert done.code == 2
    assert "did you mean 'strategy.beta'" in done.err
