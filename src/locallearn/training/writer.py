"""Checkpoints beside training, which waits only while its tensors are copied: a thread does the rest."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locallearn.engine.replicas import LostProcess
from locallearn.errors import RunError
from locallearn.runs.checkpoint import NotSaved, commit, of_stage
from locallearn.runs.console import warn
from locallearn.runs.snapshot import Snapshot, Written, as_bytes, write
from locallearn.runtime.world import Words, World


class Save(NamedTuple):
    """A checkpoint that is asked for: where, how many are kept there, and of which step; what this process reports for
    it, and how rank 0 makes the state of the run from the reports by rank. If one that is not `needed` cannot be
    written, training goes on."""

    folder: Path
    keep: int
    step: int
    report: Any
    state: Callable[[list[Any]], Mapping[str, Any]]
    needed: bool


class Writer:
    """Writes one checkpoint at a time, with the writers of the other processes.

    Rank 0 makes a folder and tells the first replica of each stage, which writes the tensors of its stage there and
    says so; one that does not see the folder, as on another machine, sends them to rank 0. Then rank 0 commits
    everything by one rename. All processes must call the methods in the same order.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.snapshot = Snapshot()
        self._words: Words | None = None
        self._thread: threading.Thread | None = None
        self._failed: Exception | None = None
        self._gone = threading.Event()
        self._count = 0

    def start(self, save: Save, tensors: Mapping[str, Tensor]) -> None:
        """Copy the tensors as they are now, and write them later. Waits for the save before, and raises as `wait`."""
        self.wait()
        self.snapshot.take({} if self.world.replica else tensors)
        if self._words is None:
            self._words = self.world.words()
        self._count += 1
        self._thread = threading.Thread(target=self._run, args=(save, self._words), daemon=True, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raise what the last save has found, if it has: RunError for a number that is not finite, and NotSaved if one
        that is needed could not be written."""
        if self._failed is not None:
            failed, self._failed = self._failed, None
            raise failed

    def wait(self) -> None:
        """Wait until nothing is under way. Raises as `check`."""
        if self._thread is not None:
            self._thread.join()
        self.check()

    def end(self, seconds: float | None) -> None:
        """Wait for the save under way while something else ends the run; at most `seconds`, None for no limit."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._gone.set()

    def _run(self, save: Save, words: Words) -> None:
        try:
            if self.world.rank == 0:
                self._commit(save, words)
            else:
                words.say(self._key("report", self.world.rank), save.report)
                if not self.world.replica:
                    self._take_part(save, words)
        except NotSaved as error:
            if save.needed:
                self._failed = error
            else:
                warn(f"{error}; training goes on")
        except Exception as error:
            self._failed = error

    def _commit(self, save: Save, words: Words) -> None:
        """At rank 0: write, wait for all others, and commit."""
        world = self.world
        reports = [words.hear(self._key("report", rank), self._gone) for rank in range(1, world.size)]
        others = range(world.replicas, world.size, world.replicas)
        told = False

        def tell(place: str | None) -> None:
            nonlocal told
            for rank in () if told else others:
                words.say(self._key("place", rank), place)
            told = True

        def fill(place: Path) -> tuple[dict[str, Written], Mapping[str, Any]]:
            self._refuse_broken(save)
            tell(str(place))
            try:
                own = write(place / of_stage(0, world.stages), self.snapshot.head, self.snapshot.tensors)
            finally:  # a sender must not wait for ever, and a writer must have ended before the folder goes
                said = {rank: self._heard(words, rank) for rank in others}
            files = {of_stage(0, world.stages): own}
            for rank, word in said.items():
                name = of_stage(rank // world.replicas, world.stages)
                files[name] = _written(place / name, word)
            return files, save.state([save.report, *reports])

        try:
            commit(save.folder, save.step, fill, save.keep)
        finally:
            tell(None)

    def _heard(self, words: Words, rank: int) -> dict[str, Any]:
        """What the writer of a stage says, with the tensors that it sends."""
        word = words.hear(self._key("written", rank), self._gone)
        return word | ({"data": words.receive(word["bytes"], rank)} if "head" in word else {})

    def _take_part(self, save: Save, words: Words) -> None:
        """In another stage than the first: write where rank 0 says, unless it needs nothing."""
        place = words.hear(self._key("place", self.world.rank), self._gone)
        if place is None:
            return
        word: dict[str, Any] = {"broken": True}
        try:
            self._refuse_broken(save)
            word = self._left(Path(place))
        except OSError as error:
            word = {"failed": str(error)}
        finally:
            words.say(self._key("written", self.world.rank), word)
        if "head" in word:
            words.send(torch.cat([as_bytes(t) for t in self.snapshot.tensors]), 0)

    def _left(self, place: Path) -> dict[str, Any]:
        """Write the tensors if the folder can be seen here; else what must be known to receive them."""
        head, tensors = self.snapshot.head, self.snapshot.tensors
        if not place.is_dir():
            return {"head": head.decode("latin-1"), "bytes": sum(t.nbytes for t in tensors)}
        return asdict(write(place / of_stage(self.world.stage, self.world.stages), head, tensors))

    def _refuse_broken(self, save: Save) -> None:
        if name := self.snapshot.broken():
            raise RunError(f"{name} is not finite after step {save.step}; lower optim.lr")

    def _key(self, what: str, rank: int) -> str:
        return f"save/{self._count}/{what}/{rank}"


def _written(file: Path, word: dict[str, Any]) -> Written:
    """What a stage has written, or sent. Raises OSError if it could not, and LostProcess if it ends the run."""
    if "broken" in word:
        raise LostProcess("another process holds a number that is not finite")
    if "failed" in word:
        raise OSError(word["failed"])
    return write(file, word["head"].encode("latin-1"), [word["data"]]) if "head" in word else Written(**word)
