"""A learner for a training loop of one's own."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from locallearn import seeds
from locallearn.api.runs import Folders, experiment_of
from locallearn.config.experiment import Experiment
from locallearn.config.explicit import Unread
from locallearn.config.settings import Settings
from locallearn.config.targets import model_for
from locallearn.config.unread import in_blocks
from locallearn.contract import Strategy
from locallearn.data.asked import asked
from locallearn.engine import Learner
from locallearn.engine.assemble import unchanged_if_refused
from locallearn.engine.setup import Pixels
from locallearn.errors import UserError
from locallearn.inputs import Inputs
from locallearn.models import BlockModel, answering, as_blocks, head_apart
from locallearn.models.bottleneck import NONE
from locallearn.task import CLASSES, TOKENS, Task
from locallearn.training.prepare import assembled, stage_of

BUILT = (
    *("seed", "blocks", "train_blocks", "balance", "device", "precision", "channels_last", "compile"),
    *("micro_batches", "allow"),
)
"""The settings that `build` reads."""
SHARES = (
    *("optim.schedule", "optim.floor", "optim.warmup", "optim.milestones", "optim.decay"),
    *("strategy.warmup", "strategy.anneal"),
)
"""Options that are shares of training, or follow it: without a number of steps nobody knows how far it is."""

_PIXELS = (
    "give pixels=(black, white), one number per channel each, such as pixels=((0, 0, 0), (1, 1, 1)) for colours from 0 "
    "to 1"
)


def build(
    strategy: str | Mapping[str, Any] | Strategy = "dgl",
    model: str | Mapping[str, Any] | nn.Module | Callable[..., nn.Module] = "vgg16",
    *,
    image: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    graph: Tensor | None = None,
    steps: int | None = None,
    pixels: Pixels | None = None,
    axes: str | Mapping[str, str] | None = None,
    task: str | Task = CLASSES,
    vocabulary: int | None = None,
    inputs: Any = None,
    config_dir: Folders = (),
    **settings: Any,
) -> Learner:
    """Build a learner for a training loop of one's own.

    Args:
        strategy: A name such as "dgl", a mapping of its options, or an object.
        model: A name of the zoo, or any module whose forward is a sequence (see `as_blocks`), which is trained in
            place.
        image: The shape of one input, without the batch.
        classes: The number of classes, or of labels, numbers or tokens that are answered.
        graph: Edges between the samples, int64 [2, E], for a model that reads them (gcn).
        steps: How many steps there will be, for the learning-rate schedule; without it the rate is constant.
        pixels: What a black and a white pixel are in the inputs, one number per channel each: ((0, 0, 0), (1, 1, 1))
            where nothing is normalised, else (0 - mean) / std and (1 - mean) / std. Objectives that reconstruct images
            by cross-entropy need it, and take the squared error without.
        axes: The axes of what a module's layers hand on, where the layers do not tell: see `as_blocks`.
        task: What is asked: the name of a task, or one with options; see docs/tasks.md.
        vocabulary: How many tokens there are, where inputs are token numbers; with task="tokens" as many as `classes`.
        inputs: Where the model reads several tensors, a batch of them, in place of `image`: a tuple, or a mapping of
            the names under which its forward takes them. It tells shapes and types, and without `vocabulary` how many
            tokens there are.
        config_dir: Folders of your own yaml files.
        settings: As in `train`: blocks, seed, objective, auxiliary, optim, precision, device, ...

    Returns:
        A learner with `.step(inputs [B, *image], labels [B]) -> dict` (or targets as the task has them), `.evaluate`,
        `.predict`, `.state_dict`, `.model` and `.blocks`; called with inputs, it returns the model's logits.

    Raises:
        UserError: For a mistake, also for a setting that only `train` reads; a module is then left as it was.
    """
    named = {} if isinstance(model, nn.Module) else {"model": model}
    exp = experiment_of({"strategy": strategy, **named, **settings}, config_dir, _any_batch(settings))
    exp.explicit.refuse(_read_by_train(exp, steps))
    stage = stage_of(exp)
    task = asked(task, None)
    of = _several(inputs, vocabulary)
    tokens = classes if vocabulary is None and task.kind == TOKENS else vocabulary
    seen = graph, None if of else tokens, of
    network = _network(exp, model, of.image if of else tuple(image), classes, axes, task.form, seen)
    network = head_apart(network, exp.settings.blocks)
    with unchanged_if_refused(network):
        learner = assembled(exp, network, stage, steps=steps, pixels=_pixels(pixels, exp, network.image), task=task)
        exp.explicit.refuse(in_blocks(exp, learner))
    return learner


def _several(batch: Any, vocabulary: int | None) -> Inputs | None:
    """What the tensors of a batch are, where a model reads several. Raises UserError."""
    if batch is None:
        return None
    inputs = Inputs.of(batch, "inputs", batch=True)
    return inputs.counted([inputs.pack(batch)], vocabulary)


def _network(
    exp: Experiment,
    model: Any,
    image: tuple[int, ...],
    classes: int,
    axes: Any,
    form: str,
    seen: tuple[Tensor | None, int | None, Inputs | None],
) -> BlockModel:
    """The model for inputs with `seen`, the graph, vocabulary and several tensors that they have."""
    if isinstance(model, nn.Module) and exp.model.bottleneck != NONE:
        raise UserError(
            f"bottleneck={exp.names['bottleneck']} puts noise into a model, but build trains a module of yours as it "
            "is: give train() the module, of which it takes a copy, or name a model"
        )
    if isinstance(model, nn.Module) and not isinstance(model, BlockModel):
        _, vocabulary, inputs = seen
        options = {"axes": axes, "form": form, "vocabulary": vocabulary, "inputs": inputs}
        return as_blocks(model, image=image, classes=classes, **options)
    if axes is not None:
        raise UserError(f"axes={axes!r} is read only for a module that build cuts, and this model is cut: leave it out")
    if isinstance(model, BlockModel):
        return answering(model, form)
    with seeds.stream(exp.settings.seed, "model"):
        return model_for(exp.model, image, classes, form, *seen)


def _any_batch(settings: Mapping[str, Any]) -> list[str]:
    """A batch size that micro_batches divides: the loop makes the batches, and `step` looks at each of them."""
    parts = settings.get("micro_batches", 1)
    return [f"batch_size={parts}"] if isinstance(parts, int) and parts > 1 else []


def _read_by_train(exp: Experiment, steps: int | None) -> Iterator[Unread]:
    """What a learner for a loop of one's own does not read."""
    settings = (field.name for field in fields(Settings) if field.name not in BUILT)
    groups = ["data", "probe", "callback", "record", *(["runtime"] if exp.runtime.processes > 1 else [])]
    yield from (Unread(key, "train(), which has a loop of its own") for key in (*settings, *groups))
    if steps is None:
        yield from (Unread(key, "steps=NUMBER") for key in SHARES)


def _pixels(pixels: Pixels | None, exp: Experiment, image: tuple[int, ...]) -> Pixels | None:
    """Check `pixels` of `build`, and warn where they are missing. Raises UserError for what is no such pair."""
    if pixels is None:
        objective = getattr(exp.strategy, "objective", None)
        if len(image) == 3 and objective is not None and objective.reconstructs:
            name, loss = exp.names["objective"], "reconstructs by squared error, not by the cross-entropy of pixels"
            warnings.warn(
                f"objective={name} {loss}, as it does not know what black and white are: {_PIXELS}", stacklevel=3
            )
        return None
    try:
        black, white = (tuple(float(number) for number in side) for side in pixels)
    except (TypeError, ValueError):
        black = white = ()
    if not len(black) == len(white) == image[0] or any(b == w for b, w in zip(black, white, strict=True)):
        raise UserError(f"pixels={pixels} for inputs {list(image)}: {_PIXELS}")
    return black, white
