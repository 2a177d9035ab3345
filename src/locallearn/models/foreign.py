"""Any nn.Module as an ordered list of units and a head: the user's own, torchvision's, timm's."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from locallearn import paths, seeds
from locallearn.analysis.quiet import undisturbed
from locallearn.errors import UserError, did_you_mean, in_one_line
from locallearn.inputs import Inputs
from locallearn.models.base import BlockModel, Size
from locallearn.models.flow import Flow
from locallearn.models.seams import seams, unit_name
from locallearn.models.watch import restored
from locallearn.models.weights import Taken, read, sha256, take
from locallearn.task import POSITION, SAMPLE

DEFAULT = "DEFAULT"


def as_blocks(
    module: nn.Module,
    cuts: Sequence[str] | None = None,
    *,
    image: Size = (3, 32, 32),
    classes: int | None = None,
    name: str | None = None,
    axes: str | Mapping[str, str] | None = None,
    vocabulary: int | None = None,
    form: str = SAMPLE,
    inputs: Inputs | None = None,
) -> BlockModel:
    """Any network as a BlockModel that computes the same with the same parameters and buffers (shared, not copied).

    A unit hands on [D], [T, D] or [C, H, W] (or [C, D, H, W]): one that ends in other axes ends in a view that turns
    them, and the next unit begins with a view that turns them back. The head is the last layer with weights and the
    pooling or flattening before it. An operation that would write into what was handed over a cut works on a copy.

    Args:
        module: [B, *image] -> logits [B, classes], or with form="position" [B, T, classes] or [B, classes, H, W]. A
            submodule that torch.fx cannot follow stays in one piece.
        cuts: names of submodules behind which a unit ends, e.g. ["layer1", "layer2.0"]; without them there are as many
            units as there are places for a cut, each beginning at a layer with a weight matrix.
        image: shape of one input, without the batch.
        classes: checked if given; a dry run finds the number.
        name: of the model; the module's class by default.
        axes: channels_first or channels_last, of all units or by the name of the submodule behind which one ends: where
            the output has its features. Without it the layers tell; where they do not, there is no place for a cut.
        vocabulary: how many tokens there are where the module reads token numbers.
        form: whether it answers once for each sample or at each position.
        inputs: what the tensors are where the module reads several; `image` is then that of `inputs`. A cut goes where
            the last of them has been read.

    Raises UserError for a module that returns no such logits, that cannot be traced or cut as asked, or that
    computes something else when it is cut.
    """
    name, image = name or type(module).__name__, tuple(image)
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    if like.is_meta:
        raise UserError(f"{name} is on the meta device, where weights have no values; give it some with .to_empty")
    sample = _sample(image, vocabulary, inputs, like)
    with restored(module):
        outputs = _classes(module, name, sample, form, inputs)
        if classes not in (None, outputs):
            raise UserError(f"classes={classes} but {name} returns {outputs} logits; build it for {classes} classes")
        flow = Flow(module, name, sample.clone(), axes, inputs)
        edges = [flow.image, *seams(flow, name, cuts), flow.logits]
        *units, head = (_piece(flow, before, after) for before, after in pairwise(edges))
        _separate_modes([*units, head])
        names = [unit_name(flow, before, after) for before, after in pairwise(edges[:-1])]
        model = BlockModel(units, head, image=image, classes=outputs, name=name, names=names)
        model.vocabulary, model.inputs, model.form = vocabulary, inputs, form
        model.channels_first = len(image) == 2 and flow.axes.of(flow.values[flow.image]) == 1
        _check_faithful(model, module, sample)
        return model


def _sample(image: Size, vocabulary: int | None, inputs: Inputs | None, like: Tensor) -> Tensor:
    """Two samples of what the module reads."""
    draws = torch.Generator().manual_seed(0)
    if inputs is not None:
        return inputs.noise(2, draws).to(like.device, like.dtype)
    if vocabulary is not None:
        return torch.randint(vocabulary, (2, *image), generator=draws).to(like.device)
    return torch.rand(2, *image, generator=draws).to(like.device, like.dtype)


def _classes(module: nn.Module, name: str, sample: Tensor, form: str, inputs: Inputs | None) -> int:
    """The number of logits, by a dry run."""
    dense = form == POSITION
    try:
        logits = _run(module, sample, inputs, mode=False)
    except Exception as error:
        raise _unfit(name, inputs or sample.shape[1:], error) from error
    dimensions = (3, 4) if dense else (2,)
    if not isinstance(logits, Tensor) or logits.dim() not in dimensions or len(logits) != len(sample):
        what = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        wanted = "[batch, steps, classes] or [batch, classes, height, width]" if dense else "[batch, classes]"
        raise UserError(
            f"{name} returns {what} for a batch of {len(sample)}, not logits {wanted}; wrap it in a module "
            "that returns these alone"
        )
    return logits.shape[2 if logits.dim() == 3 else 1]


def _built(name: str, image: Size, build: Callable[[], nn.Module]) -> nn.Module:
    """A model of a library, whose own complaints may be of any type."""
    try:
        return build()
    except Exception as error:
        raise _unfit(name, image, error) from error


def _unfit(name: str, image: Sequence[int] | Inputs, error: Exception) -> UserError:
    what = f"inputs of {image}" if isinstance(image, Inputs) else f"images of {'x'.join(map(str, image))}"
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    hint = "choose another image size or model"
    if isinstance(image, Inputs):
        hint = "its forward takes these tensors, by their place or by name: give what it reads"
    if "must be Tensor, not" in text:
        hint = "a layer returns more than one tensor, of which a module of your own must take the one that goes on"
    return UserError(f"{name} cannot read {what}: {text}; {hint}")


def _run(module: nn.Module, sample: Tensor, inputs: Inputs | None = None, *, mode: bool) -> Any:
    with undisturbed(module), restored(module):
        module.train(mode)
        seeds.restart(0, sample.device)  # inside undisturbed: the caller's random state comes back
        if inputs is None:
            return module(sample.clone())
        placed, by_name = inputs.unpack(sample.clone())
        return module(*placed, **by_name)


def _check_faithful(model: BlockModel, module: nn.Module, sample: Tensor) -> None:
    for mode in (True, False):
        ours, theirs = _run(model, sample, mode=mode), _run(module, sample, model.inputs, mode=mode)
        if not torch.allclose(ours, theirs, equal_nan=True):
            raise UserError(
                f"{model.name} computes something else when it is cut: its forward depends on what no trace shows, "
                "such as a type or whether gradients are on; write it as a locallearn.BlockModel"
            )


def _piece(flow: Flow, before: fx.Node, after: fx.Node) -> fx.GraphModule:
    """The operations behind `before` up to `after` as a module that shares the user's parameters."""
    graph = fx.Graph()
    entry = graph.placeholder("x")
    if before in flow.bounds and (turn := flow.turn(before)):
        entry = graph.call_method("movedim", (entry, *reversed(turn)))
    copies = {before: graph.call_method("clone", (entry,)) if before in flow.overwritten else entry}

    def copied(node: fx.Node) -> fx.Node:
        if node not in copies:  # an attribute, read where it is first needed
            copies[node] = graph.node_copy(node)
        return copies[node]

    for node in flow.between(before, after):
        copies[node] = graph.node_copy(node, copied)
    out = copies[after]
    if after in flow.bounds and (turn := flow.turn(after)):
        out = graph.call_method("movedim", (out, *turn))
    graph.output(out)
    return fx.GraphModule(flow.module, graph, class_name="Unit")


