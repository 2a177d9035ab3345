"""The sets that direct feedback alignment meets beyond images, against closed forms and scikit-learn."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from helpers.commands import SMALL, one_sentence, run
from locallearn.data.clicks import Clicks
from locallearn.data.picture import OnePicture, encoded

CPU = torch.device("cpu")


def gradient(folder: Path, width: int = 12, height: int = 8) -> str:
    """Red rises from left to right, green from top to bottom, blue is the other way round."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([20 * columns, 20 * rows, 250 - 20 * columns], -1).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "gradient.png")
    return str(folder / "gradient.png")


def test_a_picture_is_its_colours_by_place(tmp_path):
    data = OnePicture(file=gradient(tmp_path), side=8, frequencies=2, validation=0.0).load(0, CPU)
    assert data.image == (10,)
    assert (len(data.train), len(data.test)) == (72, 24), "odd rows and odd columns are tested"
    for split in (data.train, data.test):
        (x,) = split.store.take(split.index, 96)
        colours = 255 * (split.labels.double() * torch.tensor(data.task.std) + torch.tensor(data.task.mean)).double()
        rows, columns = ((x[:, 0] + 1) * 8 - 1) / 2, ((x[:, 1] + 1) * 12 - 1) / 2
        truth = torch.stack([20 * columns, 20 * rows, 250 - 20 * columns], 1).double()
        torch.testing.assert_close(colours, truth, atol=1e-3, rtol=0)
    assert all(r % 2 == 1 and c % 2 == 1 for r, c in zip(rows.round().tolist(), columns.round().tolist(), strict=True))


def test_places_come_with_sines_and_cosines():
    (row,) = encoded(torch.tensor([[0.25, -0.5]], dtype=torch.float64), 2).tolist()
    angles = [math.pi * 0.25, math.pi * 0.5, -math.pi * 0.5, -math.pi]
    assert row == pytest.approx([0.25, -0.5, *map(math.sin, angles), *map(math.cos, angles)])


def test_the_default_picture_is_a_photograph():
    data = OnePicture(side=32).load(0, CPU)
    assert len(data.train) + len(data.validation) + len(data.test) == 32 * 48
    assert data.image == (26,)


def test_a_picture_that_is_none_is_refused(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 9), (5, 5, 5)).save(tmp_path / "grey.png")
    for file, said in (
        ("a.png", "cannot read the image"),
        ("none.png", "cannot read"),
        ("grey.png", "is the same for"),
    ):
        code, _, err = run(*SMALL, "data=picture", f"data.file={tmp_path / file}", "strategy=backprop", capsys=capsys)
        assert code == 2
        assert said in one_sentence(err)


def test_a_quarter_is_clicked_and_pairs_of_fields_matter():
    """The log loss of the truth is below that of a logistic regression, which sees each field alone."""
    source = Clicks(fields=6, values=8, rows=8000)
    x, chances = source.truth(10_000)
    raw = source.read(CPU)
    assert torch.equal(raw.test.images.samples, x[8000:].float())
    assert x.view(-1, 6, 8).sum(2).eq(1).all(), "one value of each field"
    y = raw.test.labels.numpy()
    assert float(chances.mean()) == pytest.approx(0.25, abs=1e-6)
    assert y.mean() == pytest.approx(0.25, abs=0.03)
    logistic = LogisticRegression().fit(raw.train.images.samples.numpy(), raw.train.labels.numpy())
    losses = [
        log_loss(y, chances[8000:].numpy()),
        log_loss(y, logistic.predict_proba(raw.test.images.samples.numpy())[:, 1]),
        log_loss(y, np.full(len(y), 0.25)),
    ]
    assert losses == sorted(losses)
    assert losses[1] - losses[0] > 0.02
