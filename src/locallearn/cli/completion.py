"""Completion in the shell: commands, flags, settings, choices, run folders. A mistake in the line completes nothing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from locallearn.cli import on_runs
from locallearn.cli.arguments import of_a_run
from locallearn.cli.commands import COMMANDS
from locallearn.config.registry import APPENDED, choices, known_keys
from locallearn.config.settings import GROUPS
from locallearn.errors import UserError

SHELLS = ("bash", "zsh")
BASH = """\
_locallearn() {
    local line="${COMP_LINE:0:$COMP_POINT}" found
    local IFS=$'\\n'
    found=($(COMP_LINE="$line" "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null))
    local typed="${line##* }" cut=""
    case "$typed" in *[=:]*) cut="${typed%"${COMP_WORDS[COMP_CWORD]#=}"}" ;; esac
    COMPREPLY=("${found[@]#"$cut"}")
    [[ ${#COMPREPLY[@]} -eq 1 && "${COMPREPLY[0]}" == *[=./] ]] && compopt -o nospace 2>/dev/null
    return 0
}
complete -o default -F _locallearn locallearn"""
ZSH = f"autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n{BASH}"


def run(words: Sequence[str]) -> int:
    """`locallearn -sc install=bash`, `uninstall=bash`, and `query=bash`, which the shell asks with COMP_LINE set."""
    what, _, shell = (words or ["install=bash"])[0].partition("=")
    if what == "query":
        try:
            print("\n".join(suggestions(os.environ.get("COMP_LINE", ""))))
        except Exception:  # half a line may be anything, and nothing may be printed into the prompt
            return 0
    elif what not in ("install", "uninstall") or shell not in SHELLS:
        raise UserError(f"-sc {' '.join(words)}: write -sc install=SHELL or uninstall=SHELL, with bash or zsh as SHELL")
    elif what == "install":
        print(ZSH if shell == "zsh" else BASH)
    else:
        print("complete -r locallearn; unset -f _locallearn")
    return 0


def suggestions(line: str) -> list[str]:
    """What may stand in place of the last word of a line, which begins with the name of the program."""
    words = line.split()
    last = words.pop() if words and not line[-1:].isspace() else ""
    before = words[1:] if words else []
    command = next((word for word in before if word in COMMANDS), None)
    dirs = [Path(value) for flag, value in pairwise(before) if flag in ("--config-dir", "-cd")]
    if before[-1:] and before[-1] in ("--config-dir", "-cd", "--to", "--allow"):
        return []  # folders, by the shell itself
    candidates: list[str] = []
    if last.startswith("-"):
        candidates = of_a_run().flags()
    elif command == "list":
        group = next((word for word in before if word in GROUPS or word in APPENDED), None)
        candidates = list(choices(group, dirs)) if group else [*GROUPS, *APPENDED]
    elif command == "study":
        candidates = list(choices("study", dirs) | choices("experiment", dirs))
    elif command in on_runs.COMMANDS and "=" not in last:
        candidates = list(_folders(last))
    else:
        candidates = list(_settings(last, before, dirs))
        candidates += [] if command or any("=" in word for word in before) else COMMANDS
    return sorted(word for word in dict.fromkeys(candidates) if word.startswith(last))


def _settings(last: str, before: Sequence[str], dirs: Sequence[Path]) -> Iterator[str]:
    """Keys with their `=`, and the choices of a group after it, also after a comma."""
    key, equals, value = last.partition("=")
    group = key.lstrip("+")
    if equals and (group in GROUPS or group in APPENDED):
        head = value[: max(value.rfind(","), value.rfind("[")) + 1]
        yield from (f"{key}={head}{name}" for name in choices(group, dirs))
    elif not equals:
        yield from (f"+{name}=" for name in APPENDED)
        keys = known_keys(before, dirs)
        yield from (f"{name}=" for name in keys if not any(other.startswith(f"{name}.") for other in keys)
                    or name in GROUPS)  # fmt: skip


def _folders(last: str) -> Iterator[str]:
    """Run folders, and folders on the way to them."""
    place = Path(os.path.expanduser(last[: last.rfind("/") + 1] or "."))
    head = last[: last.rfind("/") + 1]
    for folder in sorted(path for path in place.iterdir() if path.is_dir() and not path.name.startswith(".")):
        is_run = (folder / "status.json").is_file()
        if is_run or any(re.match(r"[^.]", path.name) and path.is_dir() for path in folder.iterdir()):
            yield f"{head}{folder.name}" + ("" if is_run else "/")
    if not head and Path("runs").is_dir():
        yield from _folders("runs/")
