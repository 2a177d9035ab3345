"""One stage of the pipelines that tests/test_pipeline.py starts: python pipeline_worker.py RANK WORLD FOLDER."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from conftest import tiny_batches, tiny_learner, tiny_model
from safetensors.torch import save_file
from test_strategies import FILES, make

from locallearn.runtime.link import Pipe


def main(rank: int, world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    for name in sorted(FILES):
        for micro_batches in (1, 2):
            pipe = Pipe(rank - 1 if rank else None, rank + 1 if rank < world - 1 else None, torch.device("cpu"), None)
            own = range(rank * 4 // world, (rank + 1) * 4 // world)
            learner = tiny_learner(
                make(name),
                tiny_model(dropout=0.2),
                total_steps=8,
                micro_batches=micro_batches,
                own=own,
                link=pipe if world > 1 else None,
                channels_last=True,
            )
            for x, y in tiny_batches(8):
                learner.learn(x if rank == 0 else None, y if rank == 0 else None)
            learner.stage.drain()
            pipe.close()
            state = {n: t.contiguous().clone() for n, t in learner.state().items()}
            save_file(state, folder / f"{name}-{micro_batches}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
