"""What passes the bottlenecks of a model, and what it answers through their noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Annotated

import torch
from annotated_types import Ge
from torch import Tensor
from torch.nn import functional as F

from locallearn.errors import UserError
from locallearn.figures import panels
from locallearn.models.bottleneck import NoiseModule, Noisy
from locallearn.prices import as_in_training
from locallearn.probes import CLASS_LABELS, Curve, Data, Learner, Moment, Probe, Row, Seen, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH = 256
SLACK = 0.05
"""Bits by which samples may err."""


@dataclass(frozen=True)
class BottleneckProbe(Probe):
    """For each place of `bottleneck=`:

    bits, or bits_relative   of a sample, mean: an upper bound of I(z; x), or above the noisiest state

    and for the model, in the row of its head, with noise at every place:

    i_z_y      H(Y) - cross-entropy in bits, a lower bound of I(z; y), mean over the draws; label_bits  H(Y)
    accuracy_one_draw, accuracy_draws   of one draw of the noise, and of the mean of the probabilities of all draws
    warnings   where fewer bits pass a place than the model reads of the label, which cannot be

    Pictures: the bits at each position of a map, summed over its channels, above the least of them.

    samples, split  what is looked at: how many samples, of train, validation, test or all
    draws           of the noise
    images          rows of the picture
    """

    samples: Annotated[int, Ge(2)] = 2000
    split: str = "test"
    draws: Annotated[int, Ge(1)] = 12
    images: Annotated[int, Ge(1)] = 4
    tasks = CLASS_LABELS
    curves = (
        Curve("bits", "what passes [bits]", log=True),
        Curve("bits_relative", "what passes, above the noisiest [bits]", log=True),
        Curve("i_z_y", "I(z; y), lower bound [bits]", level="label_bits"),
    )

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        model = learner.model.eval()
        places = {i: unit.noise for i, unit in enumerate(model.units) if isinstance(unit, Noisy)}
        if not places:
            raise UserError(
                "probe.bottleneck looks at bottlenecks, but there is none: choose bottleneck=vib or another"
            )
        inputs, labels = sample(data, self.split, self.samples)
        inputs, labels = inputs[labels >= 0], labels[labels >= 0]
        answers, arrays = [], {}
        with torch.no_grad(), as_in_training([*places.values()]):
            for draw in range(self.draws):
                logits, readings = _pass(learner, inputs, places)
                answers.append(logits)
                if draw == 0:
                    maps = {
                        i: noise.map for i, noise in places.items() if noise.map is not None and noise.map.dim() == 4
                    }
                    arrays = {f"map-{i:02d}": m[: self.images].sum(1) / math.log(2) for i, m in maps.items()}
        bits = math.log(2)
        h_y = float(torch.special.entr(torch.bincount(labels).double() / len(labels)).sum()) / bits
        i_z_y = h_y - fmean(float(F.cross_entropy(each, labels)) for each in answers) / bits
        averaged = torch.stack(answers).softmax(2).mean(0)
        rows: list[Row] = []
        for i, (name, passes) in readings.items():
            low = name == "bits" and passes < i_z_y - SLACK
            warning = f"{passes:.3f} bits pass, and {i_z_y:.3f} of the label are read behind" if low else None
            of_place: Row = {name: passes, "beta": places[i].beta, "label_bits": h_y, "warnings": warning}
            rows.append({"layer": i, "name": model.names[i]} | of_place)
        head: Row = {"i_z_y": i_z_y, "label_bits": h_y, "draws": self.draws}
        head["accuracy_one_draw"] = fmean(_accuracy(each, labels) for each in answers)
        head["accuracy_draws"] = _accuracy(averaged, labels)
        rows.append({"layer": len(model.units), "name": "head"} | head)
        return Seen(rows, arrays | ({"images": inputs[: self.images].float()} if arrays else {}))

    def snapshot(self, rows: Sequence[Row], arrays: Mapping[str, Tensor]) -> Figure | None:
        places = sorted(key for key in arrays if key.startswith("map-"))
        names = {f"map-{row['layer']:02d}": row["name"] for row in rows}
        images = arrays["images"]
        figure, axes = panels(1 + len(places), len(images), width=1.4, height=1.2)
        for k, image in enumerate(images):
            first, *others = axes[k * (1 + len(places)) : (k + 1) * (1 + len(places))]
            low, high = image.min(), image.max()
            first.imshow(((image - low) / (high - low).clamp(min=1e-9)).movedim(0, -1).squeeze(-1), cmap="gray")
            for axis, place in zip(others, places, strict=True):
                bits = arrays[place][k]
                axis.imshow(bits - bits.min(), cmap="magma")
                if not k:
                    axis.set_title(names[place], fontsize=8)
        for axis in axes:
            axis.set_axis_off()
        return figure


def _pass(
    learner: Learner, inputs: Tensor, places: Mapping[int, NoiseModule]
) -> tuple[Tensor, dict[int, tuple[str, float]]]:
    """Logits [N, classes], and what each place has read, its name and its mean."""
    model, logits = learner.model, []
    sums: dict[int, tuple[str, float]] = {}
    for x in reversed(inputs.split(model.samples or BATCH)):  # the first images last: their maps stay
        with learner.stage.autocast():
            logits.append(model(learner.prepare(x)).double())
        for i, noise in places.items():
            *_, (name, bits) = noise.taken()
            sums[i] = name.removesuffix(noise.suffix), sums.get(i, ("", 0.0))[1] + float(bits) * len(x) / len(inputs)
    return torch.cat(logits[::-1]), sums


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(1) == labels).double().mean())
