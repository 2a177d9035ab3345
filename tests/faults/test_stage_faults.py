"""What happens to a run when one of its processes dies, raises or stops answering: real processes, real signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from locallearn.cli.main import main
from locallearn.runtime.launch import launch

pytestmark = pytest.mark.xdist_group("faults")
LIMIT_SECONDS = 30  # from the fault to the end of the whole run
SETTINGS = ["model=mlp", "blocks=3", "model.width=32", "auxiliary=linear", "device=cpu", "threads=1", "epochs=40"]
SETTINGS += ["checkpoint.every=20it"]
THREE = ["runtime=pipeline", "runtime.stages=3"]
WIRES = pytest.mark.parametrize("wire", ["ring", "gloo"])
EACH = pytest.mark.parametrize(("stage", "wire"), [(0, "gloo"), (1, "ring"), (2, "gloo")])
"""The first, a middle and the last of three stages, and both wires."""

STRATEGY = """
from dataclasses import dataclass

from locallearn.strategies.greedy import DGL


@dataclass(frozen=True)
class Fragile(DGL):
    block: int = 1

    def step(self, block, packet):
        if block.spec.index == self.block and block.step == 30:
            raise ZeroDivisionError("a mistake of the user's")
        return (yield from super().step(block, packet))
"""


class Running:
    """A pipeline that has begun to train."""

    def __init__(self, out: Path, *settings: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "locallearn", *SETTINGS, f"out={out}", *(settings or THREE)]
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd=out.parent)
        self.out = out

    def wait_for_checkpoint(self) -> None:
        until = time.monotonic() + 200
        while not list(self.out.glob("*/checkpoints/step-*")):
            assert time.monotonic() < until, "no checkpoint"
            assert self.process.poll() is None, self.process.communicate()[1]
            time.sleep(0.05)

    @property
    def folder(self) -> Path:
        return next(self.out.iterdir())

    def stages(self) -> dict[int, int]:
        """The process of each rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                words = (path / "cmdline").read_bytes().split(b"\0")
                variables = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"stage" in words and str(self.folder).encode() in words:
                rank = next(v for v in variables if v.startswith(b"RANK="))
                found[int(rank.removeprefix(b"RANK="))] = int(path.name)
        return found

    def end(self) -> tuple[str, float]:
        """What was said, and the seconds until the end."""
        started = time.monotonic()
        error = self.process.communicate(timeout=120)[1]
        return error, time.monotonic() - started

    def hit(self, rank: int, number: signal.Signals, cause: str) -> None:
        """Send a signal to one process, once there is a checkpoint: it ends the run in time, and is named."""
        self.wait_for_checkpoint()
        os.kill(self.stages()[rank], number)
        error, seconds = self.end()
        assert seconds < LIMIT_SECONDS
        self.assert_failed(error, cause)

    def assert_failed(self, error: str, cause: str) -> None:
        assert self.process.returncode == 1, error
        status = json.loads((self.folder / "status.json").read_text())
        assert status["state"] == "failed"
        assert cause in status["reason"]
        assert cause in error
        assert f"locallearn resume {self.folder}" in error.partition("go on with: ")[2]
        assert "Traceback" not in error
        assert not self.stages()


@pytest.fixture
def running(tmp_path):
    found = []

    def start(*settings: str) -> Running:
        found.append(Running(tmp_path / "runs", *settings))
        return found[-1]

    yield start
    for one in found:
        one.process.kill()
        for pid in one.stages().values() if any(one.out.glob("*")) else ():
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert main([*SETTINGS, f"out={out}"]) == 0
    return next(out.iterdir())


@pytest.mark.slow
@EACH
@pytest.mark.fault("F13", "R5")
def test_a_killed_stage_ends_the_run(stage, wire, running, undisturbed):
    """kill -9 of the first, a middle and the last stage; what is left goes on to the same bits."""
    run = running(*THREE, f"runtime.wire={wire}")
    run.hit(stage, signal.SIGKILL, f"stage {stage} of 3 was ended by SIGKILL, perhaps because memory ran out")
    assert main(["resume", str(run.folder)]) == 0
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run.folder, undisturbed))
    assert all(ours[name].equal(t) for name, t in theirs.items())


@pytest.mark.slow
@WIRES
@pytest.mark.fault("F13", "R5")
def test_a_replica_that_dies_is_named(wire, running):
    run = running("runtime=pipeline", "runtime.stages=2", "runtime.replicas=2", f"runtime.wire={wire}")
    run.hit(3, signal.SIGKILL, "stage 1 of 2, replica 1 was ended by SIGKILL")


