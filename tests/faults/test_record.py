"""Recorder, settings, TensorBoard and console under real faults: full disks, raising sinks, broken pipes."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from helpers.commands import SMALL, run
from locallearn.config.record import RecordSettings, TensorBoardSettings, WandbSettings
from locallearn.errors import RunError, UserError
from locallearn.runs import recorder as record_module
from locallearn.runs.console import Console
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder, open_recorder


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path, "run")


def test_each_record_is_one_strict_line_at_once(folder: RunFolder) -> None:
    recorder = Recorder(folder)
    recorder.log({"step": 1, "train/loss": 0.5, "note": "é\n"})
    recorder.log({"step": 2, "train/loss": float("nan")})
    lines = folder.metrics_path.read_text().splitlines()  # before close
    assert [json.loads(line, parse_constant=pytest.fail) for line in lines] == [
        {"step": 1, "train/loss": 0.5, "note": "é\n"},
        {"step": 2, "train/loss": None},
    ]
    recorder.close("done", {})
    recorder.close("done", {})


def test_scalars_of_other_libraries_are_numbers(folder: RunFolder) -> None:
    import numpy as np
    import torch

    Recorder(folder).log({"step": np.int64(3), "a": np.float32(0.5), "b": torch.tensor(0.25)})
    assert folder.read_metrics() == [{"step": 3, "a": 0.5, "b": 0.25}]


@pytest.mark.fault("F1")
def test_a_torn_last_line_is_cut_off_at_open(folder: RunFolder) -> None:
    folder.metrics_path.write_text('{"step": 1}\n' + '{"a": "' + "x" * 200_000)
    Recorder(folder).log({"step": 2})
    assert folder.read_metrics() == [{"step": 1}, {"step": 2}]


FULL_DISK = """
import sys
from pathlib import Path
from locallearn.errors import RunError
from locallearn.runs.recorder import Recorder
from locallearn.runs.folder import RunFolder
import resource, signal
recorder = Recorder(RunFolder(Path(sys.argv[1])))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    for step in range(1000):
        recorder.log({"step": step, "train/loss": 0.1})
except RunError as error:
    print(error)
"""


@pytest.mark.fault("F10", "R8")
def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(folder: RunFolder) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(folder.path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(folder.metrics_path) in done.stdout
    assert "File too large" in done.stdout
    assert done.stdout.count("\n") == 1
    content = folder.metrics_path.read_bytes()
    assert content.endswith(b"\n")
    assert len(content) > 900
    assert [r["step"] for r in folder.read_metrics()] == list(range(content.count(b"\n")))


@pytest.mark.fault("F10", "R8")
def test_no_space_left_is_a_run_error(folder: RunFolder) -> None:
    recorder = Recorder(folder)
    full = os.open("/dev/full", os.O_RDWR)
    os.dup2(full, recorder._file)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="No space left"):
        recorder.log({"step": 1})


class BadSink:
    name = "Bad"

    def __init__(self) -> None:
        self.calls = 0

    def log(self, record: Mapping[str, Any]) -> None:
        self.calls += 1
        raise RuntimeError("server\nsaid no")

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        raise KeyError("x")


class GoodSink(BadSink):
    name = "Good"

    def __init__(self) -> None:
        self.got: list[Any] = []

    def log(self, record: Mapping[str, Any]) -> None:
        self.got.append(record)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self.got.append((status, summary))


@pytest.mark.fault("F21", "R9")
def test_a_raising_sink_warns_once_and_is_then_left_alone(
    folder: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, good = BadSink(), GoodSink()
    recorder = Recorder(folder, [bad, good])
    for step in range(20):
        recorder.log({"step": step})
    recorder.close("done", {"test/accuracy": 0.9})
    assert len(folder.read_metrics()) == 20
    assert bad.calls == record_module.SINK_FAILURES
    assert good.got == [{"step": step} for step in range(20)] + [("done", {"test/accuracy": 0.9})]
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "warning: Bad failed in log: server said no; metrics.jsonl has every record\n"


OWN = """
from dataclasses import dataclass

