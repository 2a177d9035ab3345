"""What Hydra and OmegaConf complain of, in one sentence that helps; and what of theirs is refused beforehand."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.explicit import declared
from locallearn.config.registry import APPENDED, choices, chosen, known_keys, options, owners
from locallearn.config.settings import GROUPS
from locallearn.errors import UserError, did_you_mean, unknown

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
_OUT = "run folders are made where out=DIR says"
_LOG = "Hydra keeps no log here: --debug shows whole tracebacks, and the folder of a run has what it printed"
HYDRA = {
    "hydra.run": _OUT,
    "hydra.sweep": _OUT,
    "hydra.output_subdir": _OUT,
    "hydra.job.chdir": f"a run stays in the folder that it was started in; {_OUT}",
    "hydra.verbose": _LOG,
    "hydra.job_logging": _LOG,
    "hydra.hydra_logging": _LOG,
    "hydra.mode": "-m starts a sweep",
    "hydra.searchpath": "give a folder of your own yaml files with --config-dir DIR",
    "hydra": "of Hydra's own settings only hydra/launcher, hydra/sweeper and those below them are there",
}
"""Settings of Hydra's own that are not taken, and what is there instead."""


@contextmanager
def explained(overrides: Sequence[str], config_dirs: Iterable[Path] = ()) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's complaints about `overrides` into one sentence that helps."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _refuse(overrides)
    try:
        _check_values(overrides, list(config_dirs))
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error, overrides, list(config_dirs)) from error


def _refuse(overrides: Iterable[str]) -> None:
    """What Hydra would take and locallearn has other ways for, or none: code that its settings name, its folders, and
    taking a setting away."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0].replace("/", ".")
        above = [key[:end] for end in range(len(key), 0, -1) if key[end : end + 1] in ("", ".")]
        if above and above[-1] == "hydra":
            if "_target_" in override or key.startswith("hydra.callbacks"):
                raise UserError(f"{override}: Hydra would run what it names; leave it out")
            if not {"hydra.launcher", "hydra.sweeper"} & set(above):
                raise UserError(f"{override} is not taken: {next(HYDRA[name] for name in above if name in HYDRA)}")
        elif override.startswith("~"):
            raise UserError(
                f"{override}: no setting can be taken away; give it another value, such as data.root=null or probe=none"
            )


def _check_values(overrides: Sequence[str], config_dirs: list[Path]) -> None:
    """What Hydra would not say, or only in a traceback: the name of a choice is a text, or several; ranges are searched
    by tune alone."""
    for override in parsed(overrides):
        key = override.key_or_group
        if not override.is_sweep_override():
            value = override.value()
            texts = all(isinstance(name, str) for name in (value if isinstance(value, list) else [value]))
            if (key in (*GROUPS, *APPENDED) or "/" in key) and not texts:
                known = LAUNCHERS if key == "hydra/launcher" else choices(key, config_dirs)
                raise unknown(key, override.get_value_element_as_str(), known)
        elif not override.is_discrete_sweep():
            raise UserError(
                f"{override.input_line}: a range is searched by `locallearn tune`: write it into a FILE.yaml, as in "
                f"{key}: {{low: 0.001, high: 1.0, log: true}}, and give tune space=FILE.yaml; or give values: {key}=A,B"
            )
        elif key in APPENDED:  # Hydra would drop the sweep of an experiment's file
            names = list(map(str, override.sweep_string_iterator()))
            if any(declared(key, name, config_dirs) for name in names):
                commands = ", then ".join(f"-m +{key}={name}" for name in names)
                raise UserError(
                    f"+{key}={','.join(names)}: each is a sweep of its own, so start one after the other: {commands}"
                )


def parsed(overrides: Iterable[str], loader: Any = None) -> list[Any]:
    """Overrides in Hydra's form; `loader` knows the choices that a glob stands for."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create(loader).parse_overrides(list(overrides))


