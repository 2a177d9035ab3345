"""Torchvision's transforms of training pictures: each against a hand-written loop that calls torchvision by itself, and
the draws against everything that they must not depend on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import v2

from locallearn import seeds
from locallearn.data import Data, DataSource
from locallearn.data.digits import DigitInk, Digits, DigitSegments
from locallearn.data.folder import Folder
from locallearn.data.source import Raw, with_fixed_test
from locallearn.data.stream import Stream
from locallearn.data.synthetic import Synthetic
from locallearn.errors import UserError

CPU = torch.device("cpu")
SIZE = 24
EPOCH = 2
HAND = {
    "policy=rand": v2.RandAugment(),
    "policy=trivial": v2.TrivialAugmentWide(),
    "jitter": v2.Compose([v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8), v2.RandomGrayscale(p=0.2)]),
    "blur": v2.RandomApply([v2.GaussianBlur(3, (0.1, 2.0))], p=0.5),
    "window": v2.RandomResizedCrop(SIZE, scale=(0.3, 1.0), antialias=True),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "policy=rand": {"policy": "rand"},
    "policy=trivial": {"policy": "trivial"},
    "jitter": {"jitter": 0.5},
    "blur": {"blur": 0.5},
    "window": {"resized_crop": 0.3},
}


@dataclass(frozen=True)
class Vectors(DataSource):
    name: ClassVar[str] = "vectors"

    def read(self, device: torch.device) -> Raw:
        return with_fixed_test(self.name, ("a", "b"), torch.zeros(20, 3), torch.arange(20) % 2, 4)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that are wider than what is made of them."""
    folder = tmp_path_factory.mktemp("pictures")
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir()
        for i in range(20):
            coarse = Image.fromarray(draws.integers(0, 256, (5, 7, 3), dtype=np.uint8))
            coarse.resize((56, 40), Image.Resampling.BICUBIC).save(folder / name / f"{i:02}.png")
    return folder


def order(data: Data) -> list[int]:
    """The places in the store that an epoch shows, in its order."""
    shuffled = torch.randperm(len(data.train), generator=seeds.generator(data.seed, "order", EPOCH))
    return data.train.index[shuffled].tolist()


def drawn(name: str, transform: Any, picture: Any, place: int) -> Any:
    torch.manual_seed(seeds.derive(0, "distortion", name, EPOCH, place))
    return transform(picture)


def pixels(data: Data, batch_size: int, start: int = 0) -> torch.Tensor:
    """Under symmetric normalisation, back to bytes."""
    inputs = [x for x, _ in data.batches(EPOCH, batch_size, start)]
    return ((torch.cat(inputs) + 1) * 127.5).round().to(torch.uint8)


@pytest.mark.parametrize("option", OPTIONS)
def test_what_torchvision_does_by_itself(option):
    data = Synthetic(size=SIZE, images=40, classes=4, normalise="symmetric", **OPTIONS[option]).load(0, CPU)
    raw = next(data.train.store.take(torch.arange(40), 40))
    name = option.partition("=")[0]
    expected = torch.stack([drawn(name, HAND[option], raw[place], place) for place in order(data)])
    found = pixels(data, 6)
    expected = expected[: len(found)]
    assert (found.int() - expected.int()).abs().max() <= (1 if option == "blur" else 0)  # it rounds once, not twice
    changed = (found != raw[order(data)[: len(found)]]).flatten(1).any(1).float().mean()
    assert changed > 0.3
    assert (changed < 0.75) == (option == "blur")


