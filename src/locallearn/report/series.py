"""What pictures are drawn from: curves, blocks, costs and probes of every group, over seeds; and as JSON for the page.

On the page a series is {"x": [...], "y": [means over seeds], "s": [standard deviations, null for one seed] or null}.
Long ones are thinned so that the page stays small, with the first and the last point kept; numbers have five digits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from locallearn import names
from locallearn.figures import by_depth, by_strategy
from locallearn.figures.style import spaced
from locallearn.report.grouped import GroupedRuns
from locallearn.report.numbers import COSTS, is_finite, mean_and_deviation, percent, title
from locallearn.runs.read import Run

Curve: TypeAlias = dict[float, list[float]]
"""The values of several runs at each x."""
Series: TypeAlias = dict[str, Any]
"""A curve as the page has it."""

POINTS = 80_000
"""About how many points a page has in its curves, and again in its probes: 1.5 MB each."""
LEAST, MOST = 6, 200
"""The least and the most points to which a series is thinned."""
PLACES = 10_000
QUANTITIES = {"i_x_t": "I(X;T) [bits]", "i_t_y": "I(T;Y) [bits]"}
DARK_GROUND = (0x15, 0x18, 0x1C)


def curve(runs: Iterable[Run], metric: str) -> Curve:
    """The finite values of a metric over runs, by epoch, with a fraction inside one."""
    values: Curve = {}
    for record in (record for run in runs for record in (*run.history, *run.inside)):
        if is_finite(record.get("epoch")) and is_finite(record.get(metric)):
            values.setdefault(record["epoch"], []).append(record[metric])
    return dict(sorted(values.items()))


def payload(grouped: GroupedRuns) -> dict[str, Any]:
    """Everything that the script of the page reads."""
    return {
        "groups": [
            {
                "label": group.label if group.counted else f"{group.label} (not finished)",
                "colour": both(by_strategy(group.strategy)),
            }
            for group in grouped.groups
        ],
        "curves": _curves(grouped),
        "trade": _trade(grouped),
        "probes": list(_probes(grouped)),
    }


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever text is in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def both(colour: str) -> list[str]:
    """A colour on white, and on the dark ground: the same, lighter where it would not be seen (contrast below 3)."""
    mixed = [int(colour[k : k + 2], 16) for k in (1, 3, 5)]
    while _luminance(mixed) + 0.05 < 3 * (_luminance(DARK_GROUND) + 0.05):
        mixed = [min(255, value + 8) for value in mixed]
    if colour == "#000000":  # backprop: the ink of either page
        mixed = [0xE8, 0xEA, 0xED]
    return [colour, "#" + "".join(f"{value:02x}" for value in mixed)]


def _luminance(colour: Sequence[int]) -> float:
    """Relative luminance (WCAG 2.2) of red, green, blue in 0 ... 255."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _short(value: float | None) -> float | int | None:
    if value is None:
        return None
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _series(values: Curve, scale: float) -> Series:
    """Mean and deviation at each x, multiplied by `scale`."""
    points = [mean_and_deviation([scale * y for y in values[x]]) for x in sorted(values)]
    deviations = [_short(deviation) for _, deviation in points]
    return {
        "x": [_short(x) for x in sorted(values)],
        "y": [_short(mean) for mean, _ in points],
        "s": deviations if any(deviation is not None for deviation in deviations) else None,
    }


