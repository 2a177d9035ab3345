"""How much of the image is left with depth: in four untrained nets, and after one warm-up epoch of three strategies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeAlias

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
from studies.common import Options, mean, runs, spread, table, verdicts

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Results: TypeAlias = dict

NUMBER = 6
NAME = "information_loss"
TITLE = "Information loss with depth"
NEEDS_DATA = False
TEXT = (
    "What of the image is left at some depth is measured by linear reconstruction: ridge regression in closed form "
    "from all features of a layer to the pixels, fitted on 600 training images of Fashion-MNIST and scored on "
    "test images. The explained variance is a lower bound of what is there: 1 is the whole image, 0 what the mean "
    "image gives. *Initial weights:* four stacks of one kind of unit each, at one width (16 channels) and one "
    "resolution (14x14, after a stem of stride 2), all of convolution-BN-SiLU with PyTorch's initialisation, so "
    "that only the way in which a unit is joined differs; BN has the statistics of the training images, as in a "
    "first step. Depth counts the convolutions on the longest path. The claim is that of Wang, Yeh & Liao 2024 "
    "(YOLOv9, arXiv 2402.13616, figures 1 and 6). *Warm-up:* GELAN at a quarter of its width (8 units) "
    "in four blocks, one epoch on a twentieth of the training set, by backprop, deep supervision "
    "and PGI from the same weights (figure 7 there, with and without PGI); *untrained* is the same epoch at a rate of "
    "0, so that only the statistics of BN are learned. The paper judges both by eye. Bands: least and largest of 2 "
    "seeds."
)

SEEDS = (0, 1)
WIDTH = 16
TRAIN, TEST = 600, 300
IMAGE = 1  # the test image whose maps are drawn
DEPTHS = (1, 5, 10, 15, 25, 50, 100)
STRATEGIES = {
    "untrained": "strategy=backprop optim.lr=0",
    "backprop": "strategy=backprop optim.lr=2e-3",
    "deep_supervision": "strategy=deep_supervision optim.lr=2e-3",
    "pgi": "strategy=pgi strategy.width=16 optim.lr=2e-3",
}
UNITS = 8

Unit: TypeAlias = Callable[[], nn.Module]
NETS: dict[str, tuple[int, Unit]] = {  # convolutions on the longest path of a unit, and the unit
    "PlainNet": (1, lambda: conv(WIDTH, WIDTH, 3)),
    "ResNet": (2, lambda: Residual(conv(WIDTH, WIDTH, 3), conv(WIDTH, WIDTH, 3))),
    "CSPNet": (4, lambda: CSP(WIDTH, 1)),
    "GELAN": (12, lambda: ELAN(WIDTH, "csp", 2, 1)),
}


def run(options: Options) -> Results:
    started = time.perf_counter()
    data = loaded(options)
    train, test = (sample(data, split, n)[0] for split, n in (("train", TRAIN), ("test", TEST)))
    if options.quick:
        train, test = train[:40], test[:20]
    depths = DEPTHS[:3] if options.quick else DEPTHS
    tasks = [(net, seed) for net in NETS for seed in (SEEDS[:1] if options.quick else SEEDS)]
    stacks = [(*stack(net, seed, data.image[0], depths[-1]), depths) for net, seed in tasks]  # not in threads: it draws
    torch.set_num_threads(1)
    with ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda stack: untrained(*stack, data, train, test), stacks))
    options.seconds += options.jobs * (time.perf_counter() - started)
    initial: Results = {net: [] for net in NETS}
    for (net, seed), points in zip(tasks, found, strict=True):
        initial[net].append([p if seed == SEEDS[0] else {**p, "map": None} for p in points])  # one seed is drawn
    return {
        "image": levels(as_pixels(test[IMAGE], data.pixels)[0]),
        "steps": {net: step for net, (step, _) in NETS.items()},
        "initial": initial,
        "warm_up": warm_up(options),
    }


def loaded(options: Options) -> Data:
    """The images as a run with seed 0 has them."""
    given = ["data=digits"] if options.quick else ["data=fashion_mnist"]
    chosen = experiment(*compose([*given, *([f"data.root={options.data}"] if options.data else [])]), [])
    return chosen.source.load(chosen.settings.seed, torch.device("cpu"))


def stack(net: str, seed: int, channels: int, depth: int) -> tuple[int, list[nn.Module]]:
    """Convolutions on the longest path of a unit, and a stem of stride 2 with as many units as `depth` takes."""
    step, make = NETS[net]
    with seeds.stream(seed, "information_loss", net):
        return step, [conv(channels, WIDTH, 3, 2), *(make() for _ in range(math.ceil((depth - 1) / step)))]


@torch.no_grad()
def untrained(
    step: int, units: list[nn.Module], depths: Sequence[int], data: Data, train: Tensor, test: Tensor
) -> list[Results]:
    """Unit by unit: at the first one that reaches each of `depths`, what is kept of the test images, and a map of one
    of them."""
    pixels = as_pixels(train, data.pixels), as_pixels(test, data.pixels)
    found: list[Results] = []
    left = list(depths)
    for k, unit in enumerate(units):
        train, test = calibrated(unit, train, test)
        if (depth := 1 + k * step) < left[0]:
            continue
        h, held_out = standardised(train, test)
        number = kept(ridge(h, pixels[0], held_out)[0], pixels[1])
        shown = levels(maps(test[IMAGE]).component)
        found.append({"depth": depth, "explained_variance": number.explained_variance, "map": shown})
        left = [wanted for wanted in left if wanted > depth]
    return found


def calibrated(unit: nn.Module, train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """What a unit makes of both, its BN with the statistics of `train`."""
    for module in unit.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    return unit.train()(train), unit.eval()(test)


def levels(image: Tensor) -> list[list[int]]:
    """A map [H, W] or the first channel of an image [C, H, W] in 256 levels, from its least to its largest number."""
    image = (image[0] if image.dim() == 3 else image).double()
    span = float(image.max() - image.min()) or 1.0
    return ((image - image.min()) * (255 / span)).round().int().tolist()


def warm_up(options: Options) -> Results:
    """Per strategy: explained variance [seed][unit] after one epoch, and test accuracy [seed] in percent."""
    common = (
        "data=fashion_mnist data.fraction=0.05 data.validation=0 model=gelan model.width=0.25 blocks=4 batch_size=32"
    )
    layers, repeats, samples = list(range(UNITS)), SEEDS, TRAIN
    if options.quick:
        common, layers, repeats, samples = "data=digits model=lenet max_steps=2", [0, 1], SEEDS[:1], 40
    common += f" epochs=1 checkpoint.every=never probe=reconstruction probe.reconstruction.samples={samples}"
    common += f" probe.reconstruction.layers=[{','.join(map(str, layers))}]"
    given = {(name, k): f"{text} {common} seed={k}" for name, text in STRATEGIES.items() for k in repeats}
    found = runs(given, options)
    results: Results = {}
    for name in STRATEGIES:
        of = [found[name, k] for k in repeats]
        after = [[row for row in run.rows("reconstruction") if row["epoch"] == 1] for run in of]
        results[name] = {
            "names": [row["name"] for row in after[0]],
            "kept": [[row["explained_variance"] for row in rows] for rows in after],
            "accuracy": [100 * run.summary["test/accuracy"] for run in of],
        }
    return results


def draw(results: Results) -> dict[str, Figure]:
    figure, (initial, warm) = panels(2)
    for (net, repeats), colour in zip(results["initial"].items(), COLOURS, strict=False):
        depths = [point["depth"] for point in repeats[0]]
        line(initial, depths, [[p["explained_variance"] for p in points] for points in repeats], net, colour)
    initial.set(xlabel="Depth in convolutions", xscale="symlog")
    initial.set_xticks([1, 5, 10, 25, 50, 100], ["1", "5", "10", "25", "50", "100"], minor=False)
    initial.set_xticks([], minor=True)
    for name, found in results["warm_up"].items():
        style, colour = ("--", "#999999") if name == "untrained" else ("-", by_strategy(name))
        line(warm, list(range(len(found["names"]))), found["kept"], name, colour, style)
    warm.set(xlabel="Unit")
    warm.set_xticks(range(len(found["names"])), found["names"], fontsize=6)
    for axis, title in ((initial, "Initial weights"), (warm, "GELAN after one warm-up epoch")):
        axis.set_title(title, fontsize=8)
        axis.set(ylabel="Explained variance of the image", ylim=(-0.05, 1.05))
        axis.legend(fontsize=7, frameon=False)
    return {NAME: figure, f"{NAME}_maps": draw_maps(results)}


def line(axis: Axes, x: list[int], repeats: list[list[float]], label: str, colour: str, style: str = "-") -> None:
    """Mean over the seeds, and least and largest as a band."""
    values = list(zip(*repeats, strict=True))
    axis.fill_between(x, [min(v) for v in values], [max(v) for v in values], color=colour, alpha=0.2, lw=0)
    axis.plot(x, [mean(v) for v in values], style, marker="o", ms=3, color=colour, label=label)


def draw_maps(results: Results) -> Figure:
    """First principal component of the channels, one net per row, deeper to the right."""
    columns = 1 + max(len(repeats[0]) for repeats in results["initial"].values())
    figure, axes = panels(columns, len(results["initial"]), 0.8, 0.85)
    for axis in axes:
        bare(axis)
    axes[0].imshow(results["image"], cmap="gray", interpolation="nearest")
    bare(axes[0], "image")
    for k, (net, repeats) in enumerate(results["initial"].items()):
        for j, (axis, point) in enumerate(zip(axes[k * columns + 1 :], repeats[0], strict=False)):
            axis.imshow(point["map"], cmap="viridis", interpolation="nearest")
            bare(axis, f"{point['depth']}", "" if j else net)
    figure.suptitle("First principal component of the maps by depth", fontsize=8)
    return figure


def render(results: Results) -> Iterator[str]:
    if "steps" not in results:
        yield (
            "**The numbers and pictures of GELAN below are not of the published block**: its branches had a quarter of "
            "the channels, behind a 1x1 convolution more, and no re-parameterised convolutions (13 convolutions deep). "
            "The block is that of the authors' code now (half of the channels, 12 deep); the study has not been run "
            "again.\n"
        )
    yield "Explained variance of the image at the initial weights, at the first unit that reaches a depth.\n"
    nets = results["initial"]
    depths = [p["depth"] for p in nets["PlainNet"][0]]
    yield from table(
        ["net", *(f"depth {d}" for d in depths)],
        [[net, *(spread([reached(points, d) for points in found]) for d in depths)] for net, found in nets.items()],
    )
    warm = results["warm_up"]
    yield "\nGELAN after one warm-up epoch: explained variance by unit, and test accuracy.\n"
    yield from table(
        ["", *next(iter(warm.values()))["names"], "test accuracy in percent"],
        [[name, *by_unit(found["kept"]), spread(found["accuracy"], 1)] for name, found in warm.items()],
    )
    end = {net: mean(points[-1]["explained_variance"] for points in found) for net, found in nets.items()}
    top = {name: [values[-1] for values in found["kept"]] for name, found in warm.items()}
    yield from verdicts(claims(end, top))


def reached(points: list[Results], depth: int) -> float:
    return next(p["explained_variance"] for p in points if p["depth"] >= depth)


def by_unit(repeats: list[list[float]]) -> list[str]:
    return [spread(list(values)) for values in zip(*repeats, strict=True)]


def claims(end: dict[str, float], top: dict[str, list[float]]) -> Iterator[tuple[bool, str]]:
    """What YOLOv9 says, of the last depth of each net and of the last unit under each strategy, by seed."""
    said = ", ".join(f"{net} {value:.2f}" for net, value in end.items())
    rest = [value for net, value in end.items() if net != "PlainNet"]
    yield (
        end["PlainNet"] < min(rest),
        f"without shortcuts the image is lost first (figure 6); last depth: {said}.",
    )
    yield (
        end["GELAN"] > end["ResNet"],
        "GELAN keeps more there than ResNet (figure 6: usable to layers 150-200, against 100).",
    )
    yield end["GELAN"] > end["CSPNet"], "GELAN keeps more than CSPNet (figure 1)."
    said = ", ".join(f"{strategy} {spread(values)}" for strategy, values in top.items())
    yield (
        min(top["pgi"]) > max(top["backprop"] + top["deep_supervision"]),
        f"after warm-up the last unit keeps most under PGI, whatever the seed (figure 7, by eye): {said}.",
    )
