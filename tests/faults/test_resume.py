"""kill -9, SIGTERM and SIGINT at arbitrary moments of real runs; what is resumed must end with the same bits."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import locallearn
from helpers import killed
from helpers.marks import slow
from helpers.runs import SETTINGS, STAGE, assert_same_run, start, wait_for_steps, whole
from locallearn.errors import UserError
from locallearn.training.run import resume

pytestmark = pytest.mark.xdist_group("resume")  # one worker makes the runs that the tests share


VERSIONS = "man strategy.every=5 strategy.lag=3"
"""Killed between two versions of what its blocks read."""
LONG = [*map(slow, ("backprop", "greedy", "deep_supervision", VERSIONS))]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dgl", *LONG])
@pytest.mark.fault("F1", "R1")
def test_kill_and_resume_ends_with_the_same_bits(strategy, tmp_path):
    """Killed twice at random moments, the second time while it resumes."""
    words = f"strategy={strategy}".split()
    reference = whole(tmp_path / "whole", *words)
    moment = random.Random(strategy)
    process = start(tmp_path / "killed", *words)
    run = wait_for_steps(tmp_path / "killed", moment.randrange(7, 200))
    time.sleep(moment.random() * 0.1)
    process.kill()
    process.communicate()
    assert json.loads((run / "status.json").read_text())["state"] == "running", "it was done before it was killed"
    again = subprocess.Popen(
        [sys.executable, "-m", "locallearn", "resume", str(run)], stdout=subprocess.PIPE, text=True
    )
    time.sleep(2 + 6 * moment.random())
    again.kill()
    again.communicate()
    result = resume(run, [], quiet=True)
    assert result.run_dir == run
    assert_same_run(reference, run)
    assert not list(run.glob("checkpoints/.tmp*"))


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
@pytest.mark.fault("F12", "R4")
def test_a_signal_saves_and_leaves(number, code, tmp_path):
    process = start(tmp_path, "strategy=dgl", "checkpoint.every=14it")
    run = wait_for_steps(tmp_path, 14)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert json.loads((run / "status.json").read_text())["state"] == "interrupted"
    assert_same_run(whole(tmp_path / "whole", "strategy=dgl"), resume(run, [], quiet=True).run_dir)


@pytest.mark.slow
@pytest.mark.fault("F12")
def test_a_second_interrupt_leaves_at_once(tmp_path):
    process = start(tmp_path, "strategy=dgl", "model.width=2000", "batch_size=1024", "checkpoint.every=1it")
    wait_for_steps(tmp_path, 1)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT)
    assert time.monotonic() - began < 20


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of 100 steps that was killed in step 38, with three checkpoints."""
    folder = tmp_path_factory.mktemp("stopped")
    words = [*SETTINGS, "strategy=dgl", "blocks=4", "max_steps=100", "checkpoint.keep=3", f"out={folder / 'runs'}"]
    process = killed.begin(words, folder / "log.txt", "after a block's update", 150)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    return next(path for path in (folder / "runs").iterdir() if path.is_dir())


