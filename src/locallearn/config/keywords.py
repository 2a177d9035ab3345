"""Keyword arguments of Python as what they are: settings, in the grammar of overrides, and objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from locallearn.config.compose import quoted
from locallearn.config.objects import APART, CALLED, class_of, is_optimizer, is_plain, name_of
from locallearn.config.settings import GROUPS, SEVERAL
from locallearn.data import DataSource
from locallearn.data.objects import ObjectSource, batch_of
from locallearn.errors import UserError
from locallearn.options import fields_of

PLACES = (*(group for group in GROUPS if group != "record"), "optim.schedule", "data.task")
"""The arguments that take objects."""


def parted(settings: Mapping[str, Any], above: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """The objects among settings, by place, and the settings that are numbers, texts, lists and mappings of these."""
    objects: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for key, value in settings.items():
        key = next((group for group, name in CALLED.items() if name == key), key) if not above else key
        path = f"{above}{key}"
        if is_plain(value) or (path not in PLACES and not isinstance(value, Mapping)):
            plain[key] = value
        elif isinstance(value, Mapping) and path != "data" and any(place.startswith(f"{path}.") for place in PLACES):
            deeper, rest = parted(value, f"{path}.")
            objects |= deeper
            plain |= {key: rest} if rest else {}
        elif path in SEVERAL and isinstance(value, list | tuple):
            names = [each for each in value if isinstance(each, str)]
            objects[path] = [each for each in value if not isinstance(each, str)]
            plain |= {key: names} if names else {}
        elif path in PLACES:
            objects[path] = value
        else:
            plain[key] = value
    return objects, plain


def composed(objects: Mapping[str, Any], plain: Mapping[str, Any]) -> list[str]:
    """What must be composed for objects to stand on: the yaml with the options that some of them take beside them.

    Raises UserError for settings that an object leaves unread."""
    if "data.task" in (*objects, *plain) and "data" not in objects:
        raise UserError("task= is for data given from Python, and data=NAME has a task of its own: leave task= out")
    words = []
    for place, value in objects.items():
        if place == "data" and not isinstance(value, DataSource) and class_of(value) is None:
            known = fields_of(ObjectSource).keys() - {"parts"}
            for key in plain:
                if key.startswith("data.") and key.removeprefix("data.") not in known:
                    raise UserError(f"{key} is not an option of data given from Python: {', '.join(sorted(known))} are")
            words += ["data=_objects", *_batch_size(value, plain)]
            continue
        if place == "optim" and is_optimizer(value):
            words.append("optim=torch")
            own = getattr(value, "keywords", {})
            if twice := [key for key in plain if key.removeprefix("optim.") in own]:
                raise UserError(f"{twice[0]} is given twice, as a setting and in optim={name_of(value)}: leave one out")
            continue
        if "." in place:
            continue
        unread = [key for key in (*plain, *objects) if key.startswith(f"{place}.")]
        if place == "strategy" and class_of(value) is None:
            unread += [key for key in (*plain, *objects) if key.partition(".")[0] in APART]
        if unread:
            raise UserError(
                f"{unread[0]} is not read beside {place}={name_of(value)}(...), which has its options: set it there"
            )
    return words


def _batch_size(data: Any, plain: Mapping[str, Any]) -> list[str]:
    """That of a loader, which says it. Raises UserError where another one is set."""
    size = batch_of(data)
    if size is None or plain.get("batch_size") == size:
        return []
    if "batch_size" in plain:
        raise UserError(
            f"batch_size={plain['batch_size']}, but the loader given as data makes batches of {size}: leave it out"
        )
    return [f"batch_size={size}"]


def overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keyword settings as Hydra overrides."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if not re.fullmatch(r"\+{0,2}[\w./-]+", path):
            raise UserError(f"{path!r} is not the name of a setting: give a keyword such as epochs=2, or 'optim.lr'")
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            yield from overrides(value, f"{path}.")
        else:
            yield f"{path}={text_of(value, path)}"


def text_of(value: Any, path: str) -> str:
    """One value in the grammar of overrides. A text is a text, whatever it looks like."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(text_of(item, path) for item in value) + "]"
    if isinstance(value, Mapping):
        if odd := [k for k in value if not isinstance(k, int) and not re.fullmatch(_WORD, str(k))]:
            raise UserError(f"{path}={value!r}: {odd[0]!r} cannot be a key in it; keys are words or whole numbers")
        return "{" + ",".join(f"{k}:{text_of(item, path)}" for k, item in value.items()) + "}"
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        text = str(value)
        if text == "???":
            raise UserError(f"{path}='???': three question marks stand for a missing value; give another text")
        return text if re.fullmatch(_WORD, text) and text.lower() not in _NOT_TEXTS else quoted(text)
    raise UserError(f"{path}={value!r}: must be a number, a text, true, false, null, or a list or mapping of these")


_WORD = r"[A-Za-z_/][\w./-]*"
_NOT_TEXTS = {"true", "false", "null", "nan", "inf"}
"""Words that mean something else than themselves."""
