"""The commands that take the folder of a run: resume, repeat, evaluate, probe. torch where needed."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from locallearn import paths
from locallearn.cli import reports
from locallearn.cli.arguments import Parser, trust
from locallearn.cli.study import repeat_result
from locallearn.config import outside
from locallearn.config.compose import choices, compose
from locallearn.errors import RunError, UserError
from locallearn.figures.text import columns, table
from locallearn.names import BLOCK, divided
from locallearn.runs.files import ROWS


def _on_runs(command: str, text: str, more: str, settings: bool = True) -> Parser:
    """A parser for run folders and settings, in any order."""
    parser = Parser(command, text, more)
    parser.add_argument(
        "words",
        nargs="+",
        metavar="RUN|KEY=VALUE" if settings else "RUN",
        help="the run folder, which a run prints on its last line" + (", and settings" if settings else ""),
    )
    trust(parser)
    return parser


def _divided(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Run folders and settings. A folder may have a name like `out=a`."""
    settings = [word for word in words if re.match(r"[+~]*[A-Za-z][\w.]*=", word) and not Path(word).exists()]
    return [paths.expanded(word) for word in words if word not in settings], settings


def _one(command: str, words: Sequence[str]) -> tuple[Path, list[str]]:
    """The run folder and the settings of a command for one run. Raises UserError."""
    runs, settings = _divided(words)
    if len(runs) != 1:
        which = f"not {len(runs)}: {', '.join(map(str, runs))}" if runs else "such as runs/RUN"
        raise UserError(f"{command} takes one run folder, {which}")
    return runs[0], settings


def _resume(arguments: list[str]) -> int:
    parser = _on_runs(
        "resume",
        "Go on with a run that was interrupted, failed or killed, to the same bits as if it had not been; or make one "
        "longer.",
        """\
settings (KEY=VALUE):
  runtime=NAME, runtime.stages=N   where its blocks run from now on; without them where they ran before
  epochs=N                         more than it has: it goes on, even if it is done
  schedule=stretched|held          with epochs: whatever follows progress, such as the learning rate, is stretched over
                                   all epochs (the default: most schedules end at a rate of 0) or stays where it ended

examples:
  locallearn resume runs/RUN
  locallearn resume runs/RUN runtime=serial
  locallearn resume runs/RUN epochs=20
  locallearn resume runs/RUN --config-dir my_conf   a run whose strategy, model or data are your own""",
    )
    options = parser.read(arguments)
    run, settings = _one("resume", options.words)
    allow = outside.trusted(options.config_dir, options.allow)
    epochs, settings = _longer(settings)
    runtime = _other_runtime(settings, options.config_dir)
    from locallearn.training.run import resume

    resume(run, allow, runtime=runtime, overrides=settings, **epochs)
    return 0


def _longer(settings: list[str]) -> tuple[dict[str, Any], list[str]]:
    """What makes a run longer, and the other settings. Raises UserError."""
    pairs = {key: value for key, _, value in (text.partition("=") for text in settings)}
    own: dict[str, Any] = {key: pairs.pop(key) for key in ("epochs", "schedule") if key in pairs}
    if "schedule" in own and "epochs" not in own:
        raise UserError(f"schedule={own['schedule']} is read only with epochs=N: choose that, or leave schedule out")
    if not own.get("epochs", "1").isdecimal():
        raise UserError(f"epochs={own['epochs']}: must be a whole number of at least 1")
    if own:
        own["epochs"] = int(own["epochs"])
    return own, [text for text in settings if text.partition("=")[0] in pairs]


def _repeat(arguments: list[str]) -> int:
    parser = _on_runs(
        "repeat",
        "Run a finished run again, into its folder repeats/, and say whether the bits agree (exit code 1 if not); "
        "with --result FILE, do so for the runs of a published result (`locallearn repeat --result FILE -h`).",
        "examples:\n  locallearn repeat runs/RUN\n  locallearn repeat --result results/truth/FILE.json --data DATA",
        settings=False,
    )
    if any(word.partition("=")[0] == "--result" for word in arguments):
        return repeat_result(arguments)
    options = parser.read(arguments)
    from locallearn.studies.repeat import repeat

    run, settings = _one("repeat", options.words)
    if settings:
        raise UserError(f"repeat RUN does what the run did: leave {settings[0]!r} out")
    comparison = repeat(run, outside.trusted(options.config_dir, options.allow))
    print(comparison)
    return 1 if comparison.differences else 0


def _other_runtime(settings: list[str], config_dirs: list[Path]) -> tuple[str, dict] | None:
    """The name and configuration of the runtime that `resume` was told to take."""
    only(settings, r"runtime(=|\.(?!staleness))", "resume RUN", "epochs and of a runtime, such as runtime=serial")
    if not settings:
        return None
    named = [] if any(setting.startswith("runtime=") for setting in settings) else ["runtime=pipeline"]
    config, names = compose([*named, *settings], config_dirs)
    return names["runtime"], config["runtime"]


