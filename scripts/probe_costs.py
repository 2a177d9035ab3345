"""What each probe costs beside training: python scripts/probe_costs.py --data DATA [--write docs/probe_costs.md].

One run of LeNet on MNIST with every probe at its default options, one thread; a look is compared with an epoch.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from itertools import pairwise
from pathlib import Path

import locallearn
from locallearn.config.compose import choices, header
from locallearn.studies.page import machine

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = {"strategy": "dgl", "model": "lenet", "data": "mnist", "auxiliary": "mlp", "epochs": 3, "threads": 1}

ELSEWHERE = {"none", "bottleneck", "detections", "inpainting", "levels", "noisy_weights", "nuisance"}
"""Probes that look at what this run does not have."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--write", type=Path, default=ROOT / "docs" / "probe_costs.md", help="file for the page")
    given = parser.parse_args()
    names = sorted(set(choices("probe")) - ELSEWHERE)
    with tempfile.TemporaryDirectory() as out:
        settings = {**SETTINGS, "probe": names, "data.root": given.data, "out": out, "batch_size": 64}
        history = locallearn.train(**settings, quiet=True).history
        epoch = statistics.median(after["seconds"] - before["seconds"] for before, after in pairwise(history))
    lines = [
        "# What a probe costs\n",
        f"Made by `python scripts/probe_costs.py --data DATA`: {json.dumps(SETTINGS)}, every probe at its default "
        f"options. {machine()}. An epoch of training (54,000 images) and evaluation takes {epoch:.1f} s; a probe looks "
        "once an epoch unless `probe.NAME.every` says otherwise.\n",
        "| probe | what | seconds a look | share of an epoch |",
        "|---|---|---|---|",
    ]
    for name in names:
        seconds = statistics.median(record[f"probe/{name}/seconds"] for record in history)
        what = header(choices("probe")[name])["summary"].rstrip(".")
        lines.append(f"| {name} | {what} | {seconds:.2f} | {100 * seconds / epoch:.0f} % |")
    given.write.write_text("\n".join(lines) + "\n")
    print(given.write)


if __name__ == "__main__":
    main()
