"""Data sets in memory: splits, batches and augmentation against plain loops, the real sets against known facts."""

from __future__ import annotations

import dataclasses
import gc
import gzip
import hashlib
import importlib
import pickle
import shutil
import subprocess
import sys
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from locallearn.data import Data, DataSource
from locallearn.data.augment import Augment, draw
from locallearn.data.benchmarks import CIFAR10, CIFAR100, MNIST, STL10, SVHN, FashionMNIST
from locallearn.data.diabetes import Diabetes
from locallearn.data.digits import Digits
from locallearn.data.doctor import diagnose
from locallearn.data.source import Raw, RawSplit
from locallearn.data.split import noisy, stratified
from locallearn.data.store import Memory
from locallearn.data.synthetic import Synthetic
from locallearn.data.vision import VisionSet, shrunk
from locallearn.errors import UserError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Given(DataSource):
    """Samples and labels of a test."""

    name: ClassVar[str] = "given"
    samples: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))
    labels: torch.Tensor = dataclasses.field(default_factory=lambda: torch.zeros(1))
    test_labels: torch.Tensor | None = None
    names: tuple[str, ...] = ("a", "b")

    def read(self, device: torch.device) -> Raw:
        test = self.labels if self.test_labels is None else self.test_labels
        return Raw(
            self.names, RawSplit(Memory(self.samples), self.labels), RawSplit(Memory(self.samples[: len(test)]), test)
        )


def given(samples: torch.Tensor, labels: torch.Tensor | None = None, **options: object) -> Data:
    labels = torch.arange(len(samples)) % 2 if labels is None else labels
    return Given(samples=samples, labels=labels, **options).load(0, CPU)  # type: ignore[arg-type]


def numbered(images: int, channels: int = 1, height: int = 6, width: int = 6) -> torch.Tensor:
    """Images whose pixels all differ from black and, within an image, from each other."""
    pixels = torch.arange(channels * height * width).view(channels, height, width) % 254 + 1
    return pixels.to(torch.uint8).repeat(images, 1, 1, 1)


def same(a: object, b: object) -> bool:
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(a, b, strict=True))  # type: ignore


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", sorted((ROOT / "conf/data").glob("[!_]*.yaml")), ids=lambda path: path.stem)
def test_yaml_says_what_the_class_says(path: Path) -> None:
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(path))
    module, name = config.pop("_target_").rsplit(".", 1)
    target = getattr(importlib.import_module(module), name)
    defaults = {field.name: field.default for field in dataclasses.fields(target)}
    assert config == {name: list(v) if isinstance(v, tuple) else v for name, v in defaults.items()}
    assert target.name == path.stem
    first, second = path.read_text().splitlines()[:2]
    assert first.startswith("# ")
    assert second.startswith("# source: ")


