"""Python's own objects beside yaml: which of the arguments of `train` are some, and what a run folder says of them.

A folder holds no code. Of an object that yaml could have made it keeps the yaml, and of any other its name, its file
and a hash of its source: enough to tell whether the object that is given to `resume` is still the same.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from locallearn.config.registry import flat
from locallearn.engine.torch_optim import TorchOptim
from locallearn.errors import UserError

OBJECT, FILE, SOURCE, STRUCTURE = "_object_", "_file_", "_source_", "_structure_"
"""Keys of an object in config.yaml: its class or function, where that is written, and SHA-256 sums of the source and,
of a module, of what it prints as. Its options stand beside them."""
CALLED = {"callback": "callbacks", "data.task": "task"}
"""Groups, and an option, that have another name as arguments of Python."""
APART = ("objective", "auxiliary")
"""Parts of a strategy that are groups of their own."""
ELSEWHERE = (*APART, "teacher")
"""Fields that other settings fill."""
LIBRARIES = {*sys.stdlib_module_names, "torch", "locallearn"}
"""Packages whose versions the manifest has: their source says nothing more."""


def is_plain(value: Any) -> bool:
    """Whether yaml can hold a value."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str | int) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | os.PathLike)


def name_of(value: Any) -> str:
    """What an object is called in titles and in the names of run folders."""
    kind = _kind(value)
    name = kind.__name__.lower() if kind.__module__.startswith("locallearn.") else kind.__name__
    return re.sub(r"\W", "", name) or "object"


def described(value: Any, parts: Sequence[Any] = ()) -> dict[str, Any]:
    """What config.yaml says of an object: yaml that makes it again, or its name, file, source (that of its `parts`, if
    it has some) and options."""
    kind, options = _kind(value), options_of(value)
    if target := _target(value):
        return {"_target_": target, **options}
    facts = {OBJECT: f"{kind.__module__}.{kind.__qualname__}", FILE: _file(kind), SOURCE: _source(parts or value)}
    if isinstance(value, nn.Module):
        facts[STRUCTURE] = _sum(re.sub(r" at 0x[0-9a-f]+", "", repr(value)))
    return facts | options


def options_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """The options in the configuration of a group, without what names its target or object."""
    return {key: value for key, value in config.items() if not re.fullmatch(r"_[a-z]+_", key)}


def marks(config: Mapping[str, Any], above: str = "") -> dict[str, Mapping[str, Any]]:
    """What stands for objects in a configuration, by place."""
    found: dict[str, Mapping[str, Any]] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found |= {f"{above}{key}": value} if OBJECT in value else {}
            found |= marks(value, f"{above}{key}.")
    return found


def missing(places: Mapping[str, Mapping[str, Any]]) -> UserError:
    """The sentence for a run whose objects were not given."""
    known = [f"{place} is {_written(mark)}" for place, mark in places.items()]
    given = ", ".join(f"{group}=..." for group in groups_of(places))
    return UserError(
        f"{' and '.join(known)}, which no run folder holds: give what was given to train, from Python, as in "
        f"locallearn.resume(RUN, {given}), or load, evaluate or probe in place of resume"
    )


def groups_of(places: Iterable[str]) -> list[str]:
    """The arguments by which the objects at some places are given."""
    groups = dict.fromkeys(place if place in CALLED else place.partition(".")[0] for place in places)
    return [CALLED.get(group, group) for group in groups if not (group in APART and "strategy" in groups)]


def compared(saved: Mapping[str, Any], now: Mapping[str, Any], given: Iterable[str]) -> list[str]:
    """What has changed in the source of the `given` groups of a run since it was `saved`, in words.

    Raises UserError for another class or other options: that would be another run. Changed source is not refused, for a
    run often has to go on because of a mistake in it that was mended.
    """
    changed = []
    for group in dict.fromkeys(place.partition(".")[0] for place in given):
        before, here = flat(saved.get(group) or {}), flat(now.get(group) or {})
        for key in before | here:
            name, _, last = key.rpartition(".")
            was, is_now = before.get(key), here.get(key)
            if last == OBJECT:  # a module may be the script here, and imported there
                was, is_now = (str(text).rpartition(".")[2] for text in (was, is_now))
            if was == is_now or last == FILE:
                continue
            what = f"{group}{f'.{name}' if name else ''}"
            if last == SOURCE and was and is_now:
                changed.append(f"the source of {what} has changed")
                continue
            raise UserError(
                f"{group}.{key} was {_short(was)} and is {_short(is_now)}: a run goes on only with what it began with; "
                f"give the same {what}, or start a new run"
            )
    return changed


