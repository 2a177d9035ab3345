"""Train a run from Python, and come back to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn

from locallearn import paths
from locallearn.config.compose import compose
from locallearn.config.experiment import Experiment, experiment
from locallearn.config.explicit import Unread
from locallearn.config.keywords import composed, overrides, parted
from locallearn.config.outside import trusted
from locallearn.engine.assemble import unchanged_if_refused
from locallearn.errors import UserError
from locallearn.models import BlockModel
from locallearn.runtime.world import started_together
from locallearn.training import saved
from locallearn.training.later import evaluate_run, probe_run
from locallearn.training.longer import STRETCHED
from locallearn.training.run import resume as go_on
from locallearn.training.run import start
from locallearn.training.saved import Result

Folders: TypeAlias = str | Path | Sequence[str | Path]
"""One folder of the user's own yaml files, or several; as `--config-dir` it trusts the packages that they name."""


def train(*, quiet: bool = False, config_dir: Folders = (), **settings: Any) -> Result:
    """Run one experiment, as the command line does.

    train(strategy="dgl", model="vgg16", data="digits", blocks=4, epochs=2, seed=0, optim={"lr": 0.1})
    train(strategy=MyStrategy(), model=my_module, data={"train": my_dataset, "test": (x, y)}, optim=torch.optim.RMSprop)

    Args:
        quiet: Print nothing.
        config_dir: Folders of your own yaml files.
        settings: Any setting or group of the command line. A group takes a name, or a mapping of its options as
            `optim` above; both at once take a dotted key: data="mnist", **{"data.root": "/data"}. Or it takes an
            object, whose name and source hash are kept in the run folder, not itself: `resume` must be given it again.

            - model: a module, of which a copy is trained, or a function or class that builds one and may ask for
              `image`, `classes` and `graph`;
            - data: a pair (inputs, labels) of tensors or arrays, a `torch.utils.data.Dataset` or `DataLoader`, a data
              set of Hugging Face, or a mapping of "train", "validation" and "test" to these; options such as
              **{"data.validation": 0.2} stand beside it;
            - optim: an optimizer class, or a `functools.partial` of one, beside **{"optim.schedule": "constant"} and so
              on; "optim.schedule" may be a function of progress in [0, 1];
            - task: what such data ask for, if not for classes: "regression", "multilabel", "segmentation", "tokens", or
              a task with options;
            - strategy, objective, auxiliary, probe, callbacks, ...: an object of the class that docs/own-*.md name;
              of probes and callbacks also a list.

    Returns:
        What the run has left: `.metrics`, `.model`, `.run_dir` and `.history`.

    Raises:
        UserError: For a mistake in the settings, before anything is written.
        RunError: When training had to stop, such as for a loss that is not finite or a full disk.
    """
    _refuse_torchrun()
    exp = experiment_of(settings, config_dir)
    exp.explicit.refuse([Unread("dry_run", "the command line, which prints the blocks")])
    result = start(exp, quiet=quiet)
    assert result is not None
    return result


def resume(
    run: str | Path,
    *,
    quiet: bool = False,
    epochs: int | None = None,
    schedule: str = STRETCHED,
    allow: Sequence[str] = (),
    config_dir: Folders = (),
    **given: Any,
) -> Result:
    """Go on with a run that was interrupted, failed or killed, to the same bits as if it had not been.

    resume(run, model=my_module, data=my_dataset)

    Args:
        run: The run folder.
        quiet: Print nothing.
        epochs: More epochs than the run has, to make it longer, also if it is done.
        schedule: With `epochs`, whether what follows progress is "stretched" over all of them or "held" where it ended.
        allow: Packages outside locallearn whose classes the run may use.
        config_dir: Folders of your own yaml files.
        given: The objects that the run was made with, by the names that they had in `train`; and where its blocks run
            from now on, such as runtime="serial".

    Returns:
        What `train` returns.

    Raises:
        UserError: For a folder that is not a run, and for objects of another class or with other options than those of
            the run. If only their source has changed, there is a warning.
        RunError: As `train`.
    """
    _refuse_torchrun()
    dirs = _folders(config_dir)
    objects, plain = parted(given)
    objects |= {key: plain.pop(key) for key in ("data.task",) if key in plain}  # which train was given as a text
    if other := [key for key in plain if not key.startswith("runtime") or key == "runtime.staleness"]:
        raise UserError(f"resume takes objects, epochs and a runtime, such as runtime='serial', not {other[0]}=")
    words = list(overrides(plain))
    runtime = None
    if words:
        config, names = compose([*([] if "runtime" in plain else ["runtime=pipeline"]), *words], dirs)
        runtime = names["runtime"], config["runtime"]
    allowed = trusted(dirs, list(allow))
    result = go_on(run, allowed, quiet, runtime, words, epochs, schedule, objects)
    assert result is not None
    return result


