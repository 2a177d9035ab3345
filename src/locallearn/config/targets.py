"""Resolve the `_target_` of a group's yaml: our own classes, and packages allowed on this command line, no others."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from locallearn.auxiliary import Auxiliary
from locallearn.contract import Strategy
from locallearn.data import DataSource
from locallearn.engine import Optim
from locallearn.engine.promises import check_class
from locallearn.errors import UserError, did_you_mean
from locallearn.objectives import Objective
from locallearn.options import checked, fields_of
from locallearn.probes import Probe
from locallearn.runtime import Runtime

KINDS: dict[str, type] = {
    "strategy": Strategy,
    "objective": Objective,
    "auxiliary": Auxiliary,
    "optim": Optim,
    "data": DataSource,
    "runtime": Runtime,
    "probe": Probe,
}
"""The class that a group's target must derive from. A `model` is a builder function instead."""
RENAMED = {
    "locallearn.probes.linear.Linear": "locallearn.probes.linear.LinearProbe",
    "locallearn.probes.reconstruction.Reconstruction": "locallearn.probes.reconstruction.ReconstructionProbe",
    "locallearn.probes.similarity.Similarity": "locallearn.probes.similarity.SimilarityProbe",
}
"""Targets by the names that they had when older runs wrote their config.yaml."""


def resolve(path: object, group: str, allow: Iterable[str]) -> Callable[..., Any]:
    """The class or function at a dotted path, if it may be reached and is of its group's kind."""
    return _of_kind(reach(path, group, allow), str(path), group)


def reach(path: object, group: str, allow: Iterable[str]) -> Any:
    """What a dotted path names, if it lies in locallearn or in a package that is allowed. Raises UserError."""
    if not isinstance(path, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", path):
        raise UserError(f"{group}._target_={path!s:.100}: must be the dotted path of a class, as my_package.mine.Mine")
    prefixes = ["locallearn", *allow]
    if not any(path == p or path.startswith(p + ".") for p in prefixes):
        raise UserError(
            f"{group}._target_={path} lies outside locallearn and is not run; if you trust it, allow its package on "
            f"this command line: allow=[{path.split('.')[0]}], or --allow {path.split('.')[0]} for a run folder"
        )
    module_name, _, name = RENAMED.get(path, path).rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise UserError(f"{group}._target_={path}: cannot import {module_name} ({error})") from error
    target = getattr(module, name, None)
    if target is None:
        known = [n for n in vars(module) if not n.startswith("_")]
        raise UserError(
            f"{group}._target_={path}: {module_name} has no {name}; {did_you_mean(name, known)}".rstrip("; ")
        )
    return target


def _of_kind(target: Any, path: str, group: str) -> Callable[..., Any]:
    if group == "model":
        if not inspect.isfunction(target) or not {"image", "classes"} <= inspect.signature(target).parameters.keys():
            raise UserError(f"model._target_={path}: must be a function (image, classes, *, ...) that returns a model")
        if path.startswith("locallearn.") and not target.__module__.startswith("locallearn."):
            raise UserError(f"model._target_={path}: is not a model of locallearn")
        return target
    kind = KINDS[group.partition(".")[0]]
    if not (inspect.isclass(target) and issubclass(target, kind)) or inspect.isabstract(target):
        raise UserError(
            f"{group}._target_={path}: must be a complete class derived from {kind.__module__}.{kind.__name__}"
        )
    return target


def instantiate(config: Mapping[str, Any], group: str, allow: Iterable[str], **supplied: Any) -> Any:
    """Build a group's object from its plain configuration, checked against the fields of its target first.

    `supplied` are arguments of the caller's; those that the target does not declare are left out.
    """
    target = resolve(config.get("_target_"), group, allow)
    supplied = {name: value for name, value in supplied.items() if name in fields_of(target)}
    options = checked(target, {k: v for k, v in config.items() if k != "_target_"}, group, supplied)
    try:
        instance = target(**options, **supplied)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{group}: {error}") from error
    if isinstance(instance, Strategy):
        check_class(instance)
    return instance
