"""Fisher information of the weights: how much the model's own predictions depend on each of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from locallearn.analysis.quiet import evaluating

NUMBERS = 2**24
"""Numbers that the gradients of one chunk of samples may take (64 MB in float32)."""
CHUNK = 256
"""Samples in a chunk, at most."""


def fisher_diagonal(
    model: nn.Module, inputs: Tensor, random: torch.Generator, *, nodes: Tensor | None = None
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of every parameter, by its name: the mean over samples of

        (d log p(y|x) / d w)^2   with y drawn from p(.|x) = softmax of the model's logits, one for each sample

    (Amari 1998; in nats^2 per squared unit of the weight). It is not the empirical Fisher information, which takes the
    labels of the data (Kunstner et al. 2019, arXiv 1905.12558).

    Args:
        model: [B, ...] -> logits [B, classes]; run in eval mode, so that samples are independent, and left unchanged.
        inputs: [N, ...].
        random: a CPU generator for the labels: the same draws on every device.
        nodes: for a model that reads all inputs at once (a graph), the places [M] of the samples to take.

    Costs two forwards and backwards per sample, a chunk of samples at a time (`vmap`); one by one where convolutions
    have many weights and for modules that `vmap` cannot take.
    """
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}  # the values are shared
    totals = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in weights.items()}
    of = _of_samples if nodes is None else partial(_of_nodes, nodes)
    with evaluating(model), torch.enable_grad():
        for squares in of(model, weights, inputs, random):
            for name, square in squares.items():
                totals[name] += square
    samples = len(inputs) if nodes is None else len(nodes)
    return {name: total / samples for name, total in totals.items()}


def _of_samples(
    model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, random: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Sums over chunks of samples of the squared gradients."""
    dense = _dense(model, inputs[:1])
    fixed = {name: p.detach() for name, p in weights.items()}
    rest = {name: p for name, p in fixed.items() if name.rpartition(".")[0] not in dense}

    def likelihood(some: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, {**fixed, **some}, (x.unsqueeze(0),))
        return logits.log_softmax(dim=1).gather(1, y.view(1, 1)).sum()

    together = vmap(grad(likelihood), in_dims=(None, 0, 0))
    size = max(1, NUMBERS // max(1, sum(p.numel() for p in rest.values())))
    vectorised = size > 1  # `vmap` over one sample only costs
    for xs in inputs.split(min(CHUNK, size)):
        ys, squares = _dense_squares(model, weights, dense, xs, random)
        yield squares
        if vectorised and rest:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # still faster than one by one
                    grads = together(rest, xs, ys)
                yield {name: g.square().sum(dim=0) for name, g in grads.items()}
                continue
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # a module without a batching rule; any other error comes again below
                vectorised = False
        leaves = {name: weights[name] for name in rest}
        for x, y in zip(xs, ys, strict=True) if rest else ():
            yield _squares(likelihood(leaves, x, y), leaves)


def _dense(model: nn.Module, one: Tensor) -> dict[str, nn.Linear]:
    """The linear layers that read one vector for each sample, once, and share no weights: their gradient is an outer
    product, so that the squares need no gradient of single samples. `one` is a sample [1, ...]."""
    owners = Counter(p for module in model.modules() for p in module.parameters(recurse=False))
    layers = {
        name: m
        for name, m in model.named_modules()
        if type(m) is nn.Linear and name and all(owners[p] == 1 for p in m.parameters())
    }
    seen: dict[str, list[torch.Size]] = {name: [] for name in layers}
    with torch.no_grad(), _hooked(layers, lambda name, read, out: seen[name].append(read.shape)):
        model(one)
    return {name: m for name, m in layers.items() if seen[name] == [(1, m.in_features)]}


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], hook: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """While it lasts, `hook` sees the name of a layer that runs, its input and its output, which it may replace."""
    with ExitStack() as stack:
        for name, m in layers.items():
            handle = m.register_forward_hook(lambda _, args, out, name=name: hook(name, args[0], out))
            stack.callback(handle.remove)
        yield


def _dense_squares(
    model: nn.Module, weights: dict[str, Tensor], dense: dict[str, nn.Linear], xs: Tensor, random: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels drawn for the samples, and the sums of the squared gradients of `dense` layers by parameter name."""
    inputs: dict[str, Tensor] = {}
    emitted: dict[str, Tensor] = {}

    def record(name: str, read: Tensor, out: Tensor) -> Tensor:
        inputs[name], emitted[name] = read.detach(), out
        return out.clone()  # what follows may work in place

    with _hooked(dense, record):
        logits = functional_call(model, weights, (xs,))
    ys = _drawn(logits.detach(), random)
    squares: dict[str, Tensor] = {}
    if dense:
        value = logits.log_softmax(dim=1).gather(1, ys[:, None]).sum()
        grads = torch.autograd.grad(value, list(emitted.values()), allow_unused=True)
        for (name, x), g in zip(inputs.items(), grads, strict=True):
            if g is not None:
                squares[f"{name}.weight"] = g.square().T @ x.square()
                if dense[name].bias is not None:
                    squares[f"{name}.bias"] = g.square().sum(dim=0)
    return ys, squares


def _of_nodes(
    nodes: Tensor, model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, random: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Squared gradients of one node after the other, of one forward."""
    logits = functional_call(model, weights, (inputs,))[nodes]
    ys = _drawn(logits.detach(), random)
    for value in logits.log_softmax(dim=1).gather(1, ys[:, None]).squeeze(1):
        yield _squares(value, weights)


def _squares(value: Tensor, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The squared gradient of one number; its graph is kept."""
    grads = torch.autograd.grad(value, list(weights.values()), retain_graph=True, allow_unused=True)
    return {name: g.square() for name, g in zip(weights, grads, strict=True) if g is not None}


def _drawn(logits: Tensor, random: torch.Generator) -> Tensor:
    """One label [N] for each row of logits [N, classes], drawn from the softmax."""
    p = logits.double().softmax(dim=1).cpu()
    return torch.multinomial(p, 1, generator=random).squeeze(1).to(logits.device)
