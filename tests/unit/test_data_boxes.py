"""Folders in the layout of Pascal VOC: what is read, dropped and refused; boxes that go with their pixels."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from locallearn.data.augment import draw
from locallearn.data.boxes import BCCD, GREY, BoxData, Boxes, mirrored, mosaic
from locallearn.data.doctor import diagnose
from locallearn.errors import UserError

CPU = torch.device("cpu")


def xml(boxes: Sequence[tuple], size: tuple[int, int] | None = (50, 40), head: str = "") -> str:
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(sides, corners, strict=True))
        + "</bndbox></object>"
        for name, *corners in boxes
    )
    of_size = "" if size is None else f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"{head}<annotation>{of_size}{objects}</annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images of 50 x 40, with a white square where the object is; two of them train."""
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    for i in range(4):
        image = Image.new("RGB", (50, 40))
        image.paste((255, 255, 255), (5 + i, 10, 20 + i, 30))
        image.save(tmp_path / "JPEGImages" / f"im{i}.png")
        name = ("cat", "dog")[i % 2]
        (tmp_path / "Annotations" / f"im{i}.xml").write_text(xml([(name, 5 + i, 10, 20 + i, 30)]))
    for part, own in (("train", "im0\nim1\n"), ("val", "im2"), ("test", "im3")):
        (tmp_path / "ImageSets" / "Main" / f"{part}.txt").write_text(own)
    return tmp_path


def load(root: Path, **options) -> BoxData:
    return Boxes(root=str(root), **{"size": (64, 96), **options}).load(0, CPU)


def test_images_are_fitted_and_boxes_go_with_them(root):
    data = load(root)
    assert (data.name, data.classes, data.image) == ("voc", ("cat", "dog"), (3, 64, 96))
    assert (len(data.train), len(data.validation), len(data.test)) == (2, 1, 1)
    scale, left = 1.6, (96 - 80) // 2  # 50 x 40 -> 80 x 64, in the middle
    expected = [0, 5 * scale + left, 10 * scale, 20 * scale + left, 30 * scale]
    torch.testing.assert_close(data.train.labels[0, 0], torch.tensor(expected))
    pixels = data.train.store.samples[0]
    assert set(pixels[:, :, :left].flatten().tolist()) == {GREY}
    _, x1, y1, x2, y2 = (round(v) for v in expected)
    assert int(pixels[:, y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].min()) == 255
    assert int(pixels[:, :, left : x1 - 2].max()) == 0


def test_a_letterbox_and_back_is_within_half_a_pixel():
    from locallearn.data.boxes import fitted

    image = Image.new("RGB", (500, 375))
    _, scale, left, top = fitted(image, 256, 256)
    assert (left, top) == (0, 32)
    back = [((x * scale + left) - left) / scale for x in (0.0, 123.4, 500.0)]
    assert back == pytest.approx([0.0, 123.4, 500.0], abs=0.5)
    assert fitted(image, 256, 192)[1:] == (0.512, 0, 0)


def test_images_without_boxes_and_in_grey_or_cmyk_are_sound(root):
    (root / "Annotations" / "im0.xml").write_text(xml([]))
    for i, mode in ((0, "L"), (1, "CMYK")):
        file = root / "JPEGImages" / f"im{i}.png"
        Image.open(file).convert(mode).save(file.with_suffix(".jpg"))
        file.unlink()
    data = load(root, labels=["cat", "dog"])
    assert data.train.labels[:, :, 0].tolist() == [[-1.0], [1.0]]
    assert data.image[0] == 3


def test_boxes_that_are_none_are_dropped_and_counted(root):
    wrong = [("cat", 5, 5, 5, 20), ("cat", 20, 5, 10, 20), ("cat", 60, 5, 70, 20), ("cat", -10, 5, 20, 99)]
    (root / "Annotations" / "im0.xml").write_text(xml(wrong))
    data = load(root, size=(64, 96))
    assert data.left_out == (
        "1 box outside of the image and 1 box with swapped corners and 1 box without an area left out, the first in "
        "im0.xml"
    )
    torch.testing.assert_close(data.train.labels[0, 0], torch.tensor([0, 8.0, 8.0, 40.0, 64.0]))
    assert data.left_out in diagnose(Boxes(root=str(root)))


def test_the_doctor_counts_boxes(root):
    text = diagnose(Boxes(root=str(root)))
    assert "every one of 4 images and annotations can be read" in text
    assert [line.split() for line in text.splitlines()[-2:]] == [["cat", "1", "1", "0"], ["dog", "1", "0", "1"]]


DTD = '<!DOCTYPE a [<!ENTITY x "y">]>'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (xml([("bird", 1, 1, 9, 9)]), "bird.*training part are cat, dog"),
        (xml([], head=DTD), "document type"),
        (xml([]).encode("utf-16").decode("utf-16").replace("</annotation>", ""), "cannot read the annotation"),
        (xml([("cat", 1, 1, "x", 9)]), "cannot read the annotation .*im3.xml"),
        (xml([("cat", 1, 1, "inf", 9)]), "a side that is not a number"),
        (xml([("", 1, 1, 9, 9)]), "no name or no bndbox"),
        (xml([], size=(40, 50)), "it is 50 x 40, and im3.xml says"),
        ("<annotation>" + " " * (1 << 20), "more than 1 MB"),
        ("", "cannot read the annotation"),
    ],
)
def test_wrong_annotations_are_refused(root, text, sentence):
    (root / "Annotations" / "im3.xml").write_text(text)
    with pytest.raises(UserError, match=sentence):
        load(root)


