"""Run a study on real data, several seeds for each row, and write its table: python scripts/reproduce.py families.

Every row is a plain command line, printed beside its result. Runs that are done are not repeated, so that a study can
be interrupted and started again, and rows can be added. `--jobs` runs at a time, one thread each.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Row:
    """One line of a table: what differs from the part's common settings, and the published test accuracy, if any."""

    name: str
    settings: str
    published: float | None = None


@dataclass(frozen=True)
class Part:
    """One table. `linear` also fits a linear classifier to the frozen features of every run; `control` names the row
    from which the others' differences are taken, seed by seed."""

    title: str
    text: str
    common: str
    rows: tuple[Row, ...]
    linear: bool = False
    control: str | None = None


def _rows(names: str, published: dict[str, float] | None = None, more: str = "") -> tuple[Row, ...]:
    known = published or {}
    return tuple(Row(n, f"strategy={n} {more}".strip(), known.get(n)) for n in names.split())


FEEDBACK = {"backprop": 90.8, "usf": 90.31, "brsf": 89.98, "frsf": 90.39, "fa": 86.94, "dfa": 87.19}
FAMILIES = (
    Part(
        "Every strategy on one net",
        "LeNet, every layer a block. Published: BioTorch's benchmarks (LeNet, 100 epochs, images of 32x32; C9). "
        "`shallow` is the control: random features under a trained last layer. `checkpoint` is left out: it is "
        "backprop, bit for bit (tests/equality/test_equalities.py).",
        "data=fashion_mnist model=lenet model.activation=tanh blocks=max epochs=3 batch_size=64 optim.lr=2e-3 "
        "probe=alignment",
        (
            *_rows("backprop", FEEDBACK),
            *_rows("deep_supervision", more="auxiliary=mlp"),
            Row("pgi", "strategy=pgi strategy.width=16 auxiliary=mlp"),
            Row("pgi_causal", "strategy=pgi_causal strategy.width=16 auxiliary=mlp"),
            *_rows("dgl greedy loco", more="auxiliary=mlp"),
            *_rows("cdni dni usf brsf frsf fa dfa shallow", FEEDBACK),
        ),
    ),
    Part(
        "Feedback alignment on an MLP",
        "Three hidden layers of 256, tanh, no batch norm. Published: Bartunov et al. 2018 (500 epochs; C10).",
        "data=mnist model=mlp model.width=256 model.activation=tanh model.batch_norm=false blocks=max epochs=3 "
        "batch_size=64 optim.lr=1e-3 probe=alignment",
        _rows("backprop usf brsf frsf fa dfa shallow", {"backprop": 98.52, "fa": 98.15, "dfa": 97.25}),
    ),
    Part(
        "Self-supervised",
        "Three convolutions, no labels below the read-out (`linear`: a classifier fitted to the frozen features). "
        "`infomax` compares positions of a map, `simclr` two views of an image. `random` never learns: it is the "
        "control of the linear read-out. `shallow` trains its last convolution on labels.",
        "data=fashion_mnist model=basic_cnn model.width=32 model.hidden=0 blocks=max epochs=2 batch_size=128 "
        "data.fraction=0.25 optim.lr=2e-3",
        (
            *_rows("infomax"),
            Row("loco, simclr", "strategy=loco objective=simclr auxiliary=projector"),
            Row("dgl, simclr", "strategy=dgl objective=simclr auxiliary=projector"),
            Row("dgl, reconstruction", "strategy=dgl objective=reconstruction"),
            Row("dgl (labels)", "strategy=dgl auxiliary=mlp"),
            Row("random", "strategy=infomax optim.lr=0"),
            *_rows("backprop shallow"),
        ),
        linear=True,
    ),
    Part(
        "Local losses on an MLP",
        "Three hidden layers of 1024. Published: Nokland & Eidnes 2019 (100 epochs, two pixels of jitter; C12). The "
        "rows of sim and predsim were run when the similarity projection had a bias, which it has neither there nor "
        "here now.",
        "data=mnist model=mlp blocks=max epochs=3 batch_size=128 data.crop=2 optim.lr=5e-4",
        (
            Row("backprop", "strategy=backprop", 99.25),
            Row("dgl, pred", "strategy=dgl objective=cross_entropy auxiliary=pooled_linear", 99.32),
            Row("dgl, sim", "strategy=dgl objective=similarity", 99.20),
            Row("dgl, predsim", "strategy=dgl objective=predsim auxiliary=pooled_linear", 99.38),
            *_rows("shallow"),
        ),
    ),
    *(
        Part(
            f"Synthetic gradients, {depth} hidden layers",
            "Layers of 256, each its own block. Published: Jaderberg et al. 2017 (500,000 steps; C14, from memory); "
            "`shallow` is their no-bprop.",
            f"data=mnist model=mlp model.width=256 model.depth={depth} blocks=max epochs=3 batch_size=128 "
            "optim.lr=1e-3 probe=alignment",
            _rows(
                "backprop cdni dni shallow", dict(zip(("backprop", "cdni", "dni", "shallow"), published, strict=True))
            ),
        )
        for depth, published in {
            3: (98.0, 97.8, 98.1, 90.7),
            6: (98.2, 98.4, 95.7, 78.6),
        }.items()
    ),
)
EQUAL = "replay, equal speeds"
REPLAY = tuple(
    Part(
        f"Asynchronous DGL, buffers of {size}",
        "Three convolutions, each a block; one of them is slowed. `serial` is synchronous DGL. Published (Belilovsky, "
        "Eickenberg & Oyallon 2020, a CNN of 6 layers on CIFAR-10, 50 epochs): a slow-down of one layer by up to about "
        "1.2 costs a negligible part of the accuracy, and a buffer of one packet costs little. Here a run ends with "
        "the data of block 0: a block slowed by f learns 1/f as often, and a slow block 0 gives the others more turns.",
        "data=fashion_mnist strategy=dgl auxiliary=linear model=basic_cnn model.width=16 model.hidden=0 blocks=max "
        "data.fraction=0.25 epochs=3 batch_size=64 optim.lr=2e-3 evaluate_every=3 checkpoint.every=never",
        (
            Row("serial", "runtime=serial"),
            Row(EQUAL, f"runtime=replay runtime.buffer={size}"),
            *(
                Row(
                    f"block {k} slowed {factor}x", f"runtime=replay runtime.buffer={size} runtime.slow={{{k}:{factor}}}"
                )
                for factor in (1.2, 1.5, 2.0)
                for k in range(3)
            ),
        ),
        control=EQUAL,
    )
    for size in (1, 30)
)
STUDIES = {"families": FAMILIES, "replay": REPLAY}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--data", help="folder of the data sets; without it LOCALLEARN_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="run folders, kept for the next time")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--only", default="", help="the parts whose title contains this")
    parser.add_argument("--write", type=Path, default=ROOT / "docs", help="where STUDY.md and STUDY.json go")
    options = parser.parse_args()
    parts = [p for p in STUDIES[options.study] if options.only.lower() in p.title.lower()]
    every = [(part, row, seed) for seed in SEEDS for part in parts for row in part.rows]
    jobs = list({folder(options.out, *job): job for job in every}.values())  # parts may share a row
    with ThreadPoolExecutor(options.jobs) as pool:
        for number, line in enumerate(pool.map(lambda job: run(*job, options), jobs), 1):
            print(f"{number}/{len(jobs)} {line}", flush=True)
    found = [tabulate(part, options.out) for part in STUDIES[options.study]]
    name = options.write / options.study
    name.with_suffix(".json").write_text(json.dumps({"machine": machine(), "parts": found}, indent=1) + "\n")
    name.with_suffix(".md").write_text(render(options.study, found))


