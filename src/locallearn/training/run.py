"""A run from its checked configuration to its summary: build everything, then make the folder, then train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as to_bytes

from locallearn import accelerator
from locallearn.accelerator import is_cpu
from locallearn.config.experiment import Experiment
from locallearn.config.objects import marks
from locallearn.engine import Learner, Place
from locallearn.engine.answer import answering_model, answers, exported
from locallearn.figures.text import columns, fitted
from locallearn.models.summary import render, short
from locallearn.plan.operations import backprop_flops, step_flops
from locallearn.runs import checkpoint, files
from locallearn.runs.console import Console, warn
from locallearn.runs.folder import RunFolder
from locallearn.runtime import Pipeline
from locallearn.runtime.link import Pipe
from locallearn.runtime.wire.meeting import host
from locallearn.runtime.world import JoinedWorld, World, started_together
from locallearn.training import processes
from locallearn.training.begin import Ready, new_run, old_run, on_device, rows
from locallearn.training.calls import Calls
from locallearn.training.environment import choose_device, process_settings, reset_peak_memory
from locallearn.training.handover import handed_over, taken_over
from locallearn.training.longer import STRETCHED, longer
from locallearn.training.loop import Training
from locallearn.training.output import Output
from locallearn.training.prepare import check_data, prepare
from locallearn.training.probing import Probing
from locallearn.training.saved import NONE_GIVEN, Result, finished, ranges, saved_experiment
from locallearn.training.stopping import Interrupted

SINGLE = World()


def dry_run(exp: Experiment) -> str:
    """The table of blocks: output shape, parameters, FLOPs, auxiliary share, what is dropped at inference, and what a
    training step costs; above it what weights are from elsewhere."""
    with process_settings(exp.settings):
        learner, _ = prepare(exp, device=processes.device_to_prepare(exp))
        taken = [each.text for each in learner.model.taken]
        flops, backprop = step_flops(learner), backprop_flops(learner)
        times = f", {flops / backprop:.2f} times backprop's" if backprop else ""  # a net may have no product at all
        cost = f"a training step takes {short(flops)} FLOPs a sample{times}"
        return "\n".join([*taken, render(rows(learner), columns()), fitted(cost, columns())])


def start(
    exp: Experiment, quiet: bool = False, name: str | None = None, first: Mapping[str, Any] | None = None
) -> Result | None:
    """Run an experiment from the beginning, in a folder `name`, or in one named by the time. `first` is the manifest of
    the run that this one repeats. Under torchrun every process calls this, and only rank 0 gets a Result.

    Raises UserError before anything is written, RunError when training had to stop, Interrupted after a signal.
    """

    def begin(facts: dict[str, Any]) -> Ready:
        ready = new_run(exp, facts, name)
        if first is not None:
            check_data(ready.data, first)
        return ready

    return _run(exp, quiet, begin)


def resume(
    path: str | Path,
    allow: list[str],
    quiet: bool = False,
    runtime: tuple[str, dict[str, Any]] | None = None,
    overrides: Sequence[str] = (),
    epochs: int | None = None,
    schedule: str = STRETCHED,
    objects: Mapping[str, Any] = NONE_GIVEN,
) -> Result | None:
    """Go on with a run that was interrupted, failed or killed, to the same bits as if it had not been. `runtime` is the
    name and the configuration of another one, `overrides` the settings from which it was made. With more `epochs` than
    the run has it is made longer, also one that is done; `schedule` says what becomes of the learning rate, stretched
    or held (see `training.longer`); `objects` are Python's own that the run began with. Raises as `start`."""
    folder = RunFolder.open(Path(path))
    exp, manifest = saved_experiment(folder, allow, runtime, overrides=overrides, objects=objects)
    change = None
    if epochs is not None:
        before = exp
        exp, _ = saved_experiment(folder, allow, runtime, {"epochs": epochs}, overrides, objects)
        change = longer(before, exp, schedule)
    if folder.state == "done" and change is None:
        Console(quiet=quiet).line(f"{folder.path} is done already; nothing to resume")
        return finished(folder, allow, objects)
    try:
        return _run(exp, quiet, lambda facts: old_run(exp, manifest, folder, facts, quiet, change))
    finally:
        folder.release()


def stage(path: str, allow: list[str], quiet: bool, objects: int | None = None) -> None:
    """One process of a run that `processes.launch_all` has started, perhaps with an open file of Python's objects."""
    folder = RunFolder(Path(path))
    exp, manifest = saved_experiment(folder, allow, objects=taken_over(objects), same=True)
    with process_settings(exp.settings, exp.runtime.processes), processes.joined(exp.runtime.replicas) as world:
        _train_stage(exp, manifest, folder, world, quiet)


