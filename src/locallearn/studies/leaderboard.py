"""All results as one table for each part of a study: a page of Markdown, one of HTML that opens from disk, and a short
table for a README."""

from __future__ import annotations

import base64
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from locallearn.errors import UserError
from locallearn.names import in_words
from locallearn.studies.analysis import markdown_table
from locallearn.studies.page import shown_difference, shown_published, shown_word, write_between
from locallearn.studies.verdict import BEATEN, DIFFERS, OPEN, REPRODUCED

NAME = "leaderboard"
TITLE = "Leaderboard"
TEXT = (
    "One row for each result in `results/`, of published settings done in full or, of the study `beyond`, of others at "
    "equal cost: mean and deviation over the seeds beside the published number, and the verdict of one rule for all "
    "([truth](truth.md)). The best row of a table comes first. To add a result, put the file that "
    "`locallearn study NAME --results DIR` writes into that folder; a file whose hashes and numbers do not agree is "
    "refused, and `locallearn repeat --result FILE` repeats its runs."
)
HEAD = ("method", "value", "published", "difference [95 %]", "verdict", "seconds a run", "machine", "file")
SHORT_HEAD = ("setting", "method", "published", "ours", "verdict", "to repeat its runs")
SHORT = 12
"""A README shows every result if there are at most this many, and else one for each part of a study."""
NUMBERS = (HEAD.index("value"), HEAD.index("published"), HEAD.index("difference [95 %]"), HEAD.index("seconds a run"))
_WIDE = "td:nth-last-child(-n+2) { min-width: 15rem; }\n"
"""Machine and file are sentences, and a narrow screen would make a column of words of them: the table scrolls."""
_HTML = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '{{ hash }}'">
<title>{{ title }}</title><style>{{ style }}</style></head>
<body><main><h1>{{ title }}</h1><p>{{ text }}</p>
{% for name, unit, rows in tables %}
<h2>{{ name }}</h2><p>{{ unit }}</p>
<div class="scroll" tabindex="0" role="region" aria-label="{{ name }}"><table><thead><tr>
{%- for cell in head %}<th scope="col"{{ number if loop.index0 in numbers }}>{{ cell }}</th>{% endfor %}
</tr></thead><tbody>
{% for row in rows %}
<tr><th scope="row">{{ row[0] }}</th>
{%- for cell in row[1:] %}<td{{ number if loop.index in numbers }}>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endfor %}
<p>Made by locallearn leaderboard.</p></main></body></html>
"""


def write(results: Mapping[Path, Mapping[str, Any]], to: Path) -> list[Path]:
    """Write both pages; `results` by the name that stands for their file. Returns the files. Raises UserError."""
    tables = [(name, unit, [_row(*pair) for pair in own]) for name, unit, own in _parts(results)]
    lines = [f"# {TITLE}", "", TEXT, "", f"    locallearn {NAME}", ""]
    lines += [f"The same as [one page of HTML]({NAME}.html), which opens from disk.", ""]
    for name, unit, rows in tables:
        lines += [f"## {name}", "", unit, "", *markdown_table(HEAD, rows), ""]
    lines += ["" if tables else "There is no result yet."]
    texts = {f"{NAME}.md": "\n".join(lines).rstrip() + "\n", f"{NAME}.html": _html(tables)}
    try:
        to.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            (to / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {to}: {error.strerror}; choose another folder: --to DIR") from None
    return [to / name for name in texts]


def write_short(results: Mapping[Path, Mapping[str, Any]], page: Path, command: str, board: Path) -> None:
    """Put the short table between the marks of `command` in a page, or at its end; `results` by the files as `repeat`
    is given them, `board` the page of them all. Raises UserError."""
    lines = _short(results, Path(os.path.relpath(board, page.parent)).as_posix())
    try:
        write_between(page, command, lines)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"cannot write into {page}: {reason}; choose a page that is there: --readme FILE") from None


def _short(results: Mapping[Path, Mapping[str, Any]], board: str) -> list[str]:
    """What stands between the marks. A selection must not flatter: it takes the row of each part that lies farthest
    from what was published, to whichever side."""
    counts = _counts(results) or "none yet"
    told = f"Compared with published numbers, mean ± standard deviation over n seeds: {counts} ([all]({board}))."
    parts = _parts(results)
    if len(results) > SHORT:
        told += " For each setting, the row farthest from the published number, in either direction:"
        parts = [(title, measured, [max(own, key=_distance)]) for title, measured, own in parts]
    rows = [
        [
            f"{title}, {measured}",
            _cell(result["row"]),
            _published(result),
            _ours(result),
            shown_word(result["verdict"]["word"]),
            _cell(f"`locallearn repeat --result {file}`"),
        ]
        for title, measured, own in parts
        for file, result in own
    ]
    return [told, "", *markdown_table(SHORT_HEAD, rows)] if rows else [told]


def _counts(results: Mapping[Path, Mapping[str, Any]]) -> str:
    """How often each study has which verdict."""
    studies: dict[str, Counter[str]] = {}
    for _, result in _largest_study_first(results):
        studies.setdefault(result["study"], Counter())[result["verdict"]["word"]] += 1
    return "; ".join(
        f"study `{_cell(name)}` "
        + ", ".join(f"{words[word]} {word}" for word in (REPRODUCED, BEATEN, DIFFERS, OPEN) if words[word])
        for name, words in studies.items()
    )


def _largest_study_first(results: Mapping[Path, Mapping[str, Any]]) -> list[tuple[Path, Mapping[str, Any]]]:
    sizes = Counter(result["study"] for result in results.values())
    return sorted(results.items(), key=lambda pair: -sizes[pair[1]["study"]])


def _distance(own: tuple[Path, Mapping[str, Any]]) -> float:
    return float(abs(own[1]["verdict"]["difference"]))


def _parts(results: Mapping[Path, Mapping[str, Any]]) -> list[tuple[str, str, list[tuple[Path, Mapping[str, Any]]]]]:
    """For each part: its title, what is measured, and the results with their files, the best first."""
    parts: dict[tuple[str, ...], list[tuple[Path, Mapping[str, Any]]]] = {}
    for file, result in _largest_study_first(results):
        parts.setdefault(tuple(result[key] for key in ("study", "part", "metric", "unit")), []).append((file, result))
    return [
        (
            _cell(part or study),
            _cell(f"{in_words(metric)} {unit and f'in {unit}'}"),
            sorted(own, key=lambda pair: pair[1]["mean"], reverse=own[0][1]["more_is_better"]),
        )
        for (study, part, metric, unit), own in parts.items()
    ]


def _ours(result: Mapping[str, Any]) -> str:
    return f"{result['mean']:.2f} ± {result['deviation']:.2f} (n={len(result['runs'])})"


def _published(result: Mapping[str, Any]) -> str:
    return shown_published({**result["published"], "published": result["published"]["mean"]})


def _row(file: Path, result: Mapping[str, Any]) -> list[str]:
    machine = result["machine"]
    threads = f"{machine.get('threads')} thread{'' if machine.get('threads') == 1 else 's'}"
    return [
        _cell(result["row"]),
        _ours(result),
        _published(result),
        shown_difference(result["verdict"]),
        shown_word(result["verdict"]["word"]),
        f"{result['seconds']:.0f}",
        _cell(f"{machine.get('device')}, {threads}, torch {result['versions'].get('torch')}"),
        _cell(f"`{file}`"),
    ]


def _cell(text: str) -> str:
    """A text from a file, which may be a stranger's, as one cell of a table of Markdown."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def _html(tables: Iterable[tuple[str, str, list[list[str]]]]) -> str:
    style = (files("locallearn.report") / "page.css").read_text(encoding="utf-8") + _WIDE
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    plain = [(name, unit, [[_plain(cell) for cell in row] for row in rows]) for name, unit, rows in tables]
    return environment.from_string(_HTML).render(
        title=TITLE,
        text=_plain(TEXT).replace("[truth](truth.md)", "truth.md"),
        tables=plain,
        head=HEAD,
        numbers=NUMBERS,
        number=Markup(' class="number"'),
        style=Markup(style),
        hash=f"sha256-{digest}",
    )


def _plain(cell: str) -> str:
    """A cell of Markdown as text."""
    return cell.replace("**", "").replace("`", "").replace("\\|", "|").replace("&lt;", "<")
