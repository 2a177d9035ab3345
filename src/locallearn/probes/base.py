"""What is measured during training. A probe looks and never changes: a run with probes ends with the same weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeAlias

from annotated_types import Ge
from torch import Tensor

from locallearn import names
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.figures import panels
from locallearn.figures.curves import over_depth, over_epochs
from locallearn.options import Options
from locallearn.task import CLASSIFICATION, MIXED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = dict[str, Any]
"""One line of a probe's `rows.jsonl`: numbers, texts, None. `block` or `layer` (a number from the input upward) says
what it is about; texts say by which convention a number was made."""
Arrays: TypeAlias = Mapping[int, Mapping[str, Tensor]]
"""The arrays of each look, by epoch."""
Pictures: TypeAlias = "dict[str, Figure]"
"""By file name without ending."""

CLASS_LABELS = frozenset({CLASSIFICATION, MIXED})
"""For probes that read one class for each sample."""
Every: TypeAlias = Annotated[int, Ge(1)] | Literal["log"]
PER_DECADE = 10


class Moment(NamedTuple):
    """When a probe looks: after this many epochs and steps; 0 is the initial weights."""

    epoch: int
    step: int


class Seen(NamedTuple):
    """The result of one look: `rows` of numbers, and `arrays` that only a picture needs, kept as `epoch-00003.npz`."""

    rows: list[Row]
    arrays: Mapping[str, Tensor] = {}


class Curve(NamedTuple):
    """One panel of a picture.

    key    of the number in the rows
    label  of its axis
    log    whether that is logarithmic
    level  what a grey line marks: a value, or the key of one
    depth  the number is shown over depth, a line for some of the looks, and not over epochs, a line for each layer
    """

    key: str
    label: str
    log: bool = False
    level: float | str | None = None
    depth: bool = False


@dataclass(frozen=True)
class Probe(Options, ABC):
    """A measurement of a learner. Concrete ones are frozen dataclasses of typed options, which write `look` and name
    their `curves`; `depth` has the samples to look at and what each layer makes of them.

    tasks   what it can look at (`Task.asks`); None: any task
    single  whether it asks what one update of each block would be: such a probe is refused for a strategy that updates
            several times in a batch, each time from the weights that the update before has left
    follows whether it watches the steps of training (`follow`): then it looks neither afterwards nor in a pipeline
    every   look once in this many epochs, or at epochs about evenly spaced on a logarithmic axis (`log`, ten for
            each factor of ten); in any case at the initial weights and after the last epoch
    """

    every: Every = field(default=1, kw_only=True)
    curves: ClassVar[Sequence[Curve]] = ()
    tasks: ClassVar[frozenset[str] | None] = None
    single: ClassVar[bool] = False
    follows: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._group = f"probe.{cls.__module__.rpartition('.')[2]}"

    @property
    def name(self) -> str:
        """As settings and folders say it: the name of the probe's file."""
        return self._group.removeprefix("probe.")

    def unread(self) -> Mapping[str, str]:
        """Options that nothing reads beside the others, and what would read them; see `Strategy.unread`."""
        return {}

    def follow(self, learner: Learner, steps: int) -> None:
        """Hang observers on the blocks that are about to train, in epochs of `steps`; `look` finds them there. They see
        gradients and must not change them. Called anew when a run goes on."""
        return None

    @abstractmethod
    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        """Measure.

        The caller puts back modes, buffers, gradients and PyTorch's generators (see `engine.gradients.unchanged`);
        parameters must not be touched, or be put back bit for bit.

        Args:
            learner: the model with its blocks and strategy, in this process as a whole.
            data: the set of the run.
            at: when the look takes place.

        Returns: the rows of this look, and arrays for the pictures.

        Raises UserError where the model or the data cannot be measured; at the initial weights that ends the run.
        """

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        """Draw all looks so far: the curves, and a snapshot of the first and of the last one.

        Args:
            rows: of every look, with `epoch` and `step`.
            arrays: of every look.

        Returns: pictures by file name; none where there is nothing to show.
        """
        pictures = {}
        if curves := [curve for curve in self.curves if any(curve.key in row for row in rows)]:
            pictures[self.name], axes = panels(len(curves), width=3.6)
            for axis, curve in zip(axes, curves, strict=True):
                if curve.level is not None:
                    level = rows[0][curve.level] if isinstance(curve.level, str) else curve.level
                    axis.axhline(level, color="#999999", linewidth=0.8)
                (over_depth if curve.depth else over_epochs)(axis, rows, curve.key)
                axis.set(ylabel=curve.label, yscale="log" if curve.log else "linear")
            axes[0].legend(title="epoch" if curves[0].depth else None)
        for epoch in sorted({min(arrays), max(arrays)}) if arrays else ():
            of = [row for row in rows if row["epoch"] == epoch]
            if arrays[epoch] and (figure := self.snapshot(of, arrays[epoch])) is not None:
                figure.suptitle("initial weights" if epoch == 0 else f"after epoch {epoch}")
                pictures[f"{self.name}-{epoch:05d}"] = figure
        return pictures

    def snapshot(self, rows: Sequence[Row], arrays: Mapping[str, Tensor]) -> Figure | None:
        """A picture of one look, drawn of the first and the last one, or None."""
        return None

    def due(self, epoch: int) -> bool:
        """Whether to look after `epoch` epochs."""
        if self.every != "log":
            return epoch % int(self.every) == 0
        return epoch == 0 or epoch == round(10 ** (round(PER_DECADE * math.log10(epoch)) / PER_DECADE))


def numbers(rows: Iterable[Row]) -> dict[str, float]:
    """The numbers of rows by the name they get in the record of an epoch: `block/00/update_cosine`, `layer/03/snr`."""
    record: dict[str, float] = {}
    for row in rows:
        place = next((key for key in (names.BLOCK, names.LAYER) if key in row), None)
        for name, value in row.items():
            if name not in (names.BLOCK, names.LAYER, "epoch", "step") and isinstance(value, int | float):
                record[names.at(place, int(row[place]), name) if place else name] = float(value)
    return record
