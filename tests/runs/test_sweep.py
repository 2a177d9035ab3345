"""Sweeps: what a second start repeats, what one job does to the others, and what is said of all of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
import yaml
from hydra.errors import MissingConfigException
from safetensors.torch import load_file

from helpers.commands import SMALL, obey_signals, run
from locallearn import accelerator
from locallearn.config.compose import compose, explain, multirun
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.runs.folder import RunFolder
from locallearn.runtime.launch import FIRST_DEVICE
from locallearn.studies import runner, sweep
from locallearn.training.environment import peak_memory_bytes, process_settings

pytestmark = pytest.mark.usefixtures("elsewhere")
SETTINGS = [*SMALL, "auxiliary=linear", "epochs=2", "batch_size=256"]
DIVERGES = ["optim.lr=0.01,1e30", "optim.schedule=constant"]


def folders(out: str = "runs") -> list[Path]:
    return sorted(Path(out).glob("[!.]*"))


def state(folder: Path) -> str:
    return json.loads((folder / "status.json").read_text())["state"]


def times(out: str = "runs") -> dict[Path, int]:
    """When each result was written, to the nanosecond."""
    return {path: (path / "status.json").stat().st_mtime_ns for path in folders(out)}


def begun(out: str) -> list[str]:
    """What a sweep says of each job before it begins."""
    return [line for line in out.splitlines() if line.startswith("[")]


def metrics(folder: Path) -> list[dict]:
    """The records, without what no two runs share."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    own = ("seconds", "images_per_second", "peak_memory_bytes")
    return [{key: value for key, value in line.items() if not key.startswith(own)} for line in lines]


def config(*overrides: str) -> dict:
    return compose([*SETTINGS, *overrides])[0]


@pytest.mark.slow
def test_folders_say_what_differs_and_a_second_start_repeats_nothing(capsys):
    command = ["-m", "strategy=backprop,dgl", "seed=0,1", *SETTINGS]
    code, out, _ = run(*command, capsys=capsys)
    assert code == 0
    assert "4 runs: 4 new" in out
    labels = [f"[{k}/4] strategy={s} seed={n}" for k, (s, n) in enumerate(product(("backprop", "dgl"), (0, 1)), 1)]
    assert begun(out) == labels
    names = [path.name.rpartition("_") for path in folders()]
    expected = {f"strategy-{strategy}_seed-{seed}" for strategy in ("backprop", "dgl") for seed in (0, 1)}
    assert {name for name, _, _ in names} == expected
    assert all(len(digits) == 8 for _, _, digits in names)
    assert all(state(path) == "done" for path in folders())
    before = times()
    code, out, _ = run(*command, capsys=capsys)
    assert code == 0
    assert "4 runs: 4 done before" in out
    assert begun(out) == labels
    assert times() == before
    assert "4 runs in 2 groups: 4 done" in out, "a sweep ends with its table"
    assert all(text in out for text in ("test accuracy %", "vs backprop", "2 of 2"))


@pytest.mark.slow
def test_a_wider_sweep_in_another_order_runs_what_is_new(capsys):
    run("-m", "strategy=backprop,dgl", "seed=0", *SETTINGS, capsys=capsys)
    before = times()
    code, out, _ = run("-m", "seed=0", "strategy=dgl,shallow,backprop", *SETTINGS, "record=jsonl", capsys=capsys)
    assert code == 0
    assert "3 runs: 1 new, 2 done before" in out
    assert "result" in out, "the new one prints its own"
    after = times()
    assert {path: after[path] for path in before} == before


