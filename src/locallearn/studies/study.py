"""`locallearn study NAME`: do the runs of a study, write its numbers as JSON, its pictures, and its part of a page."""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.config.targets import reach
from locallearn.errors import UserError, unknown
from locallearn.names import by_block, higher_is_better
from locallearn.report.published import published
from locallearn.runs.read import Run, read_run
from locallearn.studies import page, results
from locallearn.studies.analysis import Analysis, Runs
from locallearn.studies.definition import UNITS, Part, Row, Study, load, merged
from locallearn.studies.runner import READOUT, PlannedRun, identity, place, run_all, state_of
from locallearn.studies.verdict import Reference, resolution_of_share, verdict


@dataclass(frozen=True)
class StudyOptions:
    """How a study is called.

    out    where the run folders are kept for the next time
    to     where numbers, pictures and page go
    data   the folder of the data sets, None for that of LOCALLEARN_DATA
    jobs   how many runs at a time, with one thread each
    quick  only see that it works: the quick form, whose numbers mean nothing
    only   do the runs of the rows whose part and name, as in "MNIST, dfa", contain this, and no others
    results  where a file goes for every published row that is finished, see `results`; a row whose file is there, with
             the settings that the study has today, is not run again; None: nowhere
    config_dirs, allow   the user's own yaml files, and packages that these may name
    """

    out: Path
    to: Path
    data: Path | None = None
    jobs: int = 1
    quick: bool = False
    only: str = ""
    results: Path | None = None
    config_dirs: Sequence[Path] = ()
    allow: Sequence[str] = ()

    def asks(self, part: Part, row: str) -> bool:
        """Whether the runs of a row are to be done."""
        return self.only.lower() in f"{part.title}, {row}".lower()


class RowRuns(NamedTuple):
    """A row of a part with its runs: for each of the settings between which it chooses, one for each seed; none for one
    that has its `result`, made elsewhere."""

    part: Part
    row: str
    tasks: list[list[PlannedRun]]
    result: dict[str, Any] | None = None

    @property
    def trials(self) -> list[PlannedRun]:
        """The runs between which it chooses; all, where there is no choice."""
        return [task for of_seeds in self.tasks for task in of_seeds[: len(self.part.tried(self.row))]]

    def chosen(self) -> list[PlannedRun]:
        """One run for each seed, of the settings that are best by validation, in the mean over the trials that are
        done."""

        def judged(of_seeds: list[PlannedRun]) -> float:
            own = [task for task in of_seeds[: len(self.part.tried(self.row))] if task.done]
            return fmean(read_run(task.folder).rank for task in own) if own else math.inf

        return min(self.tasks, key=judged) if len(self.tasks) > 1 else [task for own in self.tasks for task in own]

    def wanted(self) -> list[PlannedRun]:
        """Every run of the row; of a choice, as it stands, and without the trials that fail, as a rate that is too high
        does."""
        chosen = self.chosen()
        tried = [task for task in self.trials if task in chosen or state_of(task.folder) != "failed"]
        return list({task.folder: task for task in [*tried, *chosen]}.values())


def study(name: str, options: StudyOptions) -> int:
    """Do what is left to do of a study, and write what it has found; returns the exit code, 1 if a run failed.

    Raises UserError before anything is run, KeyboardInterrupt after SIGINT.
    """
    whole = load(name, options.quick, options.config_dirs)
    analysis = _analysis(whole, options.allow)
    if not any(options.asks(part, row) for part in whole.parts for row in part.rows):
        names = {name for part in whole.parts for name in (part.title, *part.rows) if name}
        raise unknown("part or row", options.only, names)
    cells = _cells(whole, options)
    started = [cell for cell in cells if options.asks(cell.part, cell.row)]
    failures = run_all([task for cell in started for task in cell.trials], options.jobs)
    failures += run_all([task for cell in started for task in cell.chosen() if task not in cell.trials], options.jobs)
    _write(whole, options, cells, analysis)
    if failures:
        print("\n".join([f"locallearn: {len(failures)} runs failed:", *failures]), file=sys.stderr)
    return 1 if failures else 0


def report(name: str, options: StudyOptions, collect: bool = False) -> None:
    """Write the page and the pictures of a study again, from the JSON file that an earlier call has left in `to`; or
    `collect` what the run folders in `out` have by now, while others may still run."""
    whole = load(name, options.quick, config_dirs=options.config_dirs)
    analysis = _analysis(whole, options.allow)
    if collect:
        cells = _cells(whole, options)
        if not any(cell.result or any(task.done for task in cell.trials) for cell in cells):
            raise UserError(f"no run of {name} is done in {options.out}; without --out, its page is written again")
        _write(whole, options, cells, analysis)
    else:
        print(*page.write(page.read(whole, options.to), options.to, analysis), sep="\n")


