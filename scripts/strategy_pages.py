"""Write a page for every strategy, docs/strategies/NAME.md, and their index: python scripts/strategy_pages.py.

Options come from the yaml, what is logged from two steps on the digits, the cost from counting one step, what verifies
it from checks.yaml there and docs/truth.json, results from docs/families.json. The sections in `BY_HAND` are written by
hand in the pages and kept. `--check` writes nothing, and fails where a page is out of date.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import shlex
import statistics
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from locallearn.config.compose import choices, compose, header
from locallearn.config.experiment import experiment
from locallearn.config.targets import resolve
from locallearn.engine import Learner
from locallearn.names import ACCURACY, BLOCK, TEST, by_block, divided
from locallearn.plan.operations import backprop_flops, step_flops
from locallearn.training.begin import rows as rows_of
from locallearn.training.prepare import prepare

ROOT = Path(__file__).resolve().parents[1]
PAGES = ROOT / "docs" / "strategies"
BY_HAND = ("Equation", "The last block", "Differences from the paper")
MADE = f"<!-- Made by `python scripts/strategy_pages.py`. Written by hand: {', '.join(BY_HAND)}. -->"
MODELS = {
    "infomax": "model=basic_cnn model.hidden=0",  # it needs maps of at least two rows in every block
    "fw_dtp": "model=lenet",  # a matrix between large maps would be too large
    "dtp": "model=lenet",
    "counter_current": "model=lenet",
    "petra": "model=revnet",
}
ROUTES = {
    "none": "no feedback; a block learns as soon as it has computed its outputs, and waits for nobody",
    "neighbor": "feedback from the block above, which has it ready without waiting for anyone",
    "chain": "feedback from the block above, which itself waits for the block above it",
    "broadcast": "feedback from the last block, to all at once",
    "rounds": "messages between neighbours, both ways at the same time, in a fixed number of rounds for each batch",
}
SHARED = ("loss", "accuracy", "validation_accuracy", "test_accuracy")  # of every block that can predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a page is out of date")
    check = parser.parse_args().check
    PAGES.mkdir(parents=True, exist_ok=True)
    texts = {PAGES / f"{name}.md": page(name) for name in choices("strategy")} | {PAGES / "README.md": index()}
    stale = [path.name for path, text in texts.items() if not path.is_file() or path.read_text() != text]
    if check and stale:
        raise SystemExit(f"out of date: {', '.join(stale)}; run python scripts/strategy_pages.py")
    for path, text in texts.items():
        if not check:
            path.write_text(text)


def page(name: str) -> str:
    """The text of one page; its hand-written sections are those of the page that is there."""
    facts = header(choices("strategy")[name])
    old = PAGES / f"{name}.md"
    kept = sections(old.read_text()) if old.is_file() else {}
    by_hand = {title: kept.get(title, "TO BE WRITTEN") for title in BY_HAND}
    parts = {
        "What it is": f"{facts['summary']}\n\nRoute `{facts['route']}`: {ROUTES[facts['route']]}.",
        "Paper": f"{facts['paper']}.",
        "Equation": by_hand["Equation"],
        "The last block": by_hand["The last block"],
        "Command": f"```\n{command(name)}\n```",
        "Options": options(name),
        "What is logged": logged(name),
        "Cost": cost(name),
        "Differences from the paper": by_hand["Differences from the paper"],
        "Verified": verified(name),
        "Results": results(name),
    }
    return f"# `{name}`\n\n{MADE}\n\n" + "\n\n".join(f"## {title}\n\n{text}" for title, text in parts.items()) + "\n"


def sections(text: str) -> dict[str, str]:
    """The sections of a page by title."""
    found = re.split(r"^## (.+)$", text, flags=re.MULTILINE)
    return {title: body.strip() for title, body in zip(found[1::2], found[2::2], strict=True)}


def command(name: str) -> str:
    return f"python -m locallearn strategy={name} {MODELS.get(name, 'model=vgg16')}"


def options(name: str) -> str:
    """A table of the yaml's keys with defaults and comments, and the groups that the strategy reads."""
    lines = choices("strategy")[name].read_text().splitlines()
    content = yaml.safe_load("\n".join(lines))
    rows = []
    for key, default in content.items():
        if key != "_target_":
            comment = next(line.partition("#")[2].strip() for line in lines if line.startswith(f"{key}:"))
            rows.append(f"| `strategy.{key}` | `{json.dumps(default)}` | {comment} |")
    table = ["| option | default | meaning |", "|---|---|---|", *rows] if rows else ["It has no options of its own."]
    fields = {field.name for field in dataclasses.fields(resolve(content["_target_"], "strategy", ())) if field.init}
    read = [f"`{group}=`" for group in ("objective", "auxiliary") if group in fields]
    if read:
        table += ["", f"It reads the group{'s' * (len(read) > 1)} {' and '.join(read)} (`locallearn list`)."]
    return "\n".join(table)


def logged(name: str) -> str:
    """What a run of two steps records, beside what all strategies do."""
    with tempfile.TemporaryDirectory() as folder:
        found = run([*small(name), "max_steps=2", "threads=1", f"out={folder}"])
    blocks = sorted({metric for place, metric in map(divided, found) if place.startswith(BLOCK)})
    heads = len(by_block(found, ACCURACY, TEST))
    common = [f"`block/NN/{key}`" for key in SHARED if key in blocks]
    own = [f"`block/NN/{key}`" for key in blocks if key not in SHARED]
    which = "every block predicts" if heads > 1 else "only the last block predicts"
    text = f"For blocks that predict ({which}): {', '.join(common)}."
    text += f"\n\nOf this strategy: {', '.join(own)}." if own else ""
    return f"{text}\n\nWhat every run records is in [getting started](../getting-started.md)."


