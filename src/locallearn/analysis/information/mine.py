"""Mutual information neural estimation (Belghazi et al. 2018): the bound of Donsker and Varadhan, learned."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.analysis.information.pairwise import with_noise
from locallearn.analysis.information.result import Array, Information, Samples, checked, samples
from locallearn.errors import UserError

WIDTH, BATCH, RATE, DECAY = 64, 512, 2e-3, 0.99
LOOKS = 50
HELD_OUT = 0.25
DRIFT = 0.1
"""Bits, or a tenth of the estimate if that is more: a curve that still moves by more has not converged."""


class Mine(NamedTuple):
    """An estimate in bits, what it was on held-out samples while the network learned (50 looks), and warnings."""

    bits: float
    curve: tuple[float, ...]
    warnings: tuple[str, ...]


def mine(a: Array, b: Array, steps: int = 1000, seed: int = 0) -> Mine:
    """A lower bound on I(A;B): sup over a network f of E f(a, b) - log E exp f(a, b') with b' shuffled, and with the
    moving average of the denominator that makes its gradient unbiased (Belghazi et al. 2018, section 3).

    Learned on three quarters of the samples by Adam, measured on the rest: the mean over the last quarter of the curve.
    Cannot exceed about the log of the number of held-out samples; its variance grows with exp of the information.

    Args:
        a, b: paired samples [N, Da] and [N, Db].
        steps: of training, on batches of 512; at least 50.
        seed: of the network, the split and the batches; the global generators are not touched.

    Raises UserError for fewer than 8 samples, and where the network diverges.
    """
    data = samples(a, None, b)
    assert data.x is not None
    if len(data.t) < 8:
        raise UserError(f"mine learns on some of its {len(data.t)} samples and measures on the others; give at least 8")
    if steps < LOOKS:
        raise UserError(f"steps={steps}: mine needs at least {LOOKS}, and usually 1000")
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.t), generator=draw).to(data.t.device)
    cut = round(HELD_OUT * len(order))
    pairs = _standard(data.t), _standard(data.x)
    train, held = ((pairs[0][i], pairs[1][i]) for i in (order[cut:], order[:cut]))
    with torch.enable_grad():
        curve = _learn(train, held, steps, draw)
    *_, before, tail = torch.tensor(curve, dtype=torch.float64).chunk(4)
    bits = float(tail.mean())
    drift, deviation = float(bits - before.mean()), float(tail.std())
    allowed = max(DRIFT, DRIFT * abs(bits))
    warnings = []
    if not math.isfinite(bits):
        raise UserError("mine diverged: its network gave values that are not finite; scale the samples")
    if abs(drift) > allowed:
        warnings.append(f"MINE has not converged: its curve still moves by {drift:+.2f} bits; read the curve")
    if deviation > allowed:
        warnings.append(f"MINE varies by {deviation:.2f} bits (standard deviation at the end); give more samples")
    return Mine(max(0.0, bits), tuple(curve), tuple(warnings))


def mine_information(data: Samples, noise_variance: float | None) -> Information:
    """I(X;T) and I(T;Y) by `mine`, of activations with Gaussian noise of this variance."""
    noisy = with_noise(data.t.double(), noise_variance)
    of_x = None if data.x is None else mine(noisy, data.x)
    of_y = None if data.y is None else mine(noisy, F.one_hot(data.y).double())
    both = [estimate for estimate in (of_x, of_y) if estimate is not None]
    warnings = [sentence for estimate in both for sentence in estimate.warnings]
    if of_x is not None and noise_variance is None:
        warnings.append("I(X;T) of a deterministic layer is infinite; MINE gives what it reaches: give noise_variance")
    x_bits, y_bits = (estimate and estimate.bits for estimate in (of_x, of_y))
    return checked(data, "mine", x_bits, y_bits, warnings, noise_variance=noise_variance, curve=both[0].curve)


def _learn(train: tuple[Tensor, Tensor], held: tuple[Tensor, Tensor], steps: int, draw: torch.Generator) -> list[float]:
    network = _network(train[0].shape[1] + train[1].shape[1], draw).to(train[0].device)
    optimizer = torch.optim.Adam(network.parameters(), lr=RATE)
    n, average, curve = len(train[0]), None, []
    for step in range(1, steps + 1):
        rows, other = (torch.randint(n, (min(BATCH, n),), generator=draw).to(train[0].device) for _ in range(2))
        a, b = train[0][rows].repeat(2, 1), train[1][torch.cat([rows, other])]
        together, independent = network(torch.cat([a, b], 1)).chunk(2)
        joint, apart = together.mean(), independent.exp().mean()
        average = apart.detach() if average is None else DECAY * average + (1 - DECAY) * apart.detach()
        loss = apart / average - joint  # the gradient of log E exp f, with the average as its denominator
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % max(1, steps // LOOKS) == 0:
            curve.append(_bound(network, *held))
    return curve


@torch.no_grad()
def _bound(network: nn.Module, a: Tensor, b: Tensor) -> float:
    """E f(a, b) - log E exp f(a, b') in bits, with b' b moved on by one place, two, ... eight."""
    joint = network(torch.cat([a, b], 1)).double().mean()
    shifts = range(1, min(9, len(a)))
    apart = torch.cat([network(torch.cat([a, b.roll(shift, 0)], 1)) for shift in shifts]).double()
    return float(joint - torch.logsumexp(apart, 0)[0] + math.log(len(apart))) / math.log(2)


def _network(inputs: int, draw: torch.Generator) -> nn.Module:
    """Two hidden layers; made without a draw from the global generator."""
    sizes = [inputs, WIDTH, WIDTH, 1]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layer = nn.utils.skip_init(nn.Linear, a, b)
        nn.init.kaiming_normal_(layer.weight, generator=draw)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _standard(samples: Tensor) -> Tensor:
    """Columns with mean 0 and variance 1, in float32; constant ones are 0."""
    variance, mean = torch.var_mean(samples.double(), 0, correction=0)
    return ((samples.double() - mean) / torch.where(variance > 0, variance, 1.0).sqrt()).float()
