"""P14, in a process of its own: the way to the first step. Nothing heavy is imported before it is needed."""

from __future__ import annotations

import os
import sys


def by_command(overrides: list[str], before: bool) -> None:
    """The command line, which leaves as soon as its first step is done, or, with `before`, as it begins."""
    from locallearn import cli
    from locallearn.engine import Learner

    learn = Learner.learn

    def leave(self: Learner, *batch: object) -> None:
        if not before:
            learn(self, *batch)
        os._exit(0)

    Learner.learn = leave
    sys.argv = ["locallearn", *overrides]
    sys.exit(cli.main(overrides) or 1)


def by_hand(name: str, batch: int) -> None:
    """One step of the bare loop on all cores."""
    from bench.subjects import bare, batch_of, model_of

    bare(model_of(name, False), *batch_of(False, batch))()