def load(
    run: str | Path,
    allow: Sequence[str] | None = None,
    *,
    config_dir: Folders = (),
    model: Any = None,
    data: Any = None,
    strategy: Any = None,
) -> BlockModel:
    """Load the model that a finished run has trained.

    Args:
        run: The run folder.
        allow: Packages outside locallearn whose classes the run may use.
        config_dir: Folders of your own yaml files.
        model: Of a run whose model was an object, that object: the trained weights are put into the module itself.
        data: Of a run whose data were an object, and whose model reads their graph, that object.
        strategy: Of a run whose strategy was an object and answers in a way of its own, that object.

    Returns:
        The model, in eval mode, on the CPU: inputs [B, *image] -> logits [B, classes]. It is the plain one, without any
        auxiliary parameter, but for strategies that answer in a way of their own.

    Raises:
        UserError: For a folder that is not a finished run, or is damaged; a module is then left as it was.
    """
    given = {"model": model, "data": data, "strategy": strategy}
    objects = {name: value for name, value in given.items() if value is not None}
    allowed = trusted(_folders(config_dir), list(allow or ()))
    if not isinstance(model, nn.Module):
        return saved.load(run, allowed, objects)
    with unchanged_if_refused(model):
        return saved.load(run, allowed, objects, own=True)


def evaluate(
    run: str | Path,
    *,
    linear: bool = False,
    allow: Sequence[str] = (),
    config_dir: Folders = (),
    **given: Any,
) -> dict[str, float]:
    """Test a run again, at every block that can predict.

    Args:
        run: The run folder.
        linear: Also fit a linear classifier to each block's features.
        allow: Packages outside locallearn whose classes the run may use.
        config_dir: Folders of your own yaml files.
        given: The objects that the run was made with; those that a test does not need are ignored. `data`, a name or an
            object, may be another set with the classes of the run; it is normalised as that of the run was.

    Returns:
        Numbers by name, such as "accuracy" and "block/00/accuracy".

    Raises:
        UserError: For a folder that is not a run, and for objects and data that do not fit it.
    """
    dirs = _folders(config_dir)
    objects, plain = parted(given)
    if other := [key for key in plain if key.partition(".")[0] != "data"]:
        raise UserError(f"evaluate takes objects and data, not {other[0]}=")
    words = [*composed(objects, plain), *overrides(plain)]
    data = compose(words, dirs)[0]["data"] if "data" in objects or plain else None
    return evaluate_run(run, trusted(dirs, list(allow)), data, linear, objects)


def probe(
    run: str | Path, probe: Any, *, allow: Sequence[str] = (), config_dir: Folders = (), **given: Any
) -> list[Path]:
    """Let probes look at the initial weights and at every checkpoint of a run.

    Args:
        run: The run folder.
        probe: A name, several, a mapping of options by name, or objects.
        allow: Packages outside locallearn whose classes the run may use.
        config_dir: Folders of your own yaml files.
        given: The objects that the run was made with.

    Returns:
        For each probe its new folder, with numbers and pictures.

    Raises:
        UserError: For a folder that is not a run, and for objects and probes that do not fit it.
    """
    dirs = _folders(config_dir)
    objects, plain = parted({"probe": probe, **given})
    if other := [key for key in plain if key.partition(".")[0] != "probe"]:
        raise UserError(f"probe takes objects and options of probes, not {other[0]}=")
    words = list(overrides(plain))
    looked = probe_run(run, trusted(dirs, list(allow)), compose(words, dirs)[0]["probe"], words, objects)
    return [folder.path for folder, _ in looked]


def _refuse_torchrun() -> None:
    if started_together():
        raise UserError("torchrun is for the command line: start a script without it; a pipeline starts its processes")


def experiment_of(settings: Mapping[str, Any], config_dir: Folders, more: Sequence[str] = ()) -> Experiment:
    """The experiment that keywords mean: settings as on a command line, objects as they are."""
    dirs = _folders(config_dir)
    objects, plain = parted(settings)
    allow = plain.get("allow", [])
    if dirs and isinstance(allow, list | tuple):
        plain["allow"] = trusted(dirs, list(map(str, allow)))
    words = list(overrides(plain))
    base = [*composed(objects, plain), *more]
    return experiment(*compose([*base, *words], dirs), words, dirs, objects=objects)


def _folders(config_dir: Folders) -> list[Path]:
    given = [config_dir] if isinstance(config_dir, str | Path) else list(config_dir)
    return [paths.expanded(str(folder)) for folder in given]
