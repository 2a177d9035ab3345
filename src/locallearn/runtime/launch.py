"""Start the stages of a run on this machine, and end all of them as soon as one has failed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from locallearn.errors import RunError

POLL_SECONDS = 0.1
GRACE_SECONDS = 3.0  # for the others to leave by themselves once one has failed


def launch(command: Sequence[str], size: int, stop_asked: Callable[[], int]) -> int:
    """Run `command` in `size` processes with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, until all have ended.

    A signal that `stop_asked` reports is passed on once, to rank 0, which stops the others in order. Returns the exit
    code that they agree on. Raises RunError with the stage and the cause if one fails; then none is left.
    """
    with tempfile.TemporaryDirectory(prefix="locallearn-") as reasons:
        shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
        shared |= {"LOCALLEARN_REASONS": reasons, "LOCALLEARN_PARENT": str(os.getpid())}
        stages = [
            subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}, start_new_session=True)
            for rank in range(size)
        ]
        try:
            passed_on = 0
            while any(stage.poll() is None for stage in stages):
                if any(stage.poll() for stage in stages):
                    _await_end(stages, GRACE_SECONDS)
                    break
                if (number := stop_asked()) and not passed_on:
                    stages[0].send_signal(number)
                    passed_on = number
                time.sleep(POLL_SECONDS)
            ended = [stage.poll() for stage in stages]
        finally:
            for stage in stages:
                stage.kill()  # also one that is stopped; ends nothing that has ended
                stage.wait()
        codes = {code for code in ended if code}
        if codes and (passed_on == 0 or codes != {128 + passed_on}):
            raise RunError(_cause(ended, Path(reasons)))
        return max(codes, default=0)


def _await_end(stages: Sequence[subprocess.Popen], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(stage.poll() is None for stage in stages):
        time.sleep(POLL_SECONDS)


def _cause(ended: Sequence[int | None], reasons: Path) -> str:
    """The first cause: a stage that a signal ended, else one with a reason of its own, else one with an exit code."""
    for rank, code in enumerate(ended):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            more = ", perhaps because memory ran out" if name == "SIGKILL" else ""
            return f"stage {rank} of {len(ended)} was ended by {name}{more}"
    told = []
    for rank in range(len(ended)):
        file = reasons / f"{rank}.json"
        if file.is_file() and (text := file.read_text(encoding="utf-8")):
            found = json.loads(text)
            told.append((found["secondary"], f"stage {rank} of {len(ended)}: {found['reason']}"))
    if told:
        return min(told)[1]
    rank = next(rank for rank, code in enumerate(ended) if code)
    return f"stage {rank} of {len(ended)} ended with exit code {ended[rank]}"


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