@pytest.mark.fault("F22")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation": 1.5}, "data.validation=1.5: must be a number of at least 0 and below 1"),
        ({"validation": 1.0}, "data.validation=1.0: must be"),
        ({"validation": float("nan")}, "data.validation=nan: must be"),
        ({"fraction": 0.0}, "data.fraction=0.0: must be a number above 0 and at most 1"),
        ({"label_noise": -0.1}, "data.label_noise=-0.1: must be"),
        ({"crop": -1}, "data.crop=-1: must be a whole number of at least 0"),
        ({"cutout": -1}, "data.cutout=-1: must be a whole number of at least 0"),
        ({"normalise": "standart"}, "did you mean 'standard'"),
    ],
)
def test_options_out_of_range(options: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Digits(**options)  # type: ignore[arg-type]


@pytest.mark.fault("F22")
@pytest.mark.parametrize("options", [{"crop": 33}, {"cutout": 33}])
def test_augmentation_larger_than_the_image(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="at most 32, the side of the image"):
        Digits(**options).load(0, CPU)  # type: ignore[arg-type]


@pytest.mark.fault("F30")
def test_nothing_heavy_is_imported_early() -> None:
    names = ["source", "dataset", "digits", "benchmarks", "folder", "synthetic", "tishby", "names", "cora", "doctor"]
    code = "import sys\n" + "".join(f"import locallearn.data.{name}\n" for name in names)
    code += "print(*{'torchvision', 'sklearn', 'PIL', 'scipy', 'torch_geometric'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "\n"


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_stratified_is_a_fair_division(seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    classes = int(torch.randint(1, 12, (1,), generator=draws))
    labels = torch.multinomial(torch.rand(classes, generator=draws), 200, replacement=True, generator=draws)
    keep = int(torch.randint(0, 201, (1,), generator=draws))
    kept, left = stratified(labels, keep, draws)
    present = int((torch.bincount(labels) > 0).sum())
    assert torch.equal(torch.cat([kept, left]).sort().values, torch.arange(200))
    assert len(kept) == max(keep, present)
    for label, count in enumerate(torch.bincount(labels).tolist()):
        mine = int((labels[kept] == label).sum())
        assert mine >= min(1, count)
        if keep >= 10 * present:
            assert abs(mine - keep * count / 200) < 3


def test_splits_are_disjoint_and_whole() -> None:
    data = Digits().load(0, CPU)
    together = torch.cat([data.train.index, data.validation.index])
    assert torch.equal(together.sort().values, torch.arange(1438))
    assert (len(data.train), len(data.validation), len(data.test)) == (1294, 144, 359)
    share = torch.bincount(data.validation.labels) / torch.bincount(
        torch.cat([data.train.labels, data.validation.labels])
    )
    assert ((share - 0.1).abs() < 0.01).all()


def test_validation_is_cut_before_fraction_and_noise() -> None:
    plain, noisy_ = Digits().load(3, CPU), Digits(fraction=0.3, label_noise=1.0).load(3, CPU)
    assert torch.equal(plain.validation.index, noisy_.validation.index)
    assert torch.equal(plain.validation.labels, noisy_.validation.labels)
    assert torch.equal(plain.test.labels, noisy_.test.labels)
    assert len(noisy_.train) == round(0.3 * 1294)
    assert set(noisy_.train.index.tolist()) <= set(plain.train.index.tolist())


def test_seed_changes_the_split_but_not_the_test_set() -> None:
    a, b = Digits().load(0, CPU), Digits().load(1, CPU)
    assert not torch.equal(a.validation.index, b.validation.index)
    assert torch.equal(a.test.labels, b.test.labels)
    assert torch.equal(next(a.test.take(torch.arange(359), 359))[0], next(b.test.take(torch.arange(359), 359))[0])


def test_a_tiny_fraction_keeps_every_class() -> None:
    assert Digits(fraction=1e-6).load(0, CPU).train.labels.sort().values.tolist() == list(range(10))


@pytest.mark.slow
def test_label_noise_has_its_share() -> None:
    clean, wrong = Synthetic(images=5000).load(0, CPU), Synthetic(images=5000, label_noise=0.4).load(0, CPU)
    changed = (clean.train.labels != wrong.train.labels).double().mean()
    assert abs(changed - 0.4 * 0.9) < 0.02  # a tenth of the redrawn labels stay right
    assert torch.equal(wrong.train.labels, Synthetic(images=5000, label_noise=0.4).load(0, CPU).train.labels)
    assert not torch.equal(wrong.train.labels, Synthetic(images=5000, label_noise=0.4).load(1, CPU).train.labels)
    redrawn = noisy(torch.full((1000,), -1), 0.25, 10, torch.Generator().manual_seed(0))
    assert int((redrawn >= 0).sum()) == 250
    assert redrawn.unique().tolist() == [-1, *range(10)]


@pytest.mark.fault("F17")
@pytest.mark.parametrize(
    ("labels", "test_labels", "said"),
    [
        (torch.tensor([0, 1, 2, 0]), None, "the training labels hold 2; with 2 classes they must be 0-1"),
        (torch.tensor([0, 1, -100, 0]), None, "hold -100"),
        (torch.tensor([0.0, 1.0, 0.0, 1.0]), None, "torch.float32"),
        (torch.tensor([0, 1, 0]), None, "4 samples but 3 labels"),
        (torch.tensor([0, 0, 0, 0]), torch.tensor([0, 1]), "class 'b' has no training sample"),
        (torch.tensor([0, 1, 0, 1]), torch.tensor([0, 5]), "the test labels hold 5"),
        (torch.tensor([0, 1, 0, 1]), torch.tensor([], dtype=torch.int64), "the test part has no samples"),
    ],
)
def test_labels_that_cannot_be_trained_on(labels: torch.Tensor, test_labels: torch.Tensor | None, said: str) -> None:
    with pytest.raises(UserError, match=said):
        given(numbered(4), labels, test_labels=test_labels)


@pytest.mark.fault("F18")
def test_too_few_images_to_hold_any_out() -> None:
    with pytest.raises(UserError, match="too few to hold any out"):
        given(numbered(2))
    assert len(given(numbered(2), validation=0.0).train) == 2
    with pytest.raises(UserError, match="the training part has no samples"):
        given(numbered(0))


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F18")
def test_an_epoch_shows_each_image_once() -> None:
    images = torch.arange(64).to(torch.uint8).view(64, 1, 1, 1).expand(64, 1, 2, 2)
    data = given(images, validation=0.0, normalise="symmetric")
    assert data.steps(10) == 6
    seen = [((x[:, 0, 0, 0] + 1) * 127.5).round().long() for x, _ in data.batches(0, 10)]
    assert [len(s) for s in seen] == [10] * 6  # the four left over are dropped
    assert len(set(torch.cat(seen).tolist())) == 60
    for (_, y), s in zip(data.batches(0, 10), seen, strict=True):
        assert torch.equal(y, s % 2)  # each with its own label


@pytest.mark.fault("R11")
def test_batches_follow_from_seed_epoch_and_step() -> None:
    source = Synthetic(images=500, crop=4, flip=True, cutout=8)
    data, again, other = source.load(0, CPU), source.load(0, CPU), source.load(1, CPU)
    assert same(data.batches(2, 64), again.batches(2, 64))
    assert not same(data.batches(2, 64), data.batches(3, 64))
    assert not same(data.batches(2, 64), other.batches(2, 64))
    whole = list(data.batches(2, 64))
    for start in range(len(whole) + 1):
        assert same(data.batches(2, 64, start=start), whole[start:])


@pytest.mark.fault("F18")
def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    data = Synthetic(images=20, validation=0.0, crop=2).load(0, CPU)
    assert data.steps(64) == 1
    ((inputs, labels),) = data.batches(0, 64)
    assert inputs.shape == (20, 3, 32, 32)
    assert labels.sort().values.tolist() == sorted([*range(10)] * 2)
    with pytest.raises(UserError, match="batch_size=0"):
        next(data.batches(0, 0))


@pytest.mark.fault("F18")
def test_evaluation_shows_every_sample_in_order() -> None:
    data = Digits(crop=4, flip=True, cutout=4, normalise="symmetric").load(0, CPU)
    batches = list(data.evaluation(data.test, 100))
    assert [len(x) for x, _ in batches] == [100, 100, 100, 59]
    assert torch.equal(torch.cat([y for _, y in batches]), data.test.labels)
    raw, _ = next(data.test.take(torch.arange(359), 359))
    torch.testing.assert_close(torch.cat([x for x, _ in batches]), raw.float() / 127.5 - 1)
    empty = Digits(validation=0.0).load(0, CPU)
    assert len(empty.validation) == 0
    assert list(empty.evaluation(empty.validation, 10)) == []


@pytest.mark.parametrize("source", [Digits(labelled=50), Digits(crop=2), Diabetes()], ids=repr)
def test_who_leaves_the_samples_keeps_labels_lengths_and_steps(source: DataSource) -> None:
    """A stage above the lowest one: it holds no sample, and evaluates in the same batches."""
    whole, bare = source.load(0, CPU), source.load(0, CPU)
    held = [weakref.ref(split.store.samples) for split in (bare.train, bare.test)]  # type: ignore[attr-defined]
    bare.leave_samples()
    gc.collect()
    assert [samples() for samples in held] == [None, None]
    assert (bare.batch(32), bare.steps(32), bare.image) == (whole.batch(32), whole.steps(32), whole.image)
    for split in ("train", "validation", "test"):
        for (_, labels), (nothing, own) in zip(
            *(d.evaluation(getattr(d, split), 100) for d in (whole, bare)), strict=True
        ):
            assert torch.equal(labels, own)
            assert nothing.numel() == 0


def test_types_and_global_generator() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    data = Digits(crop=2, flip=True, label_noise=0.1, fraction=0.5).load(0, CPU)
    inputs, labels = next(data.batches(0, 8))
    assert (inputs.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (data.name, data.image, len(data.classes)) == ("digits", (1, 32, 32), 10)
    assert torch.equal(before, torch.get_rng_state())


def test_standard_and_symmetric() -> None:
    data = Synthetic(images=1000).load(0, CPU)
    inputs = torch.cat([x for x, _ in data.evaluation(data.train, 200)]).double()
    torch.testing.assert_close(inputs.mean((0, 2, 3)), torch.zeros(3).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(inputs.std((0, 2, 3)), torch.ones(3).double(), atol=1e-4, rtol=0)
    images = torch.tensor([0, 255]).to(torch.uint8).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    data = given(images, validation=0.0, normalise="symmetric")
    assert [x.unique().tolist() for x, _ in data.evaluation(data.train, 1)] == [[-1.0], [1.0]]
    data = given(images, validation=0.0, normalise="unit")
    assert [x.unique().tolist() for x, _ in data.evaluation(data.train, 1)] == [[0.0], [1.0]]
    flat = given(numbered(4) * 0 + 7, validation=0.0)  # a constant channel must not divide by zero
    assert all(x.abs().max() < 1e-6 for x, _ in flat.batches(0, 2))


@pytest.mark.fault("F19")
def test_float_samples_are_used_as_they_are() -> None:
    samples = torch.randn(40, 12)
    data = given(samples, validation=0.0)
    assert data.image == (12,)
    assert data.normaliser is None
    assert torch.equal(torch.cat([x for x, _ in data.evaluation(data.train, 7)]), samples)
    assert next(data.batches(0, 8))[0].shape == (8, 12)
    with pytest.raises(UserError, match="has no pixels"):
        given(samples, validation=0.0, flip=True)


# --- augmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (5, 1, 6, 9), (1, 4, 7, 5)])
@pytest.mark.parametrize(("crop", "flip"), [(4, True), (3, False), (0, True), (1, True)])
def test_crop_and_flip_against_a_loop(shape: tuple[int, ...], crop: int, flip: bool) -> None:
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    before, draws = images.clone(), draw(0, 1, 2, len(images))
    expected = []
    for image, (down, right, mirror, _, _) in zip(images.numpy(), draws.T.tolist(), strict=True):
        padded = np.pad(image, ((0, 0), (crop, crop), (crop, crop)))
        top, left = down % (2 * crop + 1), right % (2 * crop + 1)
        window = padded[:, top : top + shape[2], left : left + shape[3]]
        expected.append(window[:, :, ::-1] if flip and mirror % 2 else window)
    moved = Augment(crop, flip).move(images, draws)
    assert moved.is_contiguous()
    assert np.array_equal(moved.numpy(), np.stack(expected))
    assert torch.equal(images, before)


@pytest.mark.parametrize("side", [1, 4, 5])
def test_cutout_against_a_loop(side: int) -> None:
    inputs, draws = torch.randn(50, 2, 9, 7), draw(0, 0, 0, 50)
    expected = inputs.clone()
    for image, (_, _, _, y, x) in zip(expected, draws.T.tolist(), strict=True):
        top, left = y % 9 - side // 2, x % 7 - side // 2
        image[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    assert torch.equal(Augment(cutout=side).cut(inputs.clone(), draws), expected)


def test_every_image_has_its_own_draws() -> None:
    moved = Augment(crop=2, flip=True).move(numbered(2000), draw(0, 0, 0, 2000))
    distinct, counts = moved.flatten(1).unique(dim=0, return_counts=True)
    assert len(distinct) == 5 * 5 * 2  # every crop, either way round
    assert counts.min() > 15  # each expected 40 times
    assert not torch.equal(moved, Augment(crop=2, flip=True).move(numbered(2000), draw(0, 0, 1, 2000)))


def test_one_option_does_not_shift_another() -> None:
    draws = draw(5, 0, 0, 64)
    crop, both = Augment(crop=2).move(numbered(64), draws), Augment(crop=2, flip=True).move(numbered(64), draws)
    assert all(torch.equal(a, b) or torch.equal(a.flip(2), b) for a, b in zip(crop, both, strict=True))


def test_cutout_is_zero_after_normalisation() -> None:
    data = Digits(cutout=8, normalise="symmetric").load(0, CPU)
    inputs, _ = next(data.batches(0, 64))
    zeros = (inputs == 0).sum((1, 2, 3))
    assert ((zeros >= 16) & (zeros <= 64)).all()


# --- the sets --------------------------------------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    found, raw = load_digits(), Digits().read(CPU)
    large = [Image.fromarray(i.astype(np.float32)).resize((32, 32), Image.Resampling.BILINEAR) for i in found.images]
    expected = torch.from_numpy(np.stack([np.asarray(image) for image in large])).flatten(1) * (255 / 16)
    images = torch.cat([part.images.samples for part in (raw.train, raw.test)])  # type: ignore[attr-defined]
    assert images.shape == (1797, 1, 32, 32)
    nearest = torch.cdist(images.flatten(1).float(), expected).argmin(1)
    assert len(nearest.unique()) > 1790  # a few digits are almost alike
    assert (expected[nearest] - images.flatten(1)).abs().max() <= 1
    assert found.target[nearest].tolist() == torch.cat([raw.train.labels, raw.test.labels]).tolist()


def test_synthetic_can_be_learnt_and_has_what_was_asked_for() -> None:
    data = Synthetic(classes=7, images=700, size=12, channels=2).load(0, CPU)
    assert (data.image, len(data.classes), len(data.test)) == ((2, 12, 12), 7, 140)
    train = torch.cat([x for x, _ in data.evaluation(data.train, 100)]).flatten(1)
    test = torch.cat([x for x, _ in data.evaluation(data.test, 100)]).flatten(1)
    means = torch.stack([train[data.train.labels == label].mean(0) for label in range(7)])
    assert (torch.cdist(test, means).argmin(1) == data.test.labels).double().mean() > 0.95
    with pytest.raises(UserError, match=r"data\.images=5: must be at least 10"):
        Synthetic(images=5)


def test_mnist(real_root: Path) -> None:
    data = MNIST(root=str(real_root), validation=0.0).load(0, CPU)
    assert (data.image, len(data.train), len(data.test)) == ((1, 28, 28), 60000, 10000)
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert torch.bincount(data.train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(data.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.normaliser is not None
    assert [round(v, 4) for v in (data.normaliser.mean.item(), data.normaliser.std.item())] == [0.1307, 0.3081]


def test_fashion_mnist(real_root: Path) -> None:
    data = FashionMNIST(root=str(real_root), validation=0.1).load(0, CPU)
    assert (len(data.train), len(data.validation), len(data.test)) == (54000, 6000, 10000)
    assert torch.bincount(data.validation.labels).tolist() == [600] * 10
    assert data.classes[int(data.test.labels[0])] == "Ankle boot"


def test_cifar10(real_root: Path) -> None:
    from torchvision.datasets import CIFAR10 as Reference

    data = CIFAR10(root=str(real_root), validation=0.0).load(0, CPU)
    reference = Reference(real_root, train=False)
    raw, labels = next(data.test.take(torch.tensor([0, 7, 9999]), 3))
    for image, label, index in zip(raw, labels, (0, 7, 9999), strict=True):
        expected, expected_label = reference[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
        assert label == expected_label
    first = (real_root / "cifar-10-batches-py/data_batch_1").read_bytes()
    one, _ = next(data.train.take(torch.tensor([0]), 1))
    assert one.numpy().tobytes() in first  # the pixels as they lie in the official file
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert " ".join(data.classes) == "airplane automobile bird cat deer dog frog horse ship truck"
    assert data.normaliser is not None
    torch.testing.assert_close(data.normaliser.mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=1e-4, rtol=0)
    torch.testing.assert_close(data.normaliser.std, torch.tensor([0.2470, 0.2435, 0.2616]).double(), atol=1e-4, rtol=0)


@pytest.mark.fault("F20")
def test_truncated_file_is_named(real_root: Path, tmp_path: Path) -> None:
    shutil.copytree(real_root / "MNIST", tmp_path / "MNIST")
    file = tmp_path / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte is damaged.*1000 bytes; expected md5 6bbc9ac.*found"):
        MNIST(root=str(tmp_path)).load(0, CPU)
    assert file.stat().st_size == 1000  # the user's file is not touched


@pytest.mark.slow
@pytest.mark.fault("F20")
def test_archives_that_are_there_are_unpacked(real_root: Path, tmp_path: Path, no_network: None) -> None:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    for file in (real_root / "MNIST/raw").glob("*-ubyte"):
        (raw / f"{file.name}.gz").write_bytes(official_gz(file))
    assert len(MNIST(root=str(tmp_path)).load(0, CPU).test) == 10000
    assert not list(tmp_path.glob(".download-*"))


def official_gz(file: Path) -> bytes:
    """The archive of the official distribution where this machine has it (its md5 is checked), else skip."""
    for folder in (ROOT / "shared/data", ROOT.parent / "shared/data"):
        if (archive := folder / f"MNIST/raw/{file.name}.gz").is_file():
            assert gzip.decompress(archive.read_bytes()) == file.read_bytes()
            return archive.read_bytes()
    pytest.skip("no official archives of MNIST on this machine")


@pytest.mark.fault("F20")
@pytest.mark.parametrize("kind", [MNIST, CIFAR10, SVHN, STL10])
def test_missing_files_without_network(
    kind: type[DataSource], tmp_path: Path, no_network: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        kind(root=str(tmp_path / "new")).load(0, CPU)
    said = str(caught.value)
    assert f"{tmp_path / 'new'} has no " in said
    assert "data.root" in said
    assert "LOCALLEARN_DATA" in said
    assert next(iter(kind(root="x").archives())) in said  # type: ignore[attr-defined]
    assert "\n" not in said
    assert capsys.readouterr() == ("", "")
    assert not (tmp_path / "new").exists()


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """For made-up files in the formats of sets that this machine may not have."""
    from torchvision import datasets

    monkeypatch.setattr(VisionSet, "_check", lambda *_: None)
    for module in (datasets.cifar, datasets.svhn):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5=None: True)
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)


def test_cifar100_format(tmp_path: Path, any_checksum: None) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (200, 3, 32, 32), dtype=np.uint8)
    names = [f"kind {i}" for i in range(100)]
    for path in CIFAR100().files():
        part = {"data": pixels.reshape(200, -1), "fine_labels": [*range(100)] * 2, "fine_label_names": names}
        (tmp_path / path).write_bytes(pickle.dumps(part))
    raw = CIFAR100(root=str(tmp_path)).read(CPU)
    assert np.array_equal(raw.train.images.samples.numpy(), pixels)  # type: ignore[attr-defined]
    assert (raw.test.labels.tolist(), raw.classes) == ([*range(100)] * 2, tuple(names))


def test_svhn_format(tmp_path: Path, any_checksum: None) -> None:
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
    for path in SVHN().files():
        savemat(tmp_path / path, {"X": pixels.transpose(2, 3, 1, 0), "y": np.array([*range(1, 11)] * 2)[:, None]})
    raw = SVHN(root=str(tmp_path)).read(CPU)
    assert np.array_equal(raw.train.images.samples.numpy(), pixels)  # type: ignore[attr-defined]
    assert raw.train.labels.tolist() == [*range(1, 10), 0] * 2  # a zero is stored as 10


def test_stl10_format(tmp_path: Path, any_checksum: None) -> None:
    (tmp_path / "stl10_binary").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (20, 3, 96, 96), dtype=np.uint8)
    for part in ("train", "test"):
        (tmp_path / f"stl10_binary/{part}_X.bin").write_bytes(pixels.transpose(0, 1, 3, 2).tobytes())
        (tmp_path / f"stl10_binary/{part}_y.bin").write_bytes(bytes([*range(1, 11)] * 2))
    raw = STL10(root=str(tmp_path)).read(CPU)  # and without the 2.6 GB of images without labels
    assert np.array_equal(raw.train.images.samples.numpy(), pixels)  # type: ignore[attr-defined]
    assert raw.test.labels.tolist() == [*range(10)] * 2
    assert len(raw.classes) == 10


def test_environment_names_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCALLEARN_DATA", str(tmp_path))
    assert MNIST().folder() == tmp_path
    assert MNIST(root="/other").folder() == Path("/other")
    monkeypatch.delenv("LOCALLEARN_DATA")
    assert MNIST().folder() == Path.home() / ".cache/locallearn"


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


@pytest.mark.fault("F8", "F20", "R7")
def test_a_strange_pickle_is_never_opened(tmp_path: Path) -> None:
    folder, marker = tmp_path / "cifar-10-batches-py", tmp_path / "opened"
    folder.mkdir()
    for path in CIFAR10().files():
        (tmp_path / path).write_bytes(pickle.dumps(Bomb(marker)))
    found = hashlib.md5((folder / "data_batch_1").read_bytes()).hexdigest()
    with pytest.raises(UserError, match=f"data_batch_1 is damaged or another file.*c99cafc1.*{found}"):
        CIFAR10(root=str(tmp_path)).load(0, CPU)
    assert not marker.exists()


def test_doctor_reports_what_is_there() -> None:
    report = diagnose(Digits(normalise="symmetric"))
    for line in (
        "1294 training, 144 validation, 359 test",
        "1 x 32 x 32, uint8",
        "inside scikit-learn",
        "images, -1 to ",
    ):
        assert line in report
    rows = [row.split() for row in report.splitlines()[-10:]]
    assert [row[0] for row in rows] == list(map(str, range(10)))
    assert [sum(int(row[i]) for row in rows) for i in (1, 2, 3)] == [1294, 144, 359]


def test_a_shrunk_image_has_means_of_squares():
    images = torch.randint(256, (5000, 2, 6, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    means = images.numpy().reshape(5000, 2, 3, 2, 2, 2).mean(axis=(3, 5))
    assert np.array_equal(shrunk(images, 2).numpy(), np.round(means).astype(np.uint8))
    assert shrunk(images, 1) is images
    with pytest.raises(UserError, match=r"data\.shrink=4: must be a divisor of both sides of images of 6 x 4 pixels"):
        shrunk(images, 4)
