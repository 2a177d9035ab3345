"""From a checked configuration to a learner and its data: all that a run builds before it writes anything.

What belongs to a run and is known only from its data (the shape of an input, the classes, the normalisation and the
fingerprint of the set) is kept in `manifest.json`, and whatever comes back to the run goes by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from typing import Any

import torch

from locallearn import seeds
from locallearn.accelerator import is_cpu
from locallearn.config.experiment import Experiment
from locallearn.config.targets import model_for
from locallearn.config.unread import in_blocks, taught
from locallearn.contract import Strategy
from locallearn.data import Data, Source
from locallearn.data.fingerprint import Fingerprint, fingerprint
from locallearn.data.normalise import Normalisation
from locallearn.engine import Learner, Place, Setup, Stage, assemble
from locallearn.engine.batch import SINGLE
from locallearn.engine.setup import Pixels
from locallearn.errors import RunError, UserError, described, in_one_line, memory_ran_out, needs_several_values
from locallearn.inputs import Inputs
from locallearn.models import BlockModel
from locallearn.models.noisy_weights import GaussianWeights
from locallearn.options import convert
from locallearn.plan.measure import rehearse
from locallearn.runs.console import warn
from locallearn.task import CLASSES, CLASSIFICATION, Task
from locallearn.tasks import Regression
from locallearn.training.environment import choose_device
from locallearn.training.initial import check_same, fill, with_teacher
from locallearn.training.longer import scheduled_epochs

CLASSES_NAMED = 10


@contextmanager
def fits_in_memory() -> Iterator[None]:
    """Sizes that no memory holds are a mistake of the user."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if memory_ran_out(error) is None and "overflow" not in str(error):
            raise
        raise UserError(f"data and model do not fit into memory; choose smaller ones ({in_one_line(error)})") from error


@fits_in_memory()
def prepare(
    exp: Experiment,
    cut: list[range] | None = None,
    place: Place | None = None,
    manifest: Mapping[str, Any] | None = None,
    fresh: bool = True,
    learns: bool = True,
    device: torch.device | None = None,
) -> tuple[Learner, Data]:
    """Load the data, build the model and cut it. `cut` is that of an earlier part of the same run, and `manifest` the
    manifest of that part: its normalisation is used, and its classes must be those of the data. A model that is not
    `fresh` gets the weights of a checkpoint afterwards, and none from elsewhere; where nothing `learns`, nobody
    teaches. All is on the `device` of the settings, unless another one is given. Raises UserError."""
    settings = exp.settings
    stage = stage_of(exp)
    device = place.device if place else device or choose_device(settings.device)
    data = load_data(exp.source, settings.seed, device, manifest or {})
    choose_samples(exp, data)
    check_batch(exp, data)
    with seeds.stream(settings.seed, "model"):
        build = exp.model if fresh else exp.model.bare
        seen = data.graph, data.vocabulary, data.inputs
        model = model_for(build, data.image, len(data.classes), data.task.form, *seen)
    if cut is not None and cut[-1].stop != len(model.units):
        raise UserError(f"manifest.json: the run was cut at unit {cut[-1].stop}, but its model has {len(model.units)}")
    for module in model.modules():
        if isinstance(module, GaussianWeights):
            module.samples = len(data.train)
    cut = cut or model.cut(settings.blocks_for(len(model.units)), settings.balance)
    if fresh:
        fill(model, settings.init, cut, data.classes)
    if learns and taught(exp) and (place is None or place.own is None or 0 in place.own):
        exp = with_teacher(exp, model, data, device)
    check_same(model, manifest or {})
    steps = scheduled_epochs(settings.epochs, manifest or {}) * data.steps(settings.batch_size)
    at = place or Place(device)
    learner = assembled(exp, model, stage, steps=steps, pixels=data.pixels, cut=cut, place=at, task=data.task)
    if place is None:
        exp.explicit.refuse(in_blocks(exp, learner, data))
        single = data.graph is None and data.batch(settings.batch_size) == _parts(exp)
        if single or not _is_ours(exp.strategy) or settings.train_blocks is not None:
            try_step(learner, data, 1 if single else 2)
    return learner, data


