"""What can be read of the label from frozen features: by a linear classifier, by the nearest neighbours, and by a small
network (usable information)."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

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


def pooled(h: Tensor) -> Tensor:
    """Activations [N, ...] as features [N, D]: maps averaged over space, sequences over time (van den Oord 2018)."""
    return h.flatten(2).mean(dim=2) if h.dim() > 3 else h.mean(dim=1) if h.dim() == 3 else h


@torch.no_grad()
def features(
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Callable[[Tensor], Iterable[Tensor]],
    flat: Callable[[Tensor, Tensor], tuple[Tensor, Tensor] | None] = lambda h, y: (pooled(h), y),
) -> list[tuple[Tensor, Tensor]]:
    """Features [N, D] and labels [N] of each of the layers that a function gives for inputs [B, ...], of all batches
    and of what has a label; in float32 on the CPU. `flat` makes them of activations and targets (see `Task.flat`); by
    default features are pooled. Raises UserError where a layer has none."""
    rows: list[list[tuple[Tensor, Tensor]]] = []
    for inputs, y in batches:
        pairs = [flat(h, y) for h in layers(inputs)]
        if (layer := next((k for k, pair in enumerate(pairs) if pair is None), None)) is not None:
            raise UserError(f"a linear read-out of layer {layer} needs targets that are classes: leave the layer out")
        known = [(h, labels, labels >= 0) for h, labels in filter(None, pairs)]
        rows.append([(h[there].float().cpu(), labels[there].cpu()) for h, labels, there in known])
    return [
        (torch.cat(h), torch.cat(labels)) for h, labels in (zip(*own, strict=True) for own in zip(*rows, strict=True))
    ]


def linear_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor) -> float:
    """Accuracy (0 to 1) on features [M, D] with labels [M] of a multinomial logistic regression that is fitted to
    standardised features [N, D] and labels [N].

    Where all `labels` are of one class it answers with that class, and of constant features with the most frequent.
    NaN where there is no sample to fit or to score, or a feature is not finite.
    """
    from sklearn.preprocessing import StandardScaler

    if not _usable(train, test):
        return math.nan
    if bool((labels == labels[0]).all()):
        return float((truth == labels[0]).double().mean())
    scaler = StandardScaler().fit(_numpy(train))
    classifier = _logistic_regression(scaler.transform(_numpy(train)), labels)
    return float(classifier.score(scaler.transform(_numpy(test)), _numpy(truth)))


def linear_head(features: Tensor, labels: Tensor) -> nn.Linear:
    """Multinomial logistic regression [C] -> [classes that occur] on features [N, C] (standardised while it is fitted)
    and labels [N], as a layer for the features as they are."""
    x = features.double().cpu()
    mean, std = x.mean(dim=0), x.std(dim=0, correction=0)
    std = torch.where(std > 0, std, 1.0)
    fitted = _logistic_regression(_numpy((x - mean) / std), labels)
    weight, bias = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(weight) == 1:  # two classes: the logit of the second against 0
        weight, bias = F.pad(weight, (0, 0, 1, 0)), F.pad(bias, (1, 0))
    weight = weight / std
    layer = nn.Linear(weight.shape[1], len(weight)).to(features)
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias - weight @ mean)
    return layer


def _logistic_regression(x: Any, labels: Tensor) -> Any:
    """With L2 penalty 1, after 200 steps if it has not converged by then: that is what the numbers mean."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=200, tol=1e-3).fit(x, _numpy(labels))


def neighbour_accuracy(train: Tensor, labels: Tensor, test: Tensor, truth: Tensor, neighbours: int = 5) -> float:
    """Accuracy (0 to 1) on features [M, D] with labels [M] of the vote among the nearest `neighbours` (or all, if there
    are fewer) of features [N, D] with labels [N]. Near is a small cosine distance, which no scale of a layer changes
    (Wu et al. 2018); votes count by its inverse, so that one sample per class is enough. NaN as `linear_accuracy`."""
    from sklearn.neighbors import KNeighborsClassifier

    if not _usable(train, test):
        return math.nan
    count = min(neighbours, len(train))
    classifier = KNeighborsClassifier(count, weights="distance", metric="cosine", algorithm="brute")
    classifier.fit(_numpy(train), _numpy(labels))
    return float(classifier.score(_numpy(test), _numpy(truth)))


