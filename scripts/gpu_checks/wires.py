"""The checks of what carries messages: two processes on one device, each of them started as
python -m gpu_checks.wires RANK DEVICE WIRE FOLDER MEGABYTES"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from gpu_checks.subjects import Outcome, on
from locallearn.contract import Packet
from locallearn.runtime.link import Pipe

ROUNDS = 8


def sanitized(device: torch.device, small: bool) -> Outcome:
    """E"""
    megabytes = 1 if small else 64
    code, said = exchange(device, "auto", megabytes, 60, {"TORCH_CUDA_SANITIZER": "1"} if device.type == "cuda" else {})
    assert code == 0, said
    return f"{megabytes} MB both ways in shapes that change: no report", {"megabytes": megabytes}


def nccl_of_two(device: torch.device, small: bool) -> Outcome:
    """F"""
    variables = {"NCCL_MULTI_RANK_GPU_ENABLE": "1", "NCCL_MAX_CTAS": "2"}
    code, said = exchange(device, "nccl", 8, 30, variables)
    if code:
        return f"not possible here: {said}", {"possible": False}
    return "two processes, both ways: what was sent arrived", {"possible": True}


def exchange(
    device: torch.device, wire: str, megabytes: int, seconds: float, variables: dict[str, str]
) -> tuple[int, str]:
    """Let two processes send each other `megabytes` MiB: the worse exit code, and the last line that was printed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-m", "gpu_checks.wires"]
        both = [
            subprocess.Popen(
                [*words, str(rank), device.type, wire, folder, str(megabytes)],
                env=os.environ | variables,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank in (0, 1)
        ]
        codes, said = [], ""
        for process in both:
            try:
                _, text = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                text = f"not done after {seconds:g} seconds"
            codes.append(process.returncode)
            said = said or (text.strip().splitlines() or [""])[-1] if process.returncode else said
    return max(map(abs, codes)), said


def main(rank: int, kind: str, wire: str, folder: Path, megabytes: int) -> None:
    """Rank 0 sends packets up; rank 1 answers with twice their numbers."""
    device = on(kind)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    pipe = Pipe(0 if rank else None, None if rank else 1, device, None, wire=wire)
    numbers = megabytes * 2**20 // 4
    for i in range(ROUNDS):
        rows = 1 + i % 3
        sent = torch.arange(rows * (numbers // rows), device=device, dtype=torch.float32).view(rows, -1) + i
        if rank == 0:
            pipe.send_forward(Packet(sent, torch.arange(rows, device=device)))
            (answer,) = pipe.recv_backward() or (None,)
            assert answer is not None
            assert torch.equal(answer, 2 * sent), f"message {i} came back as another one"
        else:
            packet = pipe.recv_forward()
            assert torch.equal(packet.h, sent), f"message {i} arrived as another one"
            pipe.send_backward((2 * packet.h,))
    pipe.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]))
