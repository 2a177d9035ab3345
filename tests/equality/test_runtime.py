"""Whole runs in several processes, as a user starts them, against the same run in one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file

from helpers.marks import slow
from locallearn.cli.main import main

pytestmark = pytest.mark.xdist_group("runtime")  # one worker makes the serial runs
SETTINGS = ["model=mlp", "blocks=3", "model.width=64", "model.dropout=0.2", "device=cpu"]
SETTINGS += ["epochs=2", "max_steps=50", "threads=1"]
REPLICAS = ["strategy=dgl", "model.batch_norm=false", "auxiliary.batch_norm=false", "micro_batches=2"]
DISTORTED = ["strategy=dgl", "max_steps=6", "data.resized_crop=0.5", "data.policy=rand", "data.jitter=1"]
DISTORTED += ["data.blur=0.5", "data.mixup=0.4", "data.cutmix=1"]
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node=2"]


def command(out: Path, *overrides: str, prefix: list[str] | None = None) -> list[str]:
    return [sys.executable, *(prefix or []), "-m", "locallearn", *SETTINGS, f"out={out}", *overrides]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(out: Path, *overrides: str, prefix: list[str] | None = None, code: int = 0) -> Path:
    """One run to its end; returns the run folder."""
    done = subprocess.run(
        command(out, *overrides, prefix=prefix), capture_output=True, text=True, env=environment(), timeout=240
    )
    assert done.returncode == code, done.stderr
    return next(path for path in out.iterdir() if path.is_dir())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    newest = max((folder / "checkpoints").iterdir())
    return {name: t for file in newest.glob("*.safetensors") for name, t in load_file(file).items()}


def numbers(folder: Path) -> list[dict]:
    """What was measured, without what depends on time and place."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    places = ("seconds", "images_per_second", "peak_memory_bytes")
    return [{k: v for k, v in r.items() if k not in places and not k.startswith(("stage/", "probe/"))} for r in records]


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, t in a.items():
        assert torch.equal(t, b[name]), name


class Serial(dict[str, Path]):
    """The runs in one process that others are compared with, each when it is first asked for."""

    settings: ClassVar[dict[str, list[str]]] = {
        "dgl": ["strategy=dgl", "probe=alignment"],
        "dni": ["strategy=dni"],
        "backprop": ["strategy=backprop"],
        "late": ["strategy=backprop", "runtime.staleness=1"],
        "replicas": REPLICAS,
        "distorted": DISTORTED,
    }

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def __missing__(self, which: str) -> Path:
        assert main([*SETTINGS, f"out={self.root / which}", *self.settings[which]]) == 0
        self[which] = next((self.root / which).iterdir())
        return self[which]


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Serial:
    return Serial(tmp_path_factory.mktemp("serial"))


