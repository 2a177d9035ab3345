"""`locallearn repeat RUN` runs it again, and says whether every bit agrees."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers.strategies import ANY_MODEL
from locallearn.cli import main as cli
from locallearn.runs.read import read

pytestmark = pytest.mark.xdist_group("repeat")  # one worker makes the runs that the tests share
SETTINGS = ["model=mlp", "model.width=24", "model.depth=4", "model.dropout=0.2", "blocks=3", "data.crop=2", "threads=1"]
SETTINGS += ["epochs=2", "max_steps=45"]


MAPS = ["model=plainnet", "model.depth=8", "blocks=3", "threads=1", "epochs=1", "max_steps=3"]
"""Infomax predicts parts of a map from others."""


def run(folder: Path, *words: str) -> Path:
    assert cli.main([*SETTINGS, *words, f"out={folder}"]) == 0
    return next(folder.glob("*/summary.json")).parent


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    return run(tmp_path_factory.mktemp("done"), "strategy=dgl", "auxiliary=linear")


@pytest.fixture
def copied(done, tmp_path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "moved"))


@pytest.mark.fault("R6")
def test_the_bits_agree(copied, capsys):
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert cli.main(["repeat", str(copied)]) == 0
    out = capsys.readouterr().out
    count = len(load_file(copied / "model.safetensors"))
    assert f"the bits agree: {count} tensors of the model, 2 records of metrics.jsonl" in out
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != ".lock")
    assert [r.path for r in read([copied.parent])] == [copied], "a repetition is no run of its own in a report"
    assert cli.main(["repeat", str(copied)]) == 0, "and once more"


@pytest.mark.fault("R6")
def test_one_other_bit_is_named(copied, capsys):
    tensors = load_file(copied / "model.safetensors")
    name = sorted(tensors)[0]
    tensors[name].view(-1).view(torch.int32)[0] ^= 1
    save_file(tensors, copied / "model.safetensors")
    assert cli.main(["repeat", str(copied)]) == 1
    out = capsys.readouterr().out
    assert f"the bits differ\n  1 of {len(tensors)} tensors of the model, the first is {name}" in out
    assert "machine, versions, settings and data agree" in out


@pytest.mark.fault("R6")
def test_another_number_is_named_with_what_is_not_the_same(copied, capsys):
    lines = (copied / "metrics.jsonl").read_text().splitlines()
    record = json.loads(lines[1]) | {"train/loss": 1.25}
    (copied / "metrics.jsonl").write_text("\n".join([lines[0], json.dumps(record)]) + "\n")
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["versions"]["torch"] = "1.0"
    manifest["device"] = "an abacus"
    (copied / "manifest.json").write_text(json.dumps(manifest))
    assert cli.main(["repeat", str(copied)]) == 1
    out = capsys.readouterr().out
    assert "metrics.jsonl, from epoch 2: train/loss 1.25, now" in out
    assert "not the same: torch 1.0, now 2." in out
    assert "not the same: device an abacus, now" in out


@pytest.mark.parametrize(
    ("state", "sentence"), [("interrupted", "is interrupted, and only a finished run"), (None, "has no status.json")]
)
def test_a_run_that_is_not_done_is_refused(state, sentence, copied, capsys):
    status = copied / "status.json"
    status.write_text(json.dumps({"state": state})) if state else status.unlink()
    assert cli.main(["repeat", str(copied)]) == 2
    assert sentence in capsys.readouterr().err
    assert not (copied / "repeats").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl"])
def test_what_cannot_be_compared_is_said_before_the_run(name, copied, capsys):
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(b"x\n" + content[: len(content) // 2])
    assert cli.main(["repeat", str(copied)]) == 2
    assert name in capsys.readouterr().err
    assert not (copied / "repeats").exists()


def test_under_torchrun_it_is_refused(copied, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["repeat", str(copied)]) == 2
    assert "torchrun" in capsys.readouterr().err


IN_STAGES = ("dgl", "dni")
REPEATED = [(strategy, runtime) for strategy in ANY_MODEL for runtime in ("serial", "replay")]
REPEATED += [(strategy, "pipeline") for strategy in IN_STAGES]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "runtime"), REPEATED)
@pytest.mark.fault("R6")
def test_every_strategy_and_runtime_repeats(strategy, runtime, tmp_path, capsys):
    """Two in a pipeline, of which one answers: equality/test_pipeline.py has all of them end as the serial run."""
    more = {"pipeline": ["runtime.stages=2"], "serial": [], "replay": []}[runtime]
    small = MAPS if strategy == "infomax" else SETTINGS
    words = [*small, f"strategy={strategy}", f"runtime={runtime}", *more, f"out={tmp_path}"]
    code = cli.main(words)
    if code == 2:
        assert runtime == "replay", capsys.readouterr().err  # for strategies that send nothing back
        return
    assert code == 0
    (folder,) = tmp_path.iterdir()
    assert cli.main(["repeat", str(folder)]) == 0
    assert "the bits agree" in capsys.readouterr().out
