"""A copy of each record to W&B, from a process of its own, so that nothing W&B does reaches the training.

`log` puts a record into a bounded queue and returns; a thread feeds the process (see `wandb_process`). No key, no
network, a server that refuses, hangs or vanishes: the run is recorded offline, or its upload is given up at a time
limit, and one line on stderr says so and how to upload it later.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from pathlib import Path
from typing import IO, Any

from locallearn.config.record import WandbSettings
from locallearn.config.registry import flat
from locallearn.errors import UserError
from locallearn.names import PATTERNS, of_probe
from locallearn.runs import files
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder

INIT_SECONDS = 10.0  # for the server's answer to a new run; then offline
HANG_SECONDS = 10.0  # beyond INIT_SECONDS, for a process that does not even report that
FINISH_SECONDS = 30.0  # for all that is left to do at close; then the process is killed
ARTIFACT_SECONDS = 600.0  # the same where the weights of the model go along
NOT_FOR_WANDB = ("WANDB_SERVICE", "SLURM_")  # it would send every variable of Slurm's, tokens of a job included
QUEUE_RECORDS = 1000  # when full, the oldest is dropped
VARIABLES = {
    "project": "WANDB_PROJECT",
    "entity": "WANDB_ENTITY",
    "name": "WANDB_NAME",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_JOB_TYPE",
    "notes": "WANDB_NOTES",
    "tags": "WANDB_TAGS",
    "dir": "WANDB_DIR",
    "resume": "WANDB_RESUME",
}
"""W&B's environment variables that win over what we would say, and yield to what the user has set. All others, such as
WANDB_MODE, WANDB_API_KEY and WANDB_BASE_URL, W&B reads by itself; their values pass through no file."""
EXIT_CODES = {"done": 0, "failed": 1, "interrupted": 255}  # 255 is what W&B itself uses for Ctrl-C


class WandbSink:
    """One W&B run, under an id that is kept in `wandb.json` of the run folder so that a resumed run continues it."""

    name = "W&B"

    def __init__(self, folder: RunFolder, settings: WandbSettings, about: Mapping[str, Any]) -> None:
        """`about` holds config and name, and may hold group, job_type and tags."""
        self._folder = folder
        self._identity = _identity(folder)
        self._artifact = settings.artifact
        self._finish_seconds = FINISH_SECONDS if settings.artifact == "none" else ARTIFACT_SECONDS
        ours = {"group": None, "job_type": None, "tags": [], **about, "project": "locallearn", "entity": None}
        ours |= {"dir": str(folder.path), "resume": "allow", "notes": None}
        users: dict[str, Any] = {n: getattr(settings, n) for n in ("project", "entity", "group", "name", "notes")}
        if settings.tags:
            users["tags"] = [*settings.tags, *ours["tags"]]
        self._init = {
            # None is what W&B finds in the environment
            **{n: users.get(n) or (None if os.environ.get(VARIABLES.get(n, "")) else v) for n, v in ours.items()},
            "config": flat(about["config"]),  # flat, so that panels and filters of W&B find the keys
            "mode": _mode(settings.mode),
            "id": self._identity["id"],
        }
        self._queue: deque[Mapping[str, Any]] = deque(maxlen=QUEUE_RECORDS)
        self._dropped = 0
        self._final: dict[str, Any] | None = None
        self._changed = threading.Condition()
        self._child: _Child | None = None
        self._over = False
        self._thread = threading.Thread(target=self._feed, name="wandb", daemon=True)
        self._thread.start()

    def log(self, record: Mapping[str, Any]) -> None:
        """Queue a record; microseconds, whatever W&B is doing."""
        self._put({"log": record})

    def show(self, name: str, rows: Sequence[Mapping[str, Any]], pictures: Sequence[Path]) -> None:
        """Queue the table and the pictures of a probe."""
        tables = {of_probe(name, "rows"): [dict(row) for row in rows]}
        images = {of_probe(name, picture.stem): str(picture) for picture in pictures}
        self._put({"show": {"tables": tables, "images": images}})

    def _put(self, message: Mapping[str, Any]) -> None:
        with self._changed:
            if self._over:
                return
            self._dropped += len(self._queue) == QUEUE_RECORDS
            self._queue.append(message)
            self._changed.notify()

    def close(self, status: str, summary: Mapping[str, Any]) -> None:
        """End the run as finished, failed or killed; returns within FINISH_SECONDS (with an artifact ARTIFACT_SECONDS)
        and a few more."""
        model = self._folder.path / files.MODEL
        artifact = str(model) if self._artifact == "model" and status == "done" and model.is_file() else None
        with self._changed:
            self._final = {"exit_code": EXIT_CODES.get(status, 1), "summary": dict(summary), "artifact": artifact}
            self._changed.notify()
        self._thread.join(self._finish_seconds)
        if self._thread.is_alive():
            self._stop(f"the upload did not end within {self._finish_seconds:g} s")
            self._thread.join(2)
        if self._dropped:
            warn(f"W&B: could not keep up; {self._dropped} records are only in {self._folder.metrics_path}")

    def _feed(self) -> None:
        try:
            child = self._open_child()
            while (message := self._next()) is not None:
                child.send(message)
            child.send({"finish": self._final})
            answer = child.answer(self._finish_seconds)
            if answer["problem"]:
                self._stop(f"the upload did not end: {answer['problem']}")
        except Exception as error:  # a dead process, mostly: its pipe is broken
            self._stop(str(error) or type(error).__name__)
        finally:
            self._over = True
            if self._child is not None:
                self._child.kill()

    def _next(self) -> Mapping[str, Any] | None:
        """The oldest record, waiting for one; None after the last."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._final is not None)
            return self._queue.popleft() if self._queue else None

    def _open_child(self) -> _Child:
        """A process with a started run, and a line that says where that is. Raises RuntimeError if none starts."""
        problem = None
        limits = {"init_seconds": INIT_SECONDS, "finish_seconds": self._finish_seconds * 2 / 3}
        for mode in dict.fromkeys((self._init["mode"], "offline")):
            self._child = _Child(self._folder.path / "wandb")
            self._child.send({"setup": {"init": {**self._init, "mode": mode}, "curves": PATTERNS, **limits}})
            answer = self._child.answer(INIT_SECONDS + HANG_SECONDS)
            problem = problem or answer.get("problem")
            if answer.get("mode") is not None:
                self._announce(answer, problem)
                return self._child
            self._child.kill()
            if self._over:  # `close` has given up meanwhile: do not start another
                break
        raise RuntimeError(problem)

    def _announce(self, answer: dict[str, Any], problem: str | None) -> None:
        self._identity.update(id=answer["id"], mode=answer["mode"], path=answer["path"], url=answer["url"])
        self._folder.write_json("wandb.json", self._identity)
        if answer["mode"] == "offline":
            why = f"{problem.rstrip('.')}; " if problem else ""
            warn(f"W&B: {why}recorded offline: {_how_to_look(answer['path'])}", kind="note")
        elif answer["mode"] == "online":
            warn(f"W&B: {answer['url']}", kind="note")

    def _stop(self, problem: str) -> None:
        """Give W&B up with one line; safe from both threads and a second time."""
        with self._changed:
            if self._over:
                return
            self._over = True
        if self._child is not None:
            self._child.kill()
        path = self._identity.get("path")
        rest = f": {_how_to_look(path)}" if path else f", see {self._folder.path / 'wandb' / 'process.log'}"
        warn(f"W&B: {problem}; {self._folder.metrics_path.name} has every record; W&B's local copy{rest}")


