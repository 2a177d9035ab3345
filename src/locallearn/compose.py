"""The only meeting with Hydra's composition: from overrides to a plain configuration, and its errors to sentences."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.given import declared
from locallearn.config.registry import APPENDED, choices, conf_dir, leaves
from locallearn.config.registry import header as header
from locallearn.config.settings import GROUPS
from locallearn.errors import UserError, did_you_mean, unknown

LAUNCHERS = ("basic", "joblib", "submitit_local", "submitit_slurm")
_SECRETS_ALLOWED = {"out", "data.root"}


def plain(config: Any, hydra_choices: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A composed configuration as plain values, and the chosen name of each group. Refuses secrets in logged fields."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("plus", lambda *numbers: sum(numbers), replace=True)  # of an experiment's epochs
    try:
        with _who_asks_the_environment() as paths:
            resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    for path in paths:
        if path not in _SECRETS_ALLOWED:
            raise UserError(f"{path}: environment variables would be written to the run folder; give the value")
    assert isinstance(resolved, dict)
    names = {g: str(hydra_choices[g]) for g in GROUPS if hydra_choices.get(g)}
    return {str(k): v for k, v in resolved.items()}, names


@contextmanager
def _who_asks_the_environment() -> Iterator[list[str]]:
    """The keys whose values are made from environment variables meanwhile, however that is spelled."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    paths: list[str] = []

    def env(*arguments: Any, _node_: Any) -> Any:
        paths.append(str(_node_._get_full_key(None)))
        return oc.env(*arguments)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield paths
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def compose(
    overrides: Sequence[str], config_dirs: Sequence[Path] = (), one_run: bool = True
) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose outside `hydra.main` (Python API, `doctor`, `tune`). Returns what `plain` returns.

    one_run  refuse an experiment that stands for several runs"""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from omegaconf import open_dict

    with explained(overrides, config_dirs), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = hydra_compose("config", [*overrides, *_searched(config_dirs)], return_hydra_config=True)
        chosen = dict(config.hydra.runtime.choices)
        if one_run:
            refuse_sweep(config.hydra.sweeper, overrides)
        with open_dict(config):
            del config["hydra"]
        return plain(config, chosen)


def refuse_sweep(sweeper: Any, overrides: Iterable[str]) -> None:
    """Raise UserError where one run is asked for and the file of an experiment has a sweep of its own
    (`hydra.sweeper.params`), unless `overrides` have one value for every key of it."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    typed = {text.lstrip("+~").partition("=")[0] for text in overrides}
    left = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items() if key not in typed]
    if left:
        parsed = OverridesParser.create().parse_overrides(left)
        first = [next(o.sweep_string_iterator()) if o.is_sweep_override() else o.value() for o in parsed]
        one = " ".join(f"{o.key_or_group}={value}" for o, value in zip(parsed, first, strict=True))
        name = next((text for text in overrides if text.lstrip("+").partition("=")[0] in APPENDED), "the experiment")
        raise UserError(
            f"{name} is a sweep over {' '.join(left)}: add -m to run it, or choose one run of it, such as {one}"
        )


def _searched(config_dirs: Sequence[Path]) -> list[str]:
    """What adds folders of yaml files to those of locallearn."""
    places = ",".join(f"'file://{folder.resolve()}'" for folder in config_dirs)
    return [f"hydra.searchpath=[{places}]"] if places else []


