"""The command `sample`: text that a trained language model writes. torch where needed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt

from locallearn import paths
from locallearn.cli.arguments import Parser, trust
from locallearn.config import outside
from locallearn.errors import UserError
from locallearn.options import CommandOptions


@dataclass(frozen=True)
class SampleOptions(CommandOptions):
    """What `locallearn sample` asks beside the run.

    tokens       how many to write
    temperature  below 1, likely tokens become likelier still
    top_k        how many of the likeliest tokens to draw from; 1: always the likeliest
    seed         of the random draws
    block        the block whose head answers, from 0 on; without it the model's own
    """

    tokens: Annotated[int, Ge(1)] = 500
    temperature: Annotated[float, Gt(0)] = 0.8
    top_k: Annotated[int, Ge(1)] = 200
    seed: Annotated[int, Ge(0)] = 1337
    block: Annotated[int, Ge(0)] | None = None


def sample(arguments: list[str]) -> int:
    """`locallearn sample RUN [--prompt TEXT]`; returns the exit code."""
    parser = Parser(
        "sample",
        "Let the language model of a run continue a prompt. The same call writes the same text.",
        f"""\
options (NAME=VALUE):
{SampleOptions.described()}
examples:
  locallearn sample runs/RUN --prompt "ROMEO:"
  locallearn sample runs/RUN tokens=100 top_k=1 block=0   from the head of the first block, always the likeliest""",
    )
    parser.add_argument("words", nargs="+", metavar="RUN|NAME=VALUE", help="the run folder, and options")
    parser.add_argument("--prompt", metavar="TEXT", help="the text to continue (a new line)")
    trust(parser)
    given = parser.read(arguments)
    options, runs = SampleOptions.parse(given.words)
    if len(runs) != 1:
        raise UserError(
            f"sample takes one run folder, such as runs/RUN, and {', '.join(SampleOptions.names())}; "
            f"{f'not {runs[1]!r}' if runs else 'none was given'}"
        )
    from locallearn.training.sample import sample as write

    allow = outside.trusted(given.config_dir, given.allow)
    print(write(paths.expanded(runs[0]), allow, given.prompt, **vars(options)))
    return 0
