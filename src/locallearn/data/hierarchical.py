"""Digits that are made of symbols that are made of tiles: images whose every level is known, and the best that can be
said of each (after the generative model of Malach & Shalev-Shwartz 2018, "A Provably Correct Algorithm for Deep
Learning that Actually Works", arXiv 1803.09522)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from annotated_types import Ge, Interval
from torch import Tensor
from torch.nn import functional as F

from locallearn.data.levels import KnownLevel
from locallearn.data.source import DataSource, Raw, RawSplit, require
from locallearn.data.store import Memory
from locallearn.seeds import generator

CLASSES, KINDS, GRID, EXPANSIONS, TILE = 10, 8, 4, 2, 3
SIDE = GRID * 2 * TILE
APART = 3
"""Pixels in which two tiles differ at least."""


class Drawn(NamedTuple):
    """N samples: the class int64 [N], the symbols [N, G, G], the tiles [N, 2G, 2G] and the pixels, bool [N, 6G, 6G]."""

    labels: Tensor
    symbols: Tensor
    tiles: Tensor
    pixels: Tensor


class Posterior(NamedTuple):
    """Probabilities given the pixels, float64: of the class [N, C], of each symbol [N, G, G, S] and of each tile
    [N, 2G, 2G, T]."""

    labels: Tensor
    symbols: Tensor
    tiles: Tensor


@dataclass(frozen=True)
class Grammar:
    """How images are made from classes, all of which are equally likely.

    templates   the symbol of each class at each place of a grid, int64 [C, G, G]
    expansions  the ways, equally likely, in which a symbol is made of 2 x 2 tiles, int64 [S, E, 4], row by row
    tiles       the pixels of a tile, bool [T, 3, 3]
    redraw      probability that a symbol is not that of the template but drawn from all, uniformly
    noise       probability that a pixel is inverted
    """

    templates: Tensor
    expansions: Tensor
    tiles: Tensor
    redraw: float
    noise: float

    def draw(self, labels: Tensor, draws: torch.Generator) -> Drawn:
        """Samples of the classes [N]."""
        symbols = self.templates[labels]
        other = torch.randint(len(self.expansions), symbols.shape, generator=draws)
        symbols = torch.where(torch.rand(symbols.shape, generator=draws) < self.redraw, other, symbols)
        way = torch.randint(self.expansions.shape[1], symbols.shape, generator=draws)
        tiles = _joined(self.expansions[symbols, way].unflatten(3, (2, 2)))
        pixels = _joined(self.tiles[tiles])
        return Drawn(labels, symbols, tiles, pixels ^ (torch.rand(pixels.shape, generator=draws) < self.noise))

    def posterior(self, pixels: Tensor) -> Posterior:
        """What images, bool [N, 6G, 6G], say of every level: the likelihoods of the tree passed up from the pixels, and
        what the rest of the image says passed down again. Exact, with noise above 0."""
        symbols, ways = self.expansions.shape[:2]
        tile = _parts(pixels, TILE).flatten(3)  # [N, 2G, 2G, 9]
        turned = (tile[..., None, :] ^ self.tiles.flatten(1)).sum(4).double()  # [N, 2G, 2G, T]
        of_tile = turned * math.log(self.noise) + (tile.shape[3] - turned) * math.log1p(-self.noise)
        four = _parts(of_tile.permute(0, 3, 1, 2), 2).flatten(4).permute(0, 2, 3, 4, 1)  # [N, G, G, 4, T]
        corners = [four[..., k, :][..., self.expansions[..., k]] for k in range(4)]
        of_way = torch.stack(corners).sum(0)  # [N, G, G, S, E]
        of_symbol = of_way.logsumexp(4) - math.log(ways)  # [N, G, G, S]
        prior = torch.full((*self.templates.shape, symbols), self.redraw / symbols, dtype=torch.float64)
        at = self.templates[..., None]
        prior = prior.scatter_add(3, at, torch.full(at.shape, 1 - self.redraw, dtype=torch.float64)).log()
        joint = prior + of_symbol[:, None]  # [N, C, G, G, S]
        of_class = joint.logsumexp(4).sum((2, 3))  # [N, C]
        labels = of_class.softmax(1)
        given = joint.softmax(4)
        seen = torch.einsum("nc,ncghs->nghs", labels, given)
        weights = seen[..., None] * of_way.softmax(4)  # [N, G, G, S, E]
        of = F.one_hot(self.expansions, len(self.tiles)).double()  # [S, E, 4, T]
        tiles = torch.einsum("nghse,sekt->nghkt", weights, of).unflatten(3, (2, 2))
        return Posterior(labels, seen, tiles.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2))


@dataclass(frozen=True)
class Hierarchical(DataSource):
    """Black and white images of 24 x 24 pixels, of 10 classes: a class puts a symbol of 8 at each place of a 4 x 4
    grid, a symbol is made of 2 x 2 tiles of 8 in one of two ways, a tile is 3 x 3 pixels. The grammar is the same
    whatever the seed of a run. `Data.levels` has what every image is made of, and how well each level can be known.

    images       for training, as many of each class as of another; a fifth as many are made for the test set
    redraw       probability that a place does not have its symbol but one drawn from all
    pixel_noise  probability that a pixel is inverted
    """

    name: ClassVar[str] = "hierarchical"

    images: Annotated[int, Ge(CLASSES)] = 4000
    redraw: Annotated[float, Interval(ge=0, le=1)] = 0.1
    pixel_noise: Annotated[float, Interval(gt=0, le=0.5)] = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.nuisance is None, "nuisance", self.nuisance, "null: what lies on the images is not in the likelihood"
        )
        require(self.images % CLASSES == 0, "images", self.images, f"a multiple of {CLASSES}, the number of classes")

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), "root": "data=NAME that has files"}

    def place(self) -> str:
        return "made in memory"

    def grammar(self) -> Grammar:
        draws = generator(0, "hierarchical", "grammar")
        templates = torch.randint(KINDS, (CLASSES, GRID, GRID), generator=draws)
        codes = torch.randperm(KINDS**4, generator=draws)[: KINDS * EXPANSIONS]  # no two are alike
        expansions = torch.stack([codes // KINDS**k % KINDS for k in range(4)], 1).view(KINDS, EXPANSIONS, 4)
        tiles: list[Tensor] = []
        for code in torch.randperm(2 ** (TILE**2), generator=draws).tolist():
            tile = torch.tensor([code >> k & 1 for k in range(TILE**2)], dtype=torch.bool)
            if len(tiles) < KINDS and all(int((tile ^ each).sum()) >= APART for each in tiles):
                tiles.append(tile)
        return Grammar(templates, expansions, torch.stack(tiles).view(KINDS, TILE, TILE), self.redraw, self.pixel_noise)

    def read(self, device: torch.device) -> Raw:
        grammar = self.grammar()
        train, test = (
            grammar.draw(torch.arange(count) % CLASSES, generator(0, "hierarchical", part))
            for part, count in (("train", self.images), ("test", max(CLASSES, self.images // 5)))
        )
        parts = [grammar.posterior(pixels) for pixels in test.pixels.split(1000)]
        chances = Posterior(*(torch.cat(of) for of in zip(*parts, strict=True)))
        levels = {
            "class": _level(train.labels, test.labels, chances.labels),
            "symbol": _level(train.symbols, test.symbols, chances.symbols),
            "tile": _level(train.tiles, test.tiles, chances.tiles),
        }
        return Raw(tuple(f"class {i}" for i in range(CLASSES)), _split(train), _split(test), levels=levels)


def _level(train: Tensor, test: Tensor, chances: Tensor) -> KnownLevel:
    """Of kinds [N] or [N, rows, columns], and the probabilities [M, ..., kinds] of those of the test samples."""
    known, asked = (kinds.view(len(kinds), *(kinds.shape[1:] or (1, 1))) for kinds in (train, test))
    entropy = float(torch.special.entr(chances).sum(-1).mean()) / math.log(2)
    return KnownLevel(chances.shape[-1], known, asked, float(chances.amax(-1).mean()), entropy)


def _split(part: Drawn) -> RawSplit:
    return RawSplit(Memory(part.pixels[:, None].to(torch.uint8) * 255), part.labels)


def _joined(parts: Tensor) -> Tensor:
    """Parts [N, rows, columns, h, w] as one map [N, rows * h, columns * w]."""
    return parts.permute(0, 1, 3, 2, 4).flatten(3).flatten(1, 2)


def _parts(maps: Tensor, side: int) -> Tensor:
    """Maps [..., rows * side, columns * side] as parts [..., rows, columns, side, side]."""
    return maps.unflatten(-1, (-1, side)).unflatten(-3, (-1, side)).transpose(-3, -2)
