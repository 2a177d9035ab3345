"""Fisher information of the weights: how much the model's own predictions depend on each of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

NUMBERS = 2**24
"""Numbers that the gradients of one chunk of samples may take (64 MB in float32)."""
CHUNK = 256
"""Samples in a chunk, at most."""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode; afterwards the modes are as they were."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def fisher_diagonal(
    model: nn.Module, inputs: Tensor, random: torch.Generator, *, nodes: Tensor | None = None
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information of every parameter, by its name: the mean over samples of

        (d log p(y|x) / d w)^2   with y drawn from p(.|x) = softmax of the model's logits, one for each sample

    (Amari 1998; in nats^2 per squared unit of the weight). It is not the empirical Fisher information, which takes the
    labels of the data (Kunstner et al. 2019, arXiv 1905.12558).

    model   [B, ...] -> logits [B, classes]; run in eval mode, so that samples are independent. Nothing in it changes
    inputs  [N, ...]
    random  a CPU generator for the labels: the same draws on every device
    nodes   for a model that reads all inputs at once (a graph): the places [M] of the samples to take; None for all
            other models

    Costs a forward and a backward per sample, a chunk of samples at a time (`vmap`); one by one for large models and
    for modules that `vmap` cannot take.
    """
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}  # the values are shared
    totals = {n: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32)) for n, p in weights.items()}
    with evaluating(model), torch.enable_grad():
        chunks = (
            _of_samples(model, weights, inputs, random)
            if nodes is None
            else _of_nodes(model, weights, inputs, nodes, random)
        )
        for squares in chunks:
            for name, square in squares.items():
                totals[name] += square
    samples = len(inputs) if nodes is None else len(nodes)
    return {name: total.detach() / samples for name, total in totals.items()}


def _of_samples(
    model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, random: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Sums over chunks of samples of the squared gradients."""

    def likelihood(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        logits = functional_call(model, weights, (x.unsqueeze(0),))
        return logits.log_softmax(dim=1).gather(1, y.view(1, 1)).sum()

    together = vmap(grad(likelihood), in_dims=(None, 0, 0))
    size = max(1, NUMBERS // max(1, sum(p.numel() for p in weights.values())))
    vectorised = size > 1  # `vmap` over one sample only costs
    for xs in inputs.split(min(CHUNK, size)):
        with torch.no_grad():
            ys = _drawn(model(xs), random)
        if vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # still faster than one by one
                    grads = together(weights, xs, ys)
                yield {name: g.square().sum(dim=0) for name, g in grads.items()}
                continue
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # a module without a batching rule; any other error comes again below
                vectorised = False
        for x, y in zip(xs, ys, strict=True):
            yield _squares(likelihood(weights, x, y), weights)


def _of_nodes(
    model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, nodes: Tensor, random: torch.Generator
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
