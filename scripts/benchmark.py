"""Measure every goal of the harness as a ratio, side by side in one run.

    make bench        # or: python scripts/benchmark.py [--only P1,P7] [--repeats 3] [--json FILE] [--markdown FILE]

`scripts/bench/method.py` says how, `docs/benchmark.md` holds the last result. Needs Linux (/proc) and two cores; takes
about 45 minutes on idle ones, and at most four times as long on busy ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

MAKE = ["--json", "docs/benchmark.json", "--markdown", "docs/benchmark.md"]


def main(arguments: list[str]) -> int:
    """The exit code: 1 if a part could not be measured at all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="measure only the themes of these goals, such as P1,P7")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of a measurement; fewer than 3 give no number")
    parser.add_argument("--quick", action="store_true", help="try the script: tiny models, one round")
    parser.add_argument("--json", type=Path, help="file for every number")
    parser.add_argument("--markdown", type=Path, help="file for the page")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from bench.goals import Report
    from bench.method import Bench
    from bench.report import page, record

    from locallearn.training.environment import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    bench, report = Bench(options.repeats, options.quick), Report()
    started = time.monotonic()
    for title, measure, settings in chosen(options.only):
        print(f"{time.monotonic() - started:6.0f} s  {title}", file=sys.stderr, flush=True)
        try:
            measure(bench, report, *settings)
        except Exception as error:
            report.failed[title] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    command = "make bench" if arguments == MAKE else " ".join(["python scripts/benchmark.py", *arguments])
    about = record(report, time.monotonic() - started, options.repeats, options.quick, command)
    text = page(report, about)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(about, indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text)
    return 1 if report.failed else 0


def chosen(only: str) -> list[tuple[str, Callable[..., None], tuple]]:
    """What is measured for the goals named by `only`, in the order of the table; all if it is empty."""
    from bench import data, memory, messages, pipeline, runs, start, step

    both = (("vgg16",), ("resnet32",))
    table: dict[str, tuple[Callable[..., None], tuple[tuple, ...]]] = {
        "P1": (step.measure, (("vgg11", 1, True), ("vgg16", 2, True))),
        "P1 P4 P6": (step.measure, both),
        "P2": (runs.loop, ((),)),
        "P3": (step.defaults, (("vgg16", 2), ("resnet32", 2))),
        "P5 P6": (memory.measure, both),
        "P7 P8 P9 P11 P15": (pipeline.measure, (*both, ("vit",))),
        "P10": (pipeline.weigh, (*both, ("vit",))),
        "P12": (data.measure, ((),)),
        "P13": (start.saving, ((),)),
        "P14": (start.first_step, ((),)),
        "P16 P17": (runs.tracked, ((),)),
        "P18": (step.small, tuple((name,) for name in step.SMALL)),
        "P19": (step.logging, (("mlp",), ("lenet",))),
        "P20 P21": (messages.one_way, ((),)),
        "P22": (messages.small_net, ((),)),
    }
    wanted = {word.strip() for word in only.split(",") if word.strip()}
    known = {goal for goals in table for goal in goals.split()}
    if wanted - known:
        sys.exit(
            f"--only {only}: there is no {', '.join(sorted(wanted - known))}; choose from {', '.join(sorted(known))}"
        )
    return [
        (" ".join([goals, *map(str, settings)]), measure, settings)
        for goals, (measure, subjects) in table.items()
        for settings in subjects
        if not wanted or wanted & set(goals.split())
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
