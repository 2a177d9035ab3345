"""What a person sees: a progress bar on a terminal, one plain line per epoch elsewhere, and the closing table.

Everything goes to stdout except warnings. A reader that goes away (`| head`) or a full disk behind stdout only ends the
printing, never the training.
"""

from __future__ import annotations

import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from locallearn import names
from locallearn.errors import printable
from locallearn.figures.text import columns, fitted, put, table

if TYPE_CHECKING:
    from rich.progress import Progress

SPEED_INSIDE = names.on(names.STEP, "images_per_second")
REPORT_SECONDS = 60.0  # without a bar, a line inside an epoch after so long
REFRESH_SECONDS = 0.25  # a refresh of the bar costs about 1 ms
SHORTEST_BAR = 10  # columns; before a bar gets shorter, the least important fact goes
RESULT = (  # title, name, scale and digits of the numbers below those of accuracy
    ("images per second", "images_per_second", 1.0, 0),
    ("peak memory (MiB)", "peak_memory_bytes", 2.0**-20, 1),
    ("parameters", "parameters", 1.0, 0),
    ("auxiliary parameters", "auxiliary_parameters", 1.0, 0),
    ("seconds", "seconds", 1.0, 1),
)
_KEPT = "\u00a0"  # a space at which no line is broken
_FAILURES = (OSError, ValueError)  # a broken pipe or full disk; a closed stream


def warn(text: str, kind: str = "warning") -> None:
    """One line on stderr, if there is one."""
    with suppress(*_FAILURES, AttributeError):
        print(f"{kind}: {printable(text)}", file=sys.stderr, flush=True)