def folder(out: Path, part: Part, row: Row, seed: int) -> Path:
    """Where one run lies, by what it is: other settings are another folder."""
    text = f"{part.common} {row.settings}"
    return out / re.sub(r"[^\w.]+", "-", text) / f"seed{seed}"


def run(part: Part, row: Row, seed: int, options: argparse.Namespace) -> str:
    """One run, unless it is done; returns a line about it."""
    place = folder(options.out, part, row, seed)
    title = f"{part.title}: {row.name}, seed {seed}"
    if not (place / "result.json").is_file():
        given = [f"data.root={options.data}"] if options.data else []
        command = [*part.common.split(), *row.settings.split(), f"seed={seed}", "threads=1", f"out={place}", *given]
        done = subprocess.run([sys.executable, "-m", "locallearn", *command], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{title}: {' '.join(command)}\n{done.stderr}")
        run_dir = max(place.glob("*/summary.json"), key=lambda p: p.stat().st_mtime).parent
        result = json.loads((run_dir / "summary.json").read_text())
        if part.linear:
            call = [sys.executable, "-m", "locallearn", "evaluate", str(run_dir), "--linear"]
            lines = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
            result |= {name: float(value) for name, value in map(str.split, lines)}
        (place / "result.json").write_text(json.dumps(result))
    result = json.loads((place / "result.json").read_text())
    return f"{title}: {result['test/accuracy']:.4f} in {result['seconds']:.0f} s"


def tabulate(part: Part, out: Path) -> dict:
    """The numbers of one table, over the seeds that are there."""
    rows = []
    for row in part.rows:
        files = [folder(out, part, row, seed) / "result.json" for seed in SEEDS]
        results = [json.loads(file.read_text()) for file in files if file.is_file()]
        if not results:
            continue
        control = next((row for row in part.rows if row.name == part.control), row)
        against = [folder(out, part, control, seed) / "result.json" for seed in SEEDS]
        pairs = [
            (json.loads(a.read_text()), json.loads(b.read_text()))
            for a, b in zip(files, against, strict=True)
            if a.is_file() and b.is_file()
        ]
        rows.append(
            {
                "name": row.name,
                "command": f"python -m locallearn -m {row.settings} {part.common} threads=1 seed=0,1,2",
                "accuracy": [100 * r["test/accuracy"] for r in results],
                "linear": [100 * r["linear_accuracy"] for r in results if "linear_accuracy" in r],
                "published": row.published,
                "difference": [100 * (a["test/accuracy"] - b["test/accuracy"]) for a, b in pairs if row != control],
                "angles": _by_block(results, "update_angle"),
                "staleness": _by_block(results, "staleness"),
                "seconds": _mean(r["seconds"] for r in results),
                "auxiliary_parameters": results[0]["auxiliary_parameters"],
            }
        )
    return {"title": part.title, "text": part.text, "common": part.common, "control": part.control, "rows": rows}


def _by_block(results: list[dict], name: str) -> list[float]:
    """The mean over the runs of each block's number, for those that have it."""
    return [_mean(r[key] for r in results) for key in sorted(results[0]) if key.endswith(f"/{name}")]


def render(study: str, parts: list[dict]) -> str:
    """The tables as Markdown."""
    lines = [
        f"# {study.capitalize()}\n",
        f"Made by `python scripts/reproduce.py {study} --data DATA`; every number is also in `{study}.json`. Test "
        "accuracy in percent after the last epoch, mean and standard deviation over the seeds 0, 1, 2; nothing was "
        "chosen on the test set. Published values stand beside it for the order, not for the level: they come from "
        "many more epochs.\n",
        f"Machine: {machine()}.\n",
    ]
    for part in parts:
        lines += [f"## {part['title']}\n", f"{part['text']}\n"]
        lines += [f"    python -m locallearn -m ROW {part['common']} threads=1 seed=0,1,2 data.root=DATA\n"]
        lines += [*_table(part["rows"], part["control"]), ""]
    return "\n".join(lines)


def _table(rows: list[dict], control: str | None) -> Iterator[str]:
    keys = ("linear", "published", "angles", "staleness")
    linear, published, angles, staleness = (any(row[key] for row in rows) for key in keys)
    head = ["row", "accuracy", *(["linear read-out"] if linear else []), *(["published"] if published else [])]
    head += [f"less '{control}'"] if control else []
    head += ["degrees to backprop, by block"] if angles else []
    head += ["staleness of what is read, in batches, by block"] if staleness else []
    head += ["auxiliary parameters", "seconds"]
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        cells = [f"{row['name']}", _spread(row["accuracy"]), *([_spread(row["linear"])] if linear else [])]
        cells += ["" if row["published"] is None else f"{row['published']:.2f}"] if published else []
        cells += [_spread(row["difference"])] if control else []
        cells += [", ".join(f"{a:.0f}" for a in row["angles"])] if angles else []
        cells += [", ".join(f"{s:.1f}" for s in row["staleness"])] if staleness else []
        yield "| " + " | ".join([*cells, f"{row['auxiliary_parameters']:,}", f"{row['seconds']:.0f}"]) + " |"


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return ", ".join(f"{v:.2f}" for v in values)
    missing = f" (n={len(values)})" if len(values) < len(SEEDS) else ""
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f}{missing}"


def _mean(values: Iterator[float]) -> float:
    return statistics.mean(values)


def machine() -> str:
    return f"{platform.machine()}, CPU, one thread a run, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    main()
