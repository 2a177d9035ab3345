"""Tasks against torch's own functions, autograd and scikit-learn; steps of strategies against loops by hand."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from torch import Tensor, nn
from torch.nn import functional as F

import locallearn
from helpers.commands import run
from helpers.marks import slow
from locallearn.analysis.cost import SavedBytes
from locallearn.auxiliary import Linear
from locallearn.config.compose import choices
from locallearn.config.targets import instantiate
from locallearn.engine import SGD, Setup, assemble
from locallearn.engine.totals import BlockTotals
from locallearn.errors import UserError
from locallearn.models import BlockModel, answering
from locallearn.models.gpt import gpt
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.deep_supervision import DeepSupervision
from locallearn.strategies.dfa import DFA
from locallearn.strategies.greedy import DGL
from locallearn.strategies.overlapping import Overlapping
from locallearn.task import CLASSIFICATION, DETECTION, MIXED, MULTILABEL, REGRESSION, SEGMENTATION, TOKENS
from locallearn.tasks import (
    TASKS,
    Classification,
    Detection,
    Multilabel,
    Regression,
    Segmentation,
    Task,
    Tokens,
    tokens,
)

B, C, T, SIDE = 6, 5, 7, 8


class Case(NamedTuple):
    """A task, answers and targets of a batch, and the loss as anybody would write it."""

    task: Task
    z: Tensor
    y: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def some_unknown(y: Tensor) -> Tensor:
    y = y.clone()
    y.view(-1)[::3] = -1
    return y


def binary(z: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(z[y >= 0], y[y >= 0].to(z.dtype))


def pixels(z: Tensor, y: Tensor) -> Tensor:
    large = F.interpolate(z, y.shape[1:], mode="bilinear", align_corners=False)
    return F.cross_entropy(large, y, ignore_index=-1)


def next_token(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z.reshape(-1, z.shape[-1]), y.reshape(-1), ignore_index=-1)


def smooth(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[y >= 0], y[y >= 0], label_smoothing=0.2)


def weighted(z: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(z[y >= 0], y[y >= 0], torch.arange(1.0, C + 1, dtype=z.dtype))


SHARES = numbers(B, C).softmax(1)
CASES = {
    "classification": Case(
        Classification(),
        numbers(B, C),
        some_unknown(integers(C, B)),
        lambda z, y: F.cross_entropy(z[y >= 0], y[y >= 0]),
    ),
    "smoothing": Case(Classification(smoothing=0.2), numbers(B, C), some_unknown(integers(C, B)), smooth),
    "mixed": Case(Classification(mixed=True), numbers(B, C), SHARES, F.cross_entropy),
    "regression": Case(Regression(), numbers(B, 3), numbers(B, 3).sin(), F.mse_loss),
    "multilabel": Case(Multilabel(), numbers(B, C), some_unknown(integers(2, B, C)).double(), binary),
    "tokens": Case(Tokens(), numbers(B, T, C), some_unknown(integers(C, B, T)), next_token),
    "segmentation": Case(Segmentation(), numbers(B, C, 4, 4), some_unknown(integers(C, B, SIDE, SIDE)), pixels),
    "segmentation at full size": Case(
        Segmentation(), numbers(B, C, SIDE, SIDE), some_unknown(integers(C, B, SIDE, SIDE)), pixels
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_error(name):
    task, z, y, by_hand = CASES[name]
    z = z.clone().requires_grad_()
    assert float(task.loss(z.detach(), y)) == pytest.approx(float(by_hand(z.detach(), y)), abs=1e-12)
    (gradient,) = torch.autograd.grad(task.loss(z, y), z)
    torch.testing.assert_close(task.error(z.detach(), y), gradient, atol=1e-12, rtol=0)
    torch.testing.assert_close(Task.error(task, z.detach(), y), gradient, atol=0, rtol=0)


def test_weights_of_classes():
    z, y = numbers(B, C), some_unknown(integers(C, B))
    task = Classification(weights=tuple(range(1, C + 1)))
    assert float(task.loss(z, y)) == pytest.approx(float(weighted(z, y)), abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_sums_add_up_over_parts_and_a_batch_without_targets_counts_nothing(name):
    task, z, y, _ = CASES[name]
    whole = task.sums(z, y)
    parts = [task.sums(a, b) for a, b in zip(z.split(2), y.split(2), strict=True)]
    torch.testing.assert_close(torch.stack(parts).sum(0), whole, atol=1e-12, rtol=0)
    assert whole.dtype == torch.float64
    totals = [
        task.total(a, b).double() for a, b in zip(z.split(2), y.split(2), strict=True) if not b.is_floating_point()
    ]
    if totals:
        torch.testing.assert_close(torch.stack(totals).sum(), task.total(z, y).double(), atol=1e-5, rtol=0)
    if not y.is_floating_point() or name == "multilabel":
        none = torch.full_like(y, -1)
        assert float(task.loss(z, none)) == 0
        assert int(task.count(none)) == 0


@pytest.mark.parametrize("name", CASES)
def test_running_totals_are_those_of_the_whole_whatever_looks_at_them(name):
    """Block totals of three parts, read in between, put away and merged as replicas are: the numbers of all items."""
    task, z, y, by_hand = CASES[name]
    mine, other = BlockTotals(torch.device("cpu"), task), BlockTotals(torch.device("cpu"), task)
    for k, (a, b) in enumerate(zip(z.split(2), y.split(2), strict=True)):
        (mine if k < 2 else other).report(task.loss(a, b), a, b)
        mine.load_state(mine.state())
    merged = BlockTotals.means(BlockTotals.merge([mine.state(), other.state()]), task)
    counts = torch.tensor([float(task.count(b)) for b in y.split(2)], dtype=torch.float64)
    losses = torch.stack([by_hand(a, b) for a, b in zip(z.split(2), y.split(2), strict=True)])
    assert merged["loss"] == pytest.approx(float((losses * counts).sum() / counts.sum()), abs=1e-6)
    count = int(task.count(y))
    assert {k: merged[k] for k in merged if k not in ("loss", "bits_per_character", "perplexity")} == pytest.approx(
        task.numbers(None, task.sums(z, y).tolist(), count)
    )


def test_the_loss_of_a_large_vocabulary_is_computed_in_parts(monkeypatch):
    """The same loss and gradient, and autograd keeps no second copy of the logits."""
    monkeypatch.setattr(tokens, "CHUNK", 3 * 5000)
    z, y = numbers(2, T, 5000).requires_grad_(), some_unknown(integers(5000, 2, T))
    gradients, kept = [], []
    for loss in (Tokens().loss, next_token):
        with SavedBytes([z]) as saved:
            value = loss(z, y)
        kept.append(saved.now)
        gradients.append(torch.autograd.grad(value, z)[0])
        assert float(value.detach()) == pytest.approx(float(next_token(z.detach(), y)), abs=1e-12)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-15, rtol=0)
    assert kept[0] < 0.01 * z.nbytes <= z.nbytes <= kept[1]
    with torch.no_grad():
        assert float(Tokens().total(z, y)) == pytest.approx(float(next_token(z, y) * (y >= 0).sum()), rel=1e-12)


def test_metrics_are_those_of_scikit_learn():
    from sklearn import metrics

    task, z, y, _ = CASES["regression"]
    scaled = Regression((1.0, 2.0, 3.0), (2.0, 0.5, 1.0))
    got = scaled.numbers(None, scaled.sums(z, y).tolist(), B)
    assert got["r2"] == pytest.approx(metrics.r2_score(y, z))
    units = torch.tensor(scaled.std, dtype=torch.float64)
    assert got["rmse"] == pytest.approx(math.sqrt(metrics.mean_squared_error(y * units, z * units)))
    assert got["mae"] == pytest.approx(metrics.mean_absolute_error(y * units, z * units))
    torch.testing.assert_close(scaled.original(scaled.standardised(y)), y, atol=1e-6, rtol=0)

    task, z, _, _ = CASES["multilabel"]
    y = integers(2, B, C).double()
    got = task.numbers(None, task.sums(z, y).tolist(), B * C) | task.finish(task.rows(z, y))
    assert got["f1"] == pytest.approx(metrics.f1_score(y, z > 0, average="macro"))
    assert got["subset_accuracy"] == pytest.approx(metrics.accuracy_score(y, z > 0))
    assert got["map"] == pytest.approx(metrics.average_precision_score(y, z.float(), average="macro"))

    task, z, y, _ = CASES["segmentation at full size"]
    truth, answers = y[y >= 0], z.argmax(1)[y >= 0]
    got = task.numbers(None, task.sums(z, y).tolist(), len(truth))
    assert got["miou"] == pytest.approx(metrics.jaccard_score(truth, answers, average="macro", labels=truth.unique()))
    assert got["accuracy"] == pytest.approx(metrics.accuracy_score(truth, answers))

    got = Tokens(characters=2).numbers(3 * math.log(8), None, 3)
    assert got == pytest.approx({"loss": math.log(8), "bits_per_character": 1.5, "perplexity": 8})


# Whole steps of strategies, by hand


def model_of(name: str) -> BlockModel:
    torch.manual_seed(0)
    if name == "tokens":
        return gpt((T,), C, C, layers=2, heads=2, width=8).double()
    widths = [2, 4, 6, 5]
    if name == "segmentation":
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(a, b, 3, stride=1 + k % 2, padding=1), nn.Tanh())
            for k, (a, b) in enumerate(pairwise(widths))
        ]
        model = BlockModel(layers, nn.Flatten(), image=(2, SIDE, SIDE), classes=C, name="maps")
        return answering(model, "position").double()
    outputs = {"regression": 3}.get(name, C)
    layers = [nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in pairwise(widths)]
    return BlockModel(layers, nn.Linear(5, outputs), image=(2,), classes=outputs, name="vectors").double()


def batch_of(name: str, model: BlockModel) -> Tensor:
    return integers(C, B, T) if name == "tokens" else numbers(B, *model.image)


LOCAL: dict[str, Any] = {"objective": CrossEntropy(), "auxiliary": Linear()}
STRATEGIES = {
    "backprop": Backprop(),
    "dgl": DGL(**LOCAL),
    "loco": Overlapping(**LOCAL),
    "deep_supervision": DeepSupervision(**LOCAL, weight=0.3),
    "dfa": DFA(),
}
NAMES = ["regression", "multilabel", "tokens", "segmentation", "smoothing", "mixed"]
RATE = 0.1


def by_hand(strategy: str, units: list[nn.Module], heads: list[nn.Module], feedback: list[Tensor], x: Tensor, y: Tensor,
            loss: Callable[[Tensor, Tensor], Tensor]) -> None:  # fmt: skip
    """One step of SGD; `heads` ends with the model's own."""
    last = len(units) - 1
    total: Tensor | float = 0.0
    if strategy in ("backprop", "deep_supervision"):
        h = x
        for k, unit in enumerate(units):
            h = unit(h)
            if k == last or strategy == "deep_supervision":
                total = total + (1.0 if k == last else 0.3) * loss(heads[k](h), y)
    elif strategy == "dgl":
        h = x
        for k, unit in enumerate(units):
            h = unit(h.detach() if k else h)
            total = total + loss(heads[k](h), y)
    elif strategy == "loco":  # each unit learns from its own loss and the next one's; a head from its own alone
        inputs = [x]
        for unit in units:
            inputs.append(unit(inputs[-1]).detach())
        for k, unit in enumerate(units):
            h = unit(inputs[k])
            total = total + loss(heads[k](h), y)
            if k < last:
                above, head = copy.deepcopy(units[k + 1]), copy.deepcopy(heads[k + 1])
                total = total + loss(head(above(h)), y)
    else:  # dfa: the head has its true gradient, every unit a projection of the error
        h = x
        emitted = []
        for k, unit in enumerate(units):
            emitted.append(unit(h.detach() if k else h))
            h = emitted[-1]
        z = heads[-1](h.detach())
        total = loss(z, y)
        (error,) = torch.autograd.grad(total, z, retain_graph=True)
        for out, matrix in zip(emitted, feedback, strict=True):
            if error.dim() == 4:
                share = error.shape[-1] // out.shape[-1]
                summed = F.avg_pool2d(error, share) * share**2 if share >= 1 else error
                if out.shape[-1] > error.shape[-1]:
                    ratio = out.shape[-1] // error.shape[-1]
                    summed = F.interpolate(error, scale_factor=ratio, mode="nearest") / ratio**2
                sent = torch.einsum("bchw,cd->bdhw", summed, matrix)
            else:
                sent = (error @ matrix).view_as(out)
            total = total + (out * sent.detach()).sum()
    assert isinstance(total, Tensor)
    total.backward()
    for module in (*units, *heads):
        for p in module.parameters():
            if p.grad is not None:
                p.data -= RATE * p.grad
                p.grad = None


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("name", NAMES)
def test_three_steps_are_those_of_a_loop_by_hand(name, strategy):
    task, _, y, loss = CASES[name]
    model, optim = model_of(name), SGD(lr=RATE, momentum=0.0, schedule="constant")
    own = copy.deepcopy(model)
    learner = assemble(own, STRATEGIES[strategy], optim, own.cut("max"), Setup(precision="fp64", task=task))
    units = [copy.deepcopy(unit) for unit in model.units]
    auxiliary = [
        copy.deepcopy(block.auxiliary["classifier"]) for block in learner.blocks if "classifier" in block.auxiliary
    ]
    heads = [*(auxiliary or [nn.Identity()] * (len(units) - 1)), copy.deepcopy(model.head)]
    feedback = [
        block.auxiliary["feedback"].matrix.double() for block in learner.blocks if "feedback" in block.auxiliary
    ]
    x = batch_of(name, model)
    for _ in range(3):
        metrics = learner.step(x, y)
        with torch.no_grad():
            expected = float(loss(heads[-1](nn.Sequential(*units)(x)), y))
        by_hand(strategy, units, heads, feedback, x, y, loss)
        assert metrics["loss"] == pytest.approx(expected, abs=1e-10)
    for mine, theirs in zip([*own.units, own.head], [*units, heads[-1]], strict=True):
        for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(p, q, atol=1e-10, rtol=0)


