"""Route ROUNDS: after the way up all blocks exchange messages with both neighbours, a fixed number of times.

What a block yields in one round its neighbours get in the next one (Jacobi): the order in which the blocks of a
process are resumed does not matter, and neither does where they live.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from locallearn.contract import Step, Strategy
from locallearn.engine.block import MicroStep, TrainedBlock
from locallearn.engine.link import EMPTY_PACKET, Link
from locallearn.errors import UserError
from locallearn.messages import Feedback, Heard, Packet, Send
from locallearn.scaling import under


class PendingBackward(NamedTuple):
    """A block whose forward half is done."""

    block: TrainedBlock
    generator: Step
    moment: MicroStep


def exchange(
    strategy: Strategy,
    link: Link | None,
    autocast: Callable[[], AbstractContextManager[object]],
    halves: Sequence[PendingBackward],
    backs: Sequence[Feedback | None],
) -> None:
    """Resume the blocks of a stage, which have computed on the way up, until each has had all its rounds. `backs`: what
    they sent down on the way up."""
    count = strategy.rounds(halves[0].block.spec.depth)

    def resumed(i: int, heard: Heard, number: int) -> Send:
        with autocast(), under(halves[i].block.scaler):
            return _resumed(type(strategy).__name__, halves[i], heard, number, count)

    rounds(link, count, backs, resumed)


def rounds(
    link: Link | None, count: int, backs: Sequence[Feedback | None], resumed: Callable[[int, Heard, int], Send]
) -> None:
    """Let the blocks of a stage exchange messages `count` times; `resumed` gives what block i yields in a round."""
    ups: list[Packet | None] = [None] * len(backs)  # the blocks above have had these already
    downs = list(backs)
    for number in range(1, count + 1):
        below, above = _across(link, ups[-1], downs[0], first=number == 1)
        heard = [Heard(*each) for each in zip([below, *ups[:-1]], [*downs[1:], above], strict=True)]
        found = [resumed(i, each, number) for i, each in enumerate(heard)]
        ups, downs = [send.ahead for send in found], [send.back for send in found]


def _across(
    link: Link | None, up: Packet | None, down: Feedback | None, first: bool
) -> tuple[Packet | None, Feedback | None]:
    """Send the messages that leave the stage, then take those of the neighbours."""
    below, above = None, None
    if link is not None and link.above and not first:
        link.send_forward(EMPTY_PACKET if up is None else up)
    if link is not None and link.below:
        link.send_backward(down)
    if link is not None and link.below and not first:
        packet = link.recv_forward()
        below = packet if packet.side or packet.h.numel() or packet.y.numel() else None
    if link is not None and link.above:
        above = link.recv_backward()
    return below, above


def _resumed(name: str, half: PendingBackward, heard: Heard, number: int, count: int) -> Send:
    """What a block yields after a round of training."""
    block, generator, at = half
    block.start(at, "backward", number)
    return sent(generator, heard, number, count, f"{name}.step", f"rounds({block.spec.depth})")[0]


def sent(generator: Any, heard: Heard, number: int, count: int, who: str, promise: str) -> tuple[Send, Any]:
    """What a generator yields after a round, without a graph; nothing after the last one, and what it returns."""
    try:
        send = generator.send(heard)
    except StopIteration as stop:
        if number < count:
            raise UserError(f"{who} yielded {number} times, but {promise} promises {count}") from None
        return Send(None), stop.value
    if number == count:
        raise UserError(f"{who} yielded more than {count} times, but {promise} promises {count}")
    return detached(send), None


def detached(send: Send) -> Send:
    """The same messages without a graph."""
    back = None if send.back is None else tuple(t if t is None else t.detach() for t in send.back)
    return Send(None if send.ahead is None else send.ahead.detach(), back)
