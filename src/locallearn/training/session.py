"""A run from its checked configuration to its summary: build everything, then make the folder, then train."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save_file

from locallearn import seeds
from locallearn.config.experiment import Experiment, experiment
from locallearn.data import Data
from locallearn.engine import Learner, assemble
from locallearn.errors import RunError, UserError
from locallearn.models import BlockModel
from locallearn.models.summary import render, summary
from locallearn.runtime.team import Alone
from locallearn.stopping import Interrupted
from locallearn.training import checkpoint
from locallearn.training.console import Console, warn
from locallearn.training.environment import choose_device, manifest, process_settings
from locallearn.training.evaluate import evaluate
from locallearn.training.loop import EVALUATION_BATCH, Training
from locallearn.training.readout import linear_readout
from locallearn.training.record import Recorder, open_recorder
from locallearn.training.run_folder import RunFolder


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


def prepare(exp: Experiment, cut: list[range] | None = None) -> tuple[Learner, Data]:
    """Load the data, build the model and cut it. `cut` is that of an earlier part of the same run."""
    settings = exp.settings
    stage = exp.runtime.stage(exp.names["strategy"], exp.strategy, settings.micro_batches)
    device = choose_device(settings.device)
    data = exp.source.load(settings.seed, device)
    steps = data.steps(settings.batch_size)
    batch = data.batch(settings.batch_size)
    if data.graph is not None and settings.micro_batches > 1:
        raise UserError(f"micro_batches={settings.micro_batches} but a graph is not divided; choose micro_batches=1")
    if batch % settings.micro_batches:
        raise UserError(f"micro_batches={settings.micro_batches} does not divide the batch of {batch} training samples")
    with seeds.stream(settings.seed, "model"):
        model = exp.model(data.image, len(data.classes), data.graph)
    learner = assemble(
        model,
        exp.strategy,
        exp.optim,
        cut or model.cut(settings.blocks_for(len(model.units)), settings.balance),
        seed=settings.seed,
        device=device,
        precision=settings.precision,
        channels_last=settings.channels_last,
        compiled=settings.compile,
        micro_batches=settings.micro_batches,
        total_steps=settings.epochs * steps,
        pixels=data.pixels,
        stage=stage,
    )
    return learner, data


def dry_run(exp: Experiment) -> str:
    """The table of blocks: output shape, parameters, FLOPs, auxiliary share, and what is dropped at inference."""
    with process_settings(exp.settings):
        learner, _ = prepare(exp)
        rows = summary(learner.model, learner.cut, [dict(block.auxiliary.items()) for block in learner.blocks])
        return render(rows)


def start(exp: Experiment, quiet: bool = False) -> Result:
    """Run an experiment from the beginning.

    Raises UserError before anything is written, RunError when training had to stop, Interrupted after a signal.
    """
    with process_settings(exp.settings) as facts:
        learner, data = prepare(exp)
        folder = RunFolder.create(Path(exp.settings.out), f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{exp.title}")
        with _closing_lock(folder):
            folder.write_text("config.yaml", yaml.safe_dump(_portable(exp.config), sort_keys=False))
            folder.write_text("overrides.yaml", yaml.safe_dump(exp.overrides))
            facts |= {
                "choices": exp.names,
                "image": list(data.image),
                "classes": list(data.classes),
                "cut": [[units.start, units.stop] for units in learner.cut],
            }
            folder.write_json("manifest.json", manifest(exp.settings, learner.device, facts))
            return _train(exp, learner, data, folder, quiet, lambda training: None)


def resume(path: str | Path, allow: list[str], quiet: bool = False) -> Result:
    """Go on with a run that was interrupted, failed or killed, to the same bits as if it had not been."""
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow)
    console = Console(quiet=quiet)
    if folder.read_json("status.json").get("state") == "done":
        console.line(f"{folder.path} is done already; nothing to resume")
        model = load(folder.path, allow)
        return Result(folder.read_json("summary.json"), model, folder.path, folder.read_metrics())
    folder.lock()
    with _closing_lock(folder), process_settings(exp.settings) as facts:
        saved = checkpoint.newest(folder.path / "checkpoints", warn)
        learner, data = prepare(exp, [range(*pair) for pair in known["cut"]])
        _warn_of_other_bits(known, manifest(exp.settings, learner.device, facts))
        folder.truncate_metrics(saved.state["step"] if saved else 0)
        where = f"step {saved.state['step']}" if saved else "the start: it has no checkpoint yet"
        console.line(f"resuming {folder.path} from {where}")

        def restore(training: Training) -> None:
            if saved:
                training.restore(saved)
                training.last_record = (folder.read_metrics() or [{}])[-1]

        return _train(exp, learner, data, folder, quiet, restore)


@contextmanager
def _closing_lock(folder: RunFolder) -> Iterator[None]:
    """Leave the folder free for others, however this ends."""
    try:
        yield
    finally:
        folder.release()


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration as it is saved: the data are found from any directory."""
    root = config["data"].get("root")
    return (
        config
        if root is None
        else {**config, "data": {**config["data"], "root": str(Path(root).expanduser().resolve())}}
    )


