"""All that a strategy may see: what a block is, what blocks send each other, and what a strategy must do.

A strategy is one generator function per packet. What stands before its `yield` is the forward half of a block, what
stands after it is the backward half; one declared word, its route, says where feedback comes from. The driver
(`engine.stage`) runs the generators; whether the blocks live in one process or in many is not a strategy's business.

Rules of `Strategy.step`: yield exactly once (under ROUNDS once for each round); write gradients with `backward` and
then say with `block.update()` that they are complete (the block clips, schedules, counts micro-batches, applies and
clears: a strategy never touches an optimizer); never yield inside a `with`; a message is moved, not shared; under
NEIGHBOR and ROUNDS hold tensors, not graphs, across the yield.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

from torch import Tensor, nn

from locallearn.messages import Copy, Feedback, Packet, Published, Send, Size, Unit
from locallearn.messages import Heard as Heard  # for strategies
from locallearn.messages import backward as backward  # for strategies
from locallearn.options import Options
from locallearn.task import CLASSES, Task
from locallearn.task import cross_entropy as cross_entropy  # for strategies


class Route(Enum):
    """Where a block's feedback comes from. The route alone decides the schedule of a parallel run."""

    NONE = "none"  # no feedback: a block learns as soon as it has computed
    NEIGHBOR = "neighbor"  # from the block above, which has it ready without waiting for anyone
    CHAIN = "chain"  # from the block above, which waits for the block above it
    BROADCAST = "broadcast"  # from the last block, to all
    ROUNDS = "rounds"  # from both neighbours, in a fixed number of rounds for each batch


class BlockSpec(NamedTuple):
    """All that a strategy may know of a block. Sizes are without the batch.

    index   of the block, from the input upward, among `depth` blocks
    image   the shape of one input of the network
    reads, emits   the shapes that the block reads and emits
    sizes   what every block of the model emits, from the input upward
    seed    the run's seed, for random tensors that several blocks share
    pixels  the inputs of a black and of a white pixel, one number per channel each; None where inputs are no pixels
    channels_first  an input of two axes is [C, L], as Conv1d reads it, and not [T, D]. What blocks emit is always [D],
                    [T, D], [C, H, W] or [C, D, H, W]
    task    what is asked: the loss, the form of an answer, the numbers that are reported
    vocabulary  how many tokens there are where the input of the network, or one of its tensors, is token numbers; None
                where it is numbers
    reversible  of every block of the model, from the input upward, whether it has units whose input can be computed
                from their output: modules that are `reversible`, as `models.coupling.Reversible`
    above   the units of all blocks above, in order
    levels  of every block the sizes of the maps that its output is packed of, the newest last (`models.pyramid`)
    """

    index: int  # type: ignore[assignment]  # a tuple also has a method of this name
    depth: int
    image: Size
    reads: Size
    emits: Size
    classes: int
    sizes: tuple[Size, ...] = ()
    seed: int = 0
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    channels_first: bool = False
    task: Task = CLASSES
    vocabulary: int | None = None
    reversible: tuple[bool, ...] = ()
    above: tuple[Unit, ...] = ()
    levels: tuple[tuple[Size, ...], ...] = ()

    @property
    def last(self) -> bool:
        return self.index == self.depth - 1

    @property
    def maps(self) -> tuple[Size, ...]:
        """The sizes of what the block's output is packed of, the newest last; often one."""
        return self.levels[self.index] if self.levels else (self.emits,)


