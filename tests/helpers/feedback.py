"""Nets and gradients for strategies that carry the error by other weights, one of the nets in numpy."""

from __future__ import annotations

import copy
import functools
import math

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from locallearn.contract import Strategy
from locallearn.engine import SGD, Learner, Setup, assemble
from locallearn.models import BlockModel
from locallearn.models.plain import mlp


class Turned(nn.Module):
    """[B, C, L] as blocks hand it on, [B, L, C], and back."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(1, 2)


def odd_model() -> BlockModel:
    """Every geometry of a convolution; the classifier is a unit, so that feedback passes through its B as well."""
    torch.manual_seed(0)
    units = [
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.BatchNorm2d(6), nn.Tanh()),
        nn.Sequential(nn.Conv2d(6, 4, 2, padding="same", dilation=1, bias=False), nn.LayerNorm([4, 4, 4]), nn.Tanh()),
        nn.Sequential(nn.Conv2d(4, 4, (3, 2), padding=(1, 1), padding_mode="reflect"), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 4, 2, dilation=2, padding="valid"), nn.Tanh()),
        nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 3, 3, 2, 2, padding_mode="circular"), nn.Tanh(), Turned()),
        nn.Sequential(Turned(), nn.Flatten(), nn.Linear(12, 5), nn.Tanh()),
        nn.Linear(5, 3),
    ]
    return BlockModel(units, nn.Identity(), image=(2, 8, 8), classes=3, name="odd")


def odd_batches(steps: int = 4) -> list[tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    draw = functools.partial(torch.randn, 6, 2, 8, 8, generator=g, dtype=torch.float64)
    return [(draw(), torch.randint(3, (6,), generator=g)) for _ in range(steps)]


def gradients(learner: Learner, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """The gradient of every parameter of the model in one step that changes no parameter."""
    for block in learner.blocks:
        block.update = lambda part="main": None  # type: ignore[method-assign]
        block.updated = True  # as if it had
    learner.learn(x, y)
    found = {name: p.grad for name, p in learner.model.named_parameters() if p.grad is not None}
    for block in learner.blocks:
        del block.update
    learner.model.zero_grad(set_to_none=True)
    return found


def true_gradients(model: BlockModel, x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    """By one autograd graph over a copy of the model."""
    model = copy.deepcopy(model).train()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def assert_close(a: torch.Tensor, b: torch.Tensor, what: str, rtol: float = 1e-12) -> None:
    assert (a - b).norm() <= rtol * b.norm(), f"{what}: {((a - b).norm() / b.norm()).item():.2e}"


def np_conv(x: np.ndarray, w: np.ndarray, b: np.ndarray, stride: int, pad: int) -> np.ndarray:
    k = w.shape[2]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    rows, columns = ((side - k) // stride + 1 for side in x.shape[2:])
    y = np.zeros((len(x), len(w), rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = x[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            y[:, :, i, j] = np.tensordot(patch, w, axes=([1, 2, 3], [1, 2, 3])) + b
    return y


def np_conv_back(
    x: np.ndarray, w: np.ndarray, dy: np.ndarray, stride: int, pad: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dx (through w, whatever w is), dw and db."""
    k, padded = w.shape[2], np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    dx, dw = np.zeros_like(padded), np.zeros_like(w)
    for i in range(dy.shape[2]):
        for j in range(dy.shape[3]):
            window = np.s_[:, :, i * stride : i * stride + k, j * stride : j * stride + k]
            for sample in range(len(x)):
                for out in range(len(w)):
                    dx[window][sample] += dy[sample, out, i, j] * w[out]
                    dw[out] += dy[sample, out, i, j] * padded[window][sample]
    inner = np.s_[:, :, pad : dx.shape[2] - pad, pad : dx.shape[3] - pad]
    return dx[inner], dw, dy.sum(axis=(0, 2, 3))


