"""The command line: words before Hydra are commands, everything else is a run (or, with -m, a sweep of runs).

Exit codes: 0 done; 1 a run failed; 2 a mistake in what was asked for; 130 and 143 stopped by SIGINT and SIGTERM.
torch is imported only once there is something to run.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from locallearn import commands
from locallearn.compose import conf_dir, explained, plain
from locallearn.errors import RunError, UserError, did_you_mean

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
            return commands.help_page(list(arguments))
        if arguments and arguments[0] in (*commands.COMMANDS, "stage"):
            return commands.run(arguments[0], list(arguments[1:]))
        return _hydra(list(arguments))
    except BaseException as error:
        return _said(error)


def _said(error: BaseException) -> int:
    """Print the one sentence for an error and return its exit code; anything unexpected goes on as it is."""
    from locallearn.stopping import Interrupted

    if isinstance(error, UserError | RunError):
        print(f"locallearn: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    if isinstance(error, Interrupted):
        print(f"locallearn: {error}; go on with: locallearn resume {error.run}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("locallearn: stopped at once", file=sys.stderr)
        return 130
    raise error


def _hydra(arguments: list[str]) -> int:
    """Hand the arguments to Hydra: one run, or a multirun."""
    arguments = ["dry_run=true" if a == "--dry-run" else a for a in arguments]
    dirs = _config_dirs(arguments)
    overrides = _overrides(arguments)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            hint = did_you_mean(word, commands.COMMANDS)
            raise UserError(f"{word!r} is neither a command nor of the form KEY=VALUE: {hint}see `locallearn --help`")
    allows = any(o.startswith("allow=") for o in overrides)
    if dirs or allows:
        commands.look_for_modules_in([*dirs, Path.cwd()])
    if dirs and not allows and (packages := commands.packages_named_in(dirs)):
        arguments.append(f"allow=[{','.join(packages)}]")
    import hydra

    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing; we print
    sys.argv = [sys.argv[0], *arguments]
    _exit_codes.clear()
    try:
        with explained(overrides, dirs):
            hydra.main(config_path=str(conf_dir()), config_name="config", version_base="1.3")(job)()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR") if before is None else os.environ.update(HYDRA_FULL_ERROR=before)
    return max(_exit_codes, default=0)


def job(config: Any) -> float | None:
    """One run of a command line. Its failure is shown at once, and does not stop the other runs of a sweep."""
    from hydra.core.hydra_config import HydraConfig

    from locallearn.config.experiment import experiment
    from locallearn.training import session

    hydra_config = HydraConfig.get()
    try:
        values, names = plain(config, dict(hydra_config.runtime.choices))
        exp = experiment(values, names, list(hydra_config.overrides.task))
        if exp.settings.dry_run:
            print(session.dry_run(exp))
            return None
        result = session.start(exp)
        return result.metrics.get("validation/accuracy") if result else None
    except Exception as error:
        code = _said(error)
        if code > 128:  # the user asked to stop: the sweep stops, too
            raise SystemExit(code) from error
        _exit_codes.append(code)
        return None


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