def _cells(whole: Study, options: StudyOptions) -> list[RowRuns]:
    folders: dict[str, Path] = {}
    cells = []
    rows = [(part, row) for part in whole.parts for row in part.rows]
    if (settings := sum(len(part.choices(row)) for part, row in rows)) >= 100:
        print(f"composing {settings:,} settings, five to ten a second", file=sys.stderr)
    for part, row in rows:
        tasks = [list(_tasks(whole, part, row, words, options, folders)) for words in part.candidates(row)]
        result = _result(whole, part, row, tasks, options.results)
        cells.append(RowRuns(part, row, [] if result else tasks, result))
    return cells


def _result(
    whole: Study, part: Part, row: str, tasks: list[list[PlannedRun]], folder: Path | None
) -> dict[str, Any] | None:
    """The result of a row that is in `folder`, if its runs are those the study would do, and none is here. Raises
    UserError for a file that is refused."""
    file = folder and results.file_of(folder, whole.name, part.title, row)
    if not file or not file.is_file() or any(task.folder.exists() for own in tasks for task in own):
        return None
    content = results.read(file)
    planned = [{word for word in own[0].overrides if not results.is_own(word)} for own in tasks]
    same = {*content["settings"]} in planned and [run["seed"] for run in content["runs"]] == part.seeds
    return content if same else None


def _write(whole: Study, options: StudyOptions, cells: list[RowRuns], analysis: Analysis | None) -> None:
    """Page, numbers and pictures, and a file for each published row that is finished."""
    record = _record(whole, options, cells, analysis)
    print(*page.write(record, options.to, analysis), sep="\n")
    if options.results is None:
        return
    for part, kept in zip(whole.parts, record["parts"], strict=True):
        own = {cell.row: cell for cell in cells if cell.part is part}
        for row in kept["rows"]:
            if "verdict" in row and row["name"] not in kept["missing"]:
                runs = [read_run(task.folder) for task in own[row["name"]].chosen()]
                content = results.result_of(whole.name, kept, row, runs, own[row["name"]].result)
                print(results.write(options.results, content))


def _analysis(whole: Study, allow: Sequence[str]) -> Analysis | None:
    if whole.target is None:
        return None
    target = reach(whole.target, f"study/{whole.name}", allow)
    if not (inspect.isclass(target) and issubclass(target, Analysis)) or inspect.isabstract(target):
        raise UserError(
            f"study/{whole.name}._target_={whole.target}: must be a complete class derived from "
            f"{Analysis.__module__}.{Analysis.__name__}"
        )
    return target()


def _tasks(
    whole: Study, part: Part, row: str, words: list[str], options: StudyOptions, folders: dict[str, Path]
) -> Iterator[PlannedRun]:
    """One run for each seed, with the settings `words`, of which the last are those that are chosen. `folders` has the
    folder of every run by its identity: rows with equal settings share it."""
    last = merged([*words, *whole.quick.split()])
    where = [f"out={options.out}", *([f"allow=[{','.join(options.allow)}]"] if options.allow else [])]
    first = [*last, f"seed={part.seeds[0]}", "threads=1", *where]
    try:
        composed, names = compose(first, options.config_dirs)  # once for all seeds: it takes a tenth of a second
        exp = experiment(composed, names, first, options.config_dirs)
    except UserError as error:
        raise UserError(f"study {whole.name}, row {row!r}: {error}") from error
    if options.data and "root" not in exp.source.unread():  # some sets have no files
        where.append(f"data.root={options.data}")
        composed["data"]["root"] = str(options.data)
    for seed in part.seeds:
        overrides = [*last, f"seed={seed}", "threads=1", *where]
        config = deepcopy(composed) | {"seed": seed}
        own = [row, *words[len(words) - len(part.choices(row)[0]) :], f"seed {seed}"]
        title = ", ".join([part.title, *own] if part.title else own)
        folder = folders.setdefault(identity(config), place(str(options.out), own, config))
        yield PlannedRun(title, config, names, overrides, folder, tuple(options.config_dirs), part.readout)


