"""The run folder under real faults: two writers, torn lines, a full or read-only disk, odd names."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from locallearn.errors import RunError, UserError
from locallearn.runs import folder as run_folder
from locallearn.runs.files import strict_json
from locallearn.runs.folder import RunFolder, safe_name

LOCKER = """
import sys, time
from pathlib import Path
from locallearn.runs.folder import RunFolder
folder = RunFolder(Path(sys.argv[1])); folder.lock(); print("locked", flush=True); time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "2026-11-20_23-40-12_dgl-vgg16-digits-s0")


@pytest.mark.fault("F32")
def test_simultaneous_starts_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: RunFolder.create(tmp_path, "same"), range(16)))
    assert sorted(f.name for f in made) == sorted(["same", *(f"same-{n}" for n in range(2, 17))])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a b=c,d", "a-b-c-d"),
        ("../../etc", "etc"),
        ("/", "run"),
        (".hidden", "hidden"),
        ("é" * 3, "run"),
        ("x" * 300, "x" * 100),
    ],
)
@pytest.mark.fault("F27")
def test_names_cannot_climb_or_hide(tmp_path: Path, name: str, expected: str) -> None:
    assert safe_name(name) == expected
    assert RunFolder.create(tmp_path / "runs", name).path.parent == tmp_path / "runs"


@pytest.mark.fault("F27")
def test_a_long_taken_name_stays_within_the_limit(tmp_path: Path) -> None:
    assert [len(RunFolder.create(tmp_path, "x" * 300).name) for _ in range(3)] == [100, 97, 97]


@pytest.mark.fault("F11")
def test_create_says_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="it is a file"):
        RunFolder.create(tmp_path / "file", "run")
    with pytest.raises(UserError, match="cannot make a run folder in /proc/here"):
        RunFolder.create(Path("/proc/here"), "run")


def test_open_finds_only_run_folders(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"not a run folder: it has no config\.yaml"):
        RunFolder.open(folder.path)
    folder.write_text("config.yaml", "a: 1\n")
    folder.status("running", epoch=0)
    assert RunFolder.open(folder.path).path == folder.path
    with pytest.raises(UserError, match="did you mean '2026-11-20_23-40-12_dgl-vgg16-digits-s0'"):
        RunFolder.open(folder.path.with_name("2026-11-20_23-40-12_dgl-vgg16-digits-s1"))
    with pytest.raises(UserError, match="there is no run folder"):
        RunFolder.open(folder.path / "no" / "such")


@pytest.mark.fault("F32")
def test_a_second_process_is_refused_by_pid_and_host_until_the_first_dies(folder: RunFolder) -> None:
    folder.release()
    first = subprocess.Popen([sys.executable, "-c", LOCKER, str(folder.path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    try:
        assert first.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match=f"process {first.pid} on host {os.uname().nodename}"):
            folder.lock()
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    folder.lock()  # a killed process leaves no lock behind


@pytest.mark.fault("F32")
def test_the_same_process_is_refused_too(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=f"process {os.getpid()}"):
        RunFolder(folder.path).lock()


def test_status_holds_state_time_process_and_facts(folder: RunFolder) -> None:
    folder.status("failed", epoch=3, step=120, reason="loss is nan")
    status = folder.read_json("status.json")
    assert (status["state"], status["epoch"], status["reason"]) == ("failed", 3, "loss is nan")
    assert status["pid"] == os.getpid()
    assert status["time"].endswith("+00:00")
    with pytest.raises(AssertionError):
        folder.status("finnished")


def test_json_is_strict() -> None:
    text = strict_json({"a": float("nan"), "b": [float("inf"), 1], 3: Path("x"), "t": True})
    assert json.loads(text) == {"a": None, "b": [None, 1], "3": "x", "t": True}


@pytest.mark.fault("F10", "R8")
def test_a_failed_write_keeps_the_old_content_and_no_leftover(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_json("summary.json", {"a": 1})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run_folder.os, "fsync", full)
    with pytest.raises(RunError, match=r"summary\.json: No space left"):
        folder.write_json("summary.json", {"a": 2})
    assert folder.read_json("summary.json") == {"a": 1}
    assert [p.name for p in folder.path.iterdir() if "tmp" in p.name] == []


def test_damaged_json_is_one_sentence(folder: RunFolder) -> None:
    with pytest.raises(UserError, match=r"has no manifest\.json"):
        folder.read_json("manifest.json")
    folder.write_text("manifest.json", '{"a":')
    with pytest.raises(UserError, match=r"cannot read .*manifest\.json"):
        folder.read_json("manifest.json")


@pytest.mark.fault("F1")
def test_truncate_drops_later_steps_and_a_torn_line(folder: RunFolder) -> None:
    lines = [json.dumps({"step": step, "train/loss": step / 7}) + "\n" for step in range(10)]
    folder.metrics_path.write_text("".join(lines) + '{"step": 3, "tr')
    assert [r["step"] for r in folder.read_metrics()] == list(range(10))
    assert folder.truncate_metrics(6) == 3
    assert folder.metrics_path.read_text() == "".join(lines[:7])
    assert folder.truncate_metrics(-1) == 7
    assert folder.read_metrics() == []


@pytest.mark.fault("F3")
def test_no_metrics_is_none_and_damage_in_the_middle_is_named(folder: RunFolder) -> None:
    assert folder.read_metrics() == []
    assert folder.truncate_metrics(5) == 0
    assert not folder.metrics_path.exists()
    folder.metrics_path.write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(UserError, match="damaged in line 2"):
        folder.read_metrics()
