"""Measure every goal of the harness as a ratio, side by side in one run.

    make bench        # or: python scripts/benchmark.py [--only P1,P7] [--repeats 3] [--json FILE] [--markdown FILE]

`scripts/bench/method.py` says how, `docs/benchmark.md` holds the last result. Needs Linux (/proc) and two cores; takes
about 25 minutes on idle ones, and at most four times as long on busy ones.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

MODELS = ("vgg16", "resnet32")


def main(arguments: list[str]) -> int:
    """The exit code: 1 if a part could not be measured at all."""
    if arguments[:1] == ["--worker"]:
        from bench.worker import serve

        serve(json.loads(arguments[1]))
        return 0
    if arguments[:1] in (["--first-step"], ["--before-step"], ["--bare-step"]):
        from bench import first

        if arguments[0] == "--bare-step":
            first.by_hand(arguments[1], int(arguments[2]))
        else:
            first.by_command(arguments[1:], before=arguments[0] == "--before-step")
        return 0
    return measure(parsed(arguments))


def parsed(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="such as P1,P7: the themes in which these goals are measured")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of a measurement; fewer than 3 give no number")
    parser.add_argument("--quick", action="store_true", help="try the script: tiny models, one round")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    return parser.parse_args(arguments)


def measure(options: argparse.Namespace) -> int:
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from bench.goals import Report
    from bench.method import Bench
    from bench.report import facts, page, plain

    from locallearn.training.environment import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    bench, report = Bench(options.repeats, options.quick), Report()
    started = time.monotonic()
    for title, part in chosen(options.only, bench, report):
        print(f"{time.monotonic() - started:6.0f} s  {title}", file=sys.stderr, flush=True)
        try:
            part()
        except Exception as error:
            report.failed[title] = " ".join(f"{type(error).__name__}: {error}".split())[:500]
    command = "make bench" if sys.argv[1:] == MAKE else " ".join(["python scripts/benchmark.py", *sys.argv[1:]])
    about = facts(time.monotonic() - started, options.repeats, options.quick, command)
    text = page(report, about)
    print(text)
    if options.json:
        options.json.write_text(json.dumps(plain(report, about), indent=1) + "\n")
    if options.markdown:
        options.markdown.write_text(text)
    return 1 if report.failed else 0


MAKE = ["--json", "docs/benchmark.json", "--markdown", "docs/benchmark.md"]


def chosen(only: str, bench, report) -> list[tuple[str, Callable[[], None]]]:
    """The themes in which the goals named by `only` are measured, in the order of the table; all if it is empty."""
    from bench import data, loop, memory, pipeline, small, start, step, trackers

    parts: list[tuple[str, Callable[[], None]]] = [
        ("P1 vgg11", lambda: step.harness(bench, report, "vgg11", 1)),
        ("P1 vgg16, 2 threads", lambda: step.harness(bench, report, "vgg16", 2)),
        *((f"P1 P4 P6 {m}", lambda m=m: step.measure(bench, report, m)) for m in MODELS),
        ("P2", lambda: loop.measure(bench, report)),
        *((f"P3 {m}", lambda m=m: step.defaults(bench, report, m, 2)) for m in MODELS),
        *((f"P5 P6 {m}", lambda m=m: memory.measure(bench, report, m)) for m in MODELS),
        *((f"P7 P8 P9 P11 P15 {m}", lambda m=m: pipeline.measure(bench, report, m)) for m in MODELS),
        ("P12", lambda: data.measure(bench, report)),
        ("P13", lambda: start.saving(bench, report)),
        ("P14", lambda: start.first_step(bench, report)),
        ("P16", lambda: trackers.measure(bench, report)),
        ("P17", lambda: trackers.inside(bench, report)),
        *((f"P18 {n}", lambda n=n: small.measure(bench, report, n)) for n in small.SUBJECTS),
    ]
    wanted = {word.strip() for word in only.split(",") if word.strip()}
    known = {word for title, _ in parts for word in title.split() if word.startswith("P")}
    if wanted - known:
        sys.exit(
            f"--only {only}: there is no {', '.join(sorted(wanted - known))}; choose from {', '.join(sorted(known))}"
        )
    return [(title, part) for title, part in parts if not wanted or wanted & set(title.split())]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
