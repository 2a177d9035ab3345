"""What is measured beside training. A probe looks and never changes: a run with probes ends with the same weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias

from annotated_types import Ge
from torch import Tensor

from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.options import Options

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = dict[str, Any]
"""One line of a probe's `rows.jsonl`: numbers, texts, None. `block` or `layer` (a number from the input upward) says
what it is about; texts say by which convention a number was made."""

Every: TypeAlias = Annotated[int, Ge(1)] | Literal["log"]
PER_DECADE = 10


class Moment(NamedTuple):
    """When a probe looks: after so many epochs and steps; 0 is the initial weights."""

    epoch: int
    step: int


class Seen(NamedTuple):
    """What one look found: `rows` of numbers, and `arrays` that only a picture needs (kept of every look as
    `epoch-00003.npz`)."""

    rows: list[Row]
    arrays: Mapping[str, Tensor] = {}


@dataclass(frozen=True)
class Probe(Options, ABC):
    """A measurement of a learner. Concrete ones are frozen dataclasses of typed options.

    every  look after every so many epochs, or at epochs about evenly spaced on a logarithmic axis (`log`, ten for each
           factor of ten); in any case at the initial weights and after the last epoch
    """

    every: Every = field(default=1, kw_only=True)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._group = f"probe.{cls.__module__.rpartition('.')[2]}"  # the name of its file, as in settings

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        return {}

    @abstractmethod
    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        """Measure. Modes, buffers, gradients and the generators of PyTorch are put back by the caller (see
        `engine.gradients.unchanged`); parameters must not be touched, or be put back bit for bit."""

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        """Pictures of all looks so far, by file name without ending. `rows` have `epoch` and `step`; `arrays` are those
        of each look, by epoch."""
        return {}

    def due(self, epoch: int) -> bool:
        """Whether to look after `epoch` epochs."""
        if self.every != "log":
            return epoch % int(self.every) == 0
        return epoch == 0 or epoch == round(10 ** (round(PER_DECADE * math.log10(epoch)) / PER_DECADE))


def numbers(rows: Iterable[Row]) -> dict[str, float]:
    """The numbers of rows by the name they get in the record of an epoch: `block/00/update_cosine`, `layer/03/snr`."""
    found: dict[str, float] = {}
    for row in rows:
        place = next((f"{key}/{int(row[key]):02d}/" for key in ("block", "layer") if key in row), "")
        for name, value in row.items():
            if name not in ("block", "layer", "epoch", "step") and isinstance(value, int | float):
                found[f"{place}{name}"] = float(value)
    return found
