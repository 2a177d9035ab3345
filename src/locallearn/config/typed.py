"""Check plain values against type hints, with sentences instead of tracebacks."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from locallearn.errors import UserError, did_you_mean

SHOWN = 200
"""Characters of a value in a sentence."""
_WORDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def fields_of(target: Callable[..., Any]) -> dict[str, tuple[Any, bool]]:
    """The options of a dataclass or a function: name -> (type, has a default)."""
    if inspect.isclass(target) and dataclasses.is_dataclass(target):
        hints = typing.get_type_hints(target)
        missing = dataclasses.MISSING
        return {
            f.name: (hints[f.name], f.default is not missing or f.default_factory is not missing)
            for f in dataclasses.fields(target)
            if f.init
        }
    hints = typing.get_type_hints(target)
    parameters = inspect.signature(target).parameters.values()
    return {
        p.name: (hints.get(p.name, Any), p.default is not p.empty)
        for p in parameters
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }


def checked(target: Callable[..., Any], values: Mapping[str, Any], where: str, given: tuple[str, ...] = ()) -> dict:
    """Options `values` for `target`, each of the declared type. `given` names the arguments that the caller supplies.

    Raises UserError for an unknown key, a missing one and a value of the wrong type; `where` is the group's name.
    """
    fields = {name: field for name, field in fields_of(target).items() if name not in given}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise UserError(f"unknown key {prefix}{key}: {did_you_mean(str(key), fields)}known keys are {known}")
    for name, (_, has_default) in fields.items():
        if name not in values and not has_default:
            raise UserError(f"{prefix}{name} is missing: give it a value")
    return {name: convert(value, fields[name][0], prefix + name) for name, value in values.items()}


def convert(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint`, or a UserError that says what was expected. Whole numbers pass as floats."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return convert(value, choice, where)
            except UserError:
                continue
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        items = [convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    elif origin is dict and isinstance(value, Mapping):
        keys = {key: str(key) if arguments[0] is str else convert(key, arguments[0], f"{where}: key") for key in value}
        return {keys[key]: convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return hint(**checked(hint, value, where))
    elif hint is float and type(value) in (int, float):
        if not abs(value) <= sys.float_info.max:  # whole numbers may be larger than any float
            raise UserError(f"{where}={_shown(value)}: must be a finite number")
        return float(value)
    elif hint in (int, str, bool, type(None)) and type(value) is hint:
        if hint is int and not -(2**63) <= value < 2**63:
            raise UserError(f"{where}={_shown(value)}: must be a whole number of 64 bits, less than 9.2e18")
        return value
    raise UserError(f"{where}={_shown(value)}: must be {_describe(hint)}")


def _shown(value: Any) -> str:
    """A value as part of a sentence: one line, not too long."""
    if value is None or value is True or value is False:
        return {True: "true", False: "false", None: "null"}[value]
    if type(value) is int and value.bit_length() > 1000:  # Python refuses to write down the longest
        return "a number of hundreds of digits"
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(choice) for choice in arguments)
    if origin in (list, tuple):
        return "a list of " + _describe(arguments[0]).removeprefix("a ") + "s"
    if origin is dict or dataclasses.is_dataclass(hint):
        return "a mapping"
    return _WORDS.get(hint, getattr(hint, "__name__", str(hint)))