class Block(Protocol):
    """A run of units, the auxiliary modules that train it, and the optimizers that own exactly these."""

    spec: BlockSpec
    layers: nn.Module  # the units, [B, *reads] -> [B, *emits]
    head: nn.Module | None  # the model's head at the last block: [B, *emits] -> [B, classes] or as the task asks
    auxiliary: nn.ModuleDict  # what `Strategy.modules` returned for this block

    @property
    def last(self) -> bool: ...

    @property
    def progress(self) -> float:
        """How far training is, from 0 to 1 (within the current phase of the strategy)."""
        ...

    def update(self, part: str = "main") -> None:
        """Say that the gradients of a part are complete for this micro-batch; the block does the rest.

        Args:
            part: "main" for units, head and joint auxiliary modules, or a name of `Strategy.separate`.
        """
        ...

    def report(self, loss: Tensor, logits: Tensor | None = None, y: Tensor | None = None) -> None:
        """Record this block's training loss and the task's metrics.

        Args:
            loss: A mean [] over the items that have a target.
            logits: [B, classes], or what else the task asks for, if the block can predict.
            y: Targets [B, ...].

        Raises:
            RunError: If the loss is not finite (on a GPU some steps later).
        """
        ...

    def note(self, name: str, value: Tensor) -> None:
        """Record one more number [] of this block, such as a synthesizer's loss: `block/00/name`, a mean over steps."""
        ...

    def again(self) -> AbstractContextManager[None]:
        """Run `layers` or auxiliary modules a second time in one step: the same dropout, and no buffer moves.
        Call it before the first run where that moves buffers that the modules compute with."""
        ...

    def published(self, name: str) -> Copy:
        """Return the copy of what `Strategy.reads` asks for under a name."""
        ...


Step: TypeAlias = Generator[Send, Any, Feedback | None]
"""It is sent `Feedback` or None, or under ROUNDS `Heard`."""

Settling: TypeAlias = Generator[Send, Heard, Packet]
"""An answer that is found in rounds."""


