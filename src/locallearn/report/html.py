"""The report as one HTML file that opens from disk: no network, no account, nothing beside it.

What stands in run folders is not trusted: texts are escaped by Jinja2, numbers travel as JSON that cannot end its
element, the script writes text only, and the page's own policy (CSP) runs no script but the one with its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files

import jinja2
from markupsafe import Markup

from locallearn.report import grouping, html_tables
from locallearn.report.html_data import embedded, looked_at, payload
from locallearn.report.study import Study
from locallearn.report.tables import notes, summary
from locallearn.runs.read import Run

SCRIPTS = ("page_tables.js", "page_chart.js", "page_figures.js")
PICTURED = ("features", "filters", "reconstruction", "similarity", "task2vec")
"""Probes with pictures that their rows do not give."""
PICTURE_BYTES = 1_200_000
TYPES = {".svg": "image/svg+xml", ".png": "image/png"}


def page(study: Study) -> str:
    """The page of a study."""
    folder = files("locallearn.report")
    style = (folder / "page.css").read_text(encoding="utf-8")
    script = "\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    pictures, left_out = _pictures(study)
    text = template.render(
        title=_title(study),
        counts=f"{summary(study)}; groups differ in {', '.join(study.differs) or 'the seed only'}.",
        sections=_sections(study, bool(pictures)),
        problems=study.problems,
        results=html_tables.results(study),
        notes=_notes(study),
        settings=html_tables.settings(study),
        common=[(key, grouping.text(value)) for key, value in sorted(study.common.items())],
        runs=html_tables.runs(study),
        pictures=pictures,
        pictures_note="Of the first run of each group." + (f" {left_out} more are in the folders." if left_out else ""),
        footer=f"Made by locallearn report on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC.",
        style=_own(style),
        script=_own(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=_own(embedded(payload(study))),
    )
    return text.encode("utf-8", "replace").decode()  # a name of a folder may hold bytes that are no text


def _own(text: str) -> Markup:
    """A text of this package, or already escaped, that goes in as it is."""
    return Markup(text)


def _hash(text: str) -> str:
    """What a Content Security Policy calls an inline text by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _title(study: Study) -> str:
    models, sets = ({run.names.get(kind, "") for run in study.runs} - {""} for kind in ("model", "data"))
    what = [", ".join(sorted(found)) if len(found) < 4 else f"{len(found)} {kind}" for found, kind in
            ((models, "models"), (sets, "data sets"))]  # fmt: skip
    return f"{' on '.join(w for w in what if w) or 'Runs'}: {_count(len(study.groups), 'group')} compared"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _sections(study: Study, pictures: bool) -> list[tuple[str, str]]:
    found = [("results", "Results"), ("figures", "Figures"), ("settings", "Configuration"), ("runs", "Runs")]
    return [*([("problems", "Problems")] if study.problems else []), *found, *([("pictures", "Pictures")] * pictures)]


def _notes(study: Study) -> list[str]:
    found = ["only runs that are done count, the newest of each seed; ± needs two seeds"]
    if any(group.baseline for group in study.groups):
        found.append("×: how many times that of backprop")
    return [*found, *notes(study)]


def _pictures(study: Study) -> tuple[list[dict[str, str]], int]:
    """Pictures of probes that rows do not give, of one run per group, and how many found no room."""
    found, left_out, room = [], 0, PICTURE_BYTES
    for group in study.groups:
        for probe, stem, content, kind in _files(looked_at(group)[:1]):
            if len(content) > room:
                left_out += 1
                continue
            room -= len(content)
            caption = f"{probe}: {stem}, {group.label}"
            source = f"data:{kind};base64,{base64.b64encode(content).decode()}"
            alt = f"Picture {stem} of the probe {probe} for {group.label}; its numbers are in the figure of that probe"
            found.append({"source": source, "alt": alt, "caption": caption})
    return found, left_out


def _files(runs: Sequence[Run]) -> Iterator[tuple[str, str, bytes, str]]:
    """Probe, name, content and type of each picture, in the smaller of its formats."""
    for run in runs:
        for probe in PICTURED:
            stems = sorted({file.stem for file in (run.path / "probes" / probe).glob("*") if file.suffix in TYPES})
            for stem in stems:
                formats = [run.path / "probes" / probe / f"{stem}{suffix}" for suffix in TYPES]
                try:
                    file = min((f for f in formats if f.is_file()), key=lambda f: f.stat().st_size)
                    yield probe, stem, file.read_bytes(), TYPES[file.suffix]
                except (OSError, ValueError):
                    continue
