"""Runs with a full disk, a folder that is read-only or deleted, a clock that runs backwards, too little memory."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.runs import Run, assert_same_run, wait_for_steps, without_privilege
from locallearn.runs import checkpoint

pytestmark = pytest.mark.xdist_group("disk")  # one worker makes the runs that the tests share
SETTINGS = ["model=mlp", "model.width=64", "model.depth=4", "model.dropout=0.2", "auxiliary=linear", "blocks=4"]
SETTINGS += ["epochs=3", "batch_size=32", "checkpoint.every=5it", "threads=1", "data.crop=2", "device=cpu"]
CAPBSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2
MEBIBYTE = 1 << 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    assert Run(*SETTINGS, f"out={out}").end()[0] == 0
    return next(out.iterdir())


@pytest.fixture
def disk(tmp_path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("only root can mount a small file system")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def grow(disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)


def state(run: Path) -> str:
    return json.loads((run / "status.json").read_text())["state"]


def assert_sound(run: Path, least: int = 1) -> None:
    """Every checkpoint is sound."""
    damaged: list[str] = []
    assert len(list(checkpoint.sound(run / "checkpoints", damaged.append))) >= least
    assert not damaged


def assert_intact(run: Path, least: int = 1) -> None:
    """Every checkpoint is sound, and nothing half-written lies about."""
    assert_sound(run, least)
    assert not [path for path in run.rglob("*") if ".tmp-" in path.name]


@pytest.mark.slow
@pytest.mark.fault("F10", "R8")
def test_a_disk_that_fills_up(disk, undisturbed, record_property):
    """Checkpoints that no longer fit cost a warning each, the last one the run; with more room it goes on."""
    code, error = Run(*SETTINGS, "checkpoint.keep=1000", f"out={disk}").end()
    (run,) = disk.iterdir()
    warnings = [line for line in error.splitlines() if line.startswith("warning: checkpoint")]
    assert len(warnings) > 5
    assert all("bytes needed" in line and "earlier checkpoints are intact" in line for line in warnings)
    assert code == 1
    assert "could not be written" in error.splitlines()[-1]
    assert_intact(run)
    grow(disk)
    assert Run("resume", str(run)).end()[0] == 0
    assert_same_run(undisturbed, run)
    record_property("injected", len(warnings) + 1)
    record_property("lost", "the steps after the last checkpoint that fitted, done again to the same bits")


@pytest.mark.slow
@pytest.mark.fault("F10", "R8")
def test_a_disk_that_is_full_from_the_start(disk, tmp_path):
    (disk / "full").write_bytes(bytes(2 * MEBIBYTE - 8192))
    code, error = Run(*SETTINGS, f"out={disk}").end()
    assert code in (1, 2)
    assert "No space left on device" in error or "no space" in error
    assert "locallearn: " in error.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("kilobytes", [1, 2, 20, 60, 200])
@pytest.mark.fault("F10", "R8")
def test_files_that_may_not_grow(kilobytes, undisturbed, tmp_path):
    """A quota, by the limit of the system on the size of a file; without it the run goes on, if it had begun."""
    limit = kilobytes * 1024
    code, error = Run(*SETTINGS, f"out={tmp_path / 'runs'}", before=lambda: _limit(resource.RLIMIT_FSIZE, limit)).end()
    assert code == 1
    assert "File too large" in error or "could not be written" in error
    assert error.splitlines()[-1].startswith("locallearn: ")
    (run,) = (tmp_path / "runs").iterdir()
    assert_intact(run, least=0)
    if not (run / "status.json").exists():
        return
    assert Run("resume", str(run)).end()[0] == 0
    assert_same_run(undisturbed, run)


def _limit(kind: int, size: int) -> None:
    resource.setrlimit(kind, (size, size))


@pytest.mark.slow
@pytest.mark.fault("F11")
def test_a_folder_that_becomes_read_only(undisturbed, tmp_path, record_property):
    process = Run(*SETTINGS, f"out={tmp_path / 'runs'}", before=without_privilege)
    run = wait_for_steps(tmp_path, 5)
    for folder in (run, run / "checkpoints"):
        folder.chmod(0o555)
    code, error = process.end()
    for folder in (run, run / "checkpoints"):
        folder.chmod(0o755)
    assert code == 1
    warned = error.count("warning: checkpoint")
    assert warned
    assert "Permission denied" in error.splitlines()[-1]
    assert "could not be written" in error.splitlines()[-1]
    assert_sound(run)
    assert Run("resume", str(run)).end()[0] == 0
    assert_same_run(undisturbed, run)
    assert_intact(run)  # what was half-written when the folder closed could not be removed then, but is now
    record_property("injected", warned + 1)
    record_property("lost", "the steps after the last checkpoint, done again to the same bits")


@pytest.mark.slow
@pytest.mark.fault("F11")
def test_a_folder_that_cannot_be_written_at_the_start(tmp_path):
    tmp_path.chmod(0o555)
    code, error = Run(*SETTINGS, f"out={tmp_path / 'runs'}", before=without_privilege).end()
    tmp_path.chmod(0o755)
    assert code == 2
    assert error == (
        f"locallearn: cannot make a run folder in {tmp_path / 'runs'}: Permission denied; choose a folder you can "
        "write\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("words", [[], ["runtime=pipeline", "runtime.stages=2"]])
@pytest.mark.fault("F11")
def test_a_folder_that_is_deleted_is_made_again(words, undisturbed, tmp_path, record_property):
    process = Run(*SETTINGS, *words, f"out={tmp_path / 'runs'}")
    run = wait_for_steps(tmp_path, 50)
    run.rename(tmp_path / "gone")  # in one moment; a run between two of its files would make a part of it anew
    code, error = process.end()
    assert code == 0, error
    assert error.count(f"{run} was deleted while the run wrote it, and was made again") == 1
    assert state(run) == "done"
    assert_same_run(undisturbed, run)
    assert_intact(run, least=2)
    assert Run("evaluate", str(run)).end()[0] == 0
    record_property("lost", "of a deleted folder, the earlier checkpoints")


CLOCK = """
import datetime, sys, time
start, calls = time.time(), 0
def back(*_):
    global calls
    calls += 1
    return start - 3600 * calls
