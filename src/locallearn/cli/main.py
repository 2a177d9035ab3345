"""The command line: words before Hydra are commands, everything else is a run (or, with -m, a sweep of runs).

Exit codes: 0 done; 1 a run failed; 2 a mistake in what was asked for; 130, 143 and 129 stopped by SIGINT, SIGTERM and
SIGHUP.
torch is imported only once there is something to run.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from locallearn import paths
from locallearn.cli import arguments, commands, completion, listing
from locallearn.config import compose, outside
from locallearn.errors import RunError, UserError, described, did_you_mean, memory_ran_out, place, printable
from locallearn.runs import again

DEBUG = "LOCALLEARN_DEBUG"
"""The environment variable that `--debug` sets, so that every process of a run shows whole tracebacks."""
JOURNAL = "LOCALLEARN_JOURNAL"
"""The environment variable by which the jobs of a sweep, in whatever process, find its journal."""
SHARING = ("joblib", "submitit_local")
"""Launchers whose jobs run side by side on one machine; Slurm gives each job cores and devices of its own."""
_typed: list[str] = []
"""The command line as the user has typed it, for the manifest; Hydra reads another one."""
_varied: dict[str, list[str]] = {}
"""The keys and values of a sweep that only shows blocks (dry_run)."""
_exit_codes: list[int] = []
"""Of the runs of this command line that ended badly; Hydra carries no return values and prints exceptions twice."""


def entry() -> None:
    """The console script. A reader that closes the pipe, as in `locallearn list | head`, is not an error."""
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def main(words: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    debug = {DEBUG: "1"} if "--debug" in words else {}
    sys.argv = [sys.argv[0], *words]
    with _environment(debug):
        try:
            return _run([word for word in words if word != "--debug"])
        except BaseException as error:
            return _print_error(error)


def _run(words: list[str]) -> int:
    """Find out what is asked for: a command, a page, or a run."""
    if words and words[0] in (*commands.COMMANDS, "stage"):
        return commands.run(words[0], words[1:])
    parser = arguments.of_a_run()
    options, unknown = parser.parse_known_intermixed_args(words)
    if command := next((word for word in options.overrides if word in commands.COMMANDS), None):
        words.remove(command)  # before which flags or settings stood
        return commands.run(command, words)
    if options.shell_completion:
        return completion.run(options.overrides)
    if unknown:
        parser.read(words)  # says which
    if options.help:
        return listing.help_page(commands.COMMANDS)
    if options.version:
        return listing.version()
    arguments.check(options)
    return _hydra(options)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that are set meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _print_error(error: BaseException) -> int:
    """Print the one sentence for an error, with --debug its traceback before it, and return the exit code."""
    from locallearn.training.stopping import Interrupted

    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    if isinstance(error, BrokenPipeError):
        raise error
    if os.environ.get(DEBUG) == "1":
        traceback.print_exception(error)
    if isinstance(error, Interrupted):
        code, text = error.exit_code, f"{error}; go on with: {again.resume(error.run)}"
    elif isinstance(error, KeyboardInterrupt):
        code, text = 130, "stopped at once"
    elif isinstance(error, RunError):
        code, text = 1, str(error)
    elif isinstance(error, UserError):
        mine = place(error.__cause__) if error.__cause__ else ""  # a module of the user's has raised it
        code = 1 if mine and not isinstance(error.__cause__, ValueError) else 2
        text = str(error).removesuffix(mine) + mine
    elif reason := memory_ran_out(error):
        code, text = 1, reason
    else:
        text = described(error)
        code, text = 1, text if place(error) else f"{text}, which nobody foresaw: run again with --debug to see where"
    print(f"locallearn: {printable(text)}", file=sys.stderr)
    return code


def _hydra(options: Any) -> int:
    """Hand a run, a sweep or a question about the configuration to Hydra."""
    overrides = [arguments.home_in(word) for word in options.overrides]
    for word in overrides:
        if word.startswith("=") or ("=" not in word and not word.startswith("~")):
            hint = did_you_mean(word, commands.COMMANDS) or "a run is settings alone, as in `locallearn strategy=dgl`; "
            raise UserError(f"{word!r} is neither a command nor of the form KEY=VALUE: {hint}see `locallearn --help`")
    overrides = [*overrides, *(["dry_run=true"] if options.dry_run else [])]
    dirs = options.config_dir
    if (own := [word for word in overrides if word.startswith("allow=")]) and options.allow:
        raise UserError(f"{own[0]} and --allow {options.allow[0]} both name packages: give one of them")
    packages = outside.trusted(dirs, [*options.allow, *own])
    if packages and not own:
        overrides.insert(0, f"allow=[{','.join(packages)}]")
    _typed[:] = sys.argv
    _exit_codes.clear()
    _varied.clear()
    asks = options.multirun or options.resolve or options.cfg or options.package or options.info
    if not asks and not any(word.lstrip("+~").startswith("hydra") for word in overrides):
        _one_run(*compose.compose(overrides, dirs), overrides)  # `hydra.main` would compose twice
        return max(_exit_codes, default=0)
    import hydra

    sweeps = options.multirun and "dry_run=true" not in overrides
    variables = {"HYDRA_FULL_ERROR": "1"}  # Hydra then raises instead of printing; we print
    with compose.explained(overrides, dirs), ExitStack() as stack:
        internal = compose.searched(dirs)
        if options.multirun:
            replaced = compose.for_every_choice(overrides)
            modules = [*dirs, Path.cwd()] if packages else []
            overrides = [replaced.get(word, word) for word in overrides]
            out, varies, total, launcher = compose.multirun(overrides, dirs)
            if sweeps:
                folder = f"{out}/.multirun"
                variables[JOURNAL] = stack.enter_context(_journal(list(_typed), modules, out, varies, total, launcher))
            else:  # Hydra writes a file for any multirun
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="locallearn-"))
                _varied.update(varies)
            internal.append(f"hydra.sweep.dir={compose.quoted(folder)}")
        stack.enter_context(_environment(variables))
        stack.enter_context(_logging_kept())
        sys.argv = [sys.argv[0], *arguments.flags(options), *overrides, *internal]
        hydra.main(config_path=str(compose.conf_dir()), config_name="config", version_base="1.3")(job)()
    return max(_exit_codes, default=0)


@contextmanager
def _logging_kept() -> Iterator[None]:
    """What `--info` makes Hydra log, to a handler of its own, ends with it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


