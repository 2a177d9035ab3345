"""What stands before the first step: a new folder, or that of an earlier run, put back to its newest checkpoint."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from locallearn import accelerator
from locallearn.config.experiment import Experiment
from locallearn.data import Data
from locallearn.engine import Learner, Place
from locallearn.errors import UserError
from locallearn.models.summary import BlockRow, summary, totals
from locallearn.runs import checkpoint, files
from locallearn.runs.console import Console, warn
from locallearn.runs.folder import RunFolder
from locallearn.runtime.world import World
from locallearn.training import processes
from locallearn.training.calls import Calls
from locallearn.training.environment import choose_device, device_facts, new_manifest
from locallearn.training.initial import absolute
from locallearn.training.longer import described
from locallearn.training.prepare import check_data, facts_of, prepare
from locallearn.training.probing import START, ProbeFolder, first_looks
from locallearn.training.saved import Longer, ranges


class Ready(NamedTuple):
    """A run that can begin to train: its locked folder, what it trains, and the checkpoint that it goes on from."""

    folder: RunFolder
    learner: Learner
    data: Data
    saved: checkpoint.SavedCheckpoint | None = None


def new_run(exp: Experiment, facts: dict[str, Any], name: str | None) -> Ready:
    """A new, locked run folder with what is known before training."""
    device = processes.device_to_prepare(exp)
    apart = device != choose_device(exp.settings.device)  # then `on_device` says the rest
    learner, data = prepare(exp, device=device)
    batch = data.batch(exp.settings.batch_size)
    if batch < exp.settings.batch_size and data.graph is None:
        warn(
            f"batch_size={exp.settings.batch_size} is more than the {len(data.pool)} training samples: every epoch is "
            f"one step on {batch}"
        )
    stages = processes.divide(exp, learner, batch, measured=not apart)
    looks = {} if apart else first_looks(exp.probes, learner, data)
    Calls(exp.callbacks, learner, data, Path(), World()).before_the_run()
    stamped = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{exp.title}"
    folder = RunFolder.create(Path(exp.settings.out), name or stamped, only=name is not None)
    folder.write_text(files.CONFIG, yaml.safe_dump(absolute(exp.config), sort_keys=False))
    folder.write_text(files.OVERRIDES, yaml.safe_dump(exp.overrides))
    facts |= {
        "choices": exp.names,
        "plain": exp.strategy.plain,
        **facts_of(data),
        "cut": [[units.start, units.stop] for units in learner.cut],
        "stages": [[blocks.start, blocks.stop] for blocks in stages],
        "delays": learner.stage.delays,
        **totals(rows(learner)),
        **_facts_of_runtime(exp),
        **({} if apart else device_facts(device)),
    }
    if taken := learner.model.taken:
        facts |= {"weights": [asdict(each) for each in taken]}
    folder.write_json(files.MANIFEST, new_manifest(exp.settings, facts))
    for probe, seen in looks.items():
        ProbeFolder(folder, probe).add(seen, START)
    return Ready(folder, learner, data)


def old_run(
    exp: Experiment,
    manifest: dict[str, Any],
    folder: RunFolder,
    facts: dict[str, Any],
    quiet: bool,
    change: Longer | None = None,
) -> Ready:
    """Lock the folder of an earlier run, and put it back to its newest checkpoint; a `change` makes it longer."""
    folder.lock()
    folder.tidy()
    saved = checkpoint.newest(folder.checkpoints, warn)
    if change is not None:
        change = replace(change, step=saved.state["step"] if saved else 0)
        manifest |= {"longer": [*manifest.get("longer", []), asdict(change)]}
    device = processes.device_to_prepare(exp)
    apart = device != choose_device(exp.settings.device)
    learner, data = prepare(exp, ranges(manifest["cut"]), manifest=manifest, fresh=saved is None, device=device)
    check_data(data, manifest, train=True)
    stages = processes.divide(exp, learner, data.batch(exp.settings.batch_size), measured=not apart)
    if saved:
        if len(saved.state["blocks"]) != len(learner.cut):
            raise UserError(f"checkpoint {saved.path} has {len(saved.state['blocks'])} blocks, unlike this run")
        learner.load_state(saved.tensors)  # done again where it trains; here a difference costs nothing yet
    facts |= _facts_of_runtime(exp) | ({} if apart else device_facts(device))
    _warn_of_other_bits(manifest, new_manifest(exp.settings, facts))
    manifest.pop("wires", None)
    wires = {"wires": facts["wires"]} if "wires" in facts else {}
    manifest |= {"stages": [[blocks.start, blocks.stop] for blocks in stages], "choices": exp.names, **wires}
    folder.write_text(files.CONFIG, yaml.safe_dump(exp.config, sort_keys=False))
    folder.write_json(files.MANIFEST, manifest)
    folder.truncate_metrics(saved.state["step"] if saved else 0)
    where = f"step {saved.state['step']}" if saved else "the start: it has no checkpoint yet"
    more = ""
    if change is not None:
        for name in (files.SUMMARY, files.MODEL):  # of an end that is none any more
            (folder.path / name).unlink(missing_ok=True)
        more = f"; {described(change, exp, data.steps(exp.settings.batch_size), manifest)}"
    Console(quiet=quiet).line(f"resuming {folder.path} from {where}{more}")
    return Ready(folder, learner, data, saved)


def on_device(exp: Experiment, manifest: dict[str, Any], folder: RunFolder, device: torch.device) -> dict[str, Any]:
    """The manifest of a run whose processes have an accelerator each, with what the process that prepared it could not
    know: the device of this one, and by times measured there the blocks of each stage. In a new run probes take their
    first look. Raises UserError."""
    new, facts = "device" not in manifest, device_facts(device)
    if not new:
        _warn_of_other_bits(manifest, manifest | facts)
    measured = processes.is_measured(exp, len(manifest["cut"]))
    if measured or (new and exp.probes):
        learner, data = prepare(exp, ranges(manifest["cut"]), Place(device), manifest, fresh=new)
        stages = processes.divide(exp, learner, data.batch(exp.settings.batch_size), measured=True)
        facts["stages"] = [[blocks.start, blocks.stop] for blocks in stages]
        for probe, seen in first_looks(exp.probes, learner, data).items() if new else ():
            ProbeFolder(folder, probe).add(seen, START)
        del learner, data
        accelerator.reset_peak_memory()
    manifest = manifest | facts
    folder.write_json(files.MANIFEST, manifest)
    return manifest


def rows(learner: Learner) -> list[BlockRow]:
    ships = learner.strategy.ships
    only_train = [{n: m for n, m in block.auxiliary.items() if n not in ships} for block in learner.blocks]
    return summary(learner.model, learner.cut, only_train)


def _facts_of_runtime(exp: Experiment) -> dict[str, Any]:
    """What of the runtime changes the bits of a run, for its manifest."""
    return {"replicas": exp.runtime.replicas, "message": getattr(exp.runtime, "message", "exact")}


def _warn_of_other_bits(before: dict[str, Any], now: dict[str, Any]) -> None:
    """Say what may change the last bits of a resumed run."""
    names = ("threads", "device", "device_type", "tf32", "precision", "channels_last", "compile", "replicas", "message")
    pairs = [(name, before.get(name), now[name]) for name in names if name in now]
    pairs.append(("torch", *(facts["versions"].get("torch") for facts in (before, now))))
    if changed := [f"{name} was {a}, is {b}" for name, a, b in pairs if a != b]:
        warn(f"not bit-exact with the first part of the run: {'; '.join(changed)}")
