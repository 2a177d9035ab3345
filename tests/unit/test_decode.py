"""From an image file to pixels: what a viewer shows, or one sentence; nothing that `convert("RGB")` would drop in
silence, and no decoder but those of the kinds that are listed."""

from __future__ import annotations

import os
import struct
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import run
from locallearn.data.scan import SUFFIXES
from locallearn.data.stream import FORMATS, read_image
from locallearn.errors import UserError

LOSSLESS = {"PNG": {}, "TIFF": {}, "WEBP": {"lossless": True, "exact": True}}
UPRIGHT = {  # from the rows and columns of the EXIF standard, tag 0x0112: what is stored -> what is shown
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


def pixels(*size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def oriented(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def shown(file: Path, size: int) -> np.ndarray:
    """[size, size, 3]"""
    return read_image(file, size).permute(1, 2, 0).numpy()


def written(file: Path, image: Image.Image, **options: Any) -> Path:
    image.save(file, **options)
    return file


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSLESS)
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_every_orientation_is_upright(orientation, kind, tmp_path):
    stored = pixels(9, 9, 3)
    options = {"exif": oriented(orientation), **LOSSLESS[kind]}
    file = written(tmp_path / f"x.{kind.lower()}", Image.fromarray(stored), **options)
    assert np.array_equal(shown(file, 9), UPRIGHT[orientation](stored))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_turned_picture_is_the_upright_one_also_when_it_is_scaled_and_cut(orientation, tmp_path):
    stored = pixels(24, 40, 3)
    turned = written(tmp_path / "turned.png", Image.fromarray(stored), exif=oriented(orientation))
    upright = np.ascontiguousarray(UPRIGHT[orientation](stored))
    assert torch.equal(read_image(turned, 12), read_image(written(tmp_path / "up.png", Image.fromarray(upright)), 12))


def test_a_photo_held_sideways(tmp_path):
    scene = np.zeros((16, 16, 3), np.uint8)
    scene[:, :8] = 255
    phone = Image.fromarray(np.rot90(scene))  # as the sensor saw it
    found = shown(written(tmp_path / "phone.jpg", phone, quality=95, exif=oriented(6)), 8).astype(float)
    assert found[:, :4].mean() > 240
    assert found[:, 4:].mean() < 15
    assert abs(found[:4].mean() - found[4:].mean()) < 1


def test_a_palette_is_turned_and_laid_on_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1], [2, 2]], np.uint8), mode="P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    found = shown(written(tmp_path / "x.png", image, transparency=1, exif=oriented(6)), 2)
    assert found.tolist() == [[[0, 0, 255], [255, 0, 0]], [[0, 0, 255], [255, 255, 255]]]


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0no TIFF header", oriented(0), oriented(9)]
)
def test_a_damaged_or_senseless_orientation_is_none(exif, tmp_path):
    stored = pixels(8, 8, 3)
    plain = written(tmp_path / "plain.jpg", Image.fromarray(stored))
    file = written(tmp_path / "x.jpg", Image.fromarray(stored), exif=exif)
    assert torch.equal(read_image(file, 8), read_image(plain, 8))


# --- transparency, depth, colour, frames -----------------------------------------------------------------------------

RED, CLEAR, HALF = (200, 0, 0, 255), (10, 20, 30, 0), (0, 0, 100, 51)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_transparency_lies_on_white(kind, tmp_path):
    image = Image.fromarray(np.array([[RED, CLEAR], [HALF, RED]], np.uint8))
    found = shown(written(tmp_path / f"x.{kind.lower()}", image, **LOSSLESS[kind]), 2)
    assert found.tolist() == [[[200, 0, 0], [255, 255, 255]], [[204, 204, 224], [200, 0, 0]]]


@pytest.mark.parametrize(
    ("mode", "level", "clear"), [("L", 50, 50), ("RGB", (1, 2, 3), (1, 2, 3)), ("P", 1, 1), ("1", 0, 0)]
)
def test_a_transparent_colour_lies_on_white(mode, level, clear, tmp_path):
    image = Image.new(mode, (2, 1), level)
    if mode == "P":
        image.putpalette([9, 9, 9, 70, 80, 90])
    other = {"L": 60, "RGB": (4, 5, 6), "P": 0, "1": 1}[mode]
    image.putpixel((1, 0), other)
    found = shown(written(tmp_path / "x.png", image, transparency=clear), 1)
    both = np.asarray(Image.open(tmp_path / "x.png").convert("RGBA"))
    assert both[0, :, 3].tolist() == [0, 255]  # the file says so
    wide = written(tmp_path / "tall.png", image.resize((2, 2), Image.Resampling.NEAREST), transparency=clear)
    found = shown(wide, 2)
    assert found[:, 0].tolist() == [[255, 255, 255]] * 2
    assert found[:, 1].tolist() == [both[0, 1, :3].tolist()] * 2


def test_grey_with_alpha_lies_on_white(tmp_path):
    image = Image.fromarray(np.array([[[40, 255], [40, 0]]] * 2, np.uint8), mode="LA")
    assert shown(written(tmp_path / "x.png", image), 2)[0].tolist() == [[40] * 3, [255] * 3]


