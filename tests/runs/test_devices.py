"""Which accelerator a process takes, and which processes take none; on a machine that only seems to have some."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from helpers.commands import SMALL, one_sentence, run
from locallearn import accelerator
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.errors import RunError
from locallearn.runs import files
from locallearn.runtime.launch import FIRST_DEVICE
from locallearn.runtime.world import World
from locallearn.training import processes
from locallearn.training.run import start

PIPELINE = [*SMALL, "data=digits", "data.fraction=0.1", "model.depth=4", "blocks=4", "runtime=pipeline", "epochs=1"]


@pytest.fixture
def gpus(monkeypatch) -> None:
    """Four, that nobody may start."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("started a GPU"))


class Hosts(World):
    """Processes on these machines."""

    def __init__(self, rank: int, *machines: str) -> None:
        self.rank, self.size, self.machines = rank, len(machines), machines

    def gather(self, value: object) -> list[object]:
        return list(self.machines)


@pytest.mark.parametrize(
    ("machines", "environment", "taken"),
    [
        ("aaaa", {}, [0, 1, 2, 3]),
        ("aaaaaa", {}, [0, 1, 2, 3, 0, 1]),
        ("aabb", {}, [0, 1, 0, 1]),
        ("abab", {}, [0, 0, 1, 1]),
        ("aabb", {FIRST_DEVICE: "3"}, [3, 0, 3, 0]),
        ("aa", {"LOCAL_RANK": "2"}, [2, 2]),
    ],
)
def test_each_process_takes_the_next_device_of_its_machine(gpus, monkeypatch, machines, environment, taken):
    used: list[torch.device] = []
    monkeypatch.setattr(accelerator, "use", used.append)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for name in ("auto", "cuda"):
        devices = [processes.device_of_process(name, Hosts(rank, *machines)) for rank in range(len(machines))]
        assert devices == used == [torch.device("cuda", index) for index in taken]
        used.clear()
    assert processes.device_of_process("cpu", Hosts(1, *machines)) == torch.device("cpu")
    assert not used


def test_one_device_for_several_processes_is_refused(gpus, capsys, tmp_path):
    code, _, err = run(*PIPELINE, "device=cuda:3", f"out={tmp_path / 'runs'}", capsys=capsys)
    assert code == 2
    assert "device=cuda:3 is one device, and runtime=pipeline has 2 processes: choose device=cuda" in one_sentence(err)
    assert not (tmp_path / "runs").exists()


def test_a_first_device_that_is_no_number_is_refused(gpus, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv(FIRST_DEVICE, "two")
    code, _, err = run(*PIPELINE, "device=cuda", f"out={tmp_path / 'runs'}", capsys=capsys)
    assert code == 2
    assert "LOCALLEARN_FIRST_DEVICE=two: must be the number of a device" in one_sentence(err)
    assert not (tmp_path / "runs").exists()


def test_the_process_that_starts_the_others_starts_no_gpu(gpus, monkeypatch, tmp_path):
    def launched(*_: object) -> None:
        raise RunError("as far as this")

    monkeypatch.setattr(processes, "launch_all", launched)
    exp = experiment(*compose([*PIPELINE, "probe=linear", "device=auto", f"out={tmp_path}"]), [])
    with pytest.raises(RunError, match="as far as this"):
        start(exp, quiet=True)
    (folder,) = Path(tmp_path).iterdir()
    manifest = json.loads((folder / files.MANIFEST).read_text())
    assert "device" not in manifest, "whoever has one will say so"
    assert manifest["stages"] == [[0, 2], [2, 4]]
    assert not (folder / files.PROBES).exists()
