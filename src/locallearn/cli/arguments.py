"""How the words of a command line become options: flags and settings in any order, mistakes in one sentence."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from locallearn import paths
from locallearn.config.compose import quoted
from locallearn.errors import UserError, did_you_mean
from locallearn.figures.text import columns, fitted

INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
_OTHER_CONFIG = "a run starts from locallearn's own conf/config.yaml; "
ELSEWHERE = {
    "--config-path": ("-cp", _OTHER_CONFIG + "add a folder of your own yaml files with --config-dir DIR"),
    "--config-name": (
        "-cn",
        _OTHER_CONFIG + "put yours into DIR/experiment/NAME.yaml, and give --config-dir DIR +experiment=NAME",
    ),
    "--experimental-rerun": (None, "it would unpickle a file; locallearn resume RUN goes on with a run, and repeat RUN "
                                   "does it again"),
    "--hydra-help": (None, "locallearn --help lists the flags, those of Hydra among them"),
}  # fmt: skip
"""Flags of Hydra that have no place here, their short forms, and what does."""


class Parser(argparse.ArgumentParser):
    """argparse with every flag written out, a UserError for a mistake, and no order between flags and settings."""

    def __init__(self, command: str, text: str, more: str = "", **options: Any) -> None:
        form = argparse.RawDescriptionHelpFormatter
        name = f"locallearn {command}".strip()
        super().__init__(prog=name, description=text, epilog=more, formatter_class=form, allow_abbrev=False, **options)
        self.add_argument("--debug", action="store_true", help="show the whole traceback of an error")

    def error(self, message: str) -> NoReturn:
        command = self.prog.partition(" ")[2]
        name, colon, wrong = message.partition(": ")
        if name == "unrecognized arguments" and colon:
            flags = self.flags()
            word = wrong.split()[0]
            message = f"{word} is not known here: {did_you_mean(word, flags)}the flags are {', '.join(sorted(flags))}"
        page = f"locallearn {command} -h" if command else "locallearn --help"
        raise UserError(f"{command}: {message}; see `{page}`" if command else f"{message}; see `{page}`")

    def flags(self) -> list[str]:
        """The long form of every flag that is taken."""
        return [flag for flag in self._option_string_actions if flag.startswith("--") and flag not in ELSEWHERE]

    def format_help(self) -> str:
        return fitted(super().format_help(), columns()) + "\n"

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """The options among the words of a command line. Raises UserError."""
        return self.parse_intermixed_args([home_in(word) for word in words])


def home_in(word: str) -> str:
    """A setting whose value begins with `~`, which only a path does, with the folder that this stands for."""
    key, equals, value = word.partition("=")
    if not equals or not value.startswith("~") or word.startswith("-"):
        return word
    try:
        folder = paths.written(value)
    except UserError as error:
        raise UserError(f"{key}={error}") from None
    return f"{key}={quoted(folder)}"


def path(text: str) -> Path:
    """The type of an argument that is a path."""
    try:
        return paths.expanded(text)
    except UserError as error:  # argparse would hide it, as any ValueError
        raise argparse.ArgumentTypeError(str(error)) from None


def trust(parser: argparse.ArgumentParser) -> None:
    """The flags by which a command may use code of the user's."""
    parser.add_argument(
        "--config-dir", "-cd", type=path, action="append", default=[], metavar="DIR",
        help="a folder of your own yaml files; packages that they name are allowed, and their modules found in it",
    )  # fmt: skip
    parser.add_argument(
        "--allow", action="append", default=[], metavar="PACKAGE", help="a package outside locallearn that may be used"
    )


def of_a_run() -> Parser:
    """The flags of a run, or of a sweep of runs, with -m."""
    parser = Parser("", "", add_help=False, usage=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help=argparse.SUPPRESS)
    on: dict[str, Any] = {"action": "store_true"}
    for names, help_text, options in (
        ("-m --multirun", "a sweep: one run for each combination of values, as in seed=0,1,2", on),
        ("-r --run", "one run (the default)", on),
        ("--dry-run", "show the blocks, and train nothing", on),
        ("-c --cfg", "show the configuration instead of running",
         {"choices": ["job", "hydra", "all"], "metavar": "job"}),
        ("-p --package", "with --cfg: show one part of it, such as optim", {"metavar": "GROUP"}),
        ("--resolve", "with --cfg: replace references by their values", on),
        ("-i --info", "show how Hydra composed the configuration: defaults, ...",
         {"nargs": "?", "const": "all", "choices": INFO, "metavar": "WHAT"}),
        ("-sc --shell-completion", 'completion: eval "$(locallearn -sc install=bash)", or zsh', on),
        ("--version", "show the versions of locallearn and of torch", on),
        ("-h --help", "show this page", on),
    ):  # fmt: skip
        parser.add_argument(*names.split(), help=help_text, **options)
    trust(parser)
    for flag, (short, _) in ELSEWHERE.items():
        parser.add_argument(*filter(None, (flag, short)), nargs="?", const="", dest=flag, help=argparse.SUPPRESS)
    return parser


def check(options: argparse.Namespace) -> None:
    """Raise UserError for flags that a run does not take, and for flags that do not go together."""
    for flag, (_, instead) in ELSEWHERE.items():
        if getattr(options, flag) is not None:
            raise UserError(f"{flag} is not taken: {instead}")
    names = ("multirun", "cfg", "info")
    flags = [f"--{name}" for name in names if getattr(options, name)]
    if len(flags) > 1:
        raise UserError(f"{' and '.join(flags)} exclude each other: leave one out")
    for name, flag in (("resolve", "--resolve"), ("package", f"--package {options.package}")):
        if getattr(options, name) and not options.cfg:
            raise UserError(f"{flag} says how --cfg shows the configuration: write --cfg job {flag}")


def flags(options: Any) -> list[str]:
    """What Hydra itself is asked for, as it takes it."""
    words = ["--multirun"] * options.multirun + ["--resolve"] * options.resolve
    named = {"--cfg": options.cfg, "--package": options.package, "--info": options.info}
    return words + [word for flag, value in named.items() if value is not None for word in (flag, value)]
