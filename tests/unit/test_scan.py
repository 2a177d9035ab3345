"""What a scan of a folder takes and what it leaves out, and which layouts it understands: every member of a kind,
against torchvision's ImageFolder where that reads the same."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import SMALL, run
from locallearn.data.folder import Folder
from locallearn.data.scan import scan
from locallearn.errors import UserError

CPU = torch.device("cpu")
SETTINGS = [*SMALL, "data=folder", "data.size=8", "strategy=backprop", "epochs=1", "batch_size=8"]


def fill(folder: Path, images: int, suffix: str = ".png", kind: str = "PNG") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(0)
    for i in range(images):
        Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(folder / f"{i:03}{suffix}", kind)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """10 cats and 10 dogs."""
    for name in ("cat", "dog"):
        fill(tmp_path / "set" / name, 10)
    return tmp_path / "set"


def files_line(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What doctor says of the files, without where they are."""
    code, out, _ = run("doctor", "data=folder", f"data.root={root}", "data.size=8", capsys=capsys)
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("files")]
    return line.partition("; ")[2]


# --- what is taken ---------------------------------------------------------------------------------------------------

HIDDEN_FOLDERS = [
    ".ipynb_checkpoints",
    ".thumbnails",
    ".git",
    "__MACOSX",
    "@eaDir",
    "@__thumb",
    "#recycle",
    "lost+found",
]


@pytest.mark.parametrize("name", HIDDEN_FOLDERS)
def test_hidden_folders_are_no_part_of_the_set(name, root):
    for place in (root / "cat", root / "dog/more", root):
        fill(place / name, 5)
        fill(place / name / "deeper", 5)
    fill(root / "dog/more", 2)
    found = scan(root)
    assert found.classes == ("cat", "dog")
    assert len(found.parts["train"].paths) == 22
    assert found.others() == f"3 others left out ({name}/ 3)"


@pytest.mark.parametrize(
    ("name", "called"), [("._000.png", "hidden"), (".DS_Store", "hidden"), ("Thumbs.db", "Thumbs.db")]
)
def test_hidden_files_are_no_part_of_the_set(name, called, root):
    for folder in (root, root / "cat"):
        (folder / name).write_bytes(b"x")
    found = scan(root)
    assert len(found.parts["train"].paths) == 20
    assert found.others() == f"2 others left out ({called} 2)"


@pytest.mark.slow
def test_copies_of_a_notebook_on_the_command_line(root, capsys):
    fill(root / "cat/.ipynb_checkpoints", 5)
    assert files_line(root, capsys) == "every one of 20 files can be read, 1 other left out (.ipynb_checkpoints/ 1)"


