"""The words that come before Hydra, such as list, doctor, plan, resume. torch where needed."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from locallearn import listing
from locallearn.compose import choices, compose, known_keys
from locallearn.errors import UserError, did_you_mean
from locallearn.outside import look_for_modules_in, packages_named_in

COMMANDS = {
    "list": "the choices of every group, or of one: list strategies; list experiments; which pairs work: list --matrix",
    "doctor": "check the machine and a data set: doctor data=folder data.root=DIR",
    "plan": "step time, bubble and memory of every schedule: plan strategy=dgl stages=8 [picture=FILE]",
    "resume": "go on with a run that was interrupted or killed: resume RUN [runtime=NAME]",
    "repeat": "run a finished run again, and say whether the bits agree: repeat RUN",
    "evaluate": "test accuracy of a run, at every block: evaluate RUN [data=NAME]",
    "probe": "look at the checkpoints of a run: probe RUN probe=NAME [probe.NAME.OPTION=VALUE]",
    "report": "tables and pictures of many runs, groups against backprop: report FOLDER... [--to DIR]",
    "compare": "settings, numbers and curves of two runs side by side: compare RUN RUN [--to DIR]",
    "tune": "search for the best learning rate of a strategy: tune strategy=dgl [trials=20] [space=lr]",
}


def run(command: str, arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    words = {"list": _list, "doctor": _doctor, "plan": _plan, "resume": _resume, "evaluate": _evaluate, "probe": _probe}
    words |= {"repeat": _repeat, "report": _report, "compare": _compare, "tune": _tune}
    return {**words, "stage": _stage}[command](arguments)


def _list(arguments: list[str]) -> int:
    """A line for each choice, with route and paper."""
    parser = _parser("list", "Show the choices of every group, or of one.")
    parser.add_argument("group", nargs="?", help="such as strategies, models or data")
    parser.add_argument("--matrix", action="store_true", help="which strategy trains which model, found out now")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of your own yaml files")
    options = parser.parse_args(arguments)
    if options.matrix:
        return listing.matrix(options.config_dir)
    return listing.show(options.group, options.config_dir)


def _doctor(arguments: list[str]) -> int:
    """Versions and devices, then the chosen data set: loads a batch and prints what is in it."""
    if arguments and not all("=" in a for a in arguments):
        raise UserError(f"doctor takes settings such as data=folder data.root=DIR, not {' '.join(arguments)!r}")
    config, _ = compose(arguments)
    import torch

    from locallearn.config.targets import instantiate
    from locallearn.data.doctor import diagnose, torchvision_version

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"GPUs: {', '.join(gpus) or 'none'}")
    print(torchvision_version())
    source = instantiate(config["data"], "data", config["allow"])
    print(diagnose(source, seed=config["seed"]))
    return 0


def _plan(arguments: list[str]) -> int:
    """What pipelines of a run would give, predicted from block times measured here."""
    from locallearn.config.experiment import experiment
    from locallearn.runtime.plan import Options
    from locallearn.training.planning import plan

    options, settings = Options.parse(arguments)
    known = known_keys(settings, [])
    for word in settings:
        name = word.partition("=")[0].lstrip("+~")
        if name not in known and (hint := did_you_mean(name, [*Options.names(), *known])) and "." not in name:
            raise UserError(f"unknown option {name}: {hint}plan takes the settings of a run, {_and(Options.names())}")
    reference = [s for s in settings if not s.startswith("strategy")] + ["strategy=backprop"]
    print(plan(experiment(*compose(settings), settings), experiment(*compose(reference)), options))
    return 0


def _and(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _resume(arguments: list[str]) -> int:
    parser = _parser("resume", "Go on with a run to the same bits as if it had not been interrupted.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("settings", nargs="*", help="where it goes on: runtime=NAME runtime.stages=N")
    _allow(parser)
    options = parser.parse_args(arguments)
    from locallearn.training import session

    look_for_modules_in([Path.cwd()] if options.allow else [])
    session.resume(options.run, options.allow, runtime=_other_runtime(options.settings), said=options.settings)
    return 0


def _repeat(arguments: list[str]) -> int:
    parser = _parser("repeat", "Run a finished run again, and say whether the bits agree.")
    parser.add_argument("run", help="the run folder; the repetition goes into its folder repeats/")
    _allow(parser)
    options = parser.parse_args(arguments)
    from locallearn.training.repeat import repeat

    look_for_modules_in([Path.cwd()] if options.allow else [])
    found = repeat(options.run, options.allow)
    print(found)
    return 1 if found.differences else 0


def _other_runtime(settings: list[str]) -> tuple[str, dict] | None:
    """The name and configuration of the runtime that `resume` was told to take."""
    _only(settings, r"runtime(=|\.(?!staleness))", "resume", "where blocks run, such as runtime=serial")
    if not settings:
        return None
    named = [] if any(setting.startswith("runtime=") for setting in settings) else ["runtime=pipeline"]
    config, names = compose([*named, *settings])
    return names["runtime"], config["runtime"]


def _stage(arguments: list[str]) -> int:
    """What a run with several processes starts; no command for people."""
    parser = _parser("stage", "One process of a run.")
    parser.add_argument("run")
    parser.add_argument("--quiet", action="store_true")
    _allow(parser)
    options = parser.parse_args(arguments)
    from locallearn.stopping import Interrupted
    from locallearn.training import session

    try:
        session.stage(options.run, options.allow, options.quiet)
    except Interrupted as error:  # the process that started this one says it
        return error.exit_code
    return 0


def _evaluate(arguments: list[str]) -> int:
    parser = _parser("evaluate", "Test loss and accuracy of a run, at every block that can predict.")
    parser.add_argument("run", help="the run folder")
    parser.add_argument("--linear", action="store_true", help="also fit a linear classifier to each block's features")
    parser.add_argument("settings", nargs="*", help="another set: data=NAME data.root=DIR")
    _allow(parser)
    options = parser.parse_args(arguments)
    _only(options.settings, r"\+?data[.=]", "evaluate", "data, such as data=mnist")
    from locallearn.training.saved import evaluate_run

    look_for_modules_in([Path.cwd()] if options.allow else [])
    data = compose(options.settings)[0]["data"] if options.settings else None
    for name, value in evaluate_run(options.run, options.allow, data, options.linear).items():
        print(f"{name:<20} {value:.4f}")
    return 0


def _probe(arguments: list[str]) -> int:
    parser = _parser("probe", "Look at the initial weights and at every checkpoint of a run.")
    parser.add_argument("run", help="the run folder; `checkpoint.keep=N` of the run decides how many there are")
    parser.add_argument("settings", nargs="+", help="what looks, and how: probe=NAME probe.NAME.OPTION=VALUE")
    _allow(parser)
    options = parser.parse_args(arguments)
    _only(options.settings, r"probe[.=]", "probe", "probe, such as probe=alignment")
    from locallearn.training.saved import probe_run

    look_for_modules_in([Path.cwd()] if options.allow else [])
    probes = compose(options.settings)[0]["probe"]
    if not probes:
        names = "|".join(name for name in choices("probe") if name != "none")
        raise UserError(f"probe RUN must be told what looks: probe={names}")
    for folder, pictures in probe_run(options.run, options.allow, probes, options.settings):
        print(folder.table())
        for path in (folder.path / "rows.jsonl", *pictures):
            print(path)
    return 0


def _report(arguments: list[str]) -> int:
    from locallearn.report import command

    return command.report(_parser("report", "What runs say together, and their difference to backprop."), arguments)


def _compare(arguments: list[str]) -> int:
    from locallearn.report import command

    return command.compare(_parser("compare", "What differs between two runs."), arguments)


def _tune(arguments: list[str]) -> int:
    parser = _parser("tune", "Search for the settings with the best validation accuracy; every trial is a run.")
    parser.add_argument("settings", nargs="*", help="of the run, and trials=NUMBER, space=NAME or space=FILE.yaml")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of your own yaml files")
    _allow(parser)
    options = parser.parse_intermixed_args(arguments)
    from locallearn.stopping import Interrupted
    from locallearn.tune import tune

    look_for_modules_in([*options.config_dir, Path.cwd()] if options.config_dir or options.allow else [])
    try:
        return tune(options.settings, options.config_dir, [*options.allow, *packages_named_in(options.config_dir)])
    except Interrupted as error:
        print(f"locallearn: {error}; the same command goes on with it", file=sys.stderr)
        return error.exit_code


def _only(settings: Iterable[str], pattern: str, command: str, kind: str) -> None:
    """Raise UserError for a setting that the command on a run folder does not take."""
    for setting in settings:
        if not re.match(pattern, setting):
            raise UserError(f"{command} RUN takes only settings of {kind}, not {setting!r}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{self.prog.split()[-1]}: {message}; {self.format_usage().strip()}")


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    return _Parser(prog=f"locallearn {command}", description=text)


def _allow(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="a package outside locallearn the run may use"
    )
