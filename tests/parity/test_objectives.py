"""Local losses: InfoPro, supervised contrast, SimCLR's NT-Xent, Greedy InfoMax's InfoNCE and similarity matching, each
as the authors' program computes it."""

from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.marks import slow
from helpers.nets import tiny_learner
from helpers.parity import Parity, apart
from locallearn.auxiliary import ConvFC, Linear
from locallearn.contract import BlockSpec, Packet
from locallearn.engine import SGD
from locallearn.models.local_loss import vgg_b
from locallearn.models.resnet import cifar_resnet
from locallearn.objectives import InfoPro, PredSim, Similarity
from locallearn.objectives.contrastive import contrast
from locallearn.objectives.infonce import info_nce
from locallearn.strategies.greedy import DGL

LAMBDAS = {2: (5.0, 0.5, 0.0, 0.0), 4: (1.0, 0.0, 0.0, 1.0), 8: (5.0, 0.0, 0.0, 1.0), 16: (5.0, 0.0, 0.5, 1.0)}
CUTS = {2: ["layer2.1"], 4: ["layer1.2", "layer2.1", "layer3.0"]}
CUTS[8] = ["layer1.0", "layer1.2", "layer1.4", "layer2.1", "layer2.3", "layer3.0", "layer3.2"]
MEAN, STD = torch.tensor([0.5, 0.25, 0.75]).double(), torch.tensor([0.25, 0.5, 0.125]).double()