class _Child:
    """The process beside the training. In a session of its own, so that Ctrl-C in the terminal ends it through us."""

    def __init__(self, folder: Path) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith(NOT_FOR_WANDB)}
        environment.setdefault("WANDB_ERROR_REPORTING", "false")
        self._connection, theirs = Pipe()
        # By path and with -P instead of -m: imports no locallearn (hence no torch) and works however we were started.
        program = str(Path(__file__).with_name("wandb_process.py"))
        command = [sys.executable, "-P", program, str(theirs.fileno()), str(os.getpid())]
        with theirs, _log_file(folder) as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def send(self, message: Mapping[str, Any]) -> None:
        """Blocks while the process is busy and much is under way; raises OSError when the process is gone."""
        self._connection.send_bytes(json.dumps(message, default=_plain).encode())

    def answer(self, seconds: float) -> dict[str, Any]:
        """The next answer; after `seconds`, or when the process is gone, that as its `problem`."""
        try:
            if self._connection.poll(seconds):
                return dict(json.loads(self._connection.recv_bytes()))
        except (EOFError, OSError):
            return {"problem": "the W&B process ended unexpectedly"}
        return {"problem": f"the W&B process did not answer within {seconds:g} s"}

    def kill(self) -> None:
        """End it now; W&B's service, its child, follows by itself within seconds."""
        if self._process.poll() is None:
            with suppress(OSError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)


def _mode(chosen: str) -> str | None:
    """None leaves the choice to W&B. WANDB_DISABLED is of its older versions; the newer ones have forgotten it."""
    if chosen != "auto":
        return chosen
    return "disabled" if os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on") else None


def _identity(folder: RunFolder) -> dict[str, Any]:
    """The id of the run folder's W&B run, made at the first start: WANDB_RUN_ID, or the folder's name and a random
    part."""
    with suppress(UserError):
        if isinstance(known := folder.read_json("wandb.json").get("id"), str):
            return {"id": known}
    # W&B takes at most 64 characters
    identity = {"id": os.environ.get("WANDB_RUN_ID") or f"{folder.name[-50:]}-{secrets.token_hex(4)}"}
    folder.write_json("wandb.json", identity)
    return identity


def _plain(value: Any) -> Any:
    """What JSON does not know: array scalars as numbers (NaN stays: W&B shows it), anything else as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _how_to_look(path: str) -> str:
    return f"look at it with `wandb leet {path}`, upload it later with `wandb sync {path}`"


def _log_file(folder: Path) -> IO[bytes]:
    try:
        folder.mkdir(exist_ok=True)
        return open(folder / "process.log", "ab")
    except OSError:
        return open(os.devnull, "wb")
