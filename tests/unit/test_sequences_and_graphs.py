"""tishby, names and cora against known facts, and training on a graph against plain autograd on the whole of it."""

from __future__ import annotations

import math
import pickle
import shutil
import string
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import locallearn
from locallearn.auxiliary import Linear
from locallearn.data.cora import Cora
from locallearn.data.dataset import GraphData
from locallearn.data.doctor import diagnose
from locallearn.data.names import LETTERS, Names, ascii_letters, encode
from locallearn.data.source import DataSource
from locallearn.data.tishby import Tishby
from locallearn.engine import SGD, Setup, assemble
from locallearn.errors import UserError
from locallearn.models.graph import gcn
from locallearn.objectives import CrossEntropy
from locallearn.strategies.backprop import Backprop
from locallearn.strategies.greedy import DGL
from locallearn.training.evaluate import evaluate
from locallearn.training.later import evaluate_run
from locallearn.training.run import resume

CPU = torch.device("cpu")


# --- tishby


def test_tishby_is_every_pattern_once(real_root: Path) -> None:
    raw = Tishby(root=str(real_root)).read(CPU)
    samples = torch.cat([part.images.samples for part in (raw.train, raw.test)])  # type: ignore[attr-defined]
    labels = torch.cat([raw.train.labels, raw.test.labels])
    assert samples.dtype == torch.float32
    assert set(samples.unique().tolist()) == {0.0, 1.0}
    number = (samples * 2.0 ** torch.arange(11, -1, -1)).sum(1)
    assert number.sort().values.tolist() == list(range(4096))  # H(X) = 12 bits
    assert torch.bincount(labels).tolist() == [1978, 2118]
    share = 2118 / 4096
    entropy = -(share * math.log2(share) + (1 - share) * math.log2(1 - share))
    assert abs(entropy - 0.999157) < 1e-6
    by_number = labels[number.argsort()]
    assert by_number[:20].sum() == 0  # as the file begins
    assert (len(raw.train.labels), len(raw.test.labels)) == (3277, 819)


def test_tishby_labels_are_those_of_the_file(real_root: Path) -> None:
    from scipy.io import loadmat

    found = loadmat(real_root / "IDNNs/var_u.mat")
    table = {tuple(row): int(label) for row, label in zip(found["F"].tolist(), found["y"][0], strict=True)}
    data = Tishby(root=str(real_root), test=0.5).load(0, CPU)
    for split in (data.train, data.validation, data.test):
        for samples, labels in data.evaluation(split, 512):
            assert [table[tuple(map(int, row))] for row in samples.tolist()] == labels.tolist()
    assert len(data.test) == 2048
    assert data.pixels is None
    with pytest.raises(UserError, match=r"data\.test=1\.0: must be a number above 0 and below 1"):
        Tishby(test=1.0)


# --- names


def test_names_are_those_of_the_tutorial(real_root: Path) -> None:
    raw = Names(root=str(real_root)).read(CPU)
    labels = torch.cat([raw.train.labels, raw.test.labels])
    counts = dict(zip(raw.classes, torch.bincount(labels).tolist(), strict=True))
    assert sum(counts.values()) == 20074
    assert (counts["Russian"], counts["English"], counts["Vietnamese"], counts["Chinese"]) == (9408, 3668, 73, 268)
    assert len(counts) == 18
    assert len(raw.test.labels) == 2007
    assert torch.bincount(raw.test.labels).tolist() == pytest.approx([n / 10 for n in counts.values()], abs=1)
    assert raw.train.images.image == raw.test.images.image == (19, 57)


@pytest.mark.slow
def test_names_can_be_read_back_from_the_last_step_on_the_right(real_root: Path) -> None:
    """Every sample, spelt out, is a line of its language's file."""
    letters = string.ascii_letters + " .,;'"
    data = Names(root=str(real_root), validation=0.0).load(0, CPU)
    seen = []
    for split in (data.train, data.test):
        for samples, labels in data.evaluation(split, 4096):
            used = samples.sum(2)  # [B, T]: 1 where there is a letter
            assert used.max() == 1
            assert (used[:, 1:] >= used[:, :-1]).all()  # padded on the left: once letters begin they go on
            assert (used[:, -1] == 1).all()
            for sample, used_steps, label in zip(samples, used.bool(), labels.tolist(), strict=True):
                seen.append((label, "".join(letters[i] for i in sample[used_steps].argmax(1).tolist())))
    assert (data.classes.index("Czech"), "Abl") in seen  # the first line of Czech.txt
    assert (data.classes.index("Polish"), "Slusarski") in seen  # is written with accents
    for label, language in enumerate(data.classes):
        lines = (real_root / f"names/{language}.txt").read_text(encoding="utf-8").split("\n")
        found = {name for at, name in seen if at == label}
        plain = {line.strip() for line in lines if line.strip() and all(c in letters for c in line.strip())}
        assert plain <= found
    assert max(len(name) for _, name in seen) == 19


