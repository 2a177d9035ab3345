"""What belongs to a run: its normalisation, its classes, and which data it was trained on. Whatever comes back to the
run goes by them, and says so where the data are others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import locallearn
from helpers.commands import run
from helpers.marks import slow
from locallearn.data import Data, DataSource
from locallearn.data.benchmarks import CIFAR10, MNIST, FashionMNIST
from locallearn.data.cora import Cora
from locallearn.data.digits import Digits
from locallearn.data.fingerprint import fingerprint
from locallearn.data.folder import Folder
from locallearn.data.names import Names
from locallearn.data.normalise import Normalisation
from locallearn.data.stream import read_image
from locallearn.data.synthetic import Synthetic
from locallearn.data.tishby import Tishby
from locallearn.errors import UserError
from locallearn.runs.folder import RunFolder
from locallearn.training.later import evaluate_run
from locallearn.training.saved import saved_experiment

CPU = torch.device("cpu")
TINY = [
    "model=mlp",
    "model.width=16",
    "model.depth=3",
    "strategy=backprop",
    "threads=1",
    "batch_size=10",
    "optim.lr=5e-3",
]
COMMANDS = {"evaluate": [], "probe": ["probe=alignment"], "resume": [], "repeat": []}
EACH = ["evaluate", *map(slow, ("probe", "resume", "repeat"))]


def fill(folder: Path, images: int, level: float = 100, seed: int = 0) -> None:
    """Noisy grey pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    for i in range(images):
        pixels = np.clip(level + draws.normal(0, 15, (8, 8, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")


def folder_set(root: Path, light: float = 1.0, names: tuple[str, str] = ("cat", "dog")) -> Path:
    """30 training and 10 test images of a bright and of a dark class."""
    for k, (name, level) in enumerate(zip(names, (200, 100), strict=True)):
        fill(root / "train" / name, 30, level * light, seed=k)
        fill(root / "test" / name, 10, level * light, seed=10 + k)
    return root


def train(out: Path, *words: str, epochs: int = 2) -> Path:
    """A finished run."""
    argv, sys.argv = sys.argv, ["locallearn"]
    try:
        assert locallearn.cli.main.main([*words, *TINY, f"epochs={epochs}", f"out={out}"]) == 0
    finally:
        sys.argv = argv
    return next(out.glob("*/summary.json")).parent


def folder_of(root: Path) -> list[str]:
    return ["data=folder", f"data.root={root}", "data.size=8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder `set`, and a run on it; tests copy both."""
    place = tmp_path_factory.mktemp("made")
    folder_set(place / "set")
    shutil.move(train(place / "runs", *folder_of(place / "set"), epochs=5), place / "run")
    return place


@pytest.fixture
def copied(made, tmp_path) -> Path:
    """The same, with the run on the copy of the set."""
    shutil.copytree(made, tmp_path / "copy")
    config = tmp_path / "copy/run/config.yaml"
    config.write_text(config.read_text().replace(str(made), str(tmp_path / "copy")))
    return tmp_path / "copy"


def manifest(place: Path) -> dict[str, Any]:
    return json.loads((place / "run/manifest.json").read_text())


def numbers(out: str) -> dict[str, float]:
    return {name: float(value) for name, value in (line.split() for line in out.splitlines())}


def unfinished(place: Path) -> None:
    """As a run that was killed after its last checkpoint but one."""
    (place / "run/status.json").write_text(json.dumps({"state": "interrupted"}))


def call(command: str, place: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    if command == "resume":
        unfinished(place)
    return run(command, str(place / "run"), *COMMANDS[command], capsys=capsys)


# --- normalisation ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_manifest_has_mean_and_deviation_of_the_training_split(made):
    noted = manifest(made)["normalisation"]
    data = Folder(root=str(made / "set"), size=8).load(0, CPU)
    raw, _ = next(data.train.take(torch.arange(len(data.train)), 100))
    torch.testing.assert_close(torch.tensor(noted["mean"]).double(), raw.double().mean((0, 2, 3)) / 255)
    torch.testing.assert_close(torch.tensor(noted["std"]).double(), raw.double().std((0, 2, 3), correction=0) / 255)


@pytest.mark.slow
def test_another_set_is_normalised_as_the_run_was(copied, tmp_path, capsys):
    """The same scenes at half the light: to the net that was trained on bright ones every one is a dog."""
    dark = folder_set(tmp_path / "dark", light=0.5)
    code, out, err = run("evaluate", str(copied / "run"), *folder_of(dark), capsys=capsys)
    assert (code, err) == (0, "")
    noted = manifest(copied)["normalisation"]
    mean, std = (torch.tensor(noted[key])[:, None, None] for key in ("mean", "std"))
    model = locallearn.load(copied / "run")
    shown = [torch.stack([read_image(f, 8) for f in sorted((dark / "test" / n).iterdir())]) for n in ("cat", "dog")]
    with torch.no_grad():
        guesses = [model((images.float() / 255 - mean) / std).argmax(1) for images in shown]
    by_hand = torch.cat([guesses[0] == 0, guesses[1] == 1]).float().mean().item()
    assert numbers(out)["accuracy"] == pytest.approx(by_hand)
    assert by_hand <= 0.5
    assert numbers(run("evaluate", str(copied / "run"), capsys=capsys)[1])["accuracy"] == 1.0


@pytest.mark.slow
def test_the_normalisation_of_the_run_holds_in_every_command(copied, capsys):
    """Another one in the manifest gives other numbers, so it is what they use."""
    before = {name: call(name, copied, capsys)[1] for name in ("evaluate", "probe")}
    known = manifest(copied)
    known["normalisation"] = {"mean": [0.1] * 3, "std": [2.0] * 3}
    (copied / "run/manifest.json").write_text(json.dumps(known))
    for name, said in before.items():
        code, out, _ = call(name, copied, capsys)
        assert code == 0
        assert out != said
    assert call("resume", copied, capsys)[0] == 0
    assert manifest(copied)["normalisation"] == known["normalisation"]


@pytest.mark.slow
def test_the_stages_of_a_pipeline_normalise_by_the_manifest(tmp_path, capsys):
    root = folder_set(tmp_path / "set")
    words = [*folder_of(root), "data.validation=0"]
    pipeline = train(tmp_path / "two", *words, "runtime=pipeline", "runtime.stages=2", "blocks=2")
    serial = train(tmp_path / "one", *words, "blocks=2")
    both = [locallearn.load(path).state_dict() for path in (pipeline, serial)]
    assert all(torch.equal(both[0][name], tensor) for name, tensor in both[1].items())
    first, second = (json.loads((path / "manifest.json").read_text()) for path in (pipeline, serial))
    assert first["normalisation"] == second["normalisation"]
    assert first["data"] == second["data"]


def test_moments_are_not_measured_again_for_a_known_normalisation(made, monkeypatch):
    monkeypatch.setattr("locallearn.data.normalise.moments", None)
    data = Folder(root=str(made / "set"), size=8).load(0, CPU, Normalisation([0.5] * 3, [0.25] * 3))
    inputs, _ = next(data.evaluation(data.test, 4))
    raw, _ = next(data.test.take(torch.arange(4), 4))
    torch.testing.assert_close(inputs, (raw.float() / 255 - 0.5) / 0.25)


# --- classes and kinds of samples ------------------------------------------------------------------------------------

OWN = '''
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from locallearn.data import DataSource
from locallearn.data.source import RawSplit, Raw
from locallearn.data.store import Memory


@dataclass(frozen=True)
class Own(DataSource):
    """60 vectors or images from a file of numbers; labels in turn."""

    name: ClassVar[str] = "own"
    classes: str = "a,b,c"
    kind: str = "float"

    def read(self, device):
        classes = tuple(self.classes.split(","))
        values = torch.tensor([float(text) for text in Path(self.root).read_text().split()])
        samples = torch.arange(60 * 12).view(60, 12) % 7 + values.mean()
        if self.kind != "float":
            channels = {"grey": 1, "colour": 3}[self.kind]
            samples = samples.to(torch.uint8).view(60, 1, 3, 4).repeat(1, channels, 1, 1)
        elif self.kind == "float":
            samples = samples.view(60, 1, 3, 4)
        labels = torch.arange(60) % len(classes)
        return Raw(classes, RawSplit(Memory(samples[:40]), labels[:40]), RawSplit(Memory(samples[40:]), labels[40:]))
'''


@pytest.fixture
def own(tmp_path) -> Iterator[Callable[..., list[str]]]:
    """Gives the arguments of a set of the user's own."""
    conf = tmp_path / "conf"
    (conf / "data").mkdir(parents=True)
    (conf / "my_own.py").write_text(OWN)
    (conf / "data/own.yaml").write_text("# Own.\n_target_: my_own.Own\nroot: null\nclasses: a,b,c\nkind: float\n")
    (tmp_path / "numbers.txt").write_text("1 2 3")
    yield (
        lambda **options: (
            ["data=own", f"data.root={tmp_path / 'numbers.txt'}"]
            + [f"data.{name}='{value}'" for name, value in options.items()]
        )
    )
    sys.modules.pop("my_own", None)
    sys.path[:] = [path for path in sys.path if path != str(conf.resolve())]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ("ant", "cat"),
            "label 0 is 'cat' in the run and 'ant' in data=folder: choose a set with the classes of the run",
        ),
        (("cat", "emu"), "label 1 is 'dog' in the run and 'emu' in data=folder"),
        (("Cat", "Dog"), "label 0 is 'cat' in the run and 'Cat' in data=folder"),
    ],
)
def test_other_classes_are_refused(names, said, copied, tmp_path, capsys):
    other = folder_set(tmp_path / "other", names=names)
    code, out, err = run("evaluate", str(copied / "run"), *folder_of(other), capsys=capsys)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_another_number_of_classes_and_another_shape_are_refused(copied, tmp_path, capsys):
    other = folder_set(tmp_path / "other")
    fill(other / "train/emu", 5)
    for words in (folder_of(other), [*folder_of(copied / "set"), "data.size=9"], ["data=digits"]):
        code, _, err = run("evaluate", str(copied / "run"), *words, capsys=capsys)
        assert code == 2
        assert "the run was trained on" in err


@pytest.mark.slow
@pytest.mark.parametrize("command", EACH)
def test_a_class_that_was_renamed_in_the_folder_of_the_run(command, copied, capsys):
    for split in ("train", "test"):
        (copied / "set" / split / "dog").rename(copied / "set" / split / "emu")
    code, _, err = call(command, copied, capsys)
    if command == "repeat":  # the run is repeated on what is there
        assert "warning: the data are not those that the run was trained on" in err
    else:
        assert code == 2
        assert "label 1 is 'dog' in the run and 'emu' in data=folder" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options", "said"),
    [
        ("float", {"kind": "float"}, None),
        ("float", {"kind": "float", "classes": "b,a,c"}, "label 0 is 'a' in the run and 'b' in data=own"),
        pytest.param(
            "float",
            {"kind": "grey"},
            "trained on float32 samples, used as they are, but data=own has pixels, normalised",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "grey",
            {"kind": "float"},
            "trained on pixels, normalised, but data=own has float32 samples, used as they are",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "grey",
            {"kind": "colour"},
            r"data=own has images \[3, 3, 4\], but the run was trained on images of 1 channels",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_set_of_the_users_own(kind, options, said, own, tmp_path, capsys):
    folder = train(tmp_path / "runs", "--config-dir", str(tmp_path / "conf"), *own(kind=kind))
    noted = json.loads((folder / "manifest.json").read_text())
    assert (noted["normalisation"] is None) == (kind == "float")
    assert noted["data"]["train"] == 36
    words = ["evaluate", str(folder), "--allow", "my_own"]
    assert run(*words, capsys=capsys)[::2] == (0, "")
    config = {"_target_": "my_own.Own", "root": str(tmp_path / "numbers.txt"), **options}
    if said is None:
        assert evaluate_run(folder, ["my_own"], config) == evaluate_run(folder, ["my_own"])
    else:
        with pytest.raises(UserError, match=said):
            evaluate_run(folder, ["my_own"], config)
    (tmp_path / "numbers.txt").write_text("1 2 30")
    code, _, err = run(*words, capsys=capsys)
    assert code == 0
    assert "as many samples as before, but not the same files, values or labels" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.root=elsewhere"], "data.root=elsewhere is for a set other than the run's: name that set as well"),
        (["data=folder", "data.normalise=symmetric"], "data.normalise=symmetric is not read"),
        (["data=folder", "data.flip=true"], "data.flip=true concerns training"),
        (["data=folder", "data.fraction=0.5"], "data.fraction=0.5 concerns training"),
        (["--linear", "data=folder", "data.deficit=blur"], "data.deficit=blur concerns training"),
    ],
)
def test_what_evaluate_would_not_read_is_refused(words, said, made, capsys):
    code, out, err = run("evaluate", str(made / "run"), *words, capsys=capsys)
    assert (code, out) == (2, "")
    assert said in err


# --- data that have changed ------------------------------------------------------------------------------------------


def add(place: Path) -> str:
    fill(place / "set/train/cat", 40, 200)
    return "54 training, 6 validation and 20 test samples before, 63, 7 and 20 now"


def take_away(place: Path) -> str:
    (place / "set/test/dog/003.png").unlink()
    return "54 training, 6 validation and 20 test samples before, 54, 6 and 19 now"


def rename(place: Path) -> str:
    (place / "set/train/dog/003.png").rename(place / "set/train/dog/900.png")
    return "as many samples as before, but not the same files, values or labels"


def replace(place: Path) -> str:
    fill(place / "set/train/dog", 3, 250, seed=5)
    return "as many samples as before, but not the same files, values or labels"


def move(place: Path) -> str:
    (place / "set/train/dog/003.png").rename(place / "set/train/cat/003a.png")
    (place / "set/train/cat/004.png").rename(place / "set/train/dog/004a.png")
    return "as many samples as before, but not the same files, values or labels"


CHANGES = [add, replace, *map(slow, (take_away, rename, move))]
NOT_THOSE = "the data are not those that the run was trained on: "


@pytest.mark.parametrize("change", CHANGES)
def test_evaluate_says_that_the_data_have_changed(change, copied, capsys):
    said = change(copied)
    code, out, err = call("evaluate", copied, capsys)
    assert (code, err) == (0, f"warning: {NOT_THOSE}{said}\n")
    assert "accuracy" in out


@pytest.mark.slow
@pytest.mark.parametrize("change", [add, slow(replace)])
def test_probe_says_that_the_data_have_changed(change, copied, capsys):
    said = change(copied)
    code, _, err = call("probe", copied, capsys)
    assert (code, err) == (0, f"warning: {NOT_THOSE}{said}\n")


@pytest.mark.slow
@pytest.mark.parametrize("change", [add, slow(take_away)])
def test_resume_refuses_other_splits(change, copied, capsys):
    said = change(copied)
    unfinished(copied)
    before = {path: path.read_bytes() for path in (copied / "run").rglob("*") if path.is_file()}
    code, _, err = call("resume", copied, capsys)
    assert code == 2
    assert f"{NOT_THOSE}{said}, so the splits differ" in err
    assert len(err.splitlines()) == 1
    assert all(path.read_bytes() == content for path, content in before.items() if path.name != ".lock")


@pytest.mark.slow
@pytest.mark.parametrize("change", [replace, *map(slow, (rename, move))])
def test_resume_goes_on_with_a_warning_where_the_splits_are_as_large(change, copied, capsys):
    said = change(copied)
    code, _, err = call("resume", copied, capsys)
    assert (code, err) == (0, f"warning: {NOT_THOSE}{said}\n")


@pytest.mark.slow
@pytest.mark.parametrize("change", [add, slow(replace)])
def test_repeat_says_that_the_data_differ(change, copied, capsys):
    said = change(copied)
    code, out, err = call("repeat", copied, capsys)
    assert code == 1
    assert f"warning: {NOT_THOSE}{said}" in err
    assert out.splitlines()[-1] == f"  not the same: the data differ: {said}"


@pytest.mark.slow
@pytest.mark.parametrize("command", EACH)
def test_the_same_data_are_not_spoken_of(command, copied, capsys):
    """Also where they lie elsewhere, and with other times."""
    (copied / "set").rename(copied / "set2")
    shutil.copytree(copied / "set2", copied / "set", copy_function=shutil.copyfile)
    code, out, err = call(command, copied, capsys)
    assert (code, err) == (0, "")
    assert "differ" not in out


def test_resume_of_a_run_that_is_done_reads_no_data(copied, capsys):
    shutil.rmtree(copied / "set")
    assert run("resume", str(copied / "run"), capsys=capsys)[0] == 0


# --- older runs, and forged manifests --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("command", EACH)
def test_an_older_run_is_read_with_one_line(command, copied, capsys):
    known = manifest(copied)
    del known["normalisation"], known["data"]
    (copied / "run/manifest.json").write_text(json.dumps(known))
    code, out, err = call(command, copied, capsys)
    assert code == 0
    assert err.startswith("warning: the run is of an older version, which did not record its data")
    assert len(err.splitlines()) == 1
    assert locallearn.load(copied / "run") is not None
    assert "and data agree" not in out


@pytest.mark.slow
def test_an_older_run_on_another_set(copied, tmp_path, capsys):
    known = manifest(copied)
    del known["normalisation"], known["data"]
    (copied / "run/manifest.json").write_text(json.dumps(known))
    dark = folder_set(tmp_path / "dark", light=0.5)
    code, _, err = run("evaluate", str(copied / "run"), *folder_of(dark), capsys=capsys)
    assert code == 0
    assert "did not record its normalisation: that of this set is used" in err


def moments(mean: Any, std: Any) -> dict[str, Any]:
    return {"mean": mean, "std": std}


COUNTS = {"train": 1, "validation": 1, "test": 1}
BROKEN = [moments([0.1] * 3, [0.0] * 3), moments([0.1], [1.0]), moments([0.1] * 3, [1.0] * 2), moments("abc", "abc")]
FORGED = {
    "normalisation": ["x", [], 3, {}, {"mean": [1.0]}, moments([float("inf")] * 3, [1.0] * 3), *BROKEN],
    "data": ["x", [], 3, {}, COUNTS, {**COUNTS, "checksum": 3}, {**COUNTS, "train": "1", "checksum": "x"}],
}


@pytest.mark.fault("F3")
@pytest.mark.parametrize("key", FORGED)
def test_a_forged_manifest_is_refused_in_one_sentence(key, copied, record_property):
    sound = manifest(copied)
    record_property("injected", len(FORGED[key]))
    for value in FORGED[key]:
        (copied / "run/manifest.json").write_text(json.dumps({**sound, key: value}))
        with pytest.raises(UserError, match=r"manifest\.json") as caught:
            saved_experiment(RunFolder.open(copied / "run"), [])
        assert "\n" not in str(caught.value)


# --- fingerprints of every set ---------------------------------------------------------------------------------------

SETS: dict[str, DataSource] = {"digits": Digits(), "synthetic": Synthetic(images=50, size=8)}
REAL = {
    "mnist": MNIST,
    "fashion_mnist": FashionMNIST,
    "cifar10": CIFAR10,
    "names": Names,
    "tishby": Tishby,
    "cora": Cora,
}


@pytest.fixture(params=[*SETS, *(pytest.param(n, marks=[pytest.mark.slow] * (n == "cifar10")) for n in REAL)])
def source(request) -> DataSource:
    if request.param in SETS:
        return SETS[request.param]
    return REAL[request.param](root=str(request.getfixturevalue("real_root")))


@pytest.mark.slow
def test_a_set_has_one_fingerprint_until_anything_in_it_changes(source):
    data = source.load(0, CPU)
    first = fingerprint(data)
    assert first == fingerprint(source.load(0, CPU))
    assert (first.train, first.validation, first.test) == (len(data.train), len(data.validation), len(data.test))
    assert len(first.checksum) == 32
    seen = {first.checksum}
    for change in (one_sample, one_test_sample, two_samples_swapped, one_label):
        change(data)
        seen.add(fingerprint(data).checksum)
    if data.graph is not None:
        data.graph[0, 0] += 1
        seen.add(fingerprint(data).checksum)
    assert len(seen) == 5 + (data.graph is not None)


def one_sample(data: Data) -> None:
    data.train.store.samples.view(-1)[-1] += 1  # type: ignore[attr-defined]


def one_test_sample(data: Data) -> None:
    data.test.store.samples.view(-1)[0] += 1  # type: ignore[attr-defined]


def two_samples_swapped(data: Data) -> None:
    samples = data.train.store.samples  # type: ignore[attr-defined]
    samples[[0, 1]] = samples[[1, 0]]


def one_label(data: Data) -> None:
    data.test.labels[3] = (data.test.labels[3] + 1) % len(data.classes)


def test_another_split_of_the_same_samples_is_told_apart():
    assert len({fingerprint(Digits().load(seed, CPU)).checksum for seed in (0, 1)}) == 2


def test_in_memory_and_streamed_folders_have_one_fingerprint(made):
    kept, streamed = (Folder(root=str(made / "set"), size=8, memory_share=m).load(0, CPU) for m in (0.25, 0))
    assert type(kept.train.store) is not type(streamed.train.store)
    assert fingerprint(kept) == fingerprint(streamed)


def test_a_fingerprint_of_files_opens_none(made, monkeypatch):
    data = Folder(root=str(made / "set"), size=8, memory_share=0, normalise="symmetric").load(0, CPU)
    monkeypatch.setattr("locallearn.data.stream.read_image", None)
    assert fingerprint(data).train == 54


def test_a_store_of_the_users_own_needs_no_identity():
    data = Synthetic(images=20, size=4).load(0, CPU)

    class Bare:
        image, dtype = (3, 4, 4), torch.uint8

        def __len__(self) -> int:
            return 20

    found = []
    for labels in (data.train.labels, data.train.labels.flip(0)):
        data.train = type(data.train)(Bare(), data.train.index, labels)  # type: ignore[arg-type]
        found.append(fingerprint(data).checksum)
    assert found[0] != found[1]
