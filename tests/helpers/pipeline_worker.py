"""One stage of tests/equality/test_pipeline.py: python -m helpers.pipeline_worker RANK WORLD WIRE SHARE FOLDER."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.nets import tiny_batches, tiny_learner, tiny_model
from helpers.strategies import FILES, ROUTES, make
from locallearn.contract import Route
from locallearn.engine import Learner, Stage
from locallearn.runtime.link import Pipe

STEPS = 6
STRATEGIES = [*sorted(FILES), "dni synthetic_inputs=true", "loco reach=3 last=local", "dfa shared=true"]
STRATEGIES += ["dgl objective=masked", "loco objective=masked", "dgl objective=cpc"]
STRATEGIES += ["man scaled=true auxiliary=pointwise_mlp"]
STRATEGIES += ["follower", "follower top=true lag=1", "follower top=true every=2 lag=3", "follower every=4 lag=1"]
FROZEN = ["dgl", "greedy", "dni", "backprop", "dfa", "pgi"]  # every route; phases; what a packet carries
STRATEGIES += [f"{name} train_blocks={blocks}" for name in FROZEN for blocks in ("[1,2]", "[2,3]")]
STRATEGIES += [
    "follower lag=1 train_blocks=[1,3]",
    "dgl train_blocks=[0]",
    "backprop train_blocks=[0]",
]  # nothing above; all of it
QUICK = [*ROUTES, "predictive_coding", "pgi", "man", "follower"]  # rounds, a branch, published tensors
SHARES = {"quick": QUICK, "slow": [name for name in STRATEGIES if name not in QUICK]}


def settings(name: str) -> list[tuple[int, int]]:
    """(micro-batches, staleness) to try with a strategy."""
    strategy = make(name.partition(" train_blocks=")[0])
    late = [(1, 1), (4, 3)] if strategy.route in (Route.CHAIN, Route.BROADCAST) else []
    return [each for each in [(1, 0), (2, 0), *late] if each[0] == 1 or not strategy.repeats]


def train(learner: Learner, lowest: bool) -> None:
    """Two epochs of three batches; feedback under way is waited for after each."""
    for i, (x, y) in enumerate(tiny_batches(STEPS)):
        learner.learn(x if lowest else None, y if lowest else None)
        if i % 3 == 2:
            learner.stage.drain()


def answer_of(learner: Learner) -> dict[str, torch.Tensor]:
    """The logits of the last block, where it lives. Those of counter_current, whose weights explode here, are NaN."""
    logits = learner.predict(tiny_batches(1)[0][0])[-1]
    return {"answer": logits.nan_to_num(7.0).contiguous()} if learner.blocks[-1].last else {}


def learner_of(name: str, micro_batches: int, staleness: int, **place: Any) -> Learner:
    """The learner of one setting: all of it, or the blocks of one process at their `place`."""
    name, _, blocks = name.partition(" train_blocks=")
    return tiny_learner(
        make(name),
        tiny_model(dropout=0.2),
        train_blocks=frozenset(json.loads(blocks)) if blocks else None,
        total_steps=STEPS,
        micro_batches=micro_batches,
        stage=partial(Stage, staleness=staleness),
        channels_last=True,
        **place,
    )


def main(rank: int, world: int, wire: str, share: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name in SHARES[share]:
        for micro_batches, staleness in settings(name):
            below, above = rank - 1 if rank else None, rank + 1 if rank < world - 1 else None
            pipe = Pipe(below, above, torch.device("cpu"), None, staleness * micro_batches, wire)
            own = range(rank * 4 // world, (rank + 1) * 4 // world)
            learner = learner_of(name, micro_batches, staleness, own=own, link=pipe if world > 1 else None)
            train(learner, lowest=rank == 0)
            answer = answer_of(learner)
            pipe.close()
            state = {n: t.contiguous().clone() for n, t in learner.state().items()}
            save_file(state | answer, folder / f"{name}-{micro_batches}-{staleness}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], Path(sys.argv[5]))
