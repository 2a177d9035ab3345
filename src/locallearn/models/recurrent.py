"""A stacked recurrent net for sequences [T, D]. A unit is a layer, not a time step."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor, nn

from locallearn.errors import UserError
from locallearn.models.base import BlockModel, Size
from locallearn.options import within_ranges


class Recurrent(nn.Module):
    """h_t = tanh(W_in x_t + W_rec h_{t-1} + b) with h_0 = 0 (Elman 1990). [B, T, inputs] -> [B, T, width]

    W_rec starts orthogonal, so that what was read first is still there after some steps.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = nn.Linear(inputs, width)
        self.recurrent = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.recurrent.weight)

    def forward(self, x: Tensor) -> Tensor:
        first, *later = self.inputs(x).unbind(dim=1)  # one product for all steps
        steps = [torch.tanh(first)]
        for a in later:
            steps.append(torch.tanh(a + self.recurrent(steps[-1])))
        return torch.stack(steps, dim=1)


class LastStep(nn.Module):
    """[B, T, D] -> [B, D]"""

    def forward(self, h: Tensor) -> Tensor:
        return h[:, -1]


@within_ranges("model")
def rnn(
    image: Size, classes: int, *, width: Annotated[int, Ge(1)] = 128, depth: Annotated[int, Ge(1)] = 3
) -> BlockModel:
    """`depth` recurrent layers of `width`, each of which emits its whole sequence, and a linear head on the last step.

    Gradients run back through all steps within a layer; between layers they run as the strategy says.
    """
    if len(image) != 2:
        raise UserError(
            f"rnn reads sequences (steps, features), but the data has shape {list(image)}; "
            "use data=names, or another model, such as mlp"
        )
    units = {f"layer{i + 1}": Recurrent(width if i else image[1], width) for i in range(depth)}
    head = nn.Sequential(LastStep(), nn.Linear(width, classes))
    return BlockModel(units, head, image=image, classes=classes, name="rnn")