def test_what_a_run_is_and_where_it_is():
    same = runner.identity(config())
    for override in ("out=x", "threads=2", "device=cpu", "record=tensorboard", "sweep.fail_fast=true", "epochs=2"):
        assert runner.identity(config(override)) == same, override
    assert runner.identity(config("data=mnist", "data.root=/a")) == runner.identity(
        config("data=mnist", "data.root=/b")
    )
    assert runner.identity(config("optim.lr=1")) == runner.identity(config("optim.lr=1.0"))
    others = ("seed=1", "optim.lr=0.1", "strategy=backprop", "data.validation=0.2", "precision=fp64", "epochs=3")
    digits = [runner.identity(config(override)) for override in others]
    assert len({same, *digits}) == 1 + len(others)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("differs", "name"),
    [
        (["seed=0"], "seed-0"),
        ([], "run"),
        (["data.root=/a b/ü"], "data.root-a-b"),
        (["optim.lr=1e+30"], "optim.lr-1e30"),
        (["blocks=[2,4]", "+experiment=x"], "blocks-2-4-_-experiment-x"),
        (["..", "/"], "_"),
        (["x=" + "y" * 300], ("x-" + "y" * 300)[:80]),
    ],
)
@pytest.mark.fault("F27")
def test_names_with_special_characters(differs, name, tmp_path):
    path = runner.place("out", differs, config())
    assert path.parent == Path("out")
    assert path.name == f"{name}_{runner.identity(config())}"
    assert RunFolder.create(tmp_path, path.name, only=True).name == path.name, "the folder has another name"


@pytest.mark.slow
@pytest.mark.fault("F29")
def test_a_failing_job_is_shown_and_the_others_go_on(capsys):
    command = ["-m", "strategy=dgl", *SETTINGS, "optim.lr=0.01,1e30,0.02", "optim.schedule=constant"]
    code, out, err = run(*command, capsys=capsys)
    assert code == 1
    assert "lower optim.lr" in err
    assert "3 runs: 2 new, 1 failed\n  failed: optim.lr=1e+30: block 0 of 2" in out
    done = {path: stamp for path, stamp in times().items() if state(path) == "done"}
    assert len(done) == 2
    code, out, _ = run(*command, capsys=capsys)
    assert code == 1
    assert "3 runs: 2 done before, 1 failed" in out
    assert done.items() <= times().items()
    (hidden,) = Path("runs").glob(".*.failed-1")
    assert state(hidden) == "failed", "the first attempt is lost"


@pytest.mark.slow
@pytest.mark.fault("F29")
def test_a_job_that_means_nothing_is_its_own_failure(capsys):
    code, out, err = run("-m", "optim.lr=0.01,abc", *SETTINGS, capsys=capsys)
    assert code == 2
    assert "optim.lr=abc: must be a number" in err
    assert "2 runs: 1 new, 1 failed" in out
    code, out, err = run("-m", "optim.lr=0.01", "seed=0,${oc.env:HOME}", *SETTINGS, capsys=capsys)
    assert code == 2
    assert "environment variables" in err
    assert "1 done before, 1 failed" in out