def _stage(arguments: list[str]) -> int:
    """What a run with several processes starts; not a command for people."""
    parser = _on_runs("stage", "One process of a run.", "")
    parser.add_argument("--quiet", action="store_true")
    parser.add_argument("--objects", type=int)
    options = parser.read(arguments)
    from locallearn.training.run import stage
    from locallearn.training.stopping import Interrupted

    try:
        stage(options.words[0], options.allow, options.quiet, options.objects)
    except Interrupted as error:  # the process that started this one says it
        return error.exit_code
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = _on_runs(
        "evaluate",
        "Test loss and accuracy of a run, at every block that can predict; of several runs a table, a line for each.",
        """\
settings (KEY=VALUE):
  data=NAME, data.OPTION=VALUE   a set other than the one the run was trained on, normalised in the same way

examples:
  locallearn evaluate runs/RUN
  locallearn evaluate runs/first/*/                       a table
  locallearn evaluate runs/RUN --linear data=mnist data.root=DIR""",
    )
    parser.add_argument("--linear", action="store_true", help="also fit a linear classifier to each block's features")
    options = parser.read(arguments)
    runs, settings = _divided(options.words)
    if not runs:
        raise UserError("evaluate: no run was given: locallearn evaluate RUN... [data=NAME]")
    only(settings, r"\+?data[.=]", "evaluate RUN", "data, such as data=mnist")
    _refuse_unread_data(settings, options.linear)
    allow = outside.trusted(options.config_dir, options.allow)
    data = compose(settings, options.config_dir)[0]["data"] if settings else None
    from locallearn.training.later import evaluate_run

    if len(runs) > 1:
        return _table_of(runs, lambda run: evaluate_run(run, allow, data, options.linear))
    for name, value in evaluate_run(runs[0], allow, data, options.linear).items():
        print(f"{name:<20} {value:.4f}")
    return 0


def _refuse_unread_data(settings: Sequence[str], linear: bool) -> None:
    """What is told of another set and would not be read: the run has its own normalisation, and tests see no more than
    the clean test split. Raises UserError."""
    names = [setting.lstrip("+").partition("=")[0] for setting in settings]
    if names and "data" not in names:
        raise UserError(f"{settings[0]} is for a set other than the run's: name that set as well, as in data=folder")
    for_training = {"data.crop", "data.flip", "data.cutout", "data.deficit", "data.deficit_from", "data.deficit_until"}
    if not linear:
        for_training |= {"data.validation", "data.fraction", "data.label_noise"}
    for name, setting in zip(names, settings, strict=True):
        if name == "data.normalise":
            raise UserError(f"{setting} is not read, for images are normalised as the run's were: leave it out")
        if name in for_training:
            raise UserError(f"{setting} concerns training, but evaluate reads the test split; leave it out")


def _table_of(runs: Sequence[Path], numbers: Callable[[Path], dict[str, float]]) -> int:
    """A line with the numbers of each run; of one that has none, the reason on stderr. The exit code is the worst."""
    results, codes = {}, [0]
    for run in runs:
        try:
            results[run] = numbers(run)
        except (UserError, RunError) as error:
            print(f"locallearn: {error}", file=sys.stderr)
            codes.append(2 if isinstance(error, UserError) else 1)
    if results:
        every = sorted(dict.fromkeys(name for own in results.values() for name in own), key=lambda n: divided(n)[0])
        rows = [[str(run), *(f"{own[n]:.4f}" if n in own else "-" for n in every)] for run, own in results.items()]
        print(table([["run", *(name.removeprefix(f"{BLOCK}/") for name in every)], *rows], columns()))
    return max(codes)


def _probe(arguments: list[str]) -> int:
    parser = _on_runs(
        "probe",
        "Look at the initial weights and at every checkpoint of a run; `checkpoint.keep=N` of the run decides how "
        "many there are. Writes numbers and pictures into the run folder.",
        """\
settings (KEY=VALUE):
  probe=NAME, probe=[NAME,NAME]   the probes; `locallearn list probes` shows their names
  probe.NAME.OPTION=VALUE         their options; `locallearn list probe NAME` shows them

example:
  locallearn probe runs/RUN probe=linear probe.linear.neighbours=10""",
    )
    options = parser.read(arguments)
    run, settings = _one("probe", options.words)
    only(settings, r"probe[.=]", "probe RUN", "probe, such as probe=alignment")
    allow = outside.trusted(options.config_dir, options.allow)
    from locallearn.training.later import probe_run

    probes = compose(settings, options.config_dir)[0]["probe"]
    if not probes:
        names = "|".join(name for name in choices("probe") if name != "none")
        raise UserError(f"probe RUN needs a probe: probe={names}")
    for folder, pictures in probe_run(run, allow, probes, settings):
        print(folder.table())
        for file in (folder.path / ROWS, *pictures):
            print(file)
    return 0


def only(settings: Iterable[str], pattern: str, command: str, kind: str) -> None:
    """Raise UserError for a setting that a command does not take."""
    for setting in settings:
        if not re.match(pattern, setting):
            raise UserError(f"{command} takes only settings of {kind}, not {setting!r}")


COMMANDS = {
    "resume": _resume,
    "repeat": _repeat,
    "evaluate": _evaluate,
    "probe": _probe,
    "report": reports.report,
    "compare": reports.compare,
    "stage": _stage,
}
