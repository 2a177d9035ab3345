"""Record what chosen modules of any network emit, and the gradients that come back to it, in a loop of one's own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.analysis.hooks import Hooks, choose
from locallearn.analysis.quiet import undisturbed
from locallearn.analysis.recording import EpochWriter, Recording, remove_unfinished
from locallearn.errors import UserError, unknown

_PRECISIONS = ("float16", "float32", "float64")


class Tracker(Recording):
    """Records activations and gradients of modules to `folder`, epoch by epoch, with one batch in memory at a time.

        with Tracker(model, ["conv1", "fc*"], folder="tracked", gradients=True) as tracker:
            for epoch in range(10):
                train(model)  # anybody's loop
                tracker.record(images, labels, epoch=epoch)  # always the same examples
        tracker.activations("conv1", epoch=9)  # [N, C, H, W], memory-mapped
        Tracker.open("tracked").gradients("fc1", epoch=9)  # later, without the model

    or, what passes by in a forward and backward of one's own:

        with tracker.watch(epoch):
            loss(model(images), labels).backward()

    Of a module that returns several tensors, such as an LSTM, the first is taken; a recurrent module's [T, B, D] is
    turned to [B, T, D]. A module that runs again within one forward of the model, such as a shared activation, is
    recorded as `relu`, then `relu@2`, ... NaN and infinity are recorded as they are. A layer that is named must run and
    emit samples; one that only a pattern matches is left out where it does not, with a warning if it ran. Hooks are on
    the model only during `record` and `watch`; a compiled module does not call them. One tracker per folder at a time.

    Args:
        layers: names as in `model.named_modules()`, or patterns: `*` is any part of a name up to the next dot
            (`units.*` are the units of a `BlockModel`), `**` any with dots. None: every module without children.
        precision: float16, float32 or float64 on disk. Gradients below 6e-8 are zero in float16.
        gradients: also record the gradient of the loss with respect to what each layer emits.

    Raises UserError for a layer that the model does not have, and for an unknown precision.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[str] | None = None,
        *,
        folder: str | Path,
        precision: str = "float32",
        gradients: bool = False,
    ) -> None:
        super().__init__(folder)
        if precision not in _PRECISIONS:
            raise unknown("precision of a tracker", precision, _PRECISIONS)
        patterns = [layers] if isinstance(layers, str) else layers
        self._model = model
        self._modules = choose(model, patterns)
        self._named = set(patterns or ()) & self._modules.keys()
        self._precision = precision
        self._with_gradients = gradients
        self._running: ExitStack | None = None
        remove_unfinished(self.folder)

    @staticmethod
    def open(folder: str | Path) -> Recording:
        """Read what is recorded in `folder`, without the model. Raises UserError where nothing is."""
        recording = Recording(folder)
        if not recording.epochs:
            raise UserError(f"{folder} holds no recorded epoch; give the folder of a Tracker")
        return recording

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._running is not None:  # a `watch` that nobody has ended
            self._running.close()

    def record(
        self,
        inputs: Any,
        targets: Tensor | None = None,
        *,
        epoch: int,
        loss: Callable[[Any, Any], Tensor] = F.cross_entropy,
        batch_size: int | None = 256,
    ) -> None:
        """Run the model on fixed examples in eval mode and record what the layers emit as that of `epoch`; an epoch
        that is there already is replaced. Modes, buffers, gradients and PyTorch's generators are put back.

        Args:
            inputs: a tensor [N, ...], or a tuple of what the model's forward takes, each [N, ...]; moved to the model.
            targets: [N, ...] for the loss; needed for gradients only.
            epoch: the number under which the arrays are kept, at least 0.
            loss: of (output, targets), averaged over samples: gradients are those of all N as one batch.
            batch_size: samples at a time; None runs all at once, as a graph needs: `record((x, edges),
                batch_size=None)`.

        Raises UserError where a named layer does not run or emits no samples, and RunError where the disk fails.
        """
        if self._with_gradients and targets is None and loss is F.cross_entropy:
            raise UserError("a tracker with gradients=True needs targets for its loss: record(inputs, targets, ...)")
        arguments = inputs if isinstance(inputs, tuple) else (inputs,)
        device = next((t.device for t in (*self._model.parameters(), *self._model.buffers())), torch.device("cpu"))
        with _looking(self._model, self._with_gradients), self._hooked(epoch) as hooks:
            hooks.collect = self._with_gradients
            for part, answers, share in _batches(arguments, targets, batch_size):
                part = tuple(_own(x, device, self._with_gradients) for x in part)
                hooks.samples = len(part[0]) if batch_size is not None else None
                output = self._model(*part)
                if self._with_gradients:
                    hooks.back(loss(output, answers.to(device) if answers is not None else None), share)

    @contextmanager
    def watch(self, epoch: int) -> Iterator[None]:
        """While it lasts, record what passes by as that of `epoch`: the outputs of every forward, one batch after the
        other, and the gradient of every backward (of two through one output, the last; zero where none comes). It
        counts once the block has ended without an error. Gradient checkpointing runs, and records, layers twice."""
        with self._hooked(epoch):
            yield

    @contextmanager
    def _hooked(self, epoch: int) -> Iterator[Hooks]:
        if epoch < 0:
            raise UserError(f"epoch={epoch}: must be at least 0")
        if self._running is not None:
            raise UserError("the tracker is recording already: end one record or watch before the next")
        with ExitStack() as self._running:
            self._running.callback(setattr, self, "_running", None)
            writer = EpochWriter(self.folder, epoch, np.dtype(self._precision))
            self._running.callback(writer.abandon)
            hooks = Hooks(writer, self._named, getattr(torch, self._precision), self._with_gradients)
            self._running.enter_context(hooks.attached(self._model, self._modules))
            yield hooks
            missing = [name for name in self._modules if name in self._named and name not in writer.layers]
            if missing or not writer.layers:
                raise UserError(
                    f"{', '.join(missing or list(self._modules)[:3])} did not run in epoch {epoch}: the model's "
                    "forward does not call it, or it was compiled; choose modules that run"
                )
            writer.commit()