def small(name: str) -> list[str]:
    """The settings with which a strategy is looked at."""
    return [f"strategy={name}", *shlex.split(MODELS.get(name, "model=lenet")), "device=cpu"]


@cache
def learner_of(name: str) -> Learner:
    words = small(name)
    return prepare(experiment(*compose(words), words))[0]


@cache
def times_backprop(name: str) -> str:
    """What a training step costs, in steps of backprop on the same net."""
    return f"{step_flops(learner_of(name)) / backprop_flops(learner_of(name)):.2f}"


def cost(name: str) -> str:
    learner = learner_of(name)
    auxiliary = sum(row.aux_parameters for row in rows_of(learner))
    dropped = f"{auxiliary:,} parameters are only for training and" if auxiliary else "no parameters are"
    return (
        f"With `{MODELS.get(name, 'model=lenet')}` in {len(learner.cut)} blocks a training step takes "
        f"{times_backprop(name)} times the FLOPs of backprop's, and {dropped} dropped at inference; `--dry-run` says "
        "both for any net."
    )


def run(overrides: list[str]) -> dict[str, Any]:
    """The summary of a run."""
    from locallearn.training.run import start

    config, names = compose(overrides)
    result = start(experiment(config, names, overrides), quiet=True)
    assert result is not None
    return json.loads((result.run_dir / "summary.json").read_text())


def results(name: str) -> str:
    """The rows of docs/families.json with this strategy, and the published experiments that run it."""
    lines = []
    for part in json.loads((ROOT / "docs" / "families.json").read_text())["parts"]:
        rows = [row for row in part["rows"] if f"strategy={name}" in row["command"].split()]
        control = next((row for row in part["rows"] if row["name"] == "backprop"), None)
        for row in rows:
            lines.append(f"{part['title']} (`{row['name']}`): **{percent(row)}** % test accuracy")
            if control is not None and name != "backprop":
                lines[-1] += f"; backprop {percent(control)}"
            lines[-1] += (
                f"; published {row['published']:.2f} (more epochs; that page names the source)"
                if row["published"]
                else ""
            )
            lines += [".\n\n```", row["command"], "```\n"]
    text = "\n".join(lines).replace("\n.\n", ".\n") or "None yet.\n"
    if lines:
        text = f"Mean and standard deviation of three seeds, from [families](../families.md).\n\n{text}"
    files = {e: f.read_text() for e, f in choices("experiment").items()}
    used = [e for e, t in files.items() if re.search(rf"^\s*(- override /)?strategy: .*\b{name}\b", t, re.MULTILINE)]
    if used:
        names = ", ".join(f"`{e}`" for e in used)
        text += f"\nPublished settings that run it (`python -m locallearn -m +experiment=NAME`): {names}."
    return text.strip()


def verified(name: str) -> str:
    """The checks that are independent of this code, and what became of published numbers: the level of verification."""
    checks = yaml.safe_load((PAGES / "checks.yaml").read_text())[name]
    peers = [check for check in checks if check.startswith("parity/")]
    equations = [check for check in checks if check not in peers]
    truth = json.loads((ROOT / "docs" / "truth.json").read_text())["parts"]
    rows = [
        f"{part['title']} (`{row['name']}`): {row['verdict']['word']}"
        for part in truth
        for row in part["rows"]
        if f"strategy={name}" in row["command"].split() and row["name"] not in part["missing"]
    ]
    lines = [f"- against its equations, restated independently: {_tests(equations)}"] if equations else []
    lines += [f"- against a peer's code ([parity](../parity.md)): {_tests(peers)}"] if peers else []
    lines += [f"- against published numbers ([truth](../truth.md)): {'; '.join(rows)}"] if rows else []
    return "\n".join(lines)


def _tests(checks: list[str]) -> str:
    """`equality/test_dfa.py::test_x_is_y` as a link to its file, with what it says."""
    told = []
    for check in checks:
        file, _, test = check.partition("::")
        told.append(f"[{test.removeprefix('test_').replace('_', ' ')}](../../tests/{file})")
    return ", ".join(told)


def percent(row: dict[str, Any]) -> str:
    return f"{statistics.mean(row['values']):.2f} ± {statistics.stdev(row['values']):.2f}"


def index() -> str:
    lines = ["# Strategies", "", "<!-- Made by `python scripts/strategy_pages.py`. -->", ""]
    lines += ["| strategy | what it is | route | cost |", "|---|---|---|---:|"]
    for name, file in choices("strategy").items():
        facts = header(file)
        lines.append(f"| [`{name}`]({name}.md) | {facts['summary']} | `{facts['route']}` | {times_backprop(name)} |")
    lines += ["", "Cost: FLOPs of a training step, as a multiple of backprop's on the net that each page names.", ""]
    lines += ["The route says where feedback comes from, and alone decides the schedule:", ""]
    return "\n".join([*lines, *(f"- `{route}`: {text}" for route, text in ROUTES.items())]) + "\n"


if __name__ == "__main__":
    main()