def test_ascii_folding_and_padding() -> None:
    assert ascii_letters("Ślusàrski") == "Slusarski"
    assert ascii_letters("O'Néàl-1:") == "O'Neal"
    assert encode(["ab", "Z"]).argmax(2).tolist() == [[0, 1], [0, 51]]
    assert encode(["ab", "Z"]).sum(2).tolist() == [[1, 1], [0, 1]]


@pytest.mark.slow
def test_names_of_the_thesis(real_root: Path) -> None:
    """60 names of at most 12 letters a language: 1,080 x 12 x 57, each in its file, none twice, H(Y) = log2 18 bits."""
    data = Names(root=str(real_root), per_class=60, longest=12).load(0, CPU)
    parts = [list(data.evaluation(part, 4096)) for part in (data.train, data.validation, data.test)]
    x, y = (torch.cat([batch[i] for part in parts for batch in part]) for i in (0, 1))
    assert x.shape == (1080, 12, 57)
    assert torch.bincount(y).tolist() == [60] * 18
    spelt = {
        (int(c), "".join(LETTERS[i] for i in s[s.sum(1) > 0].argmax(1).tolist())) for s, c in zip(x, y, strict=True)
    }
    assert len(spelt) == 1080
    for label, name in spelt:
        lines = (real_root / f"names/{data.classes[label]}.txt").read_text(encoding="utf-8").split("\n")
        assert name in {ascii_letters(line.strip()) for line in lines}
    other = Names(root=str(real_root), per_class=60, longest=12).load(1, CPU)
    assert torch.equal(other.test.labels, data.test.labels)
    cut = Names(root=str(real_root), longest=5, longest_by="cut").read(CPU)
    assert len(cut.train.labels) + len(cut.test.labels) == 20074
    assert cut.train.images.image == (5, 57)
    with pytest.raises(UserError, match=r"data\.per_class=74: Vietnamese has \d+ different names"):
        Names(root=str(real_root), per_class=74).read(CPU)
    with pytest.raises(UserError, match=r"data\.longest=1: Arabic has 0 names so short"):
        Names(root=str(real_root), longest=1).read(CPU)


# --- cora


@pytest.fixture(scope="module")
def cora(real_root: Path) -> GraphData:
    return Cora(root=str(real_root)).load(0, CPU)


def test_cora_is_planetoids(cora: GraphData) -> None:
    assert (len(cora.train), len(cora.validation), len(cora.test)) == (140, 500, 1000)
    assert cora.image == (1433,)
    assert cora.train.index.tolist() == list(range(140))
    assert cora.validation.index.tolist() == list(range(140, 640))
    assert cora.test.index.tolist() == list(range(1708, 2708))
    assert torch.bincount(cora.train.labels).tolist() == [20] * 7
    assert torch.bincount(cora.test.labels).tolist() == [130, 91, 144, 319, 149, 103, 64]
    nodes, _ = next(cora.batches(0, 32))
    assert nodes.shape == (2708, 1433)
    torch.testing.assert_close(nodes.sum(1), torch.ones(2708))
    assert torch.equal(nodes > 0, nodes == nodes.max(1, keepdim=True).values)  # binary words, divided by their number
    assert cora.graph is not None
    edges = set(map(tuple, cora.graph.T.tolist()))
    assert len(edges) == cora.graph.shape[1] == 10556
    assert all((b, a) in edges and a != b for a, b in edges)


def test_cora_is_what_torch_geometric_reads(cora: GraphData, real_root: Path, tmp_path: Path) -> None:
    from torch_geometric.datasets import Planetoid
    from torch_geometric.transforms import NormalizeFeatures

    shutil.copytree(real_root / "Cora", tmp_path / "Cora")
    reference = Planetoid(str(tmp_path), "Cora", transform=NormalizeFeatures())[0]
    nodes, labels = next(cora.evaluation(cora.test, 1))
    torch.testing.assert_close(nodes, reference.x)
    assert torch.equal(cora.graph, reference.edge_index)
    assert torch.equal(labels >= 0, reference.test_mask)
    assert torch.equal(labels[labels >= 0], reference.y[reference.test_mask])
    assert [path.name for path in (real_root / "Cora").iterdir()] == ["raw"]  # nothing is written beside it


