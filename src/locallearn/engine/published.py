"""Published tensors: the read-only copies that blocks have of tensors of blocks above them.

Version v of a tensor is what it is after v steps. Which version a block reads depends on the step alone, never on what
has arrived: a source publishes before the steps in which one is due, and a stage takes in, and passes on, at least what
its blocks read. So a run has the same bits wherever its blocks live.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from locallearn.contract import BlockSpec, Copy, Published, Strategy
from locallearn.engine.block import TrainedBlock
from locallearn.engine.link import Link
from locallearn.errors import UserError

PREFIX = "published."
NAME = re.compile(r"published\.(\d+)\.([^.]+)\.(\d+)\.(\d+)")
"""Of a tensor of a state: the block that reads it, what it reads, the version, and which of its tensors."""
Reads = Mapping[int, Mapping[str, Published]]
"""By block, and by the name of what it reads."""


def reads_of(strategy: Strategy, specs: Sequence[BlockSpec], idle: Sequence[int] = ()) -> Reads:
    """What each block reads, but for those that never learn. Raises UserError for what cannot be read."""
    reads = {spec.index: strategy.reads(spec) for spec in specs if spec.index not in idle}
    every: dict[tuple[int, str], int] = {}
    for k, wishes in reads.items():
        for name, wish in wishes.items():
            where = f"{type(strategy).__name__}.reads: block {k} wants {name!r} of block {wish.source}"
            if not k < wish.source < len(specs):
                raise UserError(f"{where}: must be one of the blocks above, up to {len(specs) - 1}")
            if wish.every < 1 or wish.lag < 0:
                limits = "every must be at least 1, and lag at least 0"
                raise UserError(f"{where} with every={wish.every}, lag={wish.lag}: {limits}")
            if every.setdefault((wish.source, name), wish.every) != wish.every:
                raise UserError(f"{where} every {wish.every} steps, but another block does not: choose one interval")
    return {k: wishes for k, wishes in reads.items() if wishes}


@dataclass
class Publication:
    """Tensors of one block under one name, as one stage sees them.

    number   by which the stages know it
    lags     the own blocks that read it, and how late
    ahead    steps before a step of which the newest version is taken in, at most
    passed   whether a stage below reads it, too
    source   the block that has the tensors, if it is here
    versions what own blocks may still read
    newest   the version that came last
    """

    number: int
    name: str
    every: int
    lags: dict[int, int]
    ahead: int
    passed: bool
    source: TrainedBlock | None
    versions: dict[int, tuple[Tensor, ...]]
    newest: int = -1

    def due(self, step: int, lag: int) -> int:
        """The version that is read in a step."""
        return max(0, step - lag) // self.every * self.every


class Publications:
    """All that the blocks of a stage publish, read, or pass on to the stage below."""

    def __init__(self, strategy: Strategy, blocks: Sequence[TrainedBlock], reads: Reads, link: Link | None) -> None:
        self.strategy, self.link = strategy, link
        self.done: int | None = 0  # steps; one that was broken off does not count; None: as many as there were
        self._begun = False
        self._blocks = {block.spec.index: block for block in blocks}
        self._first_step: int | None = None
        lowest, highest = min(self._blocks), max(self._blocks)
        sources = sorted({(wish.source, name) for wishes in reads.values() for name, wish in wishes.items()})
        self._publications: dict[int, Publication] = {}
        for number, (source, name) in enumerate(sources):
            lags = {
                k: wishes[name].lag
                for k, wishes in reads.items()
                if name in wishes and wishes[name].source == source and k <= highest
            }
            every = next(w[name].every for w in reads.values() if name in w and w[name].source == source)
            if source >= lowest and lags:
                own = {k: lag for k, lag in lags.items() if k >= lowest}
                ahead = min(*lags.values(), source - highest)
                passed, here = min(lags) < lowest, self._blocks.get(source)
                if here is not None:
                    strategy.publish(here, name)  # refuses here what it cannot give
                self._publications[number] = Publication(number, name, every, own, ahead, passed, here, {})

    def publish_first(self) -> None:
        """See to it that blocks have what they read, also before the first step."""
        if self._publications and not self._begun:
            self.advance(0)

    def advance(self, step: int) -> None:
        """Publish what is due before a step, take in what comes from above, and hand each block what it reads."""
        if self._first_step is None:
            self._first_step, self._begun = step, True
            for each in self._publications.values():
                each.newest = step - 1  # those who go on from a checkpoint have the versions until there
        for each in self._publications.values():
            if each.source is not None and step % each.every == 0 and each.newest < step:
                each.source.apply_sums()  # what replicas still sum belongs to the step before
                tensors = self.strategy.publish(each.source, each.name)
                self._arrive(each, step, tuple(t.detach().clone() for t in tensors))
        for each in self._publications.values():
            if each.source is None:
                self._take_in(each, each.due(step, each.ahead))
            self._hand_out(each, {k: each.due(step, lag) for k, lag in each.lags.items()})

    def take_rest(self) -> None:
        """Take in all that was published before or in the last step."""
        if self.done:
            for each in self._publications.values():
                if each.source is None:
                    self._take_in(each, each.due(self.done - 1, 0))

    def state(self) -> dict[str, Tensor]:
        """What each block reads, and versions that it will read, by names that say block, name and version."""
        return {
            f"{PREFIX}{k}.{each.name}.{version}.{i}": t
            for each in self._publications.values()
            for k in each.lags
            for version, tensors in sorted(each.versions.items())
            if version >= self._blocks[k].copies[each.name].version and (self.done is None or version < self.done)
            for i, t in enumerate(tensors)
        }

    def load_state(self, tensors: Mapping[str, Tensor]) -> str | None:
        """Put back what `state` gave. Returns the first name that is not part of it, and changes nothing then."""
        versions: dict[tuple[int, str], dict[int, dict[int, Tensor]]] = {}
        known = {(k, each.name): each for each in self._publications.values() for k in each.lags}
        for full in sorted(tensors):
            if not (found := NAME.fullmatch(full)) or (int(found[1]), found[2]) not in known:
                return full
            k, name, version, i = int(found[1]), found[2], int(found[3]), int(found[4])
            versions.setdefault((k, name), {}).setdefault(version, {})[i] = tensors[full]
        self.done = self._first_step = None
        self._begun = bool(versions)
        for each in self._publications.values():
            each.versions, each.newest = {}, -1
        for (k, name), parts in versions.items():
            each, block = known[k, name], self._blocks[k]
            each.versions |= {
                v: tuple(t[i].to(block.device, copy=True) for i in sorted(t)) for v, t in sorted(parts.items())
            }
            block.copies[name] = Copy(min(parts), each.versions[min(parts)])
        return None

    def _take_in(self, publication: Publication, version: int) -> None:
        while publication.newest < version:
            assert self.link is not None
            number, tensors = self.link.recv_published()
            arrived = self._publications[number]
            self._arrive(arrived, (arrived.newest // arrived.every + 1) * arrived.every, tensors)

    def _arrive(self, publication: Publication, version: int, tensors: tuple[Tensor, ...]) -> None:
        publication.newest = version
        if publication.passed:
            assert self.link is not None
            self.link.send_published(publication.number, tensors)
        if publication.lags:
            publication.versions[version] = tensors

    def _hand_out(self, publication: Publication, due: Mapping[int, int]) -> None:
        """Give each block its version, and forget those that nobody will read again."""
        for k, version in due.items():
            if version not in publication.versions:
                raise UserError(
                    f"block {k} reads {publication.name!r} as it was after {version} steps, which the state does not "
                    "have: go on from the state of a run of the same strategy, or begin at step 0"
                )
            self._blocks[k].copies[publication.name] = Copy(version, publication.versions[version])
        if due:
            oldest = min(due.values())
            publication.versions = {v: t for v, t in publication.versions.items() if v >= oldest}