@pytest.mark.slow
@EACH
@pytest.mark.fault("F13", "R5")
def test_a_stage_that_stops_answering_ends_the_run(stage, wire, running):
    run = running(*THREE, f"runtime.wire={wire}")
    run.hit(stage, signal.SIGSTOP, f"stage {stage} has not answered for 20 seconds")


@pytest.mark.slow
@EACH
@pytest.mark.fault("F13")
def test_an_exception_in_one_stage(stage, wire, running, tmp_path):
    folder = tmp_path / "mine" / "strategy"
    folder.mkdir(parents=True)
    (tmp_path / "mine" / "fragile_strategy.py").write_text(STRATEGY)
    (folder / "fragile.yaml").write_text(f"_target_: fragile_strategy.Fragile\nblock: {stage}\n")
    run = running(*THREE, f"runtime.wire={wire}", "strategy=fragile", "--config-dir", str(tmp_path / "mine"))
    error, _ = run.end()
    run.assert_failed(error, f"stage {stage} of 3: the run failed with ZeroDivisionError: a mistake of the user's")
    assert "a mistake of the user's" in (run.folder / f"log-{stage}.txt").read_text()
    assert [path.name for path in (run.folder / "checkpoints").iterdir()] == ["step-00000020"]


@pytest.mark.slow
@pytest.mark.fault("F15", "R5")
def test_stages_end_with_the_process_that_started_them(running):
    run = running()
    run.wait_for_checkpoint()
    assert len(run.stages()) == 3
    run.process.kill()
    until = time.monotonic() + LIMIT_SECONDS
    while run.stages() and time.monotonic() < until:
        time.sleep(0.1)
    assert not run.stages()


@pytest.mark.slow
@pytest.mark.fault("F13", "R5")
def test_torchrun_ends_when_a_process_dies(tmp_path):
    out = tmp_path / "runs"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=3"]
    command = [*torchrun, "-m", "locallearn", *SETTINGS, *THREE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([*command, f"out={out}"], env=environment, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 200
    while not list(out.glob("*/checkpoints/step-*")) and time.monotonic() < until:
        time.sleep(0.05)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    killed = time.monotonic()
    started.communicate(timeout=120)
    assert time.monotonic() - killed < LIMIT_SECONDS
    assert started.returncode == 1
    assert json.loads((next(out.iterdir()) / "status.json").read_text())["state"] in ("failed", "interrupted")


ALONE = """
import sys
from locallearn.runtime import world
world.START_SECONDS = 5.0
from locallearn.cli.main import entry
entry()
"""


@pytest.mark.slow
@pytest.mark.fault("F14")
@pytest.mark.parametrize("rank", ["0", "1"])
def test_a_stage_that_never_comes(rank, tmp_path):
    """One process of two, with five seconds instead of five minutes to meet the other."""
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29317", "WORLD_SIZE": "2", "RANK": rank}
    words = [*SETTINGS, "runtime=pipeline", "runtime.stages=2", f"out={tmp_path / 'runs'}"]
    command = [sys.executable, "-c", ALONE, *words]
    done = subprocess.run(command, env={**os.environ, **meeting}, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert "locallearn: the stages did not meet within 5 seconds" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.fault("F14")
def test_two_pipelines_at_once(undisturbed, tmp_path):
    out = tmp_path / "runs"
    words = [*SETTINGS, "runtime=pipeline", "runtime.stages=2", f"out={out}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen([sys.executable, "-m", "locallearn", *words], env=environment) for _ in range(2)]
    assert [process.wait(250) for process in both] == [0, 0]
    theirs = load_file(undisturbed / "model.safetensors")
    for folder in out.iterdir():
        ours = load_file(folder / "model.safetensors")
        assert all(ours[name].equal(t) for name, t in theirs.items())
    assert len(list(out.iterdir())) == 2


@pytest.mark.slow
@pytest.mark.fault("F15", "F32")
def test_a_run_belongs_to_its_stages_until_they_have_ended(running, capsys):
    """The process that started them is killed while one of them hangs: nobody else may write there meanwhile."""
    run = running()
    run.wait_for_checkpoint()
    lowest = run.stages()[0]
    os.kill(lowest, signal.SIGSTOP)
    run.process.kill()
    run.process.wait()
    assert main(["resume", str(run.folder)]) == 2
    assert "is being written by process" in capsys.readouterr().err
    os.kill(lowest, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.fault("F12")
def test_a_signal_before_a_stage_can_listen_is_no_failure(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert launch(command, 2, 1, str(tmp_path), lambda: signal.SIGTERM) == 128 + signal.SIGTERM
