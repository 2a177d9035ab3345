"""The command line: words before Hydra are commands, everything else is a run (or, with -m, a sweep of runs).

Exit codes: 0 done; 1 a run failed; 2 a mistake in what was asked for; 130, 143 and 129 stopped by SIGINT, SIGTERM and
SIGHUP.
torch is imported only once there is something to run.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from locallearn import commands, listing
from locallearn.compose import conf_dir, explained, for_every_choice, multirun, plain, refuse_sweep
from locallearn.errors import RunError, UserError, did_you_mean, memory_ran_out, printable
from locallearn.outside import look_for_modules_in, packages_named_in

JOURNAL = "LOCALLEARN_JOURNAL"
"""The environment variable by which the jobs of a sweep, in whatever process, find its journal."""
SHARING = ("joblib", "submitit_local")
"""Launchers whose jobs run side by side on one machine; Slurm gives each job cores and devices of its own."""
_exit_codes: list[int] = []
"""Of the runs of this command line that ended badly; Hydra carries no return values and prints exceptions twice."""


def entry() -> None:
    """The console script. Who closes the pipe has read enough, as in `locallearn list | head`: no error."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        if {"-h", "--help"} & set(arguments):
            return listing.help_page(commands.COMMANDS)
        if arguments and arguments[0] in (*commands.COMMANDS, "stage"):
            return commands.run(arguments[0], list(arguments[1:]))
        return _hydra(list(arguments))
    except BaseException as error:
        return _said(error)