def test_a_window_is_cut_out_of_the_picture_in_the_file(root):
    options = {"resized_crop": 0.2, "policy": "trivial", "normalise": "symmetric"}
    data = Folder(root=str(root), size=SIZE, workers=0, **options).load(0, CPU)
    assert isinstance(data.train.store, Stream)
    window = v2.RandomResizedCrop(SIZE, scale=(0.2, 1.0), antialias=True)
    expected = []
    for place in order(data):
        with Image.open(data.train.store.paths[place]) as picture:
            cut = v2.functional.pil_to_tensor(drawn("window", window, picture, place))
        expected.append(drawn("policy", HAND["policy=trivial"], cut, place))
    found = pixels(data, 4)
    assert torch.equal(found, torch.stack(expected)[: len(found)])
    (shown, _), *_ = data.evaluation(data.test, 1)  # and none for what is not trained on
    middle = ImageOps.fit(Image.open(data.test.store.paths[0]), (SIZE, SIZE), Image.Resampling.BILINEAR)
    assert np.array_equal(((shown[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), np.asarray(middle))


@pytest.mark.slow
def test_draws_depend_on_seed_epoch_and_place_alone(root):
    options = {"root": str(root), "size": SIZE, "policy": "rand", "jitter": 1.0, "blur": 0.5, "normalise": "symmetric"}
    streamed = Folder(**options, memory_share=0).load(0, CPU)
    before = torch.get_rng_state()
    whole = pixels(streamed, 7)
    for other in ({"workers": 0, "memory_share": 0}, {}):  # {}: in memory
        data = Folder(**options, **other).load(0, CPU)
        assert torch.equal(pixels(data, 7), whole)
        assert torch.equal(pixels(data, 7, start=2), whole[14:])
        assert torch.equal(pixels(data, 4)[:24], whole[:24])
    assert torch.equal(torch.get_rng_state(), before)
    crop_and_flip = Folder(**options, crop=3, flip=True, deficit="flip").load(0, CPU)
    assert not torch.equal(pixels(crop_and_flip, 7), whole)
    places = {epoch: torch.cat([x for x, _ in data.batches(epoch, 7)]) for epoch in (0, 1)}
    assert not torch.equal(places[0].sort(0).values, places[1].sort(0).values)


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (lambda: Vectors(policy="rand", blur=0.1), "data=vectors has no pixels: data.policy and data.blur must be off"),
        (lambda: Synthetic(channels=2, jitter=1.0), "data=synthetic has 2 channels, no colours: "),
        (lambda: Synthetic(size=2, blur=0.5), "data.blur=0.5: must be 0 for images of 2 pixels"),
        (
            lambda: Digits(normalise="imagenet"),
            "data.normalise=imagenet: must be standard, unit or symmetric for 1 channels",
        ),
        (lambda: Digits(policy="auto"), "data.policy=auto: must be rand, trivial or null"),
        (
            lambda: DigitInk(policy="rand"),
            "data.policy=rand moves pixels away from their masks or boxes, and data=digit_ink asks ",
        ),
        (lambda: DigitSegments(mixup=0.4), "data.mixup=0.4 is for classes, and data=digit_segments asks for "),
        (lambda: Digits(jitter=3.0), "data.jitter=3.0: must be a number from 0 to 2.5"),
    ],
)
def test_what_does_not_fit_is_refused(source, sentence):
    with pytest.raises(UserError) as caught:
        source().load(0, CPU)
    assert str(caught.value).startswith(sentence)


def test_the_normalisation_of_published_weights():
    data = Synthetic(size=8, images=20, classes=2, validation=0.0, normalise="imagenet").load(0, CPU)
    raw = next(data.test.take(torch.arange(4), 4))[0]
    ours = next(data.evaluation(data.test, 4))[0]
    theirs = v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])(raw.float() / 255)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    grey = Digits(policy="trivial", jitter=1.0, blur=1.0, resized_crop=0.5).load(0, CPU)
    assert next(grey.batches(0, 32))[0].shape == (32, 1, 32, 32)


def test_images_without_a_label_are_not_mixed():
    data = Synthetic(images=40, classes=2, labelled=10, mixup=0.4).load(0, CPU)
    assert next(data.batches(0, 5))[1].shape == (5, 2)
    with pytest.raises(UserError, match="leaves images without a label"):
        data.use_unlabelled()


@pytest.mark.parametrize("options", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.4, "cutmix": 1.0}])
def test_a_batch_is_mixed_with_its_neighbours_by_the_papers_formulas(options):
    """Image i with image i - 1 of the batch: whole, or a window of it, and the labels by the same share."""
    plain = Synthetic(size=SIZE, images=60, classes=3).load(0, CPU)
    data = Synthetic(size=SIZE, images=60, classes=3, smoothing=0.1, **options).load(0, CPU)
    seen = set()
    for (x, y), (mixed, shares) in zip(plain.batches(EPOCH, 6), data.batches(EPOCH, 6), strict=True):
        one_hot = torch.eye(3)[y]
        other, other_label = x.roll(1, 0), one_hot.roll(1, 0)
        row = int((one_hot != other_label).any(1).nonzero()[0])
        share = float(shares[row, y[row]])  # of the image itself
        torch.testing.assert_close(shares, share * one_hot + (1 - share) * other_label)
        if torch.allclose(mixed, share * x + (1 - share) * other, atol=1e-5):
            seen.add("mixup")
        else:
            own, foreign = ((mixed == t).all(dim=(0, 1)) for t in (x, other))
            assert bool((own | foreign).all())
            rows, columns = (foreign & ~own).any(1), (foreign & ~own).any(0)
            assert torch.equal(foreign & ~own, rows[:, None] & columns)  # a window
            assert 1 - rows.sum() * columns.sum() / SIZE**2 == pytest.approx(share, abs=1e-6)
            seen.add("cutmix")
    assert seen == set(options)
    assert data.task.loss(torch.randn(6, 3), shares) > 0
    again = list(data.batches(EPOCH, 6, start=3))
    assert torch.equal(again[0][0], list(data.batches(EPOCH, 6))[3][0])
    assert all(y.dtype == torch.int64 for _, y in data.evaluation(data.test, 5))
