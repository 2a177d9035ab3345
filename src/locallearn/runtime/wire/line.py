"""A stream socket between two neighbouring stages. Small frames travel on it in the order in which they are said; the
bytes of messages take another way (see `carriers`), so that a line never fills up."""

from __future__ import annotations

import os
import socket
import struct
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from threading import Lock
from typing import NamedTuple
from weakref import WeakSet

from locallearn.engine.replicas import LostProcess

FRAME = struct.Struct("<BxHIq")
DATA, CREDIT, SIGNATURE, SLOT, STOP, CLOSE = range(6)
"""A message lies in a slot; a slot is free again; what a number of a signature means; a slot is this memory from now
on; stop after a step; nothing more."""
ONCE = 4096  # bytes: more frames than wait between two looks


class Frame(NamedTuple):
    kind: int
    slot: int
    signature: int
    number: int  # bytes of the text of a signature and of the memory of a slot, the step to stop after
    text: bytes


class SocketLine:
    """One end. `name` is the neighbour's, for an error."""

    def __init__(self, stream: socket.socket, name: str) -> None:
        self._stream, self._name = stream, name
        self._arrived = bytearray()
        self._files: deque[int] = deque()
        self._one_at_a_time = Lock()
        stream.setblocking(True)
        _OPEN.add(self)

    def fileno(self) -> int:
        return self._stream.fileno()

    def say(
        self, kind: int, slot: int = 0, signature: int = 0, number: int = 0, text: bytes = b"", file: int | None = None
    ) -> None:
        """Send a frame, and with it perhaps an open file. Raises LostProcess."""
        frame = FRAME.pack(kind, slot, signature, number) + text
        try:
            with self._one_at_a_time:
                if file is None:
                    self._stream.sendall(frame)
                else:
                    socket.send_fds(self._stream, [frame], [file])
        except OSError as error:
            raise self._lost() from error

    def heard(self) -> Iterator[Frame]:
        """What has arrived. Waits only if nothing has. Raises LostProcess at the end of the line."""
        try:
            arrived, files, _, _ = socket.recv_fds(self._stream, ONCE, 1)
        except OSError as error:
            raise self._lost() from error
        if not arrived:
            raise self._lost()
        self._arrived += arrived
        self._files += files
        while len(self._arrived) >= FRAME.size:
            kind, slot, signature, number = FRAME.unpack_from(self._arrived)
            end = FRAME.size + (number if kind == SIGNATURE else 0)
            if len(self._arrived) < end:
                return
            text = bytes(self._arrived[FRAME.size : end])
            del self._arrived[:end]
            yield Frame(kind, slot, signature, number, text)

    def file(self) -> int:
        """The open file that came with a frame; the caller closes it."""
        return self._files.popleft()

    def close(self) -> None:
        self._stream.close()

    def _lost(self) -> LostProcess:
        return LostProcess(f"lost another process ({self._name} has ended)")


_OPEN: WeakSet[SocketLine] = WeakSet()


def _close_all() -> None:
    """In a forked child, such as a worker that reads data: it would keep the line open when this process is dead."""
    for line in _OPEN:
        with suppress(OSError):
            line.close()


os.register_at_fork(after_in_child=_close_all)
