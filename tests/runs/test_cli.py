"""The real commands, in process where that shows the same: what they print, write, refuse, and how they exit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from helpers.commands import SMALL, one_sentence, run

pytestmark = pytest.mark.usefixtures("elsewhere")
SETTINGS = [*SMALL, "model.width=16", "model.depth=3", "epochs=2", "batch_size=128"]


def test_a_run_writes_what_it_promises(capsys, tmp_path):
    code, out, _ = run("strategy=dgl", "auxiliary=linear", *SETTINGS, capsys=capsys)
    assert code == 0
    folder = Path(out.splitlines()[-1])
    assert folder.parent == tmp_path / "runs"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["epoch"] for r in records] == [1, 2]
    wanted = {"epoch", "step", "train/loss", "train/accuracy", "validation/accuracy", "test/loss", "test/accuracy"}
    wanted |= {"block/00/loss", "block/00/accuracy", "block/02/test_accuracy", "images_per_second", "seconds"}
    assert wanted | {"peak_memory_bytes", "learning_rate"} <= records[-1].keys()
    assert 0 < records[-1]["test/accuracy"] <= 1
    assert records[-1]["peak_memory_bytes"] > 10_000_000
    assert records[0]["train/loss"] == records[0]["block/02/loss"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test/accuracy"] == records[-1]["test/accuracy"]
    assert summary["parameters"] == 1025 * 16 + 2 * (17 * 16) + 3 * 2 * 16 + 17 * 10
    assert summary["auxiliary_parameters"] == 2 * (16 * 10 + 10)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["threads"] == 1
    assert manifest["versions"]["torch"]
    assert manifest["choices"]["strategy"] == "dgl"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    assert yaml.safe_load((folder / "config.yaml").read_text())["strategy"]["_target_"].endswith("DGL")
    assert "epochs=2" in yaml.safe_load((folder / "overrides.yaml").read_text())
    assert (folder / "model.safetensors").is_file()
    assert not (tmp_path / "outputs").exists(), "Hydra made a folder of its own"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["strategy=dlg"], "did you mean 'dgl'?"),
        (["stratgy=dgl"], "did you mean 'strategy'?"),
        (["model=vgg61"], "choose one of"),
        (["optim.lr=abc"], "optim.lr=abc: must be a number"),
        (["optim.lrr=1"], "did you mean 'optim.lr'?"),
        (["lr=1"], "did you mean 'optim.lr'?"),
        (["optim.lr=-1"], "at least 0"),
        (["+strategy.beta=1"], "unknown key strategy.beta"),
        (["epochs=-1"], "epochs=-1: must be a whole number of at least 1"),
        (["epochs=1.5"], "epochs=1.5: must be a whole number"),
        (["batch_size=0"], "batch_size=0: must be a whole number of at least 1"),
        (["blocks=99"], "vgg16 has 13 units; choose 1-13"),
        (["blocks=[5,2]"], "increasing"),
        (["blocks=many"], "must be a whole number, auto, max, or a list of whole numbers"),
        (["precision=fp8"], "must be fp32, bf16, fp16 or fp64"),
        (["precision=fp16", "device=cpu"], "choose precision=bf16 or fp32, or device=cuda"),
        (["device=gpu"], "choose auto, cpu, cuda"),
        (["checkpoint.every=often"], "1ep"),
        (["micro_batches=3"], "does not divide"),
        (["model=mlp", "batch_size=1"], "one sample"),
        (["model=mlp", "batch_size=4", "micro_batches=4"], "one sample"),
        (["data=synthetic", f"data.channels={10**15}"], "do not fit into memory"),
        ([f"seed={2**64}"], "64 bits"),
        ([f"optim.lr=1{'0' * 400}"], "must be a finite number"),
        (["data=mnist", "data.root=/nowhere"], "/nowhere"),
        (["data.validation=2"], "data.validation=2"),
        (["record.wandb.mode=auto"], "record.wandb.mode belongs to record=wandb: choose that as well"),
        (["strategy.weight=1"], "strategy.weight belongs to strategy=deep_supervision"),
        (["epochs=1,2"], "epochs=1,2 gives several values: add -m to run each"),
        (["strategy="], "choose one of backprop"),
        (["strategy=[dgl"], "quote a value"),
        (["model=null"], "unknown model 'null': choose one of"),
        (["objective=5"], "unknown objective '5': choose one of"),
        (["probe=[linear,1]"], "choose one of"),
        (["+experiment=null"], "unknown experiment 'null'"),
        (["hydra/launcher=5"], "choose one of basic"),
        (["=3"], "neither a command nor"),
        (["trian"], "neither a command nor"),
        (["resum", "x"], "did you mean 'resume'?"),
        (["resume"], "RUN"),
        (["resume", "nowhere"], "no run folder"),
        (["list", "strategie"], "did you mean"),
        (["doctor", "data=fodler"], "did you mean 'folder'?"),
        (["doctor", "data=folder", "optim.lr=3"], "doctor takes only settings of data"),
        (["doctor", "strategy=dgl"], "doctor takes only settings of data"),
        (["--config-dir", "nowhere", "strategy=dgl"], "no such folder"),
        (["data.root=${oc.env:HOME}x", "out=${oc.env:HOME}", "seed=${oc.env:HOME}"], "seed"),
        (["strategy._target_=os.system"], "lies outside locallearn"),
        (["strategy._target_=locallearn.engine.optim.SGD"], "must be a complete class derived from"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(arguments, sentence, capsys, tmp_path):
    code, _, err = run(*arguments, capsys=capsys)
    assert sentence in one_sentence(err)
    assert code == 2
    assert not list(tmp_path.iterdir()), "something was written"


@pytest.mark.slow
def test_a_batch_of_one_trains_what_has_no_batch_norm(capsys):
    lenet = ["model=lenet", "data=synthetic", "data.images=20", "batch_size=1", "max_steps=2", "threads=1"]
    assert run("strategy=backprop", *lenet, capsys=capsys)[0] == 0
    assert run("strategy=dgl", "auxiliary=linear", *lenet, capsys=capsys)[0] == 0


def test_out_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(*SETTINGS, "out=file/x", capsys=capsys)
    assert code == 2
    assert "file/x" in one_sentence(err)


@pytest.mark.slow
def test_sweep_goes_on_after_a_failing_run(capsys, tmp_path):
    """The second of three diverges: the others end, and the exit code says so."""
    code, out, err = run(
        "-m", "strategy=dgl", *SETTINGS, "optim.lr=0.01,1e30,0.02", "optim.schedule=constant", capsys=capsys
    )
    assert code == 1
    assert "loss is" in one_sentence(err)
    states = sorted(json.loads(p.read_text())["state"] for p in tmp_path.glob("runs/*/status.json"))
    assert states == ["done", "done", "failed"]
    failed = next(p for p in tmp_path.glob("runs/*/status.json") if "failed" in p.read_text())
    assert "learning rate" in json.loads(failed.read_text())["reason"]
    assert str(out).count("result") == 2


@pytest.mark.slow
def test_two_starts_in_one_second_never_share_a_folder(capsys, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda *_: "2026-01-01_00-00-00")
    small = [word for word in SETTINGS if not word.startswith("auxiliary")]
    folders = {run("strategy=shallow", *small, "max_steps=1", capsys=capsys)[1].splitlines()[-1] for _ in range(2)}
    assert len(folders) == 2


def test_dry_run_shows_the_blocks_and_trains_nothing(capsys, tmp_path):
    code, out, _ = run("model=vgg16", "blocks=4", "--dry-run", capsys=capsys)
    assert code == 0
    assert "inference drops" in out
    assert "512x1x1" in out
    assert max(map(len, out.splitlines())) <= 100
    assert not list(tmp_path.iterdir())


def test_evaluate_gives_the_accuracy_of_the_run(capsys):
    _, out, _ = run("strategy=dgl", *SETTINGS, capsys=capsys)
    folder = Path(out.splitlines()[-1])
    summary = json.loads((folder / "summary.json").read_text())
    code, out, _ = run("evaluate", str(folder), capsys=capsys)
    assert code == 0
    found = {name: float(value) for name, value in (line.split() for line in out.splitlines())}
    assert found["accuracy"] == pytest.approx(summary["test/accuracy"], abs=1e-4)
    assert found["block/00/accuracy"] == pytest.approx(summary["block/00/test_accuracy"], abs=1e-4)
    code, _, err = run("evaluate", str(folder), "data=synthetic", capsys=capsys)
    assert code == 2
    assert "trained on" in one_sentence(err)


def test_doctor_describes_the_data(capsys):
    code, out, _ = run("doctor", "data=digits", capsys=capsys)
    assert code == 0
    assert "torch 2" in out
    assert "1294 training, 144 validation, 359 test" in out


ABSENT = """
import sys
for name in ("torchvision", "matplotlib", "wandb", "timm", "torch_geometric", "tensorboard", "optuna"):
    sys.modules[name] = None
