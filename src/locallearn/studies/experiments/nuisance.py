"""What layers tell of a nuisance and of the label, by depth and by the price of a nat of activations or weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from locallearn.figures import COLOURS, by_strategy, panels
from locallearn.studies.analysis import Analysis, Runs, listed, markdown_table, mean_std, verdicts

PLAIN = ("backprop", "dgl")
PRICES = ("activations", "weights")
KEYS = ("i_z_n", "i_z_n_bound", "i_z_n_ratio", "i_z_y")
LABELS = ("I(z; n), read", "I(z; n), bound by densities", "I(z; n), by densities", "I(z; y), read")
KEPT = 0.2
"""Bits of the label that may be lost."""
SLACK = 0.1
"""Bits by which two thousand samples may err, and a layer may tell more than the one below."""


class ForgottenNuisance(Analysis):
    """Two panels by depth, two by price."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        depth = {line: [_looks(rows) for rows in runs.rows(line, "nuisance")] for line in PLAIN}
        prices: dict[str, dict[str, Any]] = {line: {} for line in PRICES}
        for row, own in runs.by_row.items():
            line, _, beta = row.partition(", ")
            if line in prices:
                prices[line][beta] = [_looks(run.rows["nuisance"])["last"][-1] | _passes(run) for run in own]
        return {"depth": depth, "prices": prices}

    def draw(self, numbers: dict[str, Any]) -> dict[str, Any]:
        figure, axes = panels(2, 2)
        for line, looks in numbers["depth"].items():
            for axis, key in zip(axes, ("i_z_n", "i_z_y"), strict=False):
                for when, style in (("first", "o:"), ("last", "o-")):
                    values = _by_layer([look[when] for look in looks], key)
                    label = line if when == "last" else f"{line}, initial weights"
                    axis.plot(range(1, 1 + len(values)), values, style, ms=3, color=by_strategy(line), label=label)
        rows = numbers["depth"][PLAIN[0]][0]["last"]
        first, depth = rows[0], len(rows)
        for axis, line in zip(axes[2:], PRICES, strict=True):
            of = numbers["prices"][line]
            for key, label, colour in zip(KEYS, LABELS, COLOURS, strict=False):
                values = [fmean(run[key] for run in own) for own in of.values()]
                axis.plot([*map(float, of)], values, "o-", ms=3, color=colour, label=label)
            axis.set(xscale="log", xlabel=f"price of a nat in the {line}, beta", ylabel="last hidden layer [bits]")
            axis.axhline(first["label_bits"], color="#999999", linewidth=0.8, label="H(y)")
        for axis, level, what in ((axes[0], "nuisance_bits", "n"), (axes[1], "label_bits", "y")):
            axis.axhline(first[level], color="#999999", linewidth=0.8, label=f"H({what})")
            axis.set(xlabel="hidden layer", ylabel=f"I(z; {what}), read [bits]", xticks=range(1, 1 + depth))
        for axis, place in zip(axes, ((0.02, 0.0), (0.02, 0.0), (0.02, 0.33), (0.02, 0.33)), strict=True):
            axis.set_ylim(bottom=-0.2)
            axis.legend(loc=place, fontsize=6, labelspacing=0.3)
        return {"": figure}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        first = numbers["depth"][PLAIN[0]][0]["last"][0]
        yield f"On the test images H(n) = {first['nuisance_bits']:.2f} and H(y) = {first['label_bits']:.2f} bits.\n"
        rows = [
            [line, f"hidden layer {layer + 1}", *_cells([look["last"][layer] for look in looks])]
            for line, looks in numbers["depth"].items()
            for layer in range(len(looks[0]["last"]))
        ]
        rows += [
            [f"price of the {line}", beta, *_cells(own)]
            for line, of in numbers["prices"].items()
            for beta, own in of.items()
        ]
        yield from markdown_table(["net", "layer or beta", *(f"{label} [bits]" for label in LABELS)], rows)
        yield from _judged(numbers)


def _judged(numbers: dict[str, Any]) -> Iterator[str]:
    claims = []
    for line, looks in numbers["depth"].items():
        values = _by_layer([look["last"] for look in looks], "i_z_n")
        falls = values[-1] < values[0] and all(b <= a + SLACK for a, b in pairwise(values))
        claims.append((falls, f"{line}: deeper layers tell less about the nuisance: {listed(values)} bits."))
    for line, of in numbers["prices"].items():
        n, y = ([fmean(run[key] for run in own) for own in of.values()] for key in ("i_z_n", "i_z_y"))
        kept = [k for k, value in enumerate(y) if value > max(y) - KEPT]
        claims.append(
            (
                n[kept[-1]] < 0.5 * n[kept[0]],
                f"price of the {line}: up to beta {[*of][kept[-1]]}, the nuisance falls by more than half, from "
                f"{n[kept[0]]:.2f} to {n[kept[-1]]:.2f} bits, while at most {KEPT} bits of the label are lost.",
            )
        )
    every = [run for own in numbers["prices"]["activations"].values() for run in own]
    broken = sum(max(run["i_z_n"], run["i_z_n_bound"]) + run["i_z_y"] > run["bits"] + SLACK for run in every)
    claims.append(
        (
            broken == 0,
            f"label and nuisance together never exceed what passes: they do in {broken} of {len(every)} runs.",
        )
    )
    yield from verdicts(*claims)


def _looks(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, float]]]:
    """The rows of the first and of the last look, by layer."""
    return {
        name: [
            {key: round(row[key], 4) for key in (*KEYS, "nuisance_bits", "label_bits")}
            for row in rows
            if row["epoch"] == rows[place]["epoch"]
        ]
        for name, place in (("first", 0), ("last", -1))
    }


def _passes(run: Any) -> dict[str, float]:
    """The bits that pass the bottleneck at the last look."""
    own = [row["bits"] for row in run.rows.get("bottleneck", ()) if "bits" in row]
    return {"bits": round(own[-1], 4)} if own else {}


def _by_layer(looks: Sequence[Sequence[dict[str, float]]], key: str) -> list[float]:
    """The mean over the seeds."""
    return [fmean(row[key] for row in rows) for rows in zip(*looks, strict=True)]


def _cells(own: Sequence[dict[str, float]]) -> list[str]:
    return [mean_std([row[key] for row in own]) for key in KEYS]
