"""How products of matrices learn, and what other feedback makes of it: python scripts/deep_linear.py [--to docs].

Nets of the zoo on a task whose solution is known in closed form (`analysis.deep_linear`), in float64: the strength of
each mode over the steps, under backpropagation, fa, dfa and dgl; then two paths that compete, one of them off for a
while. Writes DIR/deep-linear.md, its numbers and its pictures; about two minutes.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import locallearn
from locallearn.analysis.deep_linear import pathways, strengths
from locallearn.figures import COLOURS, panels, save
from locallearn.studies.analysis import listed, markdown_table
from locallearn.studies.page import machine

ROOT = Path(__file__).resolve().parents[1]
MODES = (2.0, 1.0, 0.5)
SIZE, SAMPLES = 4, 16
START, RATE, STEPS, EVERY = 0.02, 4e-3, 4000, 50
RULES = {"backprop": {}, "fa": {}, "dfa": {}, "dgl": {"auxiliary": "linear"}}
DEPTHS = (1, 2, 3, 4)
OFF = 150  # units of time that the first path is off
ONSETS = (0, 30, 400, 750)
ALL_ONSETS = (0, 10, 20, 30, 50, 75, 100, 150, 200, 300, 400, 500, 600, 750)
WHOLE = 1000
PATH_START = 0.1
EULER, LOOK = 0.05, 20


def task() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Whitened inputs [16, 4], targets [16, 3], and the singular vectors [3, 3] and [4, 4] of the map between them,
    which takes the last of these to zero."""
    rng = np.random.default_rng(0)
    left = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    right = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    x = math.sqrt(SAMPLES) * np.linalg.qr(rng.normal(size=(SAMPLES, SIZE)))[0]
    return x, x @ (left @ np.diag(MODES) @ right[:, :3].T).T, left, right


def begun(weights: list[torch.Tensor], balanced: bool) -> None:
    """Initialise a product of matrices along the modes (`balanced`), or at random and as small."""
    _, _, left, right = task()
    each, draws = START ** (1 / len(weights)), np.random.default_rng(1)
    for k, w in enumerate(weights):
        value = each * np.eye(*w.shape) if balanced else each / math.sqrt(SIZE) * draws.normal(size=w.shape)
        if balanced and k == 0:
            value = value @ right.T
        if balanced and k == len(weights) - 1:
            value = left @ value
        with torch.no_grad():
            w.copy_(torch.tensor(value))


def learned(strategy: str, matrices: int, balanced: bool) -> list[list[float]]:
    """The strength of each mode [look][mode] in a net of `matrices` matrices, from the start on."""
    x, y, left, right = task()
    options: dict[str, Any] = {
        "model.width": SIZE, "model.depth": matrices - 1, "model.activation": "identity", "model.bias": False,
        "model.batch_norm": False, "optim.schedule": "constant", "optim.momentum": 0.0,
        "optim.lr": RATE * 3 / 2,  # the loss is the mean over 3 outputs of the squares, the equation has half their sum
    }  # fmt: skip
    learner = locallearn.build(
        strategy, "mlp", image=(SIZE,), classes=3, task="regression", steps=STEPS + 1, precision="fp64", blocks="max",
        optim="sgd", **RULES[strategy], **options,
    )  # fmt: skip
    weights = list(learner.model.parameters())
    begun(weights, balanced)
    inputs, targets = torch.tensor(x), torch.tensor(y)
    looks = []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            product = torch.linalg.multi_dot([w.detach() for w in reversed(weights)]).numpy()
            looks.append(np.diag(left.T @ product @ right[:, :3]).tolist())
        learner.step(inputs, targets)
    return looks