def _run(exp: Experiment, quiet: bool, begin: Callable[[dict[str, Any]], Ready]) -> Result | None:
    """Train in this process, in processes of its own, or as one of those that torchrun has started."""
    processes.check_launcher(exp)
    with process_settings(exp.settings, exp.runtime.processes) as facts, ExitStack() as stack:

        def begun(hosts: Sequence[str] = ()) -> Ready:
            gpus = 0 if is_cpu(choose_device(exp.settings.device)) else accelerator.count()
            wires = exp.runtime.wires(hosts or [host()] * exp.runtime.processes, gpus)
            ready = begin(facts | ({"wires": wires} if wires else {}))
            stack.callback(ready.folder.release)
            return ready

        if started_together():
            return _run_in_torchrun(exp, quiet, begun)
        if exp.runtime.processes == 1:
            return train(exp, begun(), quiet)
        objects = stack.enter_context(handed_over(exp.objects if marks(exp.config) else {}))
        folder = begun().folder  # the processes have their own learner and data
        processes.launch_all(exp, folder, quiet, objects)
        return finished(folder, exp.settings.allow, exp.objects)


def _run_in_torchrun(exp: Experiment, quiet: bool, begin: Callable[[Sequence[str]], Ready]) -> Result | None:
    """Rank 0 checks everything and makes the folder; then all processes train."""

    def facts() -> dict[str, Any]:
        folder = begin(hosts).folder
        return {"path": str(folder.path), "manifest": folder.read_json(files.MANIFEST)}

    with processes.joined(exp.runtime.replicas) as world:
        hosts = world.gather(host())
        shared = processes.from_rank_0(world, facts)
        folder = RunFolder(Path(shared["path"]))
        _train_stage(exp, shared["manifest"], folder, world, quiet)
    return finished(folder, exp.settings.allow, exp.objects) if world.rank == 0 else None


def _train_stage(exp: Experiment, manifest: dict[str, Any], folder: RunFolder, world: JoinedWorld, quiet: bool) -> None:
    """Train the blocks of this process, from the newest checkpoint or the start. Raises RunError and Interrupted."""
    world.before_leaving = partial(processes.record_failure, folder, world.stage)
    device = processes.device_of_process(exp.settings.device, world)
    own = manifest
    manifest = processes.from_rank_0(world, lambda: own if is_cpu(device) else on_device(exp, own, folder, device))
    cut, stages = ranges(manifest["cut"]), ranges(manifest["stages"])
    late = exp.runtime.staleness * exp.settings.micro_batches
    assert isinstance(exp.runtime, Pipeline)
    message = torch.bfloat16 if exp.runtime.message == "bf16" else None
    link = Pipe(world.rank_below, world.rank_above, device, message, late, exp.runtime.wire)
    saved = checkpoint.newest(folder.checkpoints, warn)
    replicas = world.replica_group(device if exp.runtime.wire == "nccl" else None)
    place = Place(device, stages[world.stage], link, replicas)
    learner, data = prepare(exp, cut, place, manifest, fresh=saved is None)
    if world.stage:  # it gets what its blocks read from the stage below
        data.leave_samples()
        reset_peak_memory()
    ready = Ready(folder, learner, data, saved)
    try:
        train(exp, ready, quiet, world, lambda: prepare(exp, cut, manifest=manifest, fresh=False)[0])
    except Interrupted:  # in every process
        link.close()
        raise
    link.close()


def train(
    exp: Experiment, ready: Ready, quiet: bool, world: World = SINGLE, whole: Callable[[], Learner] | None = None
) -> Result:
    """Train to the end, then export and summarise; of several processes only rank 0 writes. `whole` makes a learner
    with every block, where this process has a part of them. Raises RunError and Interrupted."""
    folder, learner, data, saved = ready
    output = Output(exp, folder, quiet, world)
    with output.ending(world):
        watch = Probing(exp.probes, data, folder, world, whole or (lambda: learner))
        calls = Calls(exp.callbacks, learner, data, folder.path, world)
        training = Training(exp, learner, data, output, watch, world, calls)
        if saved is not None:
            training.restore(saved)
        watch.follow(learner, training.steps_per_epoch)
        record = training.run()
        training.tell("end", record)
        counts = world.gather(parameter_counts(learner))
        weights = world.gather_tensors({f"model.{n}": t for n, t in exported(learner).items()})
        if output.recorder is not None:
            copies = range(0, world.size, world.replicas)
            record |= {name: sum(counts[rank][name] for rank in copies) for name in counts[0]}
            model = {name.removeprefix("model."): t for name, t in weights.items()}
            folder.write_bytes(files.MODEL, to_bytes(checkpoint.distinct(model)))
            folder.write_json(files.SUMMARY, record)
            watch.draw(output.recorder)
            reason = {"reason": training.position.stopped} if training.position.stopped else {}
            folder.status("done", epoch=record["epoch"], step=record["step"], **reason)
            output.recorder.close("done", record)
            for why in reason.values():
                output.console.line(f"stopped early: {why}")
            output.console.final_table(record, len(learner.cut))
            output.console.finish(folder.path)
    return Result(record, answering_model(learner), folder.path, folder.history() if world.rank == 0 else [])


def parameter_counts(learner: Learner) -> dict[str, int]:
    """Trainable numbers of the model and what ships with it, and of what trains it and never ships; of the blocks in
    this process."""
    counts = {"parameters": 0, "auxiliary_parameters": 0}
    for name, p in learner.parameters():
        ships = name.startswith("model.") or answers(name, learner.strategy.ships)
        counts["parameters" if ships else "auxiliary_parameters"] += p.numel()
    return counts
