"""The one exception that a user's mistake raises: a sentence with the value, the limit and the way out."""

from __future__ import annotations

import difflib
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class UserError(ValueError):
    """A mistake in what the user asked for. The command line prints it as one sentence and exits with code 2."""


class RunError(RuntimeError):
    """A run that had to stop (a non-finite loss, a full disk). The command line prints it and exits with code 1."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`did you mean 'dgl'? ` for a word close to a known one, else an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}? " if close else ""


def unknown(kind: str, word: str, known: Iterable[str]) -> UserError:
    """The error for a name that is not one of the known names of its kind."""
    known = sorted(known)
    return UserError(f"unknown {kind} {word!r}: {did_you_mean(word, known)}choose one of {', '.join(known)}")


def memory_ran_out(error: BaseException) -> str | None:
    """What to say if an exception means that memory ran out; None for any other. PyTorch has a class of its own for
    GPUs, and on the CPU a plain RuntimeError."""
    text = " ".join(str(error).split())
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if not named and "can't allocate memory" not in text and "not enough memory" not in text:
        return None
    asked = re.search(r"tried to allocate ([\d.,]+ ?\w+)", text, re.IGNORECASE)
    wanted = f" (the last request was for {asked[1]})" if asked else ""
    return f"memory ran out{wanted}; lower batch_size, or double micro_batches, which halves what a step holds"


def needs_several_values(error: BaseException) -> bool:
    """Whether a batch norm was given one value of each channel, which has no variance; PyTorch has no class for it."""
    return isinstance(error, ValueError) and "more than 1 value per channel" in str(error)


def printable(text: str) -> str:
    """A text without the characters that a terminal obeys: parts of it may come from the files of a stranger."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def in_one_line(error: Exception) -> str:
    """What an exception says, as one line of at most 300 characters for a warning; its type if it says nothing."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def described(error: BaseException) -> str:
    """An exception that no rule foresaw, in one line: its type, what it says, and the place if that is the user's."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}{': ' if text else ''}{text}{place(error)}"


def place(error: BaseException) -> str:
    """Where in the user's own code an exception came from, as `, in FILE, line N: TEXT`; empty if it did not."""
    if isinstance(error, SyntaxError) and error.filename and _of_the_user(error.filename):
        return f", in {error.filename}, line {error.lineno}: {(error.text or '').strip()}".rstrip(": ")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _of_the_user(frame.filename)]
    return f", in {frames[-1].filename}, line {frames[-1].lineno}: {frames[-1].line}".rstrip(": ") if frames else ""


def _of_the_user(file: str) -> bool:
    """Whether a file is neither ours nor of Python or an installed package."""
    path = Path(file).resolve()
    others = [Path(__file__).resolve().parent, *(Path(sysconfig.get_path(name)).resolve() for name in _INSTALLED)]
    return path.is_file() and "site-packages" not in path.parts and not any(folder in path.parents for folder in others)


_INSTALLED = ("stdlib", "platstdlib", "purelib", "platlib")
