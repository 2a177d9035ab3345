"""The command `study`: from its words to `studies.study`."""

from __future__ import annotations

import sys
from pathlib import Path

from locallearn.cli import listing
from locallearn.cli.arguments import Parser, path, trust
from locallearn.config import outside
from locallearn.errors import UserError


def study(arguments: list[str]) -> int:
    """`locallearn study [NAME]`; returns the exit code."""
    parser = Parser(
        "study",
        "Do the runs of a study, several at a time, and write its table, its pictures and its verdict. Started again, "
        "it goes on: a finished run is only read. Without a name: list the studies.",
        """\
A study is a yaml file, DIR/study/NAME.yaml, with --config-dir DIR; `locallearn list study NAME` shows one. Every
published experiment (+experiment=NAME) is a study too, and its short form (+short=NAME) is the quick form.

examples:
  locallearn study                                   what there is
  locallearn study alignment --quick                 see in a minute that it works
  locallearn study families --data DIR --jobs 2      all its runs; then runs/families/families.md
  locallearn study families --report --to docs       write the page again from docs/families.json""",
    )
    parser.add_argument("name", nargs="?", help="the study; without it a list")
    parser.add_argument("--quick", action="store_true", help="the quick form; its numbers mean nothing")
    parser.add_argument("--jobs", default="1", metavar="N", help="runs at a time, one thread each (1)")
    parser.add_argument("--data", type=path, metavar="DIR", help="the data sets; without it LOCALLEARN_DATA")
    parser.add_argument("--out", type=path, metavar="DIR", help="the run folders, kept for the next time (runs/NAME)")
    parser.add_argument("--to", type=path, metavar="DIR", help="where page, numbers and pictures go (as --out)")
    parser.add_argument("--only", default="", metavar="TEXT", help="do only the parts whose title contains this")
    parser.add_argument("--report", action="store_true", help="run nothing: write the page again from NAME.json")
    trust(parser)
    options = parser.read(arguments)
    allow = outside.trusted(options.config_dir, options.allow)
    if options.name is None:
        return listing.show("study", config_dirs=options.config_dir)
    if not options.jobs.isdecimal() or int(options.jobs) < 1:
        raise UserError(f"--jobs {options.jobs}: must be a whole number, at least 1")
    from locallearn.studies.study import StudyOptions, report
    from locallearn.studies.study import study as start

    out = options.out or Path("runs") / (f"{options.name}-quick" if options.quick else options.name)
    to = options.to or out
    if options.data and not options.data.is_dir():
        raise UserError(f"--data {options.data}: there is no such folder")
    called = StudyOptions(
        out, to, options.data, int(options.jobs), options.quick, options.only, options.config_dir, allow
    )
    if options.report:
        report(options.name, called)
        return 0
    try:
        return start(options.name, called)
    except KeyboardInterrupt:
        print("locallearn: stopped; the same command goes on with it", file=sys.stderr)
        return 130