def test_an_epoch_is_one_step_on_the_training_labels(cora: GraphData) -> None:
    assert (cora.steps(32), cora.batch(32)) == (1, 2708)
    ((_, labels),) = cora.batches(0, 32)
    assert (labels >= 0).nonzero().flatten().tolist() == list(range(140))
    assert set(labels[140:].tolist()) == {-100}
    assert list(cora.batches(0, 32, start=1)) == []


def test_labelled_nodes_are_drawn_by_the_seed_outside_validation_and_test(real_root: Path, cora: GraphData) -> None:
    few, again = (Cora(root=str(real_root), labelled=70).load(1, CPU) for _ in range(2))
    other = Cora(root=str(real_root), labelled=70).load(2, CPU)
    assert few.train.index.tolist() == again.train.index.tolist() != other.train.index.tolist()
    assert torch.equal(few.test.index, cora.test.index)
    most = Cora(root=str(real_root), labelled=1208).load(0, CPU)
    held_out = {*cora.validation.index.tolist(), *cora.test.index.tolist()}
    assert set(most.train.index.tolist()) == set(range(2708)) - held_out
    half = Cora(root=str(real_root), fraction=0.5, label_noise=1.0).load(0, CPU)
    assert len(half.train) == 70
    assert not torch.equal(half.train.labels, cora.train.labels[half.train.index])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"validation": 0.1}, r"data\.validation=0\.1: must be 0, as the 500 validation nodes"),
        ({"labelled": 6}, r"data\.labelled=6: must be a whole number from 7"),
        ({"labelled": 1209}, r"data\.labelled=1209: must be a whole number from 7"),
    ],
)
def test_cora_options_out_of_range(options: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Cora(**options)  # type: ignore[arg-type]


# --- files


SETS: list[tuple[type[DataSource], str]] = [
    (Tishby, "IDNNs/var_u.mat"),
    (Names, "names/Irish.txt"),
    (Cora, "Cora/raw/ind.cora.graph"),
]


@pytest.mark.parametrize(("kind", "file"), SETS, ids=lambda value: getattr(value, "__name__", ""))
def test_missing_and_damaged_files(kind: type[DataSource], file: str, real_root: Path, tmp_path: Path) -> None:
    source = kind(root=str(tmp_path))
    top = Path(file).parts[0]
    with pytest.raises(
        UserError, match=rf"data={kind.name}: {tmp_path} has no {top}/.*get .*data\.root.*LOCALLEARN_DATA"
    ):
        source.load(0, CPU)
    shutil.copytree(real_root / top, tmp_path / top)
    assert len(source.load(0, CPU).test) > 0
    assert "right checksum" in source.verify()
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-1])
    with pytest.raises(UserError, match=f"{file} is damaged or another file .*expected sha256") as caught:
        source.load(0, CPU)
    assert "\n" not in str(caught.value)


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.marker,))


def test_a_strange_pickle_is_never_opened(real_root: Path, tmp_path: Path) -> None:
    shutil.copytree(real_root / "Cora", tmp_path / "Cora")
    (tmp_path / "Cora/raw/ind.cora.x").write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    with pytest.raises(UserError, match=r"ind\.cora\.x is damaged"):
        Cora(root=str(tmp_path)).load(0, CPU)
    assert not (tmp_path / "opened").exists()


