"""A model is an ordered list of units and a head. Where it is cut into blocks is not part of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, fx, nn

from locallearn.analysis.cost import Flops, SavedBytes, now
from locallearn.analysis.quiet import undisturbed
from locallearn.errors import UserError, unknown
from locallearn.inputs import Inputs
from locallearn.models import cut
from locallearn.models.axes import Axes, usual
from locallearn.task import BOXES, POSITION, SAMPLE

Size: TypeAlias = tuple[int, ...]
"""A shape without the batch: (C, H, W) for maps, (D,) for vectors."""
BALANCES = ("flops", "memory", "time")
MEMORY_BATCH = 128
"""Images for which balance=memory weighs activations against weights."""


class UnitCost(NamedTuple):
    """One unit: the shape that it emits (without the batch), its parameters, and per image the floating-point
    operations of the forward pass and the bytes that autograd saves for the backward pass."""

    name: str
    shape: Size
    parameters: int
    flops: int
    memory: int


class BlockModel(nn.Module):
    """An ordered list of units and a head.

    What a unit emits has its features where everything that reads them expects them: [B, D], [B, T, D], [B, C, H, W] or
    [B, C, D, H, W].

    Args:
        units: the smallest pieces that a cut may separate, each [B, ...] -> [B, ...], from the input upward, or these
            by name. None begins with an in-place operation, which would write into what the block below still needs.
        head: the last unit's output -> logits [B, classes].
        image: shape of one input, without the batch.
        classes: number of logits.
        name: of the model, for tables and messages.
        names: one per unit.

    `samples` is the only batch size that the model reads (all nodes of its graph), or None for any; `channels_first`
    says that an input of two axes is [C, L] and not [T, D]; `vocabulary` is how many tokens there are where the inputs
    are token numbers, else None; `inputs` what the tensors of a sample are where the model reads several, which come as
    one vector, `image` being its length; `form` says whether the head answers once for each `sample`, for each
    `position` or with `boxes`; `taken` what of its weights is from elsewhere (`weights.Taken`); `initialise`
    initialises modules like its own, where PyTorch's initialisation is not meant.
    """

    units: nn.ModuleList
    head: nn.Module
    samples: int | None = None
    channels_first: bool = False
    vocabulary: int | None = None
    inputs: Inputs | None = None
    form: str = SAMPLE
    taken: tuple[Any, ...] = ()
    initialise: Callable[[Iterable[nn.Module]], None] | None = None

    def __init__(
        self,
        units: Mapping[str, nn.Module] | Iterable[nn.Module],
        head: nn.Module,
        *,
        image: Size,
        classes: int,
        name: str,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(units, Mapping):
            units, names = units.values(), [*units]
        self.units = nn.ModuleList(units)
        self.head = head
        self.image: Size = tuple(image)
        self.classes = classes
        self.name = name
        self.names = list(names) if names is not None else [f"unit{i}" for i in range(len(self.units))]
        assert len(self.names) == len(self.units), "one name per unit"

    def forward(self, x: Any) -> Tensor:
        """Logits of a batch [B, *image]; of several tensors as they are, a tuple or a mapping, or packed."""
        if self.inputs is not None and not isinstance(x, Tensor):
            x = self.inputs.pack(x)
        for unit in self.units:
            x = unit(x)
        return self.head(x)

    def block(self, units: range) -> nn.Module:
        """The units of one block as a module [B, ...] -> [B, ...] that shares them."""
        return nn.Sequential(*(self.units[i] for i in units))

    def reversible(self, units: range) -> bool:
        """Whether a block of these units has modules whose input can be computed from their output."""
        return False

    def cut(self, blocks: int | str | Sequence[int], balance: str = "flops") -> list[range]:
        """Divide the units among blocks.

        Args:
            blocks: a number of blocks of about equal cost, "max" for one unit per block, or the cut points themselves:
                [2, 4, 7] cuts after 2, 4 and 7 units. See `head_apart` for a cut after the last one.
            balance: what cost is: flops (forward, per image), memory (activations of 128 images and weights, bytes) or
                time (of a forward and backward on this machine).

        Returns: the units of each block, from the input upward.

        Raises UserError for a number or cut points that the model does not have.
        """
        if balance not in BALANCES:
            raise unknown("balance", balance, BALANCES)
        return cut.ranges(self.name, len(self.units), blocks, lambda: _costs(self, balance))

    def blank(self, batch: int = 2) -> Tensor:
        """A batch of zeros [B, *image] on the model's device and in its type; of the model's own size if it has one.
        Of one image a `squeeze` in a user's module would drop the batch."""
        like = next((p for p in self.parameters() if p.is_floating_point()), torch.empty(0))
        dtype = like.dtype if self.vocabulary is None else torch.int64
        return like.new_zeros((self.samples or batch, *self.image), dtype=dtype, requires_grad=False)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """A batch of random inputs [B, *image] on the CPU."""
        size = self.samples or batch, *self.image
        if self.inputs is not None:
            return self.inputs.noise(size[0], generator)
        if self.vocabulary is None:
            return torch.randn(size, generator=generator)
        return torch.randint(self.vocabulary, size, generator=generator)

    def shapes(self) -> list[Size]:
        """What each unit emits, without the batch, by a small forward that leaves no trace. Raises UserError for a unit
        whose features are in another place (those of `as_blocks` have been turned)."""
        shapes = []
        with undisturbed(self), Axes() as axes:
            h = self.blank()
            for name, unit in zip(self.names, self.units, strict=True):
                h = _one_tensor(self, name, unit(h))
                axis, expected = axes.of(h), usual(h.dim())
                if axis not in (None, expected) and not isinstance(unit, fx.GraphModule):
                    raise UserError(
                        f"unit {name!r} of {self.name} emits batches of {list(h.shape)} with the features in axis "
                        f"{axis}, but blocks read them in axis {expected}: end it with .movedim({axis}, {expected}) "
                        f"and begin the next one with .movedim({expected}, {axis})"
                    )
                shapes.append(tuple(h.shape[1:]))
        return shapes


