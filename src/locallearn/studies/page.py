"""From the record of a study to Markdown and pictures: a page of its own, or a section of a page that is there.

The record is NAME.json. All that the page says comes from it, so that it can be written again without a run.
"""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import stdev
from typing import Any

import torch

from locallearn.errors import UserError
from locallearn.figures import save
from locallearn.names import in_words
from locallearn.studies.analysis import Analysis, markdown_table, mean_std
from locallearn.studies.definition import Study
from locallearn.studies.verdict import DIFFERS, OPEN

QUICK = "**The quick form, to see that the study works: its numbers mean nothing.**"


def read(study: Study, to: Path) -> dict[str, Any]:
    """The record of a study that was written to `to`. Raises UserError."""
    file = _home(study.page, to) / f"{study.name}.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no {file}: do the study first, `locallearn study {study.name} --to {to}`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _home(page: str, to: Path) -> Path:
    """Where record and pictures go: beside the page if that is the study's own, else into a folder of its name."""
    return to / page if page else to


def write(record: dict[str, Any], to: Path, analysis: Analysis | None) -> list[Path]:
    """Write record, pictures and page or section; returns the files. Raises UserError."""
    name, home = record["study"], _home(record["page"], to)
    try:
        home.mkdir(parents=True, exist_ok=True)
        file = home / f"{name}.json"
        file.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        record = json.loads(file.read_text(encoding="utf-8"))  # the same page now and when it is written again
        pictures: list[Path] = []
        numbers = record["results"]
        if analysis is not None and numbers is not None:
            figures = analysis.draw(numbers)
            pictures = [save(figure, home / f"{name}_{part}".rstrip("_"))[0] for part, figure in figures.items()]
        if record["page"]:
            target = to / f"{record['page']}.md"
            if not target.exists():
                target.write_text(f"# {record['page'].replace('_', ' ').capitalize()}\n", encoding="utf-8")
            lines = render(record, analysis, [f"{home.name}/{picture.name}" for picture in pictures], 2)
            write_between(target, f"locallearn study {name}", lines)
        else:
            target = to / f"{name}.md"
            target.write_text("\n".join(render(record, analysis, [p.name for p in pictures])) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {to}: {error.strerror}; choose another folder: --to DIR") from None
    return [target, file, *pictures]


def render(record: dict[str, Any], analysis: Analysis | None, pictures: Iterable[str], level: int = 1) -> list[str]:
    """The lines of a page or section, with headings from `level` downward."""
    lines = [f"{'#' * level} {record['title']}", "", record["text"], "", f"    {record['command']}", ""]
    lines += [QUICK, ""] if record["quick"] else []
    lines += [f"**{record['note']}**", ""] if record.get("note") else []
    for picture in pictures:
        part = Path(picture).stem.removeprefix(record["study"]).strip("_").replace("_", ", ")
        lines += [f"*{part}*", ""] if part else []
        lines += [f"![{', '.join(filter(None, (record['title'], part)))}]({picture})", ""]
    for part in record["parts"] if record["table"] else []:
        lines += [f"{'#' * (level + 1)} {part['title']}", ""] if part["title"] else []
        lines += [part["text"], ""] if part["text"] else []
        lines += [f"**{part['note']}**", ""] if part.get("note") else []
        seeds = ",".join(map(str, part["seeds"]))
        root = " data.root=DATA" if "--data" in record["command"] else ""
        lines += [f"    python -m locallearn -m ROW {part['common']} threads=1 seed={seeds}{root}", ""]
        lines += [*_table(part), ""]
    if analysis is not None and record["results"] is not None:
        lines += [*analysis.tell(record["results"]), ""]
    numbers = f"{record['page']}/{record['study']}.json" if record["page"] else f"{record['study']}.json"
    return [*lines, f"{record['machine']}; {record['seconds']:,} seconds; every number is in `{numbers}`."]


def _table(part: dict[str, Any]) -> Iterator[str]:
    """The rows of one part; a column that would be empty is left out."""
    rows, control = part["rows"], part["control"]
    seeds = len(part["seeds"])
    head = in_words(part["metric"]) + (f" [{part['unit']}]" if part["unit"] else "")
    columns = {
        "row": [row["name"] for row in rows],
        "chosen": [" ".join(f"{key}={value}" for key, value in row["chosen"].items()) for row in rows],
        head.replace("percent", "%"): [_spread(row["values"], seeds) for row in rows],
        "linear read-out": [_spread(row["linear"], seeds) for row in rows],
        "published": [shown_published(row) for row in rows],
        "difference [95 %]": [shown_difference(row["verdict"]) if "verdict" in row else "" for row in rows],
        "verdict": [
            shown_word(row["verdict"]["word"]) if "verdict" in row and row["name"] not in part["missing"] else ""
            for row in rows
        ],
        f"difference to '{control}'": [_spread(row["difference"], seeds) for row in rows],
        "degrees to backprop, by block": [", ".join(f"{a:.0f}" for a in row["angles"]) for row in rows],
        "staleness of the input, in batches, by block": [
            ", ".join(f"{s:.1f}" for s in row["staleness"]) for row in rows
        ],
        "ROW": [f"`{row['settings']}`" if "settings" in row else "" for row in rows],
        "auxiliary parameters": [f"{row['auxiliary_parameters']:,}" for row in rows],
        "seconds": [f"{row['seconds']:.0f}" for row in rows],
    }
    full = {name: cells for name, cells in columns.items() if any(cells)}
    if rows:
        yield from markdown_table(list(full), zip(*full.values(), strict=True))
    notes = {
        row["name"]: [
            row["source"],
            row["differs"] and f"unlike the original: {row['differs']}",
            row.get("cause") and f"cause: {row['cause']}",
            row["name"] not in part.get("missing", {}) and why_open(row),
        ]
        for row in rows
    }
    missing = [f"{name} ({count} runs)" for name, count in part.get("missing", {}).items()]
    told = [f"- {name}: {'; '.join(filter(None, own))}" for name, own in notes.items() if any(own)]
    told += [f"- not finished: {', '.join(missing)}"] if missing else []
    yield from ["", *told] if told else []


def why_open(row: dict[str, Any]) -> str:
    """What makes the interval of a row too wide to say anything; empty where it says something."""
    if row.get("verdict", {}).get("word") != OPEN or len(row["values"]) < 2:
        return ""
    ours, theirs = stdev(row["values"]), row.get("deviation")
    if theirs is not None and theirs > ours:
        return f"open: the published runs scatter by {theirs:.2f}"
    return f"open: our runs scatter by {ours:.2f}" + (", and by how much theirs do is not known" if not theirs else "")


def shown_published(row: dict[str, Any]) -> str:
    """The published number, with its deviation and the number of runs where they are known."""
    if row["published"] is None:
        return ""
    deviation, runs = row.get("deviation"), row.get("runs")
    spread = f" ± {deviation:.2f}" if deviation is not None else ""
    return f"{row['published']:.2f}{spread}" + (f" (n={runs})" if runs else "")


def shown_difference(found: dict[str, Any]) -> str:
    """`-0.12 [-0.20, -0.04]`"""
    ends = "" if found["low"] is None else f" [{found['low']:+.2f}, {found['high']:+.2f}]"
    return f"{found['difference']:+.2f}{ends}"


def shown_word(word: str) -> str:
    """One that asks for an explanation in bold."""
    return f"**{word}**" if word == DIFFERS else word


def _spread(values: list[float], seeds: int) -> str:
    """Mean and deviation, and over how many seeds where some are missing."""
    if not values:
        return ""
    return mean_std(values) + (f" (n={len(values)})" if 1 < len(values) < seeds else "")


def marks(command: str) -> tuple[str, str]:
    """The comments between which a page has what a command writes."""
    return f"<!-- begin: {command} -->", f"<!-- end: {command} -->"


def write_between(page: Path, command: str, lines: Iterable[str]) -> None:
    """Replace what stands between the marks of a command in a page, or append marks and lines to it."""
    begin, end = marks(command)
    section = "\n".join([begin, "", *lines, "", end])
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(begin)}.*{re.escape(end)}", re.DOTALL)
    text = pattern.sub(lambda _: section, text) if pattern.search(text) else f"{text.rstrip()}\n\n{section}\n"
    page.write_text(text, encoding="utf-8")


def machine() -> str:
    """What numbers were measured on."""
    return f"{platform.machine()}, CPU, one thread a run, Python {platform.python_version()}, torch {torch.__version__}"
