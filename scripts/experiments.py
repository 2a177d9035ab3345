"""Run one of the experiments that the field argues about and draw its picture: python scripts/experiments.py alignment.

Every study is a module of `scripts/studies/`; its numbers go to docs/experiments/NAME.json, its pictures beside them,
and docs/experiments.md is written from all of these files. Runs that are done are not repeated, and a run that was
killed goes on from its last checkpoint. `--jobs` runs at a time, one thread each.
"""

from __future__ import annotations

import argparse
import json
import shlex
import time
from pathlib import Path
from types import ModuleType

from reproduce import ROOT, machine
from studies import studies
from studies.common import Options

from locallearn.figures import save

ALL, DOCS = "all", "docs"


def main() -> None:
    known = studies()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=[*known, ALL, DOCS], help=f"a study, {ALL}, or {DOCS} to write the page only")
    parser.add_argument("--data", help="folder of the data sets; without it LOCALLEARN_DATA")
    parser.add_argument("--out", type=Path, default=Path("runs/experiments"), help="run folders, kept for next time")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--quick", action="store_true", help="try the study in seconds; its numbers mean nothing")
    parser.add_argument("--write", type=Path, help="where experiments.md goes: docs, or OUT with --quick")
    given = parser.parse_args()
    write = given.write or (given.out if given.quick else ROOT / "docs")
    for name in [] if given.name == DOCS else known if given.name == ALL else [given.name]:
        study(known[name], Options(given.data, given.jobs, given.out, given.quick), write)
    page = write / "experiments.md"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(known, write / "experiments"))
    print(page)


def study(module: ModuleType, options: Options, write: Path) -> Path:
    """Run one study and write NAME.json and its pictures below `write`/experiments; returns the JSON file."""
    started = time.perf_counter()
    results = module.run(options)
    seconds = options.seconds or time.perf_counter() - started
    about = {"command": command(module.NAME), "machine": machine(), "quick": options.quick, "seconds": round(seconds)}
    file = write / "experiments" / f"{module.NAME}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({**about, "results": results}, indent=1, allow_nan=False) + "\n")
    draw(module, file)
    return file


def command(name: str) -> str:
    return shlex.join(["python", "scripts/experiments.py", name, "--data", "DATA"])


def draw(module: ModuleType, file: Path) -> list[str]:
    """Draw what `file` says, beside it; the names of the pictures without ending."""
    figures = module.draw(json.loads(file.read_text())["results"])
    for name, figure in figures.items():
        assert name.startswith(module.NAME), f"{name}: the pictures of a study begin with its name"
        save(figure, file.with_name(name))
    return list(figures)


def render(known: dict[str, ModuleType], folder: Path) -> str:
    """The page, from the JSON files of the studies that were run; their pictures are drawn again."""
    lines = [
        "# Experiments\n",
        "Each section is one command and comes from `docs/experiments/NAME.json`, which it wrote; "
        "`python scripts/experiments.py docs` writes this page and its pictures again. Published numbers were read at "
        "the source, or off a figure by eye where that is said. No number was chosen on a test set; "
        "where a setting was, it is said. Seconds are those of all runs of a study together, one thread each.\n",
    ]
    for name, module in known.items():
        file = folder / f"{name}.json"
        if not file.is_file():
            continue
        found = json.loads(file.read_text())
        lines += [f"## {module.NUMBER}. {module.TITLE}\n", f"{module.TEXT}\n", f"    {found['command']}\n"]
        lines += ["**A quick try of the script: these numbers mean nothing.**\n"] if found["quick"] else []
        for picture in draw(module, file):
            part = picture.removeprefix(name).strip("_").replace("_", ", ")
            lines += [f"*{part}*\n"] if part else []
            lines += [f"![{', '.join(filter(None, (module.TITLE, part)))}]({folder.name}/{picture}.svg)\n"]
        lines += [*module.render(found["results"]), ""]
        lines += [f"{found['machine']}; {found['seconds']:,} seconds.\n"]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