def _record(whole: Study, options: StudyOptions, cells: list[RowRuns], analysis: Analysis | None) -> dict[str, Any]:
    """All that the page says, from the runs that are done."""
    every = [task for cell in cells for task in cell.wanted()]
    done = {task.folder: read_run(task.folder) for task in every if task.done}
    parts: list[dict[str, Any]] = []
    by_row: dict[str, list[Run]] = {}
    by_part: dict[str, dict[str, list[Run]]] = {}
    elsewhere = [run for cell in cells if cell.result for run in results.runs_of(cell.result)]
    for part in whole.parts:
        own_cells = [cell for cell in cells if cell.part is part]
        runs = {c.row: [done[task.folder] for task in c.chosen() if task.folder in done] for c in own_cells}
        runs |= {c.row: results.runs_of(c.result) for c in own_cells if c.result}
        by_row = runs | by_row
        by_part[part.title] = runs
        kept: dict[str, Any] = {"title": part.title, "text": part.text, "common": part.common, "control": part.control}
        kept |= {"metric": part.number, "unit": part.unit, "seeds": part.seeds}
        kept["missing"] = {c.row: n for c in own_cells if (n := sum(t.folder not in done for t in c.wanted()))}
        parts.append({**kept, "rows": [_numbers(part, row, runs) for row, own in runs.items() if own]})
    dirs = [f"--config-dir {folder}" for folder in options.config_dirs]
    numbers = None
    if analysis is not None and all(task.folder in done for task in every):
        rows = {name: row for part in whole.parts for name, row in part.rows.items()}
        printed = {name: f"{row.reference.mean:g} {row.source}".strip() for name, row in rows.items() if row.reference}
        numbers = analysis.measure(Runs(by_row, printed, options.data, options.jobs, options.quick, by_part))
    return {
        "study": whole.name,
        "title": whole.title,
        "text": whole.text,
        "page": whole.page,
        "table": whole.table,
        "command": " ".join(["locallearn study", whole.name, *dirs, *(["--data DATA"] if options.data else [])]),
        "machine": page.machine(),
        "quick": options.quick,
        "seconds": round(sum(map(_spent, [*done.values(), *elsewhere]))),
        "parts": parts,
        "results": numbers,
    }


def _numbers(part: Part, row: str, runs: Mapping[str, list[Run]]) -> dict[str, Any]:
    """What the table says of a row."""
    own, about, name, scale = runs[row], part.rows[row], part.number, UNITS[part.unit]
    if name not in own[0].summary:
        raise unknown("metric", name, own[0].summary)
    control = {run.seed: run for run in runs[part.control]} if part.control not in (None, row) else {}
    pairs = [(run.summary[name], control[run.seed].summary[name]) for run in own if run.seed in control]
    readouts = [json.loads((run.path / READOUT).read_text()) for run in own if part.readout]
    printed, values = published(own[0]), [scale * run.summary[name] for run in own]
    reference = Reference(float(printed.value.split()[0])) if printed else about.reference
    chosen = {key: own[0].config.get(key) for key in part.choices(row)[0]}
    common = shlex.split(part.common)
    words = merged([*common, *shlex.split(about.settings), *(f"{key}={value}" for key, value in chosen.items())])
    words = [word for word in words if word not in common] + [word for word in words if word in common]
    return {
        "name": row,
        "command": f"python -m locallearn -m {' '.join(words)} threads=1 seed={','.join(map(str, part.seeds))}",
        "chosen": chosen,
        "values": values,
        "linear": [100 * readout["linear_accuracy"] for readout in readouts],
        "published": reference and reference.mean,
        "source": about.source,
        "differs": about.differs,
        **(_judged(part, about, reference, own[0], values) if part.verdict and reference else {}),
        **({"settings": " ".join(word for word in words if word not in common)} if part.verdict else {}),
        "difference": [scale * (ours - theirs) for ours, theirs in pairs],
        "angles": _by_block(own, "update_angle"),
        "staleness": _by_block(own, "staleness"),
        "seconds": fmean(run.summary["seconds"] for run in own),
        "auxiliary_parameters": own[0].summary["auxiliary_parameters"],
    }


def _judged(part: Part, about: Row, reference: Reference, run: Run, values: list[float]) -> dict[str, Any]:
    """What the table says of a row whose part wants verdicts."""
    margin = part.margin or resolution_of_share(reference.mean, run.manifest["data"]["test"])
    found = verdict(values, reference, margin, higher_is_better(part.number, run.metrics) is not False)
    known = {"deviation": reference.deviation, "runs": reference.runs, "cause": about.cause, "margin": margin}
    return known | {"verdict": asdict(found)}


def _by_block(runs: Sequence[Run], name: str) -> list[float]:
    """The mean over the runs of each block's number, for the blocks that have it."""
    return [fmean(values) for values in zip(*(by_block(run.summary, name).values() for run in runs), strict=True)]


def _spent(run: Run) -> float:
    """Seconds of training and of the looks of probes."""
    looks = (v for record in run.history for k, v in record.items() if re.fullmatch("probe/.*/seconds", k))
    return float(run.summary["seconds"] + sum(looks))
