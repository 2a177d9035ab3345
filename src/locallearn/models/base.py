"""A model is an ordered list of units and a head. Where it is cut into blocks is not part of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from torch import Tensor, fx, nn

from locallearn.analysis.quiet import undisturbed
from locallearn.errors import UserError
from locallearn.models import cut
from locallearn.models.axes import Axes, usual

Size: TypeAlias = tuple[int, ...]
"""A shape without the batch: (C, H, W) for maps, (D,) for vectors."""


class BlockModel(nn.Module):
    """An ordered list of units and a head.

    units   each maps [B, ...] -> [B, ...]; the smallest pieces that a cut may separate. A unit never begins with an
            in-place operation: that would write into what the block below still needs
    head    maps the last unit's output -> [B, classes]
    names   one per unit, for tables and messages
    samples the only batch that the model reads (all nodes of its graph), or None for any
    channels_first  an input of two axes is [C, L] and not [T, D]

    What a unit emits has its features where everything that reads them expects them: [B, D], [B, T, D], [B, C, H, W] or
    [B, C, D, H, W].
    """

    units: nn.ModuleList
    head: nn.Module
    samples: int | None = None
    channels_first: bool = False

    def __init__(
        self,
        units: Iterable[nn.Module],
        head: nn.Module,
        *,
        image: Size,
        classes: int,
        name: str,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)
        self.head = head
        self.image: Size = tuple(image)
        self.classes = classes
        self.name = name
        self.names = list(names) if names is not None else [f"unit{i}" for i in range(len(self.units))]
        assert len(self.names) == len(self.units), "one name per unit"

    def forward(self, x: Tensor) -> Tensor:
        for unit in self.units:
            x = unit(x)
        return self.head(x)

    def block(self, units: range) -> nn.Module:
        """The units of one block as a module [B, ...] -> [B, ...] that shares them."""
        return nn.Sequential(*(self.units[i] for i in units))

    def cut(self, blocks: int | str | Sequence[int], balance: str = "flops") -> list[range]:
        """The units of each block. `blocks` is a number of blocks of equal cost (`balance`: flops, memory or time),
        "max" for one unit per block, or the cut points themselves: [2, 4, 7] cuts after 2, 4 and 7 units."""
        return cut.cut(self, blocks, balance)

    def shapes(self) -> list[Size]:
        """What each unit emits, without the batch; found by a small forward that leaves no trace. Raises UserError for
        a unit whose features are in another place (those of `as_blocks` have been turned)."""
        shapes = []
        with undisturbed(self), Axes() as axes:
            h = cut.blank(self)
            for name, unit in zip(self.names, self.units, strict=True):
                h = cut.emitted(self, name, unit(h))
                found, expected = axes.of(h), usual(h.dim())
                if found not in (None, expected) and not isinstance(unit, fx.GraphModule):
                    raise UserError(
                        f"unit {name!r} of {self.name} emits batches of {list(h.shape)} with the features in axis "
                        f"{found}, and blocks read them in axis {expected}: end it with .movedim({found}, {expected}) "
                        f"and begin the next one with .movedim({expected}, {found})"
                    )
                shapes.append(tuple(h.shape[1:]))
        return shapes
