"""One truth for defaults: what a yaml of a group gives is what its class or function has, unless it is a variant.

Several yamls may share one target, as resnet20 and resnet56 do: then one of them has the target's defaults, and every
other differs from it in some option.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
GIVEN = {"strategy": {"objective", "auxiliary"}, "objective": {"teacher"}, "data": {"parts"}}
"""Fields that others fill, or Python alone."""


def options(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@cache
def by_target() -> dict[str, list[Path]]:
    """The yamls of every group that build something, by what they build."""
    found = defaultdict(list)
    for path in sorted(CONF.glob("*/*.yaml")):
        if path.parent.name != "study" and (target := options(path).get("_target_")):  # a study's yaml is not options
            found[f"{path.parent.name}: {target}"].append(path)
    return dict(found)


def defaults(target: str) -> dict[str, Any]:
    """The options of a dataclass or a function, with their defaults; those without one are the caller's to give."""
    module, _, name = target.rpartition(".")
    thing = getattr(import_module(module), name)
    if target.startswith("torch.optim."):  # one yaml for them all: what every optimizer has, by its own defaults
        return defaults("locallearn.engine.optim.Optim") | {"lr": None, "weight_decay": None}
    if is_dataclass(thing):
        given = [f for f in fields(thing) if f.init]
        made = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in given}
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in made.items()}  # as yaml
        return {name: value for name, value in listed.items() if value is not MISSING}
    parameters = inspect.signature(thing).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}


@pytest.mark.parametrize("key", by_target())
def test_a_yaml_gives_the_defaults_of_what_it_builds(key: str) -> None:
    group, _, target = key.partition(": ")
    own = {name: value for name, value in defaults(target).items() if name not in GIVEN.get(group, ())}
    differ = {}
    for path in by_target()[key]:
        given = {name: value for name, value in options(path).items() if name != "_target_"}
        assert given.keys() == own.keys(), path
        differ[path.stem] = {name: value for name, value in given.items() if value != own[name]}
    plain = [name for name, differences in differ.items() if not differences]
    assert len(plain) == 1, f"of {target} one yaml has the defaults; they differ in {differ}"


def test_there_is_a_yaml_of_every_group() -> None:
    assert {key.partition(":")[0] for key in by_target()} >= {"strategy", "objective", "auxiliary", "model", "data"} | {
        "optim",
        "runtime",
        "probe",
        "callback",
    }
