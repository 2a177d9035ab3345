"""What `locallearn plan` predicts for two processes on this machine, beside what the benchmark has measured of them:

python scripts/check_plan.py docs/benchmark.json        # after `make bench`, on the same machine; prints a table
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from bench.subjects import learner_of, model_of

from locallearn.plan.measure import block_costs, block_times
from locallearn.plan.schedules import predict
from locallearn.training.environment import keep_freed_memory

BATCH = 128
BANDWIDTH, LATENCY = 3e9, 150e-6  # gloo between two processes of one machine (bytes/s, s)
MICRO_BATCHES = {"backprop 4": 4}


def main(path: str) -> None:
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| model | route | strategy | measured ms | predicted ms | error |\n|---|---|---|---|---|---|")
    for subject, found in json.loads(Path(path).read_text())["validation"].items():
        for route, name in found.get("routes", {}).items():
            micro_batches = MICRO_BATCHES.get(name, 1)
            kind = name.removesuffix(" 4")
            strategy = {"dgl": "dgl mlp_sr", "dni": "dni narrow" if subject == "vgg16" else "dni"}.get(kind, kind)
            cut = [range(*pair) for pair in found["cuts"]["dgl 2" if kind == "dgl" else kind]]
            learner = learner_of(model_of(subject, quick=False), strategy, cut, micro_batches=micro_batches)
            costs = block_costs(learner, BATCH, block_times(learner, BATCH, micro_batches, samples=BATCH))
            half = len(cut) // 2
            predicted = predict(route, [costs[:half], costs[half:]], micro_batches, BANDWIDTH, LATENCY).step_seconds
            if (measured := found["step_s"][name]) is not None:
                error = f"{100 * (predicted / measured - 1):+.0f} %"
                print(f"| {subject} | {route} | {name} | {measured * 1e3:.0f} | {predicted * 1e3:.0f} | {error} |")


if __name__ == "__main__":
    main(sys.argv[1])