def _train(
    exp: Experiment, learner: Learner, data: Data, folder: RunFolder, quiet: bool, restore: Callable[[Training], None]
) -> Result:
    """The middle of `start` and `resume`: train with every ending recorded, then export and summarise."""
    console = Console(quiet=quiet)
    recorder = open_recorder(
        folder, exp.record, config=exp.config, name=exp.title, group=None, job_type=exp.names["strategy"], tags=()
    )
    title = (
        f"{exp.names['strategy']} on {exp.names['model']} ({len(learner.blocks)} blocks), {exp.names['data']} "
        f"({len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test), {learner.device}"
    )
    with _endings(folder, recorder, console):
        training = Training(title, learner, data, exp.settings, exp.probe, folder, recorder, console, Alone())
        restore(training)
        record = training.run()
        final = record | parameter_counts(learner)
        weights = learner.model.state_dict()
        save_file(checkpoint.distinct(weights), folder.path / "model.safetensors")
        folder.write_json("summary.json", final)
        folder.status("done", epoch=record["epoch"], step=record["step"])
        recorder.close("done", final)
    console.final_table(final, len(learner.blocks))
    console.finish(folder.path)
    return Result(final, learner.model.eval(), folder.path, folder.read_metrics())


@contextmanager
def _endings(folder: RunFolder, recorder: Recorder, console: Console) -> Iterator[None]:
    """Leave the true status behind, however a run ends."""
    folder.status("running")
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as error:
        folder.status("interrupted", reason=str(error) or "stopped at once")
        recorder.close("interrupted", {})
        if isinstance(error, Interrupted):
            error.run = str(folder.path)
        raise
    except RunError as error:
        folder.status("failed", reason=str(error))
        recorder.close("failed", {})
        raise RunError(f"{error} (run folder: {folder.path})") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        folder.write_text("log.txt", traceback.format_exc())
        folder.status("failed", reason=reason)
        recorder.close("failed", {})
        raise RunError(f"the run failed with {reason}; the traceback is in {folder.path / 'log.txt'}") from error
    finally:
        console.stop()


def parameter_counts(learner: Learner) -> dict[str, int]:
    """Trainable numbers of the plain model, and of what trains it and never ships."""
    return {
        "parameters": sum(p.numel() for p in learner.model.parameters()),
        "auxiliary_parameters": sum(p.numel() for block in learner.blocks for p in block.auxiliary.parameters()),
    }


def saved_experiment(folder: RunFolder, allow: list[str], **changes: Any) -> tuple[Experiment, dict[str, Any]]:
    """The experiment of a run folder, and its manifest. Targets outside locallearn must be in `allow`."""
    known = folder.read_json("manifest.json")
    try:
        config = yaml.safe_load((folder.path / "config.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{folder.path / 'config.yaml'} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(config, dict) or not known.keys() >= {"choices", "cut", "image", "classes"}:
        raise UserError(f"{folder.path} is not the folder of a run: config.yaml or manifest.json is incomplete")
    return experiment({**config, "dry_run": False, "allow": allow, **changes}, known["choices"]), known


def load(path: str | Path, allow: list[str] | None = None) -> BlockModel:
    """The trained plain model of a finished run, in eval mode, on the CPU; no auxiliary parameter is in it."""
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow or [])
    file = folder.path / "model.safetensors"
    if not file.is_file():
        raise UserError(f"{folder.path} has no model.safetensors: first end it, `locallearn resume {folder.path}`")
    tensors = load_file(file)
    # a graph is no part of the model's weights
    graph = exp.source.load(exp.settings.seed, torch.device("cpu")).graph if exp.model.reads_graph else None
    with seeds.stream(0, "load"):
        model = exp.model(tuple(known["image"]), len(known["classes"]), graph)
    model.to(dtype=next((t.dtype for t in tensors.values() if t.is_floating_point()), torch.float32))
    problems = model.load_state_dict(tensors, strict=False)
    if names := problems.missing_keys + problems.unexpected_keys:
        raise UserError(f"{file} does not fit the model of its config.yaml: {', '.join(names[:3])}")
    return model.eval()


def evaluate_run(
    path: str | Path, allow: list[str], data_config: dict[str, Any] | None = None, linear: bool = False
) -> dict[str, float]:
    """Test loss and accuracy of a run, at every block that can predict, on its own data or on another set; with
    `linear` also those of a linear classifier on each block's frozen features."""
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow, **({"data": data_config} if data_config else {}))
    with process_settings(exp.settings):
        saved = checkpoint.newest(folder.path / "checkpoints", warn)
        if saved is None:
            raise UserError(f"{folder.path} has no checkpoint to evaluate; `locallearn resume {folder.path}` goes on")
        learner, data = prepare(exp, [range(*pair) for pair in known["cut"]])
        if tuple(known["image"]) != data.image or len(known["classes"]) != len(data.classes):
            raise UserError(
                f"the run was trained on {tuple(known['image'])} inputs and {len(known['classes'])} classes; this set "
                f"has {data.image} and {len(data.classes)}"
            )
        learner.load_state(saved.tensors)
        found = evaluate(learner, data.evaluation(data.test, EVALUATION_BATCH))
        return found | (linear_readout(learner, data) if linear else {})


def _warn_of_other_bits(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what may change the last bits of a resumed run."""
    names = ("threads", "device", "device_type", "precision", "channels_last", "compile")
    changed = [f"{n} was {before.get(n)}, is {now.get(n)}" for n in names if before.get(n) != now.get(n)]
    if before["versions"].get("torch") != now["versions"].get("torch"):
        changed.append(f"torch was {before['versions'].get('torch')}, is {now['versions'].get('torch')}")
    if changed:
        warn(f"not bit-exact with the first part of the run: {'; '.join(changed)}")
