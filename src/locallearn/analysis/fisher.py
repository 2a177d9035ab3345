"""Fisher information of the weights: how much the model's own predictions depend on each of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from locallearn.analysis.quiet import evaluating
from locallearn.errors import UserError

Key = TypeVar("Key")
NUMBERS = 2**24
"""Numbers that the gradients of one chunk of samples may take (64 MB in float32)."""
CHUNK = 256
"""Samples in a chunk, at most."""
HELD = 2**28
"""Numbers of gradients of single samples that are held (1 GB in float32)."""
COLUMNS = 2**14
"""Numbers of each gradient that are multiplied in float64 at a time."""


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


def drawn_labels(model: nn.Module, inputs: Tensor, random: torch.Generator) -> Tensor:
    """One label [N] for each input [N, ...], drawn from the softmax of the model's logits by a CPU generator."""
    with evaluating(model), torch.no_grad():
        return torch.cat([_drawn(model(xs), random) for xs in inputs.split(CHUNK)])


class Scores(NamedTuple):
    """Of the gradients g_i of log p(y_i | x_i) in one parameter, of N samples.

    gram     their inner products <g_i, g_j> [N, N], float64
    squares  the mean of g_i^2, of the parameter's shape: the diagonal of the Fisher information
    """

    gram: Tensor
    squares: Tensor


def scores(model: nn.Module, inputs: Tensor, labels: Tensor) -> Iterator[tuple[str, Scores]]:
    """The scores of every parameter by its name, one module after the other: what the Fisher information of N samples,
    (1 / N) sum_i g_i g_i^T, is made of, whatever the number of weights.

    Args:
        model: [B, ...] -> logits [B, classes]; run in eval mode and left unchanged.
        inputs: [N, ...].
        labels: [N], drawn from the model (`drawn_labels`) for the Fisher information.

    Costs a backward pass of all samples for each module with parameters, and N numbers for each of its weights; neither
    for linear layers that read a vector. Raises UserError where these numbers would take more than 1 GB.
    """
    weights = {name: p.detach().requires_grad_() for name, p in model.named_parameters()}
    with evaluating(model), torch.enable_grad():
        dense = _dense(model, inputs[:1])
        modules: dict[str, list[str]] = {}
        for name in weights:
            if (module := name.rpartition(".")[0]) not in dense:
                modules.setdefault(module, []).append(name)
        for names in modules.values():
            _check_numbers(len(inputs), {name: weights[name] for name in names})
        yield from _dense_scores(model, weights, dense, inputs, labels)
        for names in modules.values():
            each = _Each(model, weights, names)
            chunks = zip(inputs.split(each.size), labels.split(each.size), strict=True)
            parts = [grads for xs, ys in chunks for grads in each(xs, ys)]
            for name in names:
                g = torch.cat([grads[name] for grads in parts]).flatten(1)  # [N, numbers]
                columns = [some.double() for some in g.split(COLUMNS, 1)]
                squares = torch.cat([some.square().mean(0) for some in columns])
                yield name, Scores(sum(some @ some.T for some in columns), squares.view_as(weights[name]))


def _check_numbers(samples: int, weights: Mapping[str, Tensor]) -> None:
    """Raises UserError where gradients of so many samples are too many to be held."""
    numbers = samples * sum(p.numel() for p in weights.values())
    if numbers > HELD:
        raise UserError(
            f"{samples} gradients of {next(iter(weights))} are {numbers:.1e} numbers, and at most {HELD:.1e} are held: "
            "take fewer samples, the diagonal of the Fisher information, or its Kronecker factors"
        )