@pytest.mark.slow
@pytest.mark.fault("F29")
def test_fail_fast_begins_no_other(capsys):
    code, out, _ = run("-m", *SETTINGS, "seed=0,1", "optim.lr=1e30,0.01", "sweep.fail_fast=true", capsys=capsys)
    assert code == 1
    assert "4 runs: 1 failed, 3 not begun" in out
    assert begun(out) == ["[1/4] seed=0 optim.lr=1e+30"]
    assert "run the same command again to go on" in out
    assert len(folders()) == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["strategy=dgl,dlg"], "did you mean 'dgl'?"),
        (["sede=0,1"], "did you mean 'seed'?"),
        (["seed=0,1", "hydra/launcher=slurm"], "choose one of basic, joblib, submitit_local, submitit_slurm"),
        (["seed=0,1", "out=file/x"], "file/x"),
    ],
)
def test_a_sweep_that_cannot_begin_leaves_nothing(arguments, sentence, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, out, err = run("-m", *SETTINGS, *arguments, capsys=capsys)
    assert code == 2
    assert sentence in err
    assert len(err.strip().splitlines()) == 1
    assert out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_launcher_that_is_not_installed():
    """What Hydra raises then, word for word, since the launchers may be installed here."""
    error = MissingConfigException("In 'hydra/config': Could not find 'hydra/launcher/submitit_local'")
    sentence = "hydra/launcher=submitit_local is not installed: pip install 'locallearn[launchers]', or leave it out"
    assert str(explain(error, ["seed=0,1", "hydra/launcher=submitit_local"], [])) == sentence


@pytest.mark.slow
def test_settings_of_a_choice_that_varies(capsys):
    """`strategy.width` is no key of the default strategy; what has no such key says so."""
    small = [word for word in SETTINGS if not word.startswith("auxiliary")]
    code, out, err = run("-m", "strategy=dni,backprop", "strategy.width=4", *small, capsys=capsys)
    assert code == 2
    assert "unknown key strategy.width" in err
    assert "2 runs: 1 new, 1 failed\n  failed: strategy=backprop: " in out


@pytest.mark.slow
def test_what_varies_may_stand_in_a_yaml(capsys, tmp_path):
    conf = tmp_path / "conf" / "experiment"
    conf.mkdir(parents=True)
    text = "# @package _global_\nepochs: 2\nhydra:\n  sweeper:\n    params:\n      seed: 0,1\n      batch_size: 256\n"
    (conf / "seeds.yaml").write_text(text)
    command = ["-m", "--config-dir", str(conf.parent), "+experiment=seeds", "strategy=dgl", *SETTINGS]
    code, out, err = run(*command, capsys=capsys)
    assert code == 0, err
    assert "2 runs: 2 new" in out
    assert [path.name[:-9] for path in folders()] == ["seed-0", "seed-1"]


def test_what_a_multirun_varies():
    out, varies, total, launcher = multirun(["strategy=glob(pgi*)", "seed=range(3)", "epochs=1", "out=here"], [])
    found = {"strategy": ["pgi", "pgi_causal"], "seed": ["0", "1", "2"]}
    assert (out, varies, total, launcher) == ("here", found, 6, "basic")


@pytest.mark.slow
def test_a_strategy_from_outside(capsys, tmp_path):
    folder = tmp_path / "mine" / "strategy"
    folder.mkdir(parents=True)
    code = (
        "from dataclasses import dataclass\nfrom locallearn.strategies.greedy import DGL\n\n\n@dataclass(frozen=True)\n"
    )
    (folder.parent / "sweep_strategy.py").write_text(f"{code}class Mine(DGL):\n    '''DGL.'''\n")
    (folder / "mine.yaml").write_text("# Mine.\n_target_: sweep_strategy.Mine\n")
    command = ["-m", "--config-dir", str(folder.parent), "strategy=mine,dgl", *SETTINGS]
    assert run(*command, capsys=capsys)[0] == 0
    code, out, _ = run(*command, capsys=capsys)
    assert code == 0
    assert "2 runs: 2 done before" in out


@pytest.mark.slow
def test_a_run_in_a_sweep_has_the_bits_of_one_alone(capsys):
    """The job before it has another seed, more threads, another precision, deterministic algorithms."""
    noise = ["-m", "strategy=dgl", "seed=7", *SETTINGS[:-1], "threads=2", "deterministic=true", "model.width=8,16"]
    assert run("strategy=dgl", *SETTINGS, "out=alone", capsys=capsys)[0] == 0
    assert run(*noise, "out=noise", capsys=capsys)[0] == 0
    facts = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype()
    assert run("-m", "deterministic=true,false", "precision=fp64,fp32", *SETTINGS, capsys=capsys)[0] == 0
    assert facts == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype())
    (alone,) = folders("alone")
    (same,) = [
        path
        for path in folders()
        if yaml.safe_load((path / "config.yaml").read_text())["precision"] == "fp32"
        and not yaml.safe_load((path / "config.yaml").read_text())["deterministic"]
    ]
    assert metrics(same) == metrics(alone)
    a, b = load_file(alone / "model.safetensors"), load_file(same / "model.safetensors")
    assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())


@pytest.mark.slow
def test_the_memory_of_an_earlier_job_does_not_count():
    """With the allocator that keeps what is freed, as in every run by default; many small pieces, as a heap has."""
    exp = experiment(*compose(["threads=1"]))
    cpu = torch.device("cpu")
    with process_settings(exp.settings):
        before = peak_memory_bytes(cpu)
        pieces = [torch.ones(50_000) for _ in range(1000)]  # 200 MB
        assert peak_memory_bytes(cpu) > before + 150e6
        del pieces
    with process_settings(exp.settings):
        assert peak_memory_bytes(cpu) < before + 50e6


