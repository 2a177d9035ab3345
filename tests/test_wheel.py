"""The wheel, installed in a clean environment and used in an empty folder: what a user of `pip install` gets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
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


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The folder of programs of a fresh environment with the wheel in it. It sees the packages of this environment (a
    path in a .pth file, so that no editable install comes along) instead of downloading 5 GB again."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = folder / "env" / "lib" / version / "site-packages"
    wheel = next(folder.glob("*.whl"))
    subprocess.run(
        [*pip, "--python", str(folder / "env"), "install", "--no-deps", str(wheel)], check=True, capture_output=True
    )
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return folder / "env" / "bin"


def run(installed: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [str(installed / command[0]), *command[1:]], cwd=folder, env=env, capture_output=True, text=True, check=False
    )


SMALL = ["model=mlp", "model.width=16", "auxiliary=linear", "epochs=1", "max_steps=3"]


def test_it_is_the_wheel_that_runs(installed, tmp_path):
    done = run(installed, tmp_path, "python", "-c", "import locallearn; print(locallearn.__file__)")
    assert str(installed.parent) in done.stdout
    done = run(installed, tmp_path, "python", "-m", "locallearn", "--cfg", "job", "strategy=dgl")
    assert done.returncode == 0, done.stderr
    assert "locallearn.strategies.greedy.DGL" in done.stdout


def test_console_script_trains_in_an_empty_folder(installed, tmp_path):
    done = run(installed, tmp_path, "locallearn", "strategy=dgl", *SMALL)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_a_strategy_of_ones_own_in_one_file_and_one_yaml(installed, tmp_path):
    """As `python -m` and as the console script, which does not see the current folder by itself."""
    (tmp_path / "my_conf" / "strategy").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "my_conf" / "strategy" / "mine.yaml").write_text("# Mine.\n_target_: mine.Mine\nbeta: 0.9\n")
    for program in (["python", "-m", "locallearn"], ["locallearn"]):
        done = run(installed, tmp_path, *program, "--config-dir", "my_conf", "strategy=mine", *SMALL)
        assert done.returncode == 0, done.stderr
        status = json.loads((Path(done.stdout.splitlines()[-1]) / "status.json").read_text())
        assert status["state"] == "done"
    done = run(installed, tmp_path, "locallearn", "evaluate", done.stdout.splitlines()[-1], "--allow", "mine")
    assert done.returncode == 0, done.stderr
    done = run(installed, tmp_path, "locallearn", "--config-dir", "my_conf", "strategy=mine", "strategy.bta=1")
    assert done.returncode == 2
    assert "did you mean 'strategy.beta'" in done.stderr