def choose_samples(exp: Experiment, data: Data) -> None:
    """Let samples without a label be trained on where they teach something."""
    if data.unlabelled is None:
        return
    if getattr(getattr(exp.strategy, "objective", None), "unlabelled", False):
        data.use_unlabelled()
        text = f"{len(data.train)} of the training samples have labels; the objective learns from the others, too"
    else:
        text = f"{len(data.unlabelled)} training samples without labels are left out: nothing here learns from them"
    data.left_out = "\n".join(filter(None, (data.left_out, text)))


def stage_of(exp: Experiment) -> Callable[..., Stage]:
    """What drives the blocks. Raises UserError for what the runtime cannot do with the strategy."""
    return exp.runtime.stage(exp.names["strategy"], exp.strategy, exp.settings.micro_batches)


def assembled(
    exp: Experiment,
    model: BlockModel,
    stage: Callable[..., Stage],
    *,
    steps: int | None,
    pixels: Pixels | None,
    cut: list[range] | None = None,
    place: Place | None = None,
    task: Task = CLASSES,
) -> Learner:
    """The learner that trains `model` as an experiment says; it has the blocks of this `place`, or all of them."""
    settings = exp.settings
    setup = Setup(
        seed=settings.seed,
        precision=settings.precision,
        channels_last=settings.channels_last,
        compiled=settings.compile,
        micro_batches=settings.micro_batches,
        total_steps=steps,
        train_blocks=None if settings.train_blocks is None else frozenset(settings.train_blocks),
        pixels=pixels,
        task=task,
    )
    device = choose_device(settings.device)
    place = place or Place(device)
    if settings.precision == "fp16" and is_cpu(device):
        raise UserError(
            "precision=fp16 on a CPU, where it is far slower than fp32: choose precision=bf16 or fp32, or device=cuda"
        )
    cut = cut or model.cut(settings.blocks_for(len(model.units)), settings.balance)
    return assemble(model, exp.strategy, exp.optim, cut, setup, place, stage)


def try_step(learner: Learner, data: Data, samples: int) -> None:
    """Take a step on a copy of the blocks, so that a mistake in a strategy of the user's is reported before a run has a
    folder. On one sample it shows whether a batch norm has one value of each channel, and so no variance: that depends
    on the sizes of maps, in auxiliary networks too. Raises UserError."""
    try:
        rehearse(learner, *next(iter(data.batches(0, samples))))
    except UserError:
        raise
    except RunError:  # a loss that is not finite: the run itself will say so
        return
    except Exception as error:
        if samples == 1 and needs_several_values(error):
            raise UserError(SINGLE) from error
        if memory_ran_out(error) or _is_ours(learner.strategy):
            raise
        raise UserError(f"{type(learner.strategy).__name__} cannot take a step: {described(error)}") from error


def _is_ours(strategy: Strategy) -> bool:
    return type(strategy).__module__.startswith("locallearn.")


def _parts(exp: Experiment) -> int:
    """Into how many parts a batch is divided."""
    return exp.settings.micro_batches * exp.runtime.replicas


def check_batch(exp: Experiment, data: Data) -> None:
    """A batch must be divisible into micro-batches and replicas."""
    counts = {"micro_batches": exp.settings.micro_batches, "runtime.replicas": exp.runtime.replicas}
    several = {name: count for name, count in counts.items() if count > 1}
    parts = " and ".join(f"{name}={count}" for name, count in several.items())
    if parts and data.graph is not None:
        raise UserError(f"{parts} but a graph is not divided; choose {' and '.join(f'{name}=1' for name in several)}")
    batch = data.batch(exp.settings.batch_size)
    if batch % _parts(exp):
        verb = "do" if len(several) > 1 else "does"
        raise UserError(
            f"{parts} {verb} not divide the batch of {batch} training samples: choose another batch_size, a multiple "
            f"of {_parts(exp)}"
        )


def facts_of(data: Data) -> dict[str, Any]:
    """What the manifest keeps of the data."""
    return {
        "image": list(data.image),
        "classes": list(data.classes),
        "task": data.task.kind,
        "form": data.task.form,
        "score": data.task.score,
        "metrics": data.task.directions,
        "task_options": asdict(data.task) if is_dataclass(data.task) else {},
        "vocabulary": data.vocabulary,
        "inputs": [asdict(part) for part in data.inputs.parts] if data.inputs is not None else None,
        "normalisation": asdict(data.normaliser.normalisation) if data.normaliser else None,
        "data": asdict(fingerprint(data)),
    }