@dataclass
class Kept:
    file: str
    fail: bool = False

    def start(self, folder, config):
        self.lines = [f"{folder.name} {config['strategy.name']} {config['optim.lr']}"]

    def log(self, record):
        if self.fail:
            raise OSError("no such table")
        self.lines.append(str(record["step"]))

    def close(self, status, summary):
        with open(self.file, "a") as file:
            print(*self.lines, status, summary.get("step"), file=file)

class Deaf:
    log = None
"""


@pytest.fixture
def own_conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "own_conf/record"
    folder.mkdir(parents=True)
    (folder / "kept.yaml").write_text("kept:\n  _target_: own_sinks.Kept\n  file: kept.txt\n")
    (folder / "deaf.yaml").write_text("deaf:\n  _target_: own_sinks.Deaf\n")
    (folder / "bare.yaml").write_text("_target_: own_sinks.Kept\nfile: kept.txt\n")
    (folder.parent / "own_sinks.py").write_text(OWN)
    yield folder.parent
    sys.path.remove(str(folder.parent))
    sys.modules.pop("own_sinks", None)


@pytest.mark.slow
def test_a_sink_of_the_users_own_beside_another(own_conf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--config-dir", str(own_conf), "strategy=dgl", *SMALL, "epochs=2", "out=runs"]
    code, _, err = run(*words, "record=[tensorboard,kept]", capsys=capsys)
    assert code == 0, err
    (made,) = Path("runs").glob("*dgl*")
    steps = [str(record["step"]) for record in RunFolder.open(made).read_metrics()]
    assert Path("kept.txt").read_text().split() == [made.name, "dgl", "0.002", *steps, "done", steps[-1]]
    assert list(made.glob("tensorboard/*"))
    code, _, err = run(*words, "record=kept", "+record.kept.fail=true", "--dry-run", capsys=capsys)
    assert (code, err, len(list(Path("runs").glob("*dgl*")))) == (0, "", 1)
    code, _, err = run(*words, "record=kept", "+record.kept.fail=true", capsys=capsys)
    assert (code, err) == (0, "warning: kept failed in log: no such table; metrics.jsonl has every record\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["record=deaf"], "record.deaf._target_=own_sinks.Deaf: must be a class with log(record) and close(status, "),
        (["record=bare"], "record._target_ belongs below a name"),
        (["record=kept", "record.kept.file=[1]"], "record.kept.file=[1]: must be a text"),
        (["record=kept", "record.kept.fil=x"], "did you mean 'record.kept.file'"),
    ],
)
def test_mistakes_in_a_sink_of_ones_own(own_conf, words, sentence, capsys) -> None:
    code, _, err = run("--config-dir", str(own_conf), *SMALL, *words, "out=runs", capsys=capsys)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_sink_cannot_change_what_the_next_one_gets(folder: RunFolder) -> None:
    class Thief(GoodSink):
        name = "Thief"

        def log(self, record: Any) -> None:
            record.clear()

    good = GoodSink()
    Recorder(folder, [Thief(), good]).log({"step": 1})
    assert good.got == [{"step": 1}]


def test_settings_from_the_shipped_yaml() -> None:
    from omegaconf import OmegaConf

    conf = Path(__file__).parents[2] / "conf" / "record"
    parsed = {}
    for path in sorted(conf.glob("*.yaml")):
        assert path.read_text().startswith("# "), path
        parsed[path.stem] = RecordSettings.parse(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]
    assert parsed == {
        "jsonl": RecordSettings(),
        "wandb": RecordSettings(wandb=WandbSettings()),
        "tensorboard": RecordSettings(tensorboard=TensorBoardSettings()),
    }


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"wnadb": None}, "unknown key record.wnadb: did you mean 'wandb'"),
        ({"wandb": {"projct": "x"}}, "unknown key record.wandb.projct: did you mean 'project'"),
        ({"wandb": {"mode": "ofline"}}, "record.wandb.mode=ofline: did you mean 'offline'"),
        ({"wandb": {"mode": False}}, "record.wandb.mode=false: must be auto, online, offline or disabled"),
        ({"wandb": {"group": 3}}, "record.wandb.group=3: must be a text that is not empty, or null"),
        ({"wandb": {"tags": "a,b"}}, "record.wandb.tags=a,b: must be a list of texts"),
        ({"wandb": True}, "record.wandb=true: must be a mapping or null"),
        ({"tensorboard": {"dir": "x"}}, "unknown key record.tensorboard.dir"),
    ],
)
def test_mistakes_in_settings_are_sentences(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        RecordSettings.parse(settings)
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_tensorboard_gets_the_numbers(folder: RunFolder) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = open_recorder(folder, RecordSettings(tensorboard=TensorBoardSettings()), config={}, name="x")
    for step in (10, 20):
        recorder.log({"step": step, "block/00/loss": step / 10, "note": "text"})
    recorder.close("done", {})
    events = EventAccumulator(str(folder.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("block/00/loss")] == [(10, 1.0), (20, 2.0)]
    assert events.Tags()["scalars"] == ["block/00/loss"]


@pytest.mark.parametrize("name", ["wandb", "tensorboard"])
@pytest.mark.fault("F30", "F21")
def test_an_absent_package_is_one_sentence_before_anything_is_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match=f"record={name}: {name} is not installed; pip install"):
        RecordSettings.parse({name: {}})


def test_recording_does_not_import_torch() -> None:
    code = "import sys, locallearn.runs.recorder, locallearn.runs.wandb_sink, locallearn.runs.wandb_process"
    code += "\nprint([m for m in ('torch', 'wandb', 'hydra', 'tensorboard', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


EPOCH = {
    "epoch": 3,
    "step": 30,
    "train/loss": 0.4123,
    "train/accuracy": 0.873,
    "validation/accuracy": 0.91,
    "test/accuracy": float("nan"),
    "block/00/accuracy": 0.1,
    "block/00/test_accuracy": 0.71,
    "block/01/test_accuracy": None,
    "images_per_second": 210.4,
}
SHOW = f"""
import sys, time
from locallearn.runs.console import Console, warn
nan = float("nan")
console = Console()
console.start(
    "dgl [bold]vgg16[/] \\x1b[31m", 10, 10, first_step=20, last_step=40, so_far=lambda: "loss 0.500  acc 0.250"
)
for step in range(10):
    console.advance(32); time.sleep(0.06)