# What a composition cannot serve


REFUSED = [
    ("data=shakespeare model=gpt objective=supcon auxiliary=linear", "attracts samples of one label"),
    ("data=shakespeare model=gpt objective=predsim auxiliary=linear", "compares samples by their labels"),
    ("data=shakespeare model=gpt objective=vib auxiliary=linear", "has one code for each sample"),
    ("data=shakespeare model=gpt objective=reconstruction", "reads numbers, but the data are tokens"),
    ("data=shakespeare model=gpt auxiliary=mlp_sr", "averages over positions"),
    ("data=shakespeare model=gpt strategy=pgi auxiliary=linear", "reads numbers, but the data are tokens"),
    ("data=shakespeare model=gpt strategy=infomax", "predicts rows of a map"),
    ("data=shakespeare model=mlp", "reads numbers, but the data are tokens of a vocabulary of 65"),
    ("data=digits model=gpt", "gpt reads tokens, but the data have none"),
    ("data=digit_ink model=lenet auxiliary=linear", "answers once for each sample, but must answer at every position"),
    ("data=digit_ink model=gelan model.width=0.125 objective=simclr", "moves images, and not what is asked"),
    (
        "data=digit_ink model=gelan model.width=0.125 auxiliary=linear probe=fisher",
        "probe.fisher is for classification",
    ),
    ("data=diabetes model=mlp objective=supcon", "attracts samples of one label"),
    ("data=diabetes model=mlp probe=information_plane", "asks for numbers for each sample"),
    ("data=digit_segments model=mlp objective=supcon", "attracts samples of one label"),
    ("data=digit_segments model=mlp data.label_noise=0.1", "data.label_noise=0.1 is for classes"),
    ("data=digit_ink model=gelan model.width=0.125 data.smoothing=0.1", "data.smoothing=0.1 is for classes"),
    ("data=digits model=mlp data.class_weights=[1,2]", "must be 10 numbers, one for each class"),
    ("data=text model=gpt auxiliary=linear", "data=text needs data.file=PATH"),
    ("data=shakespeare model=gpt model.heads=3 auxiliary=linear", "model.width=128 is not divisible by model.heads=3"),
]