def load_data(source: Source, seed: int, device: torch.device, manifest: Mapping[str, Any]) -> Data:
    """Load a set as the model of the run with this manifest reads it; for a new run that is empty. Raises
    UserError for a set of other inputs or other classes."""
    numbers = manifest.get("normalisation")
    data = source.load(seed, device, Normalisation(**numbers)) if numbers else source.load(seed, device)
    if not manifest:
        return data
    if (asked := manifest.get("task", CLASSIFICATION)) != data.task.kind:
        raise UserError(
            f"the run was trained for the task {asked}, but data={data.name} asks for {data.task.wanted}: choose a set "
            "of the same task"
        )
    if isinstance(data.task, Regression) and (units := manifest.get("task_options")):
        data.measure_in(convert(units, Regression, "manifest.json: task_options"))
    _as_read(data, Inputs.saved(manifest.get("inputs")), manifest.get("vocabulary", data.vocabulary))
    classes = manifest["classes"]
    if tuple(manifest["image"]) != data.image or len(classes) != len(data.classes):
        raise UserError(
            f"the run was trained on {tuple(manifest['image'])} inputs and {len(classes)} classes; this set "
            f"has {data.image} and {len(data.classes)}: choose a set of such inputs and as many classes"
        )
    for label, (name, here) in enumerate(zip(classes, data.classes, strict=True)):
        if name != here:
            named = ", ".join(classes[:CLASSES_NAMED]) + (", ..." if len(classes) > CLASSES_NAMED else "")
            raise UserError(
                f"label {label} is {name!r} in the run and {here!r} in data={data.name}: choose a set with the "
                f"classes of the run, in their order ({named})"
            )
    if "normalisation" in manifest and (numbers is None) != (data.normaliser is None):
        kinds = ("float32 samples, used as they are", "pixels, normalised")
        raise UserError(
            f"the run was trained on {kinds[numbers is not None]}, but data={data.name} has {kinds[numbers is None]}: "
            "choose a set of the same kind"
        )
    return data


def _as_read(data: Data, inputs: Inputs | None, vocabulary: int | None) -> None:
    """Let data be read by a model that was built for `inputs` and a `vocabulary`. Raises UserError for other tensors
    and for tokens that it does not know."""
    ours = data.inputs
    if (ours and ours.unnumbered) != (inputs and inputs.unnumbered):
        shown = [f"several tensors ({each})" if each else "one tensor" for each in (inputs, ours)]
        raise UserError(
            f"the run was trained on samples of {shown[0]}, but those of data={data.name} are {shown[1]}: choose a set "
            "of such samples"
        )
    here, there = (ours.vocabulary, inputs.vocabulary) if ours and inputs else (data.vocabulary, vocabulary)
    if here is not None and there is not None and here > there:
        raise UserError(
            f"the run was trained on tokens below {there}, but data={data.name} has the token {here - 1}: choose a set "
            "of the same tokens"
        )
    data.inputs, data.vocabulary = inputs, vocabulary


def fingerprint_of_run(manifest: Mapping[str, Any]) -> Fingerprint | None:
    """The set that a run was trained on, from its manifest; None for an older run, which has not noted it."""
    return None if manifest.get("data") is None else convert(manifest["data"], Fingerprint, "manifest.json: data")


def check_data(data: Data, manifest: Mapping[str, Any], train: bool = False) -> None:
    """Warn when the data are not those of the run any more, or when nobody can know. To `train` on with other splits is
    refused: what was trained on may be in the test set now. Raises UserError."""
    before = fingerprint_of_run(manifest)
    if before is None:
        warn("the run is of an older version, which did not record its data: whether they have changed is not known")
        return
    now = fingerprint(data)
    if change := before.change(now):
        changed = f"the data are not those that the run was trained on: {change}"
        if train and not before.same_parts(now):
            raise UserError(
                f"{changed}, so the splits differ, and what was trained on may be tested on; put the set back as "
                "it was, or start a new run"
            )
        warn(changed)
