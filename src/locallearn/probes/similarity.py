"""Which layers represent the samples alike: centred kernel alignment between depths, and between two runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge
from torch import Tensor

from locallearn import stored
from locallearn.analysis.similarity import cka_matrix
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import UserError
from locallearn.figures import name_layers, panels
from locallearn.models import BlockModel
from locallearn.options import OneOf
from locallearn.probes.base import Moment, Probe, Row, Seen
from locallearn.probes.depth import SPLITS, outputs, sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILE = "model.safetensors"


@dataclass(frozen=True)
class Similarity(Probe):
    """Linear CKA (Kornblith et al. 2019), with the unbiased estimator (Nguyen et al. 2021), between what every two
    layers (units of the model) emit for the same samples. Per layer:

    cka_input, cka_below, cka_last   with the input, the layer below and the last layer
    cka_other                        with the same layer of the other run

    NaN for a layer that emits the same for every sample, or what is not finite. Arrays: `cka` [1 + layers, 1 + layers],
    the input first, and `cka_other` [layers, layers of the other run].

    samples  how many of a split; of a graph all nodes
    split    train, validation, test or all
    other    folder of a finished run of the same model
    """

    samples: Annotated[int, Ge(4)] = 1000
    split: Annotated[str, OneOf(SPLITS)] = "test"
    other: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.other is not None and not (Path(self.other) / FILE).is_file():
            raise UserError(f"probe.similarity.other={self.other}: no {FILE} there; give the folder of a finished run")

    def look(self, learner: Learner, data: Data, at: Moment) -> Seen:
        inputs, _ = sample(data, self.split, self.samples)
        depth = len(learner.model.units)

        def layers() -> Iterator[Tensor]:
            yield inputs
            yield from outputs(learner, inputs)
            if self.other is not None:
                yield from outputs(learner, inputs, _model(learner.model, Path(self.other) / FILE))

        found = cka_matrix(layers())
        own, other = found[: depth + 1, : depth + 1], found[1 : depth + 1, depth + 1 :]
        kind = f"linear CKA, unbiased, {len(inputs)} samples"
        rows: list[Row] = []
        for i, name in enumerate(learner.model.names):
            row: Row = {"layer": i, "name": name, "estimator": kind}
            row |= {"cka_input": float(own[i + 1, 0]), "cka_below": float(own[i + 1, i])}
            row |= {"cka_last": float(own[i + 1, depth])}
            rows.append(row | ({"cka_other": float(other[i, i])} if self.other is not None else {}))
        return Seen(rows, {"cka": own} | ({"cka_other": other} if self.other is not None else {}))

    def draw(self, rows: Sequence[Row], arrays: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Figure]:
        names = {row["layer"]: row["name"] for row in rows}
        own = ["input", *(names[i] for i in sorted(names))]
        maps = [(f"Epoch {epoch}", arrays[epoch]["cka"], own) for epoch in sorted({min(arrays), max(arrays)})]
        last = arrays[max(arrays)]
        if "cka_other" in last:
            title = f"Epoch {max(arrays)} and {Path(self.other or 'another run').name}"
            maps.append((title, last["cka_other"], own[1:]))
        figure, axes = panels(len(maps), width=3.0)
        for panel, (title, matrix, layers) in zip(axes, maps, strict=True):
            picture = panel.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
            panel.set_facecolor("#DDDDDD")  # what cannot be compared
            panel.grid(False)
            name_layers(panel.xaxis, layers)
            name_layers(panel.yaxis, layers)
            panel.set_title(title, fontsize=8)
        if "cka_other" in last:
            axes[-1].set(xlabel="Layer of the other run", ylabel="Layer")
        bar = figure.colorbar(picture, ax=axes, shrink=0.8)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("Linear CKA", size=8)
        return {"similarity": figure}


def _model(like: BlockModel, file: Path) -> BlockModel:
    """A copy of a model with the weights of another run."""
    model = copy.deepcopy(like)
    try:
        problems = model.load_state_dict(stored.tensors(file), strict=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {error}") from error
    except RuntimeError as error:  # a shape
        raise UserError(f"{file} does not fit this run's model: {str(error).splitlines()[-1].strip()}") from error
    if names := problems.missing_keys + problems.unexpected_keys:
        raise UserError(f"{file} does not fit this run's model: {', '.join(names[:3])} are not in both")
    return model
