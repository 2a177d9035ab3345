"""A run whose blocks live in several processes: the one that starts them, and what each of them does."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch

from locallearn.config.experiment import Experiment
from locallearn.contract import Route
from locallearn.engine import Learner
from locallearn.errors import RunError, UserError
from locallearn.models.cut import seconds_per_unit
from locallearn.probes.base import Nothing
from locallearn.runtime.choice import Pipeline
from locallearn.runtime.launch import launch
from locallearn.runtime.link import Pipe
from locallearn.runtime.world import World, join
from locallearn.stopping import Interrupted, stop_signals
from locallearn.training.console import Console
from locallearn.training.run_folder import RunFolder


def divide(exp: Experiment, learner: Learner) -> list[range]:
    """The blocks of each stage. Raises UserError for what a pipeline cannot do, before any process is started."""
    runtime = exp.runtime
    if not isinstance(runtime, Pipeline):
        return [range(len(learner.blocks))]
    if not isinstance(exp.probe, Nothing):
        raise UserError(f"probe={exp.names['probe']} needs all blocks in one process: choose runtime=serial")
    if learner.device.type == "cuda" and runtime.stages > torch.cuda.device_count():
        pass  # stages share the devices; that is slower, not wrong
    units = seconds_per_unit(learner.model) if runtime.split == "auto" else [1.0] * len(learner.model.units)
    return runtime.divide([sum(units[i] for i in block) for block in learner.cut])


def run_stages(exp: Experiment, folder: RunFolder, stages: int, allow: list[str], quiet: bool) -> None:
    """Start one process per stage for the run in `folder`, and wait for their end. The state is theirs to write; a stage
    that fails ends the others. Raises RunError and Interrupted."""
    flags = [*(f"--allow={package}" for package in allow), *(["--quiet"] if quiet else [])]
    command = [sys.executable, "-m", "locallearn", "stage", str(folder.path), *flags]
    folder.status("running")
    try:
        with stop_signals() as stop:
            code = launch(command, stages, lambda: stop.number)
    except RunError as error:
        folder.status("failed", reason=str(error))
        raise RunError(f"{error} (run folder: {folder.path}); go on with: locallearn resume {folder.path}") from error
    if code > 128:
        interrupted = Interrupted(code - 128)
        interrupted.run = str(folder.path)
        raise interrupted


def own_blocks(known: dict[str, Any], world: World) -> range:
    """The blocks of this process. Raises UserError if the number of processes is another than that of the run."""
    stages = [range(*pair) for pair in known["stages"]]
    if len(stages) != world.size:
        raise UserError(
            f"the run has {len(stages)} stages, but {world.size} processes were started; start {len(stages)}"
        )
    return stages[world.rank]


def pipe(world: World, device: torch.device, message: str) -> Pipe:
    below = world.rank - 1 if world.rank else None
    above = world.rank + 1 if world.rank < world.size - 1 else None
    return Pipe(below, above, device, torch.bfloat16 if message == "bf16" else None)
