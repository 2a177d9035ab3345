"""The command `tasks`: how far data sets are apart as tasks of one trained net. torch where needed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt

from locallearn import paths
from locallearn.cli.arguments import Parser, path, trust
from locallearn.cli.on_runs import only
from locallearn.cli.reports import WIDE, write
from locallearn.config import outside
from locallearn.config.compose import combinations, compose
from locallearn.errors import UserError
from locallearn.figures.text import columns, put, table
from locallearn.options import CommandOptions

if TYPE_CHECKING:
    from locallearn.training.task_vectors import ComparedTasks

ONLY_WITH = {"beta": "--information", "steps": "--information", "labels": "--expert RUN"}
"""Options that are read only beside another word."""


@dataclass(frozen=True)
class TasksOptions(CommandOptions):
    """What `locallearn tasks` asks beside the run and the sets.

    samples      training samples of each task, balanced over its classes
    seed         of the drawn labels, and of the nets that are trained
    labels       of the target task, to which new heads of experts are fitted
    beta         the price of a nat of the weights in --information, where the loss is a sum over samples
    steps        of training for each of these nets
    """

    samples: Annotated[int, Ge(2)] = 512
    seed: Annotated[int, Ge(0)] = 0
    labels: Annotated[int, Ge(2)] = 100
    beta: Annotated[float, Gt(0)] = 0.1
    steps: Annotated[int, Ge(1)] = 2000


def tasks(arguments: list[str]) -> int:
    """`locallearn tasks RUN data=a,b,c`; returns the exit code."""
    parser = Parser(
        "tasks",
        "How far apart data sets are as tasks (Task2Vec): each is embedded by the frozen net of a run.",
        f"""\
options (NAME=VALUE):
{TasksOptions.described()}
settings (KEY=VALUE):
  data=NAME,NAME, data.OPTION=VALUE,VALUE   the sets; with several values every combination is a task, as with -m

