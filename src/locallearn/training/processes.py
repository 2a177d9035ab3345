"""The processes of a run whose blocks are divided into stages: how they start, meet, and end."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from locallearn import accelerator
from locallearn.accelerator import is_cpu
from locallearn.config.experiment import Experiment
from locallearn.config.objects import groups_of, marks
from locallearn.engine import Learner
from locallearn.engine.replicas import LostProcess
from locallearn.errors import RunError, UserError, described
from locallearn.plan.measure import SAMPLES, block_times
from locallearn.runs import again
from locallearn.runs.folder import RunFolder
from locallearn.runtime import Pipeline
from locallearn.runtime.launch import FIRST_DEVICE, launch
from locallearn.runtime.wire.meeting import host
from locallearn.runtime.world import JoinedWorld, World, join, started_together
from locallearn.training.environment import choose_device
from locallearn.training.stopping import Interrupted, stop_signals

RANK_0_SECONDS = 10.0  # for rank 0 to print a mistake, before torchrun ends it because another process has ended


def check_launcher(exp: Experiment) -> None:
    """Under torchrun the number of processes must be that of the configuration. Raises UserError."""
    started, wanted = started_together(), exp.runtime.processes
    if started and started != wanted:
        if os.environ["RANK"] != "0":
            time.sleep(RANK_0_SECONDS)
            raise SystemExit(2)
        runtime = f"runtime={exp.names['runtime']}"
        runtime += f" of {exp.runtime.replicas} replicas" if exp.runtime.replicas > 1 else ""
        pipeline = isinstance(exp.runtime, Pipeline)
        choice = f"start {wanted}, or choose" if pipeline else "choose runtime=pipeline"
        raise UserError(
            f"torchrun started {started} processes, but {runtime} has {wanted}; {choice} runtime.stages={started}"
        )


def device_to_prepare(exp: Experiment) -> torch.device:
    """Where a run is prepared: on its device, or on the CPU where each of its processes takes an accelerator; this one
    then starts none. Raises UserError for one device that all of them would share."""
    device = choose_device(exp.settings.device)
    if exp.runtime.processes == 1 or is_cpu(device):
        return device
    if device.index is not None:
        raise UserError(
            f"device={device} is one device, and runtime={exp.names['runtime']} has {exp.runtime.processes} processes: "
            f"choose device={device.type}, and each of them takes one of its own"
        )
    first_device()
    return torch.device("cpu")


def first_device() -> int:
    """The number of the accelerator that the first process on a machine takes. Raises UserError."""
    number = os.environ.get(FIRST_DEVICE) or "0"
    if not number.isdecimal():
        raise UserError(f"{FIRST_DEVICE}={number}: must be the number of a device, such as 2")
    return int(number)


def is_measured(exp: Experiment, depth: int) -> bool:
    """Whether the times of `depth` blocks decide which stage has them."""
    runtime = exp.runtime
    automatic = isinstance(runtime, Pipeline) and runtime.split == "auto" and runtime.stages not in (1, depth)
    return automatic and exp.settings.train_blocks is None


def divide(exp: Experiment, learner: Learner, batch: int, measured: bool) -> list[range]:
    """The blocks of each stage, by their `measured` times or evenly. Raises UserError for what cannot be divided."""
    depth = len(learner.blocks)
    if not isinstance(exp.runtime, Pipeline):
        return [range(depth)]
    even = exp.runtime.divide(depth, None)
    if not measured or not is_measured(exp, depth):
        return even
    share = batch // exp.runtime.replicas
    samples = SAMPLES if is_cpu(learner.device) else share  # from few samples nothing follows for a GPU
    return exp.runtime.divide(depth, [block.total for block in block_times(learner, share, samples=samples)])


def launch_all(exp: Experiment, folder: RunFolder, quiet: bool, objects: int | None) -> None:
    """Start the processes of the run in `folder`, and wait for their end; what the run leaves is theirs to write. One
    that fails ends the others. `objects` is the open file that hands Python's own over. Raises RunError and
    Interrupted."""
    flags = [*(f"--allow={package}" for package in exp.settings.allow), *(["--quiet"] if quiet else [])]
    flags += [] if objects is None else [f"--objects={objects}"]
    command = [sys.executable, "-m", "locallearn", "stage", str(folder.path), *flags]
    inherited = [*folder.locks, *([] if objects is None else [objects])]
    folder.status("running")
    try:
        with stop_signals() as stop, tempfile.TemporaryDirectory(prefix="locallearn-") as reasons:
            size, replicas = exp.runtime.processes, exp.runtime.replicas
            code = launch(command, size, replicas, reasons, lambda: stop.number, inherited)
    except RunError as error:
        folder.status("failed", reason=str(error))
        on = again.resume(folder.path, groups_of(marks(exp.config)))
        raise RunError(f"{error} (run folder: {folder.path}); go on with: {on}") from error
    except KeyboardInterrupt:
        folder.status("interrupted", reason="stopped at once")
        raise
    if code:
        interrupted = Interrupted(code - 128)
        interrupted.run = str(folder.path)
        folder.status("interrupted", reason=str(interrupted))  # a process stopped before it trained has not said so
        raise interrupted


@contextmanager
def joined(replicas: int) -> Iterator[JoinedWorld]:
    """Be one of the processes of a run. A failure ends this process at once, once its cause is reported: other threads
    of it may be waiting for ever for a neighbour."""
    world = join(replicas)
    try:
        yield world
    except Interrupted as error:  # in every process
        world.close()
        raise error if world.rank == 0 else SystemExit(error.exit_code) from error
    except Exception as error:
        if not world.closed:
            reason = str(error) if isinstance(error, UserError | RunError) else described(error)
            world.leave(reason, secondary=isinstance(error, LostProcess))
        raise
    world.close()


def from_rank_0(world: JoinedWorld, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` returns at rank 0, in every process. A mistake of the user ends all of them, once rank 0 has printed
    it."""
    value: dict[str, Any] = {}
    if world.rank == 0:
        try:
            value = make()
        except UserError as error:
            print(f"locallearn: {error}", file=sys.stderr, flush=True)
    value = world.broadcast(value)
    if not value:
        world.close()
        raise SystemExit(2)
    return value


def record_failure(folder: RunFolder, stage: int, reason: str, secondary: bool) -> None:
    """Where nobody watches the processes, the one that fails writes the status; one that has only lost a neighbour
    (`secondary`) lets that one write first."""
    if secondary:
        time.sleep(1.0)
    if not secondary or folder.state != "failed":
        folder.status("failed", reason=f"stage {stage}: {reason}")


def device_of_process(name: str, world: World) -> torch.device:
    """`device=` for this process, which makes it the current one: of the accelerators of its machine each process takes
    the next, from that on which the environment names, and they share when there are too few. All must call this."""
    device = choose_device(name)
    machines = world.broadcast(world.gather(host()))
    here = int(os.environ.get("LOCAL_RANK") or machines[: world.rank].count(machines[world.rank]))
    if not is_cpu(device):
        device = torch.device(device.type, (first_device() + here) % accelerator.count())
        accelerator.use(device)
    return device
