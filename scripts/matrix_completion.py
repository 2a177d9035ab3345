"""A critical period in the completion of a matrix: python scripts/matrix_completion.py [--to docs].

A product of matrices learns the entries that it sees of one matrix, and later of another (Kleinman, Achille & Soatto
2024): how well does it fill in the second one, by when it changed over, and by how many matrices there are? Writes
DIR/matrix-completion.md, its numbers and its picture; 20 to 40 minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from locallearn.analysis.deep_linear import complete
from locallearn.figures import COLOURS, panels, save
from locallearn.studies.analysis import deviation, spread, table
from locallearn.studies.page import machine

ROOT = Path(__file__).resolve().parents[1]
SIZE, SEEN = 100, 2000
RANKS = (10, 5)  # of the first matrix and of the second
DEPTHS = (2, 3, 4)
START, RATE = 1e-3, 0.2
SWITCHES = (0, 1000, 3000, 10_000, 30_000, 100_000)
AFTER = 30_000
EVERY = 1000
SEEDS = (0, 1, 2)
SHOWN = 3  # matrices, of the curves


def begun(depth: int, random: torch.Generator) -> list[Tensor]:
    """Factors of a product whose entries are about START."""
    each = START ** (1 / depth) / SIZE**0.5
    return [each * torch.randn(SIZE, SIZE, generator=random) for _ in range(depth)]


def drawn(rank: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A matrix of this rank whose entries have a mean square of 1, and which of them are seen."""
    matrix = torch.randn(SIZE, rank, generator=random) @ torch.randn(rank, SIZE, generator=random)
    seen = torch.zeros(SIZE * SIZE, dtype=torch.bool)
    seen[torch.randperm(SIZE * SIZE, generator=random)[:SEEN]] = True
    return matrix / matrix.square().mean().sqrt(), seen.view(SIZE, SIZE)


def filled(factors: list[Tensor], matrix: Tensor, seen: Tensor) -> float:
    """The mean squared error of the entries that are not seen."""
    product = torch.linalg.multi_dot(factors)
    return float((product - matrix)[~seen].square().mean())


def learned(depth: int, seed: int) -> dict[str, list[float]]:
    """Errors on unseen entries of the second matrix, from the change on, by when that was."""
    random = torch.Generator().manual_seed(1000 * depth + seed)
    (first, seen_first), (second, seen) = (drawn(rank, random) for rank in RANKS)
    factors, step = begun(depth, random), 0
    found = {}
    for switch in SWITCHES:
        complete(factors, first, seen_first, rate=RATE, steps=switch - step)
        step, own = switch, [w.clone() for w in factors]
        errors = [filled(own, second, seen)]
        for _ in range(AFTER // EVERY):
            complete(own, second, seen, rate=RATE, steps=EVERY)
            errors.append(filled(own, second, seen))
        found[str(switch)] = errors
    return found


def measured() -> dict[str, Any]:
    """All numbers of the page: errors by depth, seed, change and look."""
    return {"machine": machine(), "errors": {str(d): [learned(d, seed) for seed in SEEDS] for d in DEPTHS}}


def last(numbers: dict[str, Any], depth: int, switch: int) -> list[float]:
    """The error at the end of each seed."""
    return [runs[str(switch)][-1] for runs in numbers["errors"][str(depth)]]


def draw(numbers: dict[str, Any]) -> Any:
    figure, (end, course) = panels(2)
    at = [max(switch, SWITCHES[1] / 3) for switch in SWITCHES]  # the axis has no zero
    for depth, colour in zip(DEPTHS, COLOURS, strict=False):
        values = [last(numbers, depth, switch) for switch in SWITCHES]
        middle, around = [fmean(v) for v in values], [deviation(v) for v in values]
        end.errorbar(at, middle, around, color=colour, marker="o", ms=3, label=f"{depth} matrices")
    end.set(xscale="log", xlabel="step of the change", ylabel="error on unseen entries")
    end.set_xticks(at, ["0", *(f"{switch / 1000:g}k" for switch in SWITCHES[1:])])
    end.set_title(f"{AFTER:,} steps after the change")
    for switch, colour in zip(SWITCHES, COLOURS, strict=False):
        for k, runs in enumerate(numbers["errors"][str(SHOWN)]):
            steps = [look * EVERY for look in range(len(runs[str(switch)]))]
            label = f"change at {switch:,}" if k == 0 else None
            course.plot(steps, runs[str(switch)], color=colour, lw=1, label=label)
    course.set(yscale="log", xlabel="steps after the change", ylabel="error on unseen entries")
    course.set_title(f"{SHOWN} matrices, each seed")
    for axes in (end, course):
        axes.legend()
    return figure


def page(numbers: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    yield from f"""# Completing a matrix

    python scripts/matrix_completion.py

A product of {SIZE} x {SIZE} matrices learns {SEEN:,} of the {SIZE**2:,} entries of a matrix of rank {RANKS[0]}, and,
after some steps, as many entries of another one, of rank {RANKS[1]}. What counts are the entries of the second that it
never sees. A product that begins small prefers a low rank, and so fills them in (Arora et al. 2019); does one still do
so that has learned something else before? Published by Kleinman, Achille & Soatto 2024: the later the change, the
larger the error that is left, and the deeper the product, the more. The settings are theirs as far as they are known:
gradient descent at a rate of {RATE:g} on the mean squared error of the seen entries, entries of the product that begin
at about {START:g}, {AFTER:,} steps after the change. Ours: entries of both matrices have a mean square of 1, and which
ones are seen is drawn anew for the second. An error of 1 is that of a matrix of zeros.

![Error on unseen entries by the step of the change, and over the steps after it](images/matrix_completion.svg)

Mean and standard deviation of {len(SEEDS)} seeds, by the step of the change:
""".splitlines()
    yield ""
    rows = [[depth, *(spread(last(numbers, depth, switch), 4) for switch in SWITCHES)] for depth in DEPTHS]
    yield from table(["matrices", *(f"{switch:,}" for switch in SWITCHES)], rows)
    yield ""
    yield from told(numbers)
    yield f"\n{numbers['machine']}; every number is in `images/matrix_completion.json`."


def told(numbers: dict[str, Any]) -> Iterator[str]:
    """What agrees with the paper, and what does not."""
    first, final = SWITCHES[0], SWITCHES[-1]
    for depth in DEPTHS:
        early, late = last(numbers, depth, first), last(numbers, depth, final)
        worse = all(b > a for a, b in zip(early, late, strict=True))
        verdict = "agrees" if worse else "**differs**"
        yield (
            f"- {verdict}: with {depth} matrices a change at {final:,} leaves a larger error than one at {first}, in "
            f"every seed: {fmean(late):.4f} against {fmean(early):.4f}."
        )
    lost = [fmean(last(numbers, d, final)) - fmean(last(numbers, d, first)) for d in DEPTHS]
    verdict = "agrees" if lost == sorted(lost) else "**differs**"
    each = ", ".join(f"{x:.4f} with {d} matrices" for d, x in zip(DEPTHS, lost, strict=True))
    yield f"- {verdict}: the deeper, the more is lost: {each}."


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "docs", metavar="DIR", help="where page and picture go")
    to = parser.parse_args().to
    torch.set_num_threads(1)
    numbers = measured()
    save(draw(numbers), to / "images" / "matrix_completion")
    (to / "images" / "matrix_completion.json").write_text(json.dumps(numbers) + "\n")
    (to / "matrix-completion.md").write_text("\n".join(page(numbers)) + "\n")
    print(to / "matrix-completion.md")


if __name__ == "__main__":
    main()
