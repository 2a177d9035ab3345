"""Options: the fields of a dataclass, or the keywords of a function, whose annotations say what may be set, as in
`weight: Annotated[float, Ge(0)] = 0.3`. Values are checked against them with one sentence instead of a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, ParamSpec, Self, TypeVar

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt, MaxLen, MinLen, MultipleOf

from locallearn.errors import UserError, did_you_mean

SHOWN = 200
"""Characters of a value in a sentence."""
_WORDS = {
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("a text", "texts"),
    bool: ("true or false", "true or false"),
    type(None): ("null", "null"),
}
_RULES: dict[type, tuple[Callable[[Any, Any], bool], str]] = {
    Ge: (lambda value, rule: value >= rule.ge, "of at least {0.ge}"),
    Gt: (lambda value, rule: value > rule.gt, "above {0.gt}"),
    Le: (lambda value, rule: value <= rule.le, "at most {0.le}"),
    Lt: (lambda value, rule: value < rule.lt, "below {0.lt}"),
    MultipleOf: (lambda value, rule: value % rule.multiple_of == 0, "divisible by {0.multiple_of}"),
    MinLen: (lambda value, rule: len(value) >= rule.min_length, "that is not empty"),
    MaxLen: (lambda value, rule: len(value) <= rule.max_length, "of at most {0.max_length} characters"),
}
_P = ParamSpec("_P")
_R = TypeVar("_R")


class OneOf(NamedTuple):
    """An annotation: the value must be one of these, such as the keys of the table that it is looked up in."""

    names: Collection[Any]


class Options:
    """The base of a dataclass of options, which are checked however it is built.

    `_group` is what stands before their names in a sentence. A class that overrides `__post_init__`, to check what two
    options allow together, calls this one first. Raises UserError."""

    _group: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, hint in with_rules(type(self)).items():
            convert(getattr(self, name), hint, f"{self._group}.{name}".lstrip("."))


class CommandOptions(Options):
    """The options of a command, which stand as NAME=VALUE among the settings of a run."""

    @classmethod
    def names(cls) -> list[str]:
        return list(fields_of(cls))

    @classmethod
    def described(cls) -> str:
        """What the docstring says of each, with its default: the lines of a help page."""
        defaults = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
        lines = re.findall(r"^ +(\w+)  +(\S.*)$", cls.__doc__ or "", re.MULTILINE)
        return "".join(f"  {f'{name}={defaults[name]}':<18} {text}\n" for name, text in lines if name in defaults)

    @classmethod
    def parse(cls, words: Iterable[str]) -> tuple[Self, list[str]]:
        """The options among the words of a command line, and the other words. Raises UserError."""
        fields = fields_of(cls)
        pairs = {word: word.partition("=")[::2] for word in words}
        own = {name: _plain(text, fields[name][0]) for name, text in pairs.values() if name in fields}
        return cls(**checked(cls, own, "")), [word for word, (name, _) in pairs.items() if name not in fields]


def within_ranges(group: str) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Let a function refuse keywords that their annotations do not allow. Raises UserError."""

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        rules = with_rules(function)

        @functools.wraps(function)
        def checking(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            for name, hint in rules.items():
                if name in kwargs:
                    convert(kwargs[name], hint, f"{group}.{name}")
            return function(*args, **kwargs)

        return checking

    return decorate


def fields_of(target: Callable[..., Any]) -> Mapping[str, tuple[Any, bool]]:
    """The options of a dataclass or a function: name -> (annotation, has a default)."""
    return _fields(target)


@functools.lru_cache(512)
def _fields(target: Any) -> Mapping[str, tuple[Any, bool]]:
    hints = typing.get_type_hints(target, include_extras=True)
    fields = {
        p.name: (hints.get(p.name, Any), p.default is not p.empty)
        for p in inspect.signature(target).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    }
    return types.MappingProxyType(fields)


def with_rules(target: Callable[..., Any]) -> dict[str, Any]:
    """The annotations that say more than a type."""
    return {name: hint for name, (hint, _) in fields_of(target).items() if has_rule(hint)}


def has_rule(hint: Any) -> bool:
    """Whether an annotation says more than a type."""
    return typing.get_origin(hint) in (Annotated, Literal) or any(map(has_rule, typing.get_args(hint)))


def takes_function(hint: Any) -> bool:
    """Whether an annotation allows a function."""
    return Callable in (typing.get_origin(hint), *map(typing.get_origin, typing.get_args(hint)))


def checked(target: Callable[..., Any], values: Mapping[str, Any], where: str, supplied: Collection[str] = ()) -> dict:
    """Options `values` for `target`, each as it is annotated. `supplied` names the arguments that the caller has.

    Raises UserError for an unknown key, a missing one and a wrong value; `where` is the group's name.
    """
    fields = {name: field for name, field in fields_of(target).items() if name not in supplied}
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            raise UserError(f"unknown key {prefix}{key}: {did_you_mean(str(key), fields)}known keys are {known}")
    for name, (_, has_default) in fields.items():
        if name not in values and not has_default:
            raise UserError(f"{prefix}{name} is missing: give it a value")
    return {name: convert(value, fields[name][0], prefix + name) for name, value in values.items()}


def convert(value: Any, hint: Any, where: str, wanted: Any = None) -> Any:
    """`value` as the annotation `hint`, or a UserError that says what is allowed. Whole numbers pass as floats.

    wanted  the annotation that the sentence describes, if that is more than `hint`"""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    wanted = wanted or hint
    if hint is Any:
        return value
    if origin is Annotated:
        converted = convert(value, arguments[0], where, wanted)
        if all(_holds(converted, rule) for rule in _rules(hint)):
            return converted
    elif origin is Literal:
        if any(value == word and type(value) is type(word) for word in arguments):
            return value
    elif origin in (typing.Union, types.UnionType):
        for choice in arguments:
            try:
                return convert(value, choice, where)
            except UserError:
                if _contains(choice, value):
                    raise  # one of its items is wrong, and the sentence says which
    elif origin in (list, tuple) and isinstance(value, list | tuple):
        items = [convert(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value)]
        return items if origin is list else tuple(items)
    elif origin is dict and isinstance(value, Mapping):
        keys = {key: str(key) if arguments[0] is str else convert(key, arguments[0], f"{where}: key") for key in value}
        return {keys[key]: convert(item, arguments[1], f"{where}.{key}") for key, item in value.items()}
    elif dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return hint(**checked(hint, value, where))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:  # whole numbers may be larger than any float
            raise UserError(f"{where}={_shown(value)}: must be a finite number")
        return float(value)
    elif origin is Callable and callable(value):
        return value
    elif hint in (int, str, bool, type(None)) and type(value) is hint:
        if hint is int and not -(2**63) <= value < 2**63:
            raise UserError(f"{where}={_shown(value)}: must be a whole number of 64 bits, less than 9.2e18")
        return value
    close = did_you_mean(value, names_in(wanted)) if isinstance(value, str) else ""
    raise UserError(f"{where}={_shown(value)}: {close}must be {described(wanted)}")


def _plain(text: str, hint: Any) -> int | float | str:
    """A text as the number that it is, unless a text is wanted."""
    if str not in (hint, *typing.get_args(hint)):
        for kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(text)
    return text


def _contains(hint: Any, value: Any) -> bool:
    """Whether a value is of the list or mapping that is wanted, whatever is in it."""
    kind = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    if typing.get_origin(kind) in (list, tuple):
        return isinstance(value, list | tuple)
    return isinstance(value, Mapping) and (typing.get_origin(kind) is dict or dataclasses.is_dataclass(kind))


def _rules(hint: Any) -> Iterator[Any]:
    """What an annotation demands beside the type; metadata that others read is left to them."""
    for metadata in typing.get_args(hint)[1:]:
        for rule in metadata if isinstance(metadata, GroupedMetadata) else [metadata]:
            if type(rule) in (OneOf, *_RULES):
                yield rule


def _holds(value: Any, rule: Any) -> bool:
    return value in rule.names if isinstance(rule, OneOf) else _RULES[type(rule)][0](value, rule)


def names_in(hint: Any) -> list[str]:
    """The words among which an annotation lets choose."""
    if typing.get_origin(hint) is Literal:
        return [word for word in typing.get_args(hint) if isinstance(word, str)]
    own = [name for rule in typing.get_args(hint) if isinstance(rule, OneOf) for name in map(str, rule.names)]
    return own + [name for part in typing.get_args(hint) for name in names_in(part)]


def _shown(value: Any) -> str:
    """A value as part of a sentence: one line, not too long."""
    if value is None or value is True or value is False:
        return {True: "true", False: "false", None: "null"}[value]
    if type(value) is int and value.bit_length() > 1000:  # Python refuses to write down the longest
        return "a number of hundreds of digits"
    text = " ".join(str(value).split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def described(hint: Any) -> str:
    """What an annotation allows, in words, such as `a number of at least 0`."""
    return either(alternatives(hint))


def alternatives(hint: Any, several: bool = False) -> list[str]:
    """The alternatives of an annotation in words; those of the items of a list are `several`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _limited(either(alternatives(arguments[0], several)), [*_rules(hint)])
    if origin is Literal:
        return [str(word) for word in arguments]
    if origin in (typing.Union, types.UnionType):
        return [words for choice in arguments for words in alternatives(choice, several)]
    if origin in (list, tuple):
        return [f"{'lists' if several else 'a list'} of {either(alternatives(arguments[0], True))}"]
    if origin is dict:
        return [f"a mapping of {' to '.join(either(alternatives(part, True)) for part in arguments)}"]
    if dataclasses.is_dataclass(hint):
        return ["a mapping"]
    if origin is Callable:
        return ["functions" if several else "a function"]
    return [_WORDS[hint][several] if hint in _WORDS else getattr(hint, "__name__", str(hint))]


def _limited(kind: str, rules: list[Any]) -> list[str]:
    """The words of a type with those of its rules."""
    match rules:
        case [OneOf(names)]:
            return [str(name) for name in names]
        case [Ge(low), Le(high)]:
            return [f"{kind} from {low} to {high}"]
        case [MinLen(low), MaxLen(high)]:
            return [f"{kind} of {low} to {high} characters"]
    return [f"{kind} {' and '.join(_RULES[type(rule)][1].format(rule) for rule in rules)}".rstrip()]


def either(words: Iterable[str]) -> str:
    """`a, b or c`; with a comma before `or` where one of them is a phrase."""
    *most, last = words
    comma = "," if any(len(word.split()) > 3 for word in [*most, last]) else ""
    return f"{', '.join(most)}{comma} or {last}" if most else last
