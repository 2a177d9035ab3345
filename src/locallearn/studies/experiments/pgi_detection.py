"""PGI for boxes: signs beside table 5 of YOLOv9, what the branch would cost if it were kept, and maps after warm-up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from locallearn.analysis.cost import Flops
from locallearn.auxiliary import Detect
from locallearn.contract import Packet
from locallearn.engine import AdamW, Setup, assemble
from locallearn.figures.style import bare, panels
from locallearn.models.detector import detector
from locallearn.report.numbers import interval
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.pgi import PGI
from locallearn.studies.analysis import Analysis, Runs, deviation, markdown_table, mean_std, verdicts
from locallearn.tasks import Detection

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NETS = ("shallow", "deep")
DEPTHS = {"shallow": 1, "deep": 3}
TRIED = ("deep supervision", "PFH", "PGI", "PGI of couplings")
PUBLISHED = {  # differences to the baseline in AP: GELAN-S and GELAN-E
    "shallow": {"deep supervision": -0.2, "PGI": 0.1},
    "deep": {"deep supervision": 0.3, "PFH": 0.3, "PGI": 0.6},
}
NAMES = ("RBC", "WBC", "Platelets")
IMAGE = (3, 192, 256)
SIDE = 48  # cells of a map that is kept, at most


class PGIDetection(Analysis):
    """Differences to the baseline, paired by seed; FLOPs with and without the branch; maps after a warm-up epoch."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        rows = [name for name in runs.by_row if not name.startswith("warm-up")]
        return {
            "ap": {name: [100 * run.summary["test/ap"] for run in runs.by_row[name]] for name in rows},
            "ap50": {name: [100 * run.summary["test/ap50"] for run in runs.by_row[name]] for name in rows},
            "cost": {net: _cost(depth) for net, depth in DEPTHS.items()},
            "maps": _warm_up(runs),
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Figure]:
        figure, axes = panels(2)
        for axis, net in zip(axes, NETS, strict=True):
            gains = [_differences(numbers["ap"], net, name) for name in TRIED]
            for k, own in enumerate(gains):
                axis.plot([k] * len(own), own, "o", ms=3, color="#999999")
                axis.errorbar(k, fmean(own), deviation(own), marker="s", ms=5, capsize=3, color="black")
                if (published := PUBLISHED[net].get(TRIED[k])) is not None:
                    axis.plot(k, published, "x", color="#c0392b", label="published" if k == 0 else None)
            axis.axhline(0, color="black", lw=0.6)
            axis.set_xticks(range(len(TRIED)), TRIED, fontsize=6)
            axis.set(ylabel="AP less that of the baseline", title=net)
            axis.legend(fontsize=7, frameon=False)
        return {"": figure, "maps": _gallery(numbers["maps"])}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        yield "AP less that of the baseline, paired by seed; published: table 5 (and 4) of the paper, another size.\n"
        rows = []
        for net in NETS:
            for name in TRIED:
                own = _differences(numbers["ap"], net, name)
                published = PUBLISHED[net].get(name)
                ends = _ends(own)
                within = "-" if ends is None else f"{ends[0]:.1f} to {ends[1]:.1f}"
                shown = "-" if published is None else f"{published:+.1f}"
                rows.append([net, name, mean_std(own), within, shown, mean_std(numbers["ap50"][f"{net}, {name}"])])
        yield from markdown_table(["net", "", "difference in AP", "95 % interval", "published", "AP50"], rows)
        yield f"\n**PGI: {_verdict(numbers['ap'])}**\n"
        yield "What the branch would cost if it were kept at inference (the paper: about 20 % for such branches).\n"
        yield from markdown_table(
            ["net", "MFLOP an image", "MFLOP of the branch", "weights", "weights of the branch"],
            [
                [net, f"{own['flops']:.0f}", f"{own['branch_flops']:.0f}", f"{own['weights']:,}", f"{own['branch']:,}"]
                for net, own in numbers["cost"].items()
            ],
        )
        ap = {name: fmean(values) for name, values in numbers["ap"].items()}
        blocks = {name: ap[f"block {name}"] for name in ("conv", "res", "dark", "csp")}
        depths = [ap["block csp"], ap["depth 2 2"], ap["depth 2 3"]]
        share = {net: own["branch_flops"] / own["flops"] for net, own in numbers["cost"].items()}
        listed = ", ".join(f"{name} {value:.1f}" for name, value in blocks.items())
        yield from verdicts(
            (max(blocks, key=lambda name: blocks[name]) == "csp", f"CSP is the best block (table 2): {listed}."),
            (
                depths[0] < depths[1] < depths[2],
                f"a greater CSP depth is better (table 3): {', '.join(f'{v:.1f}' for v in depths)} at 1, 2, 3.",
            ),
            (
                ap["depth 3 1"] > ap["block csp"],
                f"so is a greater ELAN depth: {ap['block csp']:.1f} at 2, {ap['depth 3 1']:.1f} at 3.",
            ),
            (
                min(share.values()) > 0.2,
                "a branch that is kept costs a fifth or more: " + ", ".join(f"{n} {s:.0%}" for n, s in share.items()),
            ),
        )