@pytest.mark.parametrize(
    ("ink", "colour"), [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 255), (0, 0, 0)), ((0,) * 4, (255,) * 3)]
)
@pytest.mark.parametrize("kind", ["tiff", "jpg"])
def test_cmyk_becomes_rgb(ink, colour, kind, tmp_path):
    file = written(tmp_path / f"x.{kind}", Image.new("CMYK", (8, 8), ink))
    assert np.abs(shown(file, 8).astype(int) - colour).max() <= (3 if kind == "jpg" else 0)


def test_colours_of_sixteen_bits_keep_the_upper_eight(tmp_path):
    values = np.random.default_rng(0).integers(0, 65536, (3, 3, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 3, 3, 16, 2, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    assert np.array_equal(shown(tmp_path / "x.png", 3), values >> 8)


@pytest.mark.fault("F19")
@pytest.mark.parametrize("kind", ["png", "tiff", "pgm", "float tiff"])
def test_deep_grey_is_refused(kind, tmp_path):
    deep = np.full((4, 4), 40000, np.float32 if kind == "float tiff" else np.uint16)
    file = written(tmp_path / f"deep.{kind.split()[-1]}", Image.fromarray(deep))
    with pytest.raises(UserError, match=r"deep\..* \(it has more than 8 bits"):
        read_image(file, 4)


@pytest.mark.parametrize("kind", LOSSLESS)
def test_of_several_frames_the_first(kind, tmp_path):
    first, second = pixels(6, 6, 3), pixels(6, 6, 3, seed=1)
    more = {"save_all": True, "append_images": [Image.fromarray(second)], **LOSSLESS[kind]}
    file = written(tmp_path / f"x.{kind.lower()}", Image.fromarray(first), **more)
    with Image.open(file) as opened:
        assert opened.n_frames == 2
    assert np.array_equal(shown(file, 6), first)


# --- decoders --------------------------------------------------------------------------------------------------------

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"


def test_every_listed_suffix_has_its_decoder_and_every_decoder_its_suffix():
    Image.init()
    assert {Image.EXTENSION[suffix] for suffix in SUFFIXES} == set(FORMATS)


def test_the_suffixes_are_those_of_image_folder():
    from torchvision.datasets.folder import IMG_EXTENSIONS

    assert set(IMG_EXTENSIONS) == SUFFIXES


@pytest.fixture
def ghostscript(tmp_path, monkeypatch) -> Path:
    """A program `gs` that leaves a mark; returns where."""
    from PIL import EpsImagePlugin

    program, mark = tmp_path / "bin/gs", tmp_path / "gs-ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    return mark


@pytest.mark.fault("F8", "F20")
@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_postscript_starts_no_program(suffix, tmp_path, ghostscript):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(POSTSCRIPT)
    with pytest.raises(UserError, match=r"it is not a BMP, JPEG, PNG, PPM, TIFF or WEBP file") as caught:
        read_image(file, 8)
    assert "\n" not in str(caught.value)
    assert not ghostscript.exists()
    with Image.open(file) as image, suppress(OSError):  # Pillow by itself would have started it
        image.load()
    assert ghostscript.exists()


@pytest.mark.slow
@pytest.mark.fault("F8", "F20")
def test_postscript_in_a_folder_on_the_command_line(tmp_path, ghostscript, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for i in range(6):
            written(tmp_path / "set" / name / f"{i}.png", Image.fromarray(pixels(8, 8, 3, seed=i)))
    (tmp_path / "set/dog/3.png").write_bytes(POSTSCRIPT)
    for command in (["doctor"], ["model=mlp", f"out={tmp_path / 'runs'}"]):
        code, _, err = run(*command, "data=folder", f"data.root={tmp_path / 'set'}", "data.size=8", capsys=capsys)
        assert code == 2
        assert "dog/3.png (it is not a BMP" in err
        assert len(err.splitlines()) == 1
    assert not ghostscript.exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("F20")
@pytest.mark.parametrize("kind", ["GIF", "ICO", "PCX", "TGA", "JPEG2000", "PDF", "SGI", "DDS", "QOI"])
def test_other_kinds_under_the_name_of_a_listed_one(kind, tmp_path):
    image = Image.fromarray(pixels(16, 16, 3))
    image.convert("P" if kind == "GIF" else "RGB").save(tmp_path / "x.png", kind)
    with pytest.raises(UserError, match="it is not a BMP"):
        read_image(tmp_path / "x.png", 8)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_listed_kind_under_another_listed_name(kind, tmp_path):
    image = Image.fromarray(pixels(12, 12, 3))
    image.save(tmp_path / "x.jpg", kind)
    assert read_image(tmp_path / "x.jpg", 12).shape == (3, 12, 12)


@pytest.mark.fault("F20")
@pytest.mark.parametrize("kind", FORMATS)
def test_a_truncated_file_is_named(kind, tmp_path):
    file = written(tmp_path / f"x.{kind.lower()}", Image.fromarray(pixels(32, 32, 3)), format=kind)
    whole = file.read_bytes()
    for length in (len(whole) // 2, 30, 3):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cannot read the image .*/x\..* \(.+\); replace it") as caught:
            read_image(file, 8)
        assert "\n" not in str(caught.value)
