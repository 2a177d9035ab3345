"""What there is to choose: the help page, the choices of every group, and which pairs of them work."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from locallearn.compose import APPENDED, choices, compose, conf_dir, header
from locallearn.config.settings import GROUPS
from locallearn.errors import UserError, unknown

PLURALS = {"strategies": "strategy", "auxiliaries": "auxiliary", **{g + "s": g for g in (*GROUPS, *APPENDED)}}


def help_page(commands: Mapping[str, str]) -> int:
    """`--help`: usage, commands, the choices of each group, and every top-level setting with its comment."""
    width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns))
    print("Local learning and decoupled training of neural networks.\n")
    print("  python -m locallearn strategy=dgl model=vgg16            one run")
    print("  python -m locallearn -m strategy=backprop,dgl seed=0,1   a sweep")
    print("  python -m locallearn model=vgg16 blocks=4 --dry-run      the blocks, without training\n")
    print("Commands")
    for name, text in commands.items():
        print(f"  {name:<10} {text}")
    print("\nGroups (GROUP=NAME; `locallearn list GROUP` describes each)")
    for group in GROUPS:
        names = ", ".join(choices(group))
        print(textwrap.fill(f"{group:<10} {names}", width, initial_indent="  ", subsequent_indent=" " * 13))
    print("\nSettings (KEY=VALUE), with their defaults")
    text = (conf_dir() / "config.yaml").read_text()
    for line in text[text.index("seed:") : text.index("hydra:\n")].rstrip().splitlines():
        print(f"  {line}")
    print("\nFlags: -m (sweep), --dry-run, --config-dir DIR (your own yaml files), --cfg job (show the configuration),")
    print("       --hydra-help (Hydra's own flags)")
    return 0


def show(group: str | None, config_dirs: Sequence[Path] = ()) -> int:
    """A line for each choice of a group, or of all, with route and paper. Raises UserError."""
    groups = (*GROUPS, *APPENDED)
    wanted = PLURALS.get(group or "", group)
    if wanted and wanted not in groups:
        raise unknown("group", wanted, [*groups, "strategies"])
    for each in [wanted] if wanted else groups:
        print(f"+{each}=" if each in APPENDED else f"{each}=")
        found = {name: header(file) for name, file in choices(each, config_dirs).items()}
        longest = max(map(len, found), default=0)
        for name, facts in found.items():
            notes = [f"route {facts['route']}"] if "route" in facts else []
            notes += [f"keeps: {facts['keeps']}"] if "keeps" in facts else []
            if each in APPENDED:
                notes.append(_state(name, facts))
            notes += [facts[key] for key in ("paper", "source") if key in facts]
            print(f"  {name:<{longest}}  {facts['summary']}" + (f"  [{'; '.join(notes)}]" if notes else ""))
    return 0


def _state(name: str, facts: Mapping[str, str]) -> str:
    """What an experiment has reached here, or what its short form has kept of it."""
    if "reached" in facts:
        return f"reached {facts['reached']}"
    short = choices("short").get(name)
    said = header(short) if short else {}
    return f"not yet run in full; +short={name} keeps: {said['keeps']}" if "reached" in said else "not yet run"


def matrix(config_dirs: Sequence[Path]) -> int:
    """The table of strategies and models."""
    from locallearn.config import matrix as found

    if config_dirs:
        raise UserError("list --matrix shows the strategies and models of locallearn; leave --config-dir out")
    config, _ = compose(["auxiliary=linear"])
    print(found.matrix(choices("strategy"), choices("model"), config).render())
    return 0
