"""The information plane of a model's layers while it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from annotated_types import Ge, Gt, Interval
from torch import Tensor

from locallearn.analysis.information import (
    ESTIMATORS,
    NEED_X,
    Information,
    bounds,
    data_processing,
    information,
    noise_from_distances,
)
from locallearn.analysis.information.pairwise import DIVISOR, SHARE
from locallearn.errors import UserError
from locallearn.figures.plane import plane
from locallearn.figures.style import COLOURS, panels, spaced
from locallearn.options import OneOf
from locallearn.probes import (
    CLASS_LABELS,
    Arrays,
    Data,
    Learner,
    Moment,
    Pictures,
    Probe,
    Row,
    Seen,
    by_layer,
    outputs,
    sample,
)
from locallearn.probes.depth import SPLITS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = 8
Variance: TypeAlias = Annotated[float, Gt(0)]
Pair: TypeAlias = tuple[Information | None, Information]


@dataclass(frozen=True)
class InformationPlane(Probe):
    """I(X;T) and I(T;Y) of every unit of the model, in bits (Shwartz-Ziv and Tishby 2017; Saxe et al. 2018). Per layer:

    i_x_t, i_t_y   of `kde` by the upper bound, of others the estimate; None where it has none
    i_x_t_lower, i_x_t_upper, i_t_y_lower, i_t_y_upper   of `kde`, by the lower and the upper bound (see
        `analysis.information.bounds`: of I(T;Y) they are differences of bounds)
    estimator, noise_variance, bins, samples, h_y (bits, of those samples)   its convention
    warnings   sentences joined, or None: above H(Y), saturated at log2 N, a data-processing inequality broken, ...

    Of `kde`, N^2 D operations per layer. A look on one core, of a net of six layers of at most 10 units on 4096 samples
    and of lenet on 2000 images: kde 0.8 s each, binned 0.01 and 0.2 s; on lenet renyi 5 s, ksg a minute (its distances
    are of the inputs too), mine 4 s for each quantity and layer.

    estimator       kde (both bounds), or one of `locallearn.information`
    noise_variance  of the Gaussian noise on the activations: a number, one for each layer ([5, 2, 0.3] or {conv1: 5,
                    ...}), or `distances` for that of each layer at each look (the percentile of its squared pairwise
                    distances / divisor, drawn); null: the estimator's own, 0.1 for kde
    percentile, divisor  of `distances`
    bins            of `binned`: an int for their number on the layer's range at that look, a float for their width,
                    edges, or `tanh` for those of Shwartz-Ziv and Tishby (see `analysis.information.binned`)
    split, samples  what is looked at: train, validation, test or all, and how many samples of it
    """

    estimator: Annotated[str, OneOf((*ESTIMATORS, "kde"))] = "kde"
    noise_variance: Variance | list[Variance] | dict[str, Variance] | Literal["distances"] | None = None
    percentile: Annotated[float, Interval(gt=0, le=1)] = SHARE
    divisor: Annotated[float, Gt(0)] = DIVISOR
    bins: int | float | Literal["tanh"] | list[float] = 30
    split: Annotated[str, OneOf(SPLITS)] = "test"
    samples: Annotated[int, Ge(2)] = 2000
    tasks = CLASS_LABELS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator == "gaussian" and self.noise_variance is None:
            where = self._group
            raise UserError(f"{where}.estimator=gaussian needs the noise: give {where}.noise_variance=")

    def unread(self) -> Mapping[str, str]:
        where = "probe.information_plane.estimator"
        options = {"noise_variance": f"{where}=kde, or another that adds noise"}
        if self.estimator != "binned":
            options = {"bins": f"{where}=binned"}
        if self.estimator == "binned" or self.noise_variance != "distances":
            options |= dict.fromkeys(("percentile", "divisor"), "probe.information_plane.noise_variance=distances")
        return options

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, labels = sample(data, self.split, self.samples)
        arrays: dict[str, Tensor] = {}
        pairs = []
        for k, (t, variance) in enumerate(zip(outputs(learner, inputs), self._variances(learner), strict=True)):
            if variance == "distances" and self.estimator != "binned":
                variance, _, counts, edges = noise_from_distances(t, self.percentile, self.divisor)
                arrays |= {f"counts-{k:02d}": counts, f"edges-{k:02d}": edges}
                arrays[f"noise-{k:02d}"] = edges.new_tensor(variance)
            pairs.append(self._estimate(t, labels, inputs, variance))
        broken = data_processing([upper for _, upper in pairs])
        sentences = ([text for layer, text in broken if layer == k] for k in range(len(pairs)))
        return Seen(by_layer(learner, map(_row, pairs, sentences)), arrays)

    def _variances(self, learner: Learner) -> Sequence[float | str | None]:
        """For each unit of the model. Raises UserError where they are not as many, or name others."""
        given, names = self.noise_variance, learner.model.names
        if isinstance(given, dict) and set(given) == set(names):
            return [given[name] for name in names]
        if isinstance(given, list | dict) and not (isinstance(given, list) and len(given) == len(names)):
            raise UserError(
                f"{self._group}.noise_variance={given}: {learner.model.name} has {len(names)} units: give a number, or "
                f"one for each of {', '.join(names)}"
            )
        return given if isinstance(given, list) else [given] * len(names)

    def _estimate(self, t: Tensor, labels: Tensor, inputs: Tensor, variance: float | str | None) -> Pair:
        """Of one layer's activations [N, D...]: by the lower bound (None of other estimators), and by the upper."""
        if self.estimator == "kde":
            return bounds(t, labels, 0.1 if variance is None else float(variance))
        x = inputs if self.estimator in NEED_X else None
        return None, information(t, labels, self.estimator, variance, self.bins, x)

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        figures = {"plane": plane([rows])}
        if any(arrays.values()):
            figures["distances"] = _draw_distances(arrays, self.percentile, self.divisor)
        return figures


