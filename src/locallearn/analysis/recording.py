"""Activations and gradients on disk: a folder per epoch, an ordinary .npy file per layer, read without the model.

    FOLDER/epoch-00003/layers.json              the layers, in the order in which they first ran
    FOLDER/epoch-00003/conv1.activations.npy    [N, ...]
    FOLDER/epoch-00003/conv1.gradients.npy      the same shape

An epoch is written under another name and committed by one rename: one that was cut short by a kill does not count.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import numpy as np

from locallearn.errors import RunError, UserError, did_you_mean

_EPOCH = re.compile(r"epoch-(\d{5,})")
_UNFINISHED = ".unfinished-"
_INDEX = "layers.json"


class Recording:
    """What a `Tracker` has written to `folder`. Arrays are memory-mapped: only what is used of them is read."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @property
    def epochs(self) -> list[int]:
        """The epochs that are recorded, in order."""
        matches = (_EPOCH.fullmatch(p.name) for p in self.folder.glob("epoch-*"))
        return sorted(int(match[1]) for match in matches if match)

    @property
    def layers(self) -> list[str]:
        """The layers that are recorded, in the order in which they ran (of several epochs, those of the last)."""
        epochs = self.epochs
        return self._layers(epochs[-1]) if epochs else []

    def activations(self, layer: str, epoch: int) -> np.ndarray[Any, Any]:
        """What `layer` emitted [N, ...]. Raises UserError where nothing is recorded."""
        return self._array(layer, epoch, "activations")

    def gradients(self, layer: str, epoch: int) -> np.ndarray[Any, Any]:
        """The gradient of the loss for what `layer` emitted [N, ...]; zero for a sample to which none came back."""
        return self._array(layer, epoch, "gradients")

    def _array(self, layer: str, epoch: int, kind: str) -> np.ndarray[Any, Any]:
        if epoch not in self.epochs:
            known = ", ".join(map(str, self.epochs)) or "none"
            raise UserError(f"epoch {epoch} is not recorded in {self.folder}; recorded are: {known}")
        layers = self._layers(epoch)
        if layer not in layers:
            raise UserError(
                f"layer {layer!r} is not recorded in {self.folder}: {did_you_mean(layer, layers)}"
                f"recorded are: {', '.join(layers)}"
            )
        path = _path(self._place(epoch), layer, kind)
        if not path.is_file():
            raise UserError(
                f"no gradient of {layer!r} is recorded for epoch {epoch}: give the tracker gradients=True, and the "
                "layer a part in the loss"
            )
        array: np.ndarray[Any, Any] = np.load(path, mmap_mode="r")
        return array

    def _layers(self, epoch: int) -> list[str]:
        return list(json.loads((self._place(epoch) / _INDEX).read_text())["layers"])

    def _place(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:05d}"


class EpochWriter:
    """Writes the arrays of one epoch, batch by batch; nothing but the batch at hand is held."""

    def __init__(self, folder: Path, epoch: int, dtype: np.dtype[Any]) -> None:
        self._target = folder / f"epoch-{epoch:05d}"
        self._place = folder / f"{_UNFINISHED}{self._target.name}"
        self._files: dict[tuple[str, str], _Rows] = {}
        self._dtype = dtype
        self.open = True
        with _explained(self._place):
            shutil.rmtree(self._place, ignore_errors=True)
            self._place.mkdir(parents=True)

    @property
    def layers(self) -> list[str]:
        return [layer for layer, kind in self._files if kind == "activations"]

    def append(self, layer: str, values: np.ndarray[Any, Any]) -> int:
        """Add activations [B, ...] of a layer; returns the row of the first. ValueError for rows of another shape."""
        file = self._file(layer, "activations", values)
        start = file.count
        file.put(values, start)
        return start

    def put_gradients(self, layer: str, values: np.ndarray[Any, Any], start: int) -> None:
        """Write the gradients [B, ...] of the activations that stand at `start`."""
        self._file(layer, "gradients", values).put(values, start)

    def commit(self) -> None:
        """From here on the epoch counts; one that was recorded before under its number is replaced."""
        with _explained(self._place):
            for (layer, _), file in self._files.items():
                file.finish(self._files[layer, "activations"].count)
            (self._place / _INDEX).write_text(json.dumps({"layers": self.layers}))
            if self._target.exists():
                shutil.rmtree(self._target)
            self._place.rename(self._target)
        self.open = False

    def abandon(self) -> None:
        """Forget an epoch that is not complete."""
        self.open = False
        shutil.rmtree(self._place, ignore_errors=True)

    def _file(self, layer: str, kind: str, values: np.ndarray[Any, Any]) -> _Rows:
        if (layer, kind) not in self._files:
            self._files[layer, kind] = _Rows(_path(self._place, layer, kind), self._dtype, values.shape[1:])
        return self._files[layer, kind]


class _Rows:
    """A .npy file of rows of one shape that grows: numpy leaves room in the header for a longer first axis."""

    def __init__(self, path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self._path, self._dtype, self._shape = path, dtype, shape
        self._row_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.count = 0
        with _explained(path), path.open("wb") as file:
            self._start = self._header(file, 0)

    def put(self, values: np.ndarray[Any, Any], start: int) -> None:
        """Rows [B, ...] from row `start` on. Opened each time: a net may have more layers than a process files."""
        if values.shape[1:] != self._shape:
            raise ValueError(f"{list(values.shape[1:])} after {list(self._shape)}")
        with _explained(self._path), self._path.open("r+b") as file:
            file.seek(self._start + start * self._row_bytes)
            file.write(np.ascontiguousarray(values, dtype=self._dtype).tobytes())
        self.count = max(self.count, start + len(values))

    def finish(self, count: int) -> None:
        """Say in the header that there are `count` rows; those that were never written read as zero."""
        with self._path.open("r+b") as file:
            assert self._header(file, count) == self._start
            file.truncate(self._start + count * self._row_bytes)

    def _header(self, file: BinaryIO, count: int) -> int:
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (count, *self._shape)}
        np.lib.format.write_array_header_1_0(file, header)
        return file.tell()


def remove_unfinished(folder: Path) -> None:
    """Remove what a killed process has left."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _path(place: Path, layer: str, kind: str) -> Path:
    return place / f"{quote(layer, safe='@ ')}.{kind}.npy"


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunError(f"{path} could not be written: {error.strerror or error}") from error