class Console:
    """The screen of one run. `quiet` prints nothing at all, for use from Python."""

    def __init__(self, quiet: bool = False) -> None:
        self._silent = quiet or sys.stdout is None
        self._bar: Progress | None = None
        self._epochs = self._steps_per_epoch = self._last_step = 0
        self._step = self._first_step = self._images = 0
        self._so_far: Callable[[], str] = str
        self._score = names.ACCURACY
        self._inside = ""
        self._started = self._shown = time.monotonic()

    def start(
        self,
        title: str,
        epochs: int,
        steps_per_epoch: int,
        *,
        first_step: int = 0,
        last_step: int | None = None,
        so_far: Callable[[], str] = str,
        score: str = names.ACCURACY,
    ) -> None:
        """Begin to count, after `first_step` steps of a resumed run, up to `last_step` if that is before the end of the
        last epoch. `so_far` says how good the running epoch is, as in "loss 0.412", whenever the bar is drawn; `score`
        is the metric that the run is judged by.
        """
        self._score = score
        self._epochs, self._steps_per_epoch = epochs, steps_per_epoch
        self._last_step = epochs * steps_per_epoch if last_step is None else last_step
        self._step = self._first_step = first_step
        self._images = 0
        self._so_far = so_far
        self._started = self._shown = time.monotonic()
        self.line(title)
        if not self._silent and _is_terminal():
            self._bar = _bar(self._last_step, first_step)
            self._show(self._bar.start)
            self._refresh()

    def advance(self, images: int) -> None:
        """One step is done; about 0.3 us unless the bar is due, so it may be called every step."""
        self._step += 1
        self._images += images
        if self._bar is not None and (now := time.monotonic()) - self._shown >= REFRESH_SECONDS:
            self._shown = now
            self._refresh()

    def record(self, record: Mapping[str, Any]) -> None:
        """One line for a record. One of the last steps goes into the bar; without a bar it has a line once a minute."""
        scores = {metric: names.on(names.STEP, metric) for metric in (names.LOSS, self._score)}
        self._inside = "  ".join(f"{m} {_number(record[name])}" for m, name in scores.items() if name in record)
        silent = self._bar is None and time.monotonic() - self._shown >= REPORT_SECONDS
        if SPEED_INSIDE not in record or silent:
            self.epoch(record)

    def epoch(self, record: Mapping[str, Any]) -> None:
        """One line for a record; `record["epoch"]` counts epochs, with a fraction inside one. What the record lacks is
        left out."""
        self._shown = time.monotonic()
        epoch = record.get("epoch", "?")
        done = f"{epoch:.2f}" if isinstance(epoch, float) else f"{epoch:>{len(str(self._epochs))}}"
        parts = [f"epoch {done}/{self._epochs}"]
        for split, metrics in {
            names.STEP: (names.LOSS, self._score),
            names.TRAIN: (names.LOSS, self._score),
            names.VALIDATION: (self._score,),
            names.TEST: (self._score,),
        }.items():
            values = [_number(record[name]) for m in dict.fromkeys(metrics) if (name := names.on(split, m)) in record]
            parts += [f"{split} {' / '.join(values)}"] if values else []
        blocks = names.by_block(record, self._score, names.TEST) or names.by_block(record, self._score)
        parts += [f"block {' '.join(map(_number, blocks.values()))}"] if blocks else []
        if (speed := record.get("images_per_second", record.get(SPEED_INSIDE))) is not None:
            parts.append(f"{speed:.0f} images/s")
        if self._step < self._last_step:
            parts.append(f"{self._remaining()} left")
        text = fitted("  ".join(part.replace(" ", _KEPT) for part in parts), columns() if _is_terminal() else None)
        self.line(text.replace(_KEPT, " "))
        self._refresh()

    def line(self, text: str) -> None:
        """A line of text as it is, above the bar if there is one."""
        if (bar := self._bar) is not None:
            self._show(lambda: bar.console.print(printable(text), markup=False, highlight=False, soft_wrap=True))
        else:
            self._show(lambda: put(text))

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table below its title; all but the first column to the right."""
        if not self._silent:
            self.line("\n".join(["", title, "", table([columns, *([str(cell) for cell in row] for row in rows)]), ""]))

    def final_table(self, summary: Mapping[str, Any], blocks: int) -> None:
        """The closing table of a run: how good, how fast, how large. What the summary lacks is left out."""
        judged = [names.on(split, self._score) for split in (names.TEST, names.VALIDATION)]
        scores = {names.in_words(name): name for name in judged}
        for k in range(blocks):
            name = names.on(names.TEST, names.at(names.BLOCK, k, self._score))
            scores[f"{names.in_words(judged[0])} at block {k}"] = name
        facts = [*((title, name, 1.0, 4) for title, name in scores.items()), *RESULT]
        rows = [(title, f"{summary[k] * scale:,.{n}f}") for title, k, scale, n in facts if summary.get(k) is not None]
        self.table("result", ("", "value"), rows)

    def stop(self) -> None:
        """Take the bar away and give the cursor back; call it however the run ends. A second call does nothing."""
        if self._bar is not None:
            bar, self._bar = self._bar, None
            self._show(bar.stop)

    def finish(self, path: str | os.PathLike[str]) -> None:
        """The run folder alone on the last line, never wrapped, for scripts to read."""
        self.stop()
        self._show(lambda: put(os.fspath(path)))

    def _refresh(self) -> None:
        if (bar := self._bar) is None:  # there is none, or the screen is gone
            return
        epoch = min(self._step // max(self._steps_per_epoch, 1) + 1, self._epochs)
        facts = [  # the most important first
            f"{100 * self._step // max(self._last_step, 1)}%",
            f"{self._remaining()} left",
            f"step {self._step}/{self._last_step}",
            self._inside or self._so_far(),
            f"epoch {epoch}/{self._epochs}",
            f"{self._images / max(time.monotonic() - self._started, 1e-9):.0f} images/s",
        ]
        shown = _fitting([fact for fact in facts if fact], bar.console.width - SHORTEST_BAR - 1)
        self._show(lambda: bar.update(bar.task_ids[0], completed=self._step, refresh=True, facts=shown))

    def _remaining(self) -> str:
        """Time left at the pace since `start`, evaluations included."""
        done = self._step - self._first_step
        if done <= 0:
            return "?"
        seconds = round((self._last_step - self._step) * (time.monotonic() - self._started) / done)
        hours, minutes, seconds = seconds // 3600, seconds // 60 % 60, seconds % 60
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"

    def _show(self, write: Callable[[], Any]) -> None:
        """Run something that prints; the first failure ends all printing of this run."""
        if self._silent:
            return
        try:
            write()
        except (*_FAILURES, SystemExit):  # rich answers a broken pipe by sys.exit
            self._silent = True
            with suppress(*_FAILURES):  # else Python fails again when it flushes stdout at exit
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, sys.stdout.fileno())
                os.close(nowhere)
            if self._bar is not None:
                with suppress(*_FAILURES, SystemExit):
                    self._bar.stop()  # gives back a stderr that the bar had taken
                self._bar = None


def _bar(total: int, completed: int) -> Progress:
    from rich.console import Console as Screen
    from rich.progress import BarColumn, Progress, TextColumn

    width = shutil.get_terminal_size().columns if "COLUMNS" in os.environ else None  # rich would believe COLUMNS=0
    bar = Progress(
        BarColumn(bar_width=None),
        TextColumn("{task.fields[facts]}", markup=False),
        console=Screen(width=width),
        auto_refresh=False,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=sys.stderr is not None and sys.stderr.isatty(),  # a warning then goes above the bar
    )
    bar.add_task("", total=total, completed=completed, facts="")
    return bar


def _fitting(facts: Sequence[str], columns: int) -> str:
    """As many of the facts, from the first on, as fit into one line."""
    count = next((n for n in range(len(facts), 1, -1) if len("  ".join(facts[:n])) <= columns), 1)
    return "  ".join(facts[:count])


def _is_terminal() -> bool:
    with suppress(*_FAILURES, AttributeError):  # there may be no stdout
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
    return False


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}" if math.isfinite(value) else str(float(value))