def _separate_modes(units: list[fx.GraphModule]) -> None:
    """One dropout or activation that serves several units becomes one for each, so that a unit can be in evaluation
    mode while another trains. Modules with weights never serve two."""
    taken: dict[int, fx.GraphModule] = {}
    for unit in units:
        for node in unit.graph.nodes:
            if node.op == "call_module":
                module = unit.get_submodule(node.target)
                if taken.setdefault(id(module), unit) is not unit:
                    unit.set_submodule(node.target, copy.deepcopy(module))


def torchvision_model(
    image: Size, classes: int, *, name: str = "resnet18", cuts: list[str] | None = None, weights: str | None = None
) -> BlockModel:
    """A torchvision classifier, cut at `cuts` or wherever it can be: untrained, or with `weights`, which are a file or
    a name of torchvision's, such as DEFAULT, that is downloaded if it is not in its cache. Other classes have a new
    head."""
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise UserError(
            f"unknown torchvision model {name!r}: {did_you_mean(name, known)}"
            "choose one of torchvision.models.list_models(), e.g. resnet18 or vgg11_bn"
        )
    if image[0] != 3:
        raise UserError(f"torchvision's {name} reads 3 channels, but these images have {image[0]}; choose model=timm")
    options = {"aux_logits": False, "init_weights": True} if name in ("googlenet", "inception_v3") else {}
    module = _built(name, image, lambda: models.get_model(name, weights=None, num_classes=classes, **options))
    model = as_blocks(module, cuts, image=image, classes=classes, name=name)
    if weights is not None:
        published = models.get_model_weights(name).__members__
        if weights in published:
            state = _downloaded(weights, lambda: published[weights].get_state_dict(progress=False, check_hash=True))
            said = f"model.weights={weights}"
            model.taken = (Taken(said, published[weights].url, take(model, state, said)),)
        else:
            _take_file(model, weights, (*published,))
    return model