def _thin(everything: Sequence[Series]) -> None:
    """Thin each of these series, in place, to a fair share of the page."""
    limit = max(LEAST, min(MOST, POINTS // max(1, len(everything))))
    for series in everything:
        series.update({key: column and spaced(column, limit) for key, column in series.items()})


def _curves(grouped: GroupedRuns) -> list[dict[str, Any]]:
    """What every epoch records, the score first; then the loss inside of them."""
    curves: list[dict[str, Any]] = []
    inside = names.on(names.STEP, names.LOSS)
    for name in dict.fromkeys([*([grouped.score] if grouped.score else []), *grouped.scores, inside]):
        values = [_series(curve(group.drawn, name), percent(name)) for group in grouped.groups]
        if any(series["x"] for series in values):
            curves.append({"key": name, "label": title(name), "values": values})
    _thin([series for drawn in curves for series in drawn["values"]])
    return curves


def _trade(grouped: GroupedRuns) -> dict[str, Any]:
    """The score of each group against what it costs."""
    axes = []
    for key, cost in COSTS.items():
        values: list[Series | None] = []
        for group in grouped.groups:
            if not {key, grouped.score} <= group.numbers.keys():
                values.append(None)
                continue
            point: Series = {}
            for number, scale, (mean, deviation) in (
                (group.numbers[key], 1 / cost.unit, ("x", "sx")),
                (group.numbers[grouped.score], percent(grouped.score), ("y", "s")),
            ):
                point[mean] = [_short(number.mean * scale)]
                point[deviation] = [None if number.std is None else _short(number.std * scale)]
            values.append(point)
        if any(values):
            axes.append({"key": key, "label": cost.axis, "values": values})
    return {"label": title(grouped.score), "axes": axes}


def _probes(grouped: GroupedRuns) -> Iterator[dict[str, Any]]:
    """What probes saw; and, in the same form, the score of every block that can predict, on the test set, over
    epochs."""
    groups = [group.drawn for group in grouped.groups]
    score = names.metric_of(grouped.score) or names.ACCURACY
    blocks = f"{names.in_words(names.on(names.TEST, score)).capitalize()} by block"
    tables = {blocks: [[row for run in own for row in _block_rows(run, score)] for own in groups]}
    for probe in dict.fromkeys(probe for own in groups for run in own for probe in run.rows):
        rows = [[row for run in own for row in run.rows.get(probe, [])] for own in groups]
        tables[f"Probe: {probe.replace('_', ' ')}"] = rows
    return filter(None, (_probe(name, rows) for name, rows in tables.items()))


def _block_rows(run: Run, score: str) -> Iterator[dict[str, Any]]:
    called = names.in_words(names.on(names.TEST, score))
    for record in run.history:
        for block, value in names.by_block(record, score, names.TEST).items():
            yield {"epoch": record.get("epoch"), names.BLOCK: block, called: value}


def _probe(name: str, groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """The numbers of a probe by quantity, group and place, where a place is a layer, or a block where there are none.
    None if there is nothing to draw: a number that is the same everywhere is a setting."""
    place = names.LAYER if any(names.LAYER in row for rows in groups for row in rows) else names.BLOCK
    called: dict[int, str] = {}
    curves: dict[str, list[dict[int, Curve]]] = {}
    for k, rows in enumerate(groups):
        for row in rows:
            at, epoch = row.get(place), row.get("epoch")
            if not (is_finite(at) and is_finite(epoch) and 0 <= at < PLACES):
                continue
            at = int(at)
            if isinstance(row.get("name"), str):
                known = called.setdefault(at, row["name"])
                called[at] = known if known == row["name"] else f"{place} {at}"  # of different models
            for key, value in row.items():
                if is_finite(value) and key not in ("epoch", "step", names.BLOCK, names.LAYER):
                    places = curves.setdefault(key, [{} for _ in groups])[k]
                    places.setdefault(at, {}).setdefault(epoch, []).append(value)
    values = {
        key: [{at: _series(own, percent(key)) for at, own in sorted(places.items())} for places in of_groups]
        for key, of_groups in curves.items()
        if len({y for places in of_groups for own in places.values() for ys in own.values() for y in ys}) > 1
    }
    if not values:
        return None
    _thin([series for of_groups in values.values() for places in of_groups for series in places.values()])
    depth = 1 + max(at for of_groups in values.values() for places in of_groups for at in places)
    return {
        "title": name,
        "place": place,
        "names": called,
        "colours": [both(colour) for colour in by_depth(depth)],
        "plane": QUANTITIES.keys() <= values.keys(),
        "quantities": [[key, QUANTITIES.get(key, title(key))] for key in values],
        "values": values,
    }
