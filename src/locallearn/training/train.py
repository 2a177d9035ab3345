"""The middle of every run: train with every ending recorded, then export and summarise."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes

from locallearn.config.experiment import Experiment
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import RunError, UserError, described, memory_ran_out
from locallearn.models import BlockModel
from locallearn.runs import checkpoint
from locallearn.runs.console import Console
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder, open_recorder
from locallearn.runtime.world import World
from locallearn.training.loop import Training
from locallearn.training.probing import Watch
from locallearn.training.stopping import Interrupted


@dataclass(frozen=True)
class Result:
    """What a finished run gives back.

    metrics   final values by the names used in metrics.jsonl, plus parameters, auxiliary_parameters and seconds
    model     the trained plain model, in eval mode
    run_dir   where everything was written
    history   one record per epoch
    """

    metrics: dict[str, float]
    model: BlockModel
    run_dir: Path
    history: list[dict[str, Any]] = field(repr=False, default_factory=list)


def train(
    exp: Experiment,
    learner: Learner,
    data: Data,
    folder: RunFolder,
    quiet: bool,
    saved: checkpoint.SavedCheckpoint | None = None,
    world: World | None = None,
    whole: Callable[[], Learner] | None = None,
) -> Result:
    """Train from the start or from `saved` to the end. Of the processes of a `world` only rank 0 writes. Raises
    RunError and Interrupted."""
    world = world or World()
    main = world.rank == 0
    console = Console(quiet=quiet or not main)
    kind = exp.names["strategy"]
    recorder = open_recorder(folder, exp.record, config=exp.config, name=exp.title, job_type=kind) if main else None
    with _endings(folder, recorder, console, world):
        title = _title(exp, learner, data, world)
        watch = Watch(exp.probes, data, folder)
        training = Training(title, learner, data, exp.settings, watch, folder, recorder, console, world, whole)
        if saved:
            training.restore(saved)
            training.last_record = next(iter(deque(folder.records("metrics.jsonl"), maxlen=1)), {})
        record = training.run()
        counts = world.gather(parameter_counts(learner))
        weights = world.gather_tensors({f"model.{n}": t for n, t in learner.model_state().items()})
        if recorder is not None:
            copies = range(0, world.size, world.replicas)
            final = record | {name: sum(counts[rank][name] for rank in copies) for name in counts[0]}
            model = {name.removeprefix("model."): t for name, t in weights.items()}
            folder.write_bytes("model.safetensors", to_bytes(checkpoint.distinct(model)))
            folder.write_json("summary.json", final)
            watch.draw(recorder)
            folder.status("done", epoch=record["epoch"], step=record["step"])
            recorder.close("done", final)
            console.final_table(final, len(learner.cut))
            console.finish(folder.path)
            record = final
    return Result(record, learner.model.eval(), folder.path, folder.read_metrics() if main else [])


def _title(exp: Experiment, learner: Learner, data: Data, world: World) -> str:
    where = f"{world.stages} stages, " if world.stages > 1 else ""
    where += f"{world.replicas} replicas, " if world.replicas > 1 else ""
    return (
        f"{exp.names['strategy']} on {exp.names['model']} ({len(learner.cut)} blocks), {exp.names['data']} "
        f"({len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test), {where}{learner.device}"
        + f"\n{data.left_out}"
        * bool(data.left_out)
    )


@contextmanager
def _endings(folder: RunFolder, recorder: Recorder | None, console: Console, world: World) -> Iterator[None]:
    """Leave the true status behind, however a run ends. The failure of one process of several is for the one to say
    that knows the cause."""
    alone = world.size == 1

    def ended(state: str, reason: str) -> None:
        if recorder is not None:
            if alone or state == "interrupted":
                with suppress(RunError):  # the disk is full, or the folder gone; what ended the run is worth more
                    folder.status(state, reason=reason)
            recorder.close(state, {})

    if recorder is not None:
        folder.status("running")
        folder.remember()
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        ended("interrupted", str(error) or "stopped at once")
        if isinstance(error, Interrupted):
            error.run = str(folder.path)
        raise
    except (RunError, UserError) as error:  # the latter for a file of the data that cannot be read, say
        ended("failed", str(error))
        if not alone:
            raise
        raise type(error)(f"{error} (run folder: {folder.path})") from error
    except Exception as error:
        reason = memory_ran_out(error) or described(error)
        log = "log.txt" if alone else f"log-{world.rank}.txt"
        with suppress(RunError):  # a full disk, or another machine; the reason itself is worth more
            folder.write_text(log, traceback.format_exc())
        ended("failed", reason)
        raise RunError(f"the run failed with {reason}; the traceback is in {folder.path / log}") from error
    finally:
        console.stop()


def parameter_counts(learner: Learner) -> dict[str, int]:
    """Trainable numbers of the plain model, and of what trains it and never ships; of this stage's blocks."""
    named = [(name, p.numel()) for name, p in learner.parameters()]
    return {
        "parameters": sum(n for name, n in named if name.startswith("model.")),
        "auxiliary_parameters": sum(n for name, n in named if not name.startswith("model.")),
    }
