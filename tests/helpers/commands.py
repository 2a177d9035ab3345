"""Command lines: in this process, and of an installed wheel."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from locallearn.cli import main as cli

SMALL = ["model=mlp", "model.width=8", "model.depth=2", "threads=1"]
"""A run of an epoch takes a moment. What is set twice on a command line has its last value."""


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """A command line in this process: its exit code, and what it wrote to stdout and stderr."""
    argv = sys.argv
    try:
        code = cli.main(list(arguments))
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def one_sentence(err: str) -> str:
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def obey_signals() -> None:
    """Also below `nohup`, or in the background of a shell, which make a process deaf to them."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


@dataclass(frozen=True)
class Installed:
    """A fresh environment with the wheel in it: what a user of `pip install` has."""

    programs: Path

    def run(self, *command: str, folder: Path | None = None, terminal: bool = False, **variables: str) -> Done:
        """Run a program of the environment in the current folder, or in `folder`."""
        hidden = ("PYTHONPATH", "VIRTUAL_ENV")
        env = {k: v for k, v in os.environ.items() if k not in hidden} | {"OMP_NUM_THREADS": "1", **variables}
        env["PATH"] = f"{self.programs}{os.pathsep}{env['PATH']}"
        process = [str(self.programs / command[0]), *command[1:]]
        if terminal:
            return _on_a_terminal(process, folder, env | {"TERM": "xterm"})
        done = subprocess.run(process, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=900)
        return Done(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class Done:
    """How a program ended and what it wrote; on a terminal both streams are one."""

    code: int
    out: str
    err: str


def _on_a_terminal(command: list[str], folder: Path | None, env: dict[str, str]) -> Done:
    master, slave = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=env, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    seen = b""
    with suppress(OSError):  # Linux answers EIO when the other side is gone
        while chunk := os.read(master, 4096):
            seen += chunk
    os.close(master)
    out = seen.decode(errors="replace").replace("\r\n", "\n")
    return Done(process.wait(timeout=60), out, out)
