"""DGL, sequential greedy learning and local error signals: loops as in the authors' programs, which keep a list of
layers and of heads, each pair with an optimizer of its own, and hand detached features on."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.nets import tiny_batches, tiny_learner
from helpers.parity import Parity, apart
from locallearn.auxiliary import Linear, MLPSpatialReduction
from locallearn.engine import SGD, Adam
from locallearn.models import BlockModel
from locallearn.objectives import CrossEntropy, PredSim
from locallearn.runtime.replay import Buffer
from locallearn.strategies.greedy import DGL, Greedy

STEPS = 10
HEADED = {"objective": CrossEntropy(), "auxiliary": MLPSpatialReduction(layers=2)}
PLAIN = SGD(lr=0.1, momentum=0.9, weight_decay=5e-4, schedule="constant")


class Head(nn.Module):
    """mlp-sr of the DGL repository: a pool to a quarter of the side, 1x1 convolutions, a pool to 2 x 2, an MLP."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(channels, channels, 1, bias=False) for _ in range(3))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(3))
        self.hidden = nn.ModuleList(nn.Linear(4 * channels, 4 * channels) for _ in range(2))
        self.hidden_norms = nn.ModuleList(nn.BatchNorm1d(4 * channels) for _ in range(2))
        self.out = nn.Linear(4 * channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(x, math.ceil(x.shape[-1] / 4))
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.relu(norm(convolution(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        for linear, norm in zip(self.hidden, self.hidden_norms, strict=True):
            x = F.relu(norm(linear(x)))
        return self.out(x)

    def like(self, ours: nn.Module) -> Head:
        """With the weights of our head, layer by layer."""
        for kind in (nn.Conv2d, nn.BatchNorm2d, nn.Linear, nn.BatchNorm1d):
            pairs = zip(*([m for m in net.modules() if type(m) is kind] for net in (self, ours)), strict=True)
            for own, other in pairs:
                own.load_state_dict(other.state_dict())
        return self


def deep_model() -> BlockModel:
    torch.manual_seed(2)
    units = [
        nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
        for a, b in pairwise([2, 4, 4, 5, 5, 6, 6])
    ]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 3))
    return BlockModel(units, head, image=(2, 6, 6), classes=3, name="deep")


def theirs(learner) -> tuple[list[nn.Module], list[nn.Module]]:
    """Copies of the layers, and heads with our weights; that of the last layer is the net's own."""
    layers = [copy.deepcopy(unit) for unit in learner.model.units]
    below = zip(layers[:-1], learner.blocks[:-1], strict=True)
    heads = [Head(layer[0].out_channels).double().like(block.auxiliary) for layer, block in below]
    return layers, [*heads, copy.deepcopy(learner.model.head)]


def sgd(*modules: nn.Module) -> torch.optim.Optimizer:
    parameters = [p for module in modules for p in module.parameters()]
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def test_dgl(parity: Parity) -> None:
    batches = tiny_batches(STEPS)
    learner = tiny_learner(DGL(**HEADED), deep_model(), "max", optim=PLAIN, total_steps=STEPS)
    layers, heads = theirs(learner)
    optimizers = [sgd(layer, head) for layer, head in zip(layers, heads, strict=True)]
    for x, y in batches:
        found = learner.step(x, y)
        losses = []
        for layer, head, optimizer in zip(layers, heads, optimizers, strict=True):
            optimizer.zero_grad()
            x = layer(x)
            losses.append(F.cross_entropy(head(x), y))
            losses[-1].backward()
            optimizer.step()
            x = x.detach()
        ours = [found[f"block/{k:02d}/loss"] for k in range(6)]
        parity.equal("DGL", "6 layers with mlp-sr heads, 10 steps: every layer's loss", apart(ours, losses))
    found = [unit.state_dict() for unit in learner.model.units]
    weights = apart(found, [layer.state_dict() for layer in layers])
    parity.equal("DGL", "6 layers with mlp-sr heads, 10 steps: weights and batch statistics", weights)


def test_sequential_greedy(parity: Parity) -> None:
    """A layer and its head are trained, then frozen in eval mode, and the next one goes on."""
    model = deep_model()
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(20, 3))
    model = BlockModel(model.units[:4], head, image=(2, 6, 6), classes=3, name="four")
    batches = tiny_batches(12)
    learner = tiny_learner(Greedy(**HEADED), model, "max", optim=PLAIN, total_steps=12)
    layers, heads = theirs(learner)
    for phase, (layer, head) in enumerate(zip(layers, heads, strict=True)):
        optimizer = sgd(layer, head)
        below = nn.Sequential(*layers[:phase]).eval()
        for x, y in batches[3 * phase : 3 * phase + 3]:
            with torch.no_grad():
                features = below(x)
            optimizer.zero_grad()
            F.cross_entropy(head(layer(features)), y).backward()
            optimizer.step()
    for x, y in batches:
        learner.learn(x, y)
    found = [unit.state_dict() for unit in learner.model.units]
    weights = apart(found, [layer.state_dict() for layer in layers])
    parity.equal("DGL", "sequential greedy, 4 phases of 3 steps: weights and batch statistics", weights)


def test_replay_buffer(parity: Parity) -> None:
    """Of what the authors' buffer holds it draws one of the least used, the freshest of these."""
    for size in (1, 2, 5, 30):
        generator = torch.Generator().manual_seed(size)
        buffer, held, now = Buffer(size), {}, 0
        ours, drawn = [], []
        for _ in range(400):
            if not held or torch.rand((), generator=generator) < 0.4:
                buffer.push(torch.tensor(now), now)  # type: ignore[arg-type]
                if len(held) == size:
                    del held[min(held)]
                held[now] = 0
                now += 1
            waiting = buffer.draw()
            assert waiting is not None
            key = sorted(held, key=lambda number: (held[number], -number))[0]
            held[key] += 1
            ours.append(waiting.batch)
            drawn.append(key)
        parity.equal(
            "DGL", "replay buffers of 1 to 30: what is drawn (their rule with > read as >=)", apart(ours, drawn)
        )


def local_net() -> BlockModel:
    torch.manual_seed(4)
    units = [
        nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.LeakyReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.LeakyReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(216, 16), nn.BatchNorm1d(16), nn.LeakyReLU()),
    ]
    return BlockModel(units, nn.Linear(16, 3), image=(2, 6, 6), classes=3, name="local")