class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None): return cls.fromtimestamp(back(), tz)
strftime, localtime = time.strftime, time.localtime
time.time = back
time.localtime = lambda seconds=None: localtime(back() if seconds is None else seconds)
time.strftime = lambda form, moment=None: strftime(form, time.localtime() if moment is None else moment)
datetime.datetime = Clock
from locallearn.cli.main import entry
entry()
"""


@pytest.mark.slow
@pytest.mark.fault("F27")
def test_a_clock_that_jumps_back_an_hour_whenever_it_is_read(undisturbed, tmp_path, record_property):
    code, error = Run(*SETTINGS, f"out={tmp_path}", script=CLOCK).end()
    assert code == 0, error
    (run,) = tmp_path.iterdir()
    assert_same_run(undisturbed, run)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds = [record["seconds"] for record in records]
    assert 0 < seconds[0] < seconds[-1] < 200
    assert seconds == sorted(seconds)


PLACES = {"TZ": "Pacific/Kiritimati", "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}
NAMES = ["mit Leerzeichen", "a=b,c[1]{2}", "größe-числа-数", "x" * 255, "'quotes\"", "$HOME ${x}"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.fault("F5", "F27")
def test_odd_places_names_and_time_zones(name, undisturbed, tmp_path):
    """A run in such a folder, moved into another such one while it was stopped."""
    first, second = tmp_path / name, tmp_path / name[::-1]
    first.mkdir()
    here = Path.cwd()
    os.chdir(first)
    try:
        process = Run(*SETTINGS, **PLACES)
    finally:
        os.chdir(here)
    run = wait_for_steps(first, 20)
    process.process.kill()
    process.process.communicate()
    second.mkdir(exist_ok=True)
    moved = Path(shutil.move(run, second / "moved"))
    assert Run("resume", str(moved), **PLACES).end()[0] == 0
    assert_same_run(undisturbed, moved)


MEMORY = """
import resource, sys, tempfile
from locallearn.cli import main as cli
words = sys.argv[1:]
with tempfile.TemporaryDirectory() as folder:  # what is loaded on the way is not counted
    assert cli.main([*words, "model.width=8", f"out={folder}", "epochs=1"]) == 0
sys.argv[1:] = words
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (size, size))
cli.entry()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [["model.width=30000"], ["model.width=1500", "model.depth=8", "batch_size=1400", "blocks=2"]]
)
@pytest.mark.fault("F31")
def test_memory_that_runs_out(words, tmp_path):
    """While the model is built, and in the first step."""
    code, error = Run(*SETTINGS, *words, f"out={tmp_path}", script=MEMORY).end()
    if code == 2:
        assert error.startswith("locallearn: data and model do not fit into memory; choose smaller ones (")
        assert not list(tmp_path.iterdir())
    else:
        assert "memory ran out (the last request was for " in error.splitlines()[-1]
        assert "lower batch_size, or double micro_batches" in error
    assert code == (2 if "model.width=30000" in words else 1)
