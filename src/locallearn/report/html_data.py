"""What the figures of the page are drawn from: curves, blocks, costs and probes of every group, as plain JSON.

A series is {"x": [...], "y": [means over seeds], "s": [standard deviations, null for one seed] or null}. Long ones are
thinned so that the page stays small, with the first and the last point kept; numbers have five digits.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from locallearn.figures import by_depth, by_strategy
from locallearn.report.numbers import is_finite
from locallearn.report.study import SCORES, Group, Study
from locallearn.report.tables import SHARES, title
from locallearn.runs.read import Run

Series: TypeAlias = dict[str, Any]
Points: TypeAlias = Iterable[tuple[float, float]]
"""Pairs of x and y, of one run or of several."""

POINTS = 80_000
"""About so many points has a page in its curves, and as many in its probes: 1.5 MB each."""
LEAST = 6
MOST = 200


AXES = {
    "seconds": ("time (s)", 1.0),
    "peak_memory_bytes": ("peak memory (MiB)", 2.0**20),
    "flops": ("FLOPs (forward, one image)", 1.0),
    "auxiliary_flops": ("auxiliary FLOPs (forward, one image)", 1.0),
    "auxiliary_share": ("auxiliary parameters (% of the model's)", 0.01),
}
"""What the axis of a cost is called, and what a value is divided by there."""
QUANTITIES = {"i_x_t": "I(X;T) [bits]", "i_t_y": "I(T;Y) [bits]"}
DARK_GROUND = (0x15, 0x18, 0x1C)


def payload(study: Study) -> dict[str, Any]:
    """Everything that the script of the page reads."""
    return {
        "groups": [
            {
                "label": group.label if group.counted else f"{group.label} (not finished)",
                "colour": both(by_strategy(group.strategy)),
            }
            for group in study.groups
        ],
        "curves": _curves(study),
        "trade": _trade(study),
        "probes": [*_blocks(study), *_probes(study)],
    }


def embedded(value: Any) -> str:
    """JSON that cannot end the script element it stands in, whatever text is in it."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def looked_at(group: Group) -> list[Run]:
    """The runs that a group is drawn from: those that count, or, while none is done, all."""
    return group.counted or group.runs


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


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None."""
    return float(value) if is_finite(value) and abs(value) < 1e300 else None


def _short(value: float) -> float | int:
    rounded = float(f"{value:.5g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e15 else rounded


def _series(points: Points) -> Series:
    """Mean and deviation over the runs that have a point at an x."""
    columns: dict[float, list[float]] = {}
    for x, y in points:
        columns.setdefault(x, []).append(y)
    xs = sorted(columns)
    found = [_mean_and_deviation(columns[x]) for x in xs]
    return {
        "x": [_short(x) for x in xs],
        "y": [_short(mean) for mean, _ in found],
        "s": [deviation for _, deviation in found] if any(d is not None for _, d in found) else None,
    }


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Over seeds. The module statistics takes twenty times as long, seconds for 500 runs. A deviation that rounding
    alone would explain is 0."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None
    found = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, _short(found) if found > 1e-12 * max(map(abs, values)) else 0


def _thin(series: Series, limit: int) -> Series:
    count = len(series["x"])
    if count <= limit:
        return series
    kept = [round(k * (count - 1) / (limit - 1)) for k in range(limit)]
    return {key: column and [column[k] for k in kept] for key, column in series.items()}


def _thinned(tables: Sequence[list[Any]]) -> None:
    """Thin all series (or dictionaries of them) in these lists, in place, to a fair share of the page."""
    count = sum(len(item) if "x" not in item else 1 for table in tables for item in table if item)
    limit = max(LEAST, min(MOST, POINTS // max(1, count)))
    for table in tables:
        for i, item in enumerate(table):
            if item:
                table[i] = (
                    _thin(item, limit) if "x" in item else {place: _thin(own, limit) for place, own in item.items()}
                )


def _points(records: Iterable[Mapping[str, Any]], name: str) -> Iterator[tuple[float, float]]:
    for record in records:
        x, y = finite(record.get("epoch")), finite(record.get(name))
        if x is not None and y is not None:
            yield x, y * _percent(name)


def _percent(name: str) -> int:
    """What a value of this name is multiplied by to be shown: shares are in percent."""
    return 100 if name.endswith(SHARES) else 1


def _curves(study: Study) -> list[dict[str, Any]]:
    """What every epoch records: the score first."""
    found = []
    for name in dict.fromkeys([*([study.score] if study.score else []), *SCORES]):
        values = [_series(p for run in looked_at(g) for p in _points(run.history, name)) for g in study.groups]
        if any(series["x"] for series in values):
            found.append({"key": name, "label": title(name), "values": values})
    _thinned([list(curve["values"]) for curve in found])
    return found


def _trade(study: Study) -> dict[str, Any]:
    """The score of each group against what it costs."""
    axes = []
    score = _percent(study.score)
    for key, (name, unit) in AXES.items():
        values: list[Series | None] = []
        for group in study.groups:
            x, y = group.numbers.get(key), group.numbers.get(study.score)
            if x is None or y is None:
                values.append(None)
                continue
            spread = [None if n.std is None else _short(n.std / size) for n, size in ((x, unit), (y, 1 / score))]
            point = {
                "x": [_short(x.mean / unit)],
                "sx": [spread[0]],
                "y": [_short(y.mean * score)],
                "s": [spread[1]],
            }
            values.append(point)
        if any(values):
            axes.append({"key": key, "label": name, "values": values})
    return {"label": title(study.score), "axes": axes}


def _blocks(study: Study) -> list[dict[str, Any]]:
    """Test accuracy at every block that can predict, over epochs, in the form of a probe."""
    pattern = re.compile(r"block/(\d{1,4})/test_accuracy")

    def rows(run: Run) -> Iterator[Mapping[str, Any]]:
        for record in run.history:
            for key, value in record.items():
                if match := pattern.fullmatch(key):
                    yield {"epoch": record.get("epoch"), "block": int(match[1]), "test accuracy": value}

    found = _probe("Test accuracy by block", [[row for r in looked_at(g) for row in rows(r)] for g in study.groups])
    return [found] if found else []


def _varies(groups: Iterable[Mapping[int, Points]]) -> bool:
    """Whether a number of a probe is more than a setting that stands in every row."""
    found = {y for places in groups for own in places.values() for _, y in own}
    return len(found) > 1


def _probes(study: Study) -> list[dict[str, Any]]:
    names = dict.fromkeys(name for group in study.groups for run in looked_at(group) for name in run.rows)
    found = []
    for name in names:
        rows = [[row for run in looked_at(group) for row in run.rows.get(name, [])] for group in study.groups]
        probe = _probe(f"Probe: {name.replace('_', ' ')}", rows)
        if probe:
            found.append(probe)
    return found


def _probe(name: str, groups: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any] | None:
    """The numbers of a probe by quantity, group and place, where a place is a layer, or a block where there are none.
    None if there is nothing to draw."""
    place = "layer" if any("layer" in row for rows in groups for row in rows) else "block"
    names: dict[int, str] = {}
    points: dict[str, list[dict[int, list[tuple[float, float]]]]] = {}
    for i, rows in enumerate(groups):
        for row in rows:
            at, epoch = finite(row.get(place)), finite(row.get("epoch"))
            if at is None or epoch is None or not 0 <= at < 10_000:
                continue
            if isinstance(row.get("name"), str):
                known = names.setdefault(int(at), row["name"])
                names[int(at)] = known if known == row["name"] else f"{place} {int(at)}"  # of different models
            for key, value in row.items():
                y = finite(value)
                if y is not None and key not in ("epoch", "step", "block", "layer"):
                    per_group = points.setdefault(key, [{} for _ in groups])
                    per_group[i].setdefault(int(at), []).append((epoch, y * _percent(key)))
    points = {key: per_group for key, per_group in points.items() if _varies(per_group)}
    if not points:
        return None
    values = {
        key: [{at: _series(own) for at, own in sorted(places.items())} for places in per_group]
        for key, per_group in points.items()
    }
    _thinned(list(values.values()))
    depth = 1 + max(at for per_group in points.values() for places in per_group for at in places)
    return {
        "title": name,
        "place": place,
        "names": names,
        "colours": [both(colour) for colour in by_depth(depth)],
        "plane": {"i_x_t", "i_t_y"} <= values.keys(),
        "quantities": [[key, QUANTITIES.get(key, title(key))] for key in values],
        "values": values,
    }
