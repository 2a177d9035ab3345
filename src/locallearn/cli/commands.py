"""The words that come before settings, such as list, doctor, plan, resume. torch where needed."""

from __future__ import annotations

import argparse
import sys

from locallearn.cli import listing, on_runs
from locallearn.cli import study as studies
from locallearn.cli.arguments import Parser, trust
from locallearn.cli.sample import sample
from locallearn.cli.tasks import tasks
from locallearn.config import outside
from locallearn.config.compose import compose, known_keys
from locallearn.errors import UserError, did_you_mean
from locallearn.plan.options import PlanOptions
from locallearn.studies.options import TuneOptions

COMMANDS = {
    "list": "the choices of every group, of one, or one with its options: list strategies; list strategy dgl",
    "doctor": "check the machine and a data set: doctor data=folder data.root=DIR",
    "plan": "step time, bubble and memory of every schedule: plan strategy=dgl stages=8 [picture=FILE]",
    "resume": "go on with an interrupted or killed run, or make one longer: resume RUN [epochs=N] [runtime=NAME]",
    "repeat": "run a finished run again, and say whether the bits agree: repeat RUN",
    "evaluate": "test accuracy of runs, at every block: evaluate RUN... [data=NAME]",
    "sample": "text that a language model writes: sample RUN --prompt TEXT [tokens=500] [block=K]",
    "probe": "look at the checkpoints of a run: probe RUN probe=NAME [probe.NAME.OPTION=VALUE]",
    "tasks": "how far apart data sets are as tasks of a run's net: tasks RUN data=NAME,NAME [--to DIR]",
    "report": "tables and pictures of many runs, groups against backprop: report FOLDER... [--to DIR]",
    "compare": "settings, numbers and curves of runs side by side: compare RUN RUN...",
    "tune": "search for the best learning rate of a strategy: tune strategy=dgl [trials=20] [space=lr]",
    "leaderboard": "check all results and write them as one page: leaderboard [--results DIR] [--readme FILE]",
    "study": "the runs of a study, with its table, pictures and verdict: study NAME [--quick] [--jobs N]",
}


def run(command: str, arguments: list[str]) -> int:
    """Run one command; returns its exit code."""
    words = {"list": _list, "doctor": _doctor, "plan": _plan, "tune": _tune, "sample": sample, "tasks": tasks}
    return (words | on_runs.COMMANDS | studies.COMMANDS)[command](arguments)


def _list(arguments: list[str]) -> int:
    parser = Parser(
        "list",
        "Show the choices of every group, of one, or one choice with its options.",
        """\
examples:
  locallearn list                          every group
  locallearn list strategies               one line for each strategy
  locallearn list strategy dgl             its paper, its options, their defaults, what they mean
  locallearn list models --config-dir DIR  and your own""",
    )
    parser.add_argument("group", nargs="?", help="such as strategies (or strategy), models, data, experiments")
    parser.add_argument("name", nargs="?", help="one choice of the group")
    parser.add_argument("--matrix", action="store_true", help="which strategy trains which model, tried now")
    trust(parser)
    options = parser.read(arguments)
    allow = outside.trusted(options.config_dir, options.allow)
    if options.matrix:
        return listing.matrix(options.config_dir)
    return listing.show(options.group, options.name, options.config_dir, allow)


def _doctor(arguments: list[str]) -> int:
    """Versions and devices, then the chosen data set: loads a batch and prints what is in it."""
    parser = Parser(
        "doctor",
        "Check the machine and a data set: versions, devices, counts, a batch, and what is wrong with the files.",
        """\
settings (KEY=VALUE):
  data=NAME, data.OPTION=VALUE   the set, as in a run; `locallearn list data` shows the names

example:
  locallearn doctor data=folder data.root=DIR""",
    )
    options, settings = _settings(parser, arguments)
    if odd := [word for word in settings if "=" not in word and not word.startswith("~")]:
        raise UserError(f"doctor takes settings such as data=folder data.root=DIR, not {odd[0]!r}")
    on_runs.only(
        settings, r"~|\+?(data[.=]|experiment=|short=)|seed=|allow=", "doctor", "data, such as data=mnist, and seed"
    )
    config, _ = compose(settings, options.config_dir)
    import torch

    from locallearn import accelerator
    from locallearn.config.targets import instantiate
    from locallearn.data.doctor import diagnose, torchvision_version

    print(f"python {sys.version.split()[0]}, torch {torch.__version__}, threads: {torch.get_num_threads()}")
    print(f"GPUs: {', '.join(accelerator.names()) or 'none'}")
    print(torchvision_version())
    source = instantiate(config["data"], "data", config["allow"])
    print(diagnose(source, seed=config["seed"]))
    return 0


