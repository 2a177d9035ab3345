"""A run from its checked configuration to its summary: build everything, then make the folder, then train."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.experiment import Experiment
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures.text import columns
from locallearn.models.summary import BlockRow, render, summary, totals
from locallearn.runs import checkpoint
from locallearn.runs.console import Console, warn
from locallearn.runs.folder import RunFolder
from locallearn.runtime.world import started_together
from locallearn.training.environment import manifest, process_settings
from locallearn.training.prepare import prepare
from locallearn.training.probing import START, ProbeFolder, first_looks
from locallearn.training.run_data import check_data, facts_of
from locallearn.training.saved import finished, saved_experiment
from locallearn.training.stages import (
    check_launcher,
    divide,
    from_rank_0,
    places,
    ranges,
    run_part,
    run_stages,
    together,
)
from locallearn.training.train import Result, train


def dry_run(exp: Experiment) -> str:
    """The table of blocks: output shape, parameters, FLOPs, auxiliary share, and what is dropped at inference."""
    with process_settings(exp.settings):
        learner, _ = prepare(exp)
        return render(_rows(learner), columns())


def _rows(learner: Learner) -> list[BlockRow]:
    return summary(learner.model, learner.cut, [dict(block.auxiliary.items()) for block in learner.blocks])


def start(
    exp: Experiment, quiet: bool = False, name: str | None = None, first: Mapping[str, Any] | None = None
) -> Result | None:
    """Run an experiment from the beginning, in a folder `name`, or in one named by the time. `first`: the manifest of
    the run that this one repeats. Under torchrun every process calls this, and only rank 0 gets a Result.

    Raises UserError before anything is written, RunError when training had to stop, Interrupted after a signal.
    """
    check_launcher(exp)
    with process_settings(exp.settings, exp.runtime.processes) as facts:
        if started_together():
            return _together(exp, quiet, lambda: _new_run(exp, facts, name)[0])
        folder, learner, data = _new_run(exp, facts, name)
        if first is not None:
            check_data(data, first)
        with _closing_lock(folder):
            if exp.runtime.processes == 1:
                return train(exp, learner, data, folder, quiet)
            del learner, data  # the stages have their own
            run_stages(exp, folder, quiet)
            return finished(folder, exp.settings.allow)


def resume(
    path: str | Path,
    allow: list[str],
    quiet: bool = False,
    runtime: tuple[str, dict[str, Any]] | None = None,
    said: Sequence[str] = (),
) -> Result | None:
    """Go on with a run that was interrupted, failed or killed, to the same bits as if it had not been. `runtime`: the
    name and the configuration of another one, `said` the settings from which it was made."""
    folder = RunFolder.open(Path(path))
    exp, known = saved_experiment(folder, allow, runtime=runtime, said=said)
    if folder.read_json("status.json").get("state") == "done":
        Console(quiet=quiet).line(f"{folder.path} is done already; nothing to resume")
        return finished(folder, allow)
    check_launcher(exp)
    with process_settings(exp.settings, exp.runtime.processes) as facts:
        if started_together():
            return _together(exp, quiet, lambda: _old_run(exp, known, folder, facts, quiet)[0])
        with _closing_lock(folder):
            _, learner, data, saved = _old_run(exp, known, folder, facts, quiet)
            if exp.runtime.processes == 1:
                return train(exp, learner, data, folder, quiet, saved=saved)
            del learner, data, saved
            run_stages(exp, folder, quiet)
            return finished(folder, allow)


def _together(exp: Experiment, quiet: bool, lead: Callable[[], RunFolder]) -> Result | None:
    """Run in the processes that torchrun has started: rank 0 checks everything and has the folder."""
    with ExitStack() as stack, together(exp.runtime.replicas) as world:

        def made() -> dict[str, Any]:
            folder = lead()
            stack.enter_context(_closing_lock(folder))
            return {"path": str(folder.path), "known": folder.read_json("manifest.json")}

        told = from_rank_0(world, made)
        folder = RunFolder(Path(told["path"]))
        run_part(exp, told["known"], folder, world, quiet)
    return finished(folder, exp.settings.allow) if world.rank == 0 else None


def stage(path: str, allow: list[str], quiet: bool) -> None:
    """One process of a run that `run_stages` has started."""
    folder = RunFolder(Path(path))
    exp, known = saved_experiment(folder, allow)
    with process_settings(exp.settings, exp.runtime.processes), together(exp.runtime.replicas) as world:
        run_part(exp, known, folder, world, quiet)


def _new_run(exp: Experiment, facts: dict[str, Any], name: str | None) -> tuple[RunFolder, Learner, Data]:
    """A new, locked run folder with what is known before training."""
    learner, data = prepare(exp)
    batch = data.batch(exp.settings.batch_size)
    if batch < exp.settings.batch_size and data.graph is None:
        warn(
            f"batch_size={exp.settings.batch_size} is more than the {len(data.train)} training samples: every epoch is "
            f"one step on {batch}"
        )
    stages = divide(exp, learner, batch)
    looks = first_looks(exp.probes, learner, data)
    stamped = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{exp.title}"
    folder = RunFolder.create(Path(exp.settings.out), name or stamped, only=name is not None)
    folder.write_text("config.yaml", yaml.safe_dump(_portable(exp.config), sort_keys=False))
    folder.write_text("overrides.yaml", yaml.safe_dump(exp.overrides))
    facts |= {
        "choices": exp.names,
        **facts_of(data),
        "cut": [[units.start, units.stop] for units in learner.cut],
        "stages": [[blocks.start, blocks.stop] for blocks in stages],
        "delays": learner.stage.delays,
        **totals(_rows(learner)),
        **places(exp),
    }
    folder.write_json("manifest.json", manifest(exp.settings, learner.device, facts))
    for name, seen in looks.items():
        ProbeFolder(folder, name).add(seen, START)
    return folder, learner, data


def _old_run(
    exp: Experiment, known: dict[str, Any], folder: RunFolder, facts: dict[str, Any], quiet: bool
) -> tuple[RunFolder, Learner, Data, checkpoint.SavedCheckpoint | None]:
    """Lock the folder of an earlier run, and put it back to its newest checkpoint."""
    folder.lock()
    folder.tidy()
    saved = checkpoint.newest(folder.path / "checkpoints", warn)
    learner, data = prepare(exp, ranges(known["cut"]), known=known)
    check_data(data, known, train=True)
    stages = divide(exp, learner, data.batch(exp.settings.batch_size))
    if saved:
        if len(saved.state["blocks"]) != len(learner.cut):
            raise UserError(f"checkpoint {saved.path} is of {len(saved.state['blocks'])} blocks, not of this run's")
        learner.load_state(saved.tensors)  # done again where it trains; here a difference costs nothing yet
    facts |= places(exp)
    _warn_of_other_bits(known, manifest(exp.settings, learner.device, facts))
    known |= {"stages": [[blocks.start, blocks.stop] for blocks in stages], "choices": exp.names}
    folder.write_text("config.yaml", yaml.safe_dump(exp.config, sort_keys=False))
    folder.write_json("manifest.json", known)
    folder.truncate_metrics(saved.state["step"] if saved else 0)
    where = f"step {saved.state['step']}" if saved else "the start: it has no checkpoint yet"
    Console(quiet=quiet).line(f"resuming {folder.path} from {where}")
    return folder, learner, data, saved


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


def _warn_of_other_bits(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what may change the last bits of a resumed run."""
    names = ("threads", "device", "device_type", "precision", "channels_last", "compile", "replicas", "message")
    changed = [f"{n} was {before.get(n)}, is {now.get(n)}" for n in names if before.get(n) != now.get(n)]
    if before["versions"].get("torch") != now["versions"].get("torch"):
        changed.append(f"torch was {before['versions'].get('torch')}, is {now['versions'].get('torch')}")
    if changed:
        warn(f"not bit-exact with the first part of the run: {'; '.join(changed)}")