def make(seed: int) -> tuple[runner.Experiment, Path]:
    exp = experiment(*compose([*SETTINGS, f"seed={seed}", "out=runs"]))
    return exp, runner.place("runs", [f"seed={seed}"], exp.config)


@pytest.mark.slow
@pytest.mark.fault("F32")
def test_a_run_that_another_process_writes_is_left_to_it(capsys):
    exp, path = make(0)
    other = RunFolder.create(Path("runs"), path.name)  # begun, and nothing written yet
    assert runner.run(exp, path) == ("busy", {})
    assert not (path / "config.yaml").exists()
    assert "left to that process" in capsys.readouterr().out
    other.release()  # it was killed
    how, numbers = runner.run(exp, path)
    assert how == "new"
    assert 0 < numbers["validation/accuracy"] <= 1


@pytest.mark.fault("F32")
def test_a_run_that_another_process_begins_meanwhile_is_left_to_it(monkeypatch):
    exp, path = make(0)
    start = runner.start
    monkeypatch.setattr(runner, "start", lambda *a: RunFolder.create(Path("runs"), path.name) and start(*a))
    assert runner.run(exp, path) == ("busy", {})


@pytest.mark.fault("F29")
def test_an_interrupted_run_is_resumed_to_the_same_bits(monkeypatch):
    exp, path = make(0)
    runner.run(exp, path)
    whole = metrics(path)
    (path / "summary.json").unlink()
    last = sorted((path / "checkpoints").iterdir())[-1]
    for file in [last] if last.is_file() else last.iterdir():
        file.unlink()
    (path / "status.json").write_text(json.dumps({"state": "running"}))
    how, numbers = runner.run(exp, path)
    assert how == "resumed"
    assert metrics(path) == whole
    assert numbers["epoch"] == 2


PROGRAM = [sys.executable, "-m", "locallearn"]
ALONE = {**os.environ, "OMP_NUM_THREADS": "1"}


def begin(*arguments: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*PROGRAM, *arguments], env=ALONE, preexec_fn=obey_signals, **pipes)


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


