"""What a study makes of its runs beyond a table, in a class that its yaml names; and what such classes share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from locallearn.names import TEST_ACCURACY
from locallearn.runs.read import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Runs:
    """The finished runs of a study.

    by_row     the runs of each row, in the order of its seeds; of two rows of one name those of the first part
    by_part    the runs of each row, by the title of its part
    published  what the yaml says was published for a row, with its source
    data       the folder of the data sets, None for that of LOCALLEARN_DATA
    jobs       how many processes or threads may work at a time
    quick      whether this is only a check that it works
    """

    by_row: Mapping[str, Sequence[Run]]
    published: Mapping[str, str]
    data: Path | None = None
    jobs: int = 1
    quick: bool = False
    by_part: Mapping[str, Mapping[str, Sequence[Run]]] = field(default_factory=dict)

    def accuracy(self, row: str) -> list[float]:
        """Test accuracy in percent, by seed."""
        return [100 * run.summary[TEST_ACCURACY] for run in self.by_row[row]]

    def rows(self, row: str, probe: str) -> list[list[dict[str, Any]]]:
        """What a probe has recorded, by seed; `epoch` 0 is the initial weights."""
        return [run.rows[probe] for run in self.by_row[row]]

    def series(self, row: str, name: str) -> list[list[float]]:
        """A number of metrics.jsonl over the epochs that have it, by seed."""
        return [[record[name] for record in run.history if name in record] for run in self.by_row[row]]


class Analysis(ABC):
    """Derive from it, and name the class in the study's yaml: `_target_: my_module.Mine`."""

    @abstractmethod
    def measure(self, runs: Runs) -> dict[str, Any]:
        """The numbers that pictures and text are made of, as JSON can hold them."""

    def draw(self, numbers: dict[str, Any]) -> dict[str, Figure]:
        """Pictures by name; the name of the study is put before it, `""` is the study's own picture."""
        return {}

    def tell(self, numbers: dict[str, Any]) -> Iterable[str]:
        """Lines of Markdown: tables of our numbers beside the published ones, and what agrees with them."""
        return ()


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """A Markdown table; the cells are text."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def verdicts(*claims: tuple[bool, str]) -> Iterator[str]:
    """What was published, in words with our numbers, and whether the numbers say so, too."""
    yield ""
    for holds, text in claims:
        yield f"- {'agrees' if holds else '**differs**'}: {text}"


def listed(values: Iterable[float], digits: int = 2) -> str:
    """Numbers in a row, with this many decimals."""
    return ", ".join(f"{value:.{digits}f}" for value in values)


def mean_std(values: Sequence[float], digits: int = 2) -> str:
    """Mean and, of several, standard deviation."""
    text = f"{fmean(values):.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {stdev(values):.{digits}f}"


def deviation(values: Sequence[float]) -> float:
    """Standard deviation; 0 for one value."""
    return stdev(values) if len(values) > 1 else 0.0


def means(repeats: Iterable[Sequence[float]]) -> list[float]:
    """The mean over the seeds at every place: [seed][place] -> [place]."""
    return [fmean(values) for values in zip(*repeats, strict=True)]


def averaged(repeats: Sequence[Sequence[dict[str, Any]]], digits: int = 4) -> list[dict[str, Any]]:
    """Rows of a probe about layers as one: the mean over the seeds of every number that all of them have, by epoch and
    layer; texts are those of the first seed."""
    places = [{(row["epoch"], row["layer"]): row for row in rows if "layer" in row} for rows in repeats]
    joined = []
    for place, first in places[0].items():
        if any(place not in rows for rows in places):
            continue
        row = dict(first)
        for key, value in first.items():
            values: list[Any] = [rows[place].get(key) for rows in places]
            if isinstance(value, float) and all(isinstance(v, int | float) for v in values):
                row[key] = round(fmean(values), digits)
        joined.append(row)
    return joined


def curve(rows: Iterable[dict[str, Any]], layer: int, key: str) -> tuple[list[int], list[float]]:
    """The epochs at which a layer has a number, and its values."""
    points = [(row["epoch"], row[key]) for row in rows if row["layer"] == layer and row.get(key) is not None]
    return [epoch for epoch, _ in points], [value for _, value in points]
