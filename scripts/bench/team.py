"""Worker processes that live as long as a measurement and do what they are told: one JSON line a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.method import Bench

ENTRY = Path(__file__).resolve().parents[1] / "benchmark.py"


class Team:
    """Use it in a `with`: at the end the workers are gone. `allocator` is the harness's setting (else glibc's own)."""

    def __init__(self, bench: Bench, size: int, threads: int = 1, allocator: bool = True) -> None:
        self._bench = bench
        self._folder = tempfile.TemporaryDirectory(prefix="locallearn-bench-")
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        about = {"size": size, "threads": threads, "allocator": allocator, "meet": f"{self._folder.name}/meet"}
        self._workers = [
            subprocess.Popen(
                [sys.executable, str(ENTRY), "--worker", json.dumps({**about, "rank": rank})],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(size)
        ]
        bench.pids += [worker.pid for worker in self._workers]

    def __enter__(self) -> Team:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for worker in self._workers:
            worker.kill()
            worker.communicate()
            self._bench.pids.remove(worker.pid)
        self._folder.cleanup()

    def ask(self, **command: Any) -> list[Any]:
        """All workers do the command at the same time; their answers by rank. Raises RuntimeError if one has died."""
        line = json.dumps(command | {"pids": self._bench.pids, "quick": self._bench.quick})
        for worker in self._workers:
            assert worker.stdin is not None
            worker.stdin.write(line + "\n")
            worker.stdin.flush()
        return [self._answer(rank) for rank in range(len(self._workers))]

    def _answer(self, rank: int) -> Any:
        output = self._workers[rank].stdout
        assert output is not None
        line = output.readline()
        if not line:
            raise RuntimeError(f"worker {rank} of {len(self._workers)} has died; its message is above")
        return json.loads(line)
