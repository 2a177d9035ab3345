"""Start the processes of a run on this machine, and end all of them as soon as one has failed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist

from locallearn.errors import RunError

POLL_SECONDS = 0.1
FIRST_DEVICE = "LOCALLEARN_FIRST_DEVICE"
"""The environment variable with the number of the accelerator that the first process on a machine takes."""
GRACE_SECONDS = 3.0  # for the others to leave by themselves once one has failed


def launch(
    command: Sequence[str],
    size: int,
    replicas: int,
    reasons: str,
    stop_asked: Callable[[], int],
    inherited: Sequence[int] = (),
) -> int:
    """Run `command` in `size` processes with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set, until all have ended.

    reasons     an empty folder, where a process that fails says why
    stop_asked  a signal to pass on, once, to rank 0, which stops the others in order; or 0
    inherited   open files that the processes get, such as a lock, which then lasts as long as any of them

    Returns 0, or 128 and the signal that stopped them. Raises RunError with the stage and the cause if one fails; then
    none is left.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    shared = {
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store is here: no process is more needed than the others
        "LOCALLEARN_REASONS": reasons,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),  # whatever this process can import
    }
    if sys.platform == "linux":
        shared["GLOO_SOCKET_IFNAME"] = "lo"
    environment = {name: value for name, value in os.environ.items() if name != "LOCAL_RANK"} | shared
    options: dict[str, Any] = {"start_new_session": True, "pass_fds": inherited}
    processes = [subprocess.Popen(command, env=environment | {"RANK": str(r)}, **options) for r in range(size)]
    try:
        passed_on = 0
        while any(process.poll() is None for process in processes):
            if any(process.poll() not in (None, 0, 128 + passed_on) for process in processes):
                _await_end(processes, GRACE_SECONDS)
                break
            if (number := stop_asked()) and not passed_on:
                processes[0].send_signal(number)
                passed_on = number
            time.sleep(POLL_SECONDS)
        ended = [process.poll() for process in processes]
    finally:
        for process in processes:
            process.kill()  # also one that is stopped; ends nothing that has ended
            process.wait()
    if passed_on and ended[0] == -passed_on:  # it came before rank 0 could listen; the others were ended here
        return 128 + passed_on
    if set(ended) - {0, 128 + passed_on}:
        raise RunError(_cause(ended, replicas, Path(reasons)))
    return max(code or 0 for code in ended)


def _await_end(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(process.poll() is None for process in processes):
        time.sleep(POLL_SECONDS)


def _cause(ended: Sequence[int | None], replicas: int, reasons: Path) -> str:
    """The first cause: a process that a signal ended, else one with a reason of its own, else one with an exit code."""

    def place(rank: int) -> str:
        replica = f", replica {rank % replicas}" if replicas > 1 else ""
        return f"stage {rank // replicas} of {len(ended) // replicas}{replica}"

    for rank, code in enumerate(ended):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            more = ", perhaps because memory ran out" if name == "SIGKILL" else ""
            return f"{place(rank)} was ended by {name}{more}"
    reported = []
    for rank in range(len(ended)):
        file = reasons / f"{rank}.json"
        if file.is_file() and (text := file.read_text(encoding="utf-8")):
            report = json.loads(text)
            reported.append((report["secondary"], rank, report["reason"]))
    if reported:
        _, rank, reason = min(reported)
        return f"{place(rank)}: {reason}"
    rank = next(rank for rank, code in enumerate(ended) if code)
    return f"{place(rank)} ended with exit code {ended[rank]}"
