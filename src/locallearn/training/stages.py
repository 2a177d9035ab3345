"""A run whose blocks live in several processes: how they are divided, started, and ended."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from locallearn.config.experiment import Experiment
from locallearn.engine import Learner
from locallearn.engine.replicas import LostProcess
from locallearn.errors import RunError, UserError, described
from locallearn.plan.measure import block_times
from locallearn.runs import again, checkpoint
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder
from locallearn.runtime import Pipeline
from locallearn.runtime.launch import launch
from locallearn.runtime.link import Pipe
from locallearn.runtime.world import JoinedWorld, join, started_together
from locallearn.training.environment import choose_device
from locallearn.training.prepare import Part, prepare
from locallearn.training.stopping import Interrupted, stop_signals
from locallearn.training.train import train

SAYING_SECONDS = 10.0


def check_launcher(exp: Experiment) -> None:
    """Under torchrun the number of processes must be that of the configuration. Raises UserError."""
    started, wanted = started_together(), exp.runtime.processes
    if started and started != wanted:
        runtime = exp.names["runtime"]
        stages = f" of {exp.runtime.replicas} replicas" if exp.runtime.replicas > 1 else ""
        way_out = (
            f"start {wanted}, or choose runtime.stages={started}"
            if isinstance(exp.runtime, Pipeline)
            else f"choose runtime=pipeline runtime.stages={started}"
        )
        if os.environ["RANK"] != "0":  # rank 0 says it, and must not be ended before it has
            time.sleep(SAYING_SECONDS)
            raise SystemExit(2)
        raise UserError(f"torchrun started {started} processes, but runtime={runtime}{stages} has {wanted}; {way_out}")


def divide(exp: Experiment, learner: Learner, batch: int) -> list[range]:
    """The blocks of each stage. Raises UserError for what cannot be divided, before any process is started."""
    depth = len(learner.blocks)
    if not isinstance(exp.runtime, Pipeline):
        return [range(depth)]
    even = exp.runtime.divide(depth, None)
    if exp.runtime.split != "auto" or exp.runtime.stages in (1, depth):
        return even
    times = block_times(learner, batch // exp.runtime.replicas)
    return exp.runtime.divide(depth, [found.total for found in times])


def run_stages(exp: Experiment, folder: RunFolder, quiet: bool) -> None:
    """Start the processes of the run in `folder`, and wait for their end; what the run leaves is theirs to write. One
    that fails ends the others. Raises RunError and Interrupted."""
    flags = [*(f"--allow={package}" for package in exp.settings.allow), *(["--quiet"] if quiet else [])]
    command = [sys.executable, "-m", "locallearn", "stage", str(folder.path), *flags]
    folder.status("running")
    try:
        with stop_signals() as stop, tempfile.TemporaryDirectory(prefix="locallearn-") as reasons:
            size, replicas = exp.runtime.processes, exp.runtime.replicas
            code = launch(command, size, replicas, reasons, lambda: stop.number, folder.locks)
    except RunError as error:
        folder.status("failed", reason=str(error))
        raise RunError(f"{error} (run folder: {folder.path}); go on with: {again.resume(folder.path)}") from error
    except KeyboardInterrupt:
        folder.status("interrupted", reason="stopped at once")
        raise
    if code:
        interrupted = Interrupted(code - 128)
        interrupted.run = str(folder.path)
        folder.status("interrupted", reason=str(interrupted))  # a process stopped before it trained has not said so
        raise interrupted


@contextmanager
def together(replicas: int) -> Iterator[JoinedWorld]:
    """One of the processes of a run. A failure here ends the process at once, after its cause was told: other threads
    of it may be waiting for ever for a neighbour."""
    world = join(replicas)
    try:
        yield world
    except Interrupted as error:  # in every process
        world.close()
        raise error if world.rank == 0 else SystemExit(error.exit_code) from error
    except Exception as error:
        if not world.closed:
            said = str(error) if isinstance(error, UserError | RunError) else described(error)
            world.leave(said, secondary=isinstance(error, LostProcess))
        raise
    world.close()


def from_rank_0(world: JoinedWorld, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What rank 0 makes, in every process. A mistake of the user ends all of them, after rank 0 has said it."""
    told: dict[str, Any] = {}
    if world.rank == 0:
        try:
            told = make()
        except UserError as error:
            print(f"locallearn: {error}", file=sys.stderr, flush=True)
    told = world.broadcast(told)
    if not told:
        world.close()
        raise SystemExit(2)
    return told


def run_part(exp: Experiment, known: dict[str, Any], folder: RunFolder, world: JoinedWorld, quiet: bool) -> None:
    """What this process has of a run, from the newest checkpoint or the start. Raises RunError and Interrupted."""
    cut, stages = ranges(known["cut"]), ranges(known["stages"])
    world.before_leaving = partial(_say_failed, folder, world.stage)
    message = torch.bfloat16 if isinstance(exp.runtime, Pipeline) and exp.runtime.message == "bf16" else None
    device = own_device(exp.settings.device)
    late = exp.runtime.staleness * exp.settings.micro_batches
    link = Pipe(world.rank_below, world.rank_above, device, message, late)
    learner, data = prepare(exp, cut, Part(stages[world.stage], device, link, world.replica_group), known)
    saved = checkpoint.newest(folder.path / "checkpoints", warn)
    try:
        train(exp, learner, data, folder, quiet, saved, world, lambda: prepare(exp, cut, known=known)[0])
    except Interrupted:  # in every process
        link.close()
        raise
    link.close()


def _say_failed(folder: RunFolder, stage: int, reason: str, secondary: bool) -> None:
    """Where nobody watches the processes, the one that fails writes the status; who only lost it leaves it the word."""
    if secondary:
        time.sleep(1.0)
    if not secondary or folder.read_json("status.json").get("state") != "failed":
        folder.status("failed", reason=f"stage {stage}: {reason}")


def own_device(name: str) -> torch.device:
    """`device=` for this process: with GPUs each process takes the next one, and they share when there are too few."""
    device = choose_device(name)
    if device.type == "cuda" and device.index is None:
        here = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        device = torch.device("cuda", here % torch.cuda.device_count())
    return device


def places(exp: Experiment) -> dict[str, Any]:
    """What of the runtime changes the bits of a run, for its manifest."""
    return {"replicas": exp.runtime.replicas, "message": getattr(exp.runtime, "message", "exact")}


def ranges(pairs: Any) -> list[range]:
    """What a manifest says of the cut or of the stages."""
    return [range(*pair) for pair in pairs]