def _said(error: BaseException) -> int:
    """Print the one sentence for an error and return its exit code; anything unexpected goes on as it is."""
    from locallearn.stopping import Interrupted

    if isinstance(error, UserError | RunError):
        print(f"locallearn: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    if isinstance(error, Interrupted):
        print(f"locallearn: {error}; go on with: locallearn resume {error.run}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("locallearn: stopped at once", file=sys.stderr)
        return 130
    if reason := memory_ran_out(error):
        print(f"locallearn: {reason}", file=sys.stderr)
        return 1
    raise error


def _hydra(arguments: list[str]) -> int:
    """Hand the arguments to Hydra: one run, or a multirun."""
    arguments = ["dry_run=true" if a == "--dry-run" else a for a in arguments]
    dirs = _config_dirs(arguments)
    overrides = _overrides(arguments)
    for word in overrides:
        if word.startswith("=") or ("=" not in word and not word.startswith("~")):
            hint = did_you_mean(word, commands.COMMANDS)
            raise UserError(f"{word!r} is neither a command nor of the form KEY=VALUE: {hint}see `locallearn --help`")
    allows = any(o.startswith("allow=") for o in overrides)
    if dirs or allows:
        look_for_modules_in([*dirs, Path.cwd()])
    if dirs and not allows and (packages := packages_named_in(dirs)):
        place = arguments.index(overrides[0]) if overrides else len(arguments)  # overrides must stand together
        arguments.insert(place, f"allow=[{','.join(packages)}]")
    import hydra

    sweeps = bool({"-m", "--multirun"} & set(arguments)) and "dry_run=true" not in arguments
    variables = {"HYDRA_FULL_ERROR": "1"}  # Hydra then raises instead of printing; we print
    before = {name: os.environ.get(name) for name in (*variables, JOURNAL)}
    _exit_codes.clear()
    try:
        with explained(overrides, dirs), ExitStack() as stack:
            if sweeps:
                replaced = for_every_choice(overrides)
                arguments = [replaced.get(argument, argument) for argument in arguments]
                modules = [*dirs, Path.cwd()] if dirs or allows else []
                varied = multirun([replaced.get(o, o) for o in overrides], dirs)
                variables[JOURNAL] = stack.enter_context(_journal([sys.argv[0], *arguments], modules, *varied))
            os.environ.update(variables)
            sys.argv = [sys.argv[0], *arguments]
            hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    return max(_exit_codes, default=0)


@contextmanager
def _journal(
    command: list[str], modules: list[Path], out: str, varies: dict[str, list[str]], total: int, launcher: str
) -> Iterator[str]:
    """The path of the journal of a sweep, which says at the end how its jobs went, and decides the exit code."""
    from locallearn.training.sweep import Journal, Plan, summary

    folders = [str(folder.resolve()) for folder in modules]
    journal = Journal.create(Plan(out, varies, total, command, folders))
    try:
        with journal.shown() if launcher.startswith("submitit") else nullcontext():
            yield str(journal.path)
    finally:
        jobs = journal.jobs()
        _exit_codes.extend(job.code for job in jobs)
        if jobs:
            _table([journal.path.parents[1] / job.folder for job in jobs if job.folder])
            print(summary(jobs, journal.plan, "not begun" if launcher == "basic" else "not begun or not ended"))
        else:
            journal.discard()


def _table(folders: list[Path]) -> None:
    """What the runs of a sweep say together."""
    from locallearn.report import command

    with suppress(UserError):  # not one of them can be read
        command.show(folders)


def job(config: Any) -> float | None:
    """One run of a command line. Its failure is shown at once, and does not stop the other runs of a sweep."""
    from hydra.core.hydra_config import HydraConfig

    from locallearn.config.experiment import experiment
    from locallearn.training import session

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    chosen = dict(hydra_config.runtime.choices)
    if JOURNAL in os.environ:
        return _job_of_a_sweep(config, chosen, overrides, hydra_config.job.num)
    try:
        refuse_sweep(hydra_config.sweeper, overrides)
        exp = experiment(*plain(config, chosen), overrides, _config_dirs(sys.argv[1:]))
        if exp.settings.dry_run:
            print(session.dry_run(exp))
            return None
        result = session.start(exp)
        return result.metrics.get("validation/accuracy") if result else None
    except Exception as error:
        code = _said(error)
        if code > 128:  # the user asked to stop: other runs stop, too
            raise SystemExit(code) from error
        _exit_codes.append(code)
        return None


def _job_of_a_sweep(config: Any, chosen: dict[str, Any], overrides: list[str], number: int) -> float | None:
    """Like any run, in a folder by what it is; what became of it goes into the journal of the sweep."""
    from locallearn.config.experiment import experiment
    from locallearn.training import sweep

    journal = sweep.Journal(Path(os.environ[JOURNAL]))
    launcher = chosen["hydra/launcher"]
    if launcher != "basic":  # in another process
        sys.argv = list(journal.plan.command)  # for the manifest
        look_for_modules_in(map(Path, journal.plan.modules))
    differs = journal.differs(overrides)
    label = " ".join(differs) or f"run {number}"
    try:
        values, names = plain(config, chosen)
        if (values.get("sweep") or {}).get("fail_fast") and journal.failed:
            journal.add(sweep.Job(number, label, "skipped"))
            return None
        if launcher in SHARING:
            values = sweep.shared(values, number)
        exp = experiment(sweep.grouped(values), names, overrides, _config_dirs(sys.argv[1:]), journal.plan.varies)
        path = sweep.place(exp.settings.out, differs, exp.config)
        how, numbers = sweep.run(exp, path)
    except Exception as error:
        try:
            code = _said(error)
        except Exception:  # not foreseen: the others go on all the same
            traceback.print_exc()
            code = 1
        reason = " ".join(str(error).split()) or type(error).__name__
        stopped = code > 128  # the user asked to stop: the sweep stops, too
        journal.add(sweep.Job(number, label, "interrupted" if stopped else "failed", reason=reason, code=code))
        if stopped:
            raise SystemExit(code) from error
        return None
    journal.add(sweep.Job(number, label, how, folder=path.name))
    return numbers.get("validation/accuracy")


def _config_dirs(arguments: Sequence[str]) -> list[Path]:
    """The folders of `--config-dir DIR` (also -cd DIR and --config-dir=DIR)."""
    dirs = []
    for flag, value in zip(arguments, [*arguments[1:], ""], strict=True):
        if flag in ("--config-dir", "-cd"):
            dirs.append(Path(value))
        elif flag.startswith("--config-dir="):
            dirs.append(Path(flag.partition("=")[2]))
    for folder in dirs:
        if not folder.is_dir():
            raise UserError(f"--config-dir {folder}: there is no such folder")
    return dirs


def _overrides(arguments: Sequence[str]) -> list[str]:
    """What is not a flag of Hydra's, nor the value of one."""
    with_value = {"--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c", "--package"}
    found = []
    skip = False
    for argument in arguments:
        if skip or argument.startswith("-"):
            skip = argument in with_value
            continue
        found.append(argument)
    return found