class Strategy(Options, ABC):
    """Who gets which gradient. Concrete ones are frozen dataclasses; their fields are typed, checked hyper-parameters.

    A strategy that has a field `objective` or `auxiliary` gets the chosen local loss and auxiliary network there.

    route     where feedback comes from; a property where the options decide it
    tasks     what it can serve (`Task.asks`); None: any task
    separate  names of auxiliary modules with an optimizer of their own, which `block.update(name)` applies
    carries   whether `step` hands on more than `h` that blocks further up need: then blocks that the user has frozen
              take their steps, too, where else those at the bottom only compute
    repeats   whether a block updates its weights several times in a batch, which then cannot be divided
    exact     whether messages must arrive with all their bits, as where two blocks hold copies of one state
    priced    whether a block passes back once through each forward pass of its units, and the gradient of its
              parameters is all that comes of it: then units may charge for what passes them (`bottleneck=`)
    multiplies  whether `begin` or `look` makes several rows of a sample, which a graph does not allow
    boxes     whether it can serve answers that are boxes, and blocks that hand on packed pyramids
    ships     names of auxiliary modules without which it cannot answer: they are exported with the model

    For most strategies the plain model answers; `look`, `through` and `predict` say where one does it in another way,
    and `settles` and `settle` where blocks must exchange messages to answer.
    """

    _group = "strategy"

    route: ClassVar[Route]
    tasks: ClassVar[frozenset[str] | None] = None
    separate: ClassVar[frozenset[str]] = frozenset()
    carries: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    priced: ClassVar[bool] = False
    multiplies: ClassVar[bool] = False
    boxes: ClassVar[bool] = True
    ships: ClassVar[frozenset[str]] = frozenset()

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        """Build the auxiliary modules of one block by name, drawn from the global generator. They train it, and never
        ship, but for those in `ships`. Raises UserError for sizes that they cannot read."""
        return {}

    def adapt(self, layers: nn.Module, spec: BlockSpec) -> nn.Module:
        """Return a block's units, or a copy that shares their parameters and has another backward pass."""
        return layers

    def phases(self, depth: int) -> list[range]:
        """Return which of `depth` blocks learn, phase after phase; the phases share the steps of a run equally."""
        return [range(depth)]

    def rounds(self, depth: int) -> int:
        """Under ROUNDS, how often each of `depth` blocks yields: once on the way up, then once for each message to its
        neighbours, which all exchange at the same time. It may depend on nothing but options."""
        return 1

    def begin(self, packet: Packet) -> Packet:
        """Make what block 0 reads of a batch, whether it learns or not: augmented views, a masked image, the image in
        `side` for the blocks further up. Draws from the global generator."""
        return packet

    def reads(self, spec: BlockSpec) -> Mapping[str, Published]:
        """Say which tensors of blocks above a block reads while it learns, by the names under which they `publish`
        them. Names have no dots."""
        return {}

    def publish(self, block: Block, name: str) -> Sequence[Tensor]:
        """Return the tensors of a block that others read under a name: parameters, buffers. They are copied."""
        raise NotImplementedError

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        """Name the options that have no effect on these blocks, or beside the others.

        Returns:
            For each such option what would give it one, beginning with its key: {"mix": "strategy.warmup below 1"}.
            A user who has set it is told.
        """
        return {}

    @abstractmethod
    def step(self, block: Block, packet: Packet) -> Step:
        """Train one block on one micro-batch, by the rules at the top of this module.

        Args:
            packet: What the block below has sent; for block 0 what `begin` has made.

        Yields:
            `Send`, once, when the forward half is done; under ROUNDS `rounds(depth)` times.

        Receives:
            The feedback that the route brings; None under NONE and in the last block. Under ROUNDS `Heard`.

        Returns:
            Feedback for the block below (CHAIN) or for all blocks (BROADCAST, from the last block); else None.
        """

    def look(self, packet: Packet, spec: BlockSpec) -> Packet:
        """Make what block 0, which `spec` describes, reads of inputs without labels, where `begin` makes it of a
        training batch. Of one sample there may be several rows, such as one for each class. It must draw nothing."""
        return packet

    def through(self, block: Block, packet: Packet) -> Packet:
        """Compute a block where it does not learn: in evaluations, and below the blocks that learn."""
        return packet.at(block.layers(packet.h))

    def settles(self, depth: int) -> int:
        """How often each of `depth` blocks yields in `settle`, as `rounds` says it of `step`; 0 where an answer is made
        on the way up, by `through`. It may depend on nothing but options."""
        return 0

    def settle(self, block: Block, packet: Packet) -> Settling:
        """Compute a block for an evaluation where that takes messages from both neighbours, in place of `through`.

        Runs without gradients and in eval mode, in one process or in many; `block` has spec, layers, head, and the
        auxiliary modules that ship. It must draw nothing, and treat samples one by one.

        Args:
            packet: What the block below has yielded first; for block 0 what `look` has made. It has no labels.

        Yields:
            `Send` with a packet for the block above, then one for each round: `settles(depth)` times.

        Returns:
            What `predict` reads; its `h` are the features of the block.
        """
        raise NotImplementedError
        yield

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        """Return the logits [B, classes] (or as the task asks) of a block for what `through` or `settle` has made, or
        None."""
        return block.head(packet.h) if block.head is not None else None

    @property
    def plain(self) -> bool:
        """Whether the units and the head alone answer, as they were built."""
        own = type(self)
        alone = own.through is Strategy.through and own.settles is Strategy.settles
        return not self.ships and own.look is Strategy.look and alone


def enter(block: Block, packet: Packet) -> Packet:
    """Return the packet as leaves that collect gradients, for the feedback to the block below. Block 0 sends none, and
    does not pay for the gradient of the image."""
    return packet.leaves() if block.spec.index else packet


def task_loss(block: Block, h: Tensor, y: Tensor) -> Tensor:
    """Return and report the true loss [] of the last block, for its output h [B, ...] and targets y [B, ...]."""
    assert block.head is not None, "only the last block has the head"
    logits = block.head(h)
    loss = block.spec.task.loss(logits, y)
    block.report(loss, logits, y)
    return loss