def similarity(x: Tensor) -> Tensor:
    """Their similarity matrix: maps of more than 3 channels by the deviation of each over space, centred cosines."""
    if x.dim() == 4:
        x = x.flatten(2).std(dim=2) if x.shape[1] > 3 and x.shape[2] > 1 else x.flatten(1)
    x = x - x.mean(dim=1, keepdim=True)
    x = x / (x.pow(2).sum(dim=1, keepdim=True).sqrt() + 1e-8)
    return (x @ x.T).clamp(-1, 1)


def test_local_error_signals(parity: Parity) -> None:
    """Every layer, the last hidden one too, with its own loss and Adam; the output layer on detached features."""
    losses = {"pred": (CrossEntropy(), 1.0, 0.0), "predsim": (PredSim(beta=0.9), 0.1, 0.9)}
    for name, (objective, prediction, match) in losses.items():
        adam = Adam(lr=5e-3, schedule="constant")
        strategy = DGL(objective=objective, auxiliary=Linear(features=60), last="local")
        learner = tiny_learner(strategy, local_net(), "max", optim=adam, total_steps=STEPS)
        model = copy.deepcopy(learner.model)
        decoders = [copy.deepcopy(block.auxiliary["classifier"]) for block in learner.blocks]
        matchers = [
            copy.deepcopy(block.auxiliary["similarity"].layer) if match else nn.Identity() for block in learner.blocks
        ]
        groups = [nn.ModuleList(group) for group in zip(model.units, decoders, matchers, strict=True)]
        optimizers = [torch.optim.Adam(group.parameters(), lr=5e-3) for group in [*groups, model.head]]
        for x, y in tiny_batches(STEPS):
            learner.learn(x, y)
            onehot = torch.eye(3, dtype=torch.float64)[y]
            for (layer, decoder, matcher), optimizer in zip(groups, optimizers, strict=False):
                h = layer(x)
                loss = prediction * F.cross_entropy(decoder(h), y)
                if match:
                    loss = loss + match * F.mse_loss(similarity(matcher(h)), similarity(onehot))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                x = h.detach()
            optimizers[-1].zero_grad()
            (prediction * F.cross_entropy(model.head(x), y)).backward()
            optimizers[-1].step()
        weights = apart(dict(learner.model.named_parameters()), dict(model.named_parameters()))
        within = 1e-6 if match else 1e-10  # ours adds 1e-8 under the root of the deviation
        what = f"{name}, a local loss for every hidden layer, Adam, 10 steps: weights"
        parity.equal("local-loss", what, weights, within)
