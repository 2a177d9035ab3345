"""More of everything than anybody has: it works, or is refused in a sentence; time and memory are put down."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.fault("load"), pytest.mark.xdist_group("load"), pytest.mark.timeout(1200)]
MEASURED = """
import resource, sys, time
from locallearn.cli import main as cli
started = time.monotonic()
code = cli.main(sys.argv[1:])
own = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))  # ru_maxrss is also the parent's
most = max(int(own.split()[1]), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
print(f"\\nMEASURED {time.monotonic() - started:.1f} s {most >> 10} MiB")
sys.exit(code)
"""
TINY = ["threads=1", "device=cpu", "epochs=1", "max_steps=2", "data=synthetic", "data.images=200", "data.size=16"]


class Found(NamedTuple):
    """What a command line did: its exit code, what it said, how long it took and the most memory one process had."""

    code: int
    out: str
    error: str
    seconds: float
    mebibytes: int


@pytest.fixture
def load(record_property):
    """Run a command line in a process of its own; what it cost goes into the table of docs/reliability.md."""

    def run(what: str, *words: str) -> Found:
        command = [sys.executable, "-c", MEASURED, *map(str, words)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1000)
        assert "Traceback" not in done.stderr, done.stderr[-2000:]
        match = re.search(r"MEASURED ([\d.]+) s (\d+) MiB", done.stdout)
        assert match, done.stderr
        found = Found(done.returncode, done.stdout, done.stderr, float(match[1]), int(match[2]))
        sentence = found.error.strip().rpartition("locallearn: ")[2].partition(" (run folder")[0]
        outcome = {0: "works", 1: f"ended: {sentence}", 2: f"refused: {sentence}"}[found.code]
        record_property("load", f"{what}|{outcome}|{found.seconds:.0f}|{found.mebibytes}")
        return found

    return run


def summary(out: Path) -> dict:
    return json.loads(next(out.glob("*/summary.json")).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A finished run, small."""
    out = tmp_path_factory.mktemp("one")
    words = [*TINY, "model=mlp", "model.width=16", "strategy=dgl", "auxiliary=linear", f"out={out}"]
    subprocess.run([sys.executable, "-m", "locallearn", *words], check=True, capture_output=True)
    return next(out.iterdir())


def test_five_hundred_runs_in_one_folder(run, tmp_path, load):
    """Fifty groups of ten seeds, a hundred epochs each."""
    record = json.loads((run / "metrics.jsonl").read_text())
    lines = "".join(json.dumps(record | {"epoch": n + 1, "step": 2 * (n + 1)}) + "\n" for n in range(100))
    config = (run / "config.yaml").read_text()
    for number in range(500):
        copy = Path(shutil.copytree(run, tmp_path / "runs" / f"{number:03}", ignore=shutil.ignore_patterns("check*")))
        (copy / "metrics.jsonl").write_text(lines)
        text = re.sub(r"^seed: \d+$", f"seed: {number % 10}", config, flags=re.MULTILINE)
        text = re.sub(r"^  lr: .*$", f"  lr: {1e-3 * (1 + number // 10)}", text, count=1, flags=re.MULTILINE)
        (copy / "config.yaml").write_text(text)
    found = load("report of 500 runs of 100 epochs", "report", tmp_path / "runs", "--to", tmp_path / "report")
    assert found.code == 0
    assert (tmp_path / "report" / "report.html").stat().st_size > 10_000


LINES = 200_000


@pytest.fixture
def long_run(run, tmp_path) -> Path:
    """A run with more epochs than anybody trains."""
    copy = Path(shutil.copytree(run, tmp_path / "runs" / "long"))
    record = json.loads((copy / "metrics.jsonl").read_text())
    head, tail = json.dumps(record | {"epoch": 0, "step": 0}).split('"epoch": 0, "step": 0')
    with (copy / "metrics.jsonl").open("w") as file:
        for n in range(LINES):
            file.write(f'{head}"epoch": {n + 1}, "step": {n + 1}{tail}\n')
    return copy


def test_a_report_of_a_long_run(long_run, tmp_path, load):
    found = load(f"report of a metrics file of {LINES:,} lines", "report", long_run.parent, "--to", tmp_path / "report")
    assert found.code == 0


def test_resuming_a_long_run(long_run, load):
    """All but the first two lines are after the checkpoint, and are dropped."""
    status = json.loads((long_run / "status.json").read_text())
    (long_run / "status.json").write_text(json.dumps(status | {"state": "interrupted"}))
    found = load(f"resume of a run with a metrics file of {LINES:,} lines", "resume", long_run)
    assert found.code == 0
    lines = (long_run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]


NETS = [
    ("a model of 1,000 units in 64 blocks", ["model.depth=1000", "blocks=64"]),
    ("a model of 500 units, each a block", ["model.depth=500", "blocks=max"]),
    ("backprop through 500 units", ["model.depth=500", "blocks=64", "strategy=backprop"]),
    ("64 blocks", ["model.depth=64", "blocks=64"]),
    ("64 blocks with decoupled synthesizers", ["model.depth=64", "blocks=64", "strategy=dni"]),
    ("64 blocks in a pipeline of 2 stages", ["model.depth=64", "blocks=64", "runtime=pipeline", "runtime.stages=2"]),
    (
        "a pipeline of 8 stages on this machine",
        ["model.depth=64", "blocks=64", "runtime=pipeline", "runtime.stages=8"],
    ),
    ("64 blocks under replay", ["model.depth=64", "blocks=64", "runtime=replay"]),
]


@pytest.mark.parametrize(("what", "words"), NETS, ids=[what for what, _ in NETS])
def test_deep_models(what, words, tmp_path, load):
    common = ["model=mlp", "model.width=16", "batch_size=16", f"out={tmp_path}"]
    found = load(what, *TINY, *common, *words)
    if what.startswith("backprop"):  # batch norm makes gradients grow with every unit (Yang et al. 2019)
        assert "not finite" in found.error
        return
    assert found.code == 0
    assert summary(tmp_path)["step"] == 2


@pytest.mark.parametrize("model", ["mlp", "lenet", "vgg11", "resnet20"])
def test_batches_of_one(model, tmp_path, load):
    """Batch norm has nothing to compare a single vector with, but the pixels of a single image. Half of these nets end
    in a single pixel."""
    found = load(
        f"batches of one, {model}", *TINY, f"model={model}", "auxiliary=linear", "batch_size=1", f"out={tmp_path}"
    )
    if found.code == 0:
        assert summary(tmp_path)["step"] == 2
    else:
        assert "batch_size" in found.error


def test_a_set_of_one_image_a_class(tmp_path, load):
    for n in range(10):
        folder = tmp_path / "images" / f"class{n}"
        folder.mkdir(parents=True)
        pixels = torch.randint(256, (8, 8, 3), generator=torch.Generator().manual_seed(n)).to(torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / "one.png")
    words = ["data=folder", f"data.root={tmp_path / 'images'}", "data.size=8", f"out={tmp_path / 'runs'}"]
    common = ["threads=1", "epochs=1", "max_steps=2", "model=mlp", "model.width=16", "auxiliary=linear"]
    found = load("a folder of one image a class", *words, *common)
    assert found.code == 2
    few = [*TINY, "data.images=20", "data.classes=20", "data.validation=0", f"out={tmp_path / 'runs'}"]
    found = load("a training set of one image a class", *few, "model=mlp", "model.width=16", "auxiliary=linear")
    assert found.code == 0


@pytest.mark.parametrize("strategy", ["dgl", "dni", "dfa"])
def test_a_thousand_classes(strategy, tmp_path, load):
    words = ["data.classes=1000", "data.images=5000", "model=lenet", f"strategy={strategy}", f"out={tmp_path}"]
    found = load(f"1,000 classes, {strategy}", *TINY, *words)
    assert found.code == 0
    assert summary(tmp_path)["step"] == 2