def explain(error: Exception, overrides: Sequence[str], config_dirs: list[Path]) -> UserError:
    """The sentence for a composition error: the first override whose group, name or key does not exist."""
    for override in overrides:
        if sentence := _wrong(override, error, overrides, config_dirs):
            return sentence
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = lines[0] if lines else type(error).__name__
    if detail.startswith("Ambiguous value"):
        return UserError(f"{detail.partition(chr(39))[2].rstrip(chr(39))} gives several values: add -m to run each")
    if "requires --multirun" in detail:
        return UserError(f"{' '.join(re.findall(chr(39) + '(.*)' + chr(39), detail))} gives several values: add -m")
    if "OverrideParseException" in type(error).__name__:
        wrong = f"{lines[-1]}: " if len(lines) > 1 and "=" in lines[-1] else ""
        return UserError(f"{wrong}{detail}; quote a value that has brackets, commas or spaces in it")
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ and str(error.__cause__) else ""
    return UserError(f"{detail} {cause}".strip())


def _wrong(override: str, error: Exception, overrides: Sequence[str], config_dirs: list[Path]) -> UserError | None:
    """What is wrong with one override, if anything is."""
    key, equals, value = override.lstrip("+").partition("=")
    names = choices(key, config_dirs) if key in (*GROUPS, *APPENDED) else {}
    if key in APPENDED:
        if "," in value and not value.startswith("[") and set(value.split(",")) <= names.keys():
            return UserError(f"{override} gives several values: add -m to run each")
        if value not in names:
            return unknown(key, value, names)
        added = override.startswith("+")
        return None if added else UserError(f"{override}: write +{override}, as this is added to a run")
    if key == "hydra/launcher" and "hydra/launcher" in str(error):
        if value not in LAUNCHERS:
            return unknown(key, value, LAUNCHERS)
        return UserError(f"{key}={value} is not installed: pip install 'locallearn[launchers]', or leave it out")
    if key.startswith("hydra") or override.startswith("+"):
        return None
    keys = known_keys(overrides, config_dirs)
    if not equals:
        return UserError(
            f"{override!r} is neither a command nor of the form KEY=VALUE: {did_you_mean(key, keys)}see --help"
        )
    if key in GROUPS:
        wrong = [name for name in re.findall(r"[^,\[\]\s]+", value) or [""] if name not in names and "(" not in value]
        return unknown(key, wrong[0], names) if wrong else None
    return None if key in keys else _unknown_key(override, chosen(overrides), keys, config_dirs)


def _unknown_key(override: str, names: dict[str, str], keys: list[str], config_dirs: list[Path]) -> UserError:
    """What there is instead of a key: of the choice that was made, of another choice, of another group."""
    key = override.partition("=")[0]
    group, _, rest = key.partition(".")
    end = key.rpartition(".")[2]
    if group not in GROUPS:
        close = did_you_mean(key, [known for known in keys if known != group])
        by_end = {known.rpartition(".")[2]: known for known in reversed(keys)}
        if not close and (ends := difflib.get_close_matches(end, by_end, n=1)):
            close = f"did you mean {by_end[ends[0]]!r}? "
        return UserError(f"unknown key {key}: {close}`locallearn --help` shows all keys")
    close = did_you_mean(rest, [known.partition(".")[2] for known in keys if known.startswith(f"{group}.")])
    close = close.replace("'", f"'{group}.", 1)
    name = names.get(group, "")
    file = choices(group, config_dirs).get(name)
    own = options(group, name, file) if file else []
    listed = ("the options " if len(own) > 1 else "only the option ") + ", ".join(own)
    has = f"{group}={name} has {listed if own else 'no options'}"
    if (group, name) == ("optim", "torch"):
        return UserError(f"unknown key {key}: {close}{has}; for anything else that its class takes, give +{override}")
    if not file:
        has = f"`locallearn list {group} NAME` shows the options of each"
    elif any(folder in file.parents for folder in config_dirs):
        return UserError(
            f"unknown key {key}: {close}{has}; if its class takes {rest}, write `{rest}: VALUE` into {file}, or give "
            f"+{override} here"
        )
    if others := owners(key, config_dirs):
        return UserError(f"{key} belongs to {' or '.join(others)}: choose that as well; {has}")
    elsewhere = [f"{g}.{end} to {' or '.join(those)}" for g in GROUPS if (those := owners(f"{g}.{end}", config_dirs))]
    there = f"; {', '.join(elsewhere)}".replace(" to ", " belongs to ", 1) if elsewhere else ""
    return UserError(f"unknown key {key}: {close}{has}{there}")