def copy_of(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "moved run"))


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["flip", *map(slow, ("zero", "cut", "empty", "gone"))])
@pytest.mark.parametrize("name", [STAGE, *map(slow, ("state.json", "manifest.json"))])
@pytest.mark.fault("F3", "F5", "R3")
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(name, damage, stopped, tmp_path, capsys):
    run = copy_of(stopped, tmp_path)
    newest, second, *_ = sorted(run.glob("checkpoints/step-*"), reverse=True)
    data = bytearray((newest / name).read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    elif damage == "zero":
        data[len(data) // 3 : len(data) // 3 + 40] = bytes(40)
    elif damage == "cut":
        data = data[: len(data) // 2]
    (newest / name).write_bytes(b"" if damage == "empty" else data)
    if damage == "gone":
        (newest / name).unlink()
    result = resume(run, [], quiet=False)
    out, err = capsys.readouterr()
    assert newest.name in err
    assert f"step {int(second.name.removeprefix('step-'))}" in out
    assert result.metrics["step"] == 100


@pytest.mark.parametrize("damaged", [False, slow(True)])
@pytest.mark.fault("F3", "R3")
def test_checkpoints_of_format_1_are_read(damaged, stopped, tmp_path, capsys):
    """One file of tensors, and SHA-256 sums, as sha256sum writes them."""
    run = copy_of(stopped, tmp_path)
    for path in run.glob("checkpoints/step-*"):
        if not (path / "state.json").is_file():  # its removal was under way when the run was killed
            shutil.rmtree(path)
            continue
        save_file(load_file(path / STAGE), path / "tensors.safetensors")
        state = json.loads((path / "state.json").read_text())
        (path / "state.json").write_text(json.dumps(state | {"format": 1}))
        sums = subprocess.run(["sha256sum", "tensors.safetensors", "state.json"], cwd=path, capture_output=True).stdout
        (path / "SHA256SUMS").write_bytes(sums)
        (path / STAGE).unlink()
        (path / "manifest.json").unlink()
    newest, second, *_ = sorted(run.glob("checkpoints/step-*"), reverse=True)
    if damaged:
        (newest / "state.json").write_text((newest / "state.json").read_text() + " ")
    resume(run, [], quiet=False)
    used = second if damaged else newest
    assert f"step {int(used.name.removeprefix('step-'))}" in capsys.readouterr().out
    again = copy_of(stopped, tmp_path / "as it was")
    resume(again, [], quiet=True)
    assert_same_run(again, run)


@pytest.mark.fault("F3", "R3")
def test_all_checkpoints_damaged_is_refused(stopped, tmp_path):
    run = copy_of(stopped, tmp_path)
    for path in run.glob("checkpoints/step-*/state.json"):
        path.write_text("{}")
    before = (run / "metrics.jsonl").read_bytes() if (run / "metrics.jsonl").exists() else b""
    with pytest.raises(UserError, match="damaged"):
        resume(run, [], quiet=True)
    assert ((run / "metrics.jsonl").read_bytes() if before else b"") == before


@pytest.mark.slow
@pytest.mark.fault("F4")
def test_foreign_files_among_checkpoints_are_left_alone(stopped, tmp_path):
    run = copy_of(stopped, tmp_path)
    folder = run / "checkpoints"
    (folder / "step-abc").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "step-99999999").symlink_to(folder / "step-99999999")
    resume(run, [], quiet=True)
    assert (folder / "step-abc").is_dir()
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.fault("F6")
def test_checkpoints_of_another_model_are_refused(stopped, tmp_path, record_property):
    """Another width, another depth, other heads, another strategy; nothing of the run is changed by it."""
    others = (["model.width=25"], ["model.depth=5"], ["auxiliary=linear"], ["strategy=backprop"])
    for number, words in enumerate(others):
        run = copy_of(stopped, tmp_path / str(number))
        shutil.rmtree(run / "checkpoints")
        other = whole(tmp_path / f"other {number}", "strategy=dgl", *words, "max_steps=7")
        shutil.copytree(other / "checkpoints", run / "checkpoints")
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
        with pytest.raises(UserError, match=r"the checkpoint does not fit this run: .*(is|expected|missing)"):
            resume(run, [], quiet=True)
        assert {path: path.read_bytes() for path in before} == before
    record_property("injected", len(others))


@pytest.mark.slow
@pytest.mark.fault("F25")
def test_what_changes_the_bits_is_said(stopped, tmp_path, capsys):
    """Other threads, another processor, another torch: it goes on, and says that it is not the same run any more."""
    run = copy_of(stopped, tmp_path)
    manifest = json.loads((run / "manifest.json").read_text())
    manifest |= {"threads": 64, "device": "an abacus", "versions": {**manifest["versions"], "torch": "1.0"}}
    (run / "manifest.json").write_text(json.dumps(manifest))
    assert resume(run, [], quiet=True).metrics["step"] == 100
    error = capsys.readouterr().err
    assert "warning: not bit-exact with the first part of the run: threads was 64, is 1; device was an abacus" in error
    assert "torch was 1.0, is" in error


@pytest.mark.fault("F8", "F23", "R7")
def test_hostile_files_run_no_code(stopped, tmp_path):
    """A pickle named like a checkpoint, and a configuration that names os.system."""
    run = copy_of(stopped, tmp_path)
    canary = tmp_path / "canary"
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("locallearn.strategies.greedy.DGL", "os.system"))
    with pytest.raises(UserError, match="lies outside locallearn"):
        resume(run, [], quiet=True)
    (run / "config.yaml").write_text(f"a: !!python/object/apply:os.system ['touch {canary}']\n")
    with pytest.raises(UserError):
        resume(run, [], quiet=True)
    assert not canary.exists()


def test_resume_of_a_finished_run_says_so(tmp_path, capsys):
    run = whole(tmp_path, "strategy=shallow", "max_steps=5")
    before = (run / "metrics.jsonl").read_bytes()
    result = resume(run, [])
    assert "done already" in capsys.readouterr().out
    assert result.metrics["step"] == 5
    assert (run / "metrics.jsonl").read_bytes() == before


def test_load_gives_the_plain_model_with_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = locallearn.train(
        strategy="dgl", model="mlp", auxiliary="linear", epochs=1, max_steps=5, threads=1, quiet=True
    )
    model = locallearn.load(result.run_dir)
    x = torch.randn(4, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(x), result.model(x))
    assert not any("auxiliary" in name for name in load_file(result.run_dir / "model.safetensors"))


@pytest.mark.slow
@pytest.mark.fault("F16", "R10")
def test_broken_weights_never_replace_a_good_checkpoint(tmp_path, monkeypatch):
    """A gradient that is not finite after a finite loss, just before a save: the save is refused, and what was saved
    stays."""
    from locallearn.engine.block import TrainedBlock
    from locallearn.errors import RunError

    monkeypatch.chdir(tmp_path)
    original = TrainedBlock.update

    def update(block, part="main"):
        if block.step == 20 and block.last:
            next(block.layers.parameters()).grad.fill_(float("inf"))
        original(block, part)

    monkeypatch.setattr(TrainedBlock, "update", update)
    with pytest.raises(RunError, match=r"block 2 of 3, step 20: the weight 0\..* is nan at learning rate"):
        locallearn.train(
            strategy="dgl", model="mlp", auxiliary="linear", batch_size=64, epochs=2, threads=1, quiet=True,
            checkpoint={"every": "7it"},
        )  # fmt: skip
    (run,) = tmp_path.glob("runs/*")
    assert sorted(p.name for p in run.glob("checkpoints/*")) == ["step-00000007", "step-00000014"]
    assert json.loads((run / "status.json").read_text())["state"] == "failed"
