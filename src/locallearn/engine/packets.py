"""What blocks hand on where they do not learn: in evaluations, exports and pipelines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from locallearn.analysis.quiet import Rerun, evaluating
from locallearn.contract import Block, Packet, Strategy
from locallearn.engine.link import Link
from locallearn.engine.rounds import detached, rounds, sent
from locallearn.engine.stage import Stage
from locallearn.errors import UserError
from locallearn.messages import Heard, Send


def packets_of(stage: Stage, packet: Packet) -> Iterator[Packet]:
    """What each block of a stage hands on, in eval mode, one after the other; the last packet also goes to the stage
    above. `packet`: what the lowest block reads."""
    strategy, link, answers = stage.strategy, stage.link, []
    if strategy.settles(stage.blocks[0].spec.depth):
        roots = [root for block in stage.blocks for root in block.roots()]
        with evaluating(*roots), stage.autocast(), Rerun(*roots):
            answers = settled(strategy, link, stage.blocks, packet)
    for k, block in enumerate(stage.blocks):
        with evaluating(*block.roots()):
            if answers:
                packet = answers[k]
            else:
                with stage.autocast(), Rerun(block.layers):
                    packet = strategy.through(block, packet)
            yield packet
    if link is not None and link.above and not answers:
        link.send_forward(packet)


def settled(strategy: Strategy, link: Link | None, blocks: Sequence[Block], packet: Packet) -> list[Packet]:
    """What each block of a stage answers where that takes rounds; see `Strategy.settle`. `packet`: what the lowest one
    reads."""
    name, depth = type(strategy).__name__, blocks[0].spec.depth
    count = strategy.settles(depth)
    answers: list[Packet] = []

    def usable(t: Tensor) -> Tensor:
        return t.clone() if t.is_inference() else t

    with torch.inference_mode(False), torch.no_grad():  # `settle` may take gradients, which inference mode forbids
        packet = Packet(usable(packet.h), usable(packet.y), tuple(map(usable, packet.side)))
        generators, backs = [], []
        for block in blocks:
            generator = strategy.settle(block, packet)
            if (send := next(generator, None)) is None:
                raise UserError(f"{name}.settle never yielded, but settles({depth}) promises {count}")
            send = detached(send)
            assert send.ahead is not None, "the block above needs it"
            packet = send.ahead
            generators.append(generator)
            backs.append(send.back)
        if link is not None and link.above:
            link.send_forward(packet)

        def resumed(i: int, heard: Heard, number: int) -> Send:
            send, answer = sent(generators[i], heard, number, count, f"{name}.settle", f"settles({depth})")
            if number == count:
                answers.append(answer.detach())
            return send

        rounds(link, count, backs, resumed)
    return answers