@pytest.mark.parametrize(
    ("which", "settings"),
    [
        ("dgl", ["strategy=dgl", "probe=alignment", "runtime.stages=2"]),
        slow("dgl", ["strategy=dgl", "probe=alignment", "runtime.stages=3"]),
        slow("dni", ["strategy=dni", "runtime.split=[2,1]"]),
        pytest.param(
            "backprop", ["strategy=backprop", "runtime.stages=2", "runtime.wire=gloo"], marks=pytest.mark.slow
        ),
        slow("distorted", [*DISTORTED, "runtime.stages=2"]),
        slow("late", ["strategy=backprop", "runtime.stages=3", "runtime.staleness=1"]),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
@pytest.mark.fault("R6")
def test_a_run_in_several_processes_is_the_same_run(which, settings, serial, tmp_path):
    """Weights, optimizer states, every number of every epoch and probe."""
    found = run(tmp_path, "runtime=pipeline", *settings)
    assert_equal(weights(serial[which]), weights(found))
    assert_equal(checkpoint(serial[which]), checkpoint(found))
    assert numbers(serial[which]) == numbers(found)
    summary = json.loads((found / "summary.json").read_text())
    expected = json.loads((serial[which] / "summary.json").read_text())
    assert summary["auxiliary_parameters"] == expected["auxiliary_parameters"]
    assert 0 <= summary["stage/01/waiting"] < 1
    manifest = json.loads((found / "manifest.json").read_text())
    carrier = "gloo" if "runtime.wire=gloo" in settings else "ring"
    assert manifest["wires"] == [carrier] * (len(manifest["stages"]) - 1)


@pytest.mark.slow
@pytest.mark.fault("R6")
def test_torchrun(serial, tmp_path):
    found = run(tmp_path, "runtime=pipeline", "strategy=dgl", "probe=alignment", prefix=TORCHRUN)
    assert_equal(weights(serial["dgl"]), weights(found))
    assert numbers(serial["dgl"]) == numbers(found)
    assert json.loads((found / "status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.slow
@pytest.mark.fault("R6", "R11")
def test_replicas_are_micro_batches_elsewhere(stages, serial, tmp_path):
    settings = ["runtime=pipeline", f"runtime.stages={stages}", "runtime.replicas=2", *REPLICAS[:-1]]
    found = run(tmp_path, *settings)
    assert_equal(weights(serial["replicas"]), weights(found))
    for one, other in zip(numbers(serial["replicas"]), numbers(found), strict=True):
        assert one == pytest.approx(other, rel=1e-6)  # the sums of losses are added in another order


@pytest.mark.slow
@pytest.mark.fault("R6")
def test_a_stage_that_does_not_see_the_run_folder_sends_its_part_of_checkpoints(serial, tmp_path):
    """As on another machine: it has an empty file system in the place of that folder."""
    out = tmp_path / "runs"
    out.mkdir()
    hidden = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs tmpfs "$0" && exec "$@"', str(out)]
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("only root can mount a file system")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    words = command(out, "runtime=pipeline", "strategy=dgl", "probe=alignment", "checkpoint.every=20it")
    both = [
        subprocess.Popen([*(hidden if rank else []), *words], env=environment() | meet | {"RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.wait(240) for process in both] == [0, 0]
    (found,) = out.iterdir()
    newest = max((found / "checkpoints").iterdir())
    parts = ["stage-00-of-02.safetensors", "stage-01-of-02.safetensors"]
    assert sorted(path.name for path in newest.iterdir()) == ["manifest.json", *parts, "state.json"]
    assert_equal(checkpoint(serial["dgl"]), checkpoint(found))
    assert_equal(weights(serial["dgl"]), weights(found))


@pytest.mark.parametrize("changes", [["runtime=serial"], ["runtime.stages=3"]])
@pytest.mark.slow
@pytest.mark.fault("F26", "R6")
def test_a_stopped_pipeline_goes_on_with_any_number_of_stages(changes, serial, tmp_path):
    settings = ["runtime=pipeline", "strategy=dgl", "probe=alignment", "checkpoint.every=5it", "checkpoint.keep=9"]
    started = subprocess.Popen(command(tmp_path, *settings), env=environment(), stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    started.send_signal(signal.SIGTERM)
    error = started.communicate(timeout=60)[1]
    assert started.returncode == 143, error
    folder = next(tmp_path.iterdir())
    assert f"locallearn resume {folder}" in error.partition("go on with: ")[2]
    assert json.loads((folder / "status.json").read_text())["state"] == "interrupted"
    reached = max(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").iterdir())
    assert 5 <= reached < 50
    resumed = subprocess.run(
        [sys.executable, "-m", "locallearn", "resume", str(folder), *changes],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert resumed.returncode == 0, resumed.stderr
    assert_equal(weights(serial["dgl"]), weights(folder))
    assert numbers(serial["dgl"]) == numbers(folder)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["runtime.stages=4"], "choose at most 3 stages, or more blocks"),
        (["runtime.split=[1,1]"], "add up to 3, or auto"),
        (["runtime.split=[1,1,1]"], "must be 2 numbers of blocks"),
        (["runtime.message=fp8"], "must be exact or bf16"),
        (["runtime.replicas=3"], "does not divide the batch of 32"),
        (["runtime.wire=nccl"], "one machine has 2 processes on no GPU: choose auto"),
        (["runtime.stages=0"], "must be a whole number of at least 1"),
        (["strategy=dgl", "runtime.staleness=1"], "choose runtime.staleness=0"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[-1],
)
def test_what_cannot_be_is_refused_before_anything_is_started(settings, sentence, tmp_path, capsys):
    assert main([*SETTINGS, f"out={tmp_path / 'runs'}", "runtime=pipeline", *settings]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_torchrun_with_another_number_of_processes(tmp_path):
    for runtime, way_out in (("runtime=serial", "choose runtime=pipeline"), ("runtime.stages=3", "start 3")):
        settings = ["runtime=pipeline", runtime] if "stages" in runtime else [runtime]
        done = subprocess.run(
            command(tmp_path / "runs", *settings, prefix=TORCHRUN),
            capture_output=True,
            text=True,
            env=environment(),
            timeout=120,
        )
        assert done.returncode != 0
        assert done.stderr.count("locallearn: torchrun started 2 processes") == 1
        assert way_out in done.stderr
        assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_bf16_messages_change_little(serial, tmp_path):
    found = run(tmp_path, "runtime=pipeline", "strategy=dgl", "probe=alignment", "runtime.message=bf16")
    assert json.loads((found / "manifest.json").read_text())["message"] == "bf16"
    one, other = numbers(serial["dgl"])[0], numbers(found)[0]
    assert one["block/00/loss"] == other["block/00/loss"]  # the first stage gets no message
    assert one["block/02/loss"] != other["block/02/loss"]
    assert one["block/02/loss"] == pytest.approx(other["block/02/loss"], rel=0.02)
