"""What holds after a step that raised: an interrupt, no memory, a bad batch, a number that is not finite."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from locallearn.contract import Route
from locallearn.engine.block import TrainedBlock
from locallearn.engine.stage import Stage


def abandon(stage: Stage, step: int) -> None:
    """After a step that raised, whatever it was: no feedback, gradient, count or sum of it is left. Running means begin
    anew, and buffers such as batch statistics keep what the forward has done; but those that later steps read
    (`moving`) are put back where a block has not learned.

    If no block had learned from the batch, the next step is the one that would have come without it. Where blocks learn
    without the whole net (routes none and neighbor), those that had learned keep their update, and training may go on.
    Under chain, broadcast and rounds, weights of which a part has learned are those of no step: then, and where
    feedback of earlier steps is lost, further steps are refused (`stage.broken`) until a state is loaded.
    """
    waiting = [[pending for pending in queue if pending.moment.step != step] for queue in stage._waiting]
    late, counts, updates = stage._before
    messages = [list(queue)[:count] for queue, count in zip(stage._messages, counts, strict=False)]
    whole = sum(map(len, waiting)) == late and sum(block.updates for block in stage.blocks) == updates
    clear(stage)
    for block, updates, buffer, before in stage.kept:
        if block.updates == updates:
            buffer.copy_(before)
    if stage.link is not None:
        stage.broken = f"step {step} was broken off, and the other stages of the pipeline wait for it: end the run"
    elif not whole and stage.strategy.route in (Route.CHAIN, Route.BROADCAST, Route.ROUNDS):
        stage.broken = (
            f"step {step} was broken off when some blocks had learned from it and others had not: load_state() an "
            "earlier state(), or build the learner anew, which goes on from these weights"
        )
    elif late:  # feedback of earlier steps
        stage._waiting = [deque(queue) for queue in waiting]
        stage._messages = [deque(queue) for queue in messages]


def clear(stage: Stage) -> None:
    """Forget what is under way, and that a step was broken off."""
    stage.broken, stage._late = "", None
    stage._waiting = [deque() for _ in stage.blocks]
    stage._messages = [deque() for _ in stage.blocks]
    for block in stage.blocks:
        block.forget()


def cause(blocks: Sequence[TrainedBlock], inputs: Tensor | None) -> str | None:
    """Why a number of a step may not be finite, in words: what it began with."""
    if inputs is not None and not bool(torch.isfinite(inputs).all()):
        return "the inputs hold NaN or infinity"
    broken = [f"{weight} of block {b.spec.index}" for b in blocks if (weight := b.broken_weight())]
    if not broken:
        return None
    named = ", ".join(broken[:3]) + (f" and weights of {len(broken) - 3} more blocks" if len(broken) > 3 else "")
    return f"{named} {'is' if len(broken) == 1 else 'are'} not finite any more"
