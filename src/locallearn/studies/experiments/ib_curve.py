"""What passes a noisy layer, what is read behind it, and where on an image the bits are, by the price of a nat."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean
from typing import Any

import numpy as np

from locallearn.figures import by_strategy, panels
from locallearn.runs.read import Run
from locallearn.studies.analysis import Analysis, Runs, markdown_table, mean_std, verdicts

LINES = {"backprop": "backprop", "dgl": "dgl", "squared": "usf"}
"""Of the picture, and the strategy whose colour each has."""
MAPS = ("free", "priced")
KEPT = 0.1
"""Bits that may be lost of the most that any price leaves to be read: on test images that is less than H(Y)."""
PLACES = 1
"""Decimals of bits."""
TICKS = (2, 5, 10, 20, 50)
"""Of errors in percent."""


class IBCurve(Analysis):
    """A point for each price; and maps of bits."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        points: dict[str, dict[str, Any]] = {line: {} for line in LINES}
        for row, own in runs.by_row.items():
            line, _, beta = row.partition(", ")
            if line in points:
                points[line][beta] = [_last(run) for run in own]
        return {"points": points, "maps": {row: _maps(runs.by_row[row][0]) for row in MAPS}}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, (plane, bits, error) = panels(3)
        h_y = _h_y(numbers)
        line = np.geomspace(0.01, 1000, 200)
        plane.plot(line, np.minimum(line, h_y), color="#999999", lw=1.0, label="min(I(z; x), H(Y))")
        for name, of in numbers["points"].items():
            colour, betas = by_strategy(LINES[name]), [*map(float, of)]
            x, y, e, one = ([fmean(run[key] for run in own) for own in of.values()] for key in KEYS)
            plane.plot([max(v, 0.01) for v in x], y, "o-", ms=3, color=colour, label=name)
            bits.plot(betas, [max(v, 1e-3) for v in x], "o-", ms=3, color=colour, label=name)
            error.plot(betas, [100 * (1 - v) for v in e], "o-", ms=3, color=colour, label=name)
            error.plot(betas, [100 * (1 - v) for v in one], "o:", ms=3, color=colour)
        plane.set(xscale="log", xlabel="what passes [bits]", ylabel="I(z; y), lower bound [bits]")
        bits.set(
            xscale="log", yscale="log", xlabel="price of a nat (squared: of its square)", ylabel="what passes [bits]"
        )
        error.set(xscale="log", yscale="log", xlabel="price (dotted: one draw)", ylabel="test error [%]")
        error.set_yticks(TICKS, map(str, TICKS), minor=False)
        error.minorticks_off()
        for axis in (plane, error):
            axis.legend(fontsize=6)
        return {"": figure, "maps": _draw_maps(numbers["maps"])}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        points, h_y = numbers["points"], _h_y(numbers)
        rows = []
        for name, of in points.items():
            for beta, own in of.items():
                x, y, e, one = ([run[key] for run in own] for key in KEYS)
                errors = [mean_std([100 * (1 - v) for v in values]) for values in (one, e)]
                rows.append([name, beta, mean_std(x, PLACES), mean_std(y), *errors])
        yield f"H(Y) = {h_y:.3f} bits.\n"
        yield from markdown_table(
            ["line", "beta", "passes [bits]", "I(z; y) [bits]", "error, one draw [%]", "all draws [%]"], rows
        )
        yield from _judged(points, h_y)


def _judged(points: dict[str, dict[str, Any]], h_y: float) -> Iterator[str]:
    plain = points["backprop"]
    wide = [(fmean(run["bits"] for run in own), fmean(run["i_z_y"] for run in own)) for own in plain.values()]
    most = max(y for _, y in wide)
    kept = {beta: x for beta, (x, y) in zip(plain, wide, strict=True) if y > most - KEPT}
    wrong = {beta: 1 - fmean(run["accuracy_draws"] for run in own) for beta, own in plain.items()}
    best = min(wrong, key=lambda beta: wrong[beta])
    on_slope = {
        name: sum(0.3 < fmean(run["i_z_y"] for run in own) < h_y - 0.3 for own in of.values())
        for name, of in points.items()
    }
    every = [run for of in points.values() for own in of.values() for run in own]
    broken = sum(run["bits"] < run["i_z_y"] - 0.05 for run in every)
    yield from verdicts(
        (broken == 0, f"never is more read of the label than passes: {broken} violations in {len(every)} runs."),
        (
            max(kept.values()) > 3 * min(kept.values()),
            f"what passes falls from {max(kept.values()):.0f} to {min(kept.values()):.1f} bits while at most {KEPT} "
            f"of the {most:.2f} bits that are read at best are lost (to beta {[*kept][-1]}).",
        ),
        (
            max(wide[-1]) < 0.1,
            f"at beta 1, where I(z; x) = I(z; y) costs the same all along, nothing passes: {wide[-1][0]:.3f} bits.",
        ),
        (best not in (next(iter(wrong)), [*wrong][-1]), f"the test error is least in between, at beta {best}."),
        (
            on_slope["squared"] > on_slope["backprop"],
            f"the square of the KL reaches the slope of the curve at {on_slope['squared']} of {len(points['squared'])} "
            f"prices, the plain price at {on_slope['backprop']} of {len(plain)}.",
        ),
    )


KEYS = ("bits", "i_z_y", "accuracy_draws", "accuracy_one_draw")


def _last(run: Run) -> dict[str, float]:
    """The numbers of the last look."""
    rows = run.rows["bottleneck"]
    last = [row for row in rows if row["epoch"] == rows[-1]["epoch"]]
    return {"h_y": last[0]["label_bits"]} | {key: row[key] for row in last for key in KEYS if key in row}


def _h_y(numbers: dict[str, Any]) -> float:
    return next(iter(numbers["points"]["backprop"].values()))[0]["h_y"]


def _maps(run: Run) -> dict[str, Any]:
    """Images and the bits at each position behind each place, of the last look."""
    file = max((run.path / "probes/bottleneck").glob("epoch-*.npz"))
    with np.load(file, allow_pickle=False) as content:
        return {name: np.round(content[name].astype(float), 3).tolist() for name in content.files}


def _draw_maps(maps: dict[str, Any]) -> Any:
    images = np.array(maps[MAPS[0]]["images"])
    columns = [(row, place) for row in MAPS for place in sorted(maps[row]) if place.startswith("map-")]
    figure, axes = panels(1 + len(columns), len(images), width=1.3, height=1.3)
    for k, image in enumerate(images):
        first, *others = axes[k * (1 + len(columns)) : (k + 1) * (1 + len(columns))]
        first.imshow(image[0], cmap="gray")
        for axis, (row, place) in zip(others, columns, strict=True):
            bits = np.array(maps[row][place][k])
            axis.imshow(bits - bits.min(), cmap="magma")
            if not k:
                axis.set_title(f"{row}, convolution {int(place.removeprefix('map-')) + 1}", fontsize=6)
    for axis in axes:
        axis.set_axis_off()
    return figure