LONG = ["strategy=dgl", "seed=0,1,2", *SETTINGS[:-3], "epochs=60", "batch_size=32", "threads=1"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.fault("F29")
def test_stopped_half_way_and_started_again(number, capsys):
    process = begin("-m", *LONG)
    wait_for(lambda: len(folders()) == 2 and list(folders()[1].glob("checkpoints/[!.]*")))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    if number == signal.SIGINT:
        assert "3 runs: 1 new, 1 interrupted, 1 not begun" in out
    first, second = folders()
    assert [state(first), state(second)] == ["done", "running" if number == signal.SIGKILL else "interrupted"]
    before = times()[first]
    code, out, _ = run("-m", *LONG, capsys=capsys)
    assert code == 0
    assert "3 runs: 1 new, 1 resumed, 1 done before" in out
    assert begun(out) == [f"[{k}/3] seed={k - 1}" for k in (1, 2, 3)]
    assert times()[first] == before
    assert [state(path) for path in folders()] == ["done"] * 3
    assert [len(metrics(path)) for path in folders()] == [60] * 3


@pytest.mark.slow
@pytest.mark.fault("F32")
def test_two_shells_share_a_sweep():
    both = [begin("-m", *LONG) for _ in range(2)]
    ends = [process.communicate(timeout=250) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [state(path) for path in folders()] == ["done"] * 3
    assert sum(out.count("result") for out, _ in ends) == 3, "a run was done twice, or not at all"
    assert not list(Path("runs").glob(".*failed*"))


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_launchers(launcher, capsys):
    unsaid = [setting for setting in SETTINGS if not setting.startswith("threads=")]  # the launcher gives each one
    command = ["-m", "strategy=dgl", *unsaid, *DIVERGES, f"hydra/launcher={launcher}"]
    done = subprocess.run([*PROGRAM, *command], capture_output=True, text=True, env=ALONE)
    assert done.returncode == 1, done.stderr
    assert "2 runs: 1 new, 1 failed\n  failed: optim.lr=1e+30: block 0" in done.stdout
    assert "lower optim.lr" in (done.stderr if launcher == "joblib" else done.stdout.partition("2 runs")[0])
    assert sorted(line for line in begun(done.stdout) if ": " not in line) == [
        "[1/2] optim.lr=0.01",
        "[2/2] optim.lr=1e+30",
    ]
    (good,) = [path for path in folders() if state(path) == "done"]
    manifest = json.loads((good / "manifest.json").read_text())
    assert manifest["threads"] == 1
    assert f"hydra/launcher={launcher}" in manifest["command"], "a command that no user has typed"
    before = times()[good]
    code, out, _ = run("-m", "strategy=dgl", *SETTINGS, *DIVERGES, capsys=capsys)
    assert code == 1
    assert "1 done before, 1 failed" in out
    assert times()[good] == before


def test_the_runs_of_a_sweep_are_a_group_at_wandb_called_by_what_differs(tmp_path):
    given = config("record=wandb", f"out={tmp_path / 'first'}")
    differs = ["model=lenet", "optim.lr=0.1", "strategy=dgl", "seed=1"]
    wandb = sweep.grouped(given, "dgl", differs)["record"]["wandb"]
    assert (wandb["group"], wandb["name"]) == ("first", "dgl lenet lr=0.1 s1")
    own = config("record=wandb", "record.wandb.group=mine", "record.wandb.name=it")
    assert sweep.grouped(own, "dgl", differs) == own
    assert sweep.grouped(config(), "dgl", differs) == config()


@pytest.fixture
def four_devices(monkeypatch):
    monkeypatch.setattr(accelerator, "count", lambda: 4)
    sweep.given_first_device.cache_clear()
    yield
    sweep.given_first_device.cache_clear()


def test_jobs_side_by_side_begin_with_the_first_device_that_is_given(four_devices, monkeypatch):
    monkeypatch.setenv(FIRST_DEVICE, "3")
    single = [sweep.shared({"device": "auto"}, number)["device"] for number in range(3)]
    assert single == ["cuda:3", "cuda:0", "cuda:1"]
    for number, first in enumerate(("3", "1", "3")):
        sweep.shared({"device": "auto", "runtime": {"stages": 2, "replicas": 1}}, number)
        assert os.environ[FIRST_DEVICE] == first


def test_a_first_device_of_jobs_that_is_no_number_is_refused(four_devices, monkeypatch):
    monkeypatch.setenv(FIRST_DEVICE, "two")
    with pytest.raises(UserError, match="LOCALLEARN_FIRST_DEVICE=two: must be the number of a device"):
        sweep.shared({"device": "auto"}, 0)


def test_jobs_side_by_side_get_a_thread_and_a_device_each(four_devices, monkeypatch):
    shared = [sweep.shared({"threads": "auto", "device": "auto"}, number) for number in range(6)]
    assert [config["device"] for config in shared] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "cuda:0", "cuda:1"]
    assert {config["threads"] for config in shared} == {1}
    monkeypatch.setenv(FIRST_DEVICE, "")
    two = {"threads": "auto", "device": "auto", "runtime": {"stages": 2, "replicas": 1}}
    for number, first in enumerate(("0", "2", "0")):  # the next devices of each are those of its stages
        assert sweep.shared(two, number)["device"] == "auto"
        assert os.environ[FIRST_DEVICE] == first
    assert sweep.shared({"threads": 3, "device": "cpu"}, 1) == {"threads": 3, "device": "cpu"}


def test_a_sweep_under_torchrun_is_refused(capsys, monkeypatch, tmp_path):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    code, _, err = run("-m", "seed=0,1", *SETTINGS, capsys=capsys)
    assert code == 2
    assert "without it" in err
    assert not list(tmp_path.iterdir())
