"""Fixtures of all tests: real data, an installed wheel, an empty folder, no network."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import sysconfig
import urllib.error
import urllib.request
import venv
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import locallearn
from helpers.commands import Installed
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.data import Data
from locallearn.engine import Learner

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The faults that a test injects go into the JUnit file, from which `make test-faults` makes its table. One worker
    builds the wheel, for all tests that use it."""
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("faults", " ".join(mark.args)))
        if "installed" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("wheel"))


def pytest_collection_finish() -> None:
    """What is here before the first test stays to the end: every run looks for garbage once, and need not look here."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


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
    refuse = Mock(side_effect=urllib.error.URLError(OSError("Name or service not known")))  # not "code of the user's"
    monkeypatch.setattr(urllib.request, "urlopen", refuse)


@pytest.fixture(scope="session")
def data() -> Data:
    """The embedded digits; tests share them and leave them alone."""
    return experiment(*compose(["data=digits"]), []).source.load(0, torch.device("cpu"))


@pytest.fixture
def learner() -> Learner:
    """LeNet for the digits in two blocks, untrained."""
    return locallearn.build("backprop", "lenet", image=(1, 32, 32), blocks=2, device="cpu")
