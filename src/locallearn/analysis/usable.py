"""How much of the label a small network can read from a representation: usable information."""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.analysis.decoder import standardised
from locallearn.errors import UserError
from locallearn.seeds import generator, stream

BATCH = 128
RATE = 2e-3
GRID = 8
CHECKS = 10  # so often the error on the samples set aside is looked at
ASIDE = 0.2  # share of the training samples that decides when to stop


class Usable(NamedTuple):
    """What was read from held-out features.

    bits      H(Y) less the held-out cross-entropy, at least 0: a lower bound of I(h; Y)
    accuracy  share of the held-out samples whose label was found
    """

    bits: float
    accuracy: float


def reader(size: tuple[int, ...], classes: int, width: int = 64) -> nn.Module:
    """A small classifier [B, *size] -> [B, classes]: one convolution (of maps averaged down to 8 x 8 where they are
    larger) and one hidden layer for maps, else one hidden layer of 4 `width`."""
    if len(size) == 3:
        pool = [nn.AdaptiveAvgPool2d(GRID)] if min(size[1:]) > GRID else []
        maps = [*pool, nn.Conv2d(size[0], width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
        return nn.Sequential(*maps, nn.Flatten(), nn.Linear(4 * width, width), nn.ReLU(), nn.Linear(width, classes))
    first, last = nn.Linear(math.prod(size), 4 * width), nn.Linear(4 * width, classes)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)


def usable_information(
    h: Tensor, labels: Tensor, held_out: Tensor, truth: Tensor, *, classes: int, steps: int = 300, seed: int = 0
) -> Usable:
    """What a small net, trained on features h [N, ...] and labels [N], reads from held-out ones [M, ...] (truth [M]).

    I(h; Y) >= H(Y) - E[-log2 q(y | h)] for any classifier q (Barber & Agakov 2003); with q from a family of networks it
    is the predictive V-information (Xu et al. 2020, arXiv 2002.10689), and with an auxiliary network the estimate of
    InfoPro (Wang et al. 2021, arXiv 2101.10832, Sec. 3). H(Y) is that of `truth`. Adam, `steps` batches of 128,
    features standardised; of ten looks at a fifth of the samples, set aside, the best one counts. Initial weights and
    batches come from `seed` alone. Raises UserError for features that are not finite and for fewer than 10 samples.
    """
    if len(h) != len(labels) or len(held_out) != len(truth) or len(h) < 10 or not len(truth):
        raise UserError(f"{len(h)} features with {len(labels)} labels: usable information needs at least 10 of each")
    if not bool(torch.isfinite(h).all() & torch.isfinite(held_out).all()):
        raise UserError("the features hold NaN or infinite numbers, from which nothing can be read")
    h, held_out = standardised(h.detach(), held_out.detach())
    order = torch.randperm(len(h), generator=generator(seed, "reader", "split")).to(h.device)
    aside, kept = order[: round(ASIDE * len(h))], order[round(ASIDE * len(h)) :]
    with stream(seed, "reader"), torch.enable_grad():
        model = reader(tuple(h.shape[1:]), classes).to(h.device)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
        draws = generator(seed, "reader", "batches")
        best, chosen = math.inf, copy.deepcopy(model)
        for step in range(steps):
            batch = kept[torch.randint(len(kept), (BATCH,), generator=draws).to(h.device)]
            optimizer.zero_grad()
            F.cross_entropy(model(h[batch]), labels[batch]).backward()
            optimizer.step()
            if (step + 1) % max(1, steps // CHECKS) == 0:
                loss = float(F.cross_entropy(_logits(model, h[aside]), labels[aside]))
                if loss < best:
                    best, chosen = loss, copy.deepcopy(model)
    logits = _logits(chosen, held_out)
    accuracy = float((logits.argmax(1) == truth).double().mean())
    missing = float(F.cross_entropy(logits, truth)) / math.log(2)
    return Usable(max(0.0, label_entropy(truth) - missing), accuracy)


@torch.no_grad()
def _logits(model: nn.Module, h: Tensor) -> Tensor:
    return torch.cat([model(part) for part in h.split(512)]).double()


def label_entropy(labels: Tensor) -> float:
    """The entropy [bits] of labels [N] as they are distributed in the sample."""
    share = torch.bincount(labels).double() / len(labels)
    return float(-torch.special.xlogy(share, share).sum()) / math.log(2)
