"""How much of the image is left with depth: in four untrained nets, and after one warm-up epoch of three strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import fmean
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from locallearn import seeds
from locallearn.analysis.decoder import kept, ridge, standardised
from locallearn.analysis.features import as_pixels, maps
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.data import Data
from locallearn.figures.style import COLOURS, bare, by_strategy, panels
from locallearn.models.gelan import CSP, ELAN, Residual, conv
from locallearn.probes.depth import sample
from locallearn.studies.analysis import Analysis, Runs, markdown_table, mean_std, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRATEGIES = ("untrained", "backprop", "deep_supervision", "pgi")
SEEDS = (0, 1)
WIDTH = 16
TRAIN, TEST = 600, 300
IMAGE = 1  # the test image whose maps are drawn
DEPTHS = (1, 5, 10, 15, 25, 50, 100)

Unit: TypeAlias = Callable[[], nn.Module]
NETS: dict[str, tuple[int, Unit]] = {  # convolutions on the longest path of a unit, and the unit
    "PlainNet": (1, lambda: conv(WIDTH, WIDTH, 3)),
    "ResNet": (2, lambda: Residual(conv(WIDTH, WIDTH, 3), conv(WIDTH, WIDTH, 3))),
    "CSPNet": (4, lambda: CSP(WIDTH, 1)),
    "GELAN": (12, lambda: ELAN(WIDTH, "csp", 2, 1)),
}


class InformationLoss(Analysis):
    """Explained variance of the image by depth, at the initial weights of four stacks and after a warm-up epoch."""

    def measure(self, runs: Runs) -> dict[str, Any]:
        data = _images(runs)
        train, test = (sample(data, split, n)[0] for split, n in (("train", TRAIN), ("test", TEST)))
        if runs.quick:
            train, test = train[:40], test[:20]
        depths = DEPTHS[:3] if runs.quick else DEPTHS
        tasks = [(net, seed) for net in NETS for seed in (SEEDS[:1] if runs.quick else SEEDS)]
        # not in threads: it draws random numbers
        stacks = [_stack(net, seed, data.image[0], depths[-1]) for net, seed in tasks]
        torch.set_num_threads(1)
        with ThreadPoolExecutor(runs.jobs) as pool:
            points = list(pool.map(lambda stack: _untrained(stack, depths, data, train, test), stacks))
        initial: dict[str, list[Any]] = {net: [] for net in NETS}
        for (net, seed), own in zip(tasks, points, strict=True):
            initial[net].append([p if seed == SEEDS[0] else {**p, "map": None} for p in own])  # one seed is drawn
        return {
            "image": _levels(as_pixels(test[IMAGE], data.pixels)[0]),
            "steps": {net: step for net, (step, _) in NETS.items()},
            "initial": initial,
            "warm_up": {name: _warmed_up(runs, name) for name in STRATEGIES},
        }

    def draw(self, numbers: dict[str, Any]) -> dict[str, Figure]:
        figure, (initial, warm) = panels(2)
        for (net, repeats), colour in zip(numbers["initial"].items(), COLOURS, strict=False):
            depths = [point["depth"] for point in repeats[0]]
            _band(initial, depths, [[p["explained_variance"] for p in points] for points in repeats], net, colour)
        initial.set(xlabel="Depth in convolutions", xscale="symlog")
        initial.set_xticks([1, 5, 10, 25, 50, 100], ["1", "5", "10", "25", "50", "100"], minor=False)
        initial.set_xticks([], minor=True)
        for name, own in numbers["warm_up"].items():
            style, colour = ("--", "#999999") if name == "untrained" else ("-", by_strategy(name))
            _band(warm, list(range(len(own["names"]))), own["kept"], name, colour, style)
        warm.set(xlabel="Unit")
        warm.set_xticks(range(len(own["names"])), own["names"], fontsize=6)
        for axis, title in ((initial, "Initial weights"), (warm, "GELAN after one warm-up epoch")):
            axis.set_title(title, fontsize=8)
            axis.set(ylabel="Explained variance of the image", ylim=(-0.05, 1.05))
            axis.legend(fontsize=7, frameon=False)
        return {"": figure, "maps": _maps(numbers)}

    def tell(self, numbers: dict[str, Any]) -> Iterator[str]:
        yield "Explained variance of the image at the initial weights, at the first unit that reaches each depth.\n"
        nets, warm = numbers["initial"], numbers["warm_up"]
        depths = [point["depth"] for point in nets["PlainNet"][0]]
        yield from markdown_table(
            ["net", *(f"depth {d}" for d in depths)],
            [[net, *(mean_std([_reached(points, d) for points in own]) for d in depths)] for net, own in nets.items()],
        )
        yield "\nGELAN after one warm-up epoch: explained variance by unit, and test accuracy.\n"
        yield from markdown_table(
            ["", *next(iter(warm.values()))["names"], "test accuracy in percent"],
            [
                [name, *map(mean_std, zip(*own["kept"], strict=True)), mean_std(own["accuracy"], 1)]
                for name, own in warm.items()
            ],
        )
        end = {net: fmean(points[-1]["explained_variance"] for points in own) for net, own in nets.items()}
        top = {name: [values[-1] for values in own["kept"]] for name, own in warm.items()}
        at_end = ", ".join(f"{net} {value:.2f}" for net, value in end.items())
        at_top = ", ".join(f"{strategy} {mean_std(values)}" for strategy, values in top.items())
        yield from verdicts(
            (
                end["PlainNet"] < min(value for net, value in end.items() if net != "PlainNet"),
                f"without shortcuts the image is lost first (figure 6); at the last depth: {at_end}.",
            ),
            (
                end["GELAN"] > end["ResNet"],
                "GELAN keeps more there than ResNet (figure 6: usable up to layers 150-200, against 100).",
            ),
            (end["GELAN"] > end["CSPNet"], "GELAN keeps more than CSPNet (figure 1)."),
            (
                min(top["pgi"]) > max(top["backprop"] + top["deep_supervision"]),
                f"after warm-up the last unit keeps most under PGI, for every seed (figure 7, by eye): {at_top}.",
            ),
        )


def _images(runs: Runs) -> Data:
    """The images as a run with seed 0 has them."""
    words = ["data=digits"] if runs.quick else ["data=fashion_mnist"]
    exp = experiment(*compose([*words, *([f"data.root={runs.data}"] if runs.data else [])]), [])
    return exp.source.load(exp.settings.seed, torch.device("cpu"))


def _stack(net: str, seed: int, channels: int, depth: int) -> tuple[int, list[nn.Module]]:
    """Convolutions on the longest path of a unit, and a stem of stride 2 with as many units as `depth` takes."""
    step, make = NETS[net]
    with seeds.stream(seed, "information_loss", net):
        return step, [conv(channels, WIDTH, 3, 2), *(make() for _ in range(math.ceil((depth - 1) / step)))]


@torch.no_grad()
def _untrained(
    stack: tuple[int, list[nn.Module]], depths: Sequence[int], data: Data, train: Tensor, test: Tensor
) -> list[dict[str, Any]]:
    """Unit by unit: at the first one that reaches each of `depths`, what is kept of the test images, and a map of one
    of them."""
    step, units = stack
    pixels = as_pixels(train, data.pixels), as_pixels(test, data.pixels)
    points: list[dict[str, Any]] = []
    left = list(depths)
    for k, unit in enumerate(units):
        train, test = _calibrated(unit, train, test)
        if (depth := 1 + k * step) < left[0]:
            continue
        h, held_out = standardised(train, test)
        number = kept(ridge(h, pixels[0], held_out)[0], pixels[1])
        shown = _levels(maps(test[IMAGE]).component)
        points.append({"depth": depth, "explained_variance": number.explained_variance, "map": shown})
        left = [wanted for wanted in left if wanted > depth]
    return points


def _calibrated(unit: nn.Module, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """What a unit makes of both, its BN with the statistics of `train`."""
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return unit.train()(train), unit.eval()(test)


def _levels(image: Tensor) -> list[list[int]]:
    """A map [H, W] or the first channel of an image [C, H, W] in 256 levels, from its least to its largest number."""
    image = (image[0] if image.dim() == 3 else image).double()
    span = float(image.max() - image.min()) or 1.0
    return ((image - image.min()) * (255 / span)).round().int().tolist()


def _warmed_up(runs: Runs, row: str) -> dict[str, Any]:
    """Explained variance [seed][unit] after one epoch, and test accuracy [seed] in percent."""
    after = [[r for r in rows if r["epoch"] == 1] for rows in runs.rows(row, "reconstruction")]
    variances = [[r["explained_variance"] for r in rows] for rows in after]
    return {"names": [r["name"] for r in after[0]], "kept": variances, "accuracy": runs.accuracy(row)}


def _band(axis: Axes, x: list[int], repeats: list[list[float]], label: str, colour: str, style: str = "-") -> None:
    """Mean over the seeds, and least and largest as a band."""
    values = list(zip(*repeats, strict=True))
    axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, lw=0)
    axis.plot(x, [fmean(v) for v in values], style, marker="o", ms=3, color=colour, label=label)


def _maps(numbers: dict[str, Any]) -> Figure:
    """First principal component of the channels, one net per row, deeper to the right."""
    columns = 1 + max(len(repeats[0]) for repeats in numbers["initial"].values())
    figure, axes = panels(columns, len(numbers["initial"]), 0.8, 0.85)
    for axis in axes:
        bare(axis)
    axes[0].imshow(numbers["image"], cmap="gray", interpolation="nearest")
    bare(axes[0], "image")
    for k, (net, repeats) in enumerate(numbers["initial"].items()):
        for j, (axis, point) in enumerate(zip(axes[k * columns + 1 :], repeats[0], strict=False)):
            axis.imshow(point["map"], cmap="viridis", interpolation="nearest")
            bare(axis, f"{point['depth']}", "" if j else net)
    figure.suptitle("First principal component of the maps by depth", fontsize=8)
    return figure


def _reached(points: list[dict[str, Any]], depth: int) -> float:
    return next(p["explained_variance"] for p in points if p["depth"] >= depth)