def descended(depth: int, onset: float) -> list[list[float]]:
    """The strengths of both paths [look][path] of a mode of strength 1 by gradient descent on the matrices, of which
    the first path is off from `onset` on."""
    paths = [[torch.eye(2, dtype=torch.float64).mul(PATH_START).requires_grad_() for _ in range(depth)] for _ in "ab"]
    looks = []
    for step in range(round(WHOLE / EULER)):
        on = (not onset <= step * EULER < onset + OFF, True)
        products = [torch.linalg.multi_dot(path) for path in paths]
        if step % round(LOOK / EULER) == 0:
            looks.append([float(product.detach()[0, 0]) for product in products])
        error = torch.eye(2, dtype=torch.float64) - sum(p for p, is_on in zip(products, on, strict=True) if is_on)
        heard = [w for path, is_on in zip(paths, on, strict=True) if is_on for w in path]
        grads = torch.autograd.grad(error.square().sum() / 2, heard)
        with torch.no_grad():
            for w, grad in zip(heard, grads, strict=True):
                w -= EULER * grad
    return looks


def measured() -> dict[str, Any]:
    """All numbers of the page."""
    times = [k * EVERY * RATE for k in range(STEPS // EVERY + 1)]
    looks = [k * LOOK for k in range(WHOLE // LOOK)]
    return {
        "machine": machine(),
        "times": times,
        "balanced": {str(n): learned("backprop", n, True) for n in (2, 3)},
        "exact": {str(n): [strengths(s, START, times, n) for s in MODES] for n in (2, 3)},
        "random": {rule: learned(rule, 3, False) for rule in RULES},
        "looks": looks,
        "paths": {str(onset): descended(4, onset) for onset in ONSETS},
        "curves": {str(onset): pathways(1, PATH_START, looks, 4, (onset, onset + OFF)) for onset in ONSETS},
        "final": {
            str(d): [pathways(1, PATH_START, [WHOLE], d, (onset, onset + OFF))[0][0] for onset in ALL_ONSETS]
            for d in DEPTHS
        },
    }


def draw(numbers: dict[str, Any]) -> dict[str, Any]:
    """The pictures, by name."""
    times = numbers["times"]
    modes, axes = panels(3, 2)
    shown = {f"{n} matrices, balanced start": (n, looks) for n, looks in numbers["balanced"].items()}
    shown |= {f"{rule}, 3 matrices, random start": ("3", looks) for rule, looks in numbers["random"].items()}
    for axis, (title, (n, looks)) in zip(axes, shown.items(), strict=True):
        for k, (s, colour) in enumerate(zip(MODES, COLOURS, strict=False)):
            axis.plot(times, numbers["exact"][n][k], color="#999999", lw=0.9, label=None if k else "closed form")
            axis.plot(times[::2], [look[k] for look in looks[::2]], ".", ms=3, color=colour, label=f"s = {s:g}")
        axis.set(xlabel="time (steps x rate)", title=title, ylabel="strength of the mode")
    axes[2].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    paths, (course, final) = panels(2)
    for onset, colour, width in zip(numbers["curves"], COLOURS, (2.8, 1, 2.2, 1), strict=False):  # some coincide
        label = f"off from {onset}"
        course.plot(numbers["looks"], numbers["curves"][onset][0], color=colour, lw=width, label=label)
        course.plot(numbers["looks"], [look[0] for look in numbers["paths"][onset]], ".", ms=2, color=colour)
    course.set(xlabel="time (steps x rate)", ylabel="strength of the first path", title="4 matrices per path")
    for (depth, values), colour in zip(numbers["final"].items(), COLOURS, strict=False):
        final.plot(ALL_ONSETS, values, ".-", color=colour, label=f"{depth} matri{'x' if depth == '1' else 'ces'}")
    final.set(xlabel=f"time at which it goes off, for {OFF}", ylabel=f"its strength at {WHOLE}", xlim=(-3, 155))
    final.set_title("by depth of the paths")
    for axis in (course, final):
        axis.legend(loc="lower right", bbox_to_anchor=(1, 0.1))
    return {"deep_linear": modes, "deep_linear_paths": paths}


def half(looks: list[list[float]], mode: int) -> float:
    """The first time at which a mode has half of its strength, or infinity."""
    at = (k for k, look in enumerate(looks) if look[mode] >= MODES[mode] / 2)
    return EVERY * RATE * next(at, math.inf)


def page(numbers: dict[str, Any]) -> Iterator[str]:
    """The lines of the page."""
    far = {
        n: max(abs(look[k] - numbers["exact"][n][k][i]) for i, look in enumerate(looks) for k in range(3))
        for n, looks in numbers["balanced"].items()
    }
    yield from f"""# Deep linear nets

    python scripts/deep_linear.py

`model=mlp model.activation=identity model.bias=false model.batch_norm=false` is a product of matrices. How
backpropagation trains it is known in closed form (Saxe, McClelland & Ganguli 2014; `analysis.deep_linear`): mode by
mode, the strongest first. Dots: a net in float64 at every {2 * EVERY}th of {STEPS} steps of plain gradient descent,
rate {RATE:g}, on whitened inputs and modes of strength {listed(MODES, 1)}; grey: the closed-form curve of a balanced
start at {START:g}.

![Strengths of three modes over the steps](images/deep_linear.svg)

From a balanced start the net is never farther than {far["2"]:.3f} (2 matrices) and {far["3"]:.3f} (3) from the curve,
which assumes infinitely small steps. From an equally small random start the matrices first align with the modes. The
table gives the time, in steps x rate, at which a mode reaches half its strength, and its strength at the end:
""".splitlines()
    yield ""
    head = ["3 matrices, random start", *(f"s = {s:g}" for s in MODES), *(f"end, s = {s:g}" for s in MODES)]
    rows = [
        [
            f"`{rule}`",
            *("not yet" if math.isinf(half(looks, k)) else f"{half(looks, k):.2f}" for k in range(3)),
            *(f"{u:.3f}" for u in looks[-1]),
        ]
        for rule, looks in numbers["random"].items()
    ]
    yield from markdown_table(head, rows)
    yield from f"""
All learn the modes in the order of backpropagation. The others start earlier, as the weights that bring them the error
are not small: feedback weights, or for `dgl` a linear read-out of every layer. They take longer to finish the weaker
modes. There is one start and one draw of these weights.

## A critical period

Two parallel products of matrices share a mode of strength 1; the first is off for {OFF} units of time (Kleinman,
Achille & Soatto 2024; `analysis.deep_linear.pathways`). While it is off it neither contributes nor learns. Lines: the
equation; dots: gradient descent on the matrices, which begin at {PATH_START:g}, with steps of {EULER:g}.

![Strength of the first path over time, and at the end by when it was off](images/deep_linear_paths.svg)

Strength of the first path at time {WHOLE}, by the time at which it goes off; a path that is never off has 0.5:
""".splitlines()
    yield ""
    chosen = [ALL_ONSETS.index(onset) for onset in ONSETS]
    rows = [[depth, *(f"{values[k]:.3f}" for k in chosen)] for depth, values in numbers["final"].items()]
    yield from markdown_table(["matrices per path", *(f"off from {onset}" for onset in ONSETS)], rows)
    gap = max(
        abs(look[p] - numbers["curves"][onset][p][i])
        for onset, looks in numbers["paths"].items()
        for i, look in enumerate(looks)
        for p in (0, 1)
    )
    yield from f"""
A path that is off before it has grown never recovers: the other one has learned the mode, and nothing is left to learn.
This was published for 3 matrices and more; here it also holds for fewer, and the more there are, the longer they take
to grow, and the longer the critical period. A path that is off later keeps a share of its strength. The dots are never
farther than {gap:.0e} from the lines.

{numbers["machine"]}; every number is in `images/deep_linear.json`.""".splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--to", type=Path, default=ROOT / "docs", metavar="DIR", help="where page and pictures go")
    to = parser.parse_args().to
    torch.set_num_threads(1)
    numbers = measured()
    for name, figure in draw(numbers).items():
        save(figure, to / "images" / name)
    (to / "images" / "deep_linear.json").write_text(json.dumps(numbers) + "\n")
    (to / "deep-linear.md").write_text("\n".join(page(numbers)) + "\n")
    print(to / "deep-linear.md")


if __name__ == "__main__":
    main()
