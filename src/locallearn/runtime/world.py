"""The processes of a run: which one this is, what they send each other beside the messages of the blocks, and how each
notices that another is gone."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.engine.replicas import LostProcess, Replicas, lost_process
from locallearn.errors import RunError
from locallearn.runtime.message import DTYPES

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 20.0  # without a beat for so long, a process counts as gone
START_SECONDS = 300.0  # for all processes to be there
FOREVER = timedelta(days=1)  # of messages: a stage may wait long for a slow one; the beats tell slow from gone
GATHER, SAVED = 3, 4  # the tags of tensors on their way to rank 0, and of those that a thread of its own sends there
WORD_SECONDS = 0.005  # between two looks for a word


class World:
    """The processes of a run: here this one alone. In a `JoinedWorld` they stand stage after stage, the replicas of a
    stage next to each other.

    rank, size         of this process among all processes
    stage, stages      which part of the blocks it runs, from the input upward
    replica, replicas  which copy of its stage it is; copy 0 evaluates and saves
    """

    rank, size, replicas = 0, 1, 1

    @property
    def stage(self) -> int:
        return self.rank // self.replicas

    @property
    def stages(self) -> int:
        return self.size // self.replicas

    @property
    def replica(self) -> int:
        return self.rank % self.replicas

    def gather(self, value: Any) -> list[Any]:
        """The JSON `value` of every process, by rank, at rank 0; an empty list elsewhere. All must call it."""
        return [value]

    def post(self, value: Any) -> Callable[[], list[Any] | None]:
        """Say a JSON `value` without waiting. At rank 0 the function returned gives those of every process, by rank, or
        None as long as one is missing; it may be called until it has given them. All must call it."""
        return lambda: [value]

    def broadcast(self, value: Any = None) -> Any:
        """The JSON value of rank 0, in every process. All must call it."""
        return value

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of the first replica of every stage at rank 0, on the CPU; nothing elsewhere. All must call."""
        return dict(tensors)

    def broadcast_to_replicas(self, number: int) -> int:
        """The number of the first replica of this stage. Its replicas must call it at the same step."""
        return number

    def words(self) -> Words:
        """What a thread of its own may say to those of the other processes."""
        return Words(dist.HashStore())


class Words:
    """JSON values between threads of processes, each under a key that is used once."""

    def __init__(self, store: dist.Store) -> None:
        self._store = store

    def say(self, key: str, value: Any) -> None:
        with lost_process():
            self._store.set(key, json.dumps(value))

    def hear(self, key: str, gone: threading.Event) -> Any:
        """Wait for a value, and take it away. Raises LostProcess once `gone` is set."""
        with lost_process():
            while not self._store.check([key]):
                if gone.wait(WORD_SECONDS):
                    raise LostProcess("lost another process, which has not answered")
            value = json.loads(self._store.get(key))
            self._store.delete_key(key)  # a long run must not fill the store
        return value

    @staticmethod
    def send(data: Tensor, rank: int) -> None:
        """Send a tensor to another process, whose thread must `receive` it."""
        with lost_process():
            dist.send(data, rank, tag=SAVED)

    @staticmethod
    def receive(size: int, rank: int) -> Tensor:
        """The bytes [size] that another process sends."""
        data = torch.empty(size, dtype=torch.uint8)
        with lost_process():
            dist.recv(data, rank, tag=SAVED)
        return data


