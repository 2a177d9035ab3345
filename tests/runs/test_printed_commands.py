"""Every command that the program prints is run as it was printed: with code of one's own, and a space in every name."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.commands import SMALL, run
from locallearn.runs import again
from locallearn.runs.read import one

SETTINGS = [*SMALL, "auxiliary=linear", "batch_size=128"]
MINE = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from locallearn.strategies.greedy import DGL

@dataclass(frozen=True)
class Mine(DGL):
    """DGL that asks for the end of the run, or fails, as long as there is a file for it."""
    scale: float = 0.5

    def loss(self, block, h, packet):
        begun = list(Path("my runs").glob("*/status.json"))  # and is not tried out
        if begun and Path("interrupt").exists():
            Path("interrupt").unlink()
            os.kill(os.getpid(), signal.SIGINT)
        if begun and Path("fail").exists():
            raise KeyError("a bug in my strategy")
        return self.scale * super().loss(block, h, packet)
'''


@pytest.fixture
def mine(tmp_path, monkeypatch) -> list[str]:
    """The words that choose a strategy whose yaml and module lie in a folder of one's own."""
    folder = tmp_path / "my conf"
    (folder / "strategy").mkdir(parents=True)
    (folder / "my_own.py").write_text(MINE)
    (folder / "strategy" / "mine.yaml").write_text("# Mine.\n_target_: my_own.Mine\nscale: 0.5\n")
    work = tmp_path / "my work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield ["--config-dir", str(folder), "strategy=mine"]
    sys.modules.pop("my_own", None)


def shell(command: str, folder: Path | None = None) -> str:
    """What a command prints that is pasted into a shell; it must end well."""
    assert "locallearn" in command
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def after(words: str, text: str) -> str:
    """The command that stands on a line behind these words."""
    (found,) = re.findall(rf"{words}(.*)", text)
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "words"), [("interrupt", []), ("fail", ["runtime=pipeline", "runtime.stages=2", "blocks=2"])]
)
def test_go_on_with_it(mine, how, words):
    """After a signal, and after a failure in one of several processes."""
    Path(how).touch()
    command = [sys.executable, "-m", "locallearn", *mine, *SETTINGS, *words, "max_steps=2", "out=my runs"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == {"interrupt": 130, "fail": 1}[how], done.stderr
    if how == "fail":
        assert re.search(r"stage \d of 2: .*my_own.py, line \d+: raise KeyError", done.stderr)
        Path(how).unlink()
    shell(after("go on with: ", done.stderr))
    assert len(list(Path("my runs").glob("*/summary.json"))) == 1


@pytest.mark.slow
def test_first_end_it(mine, capsys):
    """`evaluate` and `repeat` of a run that has not ended say what to do first."""
    code, _, _ = run(*mine, *SETTINGS, "epochs=1", "out=my runs", capsys=capsys)
    assert code == 0
    (folder,) = Path("my runs").resolve().glob("*")
    shutil.rmtree(folder / "checkpoints")
    (folder / "status.json").write_text('{"state": "interrupted"}')
    for words in (["repeat", str(folder)], ["evaluate", str(folder)]):
        code, _, err = run(*words, "--config-dir", mine[1], capsys=capsys)
        assert code == 2
        assert "resume" in err, err
        (command,) = re.findall(r"`(.*resume.*)`", err)
    shell(command)


@pytest.mark.slow
def test_what_tune_has_found(mine, capsys):
    code, out, err = run("tune", *mine, *SETTINGS, "epochs=1", "trials=1", "out=my runs", capsys=capsys)
    assert code == 0, err
    command = after("run it with: ", out)
    folder = Path(shell(command).splitlines()[-1])
    assert one(folder).config["strategy.scale"] == 0.5
    assert one(folder).config["optim.lr"] == float(re.search(r"optim\.lr=(\S+)", command)[1])


@pytest.mark.slow
def test_a_report_says_how_to_repeat_each_group(mine, capsys, tmp_path):
    """From the folder of the run, and from another one."""
    code, out, err = run("-m", *mine, *SETTINGS, "epochs=1", "seed=0,1", "out=my runs", capsys=capsys)
    assert code == 0, err
    shell(after("pictures and a page of them: ", out))
    page = Path("report/report.md").read_text()
    (repeat,) = re.findall(r"`(.*locallearn.*strategy=mine.*)`", page)
    made = Path(shell(repeat, tmp_path).splitlines()[-1])
    assert one(made).names["strategy"] == "mine"
    from locallearn.report import grouped, read
    from locallearn.report.cells import runs, settings

    found = grouped(read([Path("my runs")]))
    columns = [column for table in (runs(found), settings(found)) for column in table.columns]
    commands = [cell.text for column in columns for cell in column.cells if cell.code]
    assert len(commands) == 3
    for command in commands:
        shell(command, tmp_path)
    assert any("seed=0,1" in command for command in commands)


@pytest.mark.parametrize("folder", ["a b", "it's", "$HOME", "a;b", "`a`", "ä", "-x"])
def test_any_folder_survives_the_shell(folder, tmp_path):
    run_folder = tmp_path / folder
    words = shlex.split(
        again.command("resume", run_folder, flags=again.trusting(["--config-dir", folder, "allow=[a,b]"]))
    )
    assert words[-5:] == ["resume", str(run_folder), f"--config-dir={folder}", "--allow=a", "--allow=b"]


@pytest.mark.slow
def test_the_words_name_a_program_that_is_there():
    """With the environment of this Python on the PATH, and without it."""
    bare = {**os.environ, "PATH": "/usr/bin:/bin"}
    script = "from locallearn.runs import again; print(again.command('--version'))"
    for path in (bare["PATH"], f"{Path(sys.executable).parent}:{bare['PATH']}"):
        env = {**bare, "PATH": path}
        said = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
        done = subprocess.run(["bash", "-c", said.stdout], env=env, capture_output=True, text=True)
        assert done.stdout.startswith("locallearn 0."), done.stderr
