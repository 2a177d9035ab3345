"""One of two stages of tests/equality/test_messages.py: python -m helpers.message_worker RANK WIRE FOLDER."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from helpers.nets import assembled
from locallearn import seeds
from locallearn.auxiliary import Linear
from locallearn.engine import SGD, Learner
from locallearn.models.foreign import torchvision_model
from locallearn.objectives import CrossEntropy
from locallearn.runtime.link import Pipe
from locallearn.strategies.deep_supervision import DeepSupervision

FAMILIES = ["mobilenet_v2", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"]
FAMILIES += ["efficientnet_b0", "densenet121", "resnet18", "regnet_y_400mf", "googlenet"]
STRATEGY = DeepSupervision(objective=CrossEntropy(), auxiliary=Linear())
"""Messages both ways, as of backprop, and a network at the border that reads what arrives."""
SIZE = {"squeezenet1_1": 33}  # at 32 its last pool has nothing left


def learner_of(family: str, channels_last: bool, **options) -> Learner:
    size = SIZE.get(family, 32)
    with seeds.stream(0, "model"):
        model = torchvision_model((3, size, size), 4, name=family)
    options |= {"channels_last": channels_last, "total_steps": 2}
    return assembled(model, STRATEGY, SGD(lr=0.05), model.cut(2), **options)


def train(learner: Learner, lowest: bool) -> Learner:
    g = torch.Generator().manual_seed(1)
    for _ in range(2):
        x = torch.randn(8, *learner.model.image, generator=g)
        y = torch.randint(4, (8,), generator=g)
        learner.learn(x if lowest else None, y if lowest else None)
    return learner


def main(rank: int, wire: str, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=300)
    )
    for family in FAMILIES:
        for channels_last in (False, True):
            pipe = Pipe(0 if rank else None, None if rank else 1, torch.device("cpu"), None, wire=wire)
            learner = learner_of(family, channels_last, own=range(rank, rank + 1), link=pipe)
            train(learner, lowest=rank == 0)
            pipe.close()
            state = {n: t.contiguous().clone() for n, t in learner.state().items()}
            save_file(state, folder / f"{family}-{channels_last}-{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