class _Each:
    """Gradients of the log-likelihood of single samples in some of the weights."""

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor], names: Iterable[str]) -> None:
        fixed = {name: p.detach() for name, p in weights.items()}
        self._leaves = {name: weights[name] for name in names}
        self._values = {name: fixed[name] for name in self._leaves}

        def likelihood(some: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            logits = functional_call(model, {**fixed, **some}, (x.unsqueeze(0),))
            return logits.log_softmax(dim=1).gather(1, y.view(1, 1)).sum()

        self._likelihood = likelihood
        self._together = vmap(grad(likelihood), in_dims=(None, 0, 0))
        size = max(1, NUMBERS // max(1, sum(p.numel() for p in self._values.values())))
        self._vectorised = size > 1  # `vmap` over one sample only costs
        self.size = min(CHUNK, size)

    def __call__(self, xs: Tensor, ys: Tensor) -> Iterator[dict[str, Tensor]]:
        """Of samples xs [B, ...], at most `size`, with labels ys [B]: [b, ...] by name, b of them at a time."""
        if not self._leaves:
            return
        if self._vectorised:
            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "There is a performance drop")  # still faster than one by one
                    yield self._together(self._values, xs, ys)
                return
            except torch.OutOfMemoryError:
                raise
            except RuntimeError:  # a module without a batching rule; any other error comes again below
                self._vectorised = False
        for x, y in zip(xs, ys, strict=True):
            value = self._likelihood(self._leaves, x, y)
            yield {name: g[None] for name, g in gradients(value, self._leaves).items()}


def _of_samples(
    model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, random: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Sums over chunks of samples of the squared gradients."""
    dense = _dense(model, inputs[:1])
    each = _Each(model, weights, [name for name in weights if name.rpartition(".")[0] not in dense])
    for xs in inputs.split(each.size):
        ys, squares = _dense_squares(model, weights, dense, xs, random)
        yield squares
        for grads in each(xs, ys):
            yield {name: g.square().sum(dim=0) for name, g in grads.items()}


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
    with torch.no_grad(), hooked(layers, lambda name, read, out: seen[name].append(read.shape)):
        model(one)
    return {name: m for name, m in layers.items() if seen[name] == [(1, m.in_features)]}


@contextmanager
def hooked(layers: Mapping[str, nn.Module], hook: Callable[[str, Tensor, Tensor], Tensor | None]) -> Iterator[None]:
    """While it lasts, `hook` sees the name of a layer that runs, its input and its output, which it may replace."""
    with ExitStack() as stack:
        for name, m in layers.items():
            handle = m.register_forward_hook(lambda _, args, out, name=name: hook(name, args[0], out))
            stack.callback(handle.remove)
        yield


def _recorded(
    model: nn.Module, weights: dict[str, Tensor], dense: Mapping[str, nn.Linear], xs: Tensor
) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    """Logits of the samples, and what each of the `dense` layers reads and emits."""
    inputs: dict[str, Tensor] = {}
    emitted: dict[str, Tensor] = {}

    def record(name: str, read: Tensor, out: Tensor) -> Tensor:
        inputs[name], emitted[name] = read.detach(), out
        return out.clone()  # what follows may work in place

    with hooked(dense, record):
        logits = functional_call(model, weights, (xs,))
    return logits, inputs, emitted


def _back(logits: Tensor, ys: Tensor, emitted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradients of the log-likelihood of each sample's label in what layers emit, [B, numbers] by name."""
    if not emitted:
        return {}
    value = logits.log_softmax(dim=1).gather(1, ys[:, None]).sum()
    return gradients(value, emitted)


def _dense_squares(
    model: nn.Module, weights: dict[str, Tensor], dense: dict[str, nn.Linear], xs: Tensor, random: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Labels drawn for the samples, and the sums of the squared gradients of `dense` layers by parameter name."""
    logits, inputs, emitted = _recorded(model, weights, dense, xs)
    ys = _drawn(logits.detach(), random)
    squares: dict[str, Tensor] = {}
    for name, g in _back(logits, ys, emitted).items():
        squares[f"{name}.weight"] = g.square().T @ inputs[name].square()
        if dense[name].bias is not None:
            squares[f"{name}.bias"] = g.square().sum(dim=0)
    return ys, squares


def _dense_scores(
    model: nn.Module, weights: dict[str, Tensor], dense: dict[str, nn.Linear], inputs: Tensor, labels: Tensor
) -> Iterator[tuple[str, Scores]]:
    """Of `dense` layers, whose gradient is an outer product of what they read and the gradient of what they emit."""
    read: dict[str, list[Tensor]] = {name: [] for name in dense}
    back: dict[str, list[Tensor]] = {name: [] for name in dense}
    for xs, ys in zip(inputs.split(CHUNK), labels.split(CHUNK), strict=True):
        logits, some, emitted = _recorded(model, weights, dense, xs)
        for name, g in _back(logits, ys, emitted).items():
            read[name].append(some[name])
            back[name].append(g)
    for name in dense:
        x, g = torch.cat(read[name]).double(), torch.cat(back[name]).double()
        gram = g @ g.T
        yield f"{name}.weight", Scores(gram * (x @ x.T), g.square().T @ x.square() / len(x))
        if dense[name].bias is not None:
            yield f"{name}.bias", Scores(gram, g.square().mean(0))


def _of_nodes(
    nodes: Tensor, model: nn.Module, weights: dict[str, Tensor], inputs: Tensor, random: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Squared gradients of one node after the other, of one forward."""
    logits = functional_call(model, weights, (inputs,))[nodes]
    ys = _drawn(logits.detach(), random)
    for value in logits.log_softmax(dim=1).gather(1, ys[:, None]).squeeze(1):
        yield {name: g.square() for name, g in gradients(value, weights).items()}


def gradients(value: Tensor, of: Mapping[Key, Tensor]) -> dict[Key, Tensor]:
    """The gradients of one number; its graph is kept."""
    grads = torch.autograd.grad(value, list(of.values()), retain_graph=True, materialize_grads=True)
    return dict(zip(of, grads, strict=True))


def _drawn(logits: Tensor, random: torch.Generator) -> Tensor:
    """One label [N] for each row of logits [N, classes], drawn from the softmax."""
    p = logits.double().softmax(dim=1).cpu()
    return torch.multinomial(p, 1, generator=random).squeeze(1).to(logits.device)
