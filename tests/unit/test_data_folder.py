"""Folders of images: layouts, streaming against memory, and files that cannot be read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from locallearn.data import stream
from locallearn.data.doctor import diagnose
from locallearn.data.folder import Folder, memory_bytes
from locallearn.data.store import Memory
from locallearn.data.stream import Stream, read_image
from locallearn.errors import RunError, UserError

CPU = torch.device("cpu")


def write(folder: Path, images: int, mode: str = "RGB", size: tuple[int, int] = (12, 12), seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draws = np.random.default_rng(seed)
    for i in range(images):
        pixels = draws.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / f"{i:03}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes, in train and test, of different sizes and modes."""
    for part, images in (("train", 20), ("test", 5)):
        write(tmp_path / part / "cat", images, size=(20, 12))
        write(tmp_path / part / "dog", images, mode="L", size=(9, 16), seed=1)
    return tmp_path


def batches(source: Folder, start: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(source.load(0, CPU).batches(1, 8, start))


def equal(a: list[tuple[torch.Tensor, torch.Tensor]], b: list[tuple[torch.Tensor, torch.Tensor]]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True)
    )


def test_train_and_test_folders(root: Path) -> None:
    (root / "train/cat/notes.txt").write_text("no image")
    (root / "train/cat/._000.png").write_text("left by a Mac")
    data = Folder(root=str(root), size=10).load(0, CPU)
    assert (data.name, data.image, data.classes) == ("folder", (3, 10, 10), ("cat", "dog"))
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    assert data.test.labels.tolist() == [0] * 5 + [1] * 5


@pytest.mark.slow
def test_val_alone_is_the_test_set_and_beside_test_the_validation(root: Path) -> None:
    (root / "test").rename(root / "val")
    data = Folder(root=str(root), size=10).load(0, CPU)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 10)
    write(root / "test/cat", 3)
    data = Folder(root=str(root), size=10).load(0, CPU)
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 10, 3)


@pytest.mark.slow
def test_classes_alone_give_a_fixed_test_set(root: Path) -> None:
    shown = []
    for seed in (0, 1):
        data = Folder(root=str(root / "train"), size=10).load(seed, CPU)
        assert len(data.train) + len(data.validation) == 32
        assert torch.bincount(data.test.labels).tolist() == [4, 4]
        shown.append(next(data.test.take(torch.arange(8), 8))[0])
    assert torch.equal(*shown)


@pytest.mark.slow
@pytest.mark.fault("R11")
def test_streamed_is_in_memory(root: Path) -> None:
    options = {"root": str(root), "size": 10, "crop": 2, "flip": True, "cutout": 3, "label_noise": 0.2}
    kept = Folder(**options)  # type: ignore[arg-type]
    assert isinstance(kept.load(0, CPU).train.store, Memory)
    expected = batches(kept)
    assert len(expected) == 4
    for workers in (0, 2):
        streamed = Folder(**options, memory_share=0, workers=workers)  # type: ignore[arg-type]
        data = streamed.load(0, CPU)
        assert isinstance(data.train.store, Stream)
        assert equal(batches(streamed), expected)
        assert equal(batches(streamed, start=2), expected[2:])
        assert equal(list(data.evaluation(data.test, 4)), list(kept.load(0, CPU).evaluation(data.test, 4)))


def test_streaming_leaves_the_global_generator_alone(root: Path) -> None:
    before = torch.get_rng_state()
    batches(Folder(root=str(root), size=10, memory_share=0))
    assert torch.equal(before, torch.get_rng_state())


def test_moments_of_a_large_folder_are_of_a_sample(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "measured", 6)
    source = Folder(root=str(root), size=10, validation=0.0)
    data = source.load(0, CPU)
    raw, _ = next(data.train.take(torch.arange(6) * 40 // 6, 6))
    assert data.normaliser is not None
    torch.testing.assert_close(data.normaliser.mean, raw.double().mean((0, 2, 3)) / 255)
    torch.testing.assert_close(data.normaliser.std, raw.double().std((0, 2, 3), correction=0) / 255)


@pytest.mark.fault("F19")
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_every_kind_of_image_becomes_colour(tmp_path: Path, mode: str) -> None:
    write(tmp_path, 1, mode="L" if mode == "LA" else mode)
    file = tmp_path / "000.png"
    if mode == "LA":
        Image.open(file).convert("LA").save(file)
    image = read_image(file, 12)
    assert (image.shape, image.dtype) == ((3, 12, 12), torch.uint8)
    assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(Image.open(file).convert("RGB")))


def test_the_middle_is_cut_out(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24, 3), dtype=np.uint8)
    pixels[:, 8:16] = 200
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png", 8) == 200).all()


@pytest.mark.fault("F19")
def test_sixteen_bits_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(UserError, match=r"deep\.png \(it has more than 8 bits"):
        read_image(tmp_path / "deep.png", 4)


@pytest.mark.fault("F20")
@pytest.mark.parametrize("options", [{}, {"memory_share": 0, "workers": 0}, {"memory_share": 0, "workers": 2}])
def test_first_unreadable_file_is_named(root: Path, options: dict[str, float]) -> None:
    (root / "train/dog/003.png").write_text("<html>not found</html>")
    (root / "train/dog/007.png").write_bytes((root / "train/dog/007.png").read_bytes()[:60])
    source = Folder(root=str(root), size=10, **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"cannot read the image .*dog/003\.png") as caught:
        batches(source)
    assert "Traceback" not in str(caught.value)
    with pytest.raises(UserError, match=r"2 of 50 images cannot be read; the first: .*dog/003\.png"):
        diagnose(source)


@pytest.mark.slow
def test_doctor_on_a_sound_folder(root: Path) -> None:
    report = diagnose(Folder(root=str(root), size=10))
    for text in (str(root), "every one of 50 files can be read", "3 x 10 x 10, uint8", "36 training, 4 validation"):
        assert text in report


@pytest.mark.fault("F13")
def test_a_killed_worker_is_explained(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = Folder(root=str(root), size=10, memory_share=0, workers=1).load(0, CPU)
    monkeypatch.setattr(stream, "read_image", lambda path, size: os._exit(9))  # workers are forked
    with pytest.raises(RunError, match=r"data worker was killed.*data\.workers=1"):
        next(data.batches(0, 8))


@pytest.mark.fault("F17", "F20")
def test_folders_that_are_no_data_set(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLEARN_DATA", str(root))
    with pytest.raises(UserError, match=r"needs data\.root=PATH"):
        Folder().load(0, CPU)
    with pytest.raises(UserError, match="there is no such folder"):
        Folder(root=str(tmp_path / "nowhere")).load(0, CPU)
    (root / "test/cat").rename(root / "test/cats")
    with pytest.raises(UserError, match=r"test/cats is not a class of the training folder: did you mean 'cat'\?"):
        Folder(root=str(root)).load(0, CPU)
    (root / "test/cats").rename(root / "test/cat")
    (root / "train/emu").mkdir()
    with pytest.raises(UserError, match=r"train/emu holds no image \(\.bmp"):
        Folder(root=str(root)).load(0, CPU)
    with pytest.raises(UserError, match="has 0 class folders"):
        Folder(root=str(root / "train/cat")).load(0, CPU)


@pytest.mark.fault("F22")
@pytest.mark.parametrize("options", [{"size": 0}, {"memory_share": 1.5}, {"workers": -1}])
def test_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="must be"):
        Folder(**options)  # type: ignore[arg-type]


def test_memory_is_that_of_this_machine() -> None:
    assert 1 << 28 < memory_bytes(CPU) < 1 << 46
