"""The probes of a run: when they look, and where in the run folder their numbers and pictures go.

`probes/NAME/rows.jsonl` has a line for each row of each look, with its epoch and step; `epoch-00003.npz` what only the
pictures need; the pictures are drawn when the run ends.
"""

from __future__ import annotations

import io
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from locallearn import seeds
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.gradients import unchanged
from locallearn.errors import UserError, in_one_line, needs_several_values
from locallearn.figures import save
from locallearn.figures.text import table
from locallearn.names import of_probe
from locallearn.probes import Moment, Probe, Row, Seen
from locallearn.probes.base import numbers
from locallearn.runs import files
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder
from locallearn.runtime.world import World

START = Moment(0, 0)


def first_looks(probes: Mapping[str, Probe], learner: Learner, data: Data) -> dict[str, Seen]:
    """What each probe sees of the initial weights, before the run has a folder: a probe that cannot look at this model
    or these data says so here. Raises UserError."""
    task = learner.setup.task
    for name, probe in probes.items():
        if not learner.strategy.plain:
            raise UserError(
                f"probe.{name} looks at the plain model, but {type(learner.strategy).__name__} answers in a way of its "
                "own: leave the probe out, or choose another strategy"
            )
        if probe.single and learner.strategy.repeats:
            raise UserError(
                f"probe.{name} asks what one update of each block would be, but {type(learner.strategy).__name__} "
                "updates its weights several times in a batch: leave the probe out, or choose another strategy"
            )
        if probe.tasks is not None and task.asks not in probe.tasks:
            raise UserError(
                f"probe.{name} is for {', '.join(sorted(probe.tasks))}, but data={data.name} asks for {task.wanted} "
                f"(task {task.kind}): choose probe=alignment or probe=similarity, which serve any task"
            )
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


class Probing:
    """The probes of a run beside its training.

    whole  makes a learner with every block of the model; called only where there are several processes
    """

    def __init__(
        self, probes: Mapping[str, Probe], data: Data, folder: RunFolder, world: World, whole: Callable[[], Learner]
    ) -> None:
        self.probes = probes
        self.data = data
        self.world = world
        self.whole = whole
        self.folders = {name: ProbeFolder(folder, name) for name in probes}

    def look(self, learner: Learner, at: Moment, last: bool) -> dict[str, float]:
        """Let the probes look that are due, at rank 0 on the blocks of all stages. All processes must call this.

        Returns the numbers for the record of the epoch and the seconds that each look took. A probe that fails costs a
        warning.
        """
        due = [name for name, probe in self.probes.items() if last or probe.due(at.epoch)]
        if due and self.world.size > 1:
            tensors = self.world.gather_tensors(learner.state())
            if self.world.rank == 0:
                learner = self.whole()
                learner.load_state(tensors)
                learner.step_count = at.step
        record: dict[str, float] = {}
        for name in due if self.world.rank == 0 else ():
            started = time.perf_counter()
            try:
                seen = look(name, self.probes[name], learner, self.data, at)
            except Exception as error:  # a measurement is not worth the run
                warn(f"probe {name} failed after epoch {at.epoch} ({in_one_line(error)}); training goes on")
                continue
            self.folders[name].add(seen, at)
            record |= numbers(seen.rows) | {of_probe(name, "seconds"): time.perf_counter() - started}
        return record

    def follow(self, learner: Learner, steps: int) -> None:
        """Let the probes that watch every step do so; `steps` is how many an epoch has."""
        for probe in self.probes.values():
            if probe.follows:
                probe.follow(learner, steps)

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
        self.name = f"{files.PROBES}/{name}"
        self.path = folder.path / self.name

    @classmethod
    def unused(cls, folder: RunFolder, name: str) -> ProbeFolder:
        """The first of NAME, NAME-2, ... that is not there yet."""
        names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
        return next(place for place in (cls(folder, n) for n in names) if not place.path.exists())

    def add(self, seen: Seen, at: Moment) -> None:
        """Append one look. Raises RunError if it cannot be written."""
        files.append(self.path / files.ROWS, ({"epoch": at.epoch, "step": at.step, **row} for row in seen.rows))
        if seen.arrays:
            import numpy as np

            buffer = io.BytesIO()
            arrays: Any = {name: array.detach().cpu().numpy() for name, array in seen.arrays.items()}
            np.savez_compressed(buffer, **arrays)
            self._folder.write_bytes(f"{self.name}/epoch-{at.epoch:05d}.npz", buffer.getvalue())

    def rows(self) -> Iterator[Row]:
        """Every row so far, with `epoch` and `step`."""
        yield from self._folder.records(f"{self.name}/{files.ROWS}")

    def table(self, most: int = 40) -> str:
        """The last rows as columns of text. Sentences stand below, each once, with the number of its rows."""
        rows = list(self.rows())
        long = {key for row in rows for key, value in row.items() if isinstance(value, str) and len(value) >= 25}
        columns = [k for k in dict.fromkeys(k for row in rows for k in row if row[k] is not None) if k not in long]
        cells = [columns, *([_cell(row.get(key)) for key in columns] for row in rows[-most:])]
        sentences = Counter(row[key] for key in sorted(long) for row in rows if row.get(key))
        counted = [f"{count} of {len(rows)} rows: {sentence}" for sentence, count in sentences.most_common()]
        return "\n".join([table(cells, left=()), *counted])

    def draw(self, probe: Probe) -> list[Path]:
        """Draw and write the pictures, each as SVG and PNG; returns the PNG files."""
        import numpy as np

        arrays = {}
        for file in sorted(self.path.glob("epoch-*.npz")):
            with np.load(file, allow_pickle=False) as content:
                arrays[int(file.stem.removeprefix("epoch-"))] = {k: torch.from_numpy(v) for k, v in content.items()}
        figures = probe.draw(list(self.rows()), arrays)
        return [save(figure, self.path / name)[1] for name, figure in figures.items()]


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
