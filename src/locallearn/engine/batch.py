"""What a batch must be before anything learns from it: each mistake in one sentence, before a weight moves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from locallearn.analysis.quiet import Rerun, evaluating
from locallearn.engine.stage import Stage
from locallearn.errors import RunError, UserError, in_one_line, needs_several_values
from locallearn.inputs import several
from locallearn.models import BlockModel

SINGLE = (
    "a batch, or each of its parts, has one sample, and a batch norm cannot take the variance of one value: choose a "
    "batch_size of at least 2 for each of micro_batches and replicas, or layers without batch norm"
)


class Gate:
    """Lets through to a learner what its blocks can read and learn from; what sizes and types do not tell is tried.

    trial  takes a step on a batch of one sample that changes nothing
    """

    def __init__(self, model: BlockModel, stage: Stage, trial: Callable[[Tensor, Tensor], object]) -> None:
        self._model, self._stage, self._trial = model, stage, trial
        self._reads: set[torch.dtype] = set()  # integers that the model is known to read
        self._learns_from_one = False

    def packed(self, inputs: Any) -> Any:
        """Inputs as one tensor, also where the model reads several. Raises UserError for other tensors."""
        of = self._model.inputs
        return inputs if of is None or not several(inputs) else of.pack(inputs)

    def check(self, inputs: Any) -> None:
        """Raises UserError for what the learner cannot read."""
        check_inputs(self._model, inputs)
        if inputs.is_floating_point() or inputs.dtype in self._reads:
            return
        block, samples = self._stage.blocks[0], self._model.samples or 1
        try:
            with torch.no_grad(), evaluating(block.layers), Rerun(block.layers):
                block.layers(inputs[:samples].to(block.device))
        except (RuntimeError, ValueError, TypeError) as error:
            raise UserError(
                f"the images are {inputs.dtype}, which {self._model.name} cannot read ({in_one_line(error)}): "
                "give floats on the scale of its training, such as images.float() / 255"
            ) from error
        self._reads.add(inputs.dtype)

    def checked(self, inputs: Any, labels: Any, look: bool = True) -> Tensor:
        """The targets of a batch in the type of the task. Raises UserError for a batch that the learner cannot learn
        from; see `Task.checked`."""
        self.check(inputs)
        labels = self._stage.blocks[0].spec.task.checked(labels, len(inputs), self._model.classes, look)
        replicas = self._stage.replicas
        parts = self._stage.micro_batches * (replicas.size if replicas is not None else 1)
        if len(inputs) % parts:
            what = f"micro_batches={parts}" if replicas is None else f"micro_batches times replicas, {parts},"
            raise UserError(f"{what} does not divide a batch of {len(inputs)}; choose a divisor")
        if len(inputs) == parts and self._model.samples is None:
            self.check_single(inputs[:1], labels[:1])
        return labels

    def check_single(self, inputs: Tensor, labels: Tensor) -> None:
        """Refuse a single sample where a batch norm has one value of each channel; it depends on the sizes of maps, in
        auxiliary networks too. A step that changes nothing shows it, once."""
        if self._learns_from_one:
            return
        if self._stage.link is None:  # a stage of a pipeline was tried before there were stages
            try:
                self._trial(inputs, labels)
            except ValueError as error:
                if needs_several_values(error):
                    raise UserError(SINGLE) from error
            except RunError:  # numbers that are not finite: the step itself says it
                return
        self._learns_from_one = True


def check_inputs(model: BlockModel, inputs: Any) -> None:
    """Raises UserError for what is not a batch [B, *image] of the model."""
    if not isinstance(inputs, Tensor):
        hint = "make it one with torch.as_tensor"
        if several(inputs):
            hint = f"{model.name} was built for one; to build it for several, give inputs=, such as those of a batch"
        raise UserError(f"the images are a {type(inputs).__name__}, not a tensor: {hint}")
    shape = inputs.shape
    if shape[1:] != model.image or len(shape) != 1 + len(model.image):
        wanted = f"[B, {', '.join(map(str, model.image))}]"
        last = len(shape) == 4 and (shape[3], shape[1], shape[2]) == model.image
        hint = "give images.permute(0, 3, 1, 2)" if last else "give these, or build it with another image="
        if model.inputs is not None:
            wanted, hint = (
                f"several tensors ({model.inputs})",
                "give a tuple of them, or a mapping of their names to them",
            )
        raise UserError(f"the images are {list(shape)}, but the learner was built for {wanted}: {hint}")
    if not shape[0]:
        raise UserError("the batch is empty: give at least one sample, or leave the step out")
    if model.samples is not None and shape[0] != model.samples:
        raise UserError(f"{model.name} reads all {model.samples} nodes of its graph at once, not {shape[0]}: give all")
