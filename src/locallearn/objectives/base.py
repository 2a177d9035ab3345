"""What a local loss must answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import Block, BlockSpec, Packet, Size, task_loss
from locallearn.errors import UserError
from locallearn.options import Options
from locallearn.task import BOXES, CLASSIFICATION, POSITION

ObjectiveModules: TypeAlias = Mapping[str, nn.Module] | nn.ModuleDict
LossAndLogits: TypeAlias = tuple[Tensor, Tensor | None]


class Objective(Options, ABC):
    """A local loss. Concrete ones are frozen dataclasses of typed options; they hold no parameters themselves.

    labels  whether the loss reads labels. One that does not trains every block, the last one too, by itself; the head
            is then a read-out that learns on the finished features and sends nothing into them.
    tasks   what it can serve (`Task.asks`); None: any task
    needs   what it does, in words, where it does not serve every task, as in "attracts samples of one label"
    reads_auxiliary  whether the loss has the chosen auxiliary network between a block's output and itself
    builds  whether it has modules of its own
    taught  whether it learns from a teacher, a field that is filled for it, and teaches the model's own head the same
    """

    _group = "objective"

    labels: ClassVar[bool] = True
    tasks: ClassVar[frozenset[str] | None] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "reads class labels"
    reads_auxiliary: ClassVar[bool] = True
    builds: ClassVar[bool] = True
    taught: ClassVar[bool] = False

    @property
    def unlabelled(self) -> bool:
        """Whether samples without a label teach something."""
        return self.taught or not self.labels

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        """Options that nothing reads on these blocks; see `Strategy.unread`."""
        return {}

    @property
    def head_weight(self) -> float:
        """Weight of the head's true loss where the last block learns from this one and the head only reads."""
        return 1.0

    @property
    def head_share(self) -> float:
        """Share of the gradient of that loss that goes on into the features of the last block, 0 to 1."""
        return 0.0

    @property
    def reconstructs(self) -> bool:
        """Whether the loss puts the input back, for which `BlockSpec.pixels` says what an image's numbers mean."""
        return False

    def check(self, image: Size) -> None:
        """Raise UserError for inputs [B, *image] that `begin` cannot read; also asked where no block has this loss."""
        return None

    def begin(self, packet: Packet) -> Packet:
        """See `Strategy.begin`: augmented views [V * B, ...] with labels [V * B], or a masked image;
        `side` may carry what the losses further up need, such as the image. Draws from the global generator."""
        return packet

    @abstractmethod
    def modules(self, spec: BlockSpec, auxiliary: Auxiliary) -> dict[str, nn.Module]:
        """The auxiliary modules the loss reads at one block, by name. Raises UserError for sizes it cannot read."""

    @abstractmethod
    def loss(self, spec: BlockSpec, modules: ObjectiveModules, h: Tensor, packet: Packet) -> LossAndLogits:
        """The local loss of one block.

        Args:
            spec: the block, as `modules` got it.
            modules: what `modules` returned for it.
            h: the block's output [B, *spec.emits], with its graph.
            packet: what the block read: the labels are `packet.y` [B], and `packet.side` is what `begin` put there.

        Returns:
            The loss [], and logits [B, classes] (or as the task asks) or None if the loss trains no classifier.
        """

    def head_loss(self, block: Block, h: Tensor, packet: Packet) -> Tensor:
        """Return and report the loss [] of the model's head, in the last block: for h [B, ...] the true one."""
        return task_loss(block, h, packet.y)

    def predict(self, modules: ObjectiveModules, h: Tensor) -> Tensor | None:
        """Logits [B, classes] (or as the task asks) for h, or None if this loss trains no classifier."""
        return None

    def fill(self, modules: ObjectiveModules, h: Tensor, packet: Packet) -> Tensor | None:
        """For h [B, ...] what the block puts in place of what `begin` has hidden of the images, [B, C, H, W] in units
        of the input, or None if this loss hides nothing. The packet is as in `loss`; its side has the image and the
        mask, bool [B, 1, H, W], and nothing of what is hidden may be read."""
        return None


def head(spec: BlockSpec, auxiliary: Auxiliary, size: Size | None = None) -> nn.Module:
    """The auxiliary network that answers what the task asks, for each sample or position or with boxes, from what the
    block emits or from features of another `size`. Raises UserError where there is none."""
    if spec.task.form == BOXES:
        return auxiliary.build_boxes(spec.image, (size,) if size else spec.levels[spec.index], spec.classes)
    if spec.task.form == POSITION:
        return auxiliary.build_dense(size or spec.emits, spec.classes)
    return (
        auxiliary.build_below(spec.above, spec.emits, spec.classes)
        if size is None
        else auxiliary.build(size, spec.classes)
    )


def numbers_of_input(spec: BlockSpec, what: str) -> None:
    """Raise UserError where the network reads token numbers, which `what` would take for amounts."""
    if spec.vocabulary is not None:
        raise UserError(
            f"{what} reads numbers, but the data are tokens of a vocabulary of {spec.vocabulary}: choose another "
            "objective or strategy, such as objective=cross_entropy or strategy=dgl"
        )


def plain_labels(spec: BlockSpec, what: str, instead: str) -> None:
    """Raise UserError where the data ask for a loss over classes that `what` does not have; `instead` has it."""
    if getattr(spec.task, "smoothing", 0) or getattr(spec.task, "weights", ()):
        raise UserError(
            f"{what} has no loss over classes, so data.smoothing and data.class_weights must be off: leave them out, "
            f"or choose {instead}"
        )


def wide(x: Tensor) -> Tensor:
    """x in float32, or as it is where it is float64: sums of exponentials and of many squares need the digits."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def exact(x: Tensor) -> AbstractContextManager[object]:
    """No autocast on the device of x: it would take a product of `wide` matrices in bfloat16 all the same."""
    return torch.autocast(x.device.type, enabled=False)
