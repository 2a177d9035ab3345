"""Hydra's composition: from overrides to a plain configuration."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from locallearn import paths
from locallearn.config.explain import explain, explained, parsed
from locallearn.config.registry import APPENDED, choices, conf_dir, header, known_keys
from locallearn.config.settings import GROUPS
from locallearn.errors import UserError

__all__ = ["APPENDED", "choices", "compose", "conf_dir", "explain", "explained", "header", "known_keys", "multirun"]
_SECRETS_ALLOWED = {"out", "data.root"}


def plain(config: Any, hydra_choices: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A composed configuration as plain values, and the chosen name of each group. Refuses secrets in logged fields."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    OmegaConf.register_new_resolver("plus", lambda *numbers: sum(numbers), replace=True)  # of an experiment's epochs
    try:
        with _who_asks_the_environment() as asked:
            resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    for path in asked:
        if path not in _SECRETS_ALLOWED:
            raise UserError(f"{path}: environment variables would be written to the run folder; give the value itself")
    assert isinstance(resolved, dict)
    for key in paths.SETTINGS:
        _expand(resolved, *key.split("."))
    names = {g: str(hydra_choices[g]) for g in GROUPS if hydra_choices.get(g)}
    return {str(k): v for k, v in resolved.items()}, names


def _expand(config: Any, *keys: str) -> None:
    """Let a setting that is a path begin with `~`, if it is there."""
    for key in keys[:-1]:
        config = config.get(key) if isinstance(config, Mapping) else None
    if isinstance(config, dict) and isinstance(config.get(keys[-1]), str):
        try:
            config[keys[-1]] = paths.written(config[keys[-1]])
        except UserError as error:
            raise UserError(f"{'.'.join(keys)}={error}") from None


@contextmanager
def _who_asks_the_environment() -> Iterator[list[str]]:
    """The keys whose values come from environment variables, however that is spelled."""
    from omegaconf import OmegaConf
    from omegaconf.resolvers import oc

    asked: list[str] = []

    def env(*arguments: Any, _node_: Any) -> Any:
        asked.append(str(_node_._get_full_key(None)))
        return oc.env(*arguments)

    OmegaConf.register_new_resolver("oc.env", env, replace=True)
    try:
        yield asked
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
        config = hydra_compose("config", [*overrides, *searched(config_dirs)], return_hydra_config=True)
        chosen = dict(config.hydra.runtime.choices)
        if one_run:
            refuse_sweep(config.hydra.sweeper, overrides)
        with open_dict(config):
            del config["hydra"]
        return plain(config, chosen)


def refuse_sweep(sweeper: Any, overrides: Iterable[str]) -> None:
    """Raise UserError where one run is asked for and the file of an experiment has a sweep of its own
    (`hydra.sweeper.params`), unless `overrides` have one value for every key of it."""
    typed = {text.lstrip("+~").partition("=")[0] for text in overrides}
    left = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items() if key not in typed]
    if left:
        values = [(o, next(o.sweep_string_iterator()) if o.is_sweep_override() else o.value()) for o in parsed(left)]
        one = " ".join(f"{override.key_or_group}={value}" for override, value in values)
        name = next((text for text in overrides if text.lstrip("+").partition("=")[0] in APPENDED), "the experiment")
        raise UserError(
            f"{name} is a sweep over {' '.join(left)}: add -m to run it, or choose one run of it, such as {one}"
        )


def searched(config_dirs: Sequence[Path]) -> list[str]:
    """What adds folders of yaml files to those of locallearn. Raises UserError for a file that these would hide."""
    if not config_dirs:
        return []
    files: dict[Path, Path] = {file.relative_to(conf_dir()): file for file in conf_dir().glob("*/*.yaml")}
    for folder in config_dirs:
        for file in sorted(folder.glob("*/*.yaml")):
            if (earlier := files.setdefault(file.relative_to(folder), file)).resolve() != file.resolve():
                raise UserError(f"{file} has the name of {earlier}, which would hide it: give it another name")
    places = ",".join(quoted(f"file://{folder.resolve()}") for folder in config_dirs)
    return [f"hydra.searchpath=[{places}]"]


def multirun(overrides: Sequence[str], config_dirs: Sequence[Path]) -> tuple[str, dict[str, list[str]], int, str]:
    """Of a multirun: `out`, the keys that vary (on the command line or in `hydra.sweeper.params` of a yaml) and their
    values, how many runs there are, and the launcher. Raises what composing raises."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("config", [*overrides, *searched(config_dirs)], RunMode.MULTIRUN)
        params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
        last = {o.get_key_element(): o for o in parsed([*params, *config.hydra.overrides.task], loader)}.values()
        varies = {
            override.key_or_group: list(override.sweep_string_iterator())
            for override in last
            if override.is_sweep_override() and override.is_discrete_sweep()
        }
        launcher = str(config.hydra.runtime.choices["hydra/launcher"])
        return paths.written(str(config.out)), varies, math.prod(map(len, varies.values())), launcher


def for_every_choice(overrides: Sequence[str]) -> dict[str, str]:
    """The overrides of a multirun as Hydra takes them: `model.width=16` beside `model=mlp,rnn` is no key of the default
    model, against which Hydra would check it; whether a choice has it is checked when its run begins."""
    varies = set(swept(overrides)) & set(GROUPS)
    own = [text for text in overrides if text.partition("=")[0].partition(".")[0] in varies]
    return {text: f"++{text}" for text in own if "." in text.partition("=")[0]}


def swept(overrides: Sequence[str]) -> list[str]:
    """The keys among overrides that have several values."""
    return [override.key_or_group for override in parsed(overrides) if override.is_sweep_override()]


def combinations(overrides: Sequence[str]) -> list[tuple[list[str], str]]:
    """The overrides of each run that `-m` would make of these, and what of them varies, as text."""
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_sweep_override()
        else [o.input_line]
        for o in parsed(overrides)
    ]
    varies = [len(each) > 1 for each in values]
    return [
        (list(one), " ".join(text for text, varied in zip(one, varies, strict=True) if varied))
        for one in itertools.product(*values)
    ]


def quoted(text: str) -> str:
    """A text in the grammar of overrides: any characters, none of which means anything."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # for OmegaConf
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return "'" + re.sub(r"(\\+)$", r"\1\1", text) + "'"