@pytest.mark.slow
def test_other_suffixes_are_counted_by_doctor_and_by_the_run(root, tmp_path, capsys):
    fill(root / "cat/more", 8, ".gif", "GIF")
    fill(root / "dog", 5, ".JFIF", "JPEG")
    fill(root / "dog", 5, "", "PNG")
    others = "18 others left out (.gif 8, .jfif 5, no suffix 5)"
    assert files_line(root, capsys) == f"every one of 20 files can be read, {others}"
    code, out, err = run(*SETTINGS, f"data.root={root}", f"out={tmp_path / 'runs'}", capsys=capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[1] == others


@pytest.mark.slow
def test_a_folder_that_is_all_pictures_has_nothing_to_say(root, tmp_path, capsys):
    assert files_line(root, capsys) == "every one of 20 files can be read"
    code, out, _ = run(*SETTINGS, f"data.root={root}", f"out={tmp_path / 'runs'}", capsys=capsys)
    assert code == 0
    assert "left out" not in out


def test_files_and_folders_beside_the_classes_and_the_splits_are_counted(tmp_path):
    for split in ("train", "test"):
        fill(tmp_path / split / "cat", 4)
        fill(tmp_path / split / "dog", 4)
        fill(tmp_path / split, 1)
    fill(tmp_path / "unlabelled", 9)
    (tmp_path / "labels.csv").write_text("x")
    assert scan(tmp_path).others() == "4 others left out (.png 2, .csv 1, unlabelled/ 1)"


def test_many_kinds_are_cut_short(root):
    for i in range(12):
        (root / f"cat/x.a{i:02}").write_text("x")
    said = scan(root).others()
    assert said.startswith("12 others left out (.a00 1, ")
    assert said.endswith(", .a07 1, ...)")


@pytest.mark.slow
def test_linked_folders_and_files_are_read(root, tmp_path, capsys):
    fill(tmp_path / "more", 30)
    (root / "cat/more").symlink_to(tmp_path / "more")
    assert files_line(root, capsys) == "every one of 50 files can be read"
    (root / "dog/one.png").symlink_to(tmp_path / "more/000.png")
    (root / "emu").symlink_to(tmp_path / "more")
    found = scan(root)
    assert found.classes == ("cat", "dog", "emu")
    assert torch.bincount(found.parts["train"].labels).tolist() == [40, 11, 30]


@pytest.mark.parametrize("kind", ["itself", "above", "each other"])
def test_links_that_never_end_are_left_out(kind, root, tmp_path):
    if kind == "itself":
        (root / "cat/again").symlink_to(root / "cat")
    elif kind == "above":
        fill(root / "cat/deep/er", 1)
        (root / "cat/deep/er/again").symlink_to(root / "cat")
    else:
        (root / "cat/again").symlink_to(root / "dog")
        (root / "dog/again").symlink_to(root / "cat")
    found = scan(root)
    images = {"itself": 20, "above": 21, "each other": 40}[kind]
    assert len(found.parts["train"].paths) == images
    assert "links back to a folder above" in found.others()


def test_what_is_taken_is_what_image_folder_takes(root, tmp_path):
    from torchvision.datasets import ImageFolder

    fill(root / "cat/b", 3)
    fill(root / "cat/a/c", 3, ".JPG", "JPEG")
    fill(root / "dog", 2, ".webp", "WEBP")
    fill(root / "dog", 2, ".gif", "GIF")
    fill(root / "dog/x.png", 1)  # a folder
    fill(tmp_path / "more", 4, ".Tif", "TIFF")
    (root / "dog/more").symlink_to(tmp_path / "more")
    expected, found = ImageFolder(root), scan(root)
    assert list(found.classes) == expected.classes
    paths, labels = found.parts["train"]
    assert dict(zip(map(str, paths), labels.tolist(), strict=True)) == dict(expected.samples)


def test_the_order_is_that_of_sorted_paths(root):
    """The test set is a draw by places, so the order decides which images it has."""
    for path in ("cat/a/z.png", "cat/a.b/c.png", "cat/a-b/c.png", "cat/a.png", "cat/B/1.png"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(b"")
    assert scan(root).parts["train"].paths == sorted(root.rglob("*.png"))


# --- layouts ---------------------------------------------------------------------------------------------------------


def splits(tmp_path: Path, *names: str, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Splits of 20, 10, 5 ... images of each class."""
    for k, name in enumerate(names):
        for label in classes:
            fill(tmp_path / "set" / name / label, 20 // 2**k)
    return tmp_path / "set"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "counts"),
    [  # training, validation and test: a tenth of training is drawn where there is no validation folder
        (("train", "test"), (36, 4, 20)),
        (("Train", "Test"), (36, 4, 20)),
        (("TRAIN", "TEST"), (36, 4, 20)),
        (("training", "testing"), (36, 4, 20)),
        (("train", "val"), (36, 4, 20)),
        (("train", "Valid"), (36, 4, 20)),
        (("train", "dev"), (36, 4, 20)),
        (("train", "valid", "test"), (40, 20, 10)),
        (("train", "val", "test"), (40, 20, 10)),
        (("Train", "Validation", "Test"), (40, 20, 10)),
        (("training", "dev", "testing"), (40, 20, 10)),
        (("train",), (29, 3, 8)),
    ],
)
def test_splits_under_every_known_name(names, counts, tmp_path):
    data = Folder(root=str(splits(tmp_path, *names)), size=8).load(0, CPU)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.validation), len(data.test)) == counts
    assert data.left_out == ""


@pytest.mark.slow
def test_doctor_says_which_folder_is_which_part(tmp_path, capsys):
    said = files_line(splits(tmp_path, "Train", "valid", "test", "extra"), capsys)
    parts = "Train/ for train, valid/ for validation, test/ for test"
    assert said == f"every one of 70 files can be read, {parts}, 1 other left out (extra/ 1)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("Lernen", "Test"), r"holds splits \(Test\), but no training folder"),
        (("Lernen", "Prüfung"), r"hold folders of the same names \(cat, dog\): these are splits, not classes"),
        (("fold1", "fold2", "fold3"), r"fold1, fold2, fold3 in .* hold folders of the same names"),
        (("a/train", "b/train", "a/test", "b/test"), r"a, b in .* hold folders of the same names \(test, train\)"),
        (("train/fold1", "train/fold2"), r"fold1, fold2 in .*/train hold folders of the same names"),
        (("val",), r"holds splits \(val\), but no training folder"),
        (("test", "val"), r"holds splits \(test, val\), but no training folder"),
        (("train", "val", "valid", "test"), r"val and valid are both the validation part"),
        (("train", "Train", "test"), r"Train and train are both the train part"),
    ],
)
def test_splits_that_are_not_understood_are_refused(names, said, tmp_path, capsys):
    root = splits(tmp_path, *names)
    with pytest.raises(UserError, match=said) as caught:
        Folder(root=str(root), size=8).load(0, CPU)
    code, _, err = run(*SETTINGS, f"data.root={root}", f"out={tmp_path / 'runs'}", capsys=capsys)
    assert code == 2
    assert str(caught.value) in err
    assert not (tmp_path / "runs").exists()
    assert re.search(r"name the splits|must hold|keep one", err)


@pytest.mark.parametrize("names", [("train", "test"), ("Train", "Val", "Test"), ("training",)])
def test_splits_without_classes_are_no_classes(names, tmp_path):
    for name in names:
        fill(tmp_path / name, 5)
    with pytest.raises(UserError, match="but no training folder with a folder for each class"):
        scan(tmp_path)


def test_a_split_with_fewer_classes_is_still_a_split(tmp_path):
    splits(tmp_path, "Lernen")
    fill(tmp_path / "set/Prüfung/cat", 5)
    with pytest.raises(UserError, match="these are splits, not classes"):
        scan(tmp_path / "set")


def test_a_test_folder_without_classes_is_refused(tmp_path):
    root = splits(tmp_path, "train")
    fill(root / "test", 5)
    with pytest.raises(UserError, match="set/test has no class folders"):
        scan(root)


def nested(root: Path) -> None:
    for name in ("cat", "dog"):
        fill(root / name / "images", 5)
        (root / name / "boxes.txt").write_text("x")


def half_nested(root: Path) -> None:
    fill(root / "cat", 3)
    for place in ("cat/indoor", "cat/outdoor", "dog/indoor", "dog/outdoor"):
        fill(root / place, 3)


def own_names(root: Path) -> None:
    for place in ("cat/tom", "cat/felix", "dog/rex", "dog/bello"):
        fill(root / place, 3)


def named_as_a_split(root: Path) -> None:
    for name in ("cat", "dog", "train"):
        fill(root / name, 5)


@pytest.mark.parametrize("make", [nested, half_nested, own_names, named_as_a_split])
def test_classes_that_are_classes(make: Callable[[Path], None], tmp_path):
    make(tmp_path)
    assert scan(tmp_path).classes == tuple(sorted(os.listdir(tmp_path)))


# --- a validation part of its own ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_share_beside_a_validation_folder_is_refused(tmp_path, capsys):
    root = splits(tmp_path, "train", "valid", "test")
    words = [*SETTINGS, f"data.root={root}", f"out={tmp_path / 'runs'}"]
    code, _, err = run(*words, "data.validation=0.2", capsys=capsys)
    assert code == 2
    assert "data.validation=0.2 is read only with data=NAME without a validation part of its own" in err
    assert not (tmp_path / "runs").exists()
    code, out, err = run(*words, capsys=capsys)
    assert (code, err) == (0, "")
    assert "(40 train, 20 validation, 10 test)" in out