def _settings(parser: Parser, arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options of a command that takes the settings of a run, and these settings."""
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="options and settings, in any order")
    trust(parser)
    options = parser.read(arguments)
    allow = outside.trusted(options.config_dir, options.allow)
    named = any(word.startswith("allow=") for word in options.settings)
    return options, [*options.settings, *([f"allow=[{','.join(allow)}]"] if allow and not named else [])]


def _plan(arguments: list[str]) -> int:
    """What pipelines of a run would give, predicted from block times measured here."""
    parser = Parser(
        "plan",
        "Predict what a pipeline over more devices would bring: step time, bubble, speed-up and memory of every "
        "schedule, from the times of the blocks, which are measured here.",
        f"""\
options (NAME=VALUE):
{PlanOptions.described()}
settings (KEY=VALUE):
  strategy, model, data, blocks, batch_size, ...   as in a run

example:
  locallearn plan strategy=dgl model=vgg16 stages=8 picture=plan.svg""",
    )
    flags, words = _settings(parser, arguments)
    options, settings = PlanOptions.parse(words)
    known = known_keys(settings, flags.config_dir)
    if given := [word for word in settings if word.lstrip("+~").startswith("runtime")]:
        raise UserError(
            f"{given[0]} belongs to a run, but plan predicts every runtime: leave it out, or set stages=, replicas= or "
            "micro_batches="
        )
    for word in settings:
        name = word.partition("=")[0].lstrip("+~")
        if name not in known and (hint := did_you_mean(name, [*PlanOptions.names(), *known])) and "." not in name:
            *names, last = PlanOptions.names()
            raise UserError(
                f"unknown option {name}: {hint}plan takes the settings of a run, {', '.join(names)} and {last}"
            )
    from locallearn.config.experiment import experiment
    from locallearn.plan.schedules import cut_for
    from locallearn.plan.table import plan
    from locallearn.training.environment import process_settings
    from locallearn.training.prepare import prepare

    reference = [s for s in settings if not s.startswith("strategy")] + ["strategy=backprop"]
    exp = experiment(*compose(settings, flags.config_dir), settings, flags.config_dir)
    backprop = experiment(*compose(reference, flags.config_dir))
    with process_settings(exp.settings):
        learner, data = prepare(exp)
        cut = cut_for(options, learner.model, exp.settings.blocks, exp.settings.balance)
        learners = {exp.names["strategy"]: learner if cut == learner.cut else prepare(exp, cut)[0]}
        if backprop.strategy != exp.strategy:
            learners["backprop"] = prepare(backprop, cut)[0]
        print(plan(learners, data.batch(exp.settings.batch_size), options))
    return 0


def _tune(arguments: list[str]) -> int:
    parser = Parser(
        "tune",
        "Search for the settings with the best validation score; every trial is a run. Started again, it goes on.",
        f"""\
options (NAME=VALUE):
{TuneOptions.described()}
  A FILE.yaml has lines such as "optim.lr: {{low: 1e-4, high: 1e-1, log: true}}" or "batch_size: [32, 64]".

settings (KEY=VALUE):
  strategy, model, data, epochs, ...   of every run

example:
  locallearn tune strategy=dgl model=lenet trials=20 out=runs/tune""",
    )
    options, settings = _settings(parser, arguments)
    from locallearn.studies.tune import tune
    from locallearn.training.stopping import Interrupted

    try:
        return tune(settings, options.config_dir)
    except Interrupted as error:
        print(f"locallearn: {error}; run the same command again to go on", file=sys.stderr)
        return error.exit_code
