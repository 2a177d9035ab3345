"""The report as one HTML file that opens from disk: no network, no account, nothing beside it.

What stands in run folders is not trusted: texts are escaped by Jinja2, numbers travel as JSON that cannot end its
element, the script writes text only, and the page's own policy (CSP) runs no script but the one with its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

import jinja2
from markupsafe import Markup

from locallearn.report import cells, grouping
from locallearn.report.grouped import GroupedRuns
from locallearn.report.series import embedded, payload
from locallearn.report.tables import counted, notes, summary
from locallearn.runs.files import PROBES
from locallearn.runs.read import Run

SCRIPTS = ("page_tables.js", "page_chart.js", "page_figures.js")
PICTURED = ("detections", "features", "filters", "inpainting", "reconstruction", "similarity", "task2vec")
"""Probes with pictures that their rows do not give."""
PICTURE_BYTES = 1_200_000
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}
CHOICES = (6, 30)
"""The most settings for which a filter is offered, and the most values of each."""
CAPTIONS = {
    "results": "Results by group: mean ± standard deviation over seeds. The buttons in the headings sort.",
    "settings": "What differs between groups, and the command that does a group again.",
    "runs": "Every run that was found, with its state, the reason where it is not done, and its command.",
}


def page(grouped: GroupedRuns) -> str:
    """The page of a report."""
    folder = files("locallearn.report")
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    pictures, left_out = _pictures(grouped)
    text = template.render(
        title=_title(grouped),
        counts=f"{summary(grouped)}; groups differ in {', '.join(grouped.differs) or 'the seed only'}.",
        problems=grouped.problems,
        results=_table("results", cells.results(grouped)),
        notes=_notes(grouped),
        settings=_table("settings", cells.settings(grouped)),
        common=[(key, grouping.text(value)) for key, value in sorted(grouped.common.items())],
        runs=_table("runs", cells.runs(grouped)),
        pictures=pictures,
        pictures_note="Of the first run of each group." + (f" {left_out} more are in the folders." if left_out else ""),
        footer=f"Made by locallearn report on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        style=_own(style),
        script=_own(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_own(embedded(payload(grouped))),
    )
    return text.encode("utf-8", "replace").decode()  # a name of a folder may hold bytes that are no text


def _own(text: str) -> Markup:
    """A text of this package, or already escaped, that goes in as it is."""
    return Markup(text)


def _hash(text: str) -> str:
    """What a Content Security Policy calls an inline text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _table(name: str, table: cells.Table) -> dict[str, Any]:
    """A table as the template shows it, with the filters that it offers."""
    keys = table.keys or []
    choices = []
    for key in dict.fromkeys(key for row in keys for key in row):
        values = list(dict.fromkeys(row[key] for row in keys if key in row))
        if 2 <= len(values) <= CHOICES[1]:
            choices.append({"key": key, "values": values})
    return {
        "id": f"{name}-table",
        "what": f"table of {name}",
        "caption": CAPTIONS[name],
        "columns": table.columns,
        "rows": list(zip(*(column.cells for column in table.columns), strict=True)),
        "keys": [json.dumps(row) for row in keys],
        "choices": None if table.keys is None else choices[: CHOICES[0]],
    }


def _title(grouped: GroupedRuns) -> str:
    kinds = {"models": "model", "data sets": "data"}
    chosen = {kind: {run.names.get(key, "") for run in grouped.runs} - {""} for kind, key in kinds.items()}
    what = [", ".join(sorted(own)) if len(own) < 4 else f"{len(own)} {kind}" for kind, own in chosen.items() if own]
    return f"{' on '.join(what) or 'Runs'}: {counted(len(grouped.groups), 'group')} compared"


def _notes(grouped: GroupedRuns) -> list[str]:
    sentences = ["only runs that are done count, the newest of each seed; ± needs two seeds"]
    if any(group.baseline for group in grouped.groups):
        sentences.append("×: how many times that of backprop")
    return [*sentences, *notes(grouped)]


def _pictures(grouped: GroupedRuns) -> tuple[list[dict[str, str]], int]:
    """Pictures of probes that rows do not give, of one run per group, and how many had no room."""
    shown, left_out, room = [], 0, PICTURE_BYTES
    for group in grouped.groups:
        for probe, stem, content, kind in _files(group.drawn[0]):
            if len(content) > room:
                left_out += 1
                continue
            room -= len(content)
            source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
            alt = f"Picture {stem} of the probe {probe} for {group.label}; its numbers are in the figure of that probe"
            shown.append({"source": source, "alt": alt, "caption": f"{probe}: {stem}, {group.label}"})
    return shown, left_out


def _files(run: Run) -> Iterator[tuple[str, str, bytes, str]]:
    """Probe, name, content and type of each picture, in the smaller of its formats."""
    for probe in PICTURED:
        folder = run.path / PROBES / probe
        for stem in sorted({file.stem for file in folder.glob("*") if file.suffix in TYPES}):
            formats = [folder / f"{stem}{suffix}" for suffix in TYPES]
            try:
                file = min((f for f in formats if f.is_file()), key=lambda f: f.stat().st_size)
                yield probe, stem, file.read_bytes(), TYPES[file.suffix]
            except (OSError, ValueError):
                continue
