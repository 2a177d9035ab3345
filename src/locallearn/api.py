"""What a script or a notebook imports: train a run, build a learner for a loop of one's own, load a trained model."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from locallearn import seeds
from locallearn.config.compose import compose, quoted
from locallearn.config.experiment import Experiment, experiment
from locallearn.config.explicit import Unread
from locallearn.config.settings import Settings
from locallearn.config.unread import in_blocks
from locallearn.engine import Learner
from locallearn.engine.assemble import unchanged_if_refused
from locallearn.engine.setup import Pixels
from locallearn.errors import UserError
from locallearn.models import BlockModel, as_blocks
from locallearn.training.prepare import assembled, stage_of
from locallearn.training.run import start
from locallearn.training.saved import Result, load

BUILT = (
    *("seed", "blocks", "train_blocks", "balance", "device", "precision", "channels_last", "compile"),
    *("micro_batches", "allow"),
)
"""The settings that `build` reads."""
SHARES = ("optim.schedule", "optim.warmup", "optim.milestones", "optim.decay", "strategy.warmup", "strategy.anneal")
"""Options that are shares of training, or follow it: without a number of steps nobody knows how far it is."""

__all__ = ["Learner", "Result", "build", "load", "train"]

_PIXELS = (
    "give pixels=(black, white), one number per channel each, such as pixels=((0, 0, 0), (1, 1, 1)) for colours from 0 "
    "to 1"
)


def train(quiet: bool = False, **settings: Any) -> Result:
    """Run one experiment, as the command line does.

    train(strategy="dgl", model="vgg16", data="digits", blocks=4, epochs=2, seed=0, optim={"lr": 0.1})

    Args:
        quiet: Print nothing.
        settings: Any setting or group of the command line. A group takes a name, or a mapping of its options as
            `optim` above; both at once take a dotted key: data="mnist", **{"data.root": "/data"}.

    Returns:
        What the run has left: `.metrics`, `.model`, `.run_dir` and `.history`.

    Raises:
        UserError: For a mistake in the settings, before anything is written.
        RunError: When training had to stop, as for a loss that is not finite or a full disk.
    """
    overrides = list(_overrides(settings))
    exp = experiment(*compose(overrides), overrides)
    exp.explicit.refuse([Unread("dry_run", "the command line, which prints the blocks")])
    result = start(exp, quiet=quiet)
    assert result is not None, "torchrun is for the command line"
    return result


def build(
    strategy: str | Mapping[str, Any] = "dgl",
    model: str | Mapping[str, Any] | nn.Module = "vgg16",
    *,
    image: tuple[int, ...] = (3, 32, 32),
    classes: int = 10,
    graph: Tensor | None = None,
    steps: int | None = None,
    pixels: Pixels | None = None,
    axes: str | Mapping[str, str] | None = None,
    **settings: Any,
) -> Learner:
    """Build a learner for a training loop of one's own.

    Args:
        strategy: A name such as "dgl", or a mapping of its options.
        model: A name of the zoo, or any module whose forward is a sequence (see `as_blocks`), which is trained in
            place.
        image: The shape of one input, without the batch.
        classes: The number of classes.
        graph: Edges between the samples, int64 [2, E], for a model that reads them (gcn).
        steps: How many steps there will be, for the learning-rate schedule; without it the rate is constant.
        pixels: What a black and a white pixel are in the inputs, one number per channel each: ((0, 0, 0), (1, 1, 1))
            where nothing is normalised, else (0 - mean) / std and (1 - mean) / std. Objectives that reconstruct images
            by cross-entropy need it, and take the squared error without.
        axes: The axes of what a module's layers hand on, where the layers do not tell: see `as_blocks`.
        settings: As in `train`: blocks, seed, objective, auxiliary, optim, precision, device, ...

    Returns:
        A learner with `.step(inputs [B, *image], labels [B]) -> dict`, `.predict`, `.model` and `.blocks`.

    Raises:
        UserError: For a mistake, also for a setting that only `train` reads; a module is then left as it was.
    """
    named = {} if isinstance(model, nn.Module) else {"model": model}
    overrides = list(_overrides({"strategy": strategy, **named, **settings}))
    exp = experiment(*compose([*_any_batch(settings), *overrides]), overrides)
    exp.explicit.refuse(_read_by_train(exp, steps))
    stage = stage_of(exp)
    network = _network(exp, model, tuple(image), classes, graph, axes)
    with unchanged_if_refused(network):
        learner = assembled(exp, network, stage, steps=steps, pixels=_pixels(pixels, exp, network.image))
        exp.explicit.refuse(in_blocks(exp, learner))
    return learner


def _network(
    exp: Experiment, model: Any, image: tuple[int, ...], classes: int, graph: Tensor | None, axes: Any
) -> BlockModel:
    if isinstance(model, nn.Module) and not isinstance(model, BlockModel):
        return as_blocks(model, image=image, classes=classes, axes=axes)
    if axes is not None:
        raise UserError(f"axes={axes!r} is for a module that build cuts; the units of this model hand on [C, H, W]")
    if isinstance(model, BlockModel):
        return model
    with seeds.stream(exp.settings.seed, "model"):
        return exp.model(image, classes, graph)


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
                f"objective={name} {loss}, for it is not told what black and white are: {_PIXELS}", stacklevel=3
            )
        return None
    try:
        black, white = (tuple(float(number) for number in side) for side in pixels)
    except (TypeError, ValueError):
        black = white = ()
    if not len(black) == len(white) == image[0] or any(b == w for b, w in zip(black, white, strict=True)):
        raise UserError(f"pixels={pixels} for inputs {list(image)}: {_PIXELS}")
    return black, white


def _overrides(settings: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Keyword settings as Hydra overrides."""
    for key, value in settings.items():
        path = f"{prefix}{key}"
        if not re.fullmatch(r"\+{0,2}[\w./-]+", path):
            raise UserError(f"{path!r} is no name of a setting: give a keyword such as epochs=2, or 'optim.lr'")
        if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
            yield from _overrides(value, f"{path}.")
        else:
            yield f"{path}={_text(value, path)}"


def _text(value: Any, path: str) -> str:
    """One value in the grammar of overrides. A text is a text, whatever it looks like."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        return "[" + ",".join(_text(item, path) for item in value) + "]"
    if isinstance(value, Mapping):
        if odd := [k for k in value if not isinstance(k, int) and not re.fullmatch(_WORD, str(k))]:
            raise UserError(f"{path}={value!r}: {odd[0]!r} cannot be a key in it; keys are words or whole numbers")
        return "{" + ",".join(f"{k}:{_text(item, path)}" for k, item in value.items()) + "}"
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        text = str(value)
        if text == "???":
            raise UserError(f"{path}='???': three question marks stand for a missing value; give another text")
        return text if re.fullmatch(_WORD, text) and text.lower() not in _NOT_TEXTS else quoted(text)
    raise UserError(f"{path}={value!r}: must be a number, a text, true, false, null, or a list or mapping of these")


_WORD = r"[A-Za-z_/][\w./-]*"
_NOT_TEXTS = {"true", "false", "null", "nan", "inf"}
"""Words that mean something else than themselves."""
