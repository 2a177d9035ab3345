"""Data given from Python: every kind gives the batches of the same tensors, and what cannot be is one sentence."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from helpers.marks import slow
from locallearn.config.registry import conf_dir
from locallearn.data.objects import ObjectSource, batch_of, by_part
from locallearn.errors import RunError, UserError
from locallearn.seeds import generator
from locallearn.task import Classification

CPU = torch.device("cpu")
N = 60
X = torch.rand(N, 3, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
PIXELS = (X * 255).to(torch.uint8)


class Plain(Dataset):
    """A map-style set without a word on its labels."""

    def __init__(self, x=X, y=Y):
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x)

    def __getitem__(self, place):
        y = self.y[place]
        return self.x[place], y if y.shape else y.item()


class Listed(Plain):
    classes = ("cat", "dog", "eel")

    def __init__(self, x=X, y=Y):
        super().__init__(x, y)
        self.targets = y.tolist()


class Columns(Plain):
    """As a set of Hugging Face's: columns, features, items by name."""

    column_names = ("image", "label")
    features = {"image": None, "label": SimpleNamespace(names=["cat", "dog", "eel"])}  # noqa: RUF012

    def __getitem__(self, place):
        return self.y.tolist() if place == "label" else {"image": self.x[place], "label": int(self.y[place])}


class Noisy(Plain):
    """Random draws of all three generators, as transforms make them."""

    def __getitem__(self, place):
        import random

        return self.x[place] + torch.rand(()) + float(np.random.rand()) + random.random(), int(self.y[place])


class Stream(IterableDataset):
    def __init__(self, length=N, really=N):
        self.length, self.really, self.epoch = length, really, 0

    def __len__(self):
        return self.length

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        for place in range(self.really):
            yield X[(place + self.epoch) % N] + torch.rand(()), int(Y[(place + self.epoch) % N])


def source(given, **options) -> ObjectSource:
    return ObjectSource(parts=by_part(given), **options)


def loaded(given, **options):
    return source(given, **options).load(0, CPU)


def epoch(data, number=0, size=8, start=0):
    return [(x.clone(), y.clone()) for x, y in data.batches(number, size, start)]


def same(ours, theirs) -> bool:
    """Whether batches have the same bits."""
    return len(ours) == len(theirs) and all(
        torch.equal(a, b) for one, other in zip(ours, theirs, strict=True) for a, b in zip(one, other, strict=True)
    )