def multirun(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[str, dict[str, list[str]], int, str]:
    """Of a multirun: `out`, the keys that vary (on the command line or in `hydra.sweeper.params` of a yaml) and their
    values, how many runs there are, and the launcher. Raises what composing raises."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.types import RunMode

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", [*overrides, *_searched(config_dirs)], RunMode.MULTIRUN)
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        parsed = OverridesParser.create(loader).parse_overrides(params + list(config.hydra.overrides.task))
        last = {override.get_key_element(): override for override in parsed}.values()
        varies = {
            override.key_or_group: list(override.sweep_string_iterator())
            for override in last
            if override.is_sweep_override() and override.is_discrete_sweep()
        }
        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        return str(config.out), varies, math.prod(map(len, varies.values())), launcher


def for_every_choice(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides of a multirun as Hydra takes them: `model.width=16` beside `model=mlp,rnn` is no key of the default
    model, against which Hydra would check it; whether a choice has it is checked when its run begins."""
    varies = set(swept(overrides)) & set(GROUPS)
    own = [text for text in overrides if text.partition("=")[0].partition(".")[0] in varies]
    return {text: f"++{text}" for text in own if "." in text.partition("=")[0]}


def swept(overrides: Sequence[str]) -> list[str]:
    """The keys among overrides that have several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if override.is_sweep_override()]


@contextmanager
def explained(overrides: Sequence[str], config_dirs: Iterable[Path] = ()) -> Iterator[None]:
    """Turn Hydra's and OmegaConf's complaints about `overrides` into one sentence that helps."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    _refuse_code(overrides)
    try:
        _check_names(overrides, list(config_dirs))
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise explain(error, overrides, list(config_dirs)) from error


def _refuse_code(overrides: Iterable[str]) -> None:
    """Hydra would run what its own settings name; folders and packages have ways of their own to be trusted."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key.startswith("hydra.searchpath"):
            raise UserError(f"{override}: give a folder of your own yaml files with --config-dir DIR")
        if key.startswith("hydra") and ("_target_" in override or key.startswith("hydra.callbacks")):
            raise UserError(f"{override}: Hydra would run what it names; leave it out")


def _check_names(overrides: Sequence[str], config_dirs: list[Path]) -> None:
    """The name of a choice is a text, or several; of anything else Hydra only says a traceback."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for given in OverridesParser.create().parse_overrides(list(overrides)):
        key = given.key_or_group
        if key in APPENDED and given.is_sweep_override() and given.is_discrete_sweep():
            _refuse_several(key, list(given.sweep_string_iterator()), config_dirs)
        if (key in (*GROUPS, *APPENDED) or "/" in key) and not given.is_delete() and not given.is_sweep_override():
            names = given.value()
            if not all(isinstance(name, str) for name in (names if isinstance(names, list) else [names])):
                known = LAUNCHERS if key == "hydra/launcher" else choices(key, config_dirs)
                raise unknown(key, given.get_value_element_as_str(), known)


def _refuse_several(key: str, names: list[str], config_dirs: list[Path]) -> None:
    """Raise UserError for several experiments at once of which one has a sweep: Hydra would drop it."""
    if any(declared(key, name, config_dirs) for name in names):
        commands = ", then ".join(f"-m +{key}={name}" for name in names)
        raise UserError(
            f"+{key}={','.join(names)}: each is a sweep of its own, so start one after the other: {commands}"
        )


def explain(error: Exception, overrides: Sequence[str], config_dirs: list[Path]) -> UserError:
    """The sentence for a composition error: the first override whose group, name or key does not exist."""
    keys = known_keys(overrides, config_dirs)
    for override in overrides:
        key, equals, value = override.lstrip("+~").partition("=")
        if key in APPENDED and (said := _appended(key, override, value, config_dirs)):
            return said
        if key == "hydra/launcher" and "hydra/launcher" in str(error):
            if value not in LAUNCHERS:
                return unknown(key, value, LAUNCHERS)
            return UserError(f"{key}={value} is not installed: pip install 'locallearn[launchers]', or leave it out")
        if key.startswith("hydra") or override.startswith(("+", "~")):
            continue
        if not equals:
            return UserError(
                f"{override!r} is neither a command nor of the form KEY=VALUE: {did_you_mean(key, keys)}see --help"
            )
        if key in GROUPS:
            names = choices(key, config_dirs)
            for name in re.findall(r"[^,\[\]\s]+", value) or [""]:
                if name not in names and "(" not in value:
                    return unknown(key, name, names)
        elif key not in keys:
            if owners := _choices_with(key, config_dirs):
                return UserError(f"{key} belongs to {' or '.join(owners)}: choose that, too")
            ends = {known.split(".")[-1]: known for known in reversed(keys)}
            wanted = difflib.get_close_matches(key.split(".")[-1], ends, n=1)
            close = did_you_mean(key, keys) or (f"did you mean {ends[wanted[0]]!r}? " if wanted else "")
            return UserError(f"unknown key {key}: {close}`locallearn --help` shows all keys")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = lines[0] if lines else type(error).__name__
    if detail.startswith("Ambiguous value"):
        return UserError(f"{detail.partition(chr(39))[2].rstrip(chr(39))} gives several values: add -m to run each")
    if "OverrideParseException" in type(error).__name__:
        wrong = f"{lines[-1]}: " if len(lines) > 1 and "=" in lines[-1] else ""
        return UserError(f"{wrong}{detail}; quote a value that has brackets, commas or spaces in it")
    cause = str(error.__cause__).splitlines()[0] if error.__cause__ and str(error.__cause__) else ""
    return UserError(f"{detail} {cause}".strip())


def _appended(key: str, override: str, value: str, config_dirs: Iterable[Path]) -> UserError | None:
    """What is wrong with +experiment=NAME or +short=NAME, if anything is."""
    names = choices(key, config_dirs)
    if "," in value and not value.startswith("[") and set(value.split(",")) <= set(names):
        return UserError(f"{override} gives several values: add -m to run each")
    if value not in names:
        return unknown(key, value, names)
    return None if override.startswith("+") else UserError(f"{override}: it is added to a run: write +{override}")


def _choices_with(key: str, config_dirs: Iterable[Path]) -> list[str]:
    """The choices GROUP=NAME of a key's group that have this key."""
    group, _, rest = key.partition(".")
    files = choices(group, config_dirs) if group in GROUPS else {}
    options = {name: dict(leaves(_content(group, name, file))) for name, file in files.items()}
    return [f"{group}={name}" for name, found in options.items() if rest in found]


def _content(group: str, name: str, file: Path) -> dict[str, Any]:
    """What a choice puts under its group; several probes stand side by side, each under its name."""
    content = yaml.safe_load(file.read_text()) or {}
    return {name: content} if group == "probe" and content else content


def known_keys(overrides: Sequence[str], config_dirs: Iterable[Path]) -> list[str]:
    """Every key that may be set: top-level settings, groups, and the keys of the groups' chosen or all yaml files."""
    top = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    keys = {path for path, _ in leaves({k: v for k, v in top.items() if k not in ("defaults", "hydra")})}
    keys |= {k for k in top if k not in ("defaults", "hydra")} | set(GROUPS)
    chosen = {k: v for entry in top["defaults"] if isinstance(entry, dict) for k, v in entry.items() if k in GROUPS}
    chosen |= {k: v for k, _, v in (o.partition("=") for o in overrides) if k in GROUPS}
    for group, chosen_name in chosen.items():
        files = choices(group, config_dirs)
        for name, file in files.items():
            if chosen_name in files and name != chosen_name:
                continue
            content = _content(group, name, file)
            paths = [path for path, _ in leaves(content) if path not in ("_target_", "defaults")]
            keys |= {f"{group}.{path}" for path in paths if not path.endswith("._target_")}
            keys |= {f"{group}.{key}" for key in content if key not in ("_target_", "defaults")}
    return sorted(keys)
