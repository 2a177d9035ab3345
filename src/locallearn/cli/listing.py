"""What there is to choose: the help page, the choices of every group, and which pairs of them work."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from locallearn import __version__
from locallearn.cli.arguments import of_a_run
from locallearn.config.compose import compose
from locallearn.config.registry import APPENDED, choices, conf_dir, header, options
from locallearn.config.settings import GROUPS, SEVERAL
from locallearn.errors import UserError, unknown
from locallearn.figures.text import columns, fitted
from locallearn.options import alternatives, described, with_rules

LISTED = (*GROUPS, *APPENDED, "study")
COMMAND_OF = {"study": "locallearn study ", **{name: f"+{name}=" for name in APPENDED}}
"""How a choice is written that is not GROUP=NAME."""
PLURALS = {"strategies": "strategy", "auxiliaries": "auxiliary", "studies": "study", **{g + "s": g for g in LISTED}}


EXAMPLES = """\
  locallearn                             the default run: DGL on VGG-16 and digits
  locallearn strategy=dgl model=vgg16    one run; also: python -m locallearn ...
  locallearn -m strategy=dgl seed=0,1    a sweep
  locallearn blocks=4 --dry-run          the blocks, without training
"""


def version() -> int:
    """`--version`"""
    print(f"locallearn {__version__}, torch {metadata.version('torch')}, python {sys.version.split()[0]}")
    return 0


def help_page(commands: Mapping[str, str]) -> int:
    """`--help`: usage, commands, the choices of each group, and every top-level setting with its comment."""
    print("Local learning and decoupled training of neural networks.\n")
    _print(EXAMPLES)
    print("Commands (`locallearn COMMAND -h` explains each)")
    for name, text in commands.items():
        _print(f"  {name:<11}  {text}")
    _print("\nGroups (GROUP=NAME; `locallearn list GROUP` describes each, `locallearn list GROUP NAME` its options)")
    for group in GROUPS:
        names = ", ".join(choices(group))
        print(fitted(f"  {group:<11}  {names}", columns() or 100))
    print("\nSettings (KEY=VALUE), with their defaults")
    text = (conf_dir() / "config.yaml").read_text(encoding="utf-8")
    for line in text[text.index("seed:") : text.index("hydra:\n")].rstrip().splitlines():
        _print(f"  {line}")
    print(f"\nFlags\n{of_a_run().format_help().partition('options:')[2].strip(chr(10))}")
    _print("Flags, settings and the name of a command may come in any order.")
    return 0


def _print(text: str) -> None:
    print(fitted(text, columns()))


def show(
    group: str | None, name: str | None = None, config_dirs: Sequence[Path] = (), allow: Sequence[str] = ()
) -> int:
    """A line for each choice of a group, or of all, with route and paper; or everything about one. Raises UserError."""
    wanted = PLURALS.get(group or "", group)
    if wanted and wanted not in LISTED:
        if homes := [each for each in LISTED if wanted in choices(each, config_dirs)]:
            asked = " or ".join(f"`locallearn list {each} {wanted}`" for each in homes)
            raise UserError(f"{wanted!r} is not a group but a choice of {' and '.join(homes)}: {asked}")
        raise unknown("group", wanted, LISTED)
    if wanted and name:
        return _one(wanted, name, config_dirs, allow)
    for each in [wanted] if wanted else LISTED:
        print(COMMAND_OF.get(each, f"{each}=").rstrip())
        headers = {name: header(file) for name, file in choices(each, config_dirs).items()}
        longest = max(map(len, headers), default=0)
        for name, facts in headers.items():
            notes = [f"route {facts['route']}"] if "route" in facts else []
            notes += [f"keeps: {facts['keeps']}"] if "keeps" in facts else []
            if each in APPENDED:
                notes.append(_state(name, facts))
            notes += [facts[key] for key in ("paper", "source") if key in facts]
            _print(f"  {name:<{longest}}  {facts['summary']}" + (f" [{'; '.join(notes)}]" if notes else ""))
    return 0


def _one(group: str, name: str, config_dirs: Sequence[Path], allow: Sequence[str]) -> int:
    """One choice: what its file says of it, and its options, each with its default, what it means and its range."""
    files = choices(group, config_dirs)
    if name not in files:
        raise unknown(group, name, files)
    lines = [line for line in files[name].read_text(encoding="utf-8").splitlines() if not line.startswith("# @package")]
    head = list(itertools.takewhile(lambda line: line.startswith("#"), lines))
    body = [line for line in lines[len(head) :] if not line.lstrip().startswith("_target_:")]
    appended = group in (*APPENDED, "study")
    print(f"{COMMAND_OF.get(group, group + '=')}{name}")
    for line in head:
        _print(f"  {line.removeprefix('#').removeprefix(' ')}")
    if appended:
        print("\nWhat it sets")
    elif options(group, name, files[name]):
        prefix = f"{group}.{name}" if group in SEVERAL else group
        print(f"\nOptions, with their defaults: {prefix}.OPTION=VALUE")
    else:
        print("\nIt has no options.")
    for line in body if appended else _with_ranges(body, _ranges(group, files[name], allow)):
        _print(f"  {line}".rstrip())
    return 0


def _ranges(group: str, file: Path, allow: Sequence[str]) -> dict[str, Any]:
    """The annotations of the options of a choice that say more than a type."""
    if group == "record":
        from locallearn.config.record import WandbSettings

        if file.parent == conf_dir() / "record":
            return with_rules(WandbSettings)
    from locallearn.config.targets import resolve

    content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    group, content = (f"record.{file.stem}", content.get(file.stem) or {}) if group == "record" else (group, content)
    target = content.get("_target_")
    return with_rules(resolve(target, group, allow)) if target else {}


def _with_ranges(lines: Sequence[str], ranges: Mapping[str, Any]) -> Iterator[str]:
    """The lines of a yaml, with the range of each option at the end of its comment, unless that says it already."""
    for start, line in enumerate(lines):
        if line.lstrip().startswith("#"):
            continue
        text = [line, *itertools.takewhile(lambda more: more.lstrip().startswith("#"), lines[start + 1 :])]
        comment = " ".join(text).partition("#")[2]
        hint = ranges.get(line.partition(":")[0].strip())
        if hint and not all(word in comment for word in alternatives(hint) if word != "null"):
            text[-1] += f"{';' if comment else '  #'} {described(hint)}"
        yield from text


def _state(name: str, facts: Mapping[str, str]) -> str:
    """What an experiment has reached here, or what its short form has kept of it."""
    if "reached" in facts:
        return f"reached {facts['reached']}"
    short = choices("short").get(name)
    kept = header(short) if short else {}
    return f"not yet run in full; +short={name} keeps: {kept['keeps']}" if "reached" in kept else "not yet run"


def matrix(config_dirs: Sequence[Path]) -> int:
    """The table of strategies and models."""
    from locallearn.config.matrix import matrix as pairs

    if config_dirs:
        raise UserError("list --matrix shows the strategies and models of locallearn; leave --config-dir out")
    config, _ = compose(["auxiliary=linear"])
    print(pairs(choices("strategy"), choices("model"), config).render(columns()))
    return 0