KINDS = {
    "arrays": lambda: (X.double().numpy(), Y.to(torch.uint16).numpy()),
    "int8 labels": lambda: (X, Y.to(torch.int8)),
    "uint64 labels": lambda: (X, Y.to(torch.uint64)),
    "TensorDataset": lambda: TensorDataset(X, Y),
    "map-style": Plain,
    "listed labels": Listed,
    "columns": Columns,
    "pairs": lambda: [(x.numpy(), np.int32(y)) for x, y in zip(X, Y, strict=True)],
    "Subset": lambda: Subset(Listed(X.flip(0), Y.flip(0)), range(N - 1, -1, -1)),
    "ConcatDataset": lambda: ConcatDataset([Listed(X[:20], Y[:20]), Listed(X[20:], Y[20:])]),
    "shuffling loader": lambda: DataLoader(Plain(), batch_size=8, shuffle=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_batches_of_the_tensors(kind):
    """A fifth of each class is tested on, the rest follows from the seed as in any set; the truth is by hand."""
    data = loaded(KINDS[kind](), validation=0)
    rest = torch.stack([x for batch, _ in data.evaluation(data.test, 8) for x in batch])
    tested = [next(p for p in range(N) if torch.equal(X[p], x)) for x in rest]
    assert sorted(Y[tested].tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    left = torch.tensor([place for place in range(N) if place not in tested])
    order = left[torch.randperm(len(left), generator=generator(0, "order", 2))]
    expected = [(X[part], Y[part]) for part in order.split(8)]
    assert same(epoch(data, 2), expected)
    assert same(epoch(data, 2, start=3), expected[3:])
    names = ("cat", "dog", "eel") if kind in ("listed labels", "columns", "Subset", "ConcatDataset") else tuple("012")
    assert data.classes == names


TASKS = {
    "regression": (X[:, 0, 0, 0], (N, 1), torch.float32, 1),
    "multilabel": (torch.eye(3, dtype=torch.int8)[Y], (N, 3), torch.float32, 3),
    "segmentation": (Y[:, None, None].expand(N, 4, 4), (N, 4, 4), torch.int64, 3),
}


@pytest.mark.parametrize("task", TASKS)
def test_a_task_beside_the_data_says_what_the_labels_are(task):
    y, shape, dtype, answers = TASKS[task]
    data = loaded({"train": (PIXELS, y), "test": Plain(PIXELS, y.numpy())}, task=task, validation=0)
    assert (data.task.kind, len(data.classes)) == (task, answers)
    assert (tuple(data.train.labels.shape), data.train.labels.dtype) == (shape, dtype)
    assert torch.equal(data.train.labels, data.test.labels)
    if task == "regression":
        assert data.train.labels.mean().abs() < 1e-6, "standardised"
        assert torch.allclose(data.task.original(data.train.labels)[:, 0].float(), y)


def test_token_numbers_are_counted():
    data = loaded((Y.repeat(3, 1).T, Y), validation=0)
    assert (data.vocabulary, data.train.store.dtype) == (3, torch.int64)


@pytest.mark.parametrize(("mode", "channels"), [("RGB", 3), ("L", 1), ("RGBA", 3), ("P", 3)])
def test_pictures_are_pixels(mode, channels):
    """As ImageFolder gives them without a transform: [C, H, W], colours from palettes and without transparency."""
    pictures = [Image.fromarray(x.permute(1, 2, 0).numpy()).convert(mode) for x in PIXELS]
    data = loaded([(picture, int(y)) for picture, y in zip(pictures, Y, strict=True)], validation=0)
    (sample,) = data.test.store.take(data.test.index[:1], 1)
    assert (data.image, sample.dtype) == ((channels, 4, 4), torch.uint8)
    if mode in ("RGB", "RGBA"):
        assert any(torch.equal(sample[0], x) for x in PIXELS)


def test_parts_are_taken_as_they_are_and_pixels_are_normalised():
    given = {"train": (PIXELS, Y), "validation": DataLoader(Plain(PIXELS), 7), "test": Stream(9, 9)}
    with pytest.raises(UserError, match="test samples are float32 and the training samples uint8"):
        loaded(given)
    data = loaded({**given, "test": Plain(PIXELS[:9])})
    assert [len(part) for part in (data.train, data.validation, data.test)] == [60, 60, 9]
    mean, std = PIXELS.double().mean((0, 2, 3)) / 255, PIXELS.double().std((0, 2, 3), correction=0) / 255
    ((inputs, _),) = data.evaluation(data.test, 9)
    assert torch.allclose(inputs, ((PIXELS[:9] / 255 - mean[:, None, None]) / std[:, None, None]).float(), atol=1e-5)
    grey = loaded((PIXELS[:, 0], Y))
    assert grey.image == (1, 4, 4)


@pytest.mark.parametrize("workers", [0, slow(2)])
@pytest.mark.parametrize("kind", ["map-style", "ordered loader", "iterable"])
def test_random_transforms_and_orders_are_those_of_the_seed_and_the_step(kind, workers):
    """Whoever draws between, and wherever an epoch begins again; and no global generator moves."""
    make = {
        "map-style": lambda: Noisy(),
        "ordered loader": lambda: {"train": DataLoader(Noisy(), 8, num_workers=workers), "test": Plain()},
        "iterable": lambda: {"train": Stream(), "test": Plain()},
    }[kind]
    options = {} if kind == "ordered loader" else {"workers": workers}
    first = epoch(loaded(make(), **options), 1)
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    data = loaded(make(), **options)
    assert same(epoch(data, 1, start=2), first[2:])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert not torch.equal(first[0][0], epoch(data, 2)[0][0])
    if kind == "ordered loader":
        assert torch.equal(torch.cat([y for _, y in first]), Y[: 8 * (N // 8)]), "its own order is kept"
    if kind == "iterable":
        assert first[0][1].tolist() == Y[1:9].tolist(), "set_epoch is called"


class Fickle(Listed):
    def __getitem__(self, place):
        return self.x[place], 0


class Ragged(Plain):
    def __getitem__(self, place):
        return torch.zeros(3, 4, 4 + place % 2), 0


class Broken(Plain):
    def __getitem__(self, place):
        return 1 / (place - 30), 0


class Endless(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


MISTAKES = {
    "floats": ((X, Y.float() + 0.5), "not whole numbers: number the classes from 0, or give task='regression'"),
    "texts": ((X, np.array(["cat", "dog", "eel"] * 20)), r"are not numbers \(.*cat.*\): number the classes from 0"),
    "one-hot": ((X, torch.eye(3, dtype=torch.int64)[Y]), r"scores or one-hot.*argmax\(dim=1\)"),
    "count": ((X, Y[:5]), "60 samples but 5 labels"),
    "a class too few": ((X, Y + 1), "class '0' has no training sample"),
    "channels last": ((PIXELS.repeat(1, 2, 2, 2).permute(0, 2, 3, 1)[..., :3], Y), r"permute\(0, 3, 1, 2\)"),
    "no set": (5, "data: train is a int; it must be a pair"),
    "generator": (((x, y) for x, y in zip(X, Y, strict=True)), "data: train is a generator"),
    "unknown part": ({"train": (X, Y), "dev": (X, Y)}, "data has a part 'dev'"),
    "no training part": ({"test": (X, Y)}, 'data has no part "train"'),
    "other sizes": ({"train": (X, Y), "test": (X[..., :2], Y)}, r"must be \[3, 4, 4\], as the training samples are"),
    "other labels when read": (Fickle(), "now has the label 0, but had"),
    "other shapes when read": (Ragged(), r"sample \d+ of Ragged is float32 \[3, 4, 5\], but the first one"),
    "raises": (Broken(), "ZeroDivisionError|is float32"),
    "NaN": ((X / 0 * 0, Y), "not finite"),
    "triples": ([(1, 2, 3)] * 4, "sample 0 of list is 3 values"),
    "columns": ([{"a": 1, "b": 2}] * 4, "has the columns a, b: it must have what the model reads, and one label"),
    "iterable alone": (Stream(), "no test set can be drawn"),
    "no length": ({"train": DataLoader(Endless()), "test": (X, Y)}, "has no length"),
    "an untrue length": ({"train": Stream(N, 16), "test": (X, Y)}, "ended after 2 of 7 batches"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_what_cannot_be_trained_on_is_refused_in_one_sentence(kind):
    given, sentence = MISTAKES[kind]
    with pytest.raises((UserError, RunError), match=sentence) as caught:
        epoch(loaded(given))
    assert "\n" not in str(caught.value)


def test_the_batch_size_of_a_loader_must_be_that_of_the_run():
    given = {"train": DataLoader(Plain(), 8), "test": (X, Y)}
    assert batch_of(given) == 8
    with pytest.raises(UserError, match="gives batches of 8, and batch_size=32"):
        loaded(given).batch(32)
    unread = source(given).unread()
    assert {"validation", "fraction", "crop", "workers"} <= unread.keys()


def test_the_options_of_every_set_stand_in_the_yaml():
    content = yaml.safe_load((conf_dir() / "data/_objects.yaml").read_text())
    content.pop("_target_")
    fields = {field.name: field.default for field in dataclasses.fields(ObjectSource) if field.name != "parts"}
    assert content == fields


def test_classes_with_options_are_split_checked_and_made_wrong_like_any():
    """`task=Classification(...)` is one of classes: a fifth of each is tested on, labels may be wrong, and no option
    stands in two places."""
    task = Classification(smoothing=0.1)
    source = ObjectSource(parts=by_part((X, Y)), task=task, label_noise=0.5)
    plain = ObjectSource(parts=by_part((X, Y)), label_noise=0.5)
    mine, other = (each.load(0, CPU) for each in (source, plain))
    assert mine.task == task
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(mine, split).labels, getattr(other, split).labels)
        assert torch.equal(getattr(mine, split).index, getattr(other, split).index)
    with pytest.raises(UserError, match=r"data\.smoothing and a task with options of its own conflict"):
        ObjectSource(parts=by_part((X, Y)), task=task, smoothing=0.2).load(0, CPU)