def test_an_annotation_without_a_size_is_read(root):
    (root / "Annotations" / "im3.xml").write_text(xml([("cat", 1, 1, 9, 9)], size=None))
    assert float(load(root).test.labels[0, 0, 0]) == 0


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda root: (root / "Annotations/im2.xml").unlink(), "im2.xml is missing"),
        (lambda root: (root / "JPEGImages/im2.png").unlink(), "has no im2.jpg"),
        (lambda root: (root / "JPEGImages/im2.png").write_bytes(b"GIF89a"), "cannot read the image .*im2.png"),
        (lambda root: (root / "ImageSets/Main/test.txt").write_text("im0"), "im0 is in train and in test"),
        (lambda root: (root / "ImageSets/Main/test.txt").write_text("\n"), "test.txt is empty"),
        (lambda root: (root / "ImageSets/Main/test.txt").write_text("../im3"), "without its suffix"),
        (lambda root: (root / "ImageSets/Main/test.txt").write_bytes(b"\xff\xfe\xff"), "is not a text in UTF-8"),
        (lambda root: (root / "ImageSets/Main/train.txt").unlink(), "has no ImageSets/Main/train.txt"),
        (lambda root: shutil.rmtree(root / "ImageSets"), "has no ImageSets/Main/train.txt"),
        (lambda root: [(root / f"Annotations/im{i}.xml").write_text(xml([])) for i in (0, 1)], "has an object"),
    ],
)
def test_wrong_folders_are_refused(root, break_it, sentence):
    break_it(root)
    with pytest.raises(UserError, match=sentence):
        load(root)


def test_without_a_validation_list_a_share_is_held_out(root):
    (root / "ImageSets/Main/val.txt").unlink()
    data = load(root, validation=0.5)
    assert (len(data.train), len(data.validation), len(data.test)) == (1, 1, 1)
    (root / "ImageSets/Main/test.txt").rename(root / "ImageSets/Main/val.txt")
    assert len(load(root, validation=0).test) == 1


def marked(y: Tensor, side: tuple[int, int] = (32, 64)) -> Tensor:
    """Images [B, 1, H, W] with ones in their boxes."""
    images = torch.zeros(len(y), 1, *side, dtype=torch.uint8)
    for image, boxes in zip(images, y.tolist(), strict=True):
        for which, x1, y1, x2, y2 in boxes:
            if which >= 0:
                image[:, round(y1) : round(y2), round(x1) : round(x2)] = 1
    return images


Y = torch.tensor([[[0.0, 3, 4, 20, 10], [1, 40, 20, 60, 30]], [[1.0, 0, 0, 64, 5], [-1, -1, -1, -1, -1]]])


@pytest.mark.parametrize("axis", [2, 3])
def test_two_flips_are_none_and_boxes_go_with_their_pixels(axis):
    images, chosen = marked(Y), torch.tensor([True, False])
    once, y = mirrored(images, Y, chosen, axis)
    assert not torch.equal(y[0], Y[0])
    assert torch.equal(y[1], Y[1])
    assert torch.equal(once, marked(y))
    twice = mirrored(once, y, chosen, axis)
    assert torch.equal(twice[0], images)
    assert torch.equal(twice[1], Y)


def test_a_mosaic_has_the_pixels_of_its_boxes():
    images = marked(Y)
    others = torch.tensor([[1, 0], [0, 1], [0, 1]])
    result, y = mosaic(images, Y, torch.tensor([True, False]), torch.tensor([30, 8]), torch.tensor([12, 8]), others)
    assert y.shape == (2, 8, 5)
    assert torch.equal(result, marked(y))
    own = y[1][y[1, :, 0] >= 0]
    assert torch.equal(own, Y[1, :1])  # not chosen
    assert y[0][y[0, :, 0] >= 0].tolist() == [[0, 3, 4, 20, 10], [1, 30, 0, 64, 5], [1, 40, 20, 60, 30]]


def test_small_rests_of_a_mosaic_are_no_objects():
    y = torch.tensor([[[0.0, 0, 0, 40, 10]]])
    _, cut = mosaic(marked(y), y, torch.tensor([True]), torch.tensor([9]), torch.tensor([32]), torch.zeros(3, 1).long())
    assert cut[cut[..., 0] >= 0].tolist() == [[0, 9, 0, 40, 10]]  # 9 of 40 pixels are too few


def test_more_rows_of_draws_leave_the_first_as_they_are():
    assert torch.equal(draw(0, 1, 2, 7), draw(0, 1, 2, 7, rows=12)[:5])


def test_batches_repeat_and_differ_from_epoch_to_epoch(root):
    data = load(root, flip=True, flip_vertical=True, mosaic=0.5)
    first, again, next_epoch = (next(data.batches(epoch, 2)) for epoch in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert first[1].shape == (2, 4, 5)
    assert not torch.equal(first[0], next_epoch[0])


def test_bccd_has_its_published_counts_and_checks_its_files(tmp_path):
    source = BCCD(size=(96, 128))
    if not source.folder().is_dir():
        pytest.skip("needs BCCD in LOCALLEARN_DATA")
    data = source.load(0, CPU)
    counts = [[int((split.labels[..., 0] == k).sum()) for k in range(3)] for split in (data.train, data.test)]
    assert counts == [[2381, 214, 209], [805, 71, 69]]
    assert data.left_out.startswith("2 boxes without an area")
    copy = shutil.copytree(source.folder(), tmp_path / "BCCD")
    file = copy / "Annotations" / "BloodImage_00000.xml"
    file.chmod(0o644)
    copy.joinpath("Annotations").chmod(0o755)
    file.write_text(file.read_text() + " ")
    with pytest.raises(UserError, match="is not the published set"):
        BCCD(root=str(tmp_path)).load(0, CPU)
    with pytest.raises(UserError, match=r"has no JPEGImages.*BCCD"):
        BCCD(root=str(tmp_path / "nowhere")).load(0, CPU)
