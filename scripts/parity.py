"""Run tests/parity and write its rows into docs/parity.md: `make parity` calls it.

python scripts/parity.py [--page docs/parity.md]

Nothing is written if a test fails.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from reliability import Case, cases

from locallearn.studies.page import machine, write_between

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "parity.md"
COMMAND = "make parity"


def table(found: Iterable[Case]) -> list[str]:
    """A line for each peer and thing that tests compared, with the largest of their differences."""
    rows: dict[tuple[str, str, str], float] = {}
    for row in (json.loads(value) for case in found for name, value in case.properties if name == "parity"):
        key = row["peer"], row["what"], verdict(row["verdict"])
        rows[key] = max(row["difference"], rows.get(key, 0.0))
    ordered = sorted(rows.items(), key=lambda item: [part.lower() for part in item[0]])
    lines = [f"| {peer} | {what} | {number(found)} | {said} |" for (peer, what, said), found in ordered]
    return ["| peer | what is compared | largest difference | verdict |", "|---|---|---|---|", *lines]


def number(difference: float) -> str:
    """Rounding differs between machines: one digit of it says enough."""
    return f"{difference:.1g}" if difference < 1e-6 else f"{difference:.2g}"


def verdict(given: str) -> str:
    """Equal, or a link to the page that says how ours differs."""
    if given == "equal":
        return given
    path = Path(given)
    link = path.relative_to("docs") if path.parts[0] == "docs" else Path("..") / path
    return f"differs, see [{path.name}]({link.as_posix()})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE, help="the page whose table to write")
    page = parser.parse_args().page
    with tempfile.TemporaryDirectory() as folder:
        junit = Path(folder) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "tests/parity", "--junitxml", junit]
        done = subprocess.run(command, cwd=ROOT)
        if done.returncode:
            raise SystemExit(done.returncode)
        found = list(cases([junit]))
    lines = table(found)
    made = f"Made by `{COMMAND}` on {time.strftime('%Y-%m-%d')}, {len(found)} tests. {machine()}."
    write_between(page, COMMAND, [made, "", *lines])
    print(f"{page}: {len(lines) - 2} rows of {len(found)} tests")


if __name__ == "__main__":
    main()
