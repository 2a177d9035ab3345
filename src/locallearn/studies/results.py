"""A result that others can check: one JSON file for each published row that is finished, written by its study.

It has the row with what was published, the settings, versions and machine, and of every seed the whole summary with the
SHA-256 of its `summary.json` and `metrics.jsonl`. From the file alone `read` checks that it has not been changed since
(a digest of all that it says), that each summary has its hash, and that the numbers follow: the value of each seed from
its summary, mean, deviation and verdict from the values. `against_runs` checks the hashes of the runs where they are at
hand. None of this is a signature: a file that is forged consistently in all its parts is found out only by `locallearn
repeat --result FILE`, which does the runs again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from locallearn import stored
from locallearn.errors import RunError, UserError
from locallearn.names import higher_is_better
from locallearn.runs import files
from locallearn.runs.folder import safe_name
from locallearn.runs.read import Run
from locallearn.studies.analysis import deviation
from locallearn.studies.definition import UNITS, known, load
from locallearn.studies.verdict import Reference, verdict

FORMAT = 1
CLOSE = 1e-9
ABOUT = ("device", "device_type", "system", "threads", "precision", "data")
"""What the file says of the machine and the data, as the manifest of a run does."""
_TEXTS = ("study", "part", "row", "source", "differs", "cause", "metric", "unit", "command", "digest")
_MAPPINGS = ("published", "config", "versions", "git", "machine", "verdict")
_NUMBERS = ("format", "margin", "mean", "deviation", "seconds", "more_is_better")
FIELDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_MAPPINGS, dict),
    **dict.fromkeys(_NUMBERS, (int, float)),
    **dict.fromkeys(("settings", "runs"), list),
}


def digest(content: Mapping[str, Any]) -> str:
    """The SHA-256 of all that a result says but this digest itself, as canonical JSON."""
    rest = {key: value for key, value in content.items() if key != "digest"}
    return _sha(json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode())


def _sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_file(summary: Mapping[str, Any]) -> bytes:
    """`summary.json` with this content, byte for byte."""
    return (files.strict_json(summary, indent=2) + "\n").encode()


def result_of(
    study: str,
    part: Mapping[str, Any],
    row: Mapping[str, Any],
    runs: Sequence[Run],
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The result of a finished row, from what the page says of it and its runs, one of each seed; or from the result
    that it had `before`, with what the study says of the row today."""
    content: dict[str, Any] = {"format": FORMAT, "study": study, "part": part["title"], "row": row["name"]}
    content["published"] = {"mean": row["published"], "deviation": row["deviation"], "runs": row["runs"]}
    content |= {key: row[key] for key in ("source", "differs", "cause")}
    content |= {"metric": part["metric"], "unit": part["unit"], "margin": row["margin"]}
    if before:
        content = {**before, **content}
    else:
        content |= _of_runs(row, runs, part["metric"], part["unit"])
    content |= _numbers(content)
    content = json.loads(files.strict_json(content))
    return content | {"digest": digest(content)}


def _of_runs(row: Mapping[str, Any], runs: Sequence[Run], metric: str, unit: str) -> dict[str, Any]:
    """What a result has from the run folders."""
    first = runs[0]
    content: dict[str, Any] = {"more_is_better": higher_is_better(metric, first.metrics) is not False}
    content |= {"command": row["command"], "settings": [word for word in first.overrides if not is_own(word)]}
    content["config"] = {key: value for key, value in first.config.items() if not is_own(key) and "root" not in key}
    content |= {key: first.manifest.get(key) or {} for key in ("versions", "git")}
    content["machine"] = {key: first.manifest.get(key) for key in ABOUT}
    content["runs"] = [_of_run(run, metric, unit) for run in runs]
    content["seconds"] = fmean(run.summary["seconds"] for run in runs)
    return content


def runs_of(content: Mapping[str, Any]) -> list[Run]:
    """The runs of a result, as far as it tells of them: settings and summaries, without any history."""
    way = "up" if content["more_is_better"] else "down"
    manifest = {"data": content["machine"]["data"], "metrics": {content["metric"].rpartition("/")[2]: way}}
    return [
        Run(
            path=Path(run["folder"]),
            name=run["folder"],
            state="done",
            reason="",
            config={**content["config"], "seed": run["seed"]},
            names={},
            summary=run["summary"],
            manifest=manifest,
            overrides=content["settings"],
        )
        for run in content["runs"]
    ]


def is_own(word: str) -> bool:
    """Whether a setting is about one run: its seed, and where it lies."""
    return word.lstrip("+~").partition("=")[0] in ("seed", "out", "data.root", "allow")


def _of_run(run: Run, metric: str, unit: str) -> dict[str, Any]:
    summary = stored.mapping(run.path / files.SUMMARY)
    hashes = {name: _sha(b"".join(stored.lines(run.path / name))) for name in (files.METRICS, files.SUMMARY)}
    value = UNITS[unit] * summary[metric]
    return {"seed": run.seed, "value": value, "folder": run.path.name, "summary": summary, "sha256": hashes}