@contextmanager
def _looking(model: nn.Module, gradients: bool) -> Iterator[None]:
    """`undisturbed`; with gradients those of a frozen network, too, and which parameters learn is as before."""
    learns = [(p, p.requires_grad) for p in model.parameters()] if gradients else []
    with ExitStack() as stack:
        stack.enter_context(undisturbed(model, gradients=gradients))
        if gradients and any(isinstance(m, nn.RNNBase) for m in model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))  # has no backward in eval mode
        for p, before in learns:
            stack.callback(p.requires_grad_, before)
            p.requires_grad_(p.is_floating_point())
        yield


def _batches(
    arguments: tuple[Any, ...], targets: Tensor | None, batch_size: int | None
) -> Iterator[tuple[tuple[Any, ...], Tensor | None, float]]:
    """Arguments and targets of each batch, and its share of the samples."""
    if batch_size is None:
        yield arguments, targets, 1.0
        return
    if batch_size < 1:
        raise UserError(f"batch_size={batch_size}: must be at least 1, or None for all at once")
    parts = arguments if targets is None else (*arguments, targets)
    if not all(isinstance(x, Tensor) and x.dim() for x in parts):
        raise UserError("inputs that are not tensors [N, ...] cannot be split: give batch_size=None to run all at once")
    if len({len(x) for x in parts}) > 1 or not len(parts[0]):
        sizes = ", ".join(str(len(x)) for x in parts)
        raise UserError(f"inputs and targets of {sizes} samples: give as many of each, or batch_size=None for a graph")
    for start in range(0, len(parts[0]), batch_size):
        cut = [x[start : start + batch_size] for x in parts]
        answers = None if targets is None else cut.pop()
        yield tuple(cut), answers, len(cut[0]) / len(parts[0])


def _own(x: Any, device: torch.device, gradients: bool) -> Any:
    """A copy on the device, so that a first operation in place does not write into the user's examples."""
    if not isinstance(x, Tensor):
        return x
    x = x.detach().to(device)
    return x.requires_grad_().clone() if gradients and x.is_floating_point() else x.clone()