def timm_model(
    image: Size, classes: int, *, name: str = "resnet18", cuts: list[str] | None = None, weights: str | None = None
) -> BlockModel:
    """A timm classifier for any number of channels, cut at `cuts` or wherever it can be: untrained, or with `weights`,
    which are a file, or DEFAULT for what timm downloads if it is not in its cache. Other classes have a new head."""
    try:
        import timm
    except ImportError as error:
        raise UserError("timm is not installed; pip install 'locallearn[timm]'") from error
    if not timm.is_model(name):
        close = did_you_mean(name, timm.list_models())
        raise UserError(f"unknown timm model {name!r}: {close}choose one of timm.list_models(), e.g. resnet18")
    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {"num_classes": classes, "in_chans": image[0]}
    if settings is not None and settings.fixed_input_size:
        options["img_size"] = tuple(image[1:])
    if weights == DEFAULT:
        module = _downloaded(weights, lambda: timm.create_model(name, pretrained=True, **options))
    else:
        module = _built(name, image, lambda: timm.create_model(name, pretrained=False, **options))
    model = as_blocks(module, cuts, image=image, classes=classes, name=name)
    if weights == DEFAULT:
        where = str(settings.url or settings.hf_hub_id)
        model.taken = (Taken("model.weights=DEFAULT", where, f"weights that timm has for {name} ({where})"),)
    elif weights is not None:
        _take_file(model, weights, (DEFAULT,))
    return model


def _downloaded(weights: str, get: Callable[[], Any]) -> Any:
    """What a library has in its cache, or downloads. Raises UserError if it cannot."""
    try:
        return get()
    except Exception as error:  # of urllib, sockets, the hub's client, each its own
        raise UserError(
            f"model.weights={weights} could not be downloaded ({in_one_line(error)}): give a file, or leave it out"
        ) from error


def _take_file(model: BlockModel, weights: str, published: Sequence[str]) -> None:
    """Give a model the weights of a file. Raises UserError."""
    file = paths.expanded(weights)
    if not file.exists():
        names = ", ".join(published) or "none"
        raise UserError(
            f"model.weights={weights}: {did_you_mean(weights, published)}must be a file, or a name of weights for "
            f"{model.name} ({names})"
        )
    said = f"model.weights={file.resolve()}"
    model.taken = (Taken(said, sha256(file), take(model, read(file, said), said)),)
