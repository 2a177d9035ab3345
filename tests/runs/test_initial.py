"""Weights from elsewhere: an earlier run, a file, a published network; and what is left as it was."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import resnet18

import locallearn
from helpers.commands import SMALL, one_sentence, run
from helpers.marks import slow
from locallearn.training.loop import Training
from locallearn.training.run import resume

pytestmark = pytest.mark.usefixtures("elsewhere")
MODEL = ["model=mlp", "model.width=8", "model.depth=4", "blocks=4"]
SET = ["data=synthetic", "data.images=40", "data.size=6"]
STILL = [*SMALL, *MODEL, *SET, "strategy=dgl", "auxiliary=linear", "epochs=1", "optim=sgd", "optim.lr=0"]


def ended(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[Path, str]:
    """The folder of a run and what it said."""
    code, out, err = run(*words, capsys=capsys)
    assert code == 0, err
    return Path(out.splitlines()[-1].split()[-1]), out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def parts(model: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> set[str]:
    """The units, and the head, whose trained weights are the same bits in both."""
    by_part: dict[str, bool] = {}
    for name, t in model.items():
        if "running" not in name and "tracked" not in name:  # these move at any rate
            part = "head" if name.startswith("head") else name.split(".")[1]
            by_part[part] = by_part.get(part, True) and torch.equal(t, other[name])
    return {part for part, same in by_part.items() if same}


@pytest.fixture
def first(capsys: pytest.CaptureFixture[str]) -> Path:
    """An earlier run, from other initial weights."""
    return ended(capsys, *STILL, "optim.lr=0.1", "seed=5", "data.classes=3", "out=first")[0]


@pytest.mark.slow
def test_a_run_starts_from_the_model_of_an_earlier_one(first, capsys):
    every = {"0", "1", "2", "3", "head"}
    before, drawn = weights(first), weights(ended(capsys, *STILL, "data.classes=3", "out=drawn")[0])
    assert not parts(before, drawn)
    folder, out = ended(capsys, *STILL, "data.classes=3", f"init.run={first}", "out=a")
    assert parts(weights(folder), before) == every
    assert f"weights of init.run={first.resolve()}: all 4 units and the head" in out
    assert "run: /" in (folder / "config.yaml").read_text(), "found from any directory"
    (taken,) = json.loads((folder / "manifest.json").read_text())["weights"]
    assert len(taken["sha256"]) == 64
    folder, out = ended(capsys, *STILL, "data.classes=3", f"init.run={first}", "init.blocks=[0,2]", "out=b")
    assert parts(weights(folder), before) == {"0", "2"}
    assert parts(weights(folder), drawn) == {"1", "3", "head"}
    assert "of 4 units 0, 2, and nothing else" in out
    folder, out = ended(capsys, *STILL, "data.classes=5", f"init.run={first}", "out=c")
    assert "all 4 units; the head is new (of 5 classes, which are others than there)" in out
    assert weights(folder)["head.weight"].shape == (5, 8)
    for words, said in {
        ("model.width=9",): "does not fit mlp: units.0.1.weight is [8, 108] there and [9, 108] here",
        ("init.blocks=[4]",): "init.blocks=[4]: the model is cut into blocks 0 to 3; choose of these",
        ("init.weights=x",): "init.run and init.weights both say where weights come from",
        ("init.run=nowhere",): "there is no run folder",
        ("init.run=null", "init.blocks=[0]"): "init.blocks=[0] is read only with init.run=RUN or init.weights=FILE",
    }.items():
        code, _, err = run(*STILL, "data.classes=3", f"init.run={first}", *words, "out=refused", capsys=capsys)
        assert (code, said in one_sentence(err)) == (2, True), err
    assert not Path("refused").exists()


class Hostile:
    def __reduce__(self):
        return os.system, ("touch canary",)


@pytest.mark.slow
def test_a_run_starts_from_a_file(first, capsys):
    """Of safetensors, or as torch saves it, alone or among other things; a pickle of anything else runs nothing."""
    before = weights(first)
    torch.save(before, "plain.pt")
    torch.save({"epoch": 3, "state_dict": {**before, "ema": torch.zeros(2)}}, "nested.pt")
    save_file({n: t for n, t in before.items() if not n.startswith("head")}, "body.safetensors")
    for name, said in {"plain.pt": " and the head", "nested.pt": " and the head; 1 of its tensors have no place here",
                       "body.safetensors": "; the head is new (head.weight is not there)"}.items():  # fmt: skip
        folder, out = ended(capsys, *STILL, "data.classes=3", f"init.weights={name}", f"out={name}-run")
        assert f"{name}: all 4 units{said}" in out
        assert parts(weights(folder), before) >= {"0", "1", "2", "3"}
    torch.save(Hostile(), "hostile.pt")
    torch.save([1, 2], "list.pt")
    Path("text.safetensors").write_text("no")
    for name in ("hostile.pt", "list.pt", "text.safetensors", "."):
        code, _, err = run(*STILL, f"init.weights={name}", "out=refused", capsys=capsys)
        assert (code, "init.weights=" in one_sentence(err)) == (2, True), err
    assert not Path("refused").exists()
    assert not Path("canary").exists()


@pytest.mark.slow
def test_the_weights_are_needed_until_there_is_a_checkpoint(first, capsys, monkeypatch):
    """Killed before one, a run begins with the same weights or not at all; later it needs them no more."""
    words = [*STILL, "data.classes=3", "optim.lr=0.1"]
    whole, _ = ended(capsys, *words, f"init.run={first}", "out=whole")
    with monkeypatch.context() as patch:
        patch.setattr(Training, "finish_epoch", lambda *_, **__: 1 / 0)
        run(*words, f"init.run={first}", "out=part", capsys=capsys)
    (part,) = Path("part").iterdir()
    kept = (first / "model.safetensors").read_bytes()
    (first / "model.safetensors").write_bytes((whole / "model.safetensors").read_bytes())
    code, _, err = run("resume", str(part), capsys=capsys)
    assert (code, "is not what the run began with" in one_sentence(err)) == (2, True)
    (first / "model.safetensors").write_bytes(kept)
    resume(part, [], quiet=True)
    assert all(torch.equal(t, weights(part)[name]) for name, t in weights(whole).items())
    shutil.rmtree(first)
    resume(part, [], quiet=True, epochs=2)
    assert run("evaluate", str(part), capsys=capsys)[0] == 0
    assert locallearn.load(part)


def images(root: Path) -> None:
    """Two classes, for training and test: bright above, and bright below."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(("above", "below")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 90, (32, 32, 3), dtype=np.uint8)
                pixels[16 * label : 16 * label + 16] += 150
                Image.fromarray(pixels).save(root / split / name / f"{i:02}.png")


