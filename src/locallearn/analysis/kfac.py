"""The Fisher information of a layer's weights as a Kronecker product, of what the layer reads and of what comes back.

K-FAC (Martens & Grosse 2015, arXiv 1503.05671): F of the weights [out, in + 1], the bias among them, is about A (x) G.
A is the mean over samples of a a^T, a what the layer reads and a 1; G that of g g^T, g the gradient of log p(y | x) in
what it emits. That is exact for one sample, and where a and g are independent. Of a layer that works at T positions of
a sample, such as a convolution, A is the sum over positions, and G the mean (Grosse & Martens 2016, arXiv 1602.01573):
as if the gradients of two positions had nothing in common. The eigenvalues of A (x) G are the products of theirs.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call

from locallearn.analysis.fisher import CHUNK, gradients, hooked
from locallearn.analysis.quiet import evaluating


class Factors(NamedTuple):
    """Eigenvalues of the two factors of a layer.

    reads   of A, [in] or with a bias [in + 1]; of a convolution in is channels x height x width of its kernel
    answers of G, [out]
    """

    reads: Tensor
    answers: Tensor

    @property
    def eigenvalues(self) -> Tensor:
        """Those of A (x) G [in, out], in nats^2 per squared unit of the weights."""
        return torch.outer(self.reads, self.answers)


def kronecker(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Factors]:
    """The factors of every linear layer and of every convolution without groups and with zero padding, by the name of
    the module; none of a layer that shares its weights with another, or does not run.

    Args:
        model: [B, ...] -> logits [B, classes]; run in eval mode, so that samples are independent, and left unchanged.
        inputs: [N, ...].
        labels: [N], drawn from the model (`fisher.drawn_labels`) for the Fisher information.

    Costs a forward and a backward pass, and the eigenvalues of matrices [in + 1, in + 1] and [out, out].
    """
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    layers: dict[str, Any] = {
        name: m for name, m in model.named_modules() if _known(m) and all(owners[p] == 1 for p in m.parameters())
    }
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    reads: dict[str, Any] = defaultdict(float)
    answers: dict[str, Any] = defaultdict(float)
    positions: Counter[str] = Counter()
    uses: list[tuple[str, Tensor, Tensor]] = []

    def record(name: str, read: Tensor, out: Tensor) -> Tensor:
        uses.append((name, read.detach(), out))
        return out.clone()  # what follows may work in place

    with evaluating(model), torch.enable_grad(), hooked(layers, record):
        for xs, ys in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
            uses.clear()
            value = functional_call(model, weights, (xs,)).log_softmax(1).gather(1, ys[:, None]).sum()
            grads = gradients(value, dict(enumerate(out for _, _, out in uses)))
            for (name, read, _), grad in zip(uses, grads.values(), strict=True):
                a, g = _by_position(layers[name], read, grad)
                reads[name] += a.T @ a
                answers[name] += g.T @ g
                positions[name] += len(g)
    return {
        name: Factors(_spectrum(reads[name] / len(inputs)), _spectrum(answers[name] / positions[name]))
        for name in positions
    }


def by_parameter(factors: Mapping[str, Factors], diagonal: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of every parameter the eigenvalues that K-FAC gives it: a layer's weight has all of them, its bias none, and what
    has no factors the numbers of its `diagonal`."""
    found = {}
    for name, squares in diagonal.items():
        layer, _, kind = name.rpartition(".")
        if layer not in factors:
            found[name] = squares
        else:
            found[name] = factors[layer].eigenvalues if kind == "weight" else squares.new_empty(0)
    return found


def _known(module: nn.Module) -> bool:
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def _by_position(layer: Any, read: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer reads and the gradient of what it emits, position after position of all samples: [M, in + 1] and
    [M, out], in float64."""
    if isinstance(layer, nn.Conv2d):
        patches = nn.functional.unfold(read, layer.kernel_size, layer.dilation, layer.padding, layer.stride)  # type: ignore[arg-type]
        read, grad = patches.movedim(1, -1), grad.flatten(2).movedim(1, -1)
    a, g = read.flatten(0, -2).double(), grad.flatten(0, -2).double()
    return (a if layer.bias is None else nn.functional.pad(a, (0, 1), value=1.0)), g


def _spectrum(matrix: Tensor) -> Tensor:
    return torch.linalg.eigvalsh(matrix).clamp(min=0)  # negative ones are rounding