from locallearn.cli.main import entry
entry()
"""


@pytest.mark.slow
@pytest.mark.fault("F30")
def test_a_run_needs_only_the_packages_that_it_uses(tmp_path):
    """Training, saving and the table at the end without the packages of pictures, trackers and other models."""
    command = [sys.executable, "-c", ABSENT, "max_steps=3", "model=mlp", "model.width=16", f"out={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*/summary.json"))) == 1


def test_help_and_list_do_not_import_torch():
    """And so answer at once; the time is printed, not judged."""
    for words in (["--help"], ["list"], ["list", "strategies"]):
        program = (
            "import sys, time; start = time.time(); from locallearn.cli import main; code = main.main(sys.argv[1:]); "
            "print('seconds', time.time() - start, file=sys.stderr); "
            "sys.exit(code or bool({'torch', 'hydra', 'wandb'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "dgl" in done.stdout


def test_list_gives_route_and_paper(capsys):
    _, out, _ = run("list", "strategies", capsys=capsys)
    (line,) = [line for line in out.splitlines() if line.strip().startswith("dgl")]
    assert "route none" in line
    assert "1901.08164" in line


OUTSIDE = '''
from dataclasses import dataclass
from locallearn.strategies.greedy import DGL

CALLS = []

@dataclass(frozen=True)
class Mine(DGL):
    """DGL with a scaled loss; fails with scale=0, and with a scale below 0 after some steps."""
    scale: float = 0.5

    def loss(self, block, h, packet):
        CALLS.append(block)
        if self.scale == 0 or (self.scale < 0 and len(CALLS) > 30):
            raise KeyError("a bug in my strategy")
        return self.scale * super().loss(block, h, packet)
'''


@pytest.fixture
def my_conf(tmp_path) -> Path:
    folder = tmp_path / "my_conf"
    (folder / "strategy").mkdir(parents=True)
    (folder / "my_strategy.py").write_text(OUTSIDE)
    (folder / "strategy" / "mine.yaml").write_text("# Mine.\n_target_: my_strategy.Mine\nscale: 0.5\n")
    yield folder
    sys.modules.pop("my_strategy", None)


@pytest.mark.fault("F23", "R7")
def test_a_strategy_from_outside(my_conf, capsys):
    code, out, err = run("--config-dir", str(my_conf), "strategy=mine", *SETTINGS, capsys=capsys)
    assert code == 0, err
    folder = out.splitlines()[-1]
    code, _, err = run("evaluate", folder, capsys=capsys)
    assert code == 2
    assert "allow" in one_sentence(err), "a saved run reached a target that this command line did not allow"
    assert run("evaluate", folder, "--allow", "my_strategy", capsys=capsys)[0] == 0
    code, out, _ = run("list", "strategies", "--config-dir", str(my_conf), capsys=capsys)
    assert "Mine." in out


def test_a_failure_while_running(my_conf, capsys):
    code, _, err = run("--config-dir", str(my_conf), "strategy=mine", "strategy.scale=-1.0", *SETTINGS, capsys=capsys)
    assert code == 1
    line = 1 + OUTSIDE[: OUTSIDE.index("raise KeyError")].count("\n")
    assert f"/my_conf/my_strategy.py, line {line}: raise KeyError(" in one_sentence(err)
    (status,) = Path("runs").glob("*/status.json")
    assert json.loads(status.read_text())["state"] == "failed"
    assert "Traceback" in (status.parent / "log.txt").read_text()


@pytest.mark.fault("F23")
def test_environment_reaches_no_file(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "s3cret" * 8)
    run("strategy=dgl", *SETTINGS, "max_steps=1", capsys=capsys)
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or b"s3cret" not in path.read_bytes(), path


@pytest.mark.slow
def test_stdout_closed_early(tmp_path):
    """`locallearn ... | head -1` trains on."""
    arguments = " ".join(["strategy=dgl", *SETTINGS])
    command = f"{sys.executable} -m locallearn {arguments} | head -n 1"
    subprocess.run(command, shell=True, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    (status,) = tmp_path.glob("runs/*/status.json")
    assert json.loads(status.read_text())["state"] == "done"


@pytest.mark.slow
def test_data_are_found_again_from_another_directory(capsys, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image

    generator = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            (tmp_path / "images" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / part / name / f"{i}.png")
    data = ["data=folder", "data.root=images", "data.size=16"]
    _, out, _ = run("strategy=dgl", *SETTINGS, *data, "batch_size=8", capsys=capsys)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert run("evaluate", out.splitlines()[-1], capsys=capsys)[0] == 0


def test_a_reader_that_has_read_enough_is_no_error():
    call = f"{sys.executable} -m locallearn list | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", call], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