RESNET = ["model=torchvision", "model.name=resnet18", "model.cuts=[relu,layer1,layer2,layer3,layer4]", "blocks=max"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dgl", "greedy"])
def test_a_published_network_is_fine_tuned_block_by_block_on_a_folder(strategy, capsys):
    """From a file for 7 classes to 2: the frozen blocks keep its bits, the others learn by losses of their own, and
    what comes out is a resnet18 of torchvision again."""
    images(Path("pictures"))
    torch.manual_seed(3)
    theirs = resnet18(num_classes=7)
    torch.save(theirs.state_dict(), "resnet18.pth")
    words = ["data=folder", "data.root=pictures", "data.size=32", "data.validation=0", "batch_size=8", "threads=1"]
    words += [*RESNET, f"strategy={strategy}", "auxiliary=linear", "epochs=4", "optim=sgd", "optim.lr=0.02"]
    folder, out = ended(capsys, *words, "model.weights=resnet18.pth", "train_blocks=[3,4]")
    assert "all 5 units; the head is new (head.fc.weight is [7, 512] there and [2, 512] here)" in out
    learned = {name.split(".", 1 if name.startswith("head") else 2)[-1]: t for name, t in weights(folder).items()}
    moved = {name.split(".")[0] for name, t in theirs.state_dict().items() if not torch.equal(t, learned[name])}
    assert moved == {"layer3", "layer4", "fc"}
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    learning = {k for record in records for k in range(5) if f"block/{k:02}/loss" in record}
    assert learning == {3, 4}
    assert records[-1]["test/accuracy"] == 1
    plain = resnet18(num_classes=2)
    plain.load_state_dict(learned)
    x = torch.randn(2, 3, 32, 32)
    assert torch.allclose(plain.eval()(x), locallearn.load(folder)(x), atol=1e-5)
    Path("resnet18.pth").unlink()
    assert run("evaluate", str(folder), capsys=capsys)[0] == 0
    refused = {"resnet18.pth": "must be a file, or a name of weights for resnet18", "DEFAUL": "did you mean 'DEFAULT'"}
    for name, said in refused.items():
        code, _, err = run(*words, f"model.weights={name}", "out=refused", capsys=capsys)
        assert (code, said in one_sentence(err)) == (2, True), err


@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize("library", ["torchvision", slow("timm")])
def test_weights_are_downloaded_only_if_they_are_asked_for(library, capsys, monkeypatch):
    """Without a network that is said in one sentence, and nothing is tried without `weights`."""
    monkeypatch.setenv("TORCH_HOME", str(Path.cwd()))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    words = [f"model={library}", "data=synthetic", "data.images=24", "data.size=32", "max_steps=1", "threads=1"]
    code, _, err = run(*words, "model.weights=DEFAULT", capsys=capsys)
    assert (code, "model.weights=DEFAULT could not be downloaded" in one_sentence(err)) == (2, True), err
    assert run(*words, "--dry-run", capsys=capsys)[0] == 0


@pytest.mark.slow
def test_the_cut_of_a_traced_network_is_not_part_of_its_names(capsys):
    """Units that were cut elsewhere hand their weights on all the same."""
    few = ["data=synthetic", "data.images=24", "data.size=32", "max_steps=1", "threads=1", "optim=sgd", "optim.lr=0"]
    few += ["model=torchvision", "strategy=backprop", "batch_size=4"]
    first, _ = ended(capsys, *few, "model.cuts=[layer1,layer2]", "seed=4", "out=first")
    second, out = ended(capsys, *few, "model.cuts=[layer3]", f"init.run={first}", "out=second")
    assert "all 2 units and the head" in out
    one, two = (
        {name.split(".", 1 if name.startswith("head") else 2)[-1]: t for name, t in weights(folder).items()}
        for folder in (first, second)
    )
    assert all(torch.equal(t, two[name]) for name, t in one.items() if "running" not in name and "tracked" not in name)
