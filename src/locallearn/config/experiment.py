"""One run, checked: every object that can be made without reading data or building a network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.auxiliary import Auxiliary
from locallearn.config import unread
from locallearn.config.explicit import explicit
from locallearn.config.record import RecordSettings
from locallearn.config.settings import GROUPS, Settings
from locallearn.config.targets import Experiment, instantiate, model_builder
from locallearn.errors import UserError
from locallearn.objectives import Objective
from locallearn.options import checked
from locallearn.probes import Probe


def experiment(
    config: Mapping[str, Any],
    names: Mapping[str, str] | None = None,
    overrides: Iterable[str] = (),
    folders: Sequence[Path] = (),
    varies: Mapping[str, Sequence[str]] | None = None,
) -> Experiment:
    """Check a plain configuration and make its objects. Raises UserError; nothing is written and nothing is built.

    names      the chosen name of each group
    overrides  what the user has set; what no object reads is refused
    folders    the user's own yaml files
    varies     for a run of a sweep: the keys that the sweep varies, and their values
    """
    overrides = list(overrides)
    plain = {key: value for key, value in config.items() if key not in GROUPS}
    settings = Settings(**checked(Settings, plain, ""))
    optional = ("probe", "record")
    groups = {group: _mapping(config, group) for group in GROUPS if group not in optional}
    groups |= {group: config.get(group) or {} for group in optional}
    allow = settings.allow
    auxiliary: Auxiliary = instantiate(groups["auxiliary"], "auxiliary", allow)
    objective: Objective = instantiate(groups["objective"], "objective", allow)
    strategy = instantiate(groups["strategy"], "strategy", allow, objective=objective, auxiliary=auxiliary)
    probes = probes_of(groups["probe"], (names or {}).get("probe"), allow)
    record = RecordSettings.parse(groups["record"], own_sinks(groups["record"], allow))
    chosen = {group: (names or {}).get(group) or _name(groups[group]) for group in GROUPS}
    chosen |= {"probe": "+".join(probes) or "none", "record": "+".join(record.sinks) or "jsonl"}
    exp = Experiment(
        config={key: value for key, value in config.items() if key not in ("allow", "dry_run")},
        settings=settings,
        strategy=strategy,
        optim=instantiate(groups["optim"], "optim", allow),
        source=instantiate(groups["data"], "data", allow),
        model=model_builder(groups["model"], allow),
        runtime=instantiate(groups["runtime"], "runtime", allow),
        probes=probes,
        record=record,
        names=chosen,
        overrides=overrides,
        explicit=explicit(overrides, config, chosen, folders, varies),
    )
    exp.explicit.refuse(unread.in_settings(exp, folders))
    return exp


def probes_of(config: Mapping[str, Any], name: str | None, allow: Iterable[str]) -> dict[str, Probe]:
    """The probes by name. A yaml of the user's without a `@package` line stands alone, under the name of its file."""
    if "_target_" in config:
        config = {name or _name(config): config}
    return {str(key): instantiate(_mapping(config, key), f"probe.{key}", allow) for key in config}


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
