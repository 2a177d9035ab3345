"""What a study is: the rows, seeds and published numbers of a yaml file in conf/study, or of a published experiment.

# What it asks, in one line.
title: Small nets
text: What is done and why, and from which papers the published numbers are.
common: data=mnist model=lenet epochs=3      # words of a command line, shared by all rows
seeds: [0, 1, 2]
quick: data=digits max_steps=2               # what `--quick` changes, to see in seconds that it works
rows:
  backprop: strategy=backprop
  dgl: {settings: strategy=dgl auxiliary=mlp, published: 98.1, differs: 3 epochs of 100}
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from annotated_types import Ge, Gt

from locallearn.config.compose import choices, explained, header, multirun
from locallearn.errors import UserError, unknown
from locallearn.names import TEST_ACCURACY
from locallearn.options import checked
from locallearn.studies.space import entry_of, evenly, override
from locallearn.studies.verdict import Reference

UNITS = {"percent": 100.0, "GB": 1e-9, "GiB": 2.0**-30, "MiB": 2.0**-20, "nats": 1.0, "": 1.0}
ACCURACY = f"{TEST_ACCURACY} in percent"
SHARED = ("common", "seeds", "metric", "readout", "choose", "choose_seeds", "search", "trials", "verdict", "margin")
"""What may stand above the parts of a study and holds for each."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    settings   words of a command line, beside those that all rows share
    published  the number of a paper, in the unit of the table, or those of each of its runs
    deviation  the published sample deviation, and `runs` of how many; None where nobody says
    source     where that number is from
    differs    what is not as in the paper
    cause      why the number is another one, where that is known
    choose     values of settings, of which the row has the best by validation; None: those of the part
    """

    settings: str = ""
    published: float | list[float] | None = None
    deviation: float | None = None
    runs: int | None = None
    source: str = ""
    differs: str = ""
    cause: str = ""
    choose: dict[str, list[Any]] | None = None

    def __post_init__(self) -> None:
        _ = self.reference  # raises UserError where what is published does not fit together

    @property
    def reference(self) -> Reference | None:
        """What was published."""
        return None if self.published is None else Reference.of(self.published, self.deviation, self.runs)


@dataclass(frozen=True)
class Part:
    """One table.

    metric   a number of summary.json, and its unit: percent, GB, GiB, MiB or nats
    control  the row from which the others' differences are taken, seed by seed
    readout  also fit a linear classifier to the frozen features of every run
    choose   values of settings, of which each row has those that are best by validation, in the mean
    choose_seeds  with how many of the seeds they are tried; the others follow with the best alone; 0: with all
    search   in the place of `choose`, ranges of settings, in which every row tries the same points
    trials   how many points that are, see `space.evenly`
    verdict  judge each row against what was published, see `verdict`
    margin   what a verdict of "reproduced" must at least be as sharp as, in the unit of the metric; None: by the size
             of the test set, for shares in percent
    """

    rows: dict[str, Row]
    title: str = ""
    text: str = ""
    common: str = ""
    seeds: list[int] = field(default_factory=lambda: [0])
    metric: str = ACCURACY
    control: str | None = None
    readout: bool = False
    choose: dict[str, list[Any]] = field(default_factory=dict)
    choose_seeds: Annotated[int, Ge(0)] = 0
    search: dict[str, Any] = field(default_factory=dict)
    trials: Annotated[int, Ge(0)] = 0
    verdict: bool = False
    margin: Annotated[float, Gt(0)] | None = None

    def __post_init__(self) -> None:
        if not self.rows or not self.seeds:
            raise UserError(f"{self.title or 'the study'}: give at least one row and one seed")
        if self.control is not None and self.control not in self.rows:
            raise unknown("control", self.control, self.rows)
        if self.unit not in UNITS:
            raise unknown("unit of metric", self.unit, UNITS)
        if bool(self.search) != bool(self.trials) or (self.search and self.choose):
            raise UserError(
                f"{self.title or 'the study'}: search and trials need each other, as in trials: 8, and exclude choose"
            )
        if self.search:
            _ = self.points  # raises UserError where the space is none
        if self.verdict and self.margin is None and self.unit != "percent":
            raise UserError(
                f"{self.title or 'the study'}: a verdict on {self.metric} needs a margin, as in margin: 0.05"
            )

    @property
    def number(self) -> str:
        """The name of the metric, without its unit."""
        return self.metric.partition(" in ")[0]

    @property
    def unit(self) -> str:
        return self.metric.partition(" in ")[2].partition(",")[0]

    def candidates(self, row: str) -> Iterator[list[str]]:
        """The settings between which a row chooses; most have no choice."""
        own = shlex.split(f"{self.common} {self.rows[row].settings}")
        for choice in self.choices(row):
            yield [*own, *(f"{key}={value}" for key, value in choice.items())]

    def choices(self, row: str) -> list[dict[str, Any]]:
        """What a row chooses from: values of the same settings each time; one empty choice, if it has none."""
        own = self.rows[row].choose
        if own is None and self.search:
            return self.points
        lists = self.choose if own is None else own
        return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]

    @cached_property
    def points(self) -> list[dict[str, Any]]:
        """The points of the search space that every row tries. Raises UserError."""
        space = {key: entry_of(entry, f"search: {key}") for key, entry in self.search.items()}
        return [
            {key: override(key, value).partition("=")[2] for key, value in point.items()}
            for point in evenly(space, self.trials)
        ]

    def tried(self, row: str) -> list[int]:
        """The seeds with which a row tries what it may choose."""
        return self.seeds[: self.choose_seeds or None] if len(self.choices(row)) > 1 else self.seeds


@dataclass(frozen=True)
class Study:
    """A whole study.

    page    the page whose section it writes; without it a page of its own
    quick   settings that replace others in the quick form
    target  the class that makes more of the runs than tables, see `analysis.Analysis`
    table   whether the page shows a table of the rows
    """

    name: str
    title: str
    parts: list[Part]
    text: str = ""
    page: str = ""
    quick: str = ""
    target: str | None = None
    table: bool = True

    def in_brief(self) -> Study:
        """The quick form: one seed, one point of a search, and other settings."""
        parts = [replace(part, seeds=part.seeds[:1], trials=min(part.trials, 1)) for part in self.parts]
        return replace(self, parts=parts)


def known(config_dirs: Iterable[Path] = ()) -> dict[str, Path]:
    """Every study by name: the files of conf/study, then published experiments."""
    folders = list(config_dirs)
    return choices("experiment", folders) | choices("study", folders)


def load(name: str, quick: bool = False, config_dirs: Sequence[Path] = ()) -> Study:
    """The study of that name, in its quick form perhaps. Raises UserError."""
    if file := choices("study", config_dirs).get(name):
        study = _parsed(file)
        return study.in_brief() if quick else replace(study, quick="")
    if name not in known(config_dirs):
        raise unknown("study", name, known(config_dirs))
    kind = "short" if quick and name in choices("short", config_dirs) else "experiment"
    return _published(kind, name, config_dirs)


def _parsed(file: Path) -> Study:
    """Read a yaml file. Raises UserError, which names the file."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping):
            raise UserError("must map title, rows and so on to their values")
        top = {"target" if key == "_target_" else str(key): value for key, value in content.items()}
        shared = {key: top.pop(key) for key in SHARED if key in top}
        whole = "parts" not in top
        parts = top.pop("parts", [{key: top.pop(key) for key in ("rows", "control") if key in top}])
        if not isinstance(parts, list) or not all(isinstance(part, Mapping) for part in parts):
            raise UserError("parts: must be a list, each with a title and rows")
        common, about = shared.pop("common", ""), checked(Study, top, "", ("name", "parts"))
        tables = []
        for k, part in enumerate(parts):
            own = checked(Part, _rows({**shared, **part}), "" if whole else f"parts[{k}]")
            tables.append(Part(**{**own, "common": f"{common} {own.get('common', '')}".strip()}))
        return Study(**about, name=file.stem, parts=tables)
    except (OSError, ValueError, yaml.YAMLError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{file}{where}: {' '.join(str(error).split())}") from None


def _rows(part: Mapping[str, Any]) -> dict[str, Any]:
    """A part whose rows are mappings: a text stands for the settings alone."""
    rows = part.get("rows")
    if not isinstance(rows, Mapping):
        return dict(part)
    full = {str(name): {"settings": row} if isinstance(row, str) else row or {} for name, row in rows.items()}
    return {**part, "rows": full}


def _published(kind: str, name: str, config_dirs: Sequence[Path]) -> Study:
    """An experiment as a study: its rows are the runs of the sweeps that its header calls, a learning rate among
    several is chosen, and what the header says stands beside the numbers."""
    full = header(choices("experiment", config_dirs)[name])
    facts = full | header(choices(kind, config_dirs)[name])
    rows: dict[str, Row] = {}
    choose: dict[str, list[Any]] = {}
    default = f"python -m locallearn -m +{kind}={name}"
    calls = facts["command"] if f"+{kind}=" in facts.get("command", "") else default
    for call in map(str.strip, calls.split("&&")):
        if not call.startswith("python -m locallearn -m "):
            continue
        words = shlex.split(call)[4:]
        with explained(words, config_dirs):
            varies = multirun(words, config_dirs)[1]
        choose = {key: varies.pop(key) for key in ("optim.lr",) if len(varies.get(key, [])) > 1} or choose
        for values in itertools.product(*varies.values()):
            own = [f"{key}={value}" for key, value in zip(varies, values, strict=True)]
            title = " ".join([*words[1:], *own])
            rows[title or name] = Row(" ".join([*words, *own]))
    metric = facts.get("measure", ACCURACY)
    metric = metric if re.match(r"\w+/|peak_memory", metric) else ACCURACY
    shown = ("paper", "published", "differs", "keeps", "reached")
    text = " ".join([facts["summary"], *(f"{key.capitalize()}: {facts[key]}." for key in shown if key in facts)])
    title = f"{name}, short form" if kind == "short" else name
    return Study(name, title, [Part(rows, metric=metric, choose=choose)], text)


def merged(words: Sequence[str]) -> list[str]:
    """Words of a command line, of which the last about a setting holds."""
    return list({word.lstrip("+~").partition("=")[0]: word for word in words}.values())