def _numbers(content: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from the values of the seeds."""
    values, published = [run["value"] for run in content["runs"]], Reference(**content["published"])
    found = verdict(values, published, content["margin"], content["more_is_better"])
    return {"mean": fmean(values), "deviation": deviation(values), "verdict": asdict(found)}


def file_of(folder: Path, study: str, part: str, row: str) -> Path:
    """The file of a row in the folder of all results."""
    return folder / safe_name(study) / f"{safe_name(part)}_{safe_name(row)}.json".lower()


def write(folder: Path, content: Mapping[str, Any]) -> Path:
    """Write a result to `folder`, in a file named by study, part and row. Raises UserError."""
    file = file_of(folder, content["study"], content["part"], content["row"])
    home = file.parent
    try:
        home.mkdir(parents=True, exist_ok=True)
        files.replace(file, [(json.dumps(content, indent=1, allow_nan=False) + "\n").encode()])
    except (OSError, RunError) as error:
        raise UserError(f"cannot write into {folder}: {error}; choose another folder: --results DIR") from None
    return file


def read(file: Path) -> dict[str, Any]:
    """A result, checked as far as that goes from the file alone. Raises UserError, with one sentence."""
    try:
        content = stored.mapping(file)
        problem = next(_problems(content), None)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as a result: {files.reason(error)}") from None
    except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{file} is not a result of a study: {type(error).__name__} at {error}") from None
    if problem:
        raise UserError(
            f"{file} is refused: {problem}; a result is written by its study: locallearn study NAME --results DIR"
        )
    return content


def _problems(content: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with a result, the first of it in a few words."""
    wrong = [key for key, kind in FIELDS.items() if not isinstance(content.get(key), kind)]
    if (odd := content.keys() - FIELDS.keys()) or wrong:
        yield f"its {wrong[0]} is missing or of the wrong type" if wrong else f"it has an unknown field, {min(odd)}"
    if content["format"] != FORMAT:
        yield f"its format is {content['format']}, but only {FORMAT} is known"
    if content["digest"] != digest(content):
        yield "it was changed after it was written: its digest does not match its content"
    seeds = [run["seed"] for run in content["runs"]]
    if not seeds or len({*seeds}) < len(seeds):
        yield f"its seeds are {seeds}: each counts once"
    for run in content["runs"]:
        if run["sha256"][files.SUMMARY] != _sha(_as_file(run["summary"])):
            yield f"the summary of seed {run['seed']} does not have the hash that is given for it"
        if not _close(run["value"], UNITS[content["unit"]] * run["summary"][content["metric"]]):
            yield f"the value of seed {run['seed']} is not the {content['metric']} of its summary"
    again = _numbers(content)
    if not all(_close(again[key], content[key]) for key in ("mean", "deviation")):
        yield "mean and deviation are not those of its values"
    said, follows = content["verdict"], again["verdict"]
    if said.keys() != follows.keys() or not all(_close(follows[key], said[key]) for key in follows):
        yield f"its verdict is {said.get('word')}, but its numbers give {follows['word']}"


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, str) or a is None or b is None:
        return a == b
    return abs(a - b) <= CLOSE * max(1.0, abs(a))


def read_all(folder: Path) -> dict[Path, dict[str, Any]]:
    """Every result below a folder. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: choose that of the results, such as results")
    return {file: read(file) for file in sorted(folder.rglob("*.json"))}


def against_study(file: Path, content: Mapping[str, Any], config_dirs: Sequence[Path] = ()) -> None:
    """Hold what a result says was published against its study, where that is known here. Raises UserError."""
    if content["study"] not in known(config_dirs):
        return
    parts = load(content["study"], config_dirs=config_dirs).parts
    rows = [
        part.rows[content["row"]] for part in parts if part.title == content["part"] and content["row"] in part.rows
    ]
    said = content["published"]["mean"]
    for row in rows:
        if row.reference is not None and not _close(row.reference.mean, said):
            raise UserError(
                f"{file} is refused: it says that {said:g} was published, but study {content['study']} says "
                f"{row.reference.mean:g}"
            )


def against_runs(file: Path, content: Mapping[str, Any], folders: Iterable[Path]) -> int:
    """Hold a result against its runs, those that lie in one of the folders; returns how many do. Raises UserError for
    one with other bytes."""
    found = 0
    for run in content["runs"]:
        for folder in (place / run["folder"] for place in folders if (place / run["folder"]).is_dir()):
            found += 1
            for name, written in run["sha256"].items():
                try:
                    same = _sha(b"".join(stored.lines(folder / name))) == written
                except (OSError, ValueError):
                    same = False
                if not same:
                    raise UserError(f"{file} is refused: {folder / name} is not the file from which it was written")
    return found
