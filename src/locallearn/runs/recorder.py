"""What a run records: every record to `metrics.jsonl`, and a copy to W&B or TensorBoard.

The file is the truth; the others may be slow, refuse or fail, and training does not notice.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from locallearn.config.record import RecordSettings
from locallearn.errors import RunError, UserError, in_one_line
from locallearn.names import of_probe
from locallearn.runs.console import warn
from locallearn.runs.files import scalar, strict_json
from locallearn.runs.folder import RunFolder

Value = float | int | str | None
SINK_FAILURES = 5  # a sink that raised this often is not called again


class Sink(Protocol):
    """Something that gets a copy of each record. It may raise; the recorder guards it."""

    name: str

    def log(self, record: Mapping[str, Value]) -> None: ...

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None: ...

    def close(self, status: str, summary: Mapping[str, Any]) -> None: ...


class OwnSink:
    """A sink of the user's own class, under its name in the settings. It has `log` and `close`, and may have `show`."""

    def __init__(self, name: str, own: Any) -> None:
        self.name = name
        self.log, self.close = own.log, own.close
        self.show = getattr(own, "show", lambda *_: None)
        self.start = getattr(own, "start", lambda *_: None)


class TensorBoardSink:
    """A copy of each number as TensorBoard event files under `tensorboard/`, at its step; texts are left out."""

    name = "TensorBoard"

    def __init__(self, folder: RunFolder) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder.path / "tensorboard"))  # writes from a thread of its own

    def log(self, record: Mapping[str, Any]) -> None:
        step = int(record.get("step", 0))
        for key, value in record.items():
            if key != "step" and isinstance(value, (int, float)):
                self._writer.add_scalar(key, value, step)

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None:
        import numpy as np
        from PIL import Image

        for picture in pictures:
            with Image.open(picture, formats=["PNG"]) as image:
                pixels = np.asarray(image.convert("RGB"))  # [H, W, 3]
            self._writer.add_image(of_probe(name, picture.stem), pixels, dataformats="HWC")

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        self._writer.add_text("status", status)
        self._writer.close()


class Recorder:
    """Writes each record as one line of `metrics.jsonl`, then hands a copy to each sink."""

    def __init__(self, folder: RunFolder, sinks: Sequence[Sink] = ()) -> None:
        """Raises UserError if the file cannot be opened. Cuts off a last line that a killed process left torn."""
        self._path = folder.metrics_path
        self._sinks = list(sinks)
        self._failures: dict[str, int] = {}
        try:
            self._file: int | None = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o644)
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from None
        self._size = _end_of_last_line(self._file)
        os.ftruncate(self._file, self._size)

    def start(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Tell the user's own sinks where the run is and how it is configured, before the first record."""
        for sink in self._sinks:
            if isinstance(sink, OwnSink):
                self._guard(sink, "start", folder, config)

    def log(self, record: Mapping[str, Value]) -> None:
        """Record numbers and texts under their keys, with `step`. Raises RunError if the file cannot grow."""
        assert self._file is not None, "the recorder is closed"
        record = {key: scalar(value) for key, value in record.items()}
        self._append((strict_json(record) + "\n").encode())
        for sink in self._sinks:
            self._guard(sink, "log", dict(record))

    def _append(self, lines: bytes) -> None:
        assert self._file is not None
        try:
            written = os.write(self._file, lines)  # one call, so that a kill leaves a whole line or none
            while written < len(lines):  # a nearly full disk takes a part; the next call says why
                written += os.write(self._file, lines[written:])
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(self._file, self._size)
            raise RunError(f"cannot append to {self._path}: {error.strerror}; the records before are whole") from None
        self._size += len(lines)

    def write_again(self) -> None:
        """Put the records so far back in their place after the file was deleted. Raises RunError."""
        assert self._file is not None, "the recorder is closed"
        content = os.pread(self._file, self._size, 0)
        try:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise RunError(f"cannot write {self._path}: {error.strerror}") from None
        os.close(self._file)
        self._file, self._size = file, 0
        self._append(content)

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None:
        """Hand the table and the PNG files of a probe to each sink; the run folder has them already."""
        for sink in self._sinks:
            self._guard(sink, "show", name, rows, pictures)

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the record with `status` (done, failed, interrupted); bounded in time. A second call does nothing."""
        if self._file is None:
            return
        try:
            os.fsync(self._file)
        except OSError as error:
            warn(f"cannot sync {self._path}: {error.strerror}")
        os.close(self._file)
        self._file = None
        for sink in self._sinks:
            self._guard(sink, "close", status, dict(summary))

    def _guard(self, sink: Sink, method: str, *arguments: Any) -> None:
        failures = self._failures.get(sink.name, 0)
        if failures >= SINK_FAILURES and method != "close":
            return
        try:
            getattr(sink, method)(*arguments)
        except Exception as error:  # whatever a tracker does, training goes on
            self._failures[sink.name] = failures + 1
            if failures == 0:
                warn(f"{sink.name} failed in {method}: {in_one_line(error)}; {self._path.name} has every record")


def _end_of_last_line(file: int) -> int:
    """The size of the file in bytes up to its last newline."""
    if not os.fstat(file).st_size:  # which cannot be mapped
        return 0
    with mmap.mmap(file, 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"\n") + 1


def open_recorder(folder: RunFolder, settings: RecordSettings, **about: Any) -> Recorder:
    """The recorder of a run. Raises UserError if the file cannot be written.

    `about` goes to W&B as it is, so hand over no secrets: the configuration `config`, `name`, and if there are any
    `group` (that of the settings wins), `job_type` and `tags`. Sinks of the user's own get the configuration.
    """
    sinks: list[Sink] = []
    if settings.tensorboard is not None:
        sinks.append(TensorBoardSink(folder))
    if settings.wandb is not None and settings.wandb.mode != "disabled":
        from locallearn.runs.wandb_sink import WandbSink

        sinks.append(WandbSink(folder, settings.wandb, about))
    recorder = Recorder(folder, sinks + [OwnSink(name, own) for name, own in settings.own.items()])
    recorder.start(folder.path, about["config"])
    return recorder