@pytest.mark.parametrize(("settings", "sentence"), [*REFUSED[::4], *(slow(*each) for each in REFUSED)])
def test_what_cannot_be_served_is_one_sentence(settings, sentence, capsys, tmp_path, real_root, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALLEARN_DATA", str(real_root))
    code, _, err = run(*settings.split(), "epochs=1", capsys=capsys)
    assert code == 2
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_targets_that_would_train_a_wrong_model_are_one_sentence():
    wrong: dict[str, list[Any]] = {
        "classification": [torch.full((B,), C), numbers(B, C), None],
        "regression": [numbers(B, 2), numbers(B, 3) / 0, [1.0] * B],
        "multilabel": [numbers(B, C), torch.full((B, C), 2.0), integers(2, B)],
        "tokens": [integers(C, B), torch.full((B, T), C), numbers(B, T)],
        "segmentation": [integers(C, B, T), torch.full((B, T, T), C), numbers(B, T, T)],
        "detection": [integers(C, B, T), torch.full((B, T, 5), 1.0), [1.0] * B],
    }
    assert wrong.keys() == TASKS.keys()
    tasks: dict[str, Task] = {name: case.task for name, case in CASES.items()} | {
        "detection": Detection(tuple("abcde"))
    }
    for name, targets in wrong.items():
        for y in targets:
            with pytest.raises(UserError) as error:
                tasks[name].checked(y, B, 3 if name == "regression" else C)
            assert "\n" not in str(error.value)


# Runs


RUNS = {
    "diabetes": ["data=diabetes", "model=mlp", "model.width=8", "auxiliary=linear"],
    "digit_segments": ["data=digit_segments", "model=mlp", "model.width=8", "auxiliary=linear"],
    "digit_ink": [
        "data=digit_ink",
        "model=gelan",
        "model.width=0.125",
        "auxiliary=linear",
        "data.crop=2",
        "data.flip=true",
    ],
    "shakespeare": ["data=shakespeare", "model=gpt", "model.width=8", "model.dropout=0.1", "auxiliary=linear"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "strategy"),
    [*((data, "dgl") for data in RUNS), *(("shakespeare", strategy) for strategy in ("dfa", "loco", "backprop"))],
)
def test_two_stages_are_the_serial_run(data, strategy, tmp_path, real_root, monkeypatch):
    monkeypatch.setenv("LOCALLEARN_DATA", str(real_root))
    own = [text for text in RUNS[data] if strategy not in ("dfa", "backprop") or not text.startswith("auxiliary")]
    settings: dict[str, Any] = dict(text.split("=") for text in own)
    for key in ("model.width", "model.dropout", "data.crop"):
        settings |= (
            {key: float(settings[key]) if "." in settings[key] else int(settings[key])} if key in settings else {}
        )
    settings |= {"data.flip": True} if "data.flip" in settings else {}
    settings |= {"strategy": strategy, "blocks": 3, "epochs": 2, "max_steps": 6, "batch_size": 8, "threads": 1}
    one = locallearn.train(quiet=True, out=str(tmp_path / "one"), **settings)
    two = locallearn.train(quiet=True, out=str(tmp_path / "two"), runtime="pipeline", **settings)
    for p, q in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(p, q)
    same = [name for name in one.metrics if name.startswith(("train", "validation", "test", "block"))]
    assert {name: one.metrics[name] for name in same} == {name: two.metrics[name] for name in same}


def test_a_run_is_judged_by_its_task(capsys, elsewhere, real_root, monkeypatch):
    """The loss of next tokens on the terminal, in the manifest, in the report (less is better) and to tune."""
    monkeypatch.setenv("LOCALLEARN_DATA", str(real_root))
    small = [*RUNS["shakespeare"], "model.layers=1", "model.heads=2", "blocks=2", "max_steps=4", "data.context=16"]
    _, out, _ = run(*small, "optim.lr=0.01", capsys=capsys)
    assert "test loss at block 1" in out
    _, out, _ = run("tune", "trials=2", "space=lr", *small, "out=tuned", capsys=capsys)
    shown = [float(line.rpartition(" ")[2]) for line in out.splitlines() if line.startswith("trial")]
    best = next(line for line in out.splitlines() if line.startswith("best"))
    assert f"validation loss {min(shown):.4f}" in best
    _, out, _ = run("report", "runs", capsys=capsys)
    assert "test loss" in out
    assert "%" not in out.splitlines()[0]


# The text


def test_windows_of_a_text_are_those_of_nano_gpt(tmp_path):
    from locallearn.data.text import Text

    text = "".join(chr(97 + (7 * i + i * i) % 23) for i in range(400))
    (tmp_path / "a.txt").write_text(text)
    data = Text(file=str(tmp_path / "a.txt"), context=9, steps=5, validation=0.0).load(0, torch.device("cpu"))
    letters = sorted(set(text))
    assert data.classes == tuple(letters)
    for x, y in data.batches(3, 4):
        assert x.shape == y.shape == (4, 9)
        for row, after in zip(x, y, strict=True):
            words = "".join(letters[int(i)] for i in row)
            assert any(text[s : s + 9] == words and text[s + 9] == letters[int(after[-1])] for s in range(351))
            assert torch.equal(row[1:], after[:-1])
    last_two = list(data.batches(3, 4))[3:]
    for (x, y), (again, targets) in zip(data.batches(3, 4, start=3), last_two, strict=True):
        assert torch.equal(x, again)
        assert torch.equal(y, targets)
    asked = [int(t) for _, y in data.evaluation(data.test, 2) for t in y.flatten() if t >= 0]
    assert "".join(letters[t] for t in asked) == text[361:], "every character but the first is asked for once"


def test_the_page_says_what_serves_which_task():
    """Every objective of conf/ stands in the table of docs/tasks.md, with yes where its class says so."""
    page = (Path(__file__).resolve().parents[2] / "docs/tasks.md").read_text()
    head = [CLASSIFICATION, MIXED, MULTILABEL, REGRESSION, SEGMENTATION, TOKENS, DETECTION]
    said: dict[str, list[bool]] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(head) + 1 and cells[0].startswith("`") and "probe" not in cells[0]:
            for name in re.findall(r"`(?:objective=)?(\w+)`", cells[0]):
                said[name] = [cell.startswith("yes") for cell in cells[1:]]
    others = {"infopro", "distil"}  # as the loss that they are told to have; what an answer of the teacher can say
    unread = {
        "infonce": TOKENS,
        "reconstruction": TOKENS,
        "inpainting": TOKENS,
        "masked": TOKENS,
    }  # refused for what they read
    for name, file in choices("objective").items():
        if name in others:
            continue
        objective = instantiate(yaml.safe_load(file.read_text()), "objective", [])
        serves = [(objective.tasks is None or task in objective.tasks) and unread.get(name) != task for task in head]
        assert said[name] == serves, name


@pytest.mark.slow
def test_another_set_is_measured_in_the_units_of_the_run(tmp_path, capsys):
    """A model of diabetes is right about the same patients, however another part of them would standardise."""
    result = locallearn.train(
        quiet=True,
        strategy="backprop",
        model="mlp",
        data="diabetes",
        epochs=3,
        out=str(tmp_path),
        **{"model.width": 16, "data.fraction": 0.4},
    )
    code, out, _ = run("evaluate", str(result.run_dir), "data=diabetes", capsys=capsys)
    assert code == 0
    shown = dict(line.split() for line in out.splitlines())
    assert float(shown["rmse"]) == pytest.approx(result.metrics["test/rmse"], abs=1e-3)
    assert float(shown["loss"]) == pytest.approx(result.metrics["test/loss"], abs=1e-4)
    code, _, err = run("evaluate", str(result.run_dir), "data=digits", capsys=capsys)
    assert code == 2
    assert "the run was trained for the task regression, but data=digits asks for a class for each sample" in err


class Words(nn.Module):
    """A module of a user's that reads tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(C, 6), nn.Linear(6, 8), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.first(self.table(x))))


class Dense(nn.Module):
    """A module of a user's that answers at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(1, 6, 3, padding=1),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.Conv2d(4, C, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


@pytest.mark.parametrize("kind", ["tokens", "segmentation"])
def test_a_module_that_answers_at_every_position_is_cut_and_trained(kind):
    torch.manual_seed(0)
    net = (Words() if kind == "tokens" else Dense()).double()
    plain = copy.deepcopy(net)
    image = (T,) if kind == "tokens" else (1, SIDE, SIDE)
    x = integers(C, B, T) if kind == "tokens" else numbers(B, *image)
    y, loss = CASES[kind].y, CASES[kind].loss
    settings: dict[str, Any] = {"optim": "sgd", "optim.lr": RATE, "optim.momentum": 0.0, "optim.weight_decay": 0.0}
    settings |= {"precision": "fp64", "blocks": "max", "task": kind}
    learner = locallearn.build("backprop", net, image=image, classes=C, **settings)
    assert len(learner.blocks) > 1
    learner.step(x, y)
    loss(plain(x), y).backward()
    for mine, theirs in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs - RATE * theirs.grad, atol=1e-10, rtol=0)
    with pytest.raises(UserError, match=r"not logits \[batch, classes\]"):
        locallearn.build(
            "backprop", copy.deepcopy(plain), image=image, classes=C, vocabulary=C if kind == "tokens" else None
        )