console.epoch({EPOCH!r})
warn("careful")
console.final_table({{"test/accuracy": 0.9, "peak_memory_bytes": 2**21, "block/01/test_accuracy": 0.8}}, blocks=2)
console.finish("/tmp/" + "long/" * 60 + "run")
print("alive", file=sys.stderr)
"""


def show(and_then: str = "", **kwargs: Any) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", SHOW + and_then], stderr=subprocess.PIPE, timeout=60, check=False, **kwargs
    )


@pytest.mark.fault("F28")
def test_without_a_terminal_it_is_plain_lines() -> None:
    done = show(stdout=subprocess.PIPE, env={**os.environ, "COLUMNS": "0"})
    assert (done.returncode, done.stderr) == (0, b"warning: careful\nalive\n")
    lines = done.stdout.decode().splitlines()
    assert lines[0] == "dgl [bold]vgg16[/] ?[31m"
    assert lines[1].startswith(
        "epoch  3/10  train 0.412 / 0.873  validation 0.910  test nan  block 0.710 -  210 images/s  0:0"
    )
    assert [line.split("  ")[0] for line in lines if "accuracy" in line] == [
        "test accuracy",
        "test accuracy at block 1",
    ]
    assert any(line.startswith("peak memory (MiB)") and line.endswith("2.0") for line in lines)
    assert lines[-1] == "/tmp/" + "long/" * 60 + "run"
    assert all(c.isprintable() for line in lines for c in line)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "fits"),
    [(None, 5), ("0", 5), ("120", 6), ("80", 5), ("40", 3), ("10", 1)],
)
@pytest.mark.fault("F28")
def test_on_a_terminal_there_is_a_bar(columns: str | None, fits: int) -> None:
    """As many facts as fit beside it into one line, the most important first."""
    master, slave = pty.openpty()
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"} | {"TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW],
        stdout=slave,
        stderr=subprocess.PIPE,
        env=environment | ({"COLUMNS": columns} if columns else {}),
    )
    os.close(slave)
    seen = b""
    try:
        while chunk := os.read(master, 4096):
            seen += chunk
    except OSError:  # Linux answers EIO when the other side is gone
        pass
    os.close(master)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"warning: careful\nalive\n")
    facts = [b" left", b"step 2", b"loss 0.500  acc 0.250", b"epoch 3/10", b" images/s"]
    drawn = seen.partition(b"epoch  3/10")[0]  # what comes after is the line of the epoch
    assert b"%" in drawn
    assert [fact in drawn for fact in facts] == [k < fits - 1 for k in range(5)]
    assert re.search(rb"step 2[1-9]/40", drawn) or fits < 3
    assert b"dgl [bold]vgg16[/] ?[31m" in seen
    assert b"\x1b[?25h" in seen  # the cursor is given back
    assert seen.endswith(b"/tmp/" + b"long/" * 60 + b"run\r\n")


@pytest.mark.slow
@pytest.mark.fault("F28")
def test_a_broken_or_full_or_closed_stdout_does_not_stop_training() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open("/dev/full", "wb") as full:
        for stdout in (writer, full):
            done = show(and_then="print('a library prints')", stdout=stdout)
            assert (done.returncode, done.stderr) == (0, b"warning: careful\nalive\n")
    os.close(writer)
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -c "$0" >&-', SHOW], stderr=subprocess.PIPE, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"warning: careful\nalive\n")


@pytest.mark.fault("F28")
def test_a_terminal_that_goes_away_does_not_stop_training() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", SHOW], stdout=slave, stderr=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}
    )
    os.close(slave)
    os.read(master, 1)
    os.close(master)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, b"warning: careful\nalive\n")


@pytest.mark.fault("F27")
def test_other_encodings_get_escapes() -> None:
    code = "from locallearn.runs.console import Console; Console().line('é'); Console().line('b')"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment, check=True)
    assert done.stdout == b"\\xe9\nb\n"


def test_the_line_of_an_epoch_goes_on_below_its_numbers(monkeypatch, capsys):
    """On a narrow terminal it is broken between two numbers, never between a number and its name."""
    console = Console()
    console.start("a run", epochs=5, steps_per_epoch=3)
    monkeypatch.setattr("locallearn.runs.console._is_terminal", lambda: True)
    monkeypatch.setattr("locallearn.runs.console.columns", lambda: 60)
    blocks = {f"block/{k:02d}/test_accuracy": 0.9 for k in range(4)}
    numbers = {"train/loss": 0.5, "train/accuracy": 0.8, "validation/accuracy": 0.7, "test/accuracy": 0.6}
    console.epoch({"epoch": 1, **numbers, **blocks, "images_per_second": 123.4})
    _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 1/5  train 0.500 / 0.800  validation 0.700  test 0.600",
        "           block 0.900 0.900 0.900 0.900  123 images/s",
        "           ? left",
    ]


def test_quiet_is_silent(capfd: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.start("x", 1, 1)
    console.advance(3)
    console.epoch(EPOCH)
    console.table("t", ("a", "b"), [("1", 2)])
    console.final_table({}, 1)
    console.finish("/x")
    console.stop()
    assert capfd.readouterr() == ("", "")


def test_advance_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time, so that a busy machine does not matter."""
    monkeypatch.setattr("locallearn.runs.console.REFRESH_SECONDS", 1e9)
    console = Console(quiet=True)
    console._bar = object()  # type: ignore[assignment]
    started = time.process_time()
    for _ in range(10_000):
        console.advance(32)
    assert (time.process_time() - started) / 10_000 < 20e-6
