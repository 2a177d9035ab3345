"""The probe of levels: what it reads of features that are known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.errors import UserError
from locallearn.probes import Moment
from locallearn.probes.levels import LevelsProbe, seen
from locallearn.training.prepare import prepare

SMALL = ["model=basic_cnn", "model.width=4", "model.hidden=0", "blocks=max", "strategy=dgl", "auxiliary=linear"]
MADE = ["data=hierarchical", "data.images=1000", "data.pixel_noise=0.01"]


def looked(*options: str, change=None, **of_probe):
    learner, data = prepare(experiment(*compose([*SMALL, *MADE, *options])))
    if change is not None:
        change(learner, data)
    first, *rows = LevelsProbe(**of_probe).look(learner, data, Moment(0, 0)).rows
    return first, rows, data


def test_a_vector_is_taken_at_its_place():
    """Of a map that is linear in x and y: its value there, clamped to the centres of the outermost positions."""
    x = torch.arange(6.0) + 0.5
    h = torch.stack([x.expand(6, 6), 10 * x[:, None].expand(6, 6)])[None].repeat(3, 1, 1, 1)
    for at in ((0.5, 0.5), (0.3, 0.7), (5.5 / 6, 0.5 / 6)):
        assert torch.allclose(seen(h, at), torch.tensor([6 * at[0], 60 * at[1]]).expand(3, 2), atol=1e-4)
    assert torch.allclose(seen(h, (1.0, 0.0)), torch.tensor([5.5, 5.0]).expand(3, 2), atol=1e-4)
    assert seen(h, None).shape == (3, 2 * 16)
    assert torch.equal(seen(torch.ones(3, 2, 2, 2), None), torch.ones(3, 8))
    assert torch.equal(seen(torch.ones(3, 7), (0.1, 0.2)), torch.ones(3, 7))


class Tiles(nn.Module):
    """Which tile stands at each place, one-hot, from the nearest template to 3 x 3 pixels: [B, 8, 8, 8]."""

    def __init__(self, tiles: torch.Tensor) -> None:
        super().__init__()
        self.tiles = tiles.flatten(1).float()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pixels = (x > 0).float().unflatten(3, (8, 3)).unflatten(2, (8, 3)).permute(0, 2, 4, 3, 5, 1).flatten(3)
        apart = (pixels[..., None, :] - self.tiles).abs().sum(4)
        return nn.functional.one_hot(apart.argmin(3), 8).permute(0, 3, 1, 2).float()


def test_a_block_that_has_found_the_tiles_and_one_that_has_lost_all():
    """From one-hot tiles every tile is read, and the symbols in part; from zeros the most frequent kind alone."""

    def change(learner, data):
        grammar = experiment(*compose([*SMALL, *MADE])).source.grammar()
        units = learner.model.units
        units[0].forward = Tiles(grammar.tiles).forward
        units[1].forward = lambda h: torch.zeros(len(h), 4, 6, 6)
        units[2].forward = lambda h: torch.zeros(len(h), 5)

    first, (tiles, lost, vector), data = looked(change=change, samples=500)
    assert tiles["tile_accuracy"] > 0.97
    assert tiles["symbol_accuracy"] < first["symbol_best"]
    for row in (lost, vector):
        for name, level in data.levels.items():
            kinds = level.test[data.test.index].flatten(1)
            most = max((kinds == k).double().mean(0).max().item() for k in range(level.classes))
            assert row[f"{name}_accuracy"] <= most + 0.1
    assert lost["class_accuracy"] == pytest.approx(0.1, abs=0.01)
    assert first["class_best"] == data.levels["class"].accuracy
    assert set(first) == {f"{n}_{w}" for n in ("class", "symbol", "tile") for w in ("best", "bits")}


def test_it_draws_and_knows_its_blocks():
    first, rows, _ = looked(samples=100, parts=1)
    assert [row["block"] for row in rows] == [0, 1, 2]
    figure = LevelsProbe().draw([{"epoch": 0, **row} for row in (first, *rows)], {})["levels"]
    assert [axis.get_ylabel() for axis in figure.axes] == [f"{n}, test accuracy" for n in ("class", "symbol", "tile")]


def test_data_without_levels():
    learner, data = prepare(experiment(*compose([*SMALL, "data=digits"])))
    with pytest.raises(UserError, match="data=digits has none that are known: choose data=hierarchical"):
        LevelsProbe().look(learner, data, Moment(0, 0))
