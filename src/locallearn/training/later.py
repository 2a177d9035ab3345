"""Another look at a run that has trained: its test metrics, and what probes see of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locallearn.analysis.cost import SavedBytes
from locallearn.errors import UserError
from locallearn.probes import Moment
from locallearn.runs import again, checkpoint
from locallearn.runs.console import warn
from locallearn.runs.folder import RunFolder
from locallearn.training.environment import process_settings
from locallearn.training.evaluate import BATCH, evaluate, linear_readout
from locallearn.training.prepare import check_data, prepare
from locallearn.training.probing import START, ProbeFolder, first_looks, look
from locallearn.training.saved import NONE_GIVEN, ranges, saved_experiment

NOT_ASKED: Mapping[str, Any] = {"probe": {}, "callback": {}}
"""Groups of a run that take no part in another look at it."""


def evaluate_run(
    path: str | Path,
    allow: list[str],
    data_config: dict[str, Any] | None = None,
    linear: bool = False,
    objects: Mapping[str, Any] = NONE_GIVEN,
) -> dict[str, float]:
    """Test loss and metrics of a run at every block that can predict, with `linear` also the accuracy of a linear
    classifier on each block's frozen features. Another data set is normalised as that of the run."""
    folder = RunFolder.open(Path(path))
    changes = {**NOT_ASKED, **({"data": data_config} if data_config else {})}
    exp, manifest = saved_experiment(folder, allow, changes=changes, objects=objects)
    with process_settings(exp.settings):
        saved = checkpoint.newest(folder.checkpoints, warn)
        if saved is None:
            raise UserError(f"{folder.path} has no checkpoint to evaluate; `{again.resume(folder.path)}` goes on")
        learner, data = prepare(exp, ranges(manifest["cut"]), manifest=manifest, fresh=False, learns=False)
        if data_config is None:
            check_data(data, manifest)
        elif "normalisation" not in manifest:
            warn("the run is of an older version, which did not record its normalisation: that of this set is used")
        learner.load_state(saved.tensors)
        metrics = evaluate(learner, data.evaluation(data.test, BATCH))
        return metrics | (linear_readout(learner, data) if linear else {})


def held_bytes(path: str | Path) -> int:
    """Bytes that autograd holds at the peak of a training step of a run, without those of weights: activations of the
    blocks and of what trains them. Counted in one step on a batch of its own, with all blocks in this process."""
    exp, manifest = saved_experiment(RunFolder.open(Path(path)), [], changes=NOT_ASKED)
    with process_settings(exp.settings):
        learner, data = prepare(exp, ranges(manifest["cut"]), manifest=manifest, fresh=False, learns=False)
        x, y = next(data.batches(0, exp.settings.batch_size))
        with SavedBytes(p for _, p in learner.parameters()) as saved:
            learner.learn(x, y)
        return saved.peak


def probe_run(
    path: str | Path,
    allow: list[str],
    probes: dict[str, Any],
    overrides: Sequence[str] = (),
    objects: Mapping[str, Any] = NONE_GIVEN,
) -> list[tuple[ProbeFolder, list[Path]]]:
    """Let probes look at the initial weights and at every checkpoint of a run.

    `probes` is their configuration, `overrides` the settings from which it was made. Returns for each its new folder
    under the run's `probes/` and the pictures in it. Raises UserError.
    """
    folder = RunFolder.open(Path(path))
    exp, manifest = saved_experiment(
        folder, allow, changes={**NOT_ASKED, "probe": probes}, overrides=overrides, objects=objects
    )
    if follows := next((name for name, probe in exp.probes.items() if probe.follows), None):
        raise UserError(f"probe.{follows} watches every step of training: choose it for a new run")
    with process_settings(exp.settings):
        folder.lock()
        try:
            learner, data = prepare(exp, ranges(manifest["cut"]), manifest=manifest)
            check_data(data, manifest)
            looks = [(START, first_looks(exp.probes, learner, data))]
            for saved in checkpoint.sound(folder.checkpoints, warn):
                learner.load_state(saved.tensors)
                learner.step_count = saved.state["step"]
                at = Moment(saved.state["epoch"], saved.state["step"])
                looks.append((at, {name: look(name, p, learner, data, at) for name, p in exp.probes.items()}))
            drawn = []
            for name, probe in exp.probes.items():
                place = ProbeFolder.unused(folder, name)
                for at, seen in looks:
                    place.add(seen[name], at)
                drawn.append((place, place.draw(probe)))
            return drawn
        finally:
            folder.release()
