"""How Python's own objects reach the processes of a run: by cloudpickle, through an open file that has no name.

To read a pickle is to run what its writer wants. This one only the process that starts the others can have written: the
file is never in any folder, and they inherit it open. No run folder holds one.
"""

from __future__ import annotations

import functools
import inspect
import mmap
import tempfile
import typing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from typing import Any

from locallearn.errors import UserError, in_one_line


@contextmanager
def handed_over(objects: Mapping[str, Any]) -> Iterator[int | None]:
    """The number of an open file with these objects, for processes that inherit it; None if there are none. Raises
    UserError for one that cannot be sent."""
    if not objects:
        yield None
        return
    with tempfile.TemporaryFile(prefix="locallearn-") as file:
        import cloudpickle

        for place, value in objects.items():
            if place != "data":
                _resolve(value)
            try:
                cloudpickle.dump((place, value), file)
            except Exception as error:  # whatever a part of it raises
                raise UserError(
                    f"{place}={type(value).__name__}(...) cannot be sent to the processes of the run ("
                    f"{in_one_line(error)}): leave open files, locks and generators out of it, or choose runtime=serial"
                ) from error
        file.flush()
        yield file.fileno()


def _resolve(value: Any) -> None:
    """Make the annotations of options, which may be texts, what they mean: a class of a script is sent by value, and
    without the names that its module has imported for them."""
    if isinstance(value, Mapping | list | tuple):
        for each in value.values() if isinstance(value, Mapping) else value:
            _resolve(each)
        return
    if isinstance(value, functools.partial):
        value = value.func
    for kind in inspect.getmro(value if inspect.isclass(value) else type(value)):
        own = vars(kind).get("__annotations__", {})
        if kind.__module__ == "__main__" and any(isinstance(hint, str) for hint in own.values()):
            with suppress(NameError, TypeError):  # a name for type checkers alone
                hints = typing.get_type_hints(kind, include_extras=True)
                kind.__annotations__ = {name: hints[name] for name in own}
    if is_dataclass(value) and not inspect.isclass(value):
        for each in fields(value):
            _resolve(getattr(value, each.name))


def taken_over(number: int | None) -> dict[str, Any]:
    """The objects that the process which started this one has handed over."""
    if number is None:
        return {}
    import cloudpickle

    objects: dict[str, Any] = {}
    with mmap.mmap(number, 0, access=mmap.ACCESS_READ) as content:  # each process has a place of its own in it
        while content.tell() < len(content):
            place, value = cloudpickle.load(content)
            objects[place] = value
    return objects
