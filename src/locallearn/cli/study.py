"""The command `study`: from its words to `studies.study`."""

from __future__ import annotations

import sys
from argparse import Namespace
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
  locallearn study                                   the list of studies
  locallearn study alignment --quick                 check in a minute that it works
  locallearn study families --data DIR --jobs 2      all its runs; then runs/families/families.md
  locallearn study families --report --to docs       write the page again from docs/families.json
  locallearn study truth --report --out RUNS --to docs --results results   what is finished by now""",
    )
    parser.add_argument("name", nargs="?", help="the study; without it a list")
    parser.add_argument("--quick", action="store_true", help="the quick form; its numbers mean nothing")
    parser.add_argument("--jobs", default="1", metavar="N", help="runs at a time, one thread each (1)")
    parser.add_argument("--data", type=path, metavar="DIR", help="where the data sets are (LOCALLEARN_DATA)")
    parser.add_argument("--out", type=path, metavar="DIR", help="where run folders go, and are looked for (runs/NAME)")
    parser.add_argument("--to", type=path, metavar="DIR", help="where page, numbers and pictures go (as --out)")
    parser.add_argument("--only", default="", metavar="TEXT", help="do only the rows whose 'PART, ROW' contain this")
    parser.add_argument(
        "--results",
        type=path,
        metavar="DIR",
        help="where each finished published row has its file; a row that has one is not run again",
    )
    parser.add_argument(
        "--report", action="store_true", help="run nothing: write the page again, from NAME.json or the runs of --out"
    )
    trust(parser)
    options = parser.read(arguments)
    allow = outside.trusted(options.config_dir, options.allow)
    if options.name is None:
        return listing.show("study", config_dirs=options.config_dir)
    return _do(options, allow)


def _do(options: Namespace, allow: list[str]) -> int:
    """What `study` was told, with a name; returns the exit code."""
    if not options.jobs.isdecimal() or int(options.jobs) < 1:
        raise UserError(f"--jobs {options.jobs}: must be a whole number, at least 1")
    if options.data and not options.data.is_dir():
        raise UserError(f"--data {options.data}: there is no such folder; give that of the data sets")
    if options.results and options.results.is_file():
        raise UserError(f"--results {options.results}: is a file; give the folder of the results, such as results")
    if options.results and (options.quick or (options.report and not options.out)):
        raise UserError("--results needs whole runs: leave --quick out, and beside --report give --out DIR")
    from locallearn.studies.study import StudyOptions, report
    from locallearn.studies.study import study as start

    out = options.out or Path("runs") / (f"{options.name}-quick" if options.quick else options.name)
    called = StudyOptions(
        out=out,
        to=options.to or out,
        data=options.data,
        jobs=int(options.jobs),
        quick=options.quick,
        only=options.only,
        results=options.results,
        config_dirs=options.config_dir,
        allow=allow,
    )
    if options.report:
        report(options.name, called, collect=options.out is not None)
        return 0
    try:
        return start(options.name, called)
    except KeyboardInterrupt:
        print("locallearn: stopped; run the same command again to go on", file=sys.stderr)
        return 130


def repeat_result(arguments: list[str]) -> int:
    """`locallearn repeat --result FILE`; returns the exit code."""
    parser = Parser(
        "repeat",
        "Do the runs of a result again, and say whether every number agrees to the last bit. Exit code 1 if not.",
        "example:\n  locallearn repeat --result results/truth/FILE.json --data DATA",
    )
    parser.add_argument("--result", type=path, metavar="FILE", required=True, help="a file that a study has written")
    parser.add_argument("--data", type=path, metavar="DIR", help="where the data sets are (LOCALLEARN_DATA)")
    parser.add_argument(
        "--out", type=path, metavar="DIR", default=Path("runs/repeats"), help="where run folders go (runs/repeats)"
    )
    trust(parser)
    options = parser.read(arguments)
    allow = outside.trusted(options.config_dir, options.allow)
    from locallearn.studies.redo import redo
    from locallearn.studies.results import read

    content = read(options.result)
    agree = True
    for seed in redo(content, options.out, options.data, options.config_dir, allow):
        print(seed, flush=True)
        agree = agree and seed.before == seed.now
    print("every number agrees" if agree else "the numbers differ")
    return 0 if agree else 1


def leaderboard(arguments: list[str]) -> int:
    """`locallearn leaderboard`; returns the exit code."""
    parser = Parser(
        "leaderboard",
        "Check every result and write all as one page, of Markdown and of HTML. A file whose hashes and numbers do not "
        "agree with each other, or with its runs, is refused.",
        """\
A result is a file for one published row, which `locallearn study NAME --results DIR` writes. To add one from
elsewhere, put its file beside the others.

examples:
  locallearn leaderboard                        results/ into docs/leaderboard.md and docs/leaderboard.html
  locallearn leaderboard --runs runs/truth      check them against the run folders, too
  locallearn leaderboard --readme README.md     and a short table between two comments of that page""",
    )
    parser.add_argument("--results", type=path, metavar="DIR", default=Path("results"), help="their folder (results)")
    parser.add_argument("--to", type=path, metavar="DIR", default=Path("docs"), help="where the pages go (docs)")
    parser.add_argument("--runs", type=path, metavar="DIR", action="append", default=[], help="folders with their runs")
    parser.add_argument("--readme", type=path, metavar="FILE", help="a page that gets a short table of them, too")
    options = parser.read(arguments)
    from locallearn.studies import leaderboard as board
    from locallearn.studies.results import against_runs, against_study, read_all

    results = read_all(options.results)
    for file, content in results.items():
        against_study(file, content)
    if missing := [folder for folder in options.runs if not folder.is_dir()]:
        raise UserError(f"--runs {missing[0]}: there is no such folder; give one with the runs of results")
    if options.readme and not options.readme.is_file():
        raise UserError(f"--readme {options.readme}: there is no such file; give a page that exists")
    found = sum(against_runs(file, content, options.runs) for file, content in results.items())
    for file in board.write({file.relative_to(options.results): own for file, own in results.items()}, options.to):
        print(file)
    if options.readme:
        command = f"locallearn {board.NAME} --readme {options.readme.name}"
        board.write_short(results, options.readme, command, options.to / f"{board.NAME}.md")
        print(options.readme)
    count = sum(len(content["runs"]) for content in results.values())
    checked = f", and {found} of {count} runs agree with them" if options.runs else ""
    print(f"{len(results)} results are consistent{checked}")
    return 0


COMMANDS = {"study": study, "leaderboard": leaderboard}
