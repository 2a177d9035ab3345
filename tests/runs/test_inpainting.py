"""The probe of hidden pixels: its numbers against those of a decoder that is known, and who it refuses."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml
from torch import nn

import locallearn
from locallearn.analysis.features import as_pixels
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.probes import Moment, sample
from locallearn.probes.inpainting import InpaintingProbe
from locallearn.training.prepare import prepare

SMALL = ["model=basic_cnn", "model.width=4", "model.hidden=0", "blocks=max", "data=digits", "batch_size=64"]


class Says(nn.Module):
    """A decoder that says one number everywhere, and keeps what it has read."""

    def __init__(self, number: float, image: tuple[int, ...]) -> None:
        super().__init__()
        self.image = image
        self.number = number
        self.read: list[torch.Tensor] = []

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        self.read.append(h.clone())
        return torch.full((len(h), *self.image), self.number, dtype=h.dtype)


def looked(objective: str, number: float):
    """A learner whose decoders all say one number, its data, and what the probe sees."""
    learner, data = prepare(experiment(*compose([*SMALL, "strategy=dgl", *objective.split()])))
    for block in learner.blocks:
        block.auxiliary["decoder"].decoder = Says(number, learner.model.image)
    return learner, data, InpaintingProbe(samples=100).look(learner, data, Moment(0, 0))


@pytest.mark.parametrize("objective", ["objective=masked objective.normalise=false", "objective=inpainting"])
def test_decibels_of_a_hole_that_is_filled_with_one_colour(objective):
    """Of the mean colour of all training images, 0 in what the network reads: from the variance of the hidden pixels
    about it. Filled with black: from their mean square."""
    logit = math.log(1e-9)
    learner, data, (rows, arrays) = looked(objective, 0.0 if "masked" in objective else logit)
    pixels = as_pixels(sample(data, "test", 100)[0], data.pixels)
    packet_hidden = arrays["hidden"]
    assert torch.allclose(arrays["whole"], pixels[:6].half())
    again = InpaintingProbe(samples=100, images=100).look(learner, data, Moment(3, 9))
    hidden = again.arrays["hidden"]
    assert torch.equal(hidden[:6], packet_hidden), "the same pixels at every look"
    colour = as_pixels(sample(data, "train")[0], data.pixels).mean()
    by_mean = -10 * torch.log10((pixels - colour).square()[hidden].mean()).item()
    by_black = -10 * torch.log10(pixels.square()[hidden].mean()).item()
    assert [row["block"] for row in rows] == list(range(len(learner.blocks)))
    for row in rows:
        assert row["mean_fill_psnr"] == pytest.approx(by_mean, rel=1e-6)
        assert row["hole_psnr"] == pytest.approx(by_mean if "masked" in objective else by_black, rel=1e-4)
        assert row["hidden"] == pytest.approx(hidden.double().mean().item())
        drawn = again.arrays[f"{row['layer']:03d}"]
        assert torch.equal(drawn[~hidden], pixels.half()[~hidden]), "what is seen stays"


def test_hidden_pixels_change_no_prediction():
    """Other pixels under the mask: the decoders read the same, bit for bit."""
    learner, data, seen = looked("objective=masked", 0.3)
    before = [[h.clone() for h in block.auxiliary["decoder"].decoder.read] for block in learner.blocks]
    images = sample(data, "test", 100)[0]
    hidden = InpaintingProbe(samples=100, images=100).look(learner, data, Moment(0, 0)).arrays["hidden"]
    other = torch.where(hidden, torch.randn_like(images), images)
    data.evaluation = lambda part, size: iter([(other, torch.zeros(100, dtype=torch.int64))])
    for block in learner.blocks:
        block.auxiliary["decoder"].decoder.read.clear()
    changed = InpaintingProbe(samples=100).look(learner, data, Moment(0, 0))
    for old, block in zip(before, learner.blocks, strict=True):
        assert torch.equal(old[0], block.auxiliary["decoder"].decoder.read[0])
    assert not torch.equal(changed.arrays["whole"], seen.arrays["whole"])


@pytest.mark.slow
def test_a_run(tmp_path):
    """It learns to fill better than the mean colour does, and draws it."""
    result = locallearn.train(
        strategy="dgl", objective="inpainting", probe="inpainting", quiet=True, out=str(tmp_path), threads=1,
        epochs=4, **{key: yaml.safe_load(value) for key, value in (each.split("=") for each in SMALL)},
    )  # fmt: skip
    folder = result.run_dir / "probes" / "inpainting"
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert {row["epoch"] for row in rows} == {0, 1, 2, 3, 4}
    assert all(row["hole_psnr"] > row["mean_fill_psnr"] + 0.5 for row in rows if row["epoch"] == 4)
    names = {file.name for file in folder.glob("*.png")}
    assert names == {"inpainting.png", "inpainting-00000.png", "inpainting-00004.png", "inpainting-epochs.png"}
    assert result.history[-1]["block/00/hole_psnr"] > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["strategy=backprop"], "nothing is hidden: choose strategy=dgl objective=masked"),
        (["strategy=dgl"], "nothing is hidden"),
        (["strategy=dgl", "objective=reconstruction"], "nothing is hidden"),
        (["strategy=man", "objective=masked"], "the decoders of strategy=man"),
    ],
)
def test_who_hides_nothing_is_refused(options, said):
    learner, data = prepare(experiment(*compose([*SMALL, *options])))
    with pytest.raises(UserError, match=said):
        InpaintingProbe().look(learner, data, Moment(0, 0))
