"""A model with its blocks, ready to learn: what the training loop and anybody's own loop drive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from locallearn import names
from locallearn.analysis.quiet import Rerun
from locallearn.contract import Packet, Strategy
from locallearn.engine.batch import Gate
from locallearn.engine.block import TrainedBlock
from locallearn.engine.broken import abandon, cause
from locallearn.engine.link import Stopped
from locallearn.engine.packets import packets_of
from locallearn.engine.promises import check_learned, check_rows, only_computes
from locallearn.engine.scores import scores
from locallearn.engine.setup import Setup
from locallearn.engine.stage import Stage, does_not_fit
from locallearn.engine.state import adapted, put_all_back
from locallearn.engine.torch_optim import state_of
from locallearn.engine.trial import trial_step
from locallearn.errors import RunError, UserError
from locallearn.models import BlockModel

TESTED = 256  # samples together
CHECK_STEPS = 20
"""Steps from one check of the weights to the next: reading all of them in every step would cost a small net some
percent, and every question to a GPU is a synchronisation."""


class Learner:
    """Trains `model` block by block.

    model       the plain model; the blocks are views of it, so it is always the trained one
    blocks      from the input upward
    cut         the units of each block
    step_count  training steps so far
    """

    def __init__(self, model: BlockModel, stage: Stage, cut: list[range], setup: Setup) -> None:
        self.model = model
        self.stage = stage
        self.cut = cut
        self.setup = setup
        self.step_count = 0
        self.gate = Gate(model, stage, self._trial)
        if setup.total_steps is None and len(stage.strategy.phases(len(stage.blocks))) > 1:
            raise UserError(f"{type(stage.strategy).__name__} trains in phases and must know how long: give steps=")

    @property
    def blocks(self) -> list[TrainedBlock]:
        return self.stage.blocks

    @property
    def strategy(self) -> Strategy:
        return self.stage.strategy

    @property
    def device(self) -> torch.device:
        return self.blocks[0].device

    def __repr__(self) -> str:
        units = ", ".join(str(len(units)) for units in self.cut)
        what = f"{type(self.strategy).__name__} on {self.model.name}: {len(self.cut)} blocks of {units} units"
        return f"Learner({what}, {self.step_count} steps on {self.device})"

    def learn(self, inputs: Tensor | None, labels: Tensor | None) -> None:
        """Take one training step; results collect in each block's totals.

        Args:
            inputs: [B, *image]; None in a stage of a pipeline above the lowest one.
            labels: [B], below 0 for none, or targets as the task has them; values on a GPU are not looked at.

        Raises:
            UserError: For a batch that does not fit, before a weight moves.
            RunError: For numbers that are not finite. `broken.abandon` says what holds after a step that raised.
        """
        if inputs is not None:
            labels = self.gate.checked(inputs, labels, look=isinstance(labels, Tensor) and labels.is_cpu)
        self._learn(inputs, labels)

    def check(self) -> None:
        """Refuse losses, notes and weights that are not finite, with the block and the step. Synchronises a GPU."""
        for block in self.blocks:
            block.check()

    def step(self, images: Any, labels: Tensor) -> dict[str, float]:
        """Take one training step, in a loop of one's own.

        Args:
            images: Inputs [B, *image], floats or the integers that the model reads; of several tensors a tuple of them,
                or a mapping of names to them.
            labels: Class numbers [B], below 0 where a sample has none; or targets as the task has them.

        Returns:
            `loss` and `accuracy` (or the metrics of another task) of the last block that learns, and `block/00/loss`,
            ... of each that has a loss: over the labelled samples of this batch. Without any the loss is 0, and there
            is no accuracy. Reading them synchronises a GPU.

        Raises:
            UserError: For a batch that does not fit, before a weight moves.
            RunError: For numbers that are not finite.
        """
        images = self.gate.packed(images)
        labels = self.gate.checked(images, labels)
        for block in self.blocks:
            block.reset()
        self._learn(images.to(self.device), labels.to(self.device))
        metrics = {block.spec.index: block.read() for block in self.blocks}
        result = names.of_blocks(metrics)
        top = max((k for k, numbers in metrics.items() if "loss" in numbers), default=None)
        if top is None:
            return result if int(self.setup.task.count(labels)) else {"loss": 0.0} | result
        return {n: v for n, v in metrics[top].items() if n in self.setup.task.metrics} | result

    def _learn(self, inputs: Tensor | None, labels: Tensor | None) -> None:
        if self.stage.broken:
            raise UserError(self.stage.broken)
        prepared = None if inputs is None else self.prepare(inputs)
        try:
            self.stage.step(prepared, labels, self.step_count, self.setup.total_steps)
        except Stopped:  # between two steps: nothing is broken off
            raise
        except BaseException as error:
            abandon(self.stage, self.step_count)
            if isinstance(error, RunError) and (why := cause(self.blocks, prepared)):
                raise RunError(f"step {self.step_count}: {why}; {error}") from error
            raise
        if self.step_count == 0 and len(self.blocks) == len(self.cut):
            check_learned(self.strategy, self.blocks)
        self.step_count += 1
        if self.step_count % CHECK_STEPS == 0:
            self.check()

    def _trial(self, inputs: Tensor, labels: Tensor) -> None:
        """A step of every phase that changes nothing; raises what training would."""
        inputs, labels = self.prepare(inputs.to(self.device)), labels.to(self.device)
        phases = len(self.strategy.phases(len(self.cut)))
        for phase in range(phases):
            trial_step(self.stage, inputs, labels, phase, phases)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Inputs in the dtype and memory layout of the model (integers, such as indices, stay integers)."""
        if inputs.is_floating_point():
            inputs = inputs.to(self.setup.dtype)
        if self.setup.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    @torch.no_grad()
    def predict(self, inputs: Any) -> list[Tensor | None]:
        """Predict with every block, in eval mode.

        Args:
            inputs: [B, *image], or as `step` takes them.

        Returns:
            Logits [B, classes] of each block, None for one that cannot predict, or never learns to; the last entry is
            the model's own.

        Raises:
            UserError: For inputs that the model cannot read.
        """
        logits: list[Tensor | None] = []
        for block, packet in zip(self.blocks, self.packets(inputs), strict=True):
            k, depth = block.spec.index, block.spec.depth
            if not block.last and only_computes(self.strategy, k, depth, block.trained):
                logits.append(None)
                continue
            with self.stage.autocast(), Rerun(*block.roots()[1:]):
                logits.append(self.strategy.predict(block, packet))
        return logits

    @torch.no_grad()
    def __call__(self, inputs: Any) -> Tensor:
        """The model's own logits [B, classes] for inputs as `step` takes them, in eval mode. Raises UserError for
        inputs that it cannot read."""
        inputs = self.gate.packed(inputs)
        *_, packet = self.packets(inputs.to(self.device) if isinstance(inputs, Tensor) else inputs)
        with self.stage.autocast(), Rerun(*self.blocks[-1].roots()[1:]):
            logits = self.strategy.predict(self.blocks[-1], packet)
        assert logits is not None, "the last block answers"
        return logits

    def evaluate(self, data: Any, labels: Tensor | None = None) -> dict[str, float]:
        """Test the model and every block that can predict.

        Args:
            data: Batches (inputs [B, *image], labels [B]), as a loader gives them; or inputs [N, *image]. Inputs are
                as `step` takes them.
            labels: [N], beside inputs.

        Returns:
            `loss` and `accuracy` (or the metrics of another task) of the model, and `block/00/accuracy`, ...

        Raises:
            UserError: For inputs or labels that do not fit.
        """
        if labels is not None:
            data = zip(*(t.split(TESTED) for t in (self.gate.packed(data), labels)), strict=True)
        task, packed = self.setup.task, ((self.gate.packed(x), y) for x, y in data)
        checked = ((x, task.checked(y, len(x), self.model.classes)) for x, y in packed)
        return scores(task, self.blocks, self.predict, ((x.to(self.device), y.to(self.device)) for x, y in checked))

    def features(self, inputs: Any) -> Iterator[Tensor]:
        """What each block emits [B, ...]; see `packets`. Raises UserError where a sample is looked at several times."""
        inputs = self.gate.packed(inputs)
        for packet in self.packets(inputs):
            check_rows(self.strategy, packet.h, inputs)
            yield packet.h

    def packets(self, inputs: Any) -> Iterator[Packet]:
        """What each block hands on, in eval mode, one after the other, also from stage to stage. Call it under
        `torch.no_grad()`. Modes and buffers are afterwards as they were."""
        self.stage.published.publish_first()
        link = self.stage.link
        if link is not None and link.below:
            packet = link.recv_forward()
        else:
            inputs = self.gate.packed(inputs)
            self.gate.check(inputs)
            h = self.prepare(inputs)
            packet = self.strategy.look(Packet(h, h.new_empty(0, dtype=torch.int64)), self.blocks[0].spec)
        yield from packets_of(self.stage, packet)

    def parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every parameter once, under a name that does not depend on the cut for those of the model. A stage has those
        of its own blocks."""
        yield from ((f"model.{name}", p) for name, p in self.model.named_parameters() if self.owns(f"model.{name}"))
        for block in self.blocks:
            yield from ((f"auxiliary.{block.spec.index}.{n}", p) for n, p in block.auxiliary.named_parameters())

    def model_state(self) -> dict[str, Tensor]:
        """The state dict of the plain model; a stage has the part of its own blocks."""
        return {name: t for name, t in self.model.state_dict().items() if self.owns(f"model.{name}")}

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that influences the next step, by name; no copies."""
        tensors = {f"model.{name}": t for name, t in self.model_state().items()}
        for block in self.blocks:
            prefix = f"auxiliary.{block.spec.index}."
            tensors |= {prefix + name: t for name, t in block.auxiliary.state_dict().items()}
            tensors |= {f"scaler.{block.spec.index}": block.scaler.state} if block.scaler is not None else {}
            tensors |= {f"adapted.{block.spec.index}.{name}": t for name, t in adapted(self.model, block)}
        remembered: dict[Tensor, dict[str, Tensor]] = {}
        for optimizer in self.optimizers():
            for p, key, value in state_of(optimizer):
                remembered.setdefault(p, {})[key] = value
        for name, p in self.parameters():
            tensors |= {f"optimizer.{name}.{key}": value for key, value in remembered.get(p, {}).items()}
        return tensors | self.stage.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned; a stage takes its own part of it.

        Raises:
            UserError: With the first differences in names, shapes or types; then nothing has changed.
        """
        own = {name: t for name, t in tensors.items() if self.owns(name)}
        put_all_back(self.state(), own, self.parameters(), self.optimizers(), self.stage)

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of `state` and of the number of steps, from which training goes on to the same bits."""
        return {"step_count": torch.tensor(self.step_count), **{name: t.clone() for name, t in self.state().items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave. Raises UserError as `load_state`."""
        if "step_count" not in state:
            raise does_not_fit("step_count is missing: it is not a state_dict of a learner")
        self.load_state({name: t for name, t in state.items() if name != "step_count"})
        self.step_count = int(state["step_count"])

    def owns(self, name: str) -> bool:
        """Whether a tensor of `state` belongs to a block of this learner; a learner with all blocks owns every name."""
        if len(self.blocks) == len(self.cut):
            return True
        kind, part, rest = f"{name.removeprefix('optimizer.')}..".split(".", 2)
        if kind != "model":
            return any(part == str(block.spec.index) for block in self.blocks)
        if part != "units":
            return self.blocks[-1].last
        return any(int(rest.partition(".")[0]) in self.cut[block.spec.index] for block in self.blocks)

    def optimizers(self) -> list[torch.optim.Optimizer]:
        """Those of every block and part."""
        return [o for block in self.blocks for o in block.optimizers.values() if o is not None]
