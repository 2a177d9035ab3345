"""Which layers represent the samples alike: centred kernel alignment between depths, and between two runs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from torch import Tensor

from locallearn import stored
from locallearn.analysis.similarity import cka_matrix
from locallearn.errors import UserError
from locallearn.figures import name_layers, panels
from locallearn.models import BlockModel
from locallearn.options import OneOf
from locallearn.probes import Arrays, Data, Learner, Moment, Pictures, Probe, Row, Seen, by_layer, outputs, sample
from locallearn.probes.depth import SPLITS

FILE = "model.safetensors"


@dataclass(frozen=True)
class SimilarityProbe(Probe):
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

        matrix = cka_matrix(layers())
        own, other = matrix[: depth + 1, : depth + 1], matrix[1 : depth + 1, depth + 1 :]
        kind = f"linear CKA, unbiased, {len(inputs)} samples"
        rows: list[Row] = []
        for i, line in enumerate(own[1:].tolist()):
            row: Row = {"estimator": kind, "cka_input": line[0], "cka_below": line[i], "cka_last": line[depth]}
            rows.append(row | ({"cka_other": float(other[i, i])} if self.other is not None else {}))
        return Seen(by_layer(learner, rows), {"cka": own} | ({} if self.other is None else {"cka_other": other}))

    def draw(self, rows: Sequence[Row], arrays: Arrays) -> Pictures:
        names = {row["layer"]: row["name"] for row in rows}
        own = ["input", *(names[i] for i in sorted(names))]
        first, last = min(arrays), max(arrays)
        maps = [(f"Epoch {epoch}", arrays[epoch]["cka"], own) for epoch in sorted({first, last})]
        if "cka_other" in arrays[last]:
            title = f"Epoch {last} and {Path(self.other or 'another run').name}"
            maps.append((title, arrays[last]["cka_other"], own[1:]))
        figure, axes = panels(len(maps), width=3.0)
        for panel, (title, matrix, layers) in zip(axes, maps, strict=True):
            picture = panel.imshow(matrix.numpy(), vmin=0, vmax=1, cmap="viridis", origin="lower")
            panel.set_facecolor("#DDDDDD")  # what cannot be compared
            panel.grid(False)
            name_layers(panel.xaxis, layers)
            name_layers(panel.yaxis, layers)
            panel.set_title(title)
        if "cka_other" in arrays[last]:
            axes[-1].set(xlabel="Layer of the other run", ylabel="Layer")
        bar = figure.colorbar(picture, ax=axes, shrink=0.8)
        bar.ax.tick_params(labelsize=8)
        bar.set_label("Linear CKA", size=8)
        return {self.name: figure}


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
        raise UserError(f"{file} does not fit this run's model: {', '.join(names[:3])} are not in both; give another")
    return model