examples:
  locallearn tasks runs/RUN data=digits data.deficit=null,flip,permutation --to tasks
  locallearn tasks runs/RUN data=digits data.label_noise=0,1 --information steps=500
  locallearn tasks runs/RUN data=mnist,fashion_mnist --expert runs/A --expert runs/B""",
    )
    parser.add_argument("words", nargs="+", metavar="RUN|KEY=VALUE", help="the run folder, sets, and options")
    parser.add_argument(
        "--expert", type=path, action="append", default=[], metavar="RUN",
        help="a finished run that may be the best start for each of the tasks; give several",
    )  # fmt: skip
    parser.add_argument(
        "--information", action="store_true",
        help="also I(D1 D2; w) - I(D1; w), the distance by definition: trains n (n + 1) / 2 nets with noisy weights",
    )  # fmt: skip
    parser.add_argument("--to", type=path, metavar="DIR", help="write the distances as CSV and the picture here")
    trust(parser)
    given = parser.read(arguments)
    options, words = TasksOptions.parse(given.words)
    named = {word.partition("=")[0] for word in given.words}
    lacking = {"--information": not given.information, "--expert RUN": not given.expert}
    if idle := next((name for name, other in ONLY_WITH.items() if name in named and lacking[other]), None):
        raise UserError(f"{idle} is read only with {ONLY_WITH[idle]}: add that, or leave {idle} out")
    runs = [word for word in words if "=" not in word or paths.expanded(word).exists()]
    settings = [word for word in words if word not in runs]
    if len(runs) != 1:
        raise UserError(f"tasks takes one run folder, {f'not {runs[1]!r}' if runs else 'such as runs/RUN'}")
    only(settings, r"\+?data[.=]", "tasks RUN", "data, such as data=mnist,fashion_mnist")
    allow = outside.trusted(given.config_dir, given.allow)
    sets = {_short(differs): compose(one, given.config_dir)[0]["data"] for one, differs in combinations(settings)}
    _check(settings, len(sets))
    from locallearn.training.task_vectors import NOT_READ, compare_tasks

    if unread := [s for s in settings if s.lstrip("+").partition("=")[0].removeprefix("data.") in NOT_READ]:
        raise UserError(f"{unread[0]} says how to train on a set, but tasks trains on none: leave it out")
    found = compare_tasks(paths.expanded(runs[0]), sets, allow, given.expert, given.information, **vars(options))
    for text in _pages(found, columns() or WIDE):
        put(text + "\n")
    if given.to is not None:
        from locallearn.figures.tasks import draw

        figure = draw(found.names, found.symmetric.tolist(), [float(e.sum()) for e in found.embeddings])
        write(given.to, {"tasks.csv": _csv(found)}, {"tasks": figure})
    return 0


def _short(differs: str) -> str:
    """The name of a task: what it does not share with the others."""
    return " ".join(word.removeprefix("data=").removeprefix("data.") for word in differs.split())


def _check(settings: Sequence[str], count: int) -> None:
    names = [setting.lstrip("+").partition("=")[0] for setting in settings]
    if "data" not in names:
        raise UserError("tasks needs the names of the sets, as in data=mnist,fashion_mnist")
    if count < 2:
        raise UserError("tasks compares at least two sets, but one was given: data=mnist,fashion_mnist, or one set "
                        "under several options, such as data.deficit=null,flip")  # fmt: skip


def _pages(found: ComparedTasks, width: int) -> Iterator[str]:
    """The tables, of which each says what it holds."""
    names = found.names
    yield f"{found.samples} samples of each task, {len(found.embeddings[0])} filters"
    sizes = [f"{float(e.sum()):.3g}" for e in found.embeddings]
    yield table([["task", "norm (nats²)"], *map(list, zip(names, sizes, strict=True))], width)
    kinds = {"symmetric distance": found.symmetric, "asymmetric distance, from the row to the column": found.asymmetric}
    for title, values in kinds.items():
        yield _matrix(title, names, values.tolist(), width, ".4f")
    if (by_definition := found.information) is not None:
        bits = 1 / math.log(2)
        head = ["task", "body (bits)", "head (bits)", "training loss (nats)"]
        rows = [
            [name, f"{own.body * bits:.1f}", f"{own.heads * bits:.1f}", f"{own.loss:.3f}"]
            for name, own in zip(names, by_definition.alone, strict=True)
        ]
        yield "I(D; w)\n" + table([head, *rows], width)
        away = (by_definition.away * bits).tolist()
        yield _matrix("I(D1 D2; w) - I(D1; w) in bits, from the row to the column", names, away, width, ".1f")
    for name, e in found.experts.items():
        rows = [[run, f"{e.distance[run]:.4f}", f"{100 * e.accuracy[run]:.1f}"] for run in e.distance]
        mean = sum(e.accuracy.values()) / len(e.accuracy)
        yield (
            f"experts for {name}: chosen {e.chosen} ({100 * e.accuracy[e.chosen]:.1f} %), best {e.best} "
            f"({100 * e.accuracy[e.best]:.1f} %), mean {100 * mean:.1f} %, chance {100 * e.chance:.1f} %, "
            f"error {100 * e.excess:.0f} % above the best\n"
            + table([["run", "distance", "accuracy (%)"], *rows], width)
        )


def _matrix(title: str, names: Sequence[str], values: Sequence[Sequence[float]], width: int, digits: str) -> str:
    rows = [[name, *(f"{value:{digits}}" for value in row)] for name, row in zip(names, values, strict=True)]
    return f"{title}\n" + table([["", *names], *rows], width)


def _csv(found: ComparedTasks) -> str:
    """A line for each pair."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    kinds = {"symmetric": found.symmetric, "asymmetric": found.asymmetric}
    if found.information is not None:
        kinds["information_bits"] = found.information.away / math.log(2)
    writer.writerow(["from", "to", *kinds])
    for i, one in enumerate(found.names):
        for j, other in enumerate(found.names):
            writer.writerow([one, other, *(f"{float(values[i, j]):.6g}" for values in kinds.values())])
    return out.getvalue()
