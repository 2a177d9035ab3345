"""Which settings decide what a run learns, in which of them runs differ, and how a group is called and sorted."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from locallearn.config.settings import WHERE
from locallearn.report.numbers import is_finite
from locallearn.runs.read import Run

BACKPROP = "backprop"
_WHERE = (*WHERE, "seed", "probe", "callback", "evaluate_every")
_WHERE_KEYS = (*_WHERE, "dry_run", "allow", "data.root")
"""Settings that say where a run runs and what is looked at, not what is learned."""
_METHOD = (
    *("strategy", "objective", "auxiliary", "optim", "blocks", "balance", "runtime", "micro_batches"),
    *("precision", "channels_last", "compile", "deterministic"),
)
"""In these a run and the backprop run that it is compared with may differ: they are how, not what is learned."""


def settings_of(run: Run) -> dict[str, Any]:
    """What decides what a run learns: the choice of each group, then every option."""
    options = {key: value for key, value in run.config.items() if key != "seed" and not is_where(key)}
    return {group: name for group, name in run.names.items() if group not in _WHERE} | options


def is_where(key: str) -> bool:
    """Whether a setting says where a run runs or what is looked at, not what is learned."""
    return key in _WHERE_KEYS or key.partition(".")[0] in _WHERE


def differing(runs: Sequence[Run], settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys in which runs differ. An option of a group counts if it differs between runs with the same choice of that
    group: `dni` has options that `dgl` has not, and that says no more than their names."""
    values: dict[tuple[str, str, str], list[str]] = {}
    runs_with: dict[tuple[str, str], int] = {}
    for run, own in zip(runs, settings, strict=True):
        for choice in {*run.names.items(), ("", "")}:
            runs_with[choice] = runs_with.get(choice, 0) + 1
        for key, value in own.items():
            group = key.partition(".")[0]
            group = group if "." in key and group in run.names else ""
            values.setdefault((key, group, run.names.get(group, "")), []).append(written(value))
    varying = {
        key for (key, group, choice), own in values.items() if len(set(own)) > 1 or len(own) < runs_with[group, choice]
    }
    order = ["strategy", "objective", "auxiliary", "model", "data"]
    return sorted(varying, key=lambda k: (order.index(k) if k in order else len(order), k))


def common(settings: Sequence[Mapping[str, Any]], differs: Sequence[str]) -> dict[str, Any]:
    """What all runs have and share; the classes behind the names say nothing more."""
    first = settings[0] if settings else {}
    shared = [key for key in first if key not in differs and all(key in other for other in settings)]
    return {key: first[key] for key in shared if not key.endswith("._target_")}


def label(settings: Mapping[str, Any], run: Run) -> str:
    """What a group is called: the names of its choices, and KEY=VALUE for its options."""
    words = [str(v) if k in run.names else f"{k}={text(v)}" for k, v in settings.items()]
    return ", ".join(words) or run.strategy or "all runs"


def written(value: Any) -> str:
    """The same text for the same value: 1 and 1.0 are one learning rate."""
    if isinstance(value, Mapping):
        return json.dumps({str(key): written(item) for key, item in value.items()}, sort_keys=True)
    return str(float(value)) if is_finite(value) else json.dumps(value, sort_keys=True, default=str)


def text(value: Any) -> str:
    """A value as a command line takes it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, default=str, ensure_ascii=False).replace('"', "")


def order(settings: Mapping[str, Any], differs: Sequence[str]) -> list[Any]:
    """Groups of one task stand together, backprop first among them; numbers in their order."""
    keys = [key for key in differs if not is_method(key)] + [key for key in differs if is_method(key)]
    ranks: list[Any] = []
    for key in keys:
        value = settings.get(key)
        number = value if is_finite(value) else _number_in(str(value))
        ranks.append((value != BACKPROP, number is None, number or 0, str(value)))
    return ranks


def _number_in(text: str) -> float | None:
    return float(text) if re.fullmatch(r"-?\d+(\.\d*)?([eE]-?\d+)?", text) else None


def is_method(key: str) -> bool:
    return key.partition(".")[0] in _METHOD
