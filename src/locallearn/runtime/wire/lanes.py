"""When the tensors of a message are copied: at once by the CPU; by a GPU in the order of what it computes, which the
host does not wait for. Not yet run on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Protocol, TypeAlias

import torch

from locallearn.engine.replicas import LostProcess

Action: TypeAlias = Callable[[], None]
CHECK_SECONDS = 1.0


class Lane(Protocol):
    """`copy` reads or writes memory that others share, `then` tells them that it has been done. `pins`: it wants that
    memory pinned."""

    pins: bool

    def out(self, copy: Action, then: Action) -> None:
        """Copy what has been computed so far, beside what is computed from now on."""
        ...

    def into(self, copy: Action, then: Action) -> None:
        """Copy what the computation reads from now on."""
        ...

    def finish(self) -> None:
        """Wait until all have been told."""
        ...


class Inline:
    """The CPU."""

    pins = False

    def out(self, copy: Action, then: Action) -> None:
        copy()
        then()

    def into(self, copy: Action, then: Action) -> None:
        copy()
        then()

    def finish(self) -> None:
        """They have been."""


class Streams:
    """A GPU. What is sent is copied on a stream of its own; what arrives on that of the computation, whose memory it
    goes to. A thread, the courier, waits for the copies and tells of them, so that the host waits for neither; until
    then it holds the tensors."""

    pins = True

    def __init__(self, device: torch.device) -> None:
        self._gpu = torch.get_device_module(device)
        self._device = device
        self._sending = self._gpu.Stream(device)
        self._told: SimpleQueue[tuple[Any, Action, Action]] = SimpleQueue()
        self._failure: Exception | None = None
        Thread(target=self._courier, daemon=True, name="courier").start()

    def out(self, copy: Action, then: Action) -> None:
        self._check()
        self._sending.wait_stream(self._gpu.current_stream(self._device))
        with self._gpu.stream(self._sending):
            copy()
        self._told.put((self._sending.record_event(), copy, then))

    def into(self, copy: Action, then: Action) -> None:
        self._check()
        copy()
        self._told.put((self._gpu.current_stream(self._device).record_event(), copy, then))

    def finish(self) -> None:
        done = Event()
        self.out(lambda: None, done.set)
        while not done.wait(CHECK_SECONDS):
            self._check()

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _courier(self) -> None:
        while True:
            event, copy, then = self._told.get()
            try:
                event.synchronize()
                del copy
                then()
            except LostProcess:
                pass  # the main thread will notice
            except RuntimeError as error:  # of the GPU
                self._failure = error
