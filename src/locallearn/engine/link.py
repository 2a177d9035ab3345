"""What joins the stages of a pipeline, as the driver sees it; `runtime.link` implements it."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from locallearn.contract import Feedback, Packet


class Link(Protocol):
    """What joins a stage to its neighbours. Messages arrive in the order in which they were sent; sending may wait for
    a neighbour that is behind, which bounds what is under way."""

    below: bool  # whether there is a stage below this one
    above: bool

    def recv_forward(self) -> Packet:
        """The next packet from the stage below."""
        ...

    def send_forward(self, packet: Packet) -> None:
        """A packet, without a graph, for the stage above."""
        ...

    def recv_backward(self) -> Feedback | None:
        """The next feedback from the stage above."""
        ...

    def send_backward(self, feedback: Feedback | None) -> None:
        """Feedback for the stage below."""
        ...

    def recv_published(self) -> tuple[int, tuple[Tensor, ...]]:
        """The next published tensors from the stage above, and their number; feedback on its way may be overtaken."""
        ...

    def send_published(self, number: int, tensors: tuple[Tensor, ...]) -> None:
        """Published tensors for the stage below, in their own types; it never waits."""
        ...


EMPTY_PACKET = Packet(torch.empty(0), torch.empty(0, dtype=torch.int64))
"""What goes to a stage that does not learn in this phase, so that all stages count the same steps."""


class Stopped(Exception):
    """In place of a packet: the lowest stage has stopped after `step` steps; nothing of the next one has happened."""

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step
