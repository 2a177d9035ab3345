"""What only a GPU can show, in one command of at most eight minutes.

python scripts/gpu_check.py [--out gpu] [--budget 480] [--only A,B] [--device cuda|cpu|shadow] [--page docs/gpu.md]

The checks of `gpu_checks` run in their order, each in a process group of its own that is ended at its limit. After
each DIR/gpu.json is written: the same command goes on, and leaves out what this commit has passed on this card. The
page has a line for every check, "not yet run" until it is. On a CPU, and on the device of tests/helpers/shadow.py, the
same checks run with small sizes as far as they can: that shows that the program works, and nothing of it is written
into the page.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "scripts")]

from gpu_checks import CHECKS, Check, Facts, facts_of, on  # noqa: E402

from locallearn import accelerator  # noqa: E402
from locallearn.errors import described, in_one_line  # noqa: E402
from locallearn.runs.files import replace  # noqa: E402
from locallearn.studies.page import write_between  # noqa: E402

COMMAND = "python scripts/gpu_check.py"
PASSED, FAILED, LEFT_OUT = "passed", "failed", "left out"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu"), help="folder of gpu.json")
    parser.add_argument("--device", choices=("cuda", "cpu", "shadow"), default="cuda", help="where to run")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds for all checks together")
    parser.add_argument("--only", default="", help="letters of checks, such as A,B")
    parser.add_argument("--page", type=Path, help="the page whose table to write")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child(options.child, options.device, options.out)
    only, known = set(filter(None, options.only.split(","))), {check.letter for check in CHECKS}
    if unknown := sorted(only - known):
        parser.error(f"--only {','.join(unknown)}: choose of {','.join(sorted(known))}")
    if options.device == "cuda" and not accelerator.count():
        parser.error("there is no GPU here: choose --device cpu or shadow")
    if options.device != "cuda" and options.page is not None:
        parser.error("--page shows what a GPU gave: leave it out, or choose --device cuda")
    results = run(options.out, options.device, options.budget, only)
    if options.page is not None:
        write_between(options.page, COMMAND, table(results))
        replace(options.page.with_suffix(".json"), [json.dumps(results, indent=1).encode()])
    print("\n".join(line_of(check, results["checks"].get(check.letter)) for check in CHECKS))
    return int(any(result["state"] == FAILED for result in results["checks"].values()))


def run(out: Path, device: str, budget: float, only: set[str]) -> dict[str, Any]:
    """All results, those of an earlier call included."""
    out.mkdir(parents=True, exist_ok=True)
    file, end = out / "gpu.json", time.monotonic() + budget
    facts = facts_of(device)._asdict()
    results: dict[str, Any] = {"facts": facts, "checks": {}}
    with suppress(OSError, ValueError):
        before = json.loads(file.read_text(encoding="utf-8"))
        results = before if before["facts"] == facts else results
    for check in CHECKS:
        done = results["checks"].get(check.letter, {}).get("state") == PASSED
        if done or (only and check.letter not in only):
            continue
        result, old = checked(check, device, end - time.monotonic(), results["checks"], out), results["checks"]
        if result["state"] == LEFT_OUT and old.get(check.letter, {}).get("state") == FAILED:
            continue  # it stays what it was
        results["checks"][check.letter] = result
        replace(file, [json.dumps(results, indent=1).encode()])
        print(line_of(check, results["checks"][check.letter]), flush=True)
    return results


def checked(check: Check, device: str, left: float, before: dict[str, Any], out: Path) -> dict[str, Any]:
    """The result of one check: its state, a sentence, its numbers and its seconds. What it leaves for the next call
    goes into `out`."""
    wrong = [letter for letter in check.needs if before.get(letter, {}).get("state") == FAILED]
    if device not in check.devices:
        return {"state": LEFT_OUT, "said": f"not on {device}"}
    if wrong:
        return {"state": LEFT_OUT, "said": f"{wrong[0]} failed"}
    wanted = check.seconds if device == "cuda" else 3 * check.seconds
    limit = min(wanted, left)
    if limit < wanted / 2:
        return {"state": LEFT_OUT, "said": f"{max(left, 0):.0f} seconds were left of the budget"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", check.letter, "--device", device, "--out", folder]
        environment = {"PYTHONUNBUFFERED": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        environment |= {"GPU_CHECK_SECONDS": str(limit), "GPU_CHECK_KEPT": str(out.resolve())}
        path = os.pathsep.join(filter(None, sys.path))
        log = (Path(folder) / "log").open("w+")
        started = time.monotonic()
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "PYTHONPATH": path},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
            over = ""
        except subprocess.TimeoutExpired:
            over = f"not done after its limit of {limit:.0f} seconds"
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and all that it has started
        process.wait()
        seconds = {"seconds": round(time.monotonic() - started, 1)}
        result = Path(folder) / "result.json"
        if not over and result.is_file():
            return json.loads(result.read_text(encoding="utf-8")) | seconds
        log.seek(0)
        last = in_one_line(RuntimeError((log.read().strip().splitlines() or ["it ended without a word"])[-1]))
        return {"state": FAILED, "said": over or last} | seconds


def child(letter: str, device: str, out: Path) -> int:
    """Do one check, in a process of its own."""
    check = next(check for check in CHECKS if check.letter == letter)
    try:
        said, numbers = check.function(on(device), device != "cuda")
        state = PASSED
    except Exception as error:
        state, numbers = FAILED, {}
        said = in_one_line(error) if isinstance(error, AssertionError) else described(error)
    text = json.dumps({"state": state, "said": said, "numbers": numbers})
    (out / "result.json").write_text(text, encoding="utf-8")
    return 0


def line_of(check: Check, result: dict[str, Any] | None) -> str:
    if result is None:
        return f"{check.letter}  not yet run: {check.what}"
    seconds = f" in {result['seconds']:g} s" if "seconds" in result else ""
    return f"{check.letter}  {result['state']}{seconds}: {result['said']}"


def table(results: dict[str, Any]) -> list[str]:
    """The lines of the page."""
    checks, facts = results.get("checks", {}), results.get("facts")
    head = (
        [f"On {Facts(**facts).sentence()}.", ""]
        if facts and checks
        else ["None of these checks has been run on a GPU yet.", ""]
    )
    lines = ["| | what | passes if | |", "|---|---|---|---|"]
    for check in CHECKS:
        result = checks.get(check.letter)
        state = "**not yet run**"
        if result is not None:
            state = f"{result['state']}: {result['said']}"
        lines.append(f"| {check.letter} | {check.what} | {check.passes} | {state} |")
    return [*head, *lines]


if __name__ == "__main__":
    sys.exit(main())