def _usable(train: Tensor, test: Tensor) -> bool:
    return bool(len(train)) and bool(len(test)) and bool(train.isfinite().all()) and bool(test.isfinite().all())


def _numpy(x: Tensor) -> Any:
    return x.detach().cpu().numpy()


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
    logits = _read(h, labels, held_out, truth, F.cross_entropy, classes, steps, seed)
    accuracy = float((logits.argmax(1) == truth).double().mean())
    missing = float(F.cross_entropy(logits, truth)) / math.log(2)
    return Usable(max(0.0, label_entropy(truth) - missing), accuracy)


class Ratio(NamedTuple):
    """What held-out features say of a value, by the ratio of densities.

    bits   mean of log2 p(h, n) / (p(h) p(n)) as a net has learned it; no bound: it may be above I(h; n), or below 0
    bound  of Donsker and Varadhan, by the same net, at least 0: below I(h; n) but for the error of the held-out sample
    """

    bits: float
    bound: float


def density_ratio(
    h: Tensor, n: Tensor, held_out: Tensor, truth: Tensor, *, classes: int, steps: int = 300, seed: int = 0
) -> Ratio:
    """I(h; n) of features h [N, ...] and values n [N] by a net that learns to tell their pairs from those in which n is
    another sample's, measured on held-out ones [M, ...] (truth [M]): Achille & Soatto 2018, arXiv 1706.01350.

    The net has an output f for each value, and 1 / (1 + exp f) is its probability that a pair is shuffled; at best f =
    ln p(h, n) / (p(h) p(n)). Where the paper shuffles, the mean over all values is taken, which varies less. Trained as
    the reader of `usable_information`, and raises as it does.
    """

    def shares(values: Tensor) -> Tensor:
        return torch.bincount(values, minlength=classes).double() / len(values)

    shuffled = shares(n)

    def loss(f: Tensor, n: Tensor) -> Tensor:
        return F.softplus(-f.gather(1, n[:, None])).mean() + (F.softplus(f) * shuffled.to(f.dtype)).sum(1).mean()

    f = _read(h, n, held_out, truth, loss, classes, steps, seed)
    true = float(f.gather(1, truth[:, None]).mean())
    apart = float(torch.logsumexp((f + shares(truth).log()).flatten(), 0)) - math.log(len(f))
    return Ratio(true / math.log(2), max(0.0, true - apart) / math.log(2))


def _read(
    h: Tensor,
    labels: Tensor,
    held_out: Tensor,
    truth: Tensor,
    loss_of: Callable[[Tensor, Tensor], Tensor],
    classes: int,
    steps: int,
    seed: int,
) -> Tensor:
    """What a small net says of held-out features, float64 [M, classes], once it has learned from the others by a loss
    of its outputs and their labels; see `usable_information`."""
    if len(h) != len(labels) or len(held_out) != len(truth) or len(h) < 10 or not len(truth):
        held = f"{len(held_out)} held out with {len(truth)}"
        raise UserError(f"{len(h)} features with {len(labels)} labels, {held}: give at least 10, and each one label")
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
            loss_of(model(h[batch]), labels[batch]).backward()
            optimizer.step()
            if (step + 1) % max(1, steps // CHECKS) == 0:
                loss = float(loss_of(_logits(model, h[aside]), labels[aside]))
                if loss < best:
                    best, chosen = loss, copy.deepcopy(model)
    return _logits(chosen, held_out)


@torch.no_grad()
def _logits(model: nn.Module, h: Tensor) -> Tensor:
    return torch.cat([model(part) for part in h.split(512)]).double()


def label_entropy(labels: Tensor) -> float:
    """The entropy [bits] of labels [N] as they are distributed in the sample."""
    share = torch.bincount(labels).double() / len(labels)
    return float(-torch.special.xlogy(share, share).sum()) / math.log(2)
