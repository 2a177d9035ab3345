"""The probes of a run: when they look, and where in the run folder their numbers and pictures go.

`probes/NAME/rows.jsonl` has a line for each row of each look, with its epoch and step; `epoch-00003.npz` what only the
pictures need; the pictures are drawn when the run ends.
"""

from __future__ import annotations

import io
import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from locallearn import seeds
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.gradients import unchanged
from locallearn.errors import RunError, UserError, in_one_line, needs_several_values
from locallearn.figures import save
from locallearn.figures.text import table
from locallearn.names import of_probe
from locallearn.probes import Moment, Probe, Row, Seen
from locallearn.probes.base import numbers
from locallearn.runs.console import warn
from locallearn.runs.files import strict_json
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder

PROBES = "probes"
START = Moment(0, 0)


def first_looks(probes: Mapping[str, Probe], learner: Learner, data: Data) -> dict[str, Seen]:
    """What each probe sees of the initial weights, before the run has a folder: a probe that cannot look at this model
    or these data says so here. Raises UserError."""
    return {name: look(name, probe, learner, data, START) for name, probe in probes.items()}


def look(name: str, probe: Probe, learner: Learner, data: Data, at: Moment) -> Seen:
    """One look, after which the learner, its modes and the generators of PyTorch are what they were before."""
    with unchanged(learner), seeds.stream(data.seed, "probe", name, at.step, device=learner.device):
        try:
            return probe.look(learner, data, at)
        except ValueError as error:
            if not needs_several_values(error):
                raise
            raise UserError(
                f"probe.{name} hands a batch norm one sample, whose one value per channel has no variance: give it "
                "batches of at least 2, or probe a model without batch norm"
            ) from error


class Watch:
    """The probes of a run beside its training."""

    def __init__(self, probes: Mapping[str, Probe], data: Data, folder: RunFolder) -> None:
        self.probes = probes
        self.data = data
        self.folders = {name: ProbeFolder(folder, name) for name in probes}

    def due(self, epoch: int, last: bool) -> list[str]:
        """The probes that look after `epoch` epochs."""
        return [name for name, probe in self.probes.items() if last or probe.due(epoch)]

    def look(self, names: Iterable[str], learner: Learner, at: Moment) -> dict[str, float]:
        """Let the probes look; returns the numbers for the record of the epoch and what each look cost, in seconds. One
        that fails costs a warning."""
        found: dict[str, float] = {}
        for name in names:
            started = time.perf_counter()
            try:
                seen = look(name, self.probes[name], learner, self.data, at)
            except Exception as error:  # a measurement is not worth the run
                warn(f"probe {name} failed after epoch {at.epoch} ({in_one_line(error)}); training goes on")
                continue
            self.folders[name].add(seen, at)
            found |= numbers(seen.rows) | {of_probe(name, "seconds"): time.perf_counter() - started}
        return found

    def draw(self, recorder: Recorder) -> None:
        """The pictures of all looks; one that fails costs a warning."""
        for name, probe in self.probes.items():
            folder = self.folders[name]
            try:
                pictures = folder.draw(probe)
            except Exception as error:
                warn(f"the pictures of probe {name} could not be drawn ({in_one_line(error)}); its numbers are whole")
                pictures = []
            recorder.show(name, list(folder.rows()), pictures)


class ProbeFolder:
    """`probes/NAME/` of a run folder."""

    def __init__(self, folder: RunFolder, name: str) -> None:
        self._folder = folder
        self.name = f"{PROBES}/{name}"
        self.path = folder.path / self.name

    @classmethod
    def unused(cls, folder: RunFolder, name: str) -> ProbeFolder:
        """The first of NAME, NAME-2, ... that is not there yet."""
        number, found = 1, cls(folder, name)
        while found.path.exists():
            number += 1
            found = cls(folder, f"{name}-{number}")
        return found

    def add(self, seen: Seen, at: Moment) -> None:
        """Append one look. Raises RunError if it cannot be written."""
        lines = [strict_json({"epoch": at.epoch, "step": at.step, **row}) + "\n" for row in seen.rows]
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with open(self.path / "rows.jsonl", "ab") as file:
                file.write("".join(lines).encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise RunError(f"cannot write {self.path / 'rows.jsonl'}: {error.strerror}") from None
        if seen.arrays:
            self._folder.write_bytes(f"{self.name}/epoch-{at.epoch:05d}.npz", _packed(seen.arrays))

    def rows(self) -> Iterator[Row]:
        """Every row so far, with `epoch` and `step`."""
        yield from self._folder.records(f"{self.name}/rows.jsonl")

    def table(self) -> str:
        """The rows as text, for the screen."""
        return _table(list(self.rows()))

    def draw(self, probe: Probe) -> list[Path]:
        """Draw and write the pictures, each as SVG and PNG; returns the PNG files."""
        import numpy as np

        arrays = {}
        for file in sorted(self.path.glob("epoch-*.npz")):
            with np.load(file, allow_pickle=False) as content:
                arrays[int(file.stem.removeprefix("epoch-"))] = {k: torch.from_numpy(v) for k, v in content.items()}
        figures = probe.draw(list(self.rows()), arrays)
        return [save(figure, self.path / name)[1] for name, figure in figures.items()]


def _packed(arrays: Mapping[str, Tensor]) -> bytes:
    import numpy as np

    buffer = io.BytesIO()
    content: Any = {name: array.detach().cpu().numpy() for name, array in arrays.items()}
    np.savez_compressed(buffer, **content)
    return buffer.getvalue()


def _table(rows: Sequence[Row], most: int = 40) -> str:
    """Rows as columns of text; of many the last. Sentences stand below, each once, with the number of its rows."""
    long = {key for row in rows for key, value in row.items() if isinstance(value, str) and len(value) >= 25}
    columns = [k for k in dict.fromkeys(k for row in rows for k in row if row[k] is not None) if k not in long]
    cells = [columns, *([_cell(row.get(key)) for key in columns] for row in rows[-most:])]
    said = Counter(row[key] for key in sorted(long) for row in rows if row.get(key))
    return "\n".join(
        [table(cells, left=()), *(f"{count} of {len(rows)} rows: {text}" for text, count in said.most_common())]
    )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