def test_cora_without_torch_geometric(real_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.io", None)
    with pytest.raises(UserError, match=r"data=cora needs torch_geometric: pip install 'locallearn\[graph\]'"):
        Cora(root=str(real_root)).load(0, CPU)


@pytest.mark.parametrize("kind", [kind for kind, _ in SETS])
def test_no_pixels_no_augmentation(kind: type[DataSource], real_root: Path) -> None:
    with pytest.raises(UserError, match="has no pixels"):
        kind(root=str(real_root), crop=2).load(0, CPU)


@pytest.mark.slow
def test_doctor(real_root: Path) -> None:
    report = diagnose(Cora(root=str(real_root)))
    for part in (
        "140 training, 500 validation, 1000 test",
        "10556 directed edges",
        "every file has the right checksum",
    ):
        assert part in report
    rows = [row.split() for row in report.splitlines()[-7:]]
    assert [sum(int(row[i]) for row in rows) for i in (1, 2, 3)] == [140, 500, 1000]
    assert (rows[0][0], rows[-1][0], rows[-1][1], rows[-1][3]) == ("Theory", "Rule_Learning", "20", "64")
    assert "19 x 57, float32" in diagnose(Names(root=str(real_root)))


# --- training on a graph


def learner_on(cora: GraphData, strategy: object, seed: int = 0, **options: object):
    torch.manual_seed(seed)
    model = gcn(cora.image, 7, cora.graph, **options)  # type: ignore[arg-type]
    optim = SGD(lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant")
    return assemble(model, strategy, optim, model.cut(2), Setup(precision="fp64"))  # type: ignore[arg-type]


def test_backprop_over_two_blocks_is_autograd_over_the_training_nodes(cora: GraphData) -> None:
    learner = learner_on(cora, Backprop(), dropout=0.0)
    torch.manual_seed(0)
    whole = gcn(cora.image, 7, cora.graph, dropout=0.0).double()
    known = torch.arange(140)
    for _ in range(3):
        x, y = next(cora.batches(0, 32))
        learner.learn(x, y)
        loss = F.cross_entropy(whole(x.double())[known], y[known])
        grads = torch.autograd.grad(loss, list(whole.parameters()))
        with torch.no_grad():
            for p, grad in zip(whole.parameters(), grads, strict=True):
                p -= 0.5 * grad
    for p, q in zip(learner.model.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)


def test_evaluation_counts_the_nodes_of_its_split_only(cora: GraphData) -> None:
    learner = learner_on(cora, DGL(objective=CrossEntropy(), auxiliary=Linear()))
    learner.learn(*next(cora.batches(0, 32)))
    found = evaluate(learner, cora.evaluation(cora.test, 256))
    with torch.no_grad():
        logits = learner.model.eval()(next(cora.batches(0, 1))[0].double())[1708:]
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == cora.test.labels).double().mean()))
    assert found["loss"] == pytest.approx(float(F.cross_entropy(logits.float(), cora.test.labels)), rel=1e-5)


def options(root: Path, out: Path, **more: object) -> dict[str, object]:
    given = {"model": "gcn", "data": {"root": str(root)}, "epochs": 100, "evaluate_every": 100, "optim": {"lr": 0.03}}
    given |= {"auxiliary": "linear"} if more.get("strategy", "dgl") == "dgl" else {}
    return {**given, "out": str(out), "threads": 1, "quiet": True, **more}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["backprop", "dgl"])
def test_cora_is_learnt_loaded_and_evaluated(strategy: str, cora: GraphData, real_root: Path, tmp_path: Path) -> None:
    result = train_cora(real_root, tmp_path, strategy=strategy)
    assert result.metrics["test/accuracy"] > 0.7
    assert not [key for key in result.model.state_dict() if "edge" in key]
    model = locallearn.load(result.run_dir)
    with torch.no_grad():
        found = model(next(cora.batches(0, 1))[0])[1708:].argmax(1)
    assert float((found == cora.test.labels).double().mean()) == pytest.approx(result.metrics["test/accuracy"])
    assert evaluate_run(result.run_dir, [])["accuracy"] == pytest.approx(result.metrics["test/accuracy"])


def train_cora(root: Path, out: Path, **more: object):
    given = options(root, out, **more)
    data = given.pop("data")
    return locallearn.train(**given, **{"data": "cora", "data.root": data["root"]})  # type: ignore


@pytest.mark.slow
def test_a_resumed_graph_run_ends_in_the_same_bits(cora: GraphData, real_root: Path, tmp_path: Path) -> None:
    whole = train_cora(real_root, tmp_path / "a", strategy="dgl", epochs=6, evaluate_every=2)
    part = train_cora(real_root, tmp_path / "b", strategy="dgl", epochs=6, evaluate_every=2, max_steps=3)
    config = part.run_dir / "config.yaml"
    config.write_text(config.read_text().replace("max_steps: 3", "max_steps: null"))
    (part.run_dir / "status.json").write_text('{"state": "interrupted"}')
    resumed = resume(part.run_dir, [], quiet=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name


@pytest.mark.slow
def test_a_graph_is_not_divided(cora: GraphData, real_root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="micro_batches=2 but a graph is not divided; choose micro_batches=1"):
        train_cora(real_root, tmp_path, micro_batches=2)


def test_gcn_without_a_graph_and_build_with_one(cora: GraphData) -> None:
    with pytest.raises(UserError, match="the data have none; use data=cora"):
        locallearn.train(model="gcn", data="digits", quiet=True)
    learner = locallearn.build("dgl", "gcn", image=(1433,), classes=7, graph=cora.graph, auxiliary="linear")
    assert learner.step(*next(cora.batches(0, 1)))["loss"] > 0
