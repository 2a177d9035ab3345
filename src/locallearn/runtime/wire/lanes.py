"""When the tensors of a message are copied: at once by the CPU; by a GPU in the order of what it computes, which the
host does not wait for. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from types import ModuleType
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch

from locallearn import accelerator
from locallearn.engine.replicas import LostProcess

Action: TypeAlias = Callable[[], object]
CHECK_SECONDS = 1.0


class Lane(Protocol):
    """`copy` reads or writes memory that others share, `then` tells them that it has been done. `non_blocking`: the
    host does not wait for a copy."""

    non_blocking: bool

    def out(self, copy: Action, then: Action) -> None:
        """Copy what has been computed so far, beside what is computed from now on."""
        ...

    def into(self, copy: Action, then: Action) -> None:
        """Copy what the computation reads from now on."""
        ...

    def check(self) -> None:
        """Raise what a copy has failed with."""
        ...

    def finish(self) -> None:
        """Wait until all have been told."""
        ...

    def close(self) -> None:
        """Nothing follows."""
        ...


class Inline:
    """The CPU."""

    non_blocking = False

    def out(self, copy: Action, then: Action) -> None:
        copy()
        then()

    def into(self, copy: Action, then: Action) -> None:
        copy()
        then()

    def check(self) -> None:
        """A copy that fails has raised."""

    def finish(self) -> None:
        """Each copy was told of when it was made."""

    def close(self) -> None:
        """There is no thread."""


class Mark(Protocol):
    """A place in a queue."""

    def synchronize(self) -> None:
        """Wait until the device has come to this place."""
        ...

    def query(self) -> bool:
        """Whether the device has come to this place."""
        ...


class DeviceQueue(Protocol):
    """Work that a device does in the order in which it is asked for, while the host goes on."""

    def run(self, action: Action) -> None: ...

    def mark(self) -> Mark: ...

    def wait(self, mark: Mark) -> None:
        """Do what is asked from now on after the other queue has come to its mark."""
        ...


class Queues(NamedTuple):
    """The queues of a device: that in which this thread computes at the moment, and one for each direction."""

    computing: Callable[[], DeviceQueue]
    sending: DeviceQueue
    receiving: DeviceQueue


class StreamQueue:
    """A stream of a GPU."""

    def __init__(self, gpu: ModuleType, stream: Any) -> None:
        self._gpu, self._stream = gpu, stream

    def run(self, action: Action) -> None:
        with self._gpu.stream(self._stream):
            action()

    def mark(self) -> Mark:
        return self._stream.record_event()

    def wait(self, mark: Mark) -> None:
        self._stream.wait_event(mark)


def lane_of(device: torch.device) -> Lane:
    """The lane for memory that both processes reach."""
    return Courier(streams(device)) if hasattr(accelerator.module(device), "Stream") else Inline()


def streams(device: torch.device) -> Queues:
    """The queues of a GPU."""
    gpu = accelerator.module(device)
    assert gpu is not None
    sending, receiving = (StreamQueue(gpu, gpu.Stream(device, priority=-1)) for _ in range(2))
    return Queues(lambda: StreamQueue(gpu, gpu.current_stream(device)), sending, receiving)


class Courier:
    """Memory that both processes reach, and a device. What is sent is copied in a queue of its own; what arrives in
    that of the computation, whose memory it goes to. A thread waits for the copies and tells of them, so that the host
    waits for neither; until then it holds the tensors."""

    non_blocking = True

    def __init__(self, queues: Queues) -> None:
        self._queues = queues
        self._told: SimpleQueue[tuple[Mark, Action, Action] | None] = SimpleQueue()
        self._failure: Exception | None = None
        Thread(target=self._tell, daemon=True, name="courier").start()

    def out(self, copy: Action, then: Action) -> None:
        self.check()
        self._queues.sending.wait(self._queues.computing().mark())
        self._queues.sending.run(copy)
        self._told.put((self._queues.sending.mark(), copy, then))

    def into(self, copy: Action, then: Action) -> None:
        self.check()
        computing = self._queues.computing()
        computing.run(copy)
        self._told.put((computing.mark(), copy, then))

    def finish(self) -> None:
        done = Event()
        self.out(lambda: None, done.set)
        while not done.wait(CHECK_SECONDS):
            self.check()

    def close(self) -> None:
        self._told.put(None)

    def check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _tell(self) -> None:
        while (entry := self._told.get()) is not None:
            mark, copy, then = entry
            del entry
            try:
                mark.synchronize()
                del copy
                then()
            except LostProcess:
                pass  # the main thread will notice
            except Exception as error:  # of the GPU, or of the line
                self._failure = error