def _differences(ap: dict[str, list[float]], net: str, name: str) -> list[float]:
    """AP less that of the baseline, seed by seed."""
    return [a - b for a, b in zip(ap[f"{net}, {name}"], ap[f"{net}, baseline"], strict=True)]


def _ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Of the 95 % interval of the mean; None for one value."""
    _, low, high = interval(values)
    return None if low is None or high is None else (low, high)


def _verdict(ap: dict[str, list[float]]) -> str:
    """Reproduced: the interval of the deep net lies above 0, and the mean of the shallow one is not negative.
    Contradicted: an interval lies below 0. Consistent: the means have the signs, and the intervals hold 0."""
    gains = {net: _differences(ap, net, "PGI") for net in NETS}
    intervals = {net: _ends(own) for net, own in gains.items()}
    if any(ends is None for ends in intervals.values()):
        return "one seed decides nothing."
    bounds = {net: ends for net, ends in intervals.items() if ends is not None}
    means = {net: fmean(own) for net, own in gains.items()}
    if any(high < 0 for _, high in bounds.values()):
        return "contradicted: an interval lies below 0."
    if bounds["deep"][0] > 0 and means["shallow"] >= 0:
        return "reproduced: in the deep net the interval lies above 0, and in the shallow one the mean is not negative."
    if means["deep"] > 0 and means["shallow"] >= 0:
        return "consistent with the paper: the means have its signs, and intervals hold 0."
    return "not reproduced: the means do not have the signs of the paper, and intervals hold 0."


def _cost(depth: int) -> dict[str, float]:
    """MFLOP of an image and weights of the detector, and of the branch that would come on top."""
    counts = []
    for strategy in (Backprop(), PGI(auxiliary=Detect(), branch="elan", elan_depth=depth, csp_depth=depth)):
        model = detector(IMAGE, len(NAMES), elan_depth=depth, csp_depth=depth)
        task = Detection(NAMES)
        learner = assemble(model, strategy, AdamW(), model.cut([4, 6, 8]), Setup(task=task))
        x = torch.zeros(1, *IMAGE)
        y = torch.full((1, 1, 5), -1.0)
        with Flops() as counter:
            _forward(learner, x, y)
        counts.append((counter.total / 1e6, sum(p.numel() for _, p in learner.parameters())))
    (flops, weights), (all_flops, all_weights) = counts
    return {"flops": flops, "branch_flops": all_flops - flops, "weights": weights, "branch": all_weights - weights}


def _forward(learner: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    """The forward halves of a step, in eval mode: units, head, and what the strategy has beside them."""
    packet = learner.strategy.begin(Packet(x, y))
    for block in learner.blocks:
        for module in (block.layers, block.head, block.auxiliary):
            if module is not None:
                module.eval()
        packet = next(learner.strategy.step(block, packet)).ahead


def _warm_up(runs: Runs) -> dict[str, Any]:
    """First principal components of the chosen units, in 256 levels, of the first test image: at the initial weights,
    and after one epoch of each row."""
    found: dict[str, Any] = {}
    for row in ("warm-up, baseline", "warm-up, PGI"):
        run = runs.by_row[row][0]
        for epoch, name in ((0, "initial"), (1, row.removeprefix("warm-up, "))):
            with np.load(run.path / "probes" / "features" / f"epoch-{epoch:05d}.npz") as arrays:
                keys = sorted(key for key in arrays if key.endswith("/component"))
                found[name] = [_levels(arrays[key]) for key in keys]
                found["image"] = _levels(arrays["input"].mean(0))
        found["units"] = [r["name"] for r in run.rows["features"] if r["epoch"] == 0]
    return found


def _levels(image: np.ndarray) -> list[list[int]]:
    """A map [H, W] in 256 levels from its least to its largest number, at most `SIDE` cells high."""
    step = max(1, image.shape[0] // SIDE)
    image = image[::step, ::step].astype(float)
    return ((image - image.min()) * (255 / (np.ptp(image) or 1.0))).round().astype(int).tolist()


def _gallery(maps: dict[str, Any]) -> Figure:
    """Units to the right; the initial weights, the baseline and PGI downward."""
    names = ("initial", "baseline", "PGI")
    columns = 1 + len(maps["units"])
    figure, axes = panels(columns, len(names), 0.9, 0.75)
    for axis in axes:
        bare(axis)
    axes[0].imshow(maps["image"], cmap="gray")
    for k, name in enumerate(names):
        for j, (axis, shown, unit) in enumerate(zip(axes[k * columns + 1 :], maps[name], maps["units"], strict=False)):
            axis.imshow(shown, cmap="viridis", interpolation="nearest")
            bare(axis, unit if k == 0 else "", name if j == 0 else "")
    figure.suptitle("First principal component of a unit's newest map", fontsize=8)
    return figure
