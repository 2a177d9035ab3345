"""One run, checked: every object that can be made without reading data or building a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from locallearn.config import given, unread
from locallearn.config.explicit import explicit
from locallearn.config.objects import OBJECT
from locallearn.config.record import RecordSettings
from locallearn.config.settings import GROUPS, SEVERAL, Settings
from locallearn.config.targets import Experiment, instantiate
from locallearn.errors import UserError
from locallearn.models.bottleneck import NONE
from locallearn.options import checked

NO_BOTTLENECK = {"_target_": "locallearn.models.bottleneck.Bottleneck"}


def experiment(
    config: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    folders: Sequence[Path] = (),
    varies: Mapping[str, Sequence[str]] | None = None,
    objects: Mapping[str, Any] = MappingProxyType({}),
) -> Experiment:
    """Check a plain configuration and make its objects. Raises UserError; nothing is written and nothing is built.

    names      the chosen name of each group
    overrides  what the user has set; what no object reads is refused
    folders    the user's own yaml files
    varies     for a run of a sweep: the keys that the sweep varies, and their values
    objects    Python's own objects by place, such as `model` or `optim.schedule`, instead of what `config` has there
    """
    given.refuse_missing(config, objects)
    overrides = list(overrides)
    plain = {key: value for key, value in config.items() if key not in GROUPS}
    settings = Settings(**checked(Settings, plain, ""))
    optional = ("probe", "callback", "record")
    config = {"bottleneck": NO_BOTTLENECK, **config}  # runs of older versions do not say it
    groups = {group: _mapping(config, group) for group in GROUPS if group not in optional}
    groups |= {group: config.get(group) or {} for group in optional}
    parts = _parts(groups, names or {}, objects, settings.allow)
    config = given.told(config, objects, parts)
    record = RecordSettings.parse(groups["record"], own_sinks(groups["record"], settings.allow))
    chosen = {group: (names or {}).get(group) or _name(groups[group]) for group in GROUPS}
    chosen |= given.names_of(objects, parts) | {group: "+".join(parts[group]) or "none" for group in SEVERAL}
    chosen["record"] = "+".join(record.sinks) or "jsonl"
    exp = Experiment(
        config={key: value for key, value in config.items() if key not in ("allow", "dry_run")},
        settings=settings,
        strategy=parts["strategy"],
        optim=parts["optim"],
        source=parts["data"],
        model=replace(parts["model"], blocks=settings.blocks),
        runtime=parts["runtime"],
        probes=parts["probe"],
        record=record,
        names=chosen,
        overrides=overrides,
        explicit=explicit(overrides, config, chosen, folders, varies).beside(given.names(objects)),
        objects=objects,
        callbacks=parts["callback"],
    )
    exp.explicit.refuse(unread.in_settings(exp, folders))
    _check_evaluations(exp)
    if exp.runtime.processes > 1 and (name := next((n for n, probe in exp.probes.items() if probe.follows), None)):
        raise UserError(f"probe.{name} watches every step of training in one process: choose runtime=serial")
    if exp.model.bottleneck != NONE and not exp.strategy.priced:
        raise UserError(
            f"bottleneck={chosen['bottleneck']} charges gradients that pass back through a unit exactly once, which "
            f"those of strategy={chosen['strategy']} do not: choose one such as backprop, dgl, "
            "deep_supervision, fa or dfa, or bottleneck=none"
        )
    if unread.taught(exp) and settings.init.teacher is None:
        raise UserError(f"objective={chosen['objective']} learns from a teacher: give init.teacher=RUN, a finished run")
    return exp


def _parts(
    groups: Mapping[str, Mapping[str, Any]], names: Mapping[str, str], objects: Mapping[str, Any], allow: Iterable[str]
) -> dict[str, Any]:
    """What each group is: the object that was given, or what its yaml describes."""
    groups = given.with_options(groups, objects)

    def part(group: str, **supplied: Any) -> Any:
        return given.part(group, objects.get(group), groups[group], allow, **supplied)

    parts = {group: part(group) for group in ("auxiliary", "optim", "data", "runtime")}
    parts["objective"] = part("objective", teacher=None)
    parts["strategy"] = part("strategy", objective=parts["objective"], auxiliary=parts["auxiliary"])
    parts["bottleneck"] = part("bottleneck")
    build = given.builder(objects.get("model"), groups["model"], allow)
    parts["model"] = replace(build, bottleneck=parts["bottleneck"])
    for group in SEVERAL:
        chosen_in_yaml = described(group, groups[group], names.get(group), allow)
        parts[group] = chosen_in_yaml | given.several(group, objects.get(group), allow)
    return parts


def _check_evaluations(exp: Experiment) -> None:
    """Raise UserError for evaluations at moments at which the weights are not all there."""
    settings = exp.settings
    if settings.evaluations.unit == "it" and exp.runtime.staleness:
        raise UserError(
            f"evaluate_every={settings.evaluate_every}: an evaluation inside an epoch would wait for the feedback that "
            f"runtime.staleness={exp.runtime.staleness} lets come late: give epochs, such as 1ep"
        )


def described(group: str, config: Mapping[str, Any], name: str | None, allow: Iterable[str]) -> dict[str, Any]:
    """The probes or callbacks by name. A yaml of the user's without a `@package` line stands alone, under the name of
    its file."""
    if "_target_" in config:
        config = {name or _name(config): config}
    of_yaml = {str(key): _mapping(config, key) for key in config}
    return {key: instantiate(each, f"{group}.{key}", allow) for key, each in of_yaml.items() if OBJECT not in each}


def own_sinks(config: Mapping[str, Any], allow: Iterable[str]) -> dict[str, Any]:
    """The sinks of the user's own classes by name: what has a `_target_`."""
    targets = {str(key): part for key, part in config.items() if isinstance(part, Mapping) and "_target_" in part}
    return {name: instantiate(part, f"record.{name}", allow) for name, part in targets.items()}


def _mapping(config: Mapping[str, Any], group: str) -> Mapping[str, Any]:
    value = config.get(group)
    if not isinstance(value, Mapping):
        raise UserError(f"{group} is missing: choose one, as in {group}=NAME; `locallearn list` shows the names")
    return value


def _name(config: Mapping[str, Any]) -> str:
    """A name for a group's choice when only its target is known."""
    target = config.get("_target_")
    return str(target).rpartition(".")[2].lower() if target else "none"
