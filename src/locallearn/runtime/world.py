"""The processes of a run: who this one is, what they tell each other beside the messages of the blocks, and how each
notices that another has gone."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.errors import RunError
from locallearn.runtime.link import DTYPES

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 20.0  # without a beat for so long, a process counts as gone
GATHER = 3  # the tag of tensors on their way to rank 0


class World:
    """This process among `size`; made by `join`, left by `close`. Nothing is pickled: JSON and plain tensors."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store
        self._calls = 0
        self._done = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="heartbeat").start()

    def gather(self, value: Any) -> list[Any]:
        """The JSON `value` of every process, by rank, at rank 0; an empty list elsewhere. All must call it."""
        key = self._key("gather")
        self._store.set(f"{key}/{self.rank}", json.dumps(value))
        return [json.loads(self._store.get(f"{key}/{rank}")) for rank in range(self.size)] if self.rank == 0 else []

    def share(self, value: Any = None) -> Any:
        """The JSON value that rank 0 gives, in every process. All must call it."""
        key = self._key("share")
        if self.rank == 0:
            self._store.set(key, json.dumps(value))
        return json.loads(self._store.get(key))

    def collect(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all processes at rank 0, where each name comes from one of them; nothing elsewhere."""
        layout = [[name, DTYPES.index(t.dtype), list(t.shape)] for name, t in tensors.items()]
        layouts = self.gather(layout)
        if self.rank:
            for t in tensors.values():
                dist.send(t.detach().contiguous(), 0, tag=GATHER)
            return {}
        found = dict(tensors)
        for rank, others in enumerate(layouts[1:], 1):
            for name, kind, shape in others:
                found[name] = torch.empty(shape, dtype=DTYPES[kind])
                dist.recv(found[name], rank, tag=GATHER)
        return found

    def close(self) -> None:
        """Leave together: nobody takes an ordinary end for a failure."""
        self.gather("closing")
        self.share("closed")
        self._done.set()
        dist.destroy_process_group()

    def _key(self, kind: str) -> str:
        self._calls += 1
        return f"{kind}/{self._calls}"

    def _watch(self) -> None:
        """Beat, and listen to the others' beats. Who waits for a process that has stopped would wait for ever: then
        leave at once, with a reason."""
        store = _connect()
        seen = {rank: (b"", time.monotonic()) for rank in range(self.size) if rank != self.rank}
        beats = 0
        while not self._done.wait(BEAT_SECONDS):
            beats += 1
            try:
                store.set(f"beat/{self.rank}", str(beats))
                for rank, (last, since) in seen.items():
                    beat = store.get(f"beat/{rank}") if store.check([f"beat/{rank}"]) else b""
                    if beat != last:
                        seen[rank] = beat, time.monotonic()
                    elif time.monotonic() - since > PATIENCE_SECONDS and not self._done.is_set():
                        leave(f"stage {rank} has not answered for {PATIENCE_SECONDS:.0f} seconds")
            except RuntimeError as error:
                if not self._done.is_set():
                    leave(f"the process that joins the stages is gone ({str(error).splitlines()[0]})", secondary=True)


def join(timeout_seconds: float) -> World:
    """Meet the other processes of this run, as RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT say (torchrun sets them).
    Raises RunError if they do not come."""
    timeout = timedelta(seconds=timeout_seconds)
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timeout))
        store.set_timeout(timeout)
        dist.init_process_group("gloo", store=dist.PrefixStore("group", store), rank=rank, world_size=size)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the stages did not meet within {timeout_seconds:.0f} seconds: {error}") from error
    return World(dist.PrefixStore("world", store), rank, size)


def leave(reason: str, secondary: bool = False) -> None:
    """End this process at once, whatever its threads wait for."""
    tell(reason, secondary)
    print(f"locallearn: {reason}", file=sys.stderr, flush=True)
    os._exit(1)


def tell(reason: str, secondary: bool = False) -> None:
    """Leave a reason for the process that started this one. Secondary: only a consequence of another one's end."""
    if folder := os.environ.get("LOCALLEARN_REASONS"):
        with open(os.path.join(folder, f"{os.environ['RANK']}.json"), "w", encoding="utf-8") as file:
            json.dump({"reason": reason, "secondary": secondary}, file)


def _connect() -> dist.Store:
    """A connection of the heartbeat's own: a store serves one caller at a time, and the other one may be waiting."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    patience = timedelta(seconds=PATIENCE_SECONDS)
    return dist.PrefixStore(
        "world", dist.TCPStore(host, port, is_master=False, timeout=patience, wait_for_workers=False)
    )
