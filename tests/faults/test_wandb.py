"""W&B through real faults: a local server that refuses, is slow, fails or vanishes; no key; a killed process.

Whatever happens, `metrics.jsonl` is complete, `log` returns at once and `close` within its limit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.marks import slow
from helpers.wandb import KEY, Server
from locallearn.config.record import RecordSettings, WandbSettings
from locallearn.config.registry import flat
from locallearn.figures import panels, save
from locallearn.runs import wandb_sink
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder, open_recorder

STEPS = 200
SLOW = [*map(slow, ("500", "slow"))]


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No key, no settings and no server of the person who runs the tests; short time limits."""
    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_sink, "INIT_SECONDS", 3.0)
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 10.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "dgl-digits-s0")


def recorder_for(folder: RunFolder, mode: str = "auto", **settings: Any) -> Recorder:
    config = {"seed": 0, "strategy": {"name": "dgl", "head": {"depth": 2}}, "cut": [1, 2]}
    return open_recorder(
        folder,
        RecordSettings(wandb=WandbSettings(mode=mode, **settings)),
        config=config,
        name=folder.name,
        group="sweep",
        job_type="dgl",
        tags=["t1"],
    )


def train(recorder: Recorder, steps: range = range(1, STEPS + 1), pause: float = 0.0) -> None:
    """Log as a run does; no call may wait for W&B, whose time limits here are 3 seconds and more each."""
    took = 0.0
    for step in steps:
        started = time.perf_counter()
        recorder.log({"step": step, "epoch": step // 10, "train/loss": 1 / step, "block/00/loss": float(step)})
        took += time.perf_counter() - started
        time.sleep(pause)
    assert took < 2.5


def close(recorder: Recorder, status: str = "done") -> float:
    started = time.monotonic()
    recorder.close(status, {"test/accuracy": 0.875})
    seconds = time.monotonic() - started
    assert seconds < wandb_sink.FINISH_SECONDS + 10
    return seconds


def assert_complete(folder: RunFolder, steps: int = STEPS) -> None:
    assert [record["step"] for record in folder.read_metrics()] == list(range(1, steps + 1))


def inspect(path: str, *options: str) -> Any:
    """What W&B's own viewer finds in a local run."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, path]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def wait_until(condition: Callable[[], Any], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


def mode_of(folder: RunFolder) -> str | None:
    return folder.read_json("wandb.json").get("mode")


def child_pid(recorder: Recorder) -> int:
    wait_until(lambda: recorder._sinks[0]._child)  # type: ignore[attr-defined]
    return int(recorder._sinks[0]._child._process.pid)  # type: ignore[attr-defined]


@pytest.mark.fault("F21", "R9")
@pytest.mark.slow
def test_without_a_key_it_is_offline_and_wandb_reads_it_back(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = recorder_for(folder, tags=("t0",))
    recorder.log({"step": 0, "train/loss": float("nan"), "note": "é"})
    train(recorder)
    assert close(recorder) < 10
    out, err = capsys.readouterr()
    path = folder.read_json("wandb.json")["path"]
    assert out == ""
    assert err.count("\n") == 1
    assert f"wandb leet {path}" in err
    assert f"wandb sync {path}" in err
    assert "API key" in err
    assert Path(path).is_relative_to(folder.path)
    run = json.loads(inspect(path, "--summary"))
    assert (run["state"], run["exit_code"], run["step"]) == ("finished", 0, STEPS)
    assert (run["name"], run["project"]) == ("dgl-digits-s0", "locallearn")
    assert run["run_id"] == folder.read_json("wandb.json")["id"]
    assert sorted(run["tags"]) == ["t0", "t1"]
    assert run["summary"]["test/accuracy"] == 0.875
    assert run["config"]["strategy.head.depth"] == 2
    assert run["config"]["cut"] == [1, 2]
    records = [json.loads(line) for line in inspect(path).splitlines()]
    history = [r for r in records if r["type"] == "history"]
    assert len(history) == STEPS + 1
    assert '"block/*"' in inspect(path)


@pytest.mark.slow
def test_the_table_and_the_pictures_of_a_probe(folder: RunFolder, tmp_path: Path) -> None:
    figure, axes = panels()
    axes[0].plot([0, 1])
    picture = save(figure, tmp_path / "plane")[1]
    rows = [{"epoch": 0, "layer": 0, "snr": 1.5, "estimator": "kde"}, {"epoch": 1, "layer": 0, "snr": None}]
    recorder = recorder_for(folder)
    train(recorder, range(1, 3))
    recorder.show("information_plane", rows, [picture])
    close(recorder)
    path = folder.read_json("wandb.json")["path"]
    summary = json.loads(inspect(path, "--summary"))["summary"]
    table = Path(path, "files", summary["probe/information_plane/rows"]["path"])
    content = json.loads(table.read_text())
    assert content["columns"] == ["epoch", "layer", "snr", "estimator"]
    assert content["data"][0] == [0, 0, 1.5, "kde"]
    image = Path(path, "files", summary["probe/information_plane/plane"]["path"])
    assert image.read_bytes() == picture.read_bytes()


@pytest.mark.slow
def test_names_notes_and_the_model_as_an_artifact(folder: RunFolder) -> None:
    (folder.path / "model.safetensors").write_bytes(b"weights")
    found = []
    for artifact in ("model", "none"):
        recorder = recorder_for(folder, "offline", artifact=artifact, name="dgl lr=0.1 s1", notes="a note")
        train(recorder, range(1, 3))
        close(recorder)
        found.append([json.loads(line) for line in inspect(folder.read_json("wandb.json")["path"]).splitlines()])
    (run,) = (record["run"] for record in found[0] if record["type"] == "run")
    assert (run["display_name"], run["notes"]) == ("dgl lr=0.1 s1", "a note")
    (artifact,) = (record["artifact"] for record in found[0] if record["type"] == "artifact")
    assert (artifact["type"], artifact["name"]) == ("model", f"model-{folder.read_json('wandb.json')['id']}")
    assert base64.b64encode(hashlib.md5(b"weights").digest()).decode() in json.dumps(artifact)
    assert "artifact" not in {record["type"] for record in found[1]}


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_a_server_that_takes_no_artifact_costs_a_warning(
    folder: RunFolder, server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.path / "model.safetensors").write_bytes(b"weights")
    recorder = recorder_for(folder, artifact="model")
    train(recorder)
    recorder.close("done", {"test/accuracy": 0.875})
    assert "the model was left out" in capsys.readouterr().err.splitlines()[-1]
    sent = server.bodies(f"/{folder.read_json('wandb.json')['id']}/file_stream")
    assert '"exitcode":0' in sent
    assert '\\"test/accuracy\\":0.875' in sent


@pytest.mark.slow
@pytest.mark.parametrize(("status", "code"), [("failed", 1), slow("interrupted", 255)])
def test_how_the_run_ended_is_told(folder: RunFolder, status: str, code: int) -> None:
    recorder = recorder_for(folder, "offline")
    recorder.log({"step": 1})
    close(recorder, status)
    run = json.loads(inspect(folder.read_json("wandb.json")["path"], "--summary"))
    assert (run["state"], run["exit_code"]) == ("failed", code)


@pytest.mark.slow
@pytest.mark.fault("F21")
def test_offline_opens_no_socket_to_the_server(folder: RunFolder, server: Server) -> None:
    recorder = recorder_for(folder, "offline")
    train(recorder)
    close(recorder)
    assert server.requests == []
    assert mode_of(folder) == "offline"


@pytest.mark.slow
@pytest.mark.fault("R7")
def test_online_with_two_runs_in_one_process(
    tmp_path: Path, server: Server, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET", "do-not-send-me")
    folders = [RunFolder.create(tmp_path / "runs", "same") for _ in range(2)]
    recorders = [recorder_for(f) for f in folders]
    for recorder in recorders:
        train(recorder)
    for recorder in recorders:
        close(recorder)
    stored = [f.read_json("wandb.json") for f in folders]
    assert [s["mode"] for s in stored] == ["online", "online"]
    assert stored[0]["id"] != stored[1]["id"]
    for f, s in zip(folders, stored, strict=True):
        assert_complete(f)
        sent = server.bodies(f"/{s['id']}/file_stream")
        assert '\\"block/00/loss\\":200' in sent
        assert '"exitcode":0' in sent
    everything = str(server.requests)
    assert "do-not-send-me" not in everything
    assert "strategy.head.depth" in everything
    assert '"groupName":"sweep"' in everything
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("note: W&B: http://127.0.0.1") == 2
    assert err.count("\n") == 2


@pytest.mark.parametrize("mode", ["401", *SLOW])
@pytest.mark.fault("F21", "R9")
def test_a_server_that_refuses_fails_or_is_slow_means_offline(
    folder: RunFolder, server: Server, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.mode = mode
    recorder = recorder_for(folder)
    train(recorder)
    close(recorder)
    assert_complete(folder)
    assert mode_of(folder) == "offline"
    assert server.requests
    err = capsys.readouterr().err
    assert err.startswith("note: W&B: ")
    assert "recorded offline" in err
    assert "in use" not in err, "the second try had the first one in its way"
    assert err.count("\n") == 1
    run = json.loads(inspect(folder.read_json("wandb.json")["path"], "--summary"))
    assert (run["state"], run["step"]) == ("finished", STEPS)


@pytest.mark.slow
@pytest.mark.fault("F21", "R9")
def test_a_key_without_a_network_means_offline(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)  # the address of `clean` refuses connections
    recorder = recorder_for(folder, "online")
    train(recorder)
    close(recorder)
    assert_complete(folder)
    assert mode_of(folder) == "offline"


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["gone", *SLOW])
@pytest.mark.fault("F21", "R9")
def test_a_server_that_vanishes_half_way_is_given_up_at_the_limit(
    folder: RunFolder, server: Server, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    recorder = recorder_for(folder)
    train(recorder, range(1, 101))
    wait_until(lambda: mode_of(folder) == "online")
    if mode == "gone":
        server.shutdown()
        server.server_close()
    else:
        server.mode = mode
    train(recorder, range(101, STEPS + 1))
    close(recorder)
    assert_complete(folder)
    err = capsys.readouterr().err
    path = folder.read_json("wandb.json")["path"]
    assert f"wandb sync {path}" in err.splitlines()[-1]
    assert err.count("\n") == 2  # the address at the start, the loss at the end
    assert json.loads(inspect(path, "--summary"))["step"] == STEPS  # nothing is lost: it can be uploaded later


@pytest.mark.slow
@pytest.mark.fault("F21", "R9")
def test_a_process_that_dies_is_one_warning(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    recorder = recorder_for(folder, "offline")
    wait_until(lambda: mode_of(folder))
    os.kill(child_pid(recorder), signal.SIGKILL)
    train(recorder, pause=0.001)
    assert close(recorder) < 5
    assert_complete(folder)
    assert capsys.readouterr().err.count("warning: W&B: ") == 1


@pytest.mark.slow
@pytest.mark.fault("F21", "R9")
def test_a_process_that_hangs_never_blocks_and_is_killed(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(wandb_sink, "FINISH_SECONDS", 2.0)
    recorder = recorder_for(folder, "offline")
    wait_until(lambda: mode_of(folder))
    pid = child_pid(recorder)
    os.kill(pid, signal.SIGSTOP)
    train(recorder, range(1, 5001))  # more than the pipe and the queue hold
    assert 1.5 < close(recorder) < 6
    assert_complete(folder, 5000)
    err = capsys.readouterr().err
    assert "did not end within 2 s" in err
    assert "records are only in" in err
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.slow
@pytest.mark.fault("F21", "R9")
def test_a_process_that_hangs_at_the_start_is_replaced_by_an_offline_one(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "INIT_SECONDS", 15.0)  # the offline one must start within it on a busy machine
    monkeypatch.setattr(wandb_sink, "HANG_SECONDS", 0.0)
    recorder = recorder_for(folder)
    first = child_pid(recorder)
    os.kill(first, signal.SIGSTOP)
    train(recorder)
    wait_until(lambda: mode_of(folder) == "offline")
    assert child_pid(recorder) != first
    close(recorder)
    assert json.loads(inspect(folder.read_json("wandb.json")["path"], "--summary"))["step"] == STEPS


KILLED = """
import os, sys, time
from pathlib import Path
from locallearn.config.record import RecordSettings, WandbSettings
from locallearn.runs.recorder import open_recorder
from locallearn.config.registry import flat
from locallearn.runs.folder import RunFolder
folder = RunFolder.create(Path(sys.argv[1]), "killed")
recorder = open_recorder(folder, RecordSettings(wandb=WandbSettings(mode="offline")), config={}, name="killed")
recorder.log({"step": 1, "train/loss": 0.5})
while "mode" not in folder.read_json("wandb.json"):
    time.sleep(0.05)
worker = os.fork()
if worker == 0:  # it outlives its parent and holds the pipe open
    time.sleep(60)
    os._exit(0)
time.sleep(0.5)
print(folder.path, recorder._sinks[0]._child._process.pid, worker, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.fault("F21", "F1")
def test_a_killed_training_ends_the_run_as_failed(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        path, pid, worker = process.stdout.readline().split()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split()[2])
    run = json.loads(inspect(RunFolder(Path(path)).read_json("wandb.json")["path"], "--summary"))
    assert (run["state"], run["step"]) == ("failed", 1)
    wait_until(lambda: f"--pid {pid}" not in running_commands())  # W&B's service has gone too
    os.kill(int(worker), signal.SIGKILL)


def running_commands() -> str:
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(entry.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # it has just ended
            continue
    return "\n".join(found)


@pytest.mark.slow
def test_a_resumed_run_continues_the_same_id(folder: RunFolder, server: Server) -> None:
    ids = []
    for steps in (range(1, 101), range(101, STEPS + 1)):
        recorder = recorder_for(folder)
        train(recorder, steps)
        close(recorder)
        ids.append(folder.read_json("wandb.json")["id"])
    assert ids[0] == ids[1]
    assert ids[0].startswith("dgl-digits-s0-")
    assert_complete(folder)


def test_disabled_starts_nothing(folder: RunFolder) -> None:
    recorder = recorder_for(folder, "disabled")
    assert recorder._sinks == []
    recorder.close("done", {})
    assert not (folder.path / "wandb.json").exists()


@pytest.mark.slow
def test_auto_follows_wandbs_own_settings(folder: RunFolder, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    recorder = recorder_for(folder)
    close(recorder)
    assert mode_of(folder) == "offline"
    assert server.requests == []


def test_flatten() -> None:
    assert flat({"a": {"b": {"c": 1}, "d": {}}, "e": [1]}) == {"a.b.c": 1, "a.d": {}, "e": [1]}


VARIABLES = {
    "WANDB_PROJECT": "their-project",
    "WANDB_ENTITY": "their-team",
    "WANDB_NAME": "their-name",
    "WANDB_RUN_GROUP": "their-group",
    "WANDB_JOB_TYPE": "their-job",
    "WANDB_TAGS": "their-tag,another-tag",
    "WANDB_NOTES": "their-notes",
    "WANDB_RUN_ID": "their-id",
    "WANDB_MODE": "offline",
    "WANDB_API_KEY": KEY,
}


def written(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_the_environment_holds_where_the_command_line_is_silent(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / "elsewhere"
    place.mkdir()
    for variable, value in {**VARIABLES, "WANDB_DIR": str(place)}.items():
        monkeypatch.setenv(variable, value)
    recorder = recorder_for(folder)
    train(recorder, range(1, 3))
    close(recorder)
    known = folder.read_json("wandb.json")
    assert known["mode"] == "offline"
    assert Path(known["path"]).is_relative_to(place)
    content = written(Path(known["path"]))
    for value in set(VARIABLES.values()) - {"offline", KEY}:
        for part in value.split(","):
            assert part.encode() in content, part
    assert KEY.encode() not in written(tmp_path), "a key of the environment was written to a file"


@pytest.mark.slow
def test_the_command_line_wins_over_the_environment(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, value in {**VARIABLES, "WANDB_MODE": "online"}.items():
        monkeypatch.setenv(variable, value)
    ours = {"project": "our-project", "entity": "our-team", "group": "our-group", "tags": ("our-tag",)}
    ours |= {"name": "our-name", "notes": "our-notes"}
    recorder = recorder_for(folder, mode="offline", **ours)
    train(recorder, range(1, 3))
    close(recorder)
    known = folder.read_json("wandb.json")
    assert known["mode"] == "offline"
    content = written(Path(known["path"]))
    for value in ("our-project", "our-team", "our-group", "our-tag", "our-name", "our-notes"):
        assert value.encode() in content
    for value in ("their-project", "their-team", "their-group", "their-tag", "their-name", "their-notes"):
        assert value.encode() not in content


@pytest.mark.slow
@pytest.mark.parametrize("variable", [("WANDB_DISABLED", "true"), ("WANDB_MODE", "disabled")])
def test_the_environment_can_switch_it_off(folder, monkeypatch, variable):
    monkeypatch.setenv(*variable)
    recorder = recorder_for(folder)
    train(recorder, range(1, 3))
    close(recorder)
    assert mode_of(folder) == "disabled"
    assert_complete(folder, 2)
