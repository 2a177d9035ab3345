"""What several test files share: a small model with everything that makes training order-dependent, and real data."""

from __future__ import annotations

import copy
import itertools
import os
import pty
import signal
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import locallearn
from locallearn.cli import main as cli
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.data import Data
from locallearn.engine import SGD, Learner, assemble
from locallearn.models import BlockModel

ROOT = Path(__file__).resolve().parents[1]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The faults that a test injects go into the JUnit file, from which `make test-faults` makes its table."""
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("faults", " ".join(mark.args)))


@pytest.fixture(scope="session")
def found_root(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder with MNIST, Fashion-MNIST, CIFAR-10, Cora, names and the 12-bit task, if they are here."""
    given_root = os.environ.get("LOCALLEARN_DATA")
    if given_root and (Path(given_root) / "cifar-10-batches-py").is_dir() and (Path(given_root) / "MNIST").is_dir():
        return Path(given_root)
    for script in (ROOT / "shared/data/unpack.py", ROOT.parent / "shared/data/unpack.py"):
        if script.is_file():
            root = tmp_path_factory.mktemp("data")
            subprocess.run([sys.executable, script, root], check=True, capture_output=True)
            return root
    return None


@pytest.fixture(scope="session")
def real_root(found_root: Path | None) -> Path:
    """What `found_root` has found."""
    if found_root is None:
        pytest.skip("no real data: set LOCALLEARN_DATA to a folder with MNIST, FashionMNIST and cifar-10-batches-py")
    return found_root


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel in it: what a user of `pip install` has."""

    programs: Path

    def run(self, *command: str, folder: Path | None = None, terminal: bool = False, **variables: str) -> Done:
        """Run a program of the environment in the current folder, or in `folder`."""
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        env = {k: v for k, v in os.environ.items() if k not in hidden} | {"OMP_NUM_THREADS": "1", **variables}
        env["PATH"] = f"{self.programs}{os.pathsep}{env['PATH']}"
        process = [str(self.programs / command[0]), *command[1:]]
        if terminal:
            return _on_a_terminal(process, folder, env | {"TERM": "xterm"})
        done = subprocess.run(process, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900)
        return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Done:
    """How a program ended and what it wrote; on a terminal both streams are one."""

    code: int
    out: str
    err: str


def _on_a_terminal(command: list[str], folder: Path | None, env: dict[str, str]) -> Done:
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    with suppress(OSError):  # Linux answers EIO when the other side is gone
        while chunk := os.read(master, 4096):
            seen += chunk
    os.close(master)
    out = seen.decode(errors="replace").replace("\r\n", "\n")
    return Done(process.wait(timeout=60), out, out)


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in an environment that sees the packages of this one (a path in a .pth file, so that no editable
    install comes along) instead of downloading 5 GB again."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", str(ROOT), "--no-deps", "--no-build-isolation", "-w", str(folder)]
    subprocess.run(build, check=True, capture_output=True)
    venv.create(folder / "env", with_pip=False)
    site = folder / "env" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    install = [*pip, "--python", str(folder / "env"), "install", "--no-deps", str(next(folder.glob("*.whl")))]
    subprocess.run(install, check=True, capture_output=True)
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return Installed(folder / "env" / "bin")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails as it does without a network."""

    def refuse(*args: object, **options: object) -> None:
        raise urllib.error.URLError(OSError("Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def obey_signals() -> None:
    """Also below `nohup`, or in the background of a shell, which make a process deaf to them."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """A command line in this process: its exit code, and what it wrote to stdout and stderr."""
    argv = sys.argv
    try:
        code = cli.main(list(arguments))
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="session")
def data() -> Data:
    """The embedded digits; tests share them and leave them alone."""
    return experiment(*compose(["data=digits"]), []).source.load(0, torch.device("cpu"))


@pytest.fixture
def learner() -> Learner:
    """LeNet for the digits in two blocks, untrained."""
    return locallearn.build("backprop", "lenet", image=(1, 32, 32), blocks=2, device="cpu")


def tiny_model(units: int = 4, dropout: float = 0.0, seed: int = 0) -> BlockModel:
    """`units` times conv-BN-ReLU(-dropout) on 2x6x6 images, pooled into a linear head for 3 classes."""
    torch.manual_seed(seed)
    width = [2, 4, 5, 3, 6, 4, 5][: units + 1]
    layers = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU(), nn.Dropout(dropout))
        for a, b in itertools.pairwise(width)
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width[-1], 3))
    return BlockModel(layers, head, image=(2, 6, 6), classes=3, name="tiny")


def tiny_batches(steps: int = 5, batch: int = 8, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(batch, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(3, (batch,), generator=g))
        for _ in range(steps)
    ]


SGD_CONSTANT = SGD(lr=0.1, momentum=0.9, weight_decay=1e-3, schedule="constant")


def tiny_learner(strategy, model: BlockModel | None = None, blocks=4, **options) -> Learner:
    """A float64 learner over a copy of `model`."""
    model = copy.deepcopy(model if model is not None else tiny_model())
    options = {"optim": SGD_CONSTANT, "precision": "fp64", **options}
    optim = options.pop("optim")
    return assemble(model, strategy, optim, model.cut(blocks), **options)


def bare_backprop(model: nn.Module, batches) -> nn.Module:
    """A copy of the model after the loop that everybody writes."""
    model = copy.deepcopy(model).double().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3, fused=True)
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def trained(strategy, batches, model=None, **options) -> Learner:
    """A learner that has learned from every batch once."""
    learner = tiny_learner(strategy, model, total_steps=len(batches), **options)
    for x, y in batches:
        learner.learn(x, y)
    return learner


def assert_same(a: nn.Module, b: nn.Module) -> None:
    """Every parameter and buffer equal, bit for bit."""
    other = b.state_dict()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, other[name]), f"{name} differs by {(tensor - other[name]).abs().max()}"