def head_apart(model: BlockModel, blocks: object) -> BlockModel:
    """The model; with one more unit, an empty one, if `blocks` are cut points of which the last is after its last
    unit. What follows that cut is the head alone, so that every layer has a block of its own. Modules are shared."""
    if not isinstance(blocks, list) or blocks[-1:] != [len(model.units)]:
        return model
    apart = copy(model)
    apart._modules = {**model._modules}
    apart.units = nn.ModuleList([*model.units, nn.Sequential()])
    apart.names = [*model.names, "head"]
    return apart


def answering(model: BlockModel, form: str) -> BlockModel:
    """The model with a head that answers in the form that a task asks for. Where maps come out of its last unit, a 1x1
    convolution answers at every position. Raises UserError where the model cannot answer so."""
    if model.form == form:
        return model
    size = model.shapes()[-1]
    if form != POSITION or len(size) != 3:
        asked = {SAMPLE: "once for each sample", POSITION: "at every position", BOXES: "with boxes"}
        others = {SAMPLE: "", POSITION: ", such as gelan, plainnet or resnet20, whose last unit emits maps"}
        raise UserError(
            f"{model.name} answers {asked[model.form]}, but must answer {asked[form]} for these data: choose another "
            "model" + others.get(form, ", such as detector")
        )
    model.head, model.form = nn.Conv2d(size[0], model.classes, 1), form
    return model


def measure(model: BlockModel) -> list[UnitCost]:
    """What each unit costs per image, counted in one small forward in evaluation mode that leaves no trace.

    Memory: every storage that autograd saves, once, at the first unit that saves it, but for weights and buffers.
    """
    costs, graphs = [], []
    with undisturbed(model, gradients=True):
        h = model.blank()
        batch = len(h)
        saved = SavedBytes((*model.parameters(), *model.buffers()))
        for name, unit in zip(model.names, model.units, strict=True):
            before = saved.now
            with saved, Flops() as counter:
                h = _one_tensor(model, name, unit(_leaf(h)))
            graphs.append(h)  # what a unit has saved stays counted
            flops, memory = counter.total // batch, (saved.now - before) // batch
            parameters = sum(p.numel() for p in unit.parameters())
            costs.append(UnitCost(name, tuple(h.shape[1:]), parameters, flops, memory))
    return costs


def _one_tensor(model: BlockModel, name: str, h: object) -> Tensor:
    """What a unit has returned. Raises UserError for anything but one tensor."""
    if not isinstance(h, Tensor):
        raise UserError(
            f"unit {name!r} of {model.name} returns a {type(h).__name__}, but what goes from block to block is one "
            "tensor: wrap it in a module that returns the features alone"
        )
    return h


def _leaf(h: Tensor) -> Tensor:
    """h as it would come from a block below; token numbers have no gradient."""
    h = h.detach()
    return h.requires_grad_() if h.is_floating_point() else h


def _costs(model: BlockModel, balance: str) -> list[float]:
    """What `balance` weighs a unit by. Memory is all that autograd holds in a step: activations and, once, weights."""
    if balance == "time":
        return _seconds(model)
    if balance == "memory":
        return [unit.memory * MEMORY_BATCH + 4 * unit.parameters for unit in measure(model)]
    return [unit.flops for unit in measure(model)]


def _seconds(model: BlockModel, batch: int = 8, repeats: int = 3) -> list[float]:
    """Seconds of forward and backward per unit: the fastest of a few runs after one to warm up. Synchronises."""
    seconds = []
    with undisturbed(model, gradients=True):
        h = model.blank(batch)
        for name, unit in zip(model.names, model.units, strict=True):
            wanted = [p for p in unit.parameters() if p.requires_grad]
            runs = []
            for _ in range(1 + repeats):
                x = _leaf(h)
                start = now(x.device)
                h_next = _one_tensor(model, name, unit(x))
                if leaves := [t for t in (x, *wanted) if t.requires_grad]:
                    torch.autograd.grad(h_next.sum(), leaves, allow_unused=True)  # `.grad` is left alone
                runs.append(now(x.device) - start)
            seconds.append(min(runs[1:]))
            h = h_next
    return seconds