def _written(mark: Mapping[str, Any]) -> str:
    file = mark.get(FILE)
    return f"the object {mark[OBJECT]}" + (f" of {file}" if file else "")


def _short(value: Any) -> str:
    return "not there" if value is None else f"{value!s:.80}"


def _kind(value: Any) -> Any:
    """The class or function that an object is known by."""
    if isinstance(value, functools.partial):
        return _kind(value.func)
    if isinstance(value, TorchOptim):
        return value.optimizer
    return value if inspect.isclass(value) or inspect.isroutine(value) else type(value)


def _target(value: Any) -> str | None:
    """The `_target_` that makes an object, where yaml may name its class."""
    kind = _kind(value)
    ours = kind.__module__.startswith("locallearn.") and is_dataclass(value) and not inspect.isclass(value)
    theirs = isinstance(value, TorchOptim) and kind.__module__.startswith("torch.optim.")
    return f"{kind.__module__}.{kind.__qualname__}" if (ours or theirs) and "<" not in kind.__qualname__ else None


def options_of(value: Any) -> dict[str, Any]:
    """The options of an object, as yaml would have them."""
    if isinstance(value, functools.partial):
        return {name: _value(each) for name, each in value.keywords.items()}
    if not is_dataclass(value) or isinstance(value, type):
        return {}
    return {f.name: _value(getattr(value, f.name)) for f in fields(value) if f.init and f.name not in ELSEWHERE}


def _value(value: Any) -> Any:
    if isinstance(value, Mapping) and is_plain(value):
        return {str(key): _value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if is_plain(value) else described(value)


def _file(kind: Any) -> str | None:
    try:
        return inspect.getsourcefile(kind)
    except (TypeError, OSError):
        code = next(iter(_functions(kind)), None)
        return code.__code__.co_filename if code is not None else None


def _source(value: Any) -> str | None:
    """A sum over the source of what an object is made of: its class and those above it, of a module also those of its
    parts. None where none can be read, or all of it is a library's."""
    values = value.modules() if isinstance(value, nn.Module) else value if isinstance(value, Sequence) else [value]
    kinds = {_kind(each): None for each in values if not isinstance(each, str)}
    own = [each for kind in kinds for each in (inspect.getmro(kind) if inspect.isclass(kind) else [kind])]
    texts = {_text(kind) for kind in own if str(getattr(kind, "__module__", "")).partition(".")[0] not in LIBRARIES}
    known = sorted(filter(None, texts))
    return _sum("\n".join(known)) if known else None


def _text(kind: Any) -> str:
    try:
        return inspect.getsource(kind)
    except (TypeError, OSError):  # a class of a notebook has no file, but its functions have
        texts = []
        for function in _functions(kind):
            try:
                texts.append(inspect.getsource(function))
            except (TypeError, OSError):
                continue
        return "\n".join(texts)


def _functions(kind: Any) -> Iterator[Callable[..., Any]]:
    if inspect.isclass(kind):
        yield from (each for each in vars(kind).values() if inspect.isfunction(each))


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def class_of(value: Any) -> tuple[type, dict[str, Any]] | None:
    """The class that an object is, or that it is a `partial` of, and the options that are given; None for another."""
    partial = isinstance(value, functools.partial)
    kind, options = (value.func, value.keywords) if partial else (value, {})
    return (kind, options) if inspect.isclass(kind) and not getattr(value, "args", ()) else None


def is_optimizer(value: Any) -> bool:
    """Whether an object is a class of PyTorch's optimizers, or a partial one with some of its arguments."""
    of = class_of(value)
    return of is not None and issubclass(of[0], Optimizer)
