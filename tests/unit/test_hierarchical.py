"""Images whose every level is known: the exact posterior against an enumeration of all that could have made them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from locallearn.data.hierarchical import Grammar, Hierarchical
from locallearn.errors import UserError
from locallearn.seeds import generator

CPU = torch.device("cpu")


def small(redraw: float, noise: float) -> Grammar:
    """Two classes of 1 x 1 or 2 x 2 symbols are enough: three symbols, two ways, three tiles."""
    g = torch.Generator().manual_seed(3)
    return Grammar(
        torch.tensor([[[0]], [[1]]]),
        torch.randint(3, (3, 2, 4), generator=g),
        torch.rand(3, 3, 3, generator=g) < 0.5,
        redraw,
        noise,
    )


def enumerated(grammar: Grammar, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every class, every symbol at every place, every way: their joint probability with the image, pixel by pixel, and
    from that what is asked."""
    templates, expansions, tiles = grammar.templates.numpy(), grammar.expansions.numpy(), grammar.tiles.numpy()
    side = templates.shape[1]
    cells = [(r, c) for r in range(side) for c in range(side)]
    choices = list(itertools.product(range(len(expansions)), range(expansions.shape[1])))
    labels = np.zeros(len(templates))
    symbols = np.zeros((side, side, len(expansions)))
    parts = np.zeros((2 * side, 2 * side, len(tiles)))
    for label in range(len(templates)):
        for made in itertools.product(choices, repeat=len(cells)):
            p = 1 / len(templates)
            for (r, c), (symbol, way) in zip(cells, made, strict=True):
                p *= grammar.redraw / len(expansions) + (1 - grammar.redraw) * (symbol == templates[label, r, c])
                p /= expansions.shape[1]
                for k, tile in enumerate(expansions[symbol, way]):
                    top, left = 6 * r + 3 * (k // 2), 6 * c + 3 * (k % 2)
                    for i, j in itertools.product(range(3), range(3)):
                        same = image[top + i, left + j] == tiles[tile, i, j]
                        p *= 1 - grammar.noise if same else grammar.noise
            labels[label] += p
            for (r, c), (symbol, way) in zip(cells, made, strict=True):
                symbols[r, c, symbol] += p
                for k, tile in enumerate(expansions[symbol, way]):
                    parts[2 * r + k // 2, 2 * c + k % 2, tile] += p
    total = labels.sum()
    return labels / total, symbols / total, parts / total


@pytest.mark.parametrize("templates", [[[[0]], [[1]]], [[[0, 1], [2, 2]], [[1, 1], [2, 0]]]])
@pytest.mark.parametrize(("redraw", "noise"), [(0.1, 0.02), (0.7, 0.2), (1.0, 0.4), (0.0, 0.3)])
def test_the_posterior_is_that_of_an_enumeration(templates, redraw, noise):
    few = small(redraw, noise)
    grammar = Grammar(torch.tensor(templates), few.expansions, few.tiles, redraw, noise)
    drawn = grammar.draw(torch.tensor([0, 1]), torch.Generator().manual_seed(7))
    found = grammar.posterior(drawn.pixels)
    for n in range(2 if len(templates[0]) == 1 else 1):
        for ours, theirs in zip(found, enumerated(grammar, drawn.pixels[n].numpy()), strict=True):
            assert np.allclose(ours[n].numpy(), theirs, rtol=1e-9, atol=1e-12)


def test_what_is_drawn_is_what_the_labels_say():
    """Without noise each tile of the image is that which its label names, and stands in a way of its symbol; shares of
    redrawn symbols and turned pixels are those asked for."""
    source = Hierarchical(redraw=0.4, pixel_noise=0.1)
    grammar = source.grammar()
    clean = Grammar(grammar.templates, grammar.expansions, grammar.tiles, 0.4, 0.0)
    labels = torch.arange(2000) % 10
    drawn = clean.draw(labels, generator(1, "test"))
    assert drawn.pixels.shape == (2000, 24, 24)
    for n, r, c in itertools.product(range(3), range(8), range(8)):
        shown = drawn.pixels[n, 3 * r : 3 * r + 3, 3 * c : 3 * c + 3]
        assert torch.equal(shown, grammar.tiles[drawn.tiles[n, r, c]])
    for n, r, c in itertools.product(range(3), range(4), range(4)):
        four = drawn.tiles[n, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].flatten().tolist()
        assert four in grammar.expansions[drawn.symbols[n, r, c]].tolist()
    kept = (drawn.symbols == grammar.templates[labels]).double().mean().item()
    assert kept == pytest.approx(0.6 + 0.4 / 8, abs=0.01)
    noisy = grammar.draw(labels, generator(1, "test"))
    assert torch.equal(noisy.tiles, drawn.tiles)
    assert (noisy.pixels ^ drawn.pixels).double().mean().item() == pytest.approx(0.1, abs=0.002)


def test_the_grammar_can_be_told_apart():
    grammar = Hierarchical().grammar()
    flat = grammar.tiles.flatten(1)
    apart = (flat[:, None] ^ flat).sum(2) + 9 * torch.eye(8)
    assert apart.min() >= 3
    assert len({tuple(way) for symbol in grammar.expansions.tolist() for way in symbol}) == 16
    other = Hierarchical(redraw=0.5).grammar()
    assert all(torch.equal(getattr(grammar, of), getattr(other, of)) for of in ("templates", "expansions", "tiles"))


def test_the_best_answer_is_right_as_often_as_it_says():
    """Over fresh samples the most probable kind is right with the mean of its probability, at each level, and the mean
    log-probability of the truth is the entropy."""
    source = Hierarchical(redraw=0.7, pixel_noise=0.12, images=5000)
    raw = source.read(CPU)
    grammar = source.grammar()
    fresh = grammar.draw(torch.arange(3000) % 10, generator(5, "fresh"))
    found = grammar.posterior(fresh.pixels)
    for level, chances, truth in zip(
        raw.levels.values(), found, (fresh.labels, fresh.symbols, fresh.tiles), strict=True
    ):
        right = (chances.argmax(-1) == truth).double().mean().item()
        bits = -chances.gather(-1, truth[..., None]).log2().mean().item()
        assert right == pytest.approx(level.accuracy, abs=0.02)
        assert bits == pytest.approx(level.bits, abs=0.04)
        assert 1 / level.classes < level.accuracy <= 1
        assert 0 <= level.bits < math.log2(level.classes)


def test_noise_that_leaves_nothing():
    """Pixels that are turned half of the time say nothing: 1 / 10 and log2 10 bits. Redrawing leaves the symbols."""
    levels = Hierarchical(pixel_noise=0.5, images=500).read(CPU).levels
    assert levels["class"].accuracy == pytest.approx(0.1)
    assert levels["class"].bits == pytest.approx(math.log2(10))
    levels = Hierarchical(redraw=1.0, images=500).read(CPU).levels
    assert levels["class"].accuracy == pytest.approx(0.1)
    assert levels["symbol"].accuracy > 0.99


def test_a_set_keeps_its_levels():
    data = Hierarchical(images=100).load(0, CPU)
    again = Hierarchical(images=100).load(1, CPU)
    for name, part in (("train", data.train), ("train", data.validation), ("test", data.test), ("train", again.train)):
        assert torch.equal(getattr(data.levels["class"], name)[part.index].flatten(), part.labels)
    sizes = {name: tuple(level.train.shape) for name, level in data.levels.items()}
    assert sizes == {"class": (100, 1, 1), "symbol": (100, 4, 4), "tile": (100, 8, 8)}
    assert data.image == (1, 24, 24)
    assert not Hierarchical(images=100).load(0, CPU).levels.keys() - {"class", "symbol", "tile"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"images": 105}, r"data\.images=105: must be a multiple of 10"),
        ({"nuisance": "occlusion"}, r"data\.nuisance=occlusion: must be null"),
        ({"pixel_noise": 0.0}, "pixel_noise"),
        ({"redraw": 1.5}, "redraw"),
    ],
)
def test_bad_options(options, said):
    with pytest.raises(UserError, match=said):
        Hierarchical(**options)