@contextmanager
def _journal(
    command: list[str], modules: list[Path], out: str, varies: dict[str, list[str]], total: int, launcher: str
) -> Iterator[str]:
    """The path of the journal of a sweep, which says at the end how its jobs went, and decides the exit code."""
    from locallearn.cli import reports
    from locallearn.studies.sweep import Journal, Plan, summary

    folders = [str(folder.resolve()) for folder in modules]
    journal = Journal.create(Plan(out, varies, total, command, folders))
    try:
        with journal.printed() if launcher.startswith("submitit") else nullcontext():
            yield str(journal.path)
    finally:
        jobs = journal.jobs()
        _exit_codes.extend(job.code for job in jobs)
        if jobs:
            with suppress(UserError):  # not one of them can be read
                reports.show([journal.path.parents[1] / job.folder for job in jobs if job.folder])
            print(summary(jobs, journal.plan, "not begun" if launcher == "basic" else "not begun or not ended"))
        else:
            journal.discard()


def job(config: Any) -> float | None:
    """What Hydra calls for each run of a command line."""
    from hydra.core.hydra_config import HydraConfig

    sys.argv = list(_typed) or sys.argv
    hydra_config = HydraConfig.get()
    overrides, chosen = list(hydra_config.overrides.task), dict(hydra_config.runtime.choices)
    if JOURNAL in os.environ:
        return _job_of_a_sweep(config, chosen, overrides, hydra_config.job.num)
    with _shown():
        if not _varied:
            compose.refuse_sweep(hydra_config.sweeper, overrides)
        return _one_run(*compose.plain(config, chosen), overrides)
    return None


def _one_run(values: dict[str, Any], names: dict[str, str], overrides: list[str]) -> float | None:
    """Train, or print the blocks; returns the number that runs are chosen by."""
    from locallearn.config.experiment import experiment
    from locallearn.runs.read import read_run
    from locallearn.training.run import dry_run, start

    with _shown():
        exp = experiment(values, names, overrides, _config_dirs(), _varied or None)
        if exp.settings.dry_run:
            print(dry_run(exp))
            return None
        result = start(exp)
        return result.metrics.get(read_run(result.run_dir).selected_by) if result else None
    return None


@contextmanager
def _shown() -> Iterator[None]:
    """The failure of one run is shown at once, and does not stop the other runs of a sweep."""
    try:
        yield
    except Exception as error:
        code = _print_error(error)
        if code > 128:  # the user asked to stop: other runs stop, too
            raise SystemExit(code) from error
        _exit_codes.append(code)


def _job_of_a_sweep(config: Any, chosen: dict[str, Any], overrides: list[str], number: int) -> float | None:
    """Like any run, in a folder by what it is; what became of it goes into the journal of the sweep."""
    from locallearn.config.experiment import experiment
    from locallearn.runs.read import read_run
    from locallearn.studies import runner, sweep

    journal = sweep.Journal(Path(os.environ[JOURNAL]))
    launcher = chosen["hydra/launcher"]
    if launcher != "basic":  # in another process
        sys.argv = list(journal.plan.command)  # for the manifest
        outside.look_for_modules_in(map(Path, journal.plan.modules))
    differs = journal.differs(overrides)
    label = " ".join(differs) or f"run {number}"
    try:
        values, names = compose.plain(config, chosen)
        if (values.get("sweep") or {}).get("fail_fast") and journal.failed:
            journal.add(sweep.Job(number, label, "skipped"))
            return None
        journal.started(number, label)
        if launcher in SHARING:
            values = sweep.shared(values, number)
        values = sweep.grouped(values, names["strategy"], differs)
        exp = experiment(values, names, overrides, _config_dirs(), journal.plan.varies)
        path = runner.place(exp.settings.out, differs, exp.config)
        how, numbers = runner.run(exp, path)
    except Exception as error:
        code = _print_error(error)
        reason = " ".join((str(error) if isinstance(error, UserError | RunError) else described(error)).split())
        stopped = code > 128  # the user asked to stop: the sweep stops, too
        journal.add(sweep.Job(number, label, "interrupted" if stopped else "failed", reason=reason, code=code))
        if stopped:
            raise SystemExit(code) from error
        return None
    journal.add(sweep.Job(number, label, how, folder=path.name))
    return numbers.get(read_run(path).selected_by)


def _config_dirs() -> list[Path]:
    """The folders of the user's yaml files, in whatever process this is."""
    return [paths.expanded(name) for name in again.config_dirs(sys.argv[1:])]