def np_model() -> BlockModel:
    torch.manual_seed(3)
    units = [
        nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh()),
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Tanh()),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 3, 3)),
    ]
    return BlockModel(units, nn.Identity(), image=(2, 6, 6), classes=3, name="numpy")


def np_gradients(
    model: BlockModel,
    x: torch.Tensor,
    y: torch.Tensor,
    back: list[np.ndarray],
    injected: dict[int, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Gradients of `np_model` when errors travel through `back[1]` (of the second convolution's shape) and `back[2]`
    (of the linear layer's). `injected[k]` [classes, *emits of unit k] replaces what arrives at the end of unit k."""
    p = {name: t.detach().double().numpy() for name, t in model.named_parameters()}
    (w0, b0, w1, b1, w2, b2), x0 = p.values(), x.numpy()
    x1 = np.tanh(np_conv(x0, w0, b0, 1, 1))
    x2 = np.tanh(np_conv(x1, w1, b1, 2, 1))
    flat = x2.reshape(len(x2), -1)
    z = flat @ w2.T + b2
    z = np.exp(z - z.max(axis=1, keepdims=True))
    e = (z / z.sum(axis=1, keepdims=True) - np.eye(3)[y.numpy()]) / len(x0)
    d2 = (e @ back[2]).reshape(x2.shape)
    if injected and 1 in injected:
        d2 = np.tensordot(e, injected[1], axes=1)
    a1 = d2 * (1 - x2**2)
    d1, dw1, db1 = np_conv_back(x1, back[1], a1, 2, 1)
    if injected and 0 in injected:
        d1 = np.tensordot(e, injected[0], axes=1)
    dw1 = np_conv_back(x1, w1, a1, 2, 1)[1]
    _, dw0, db0 = np_conv_back(x0, w0, d1 * (1 - x1**2), 1, 1)
    return dict(zip(p, (dw0, db0, dw1, db1, e.T @ flat, e.sum(axis=0)), strict=True))


def digits(
    narrow: int, strategy: Strategy, seed: int, classifier: str = "unit"
) -> tuple[Learner, torch.Tensor, torch.Tensor]:
    """An mlp on 8x8 digits whose classifier is a unit, so that every hidden layer hears of the error through a B."""
    images, labels = load_digits(return_X_y=True)
    torch.manual_seed(seed)
    net = mlp((64,), 10, width=narrow, depth=3, batch_norm=False, activation="tanh")
    units = [*net.units, net.head]
    model = net if classifier == "head" else BlockModel(units, nn.Identity(), image=(64,), classes=10, name="mlp")
    optim = SGD(lr=0.05, momentum=0.9, schedule="constant")
    learner = assemble(model, strategy, optim, model.cut("max"), Setup(seed=seed))
    return learner, torch.tensor(images, dtype=torch.float32) / 8 - 1, torch.tensor(labels)


def teach(learner: Learner, x: torch.Tensor, y: torch.Tensor, steps: int) -> None:
    g = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randint(1500, (64,), generator=g)
        learner.learn(x[index], y[index])


def angles(learner: Learner, x: torch.Tensor, y: torch.Tensor) -> list[float]:
    """Degrees between the gradient that a hidden layer's weights get and the true one."""
    true, found = true_gradients(learner.model, x, y), gradients(learner, x, y)
    hidden = [k for k in true if k.endswith("weight") and k in list(true)[:-2]]
    cosines = [F.cosine_similarity(true[k].flatten(), found[k].flatten(), dim=0).item() for k in hidden]
    return [math.degrees(math.acos(c)) for c in cosines]


def accuracy(learner: Learner, x: torch.Tensor, y: torch.Tensor) -> float:
    return (learner.predict(x[1500:])[-1].argmax(1) == y[1500:]).double().mean().item()


def loss(learner: Learner, x: torch.Tensor, y: torch.Tensor) -> float:
    return F.cross_entropy(learner.predict(x[:1500])[-1], y[:1500]).item()
