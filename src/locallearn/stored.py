"""Read what a run folder or a data folder holds: it may be damaged, or come from a stranger.

Everything here takes bounded time and memory, runs nothing, and raises OSError or ValueError with one line.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from torch import Tensor

SMALL_BYTES = 10_000_000
"""The most for a yaml or json file, or the header of a safetensors file; they usually have some kilobytes."""
RECORDS_BYTES = 2**31
DEPTH = 50
VALUES = 1_000_000
"""The most values that a file may hold, where one that a yaml alias repeats counts each time."""
DIMENSIONS = 16
TYPES = ("C64", "F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL")
"""What a model and its optimizers are made of; not all of PyTorch works with the other types of safetensors."""


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # in C ten times as fast
    """Plain values only, and no key twice."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        _refuse_twice(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        return super().construct_mapping(node, deep)


def read_bytes(file: Path, limit: int = SMALL_BYTES) -> bytes:
    """The content of a regular file; of a pipe or a device one would wait for ever."""
    with _opened(file, limit) as stream:
        return stream.read(limit)


def lines(file: Path) -> Iterator[bytes]:
    """The lines of a regular file of records, one after the other; the last one may lack its newline."""
    with _opened(file, RECORDS_BYTES) as stream:
        yield from stream


@contextmanager
def _opened(file: Path, limit: int) -> Iterator[IO[bytes]]:
    with open(file, "rb", opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as stream:
        about = os.fstat(stream.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(file))
        if about.st_size > limit:
            raise ValueError(f"it has more than {limit:,} bytes")
        yield stream


def mapping(file: Path) -> dict[str, Any]:
    """The mapping in a yaml or json file."""
    text = read_bytes(file).decode()
    content = _json(text) if file.suffix == ".json" else _yaml(text)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError("it is empty, or not a mapping")
    return content


def texts(file: Path) -> list[str]:
    """The list of texts in a yaml file."""
    content = _yaml(read_bytes(file).decode())
    if not isinstance(content, list):
        raise ValueError("it is empty, or not a list")
    return list(map(str, content))


def record(line: bytes) -> dict[str, Any] | None:
    """A whole line of a .jsonl file, or None for a damaged one."""
    try:
        content = _json(line.decode())
    except ValueError:
        return None
    return content if isinstance(content, dict) and isinstance(content.get("step", 0), int | float) else None


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, by name."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    _check_header(file)
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _check_header(file: Path) -> None:
    """What the library takes and we do not: a header of 100 MB, a name twice, many dimensions, numbers of 4 bits."""
    if not file.is_file():  # else opening it may wait for ever
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(file))
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 0 < length <= SMALL_BYTES:
            raise ValueError("it has no header of safetensors")
        header = _json(stream.read(length).decode())
    if not isinstance(header, dict):
        raise ValueError("it has no header of safetensors")
    header.pop("__metadata__", None)
    for name, entry in header.items():
        shape = entry.get("shape") if isinstance(entry, dict) else None
        if not isinstance(shape, list) or len(shape) > DIMENSIONS or entry.get("dtype") not in TYPES:
            raise ValueError(f"{name[:100]!r} has a shape or a type that no model has")


def _json(text: str) -> Any:
    try:
        content = json.loads(text, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _refuse_endless(content)
    return content


def _yaml(text: str) -> Any:
    try:
        _refuse_deep(yaml.parse(text, _Loader))  # the loader in C would overflow the stack
        content = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())[:300]) from None
    _refuse_endless(content)
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_twice(key for key, _ in pairs)
    return dict(pairs)


def _refuse_twice(keys: Iterable[Any]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f"it has the key {str(key)[:100]!r} twice")
        seen.add(key)


def _refuse_deep(events: Iterable[Any]) -> None:
    kinds = ((isinstance(e, yaml.CollectionStartEvent), isinstance(e, yaml.CollectionEndEvent)) for e in events)
    if any(depth > DEPTH for depth in accumulate(begins - ends for begins, ends in kinds)):
        raise ValueError("it is nested too deeply")


def _refuse_endless(content: Any) -> None:
    """Aliases of aliases are short in a file and grow without end where they are copied or shown."""
    left = [(content, 0)]
    seen = 0
    while left:
        value, depth = left.pop()
        seen += 1
        if depth > DEPTH or seen > VALUES:
            raise ValueError("it is nested too deeply, or repeats itself too often")
        if isinstance(value, dict | list):
            left += [(item, depth + 1) for item in (value.values() if isinstance(value, dict) else value)]
