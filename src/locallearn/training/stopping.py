"""How a run ends on a signal; apart from training so that the command line knows it without torch."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class Interrupted(Exception):
    """The run stopped on a signal; its state is saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}, state saved")
        self.exit_code = 128 + number
        self.run = "RUN"


class StopRequest:
    """The signal that asked for the end, or 0."""

    number = 0


@contextmanager
def stop_signals(say: bool = True) -> Iterator[StopRequest]:
    """SIGINT, SIGTERM and SIGHUP (unless `nohup` has switched it off) ask for a stop after the running step, which is
    said on the terminal unless another process does; a second one takes its usual, immediate effect."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    if before[signal.SIGHUP] == signal.SIG_IGN:
        del before[signal.SIGHUP]

    def on_signal(number: int, frame: FrameType | None) -> None:
        request.number = number
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        if say:
            with suppress(OSError):  # the terminal may be what has gone
                print("stopping after this step; once more stops at once", file=sys.stderr)

    for number in before:
        signal.signal(number, on_signal)
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