class JoinedWorld(World):
    """Several processes. Made by `join`, left by `close`. Nothing is pickled: JSON and plain tensors."""

    def __init__(self, store: dist.Store, rank: int, size: int, replicas: int) -> None:
        self.rank, self.size, self.replicas = rank, size, replicas
        self.before_leaving: Callable[[str, bool], None] = lambda reason, secondary: None
        self._store = store
        self._calls = 0
        self._done = threading.Event()
        self._groups = self._stage_groups("gloo", None)
        self._heart = threading.Thread(target=self._watch, daemon=True, name="heartbeat")
        self._heart.start()

    @property
    def closed(self) -> bool:
        return self._done.is_set()

    @property
    def rank_below(self) -> int | None:
        """The rank that sends packets to this one."""
        return self.rank - self.replicas if self.stage else None

    @property
    def rank_above(self) -> int | None:
        """The rank that packets go to."""
        return self.rank + self.replicas if self.stage + 1 < self.stages else None

    def replica_group(self, device: torch.device | None = None, backend: str = "nccl") -> Replicas | None:
        """The replicas of this stage, if it has any. With a `device` they add there: all processes must then call it,
        in the main thread and once the links are there, see `wire.nccl`."""
        if not self._groups or device is None:
            return Replicas(self._groups[self.stage], self.replica, self.replicas) if self._groups else None
        group = self._stage_groups(backend, device)[self.stage]
        with lost_process():
            dist.all_reduce(torch.zeros(1, device=device), group=group)  # connects, for which both ends wait
        return Replicas(group, self.replica, self.replicas, device)

    def _stage_groups(self, backend: str, device: torch.device | None) -> list[Any]:
        """The replicas of every stage; none, if each is alone. Every process makes all groups, in one order."""
        firsts = range(0, self.size if self.replicas > 1 else 0, self.replicas)
        members = [list(range(first, first + self.replicas)) for first in firsts]
        bound = device if backend == "nccl" else None
        return [dist.new_group(ranks, backend=backend, timeout=FOREVER, device_id=bound) for ranks in members]

    def gather(self, value: Any) -> list[Any]:
        key = self._key("gather")
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [json.loads(self._store.get(f"{key}/{rank}")) for rank in range(self.size)] if self.rank == 0 else []

    def post(self, value: Any) -> Callable[[], list[Any] | None]:
        key = self._key("post")
        keys = [f"{key}/{rank}" for rank in range(self.size)]
        self._store.set(keys[self.rank], json.dumps(value))

        def arrived() -> list[Any] | None:
            if not self._store.check(keys):
                return None
            values = [json.loads(self._store.get(key)) for key in keys]
            for key in keys:  # a long run must not fill the store
                self._store.delete_key(key)
            return values

        return arrived

    def broadcast(self, value: Any = None) -> Any:
        key = self._key("broadcast")
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
        return json.loads(self._store.get(key))

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = {} if self.replica else {n: t.detach().cpu().contiguous() for n, t in tensors.items()}
        layouts = self.gather([[name, DTYPES.index(t.dtype), list(t.shape)] for name, t in tensors.items()])
        with lost_process():
            for t in tensors.values() if self.rank else ():
                dist.send(t, 0, tag=GATHER)
            for rank, sent in enumerate(layouts[1:], 1):
                for name, kind, shape in sent:
                    tensors[name] = torch.empty(shape, dtype=DTYPES[kind])
                    dist.recv(tensors[name], rank, tag=GATHER)
        return {} if self.rank else tensors

    def broadcast_to_replicas(self, number: int) -> int:
        if not self._groups:
            return number
        word = torch.tensor([number])
        with lost_process():
            dist.broadcast(word, self.rank - self.replica, group=self._groups[self.stage])
        return int(word)

    def words(self) -> Words:
        return Words(_connect())

    def close(self) -> None:
        """Leave together: nobody takes an ordinary end for a failure."""
        self.gather("closing")
        self.broadcast("closed")
        self._done.set()
        self._heart.join()
        dist.destroy_process_group()

    def leave(self, reason: str, secondary: bool = False) -> None:
        """End this process at once, whatever its threads wait for. Secondary: only the consequence of another one's
        end, who may have said more."""
        if self.closed:
            return
        if folder := os.environ.get("LOCALLEARN_REASONS"):  # the process that started this one will say it
            with open(os.path.join(folder, f"{self.rank}.json"), "w", encoding="utf-8") as file:
                json.dump({"reason": reason, "secondary": secondary}, file)
        else:
            print(f"locallearn: stage {self.stage}: {reason}", file=sys.stderr, flush=True)
            with suppress(Exception):
                self.before_leaving(reason, secondary)
        os._exit(1)

    def _key(self, kind: str) -> str:
        self._calls += 1
        return f"{kind}/{self._calls}"

    def _watch(self) -> None:
        """Beat, and listen to the others' beats. Who waits for a process that has stopped would wait for ever: then
        leave at once, with a reason."""
        store = _connect()
        seen = {rank: (b"", time.monotonic()) for rank in range(self.size) if rank != self.rank}
        parent, beats = os.getppid(), 0
        while not self._done.wait(BEAT_SECONDS):
            beats += 1
            if os.getppid() != parent:
                self.leave("the process that started the stages is gone", secondary=True)
            try:
                store.set(f"beat/{self.rank}", str(beats))
                for rank, (last, since) in seen.items():
                    beat = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b""
                    if beat != last:
                        seen[rank] = beat, time.monotonic()
                    elif time.monotonic() - since > PATIENCE_SECONDS:
                        self.leave(f"stage {rank // self.replicas} has not answered for {PATIENCE_SECONDS:.0f} seconds")
            except RuntimeError as error:
                self.leave(f"the process that joins the stages is gone ({str(error).splitlines()[0]})", secondary=True)


def join(replicas: int) -> JoinedWorld:
    """Meet the other processes of this run, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say (torchrun sets them).
    Raises RunError if they do not come."""
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=START_SECONDS)))
        store.set(f"here/{rank}", "")
        store.wait([f"here/{other}" for other in range(size)], timedelta(seconds=START_SECONDS))
        store.set_timeout(FOREVER)
        dist.init_process_group(
            "gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size, timeout=FOREVER
        )
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the stages did not meet within {START_SECONDS:.0f} seconds: {error}") from error
    return JoinedWorld(dist.PrefixStore("world", store), rank, size, replicas)


def started_together() -> int:
    """How many processes torchrun (or another launcher) has started for one run; 0 if this one is on its own."""
    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in names) else 0


def _connect() -> dist.Store:
    """A connection for one thread: a store serves one caller at a time, and another one may be waiting."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=PATIENCE_SECONDS)
    return dist.PrefixStore(
        "world", dist.TCPStore(host, port, is_master=False, timeout=patience, wait_for_workers=False)
    )