def _row(pair: Pair, broken: Sequence[str]) -> Row:
    """The numbers of one layer, with the sentences of `data_processing` about it."""
    lower, upper = pair
    row: Row = {"i_x_t": upper.x, "i_t_y": upper.y}
    if lower is not None:
        row |= {"i_x_t_lower": lower.x, "i_x_t_upper": upper.x, "i_t_y_lower": lower.y, "i_t_y_upper": upper.y}
    row |= {name: getattr(upper, name) for name in ("h_y", "estimator", "noise_variance", "bins", "samples")}
    return row | {"warnings": "; ".join([*upper.warnings, *broken]) or None}


def _draw_distances(arrays: Mapping[int, Mapping[str, Tensor]], percentile: float, divisor: float) -> Figure:
    """The squared distances that the noise was taken from, against their own percentile, at the first and the last
    look; a panel for each of up to eight layers."""
    looks = [epoch for epoch in sorted(arrays) if arrays[epoch]]
    layers = sorted(int(key.removeprefix("counts-")) for key in arrays[looks[-1]] if key.startswith("counts-"))
    chosen = spaced(layers, PANELS)
    columns = min(4, len(chosen))
    figure, axes = panels(columns, -(-len(chosen) // columns), width=2.1, height=1.9)
    for panel, layer in zip(axes, chosen, strict=False):
        for epoch, colour in zip(dict.fromkeys((looks[0], looks[-1])), COLOURS, strict=False):
            counts, edges, variance = (
                arrays[epoch][f"{kind}-{layer:02d}"].double() for kind in ("counts", "edges", "noise")
            )
            edges = edges / (variance * divisor)
            density = counts / counts.sum() / edges.diff()
            panel.stairs(density.tolist(), edges.tolist(), color=colour, label=f"epoch {epoch}: {float(variance):.2g}")
        panel.axvline(1.0, color=COLOURS[6], linestyle="--", linewidth=0.8)
        panel.set_xlim(0, 3)
        panel.set(
            title=f"layer {layer}",
            xlabel=f"squared distance / {100 * percentile:g}th percentile",
            ylabel="density of pairs",
        )
        panel.legend(title="noise variance")
    for panel in axes[len(chosen) :]:
        panel.set_visible(False)
    return figure
