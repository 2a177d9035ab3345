"""The check of a published result, which goes on where an earlier call of the program has stopped it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from gpu_checks.subjects import Outcome

PUBLISHED, WITHIN = 16.21, 1.0
"""Error in percent of DGL on a ResNet-32 in 16 blocks (Wang et al. 2021, InfoPro, 5 seeds)."""
FULL = ["+experiment=resnet32_dgl", "blocks=16", "checkpoint.every=5ep"]
SMALL = ["data=digits", "model=lenet", "strategy=dgl", "blocks=3", "epochs=2", "threads=1"]


def published(device: torch.device, small: bool) -> Outcome:
    """M"""
    kept, seconds = os.environ.get("GPU_CHECK_KEPT"), float(os.environ.get("GPU_CHECK_SECONDS", "150"))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(kept or folder) / ("small" if small else "resnet32_dgl_16")
        begun = next((path.parent for path in out.glob("*/manifest.json")), None)
        if begun is None:
            words = [*(SMALL if small else FULL), f"device={device.type}", f"out={out}"]
        elif (begun / "summary.json").is_file():
            words = []
        else:
            words = ["resume", str(begun)]
        if words:
            train(words, seconds - 15)
        return outcome(next(path.parent for path in out.glob("*/manifest.json")), small)


def train(words: list[str], seconds: float) -> None:
    """Run locallearn with these words for at most `seconds`; it then saves its state, and can be resumed."""
    process = subprocess.Popen([sys.executable, "-m", "locallearn", *words], stderr=subprocess.PIPE, text=True)
    try:
        _, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=12)
        return
    assert process.returncode == 0, (said.strip().splitlines() or ["it ended without a word"])[-1]


def outcome(run: Path, small: bool) -> Outcome:
    """What a run has reached: the error if it is done, else the curve."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    errors = {r["epoch"]: round(100 * (1 - r["test/accuracy"]), 2) for r in records if "test/accuracy" in r}
    assert errors, "it has not come to an evaluation"
    last, error = list(errors.items())[-1]
    numbers = {"epochs": last, "error": error, "curve": errors}
    if not (run / "summary.json").is_file():
        return f"{error:g} % after {last} epochs, not done yet: run the same command again to go on", numbers
    assert small or abs(error - PUBLISHED) <= WITHIN, f"{error:g} %, published {PUBLISHED:g}"
    return f"{error:g} %" + ("" if small else f", published {PUBLISHED:g}"), numbers