def randn(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def supcon(z: Tensor, y: Tensor, temperature: float, base: float = 0.07) -> tuple[Tensor, Tensor]:
    """SupContrast of one view: the loss of every anchor (0 without a positive), and how many positives it has."""
    z = z / z.norm(dim=1, keepdim=True)
    logits = z @ z.T / temperature
    logits = logits - logits.max(dim=1, keepdim=True).values
    others = 1 - torch.eye(len(z), dtype=z.dtype)
    positive = (y[:, None] == y).to(z.dtype) * others
    log_p = logits - (logits.exp() * others).sum(1, keepdim=True).log()
    mean = (positive * log_p).sum(1) / positive.sum(1).clamp(min=1)
    return -(temperature / base) * mean, positive.sum(1)


@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_supervised_contrast(temperature: float, parity: Parity) -> None:
    z, y = randn(12, 5), torch.tensor([0, 1, 2] * 4)
    theirs, _ = supcon(z, y, temperature)
    ours = contrast(z, y, temperature)
    scaled = ours * temperature / 0.07
    parity.equal("SupContrast", "supervised contrast, times temperature / 0.07", apart(scaled, theirs.mean()))
    if temperature != 0.07:
        words = "code multiplies by t / 0.07, which is 1 at the default"
        parity.documented("SupContrast", "its factor at other temperatures", apart(ours, theirs.mean()), SUPCON, words)


SUPCON = "src/locallearn/objectives/contrastive.py"


def test_anchors_without_a_partner(parity: Parity) -> None:
    z, y = randn(6, 5), torch.tensor([0, 0, 0, 1, 2, 3])
    theirs, partners = supcon(z, y, 0.07)
    ours = contrast(z, y, 0.07)
    anchors = (partners > 0).sum()
    parity.equal("InfoPro", "contrast, means over the anchors that have a partner", apart(ours, theirs.sum() / anchors))
    words = "divides by all anchors, those without a positive too"
    parity.documented("InfoPro", "contrast where anchors have no partner", apart(ours, theirs.mean()), SUPCON, words)


def test_nt_xent(parity: Parity) -> None:
    """SimCLR's program: two halves are each other's views, scored in two blocks of logits."""
    a, b = (F.normalize(randn(7, 4, seed=k), dim=1) for k in (1, 2))
    alone = torch.eye(7, dtype=torch.float64) * 1e9
    losses = []
    for one, other in ((a, b), (b, a)):
        scores = torch.cat([one @ other.T, one @ one.T - alone], 1) / 0.5
        losses.append(F.cross_entropy(scores, torch.arange(7)))
    ours = contrast(torch.cat([a, b]), torch.arange(7).repeat(2), 0.5)
    parity.equal("SimCLR", "NT-Xent", apart(ours, (losses[0] + losses[1]) / 2))


def test_info_nce(parity: Parity) -> None:
    """Greedy InfoMax: softmax over the positive and the negatives, then log(p + 1e-11)."""
    context, positive, negatives = randn(40, 6) / 4, randn(40, 6, seed=1), randn(40, 16, 6, seed=2)
    scores = torch.cat([(context * positive).sum(1, keepdim=True), torch.einsum("mc,mnc->mn", context, negatives)], 1)
    theirs = -(scores.softmax(1)[:, 0] + 1e-11).log().mean()
    parity.equal(
        "Greedy InfoMax",
        "InfoNCE with the same negatives (theirs adds 1e-11)",
        apart(info_nce(context, positive, negatives), theirs),
        1e-6,
    )


def cosines(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    x = x / (1e-8 + x.square().sum(1, keepdim=True).sqrt())
    return (x @ x.T).clamp(-1, 1)


@pytest.mark.parametrize("size", [(9,), (3, 5, 5), (6, 1, 1), (6, 5, 5)])
def test_similarity_matching(size: tuple[int, ...], parity: Parity) -> None:
    """Their projection has no bias: on vectors, on maps of up to 3 channels or of 1 position it would count."""
    spec = BlockSpec(0, 4, (3, 8, 8), (3, 8, 8), size, 3)
    modules = nn.ModuleDict(Similarity().modules(spec, Linear())).double()
    h, y = randn(8, *size).requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    ours, _ = Similarity().loss(spec, modules, h, Packet(h, y))
    (weight,) = modules.parameters()
    g = F.conv2d(h, weight, padding=1) if len(size) == 3 else h @ weight.T
    wide = len(size) == 3 and size[0] > 3 and size[1] > 1
    theirs = F.mse_loss(cosines(g.flatten(2).std(2) if wide else g.flatten(1)), cosines(F.one_hot(y).double()))
    grads = [torch.autograd.grad(loss, (h, weight), retain_graph=True) for loss in (ours, theirs)]
    found = max(apart(ours, theirs), apart(*grads))
    parity.equal("local-loss", "similarity matching: loss and gradients (ours adds 1e-8 in a root)", found, 1e-6)


class LinearFA(torch.autograd.Function):
    """Their linear layer: what it answers with is another matrix."""

    @staticmethod
    def forward(ctx, x, weight, feedback, bias):  # type: ignore[override]
        ctx.save_for_backward(x, feedback)
        return x @ weight.T + bias

    @staticmethod
    def backward(ctx, grad):  # type: ignore[override]
        x, feedback = ctx.saved_tensors
        return grad @ feedback, grad.T @ x, None, grad.sum(0)


def reduced(x: Tensor) -> Tensor:
    """What their similarity matrix takes of maps, or of anything else."""
    return x.flatten(2).std(2) if x.dim() == 4 and x.shape[1] > 3 and x.shape[2] > 1 else x.flatten(1)


def their_predsim(modules: nn.ModuleDict, options: PredSim, h: Tensor, x: Tensor, y: Tensor, index: int) -> Tensor:
    """The loss of a block in their program, of tensors alone. Maps of 8 x 8 are pooled by 2 x 2 to 96 features."""
    onehot = F.one_hot(y, 3).double()
    pooled = F.avg_pool2d(h, 2) if h.dim() == 4 else h
    if options.bio:
        own = modules["projected"]
        projected = onehot @ own.project.T
        answers = LinearFA.apply(pooled.flatten(1), own.linear.weight, own.feedback, own.linear.bias)
        pred = F.binary_cross_entropy_with_logits(answers, projected.gt(0).double())
        rh, ry = cosines(reduced(pooled)), cosines(projected)
    else:
        weight, decoder = modules["similarity"].layer.weight, modules["classifier"][-1]
        pred = F.cross_entropy(pooled.flatten(1) @ decoder.weight.T + decoder.bias, y)
        rh = cosines(reduced(F.conv2d(h, weight, padding=1) if h.dim() == 4 else h @ weight.T))
        ry = cosines(onehot)
    unsupervised = torch.zeros(())
    if options.unsupervised == "sim":
        unsupervised = F.mse_loss(rh, cosines(reduced(x)))
    elif options.unsupervised == "recon" and index:
        if h.dim() == 4:
            layer = modules["input_decoder"].layers
            made = F.conv_transpose2d(h, layer.weight, layer.bias, padding=1)
        else:
            layer = modules["input_decoder"].layers[1]
            made = h @ layer.weight.T + layer.bias
        unsupervised = F.mse_loss(made.relu(), x)
    supervised = (1 - options.beta) * pred + options.beta * F.mse_loss(rh, ry)
    return options.alpha * unsupervised + (1 - options.alpha) * supervised


@pytest.mark.parametrize("index", [0, 1])
@pytest.mark.parametrize("size", [(9,), (6, 8, 8)], ids=str)
@pytest.mark.parametrize(("unsupervised", "alpha"), [("none", 0.0), ("sim", 0.3), ("recon", 0.3)])
@pytest.mark.parametrize("bio", [False, True])
def test_what_their_program_has_beside(bio, unsupervised, alpha, size, index, parity: Parity) -> None:
    options = PredSim(beta=0.7, bio=bio, unsupervised=unsupervised, alpha=alpha)
    torch.manual_seed(0)
    spec = BlockSpec(index, 4, (5, 8, 8), (5, *size[1:]), size, 3)
    modules = nn.ModuleDict(options.modules(spec, Linear(features=96))).double()
    h, x, y = randn(8, *size).requires_grad_(), randn(8, *spec.reads, seed=4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
    ours, _ = options.loss(spec, modules, h, Packet(x, y))
    theirs = their_predsim(modules, options, h, x, y, index)
    read = [h, *modules.parameters()]
    grads = [torch.autograd.grad(loss, read, retain_graph=True) for loss in (ours, theirs)]
    name = f"predsim{', bio' if bio else ''}, unsupervised loss {unsupervised}"
    found = max(apart(ours, theirs), *(apart(a, b) for a, b in zip(*grads, strict=True)))
    parity.equal("local-loss", f"{name}: loss and gradients (ours adds 1e-8 in a root)", found, 1e-6)


def test_how_the_bio_form_begins(parity: Parity) -> None:
    """Weight and bias of the decoder at 0, both random matrices uniform within 1 / sqrt(fan_in)."""
    torch.manual_seed(0)
    spec = BlockSpec(0, 4, (5,), (5,), (400,), 9)
    own = PredSim(bio=True).modules(spec, Linear(zero_init=True))["projected"]
    assert not own.linear.weight.any()
    assert not own.linear.bias.any()
    assert own.linear.weight.shape == (128, 400)
    assert own.project.shape == (128, 9)
    largest = own.project.abs().max() * 3, own.feedback.abs().max() * 20
    assert all(0.98 < each <= 1 for each in largest)
    deviations = own.project.std() * 3, own.feedback.std() * 20
    parity.equal("local-loss", "predsim, bio: deviation of the random matrices", apart(deviations, [3**-0.5] * 2), 0.02)


def test_local_losses_read_before_dropout(parity: Parity) -> None:
    """vgg8b at a rate of 0.5: what the local loss of a layer reads is the activation, whatever is dropped after it."""
    torch.manual_seed(0)
    model = vgg_b((3, 8, 8), 3, dropout=0.5).double()
    conv, norm = model.units[0][0], model.units[0][1]
    x = randn(4, 3, 8, 8)
    theirs = F.relu(F.batch_norm(F.conv2d(x, conv.weight, padding=1), None, None, norm.weight, norm.bias, True))
    found = [apart(model.units[0](x), theirs) for _ in range(2)]
    parity.equal("local-loss", "vgg8b with dropout: what the first local loss reads", max(found))
    widths = [3, 128, 256, 256, 512, 512, 512]
    biases = sum(widths[1:])
    fully_connected = 512 * 1024 + 3 * 1024 + 1024 * 3 + 3  # a map of 1 x 1 is left
    published = sum(9 * a * b + 3 * b for a, b in pairwise(widths)) + fully_connected
    count = sum(p.numel() for p in model.parameters())
    assert published - count == biases == 2176
    page, words = "src/locallearn/models/local_loss.py", "2,176 parameters more for vgg8b"
    parity.documented("local-loss", "parameters of vgg8b: no biases below batch norm", published - count, page, words)


def test_head_of_predsim(parity: Parity) -> None:
    parity.equal("local-loss", "weight of the output layer's loss under predsim", apart(PredSim(0.9).head_weight, 0.1))
    with torch.no_grad():
        zero = vgg_b((3, 8, 8), 3, zero_head=True).head.weight.abs().max()
    parity.equal("local-loss", "output layer's first weight", apart(zero, 0.0))


@pytest.mark.parametrize("blocks", [slow(k) if k > 4 else k for k in LAMBDAS])
def test_infopro(blocks: int, parity: Parity) -> None:
    """ResNet-32 with contrast: module by module, decoder and head with weights that go linearly with the module, and
    the true loss in the last module; two steps of SGD."""
    steps = 2
    r_first, t_first, r_last, t_last = LAMBDAS[blocks]
    options = {"reconstruction_first": r_first, "task_first": t_first, "task_last": t_last}
    objective = InfoPro(task="supcon", reconstruction_last=r_last or (0.0 if t_last else 1.0), **options)
    torch.manual_seed(blocks)
    model = cifar_resnet((3, 16, 16), 10, depth=32, shortcut="B")
    cut: list[int] | str = [model.names.index(name) + 1 for name in CUTS[blocks]] if blocks in CUTS else "max"
    pixels = tuple((-MEAN / STD).tolist()), tuple(((1 - MEAN) / STD).tolist())
    plain = SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4, schedule="constant")
    strategy = DGL(objective=objective, auxiliary=ConvFC())
    learner = tiny_learner(strategy, model, cut, optim=plain, total_steps=steps, pixels=pixels)
    modules = [copy.deepcopy(nn.Sequential(*(learner.model.units[i] for i in units))) for units in learner.cut]
    auxiliary = [copy.deepcopy(block.auxiliary) for block in learner.blocks[:-1]]
    groups = [*zip(modules[:-1], auxiliary, strict=True), (modules[-1], head := copy.deepcopy(learner.model.head))]
    optimizers = [
        torch.optim.SGD(nn.ModuleList(group).parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)
        for group in groups
    ]
    for step in range(steps):
        images = torch.rand(12, 3, 16, 16, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        x, y = (images - MEAN[:, None, None]) / STD[:, None, None], torch.arange(12) % 4
        found = learner.step(x, y)
        losses = []
        for k, (module, optimizer) in enumerate(zip(modules, optimizers, strict=True)):
            optimizer.zero_grad()
            x = module(x)
            if k == blocks - 1:
                loss = F.cross_entropy(head(x), y)
            else:
                share = k / (blocks - 2) if blocks > 2 else 0
                r, t = r_first + share * (r_last - r_first), t_first + share * (t_last - t_first)
                loss = torch.zeros((), dtype=torch.float64)
                if r:
                    decoder = auxiliary[k]["decoder"].decoder
                    loss = r * F.binary_cross_entropy(decoder(x).sigmoid(), images)
                if t:
                    loss = loss + t * supcon(auxiliary[k]["projection"](x), y, 0.07)[0].mean()
            loss.backward()
            optimizer.step()
            losses.append(loss)
            x = x.detach()
        ours = [found[f"block/{k:02d}/loss"] for k in range(blocks)]
        parity.equal("InfoPro", f"ResNet-32, K = {blocks}, contrast, 2 steps: losses", apart(ours, losses))
    weights = apart([unit.state_dict() for unit in learner.model.units], [u.state_dict() for m in modules for u in m])
    parity.equal("InfoPro", f"ResNet-32, K = {blocks}, contrast, 2 steps: weights", weights)


def test_cuts_of_infopro(parity: Parity) -> None:
    """ResNet-32 in 2, 4, 8 and 16 modules of equal cost is cut after the units that the authors list."""
    model = cifar_resnet((3, 32, 32), 10, depth=32, shortcut="B")
    for blocks, names in CUTS.items():
        ours = [units.stop for units in model.cut(blocks)[:-1]]
        theirs = [model.names.index(name) + 1 for name in names]
        parity.equal("InfoPro", "where ResNet-32 is cut for K = 2, 4, 8", apart(ours, theirs))
    count = sum(p.numel() for p in model.parameters())
    parity.equal("InfoPro", "parameters of ResNet-32 with shortcut B", abs(count - 466_906))
