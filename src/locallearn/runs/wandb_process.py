"""The process that talks to W&B for one run, started by `wandb_sink` and not meant to be started by hand.

Over the connection with the number argv[1] it gets JSON messages (`{"setup": ...}`, then `{"log": ...}` or
`{"show": ...}`, at last `{"finish": ...}`) and answers the first and the last. If the connection ends early or the
parent is gone, the run ends as failed. It imports nothing of locallearn, hence no torch, so that it starts in a second
and can be killed at any moment.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

PARENT_CHECK_SECONDS = 2.0


def messages(connection: Connection, parent: int) -> Iterator[dict[str, Any]]:
    """The parent's messages until it closes or is gone (a forked worker may hold its end open)."""
    while connection.poll(PARENT_CHECK_SECONDS) or os.getppid() == parent:
        if connection.poll():
            try:
                yield json.loads(connection.recv_bytes())
            except EOFError:
                return


def sentence(error: BaseException) -> str:
    """The error on one line; W&B's error for a refused key has no text at all."""
    text = " ".join(str(error).split())[:200]
    return type(error).__name__ if text in ("", "<no message>") else text


def start(setup: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The W&B run, or None; and the answer for the parent, with any problem."""
    try:
        run = open_run(setup)
    except Exception as error:
        return None, {"mode": None, "problem": sentence(error)}
    offline = bool(run.offline)
    mode = "disabled" if run.disabled else "offline" if offline else "online"
    return run, {"mode": mode, "path": run.settings.sync_dir, "url": None if offline else run.url, "id": run.id}


def open_run(setup: dict[str, Any]) -> Any:
    """Start the run; a mode None leaves the choice to W&B's own settings (WANDB_MODE, `wandb offline`)."""
    import wandb

    wanted = {
        "init_timeout": setup["init_seconds"],
        "finish_timeout": setup["finish_seconds"],
        "finish_timeout_raises": True,
        "silent": True,
        "console": "off",
        "save_code": False,  # neither code nor git state nor a remote's address (it may hold a token) is sent
        "disable_code": True,
        "disable_git": True,
        "disable_job_creation": True,
        "x_stats_pid": os.getppid(),  # the memory and processor time of the training, not of this process
    }
    known = wandb.Settings.model_fields  # older versions lack some and refuse unknown ones
    settings = wandb.Settings(**{key: value for key, value in wanted.items() if key in known})
    run = wandb.init(**setup["init"], settings=settings)
    run.define_metric("step", hidden=True)
    for pattern in setup["curves"]:
        run.define_metric(pattern, step_metric="step")
    return run


def log(run: Any, record: dict[str, Any]) -> None:
    """Hand one record to W&B; one that it refuses is its loss, not the end of the others."""
    try:
        run.log({key: value for key, value in record.items() if value is not None}, step=record.get("step"))
    except Exception as error:
        print(f"not logged: {error}", file=sys.stderr)


def show(run: Any, tables: dict[str, list[dict[str, Any]]], images: dict[str, str]) -> None:
    """Hand rows and the files of pictures to W&B, under their names."""
    try:
        import wandb

        shown: dict[str, Any] = {name: wandb.Image(picture) for name, picture in images.items()}
        for name, rows in tables.items():
            columns = list(dict.fromkeys(key for row in rows for key in row))
            # W&B wants one type in a column: what is missing among numbers is NaN
            texts = {key for row in rows for key, value in row.items() if isinstance(value, str)}
            empty = {key: "" if key in texts else float("nan") for key in columns}
            data = [[empty[key] if row.get(key) is None else row[key] for key in columns] for row in rows]
            shown[name] = wandb.Table(columns=columns, data=data, allow_mixed_types=True)
        run.log(shown)
    except Exception as error:
        print(f"{', '.join(tables)}: not shown: {error}", file=sys.stderr)


def upload(run: Any, file: str) -> str | None:
    """Hand the weights of the model to W&B, under the run's id; returns what went wrong."""
    try:
        import wandb

        artifact = wandb.Artifact(f"model-{re.sub(r'[^a-zA-Z0-9_.-]', '-', run.id)}", type="model")
        artifact.add_file(file, policy="immutable")  # without a copy: the file stays where it is
        run.log_artifact(artifact)
    except Exception as error:
        return f"the model was left out ({sentence(error)})"
    return None


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    incoming = messages(connection, parent=int(sys.argv[2]))
    first = next(incoming, None)
    if first is None:
        return 1
    run, answer = start(first["setup"])
    connection.send_bytes(json.dumps(answer).encode())
    if run is None:
        return 1
    end: dict[str, Any] = {"exit_code": 1, "summary": {}}  # what holds if the parent never says how it ended
    for message in incoming:
        if "finish" in message:
            end = message["finish"]
            break
        if "show" in message:
            show(run, **message["show"])
        else:
            log(run, message["log"])
    problem = None
    try:
        run.summary.update(end["summary"])
        if end.get("artifact"):
            problem = upload(run, end["artifact"])
        run.finish(exit_code=end["exit_code"])
    except BaseException as error:
        problem = sentence(error)
    try:
        connection.send_bytes(json.dumps({"problem": problem}).encode())
    finally:  # the parent may be gone
        os._exit(0 if problem is None else 1)  # W&B's exit hooks may wait for a server that is gone


if __name__ == "__main__":
    sys.exit(main())
