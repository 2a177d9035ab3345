"""Made-up click-through data: which of the shown things are clicked?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from locallearn.data.source import DataSource, Raw, RawSplit
from locallearn.data.store import Memory
from locallearn.seeds import generator

RATE, RANK = 0.25, 4


@dataclass(frozen=True)
class Clicks(DataSource):
    """Rows of categorical fields and whether there was a click: float32 [fields x values], one-hot. Generated, the same
    whatever the seed of a run.

    Value j of a field comes with a share proportional to 1 / (1 + j). The odds of a click are those of a factorization
    machine (Rendle 2010), w x + sum over pairs of fields of <v_i, v_j>, scaled to a deviation of 1.5, with a constant
    that makes a quarter of the rows clicks: what one field says depends on the others.

    fields, values   how many, and how many different ones each has
    rows             for training; a quarter as many are made for the test set
    """

    name: ClassVar[str] = "clicks"

    fields: Annotated[int, Ge(2)] = 10
    values: Annotated[int, Ge(2)] = 20
    rows: Annotated[int, Ge(8)] = 20_000

    def unread(self) -> Mapping[str, str]:
        return {**super().unread(), "root": "data=NAME that has files"}

    def place(self) -> str:
        return "made in memory"

    def read(self, device: torch.device) -> Raw:
        train, test = self.rows, self.rows // 4
        x, chances = self.truth(train + test)
        clicked = (torch.rand(len(x), generator=generator(0, "clicks", "clicked"), dtype=x.dtype) < chances).long()
        x = x.float()
        return Raw(
            ("none", "click"),
            RawSplit(Memory(x[:train]), clicked[:train]),
            RawSplit(Memory(x[train:]), clicked[train:]),
        )

    def truth(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows [count, fields x values] and their chances of a click [count], float64."""
        draws = generator(0, "clicks", self.fields, self.values)
        shares = 1 / (1 + torch.arange(self.values, dtype=torch.float64))
        chosen = torch.multinomial(shares, count * self.fields, replacement=True, generator=draws)
        x = F.one_hot(chosen.view(count, self.fields), self.values).flatten(1).double()
        w = torch.randn(self.fields * self.values, generator=draws, dtype=torch.float64)
        v = torch.randn(self.fields * self.values, RANK, generator=draws, dtype=torch.float64)
        pairs = ((x @ v).square() - x.square() @ v.square()).sum(1) / 2
        odds = _standard(x @ w) + _standard(pairs)
        odds = 1.5 * _standard(odds)
        low, high = -10.0, 10.0
        for _ in range(50):  # bisection: the constant at which a quarter is clicked
            middle = (low + high) / 2
            low, high = (middle, high) if float((odds + middle).sigmoid().mean()) < RATE else (low, middle)
        return x, (odds + low).sigmoid()


def _standard(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()
