"""Broken data sets and hostile archives: one sentence, exit code 2, and nothing written, deleted or left half done."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.commands import SMALL, run
from helpers.marks import slow
from helpers.runs import Run, without_privilege
from locallearn.data import vision
from locallearn.data.benchmarks import CIFAR10, MNIST
from locallearn.data.cora import Cora
from locallearn.data.folder import Folder
from locallearn.data.names import SUMS as LANGUAGES
from locallearn.data.names import Names
from locallearn.data.stream import read_image
from locallearn.data.tishby import Tishby
from locallearn.errors import UserError

CPU = torch.device("cpu")
SETTINGS = [*SMALL, "strategy=dgl", "auxiliary=linear", "epochs=1"]
ARCHIVE = "cifar-10-python.tar.gz"


def one_sentence(err: str) -> str:
    (line,) = [line for line in err.splitlines() if line.strip() and "B/s]" not in line]  # progress of a download
    assert line.startswith("locallearn: ")
    assert "Traceback" not in line
    return line


def below(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- labels and samples ----------------------------------------------------------------------------------------------

SOURCE = '''
from dataclasses import dataclass
from typing import ClassVar

import torch
from locallearn.data import DataSource
from locallearn.data.source import RawSplit, Raw
from locallearn.data.store import Memory


@dataclass(frozen=True)
class Broken(DataSource):
    """A set of 40 vectors or images of two classes, with one fault."""

    name: ClassVar[str] = "broken"
    fault: str = "none"

    def read(self, device):
        samples, labels, classes = torch.randn(40, 12), torch.arange(40) % 2, ("a", "b")
        test = samples[:8].clone(), labels[:8].clone()
        if self.fault == "label too large":
            labels[7] = 2
        elif self.fault == "label -100":
            labels[7] = -100
        elif self.fault == "float labels":
            labels = labels.float()
        elif self.fault == "a label too many":
            labels = torch.arange(41) % 2
        elif self.fault == "empty class":
            labels = labels * 0
        elif self.fault == "no samples":
            samples, labels = samples[:0], labels[:0]
        elif self.fault == "one sample":
            samples, labels, classes = samples[:1], labels[:1], ("a",)
            test = samples, labels
        elif self.fault == "no test samples":
            test = test[0][:0], test[1][:0]
        elif self.fault == "not finite":
            samples[1, 3] = torch.inf - torch.inf
        elif self.fault == "infinity in the test":
            test[0][5, 0] = float("-inf")
        elif self.fault == "float64":
            samples = samples.double()
        elif self.fault == "bytes without channels":
            samples = torch.zeros(40, 6, 6, dtype=torch.uint8)
        elif self.fault == "grey test of a colour set":
            samples = torch.zeros(40, 3, 6, 6, dtype=torch.uint8)
            test = torch.zeros(8, 1, 6, 6, dtype=torch.uint8), test[1]
        elif self.fault == "a test of another size":
            test = test[0][:, :11], test[1]
        return Raw(classes, RawSplit(Memory(samples), labels), RawSplit(Memory(test[0]), test[1]))
'''
FAULTS = {
    "label too large": "the training labels hold 2; with 2 classes they must be 0-1",
    "label -100": "the training labels hold -100",
    "float labels": "the training labels are torch.float32 [40]; they must be int64 [N]",
    "a label too many": "40 samples but 41 labels",
    "empty class": "class 'b' has no training sample",
    "no samples": "the training part has no samples",
    "one sample": "has one sample, and a batch norm cannot take the variance of one value",
    "no test samples": "the test part has no samples",
    "not finite": "number 1 of the training samples of data=broken is not finite",
    "infinity in the test": "number 5 of the test samples of data=broken is not finite",
    "float64": "the training samples of data=broken are float64 [12]; they must be uint8 images, float32, or int64",
    "bytes without channels": "are uint8 [6, 6]; images must be uint8 [channels, height, width]",
    "grey test of a colour set": "test samples of data=broken are uint8 [1, 6, 6]; they must be [3, 6, 6]",
    "a test of another size": "test samples of data=broken are float32 [11]; they must be [12]",
}


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[list[str]]:
    """The arguments that choose a set of the user's own."""
    conf = tmp_path / "conf"
    (conf / "data").mkdir(parents=True)
    (conf / "my_broken.py").write_text(SOURCE)
    text = "# Broken.\n_target_: my_broken.Broken\nvalidation: 0.0\nfault: none\n"
    (conf / "data/broken.yaml").write_text(text)
    yield ["--config-dir", str(conf), "data=broken"]
    sys.modules.pop("my_broken", None)
    sys.path[:] = [path for path in sys.path if path != str(conf.resolve())]


@pytest.mark.fault("F16", "F17", "F18", "F19")
@pytest.mark.parametrize("fault", [pytest.param(name, marks=[pytest.mark.slow] * ("label" in name)) for name in FAULTS])
def test_a_faulty_set_is_refused_before_training(fault, broken, elsewhere, tmp_path, capsys):
    code, _, err = run(*broken, *SETTINGS, f"data.fault={fault}", capsys=capsys)
    assert FAULTS[fault] in one_sentence(err)
    assert code == 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("F18")
def test_the_same_set_without_a_fault_trains(broken, elsewhere, capsys):
    assert run(*broken, *SETTINGS, capsys=capsys)[0] == 0


@pytest.mark.fault("F18")
@pytest.mark.parametrize(("batch", "steps"), [(4096, 1), (49, 2), slow(2, 49)])
def test_batches_that_do_not_fit_the_set(batch, steps, elsewhere, tmp_path, capsys):
    """99 training samples: a batch larger than the set is all of it, and a rest of one is left out of training."""
    data = ["data=synthetic", "data.images=99", "data.size=8", "data.validation=0"]
    code, _, err = run(*SETTINGS, *data, f"batch_size={batch}", capsys=capsys)
    assert code == 0
    assert err == ("" if batch < 99 else f"warning: batch_size={batch} is more than the 99 training samples: every "
                   "epoch is one step on 99\n")  # fmt: skip
    (file,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(file.read_text())["step"] == steps


@pytest.mark.fault("F18")
def test_evaluation_counts_a_last_batch_of_one(elsewhere, tmp_path, capsys):
    data = ["data=synthetic", "data.images=1285", "data.size=4", "data.validation=0", "batch_size=500"]
    assert run(*SETTINGS, *data, capsys=capsys)[0] == 0
    (file,) = tmp_path.glob("runs/*/summary.json")
    correct = json.loads(file.read_text())["test/accuracy"] * 257  # batches of 256 and of 1
    assert correct == pytest.approx(round(correct), abs=1e-6)
    assert 0 < correct < 257


@pytest.mark.fault("F18")
@pytest.mark.parametrize(
    "option",
    ["batch_size=1", slow("micro_batches=128")],
)
def test_one_sample_at_a_time_has_no_variance(option, elsewhere, tmp_path, capsys):
    code, _, err = run(*SETTINGS, "batch_size=128", option, capsys=capsys)
    assert "cannot take the variance of one value" in one_sentence(err)
    assert code == 2
    assert not list(tmp_path.iterdir())


# --- images in files -------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draws = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dog"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draws.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")
    return tmp_path / "images"


@pytest.mark.slow
@pytest.mark.fault("F20", "F16")
@pytest.mark.parametrize("workers", [0, slow(2)])
def test_an_image_found_broken_in_the_middle_of_training(workers, images, elsewhere, tmp_path, capsys):
    """The run ends with the name of the file; when the file is mended it goes on."""
    file = images / "train/dog/07.png"
    sound = file.read_bytes()
    file.write_bytes(sound[:100])
    data = ["data=folder", f"data.root={images}", "data.size=16", "data.memory_share=0", "data.normalise=symmetric"]
    arguments = [*SETTINGS, *data, f"data.workers={workers}", "batch_size=4", "checkpoint.every=1it"]
    code, _, err = run(*arguments, capsys=capsys)
    assert code == 2
    assert f"cannot read the image {file}" in one_sentence(err)
    (folder,) = tmp_path.glob("runs/*")
    assert json.loads((folder / "status.json").read_text())["state"] == "failed"
    assert not (folder / "log.txt").exists()
    assert file.read_bytes() == sound[:100]
    file.write_bytes(sound)
    assert run("resume", str(folder), capsys=capsys)[0] == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


@pytest.mark.fault("F19", "F20")
@pytest.mark.parametrize("kind", ["empty", "html", "pipe", "folder", "bomb", "dangling", "pickle"])
def test_what_is_no_image_is_named(kind, tmp_path):
    file = tmp_path / "x.png"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "bomb":
        Image.new("1", (20_000, 20_000)).save(file)  # 50 kB that want 1.2 GB in colour
    elif kind == "dangling":
        file.symlink_to(tmp_path / "gone")
    else:
        file.write_bytes({"empty": b"", "html": b"<html>404</html>", "pickle": b"\x80\x04cos\nsystem\n."}[kind])
    started = time.process_time()
    with pytest.raises(UserError, match=r"cannot read the image .*x\.png \(.+\); replace it") as caught:
        read_image(file, 8)
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5


# --- the folder of the data ------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.error
    import urllib.request

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError(OSError("Name or service not known"))

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


SETS = {"folder": Folder, "cifar10": CIFAR10, "mnist": MNIST, "names": Names, "tishby": Tishby, "cora": Cora}


@pytest.mark.fault("F20", "F11")
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("kind", ["file", "below a file", "loop", "too long", "nobody", "missing"])
def test_a_root_that_is_none(kind, name, no_network, elsewhere, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    roots = {"file": "file", "below a file": "file/x", "loop": "loop", "too long": "x" * 300, "nobody": "~no-such-user"}
    root = {**roots, "missing": "nowhere"}[kind]
    with pytest.raises(UserError) as caught:
        SETS[name](root=root).load(0, CPU)
    said = str(caught.value)
    assert root in said
    assert "data.root" in said
    assert "\n" not in said
    assert (tmp_path / "file").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"file", "loop"}


@pytest.mark.slow
@pytest.mark.fault("F20", "F11")
@pytest.mark.parametrize("name", ["mnist", slow("folder")])
def test_a_root_that_may_not_be_read(name, tmp_path):
    """In a process that has no privilege, also where root runs the tests."""
    root = tmp_path / "closed"
    (root / "MNIST" / "raw").mkdir(parents=True)
    root.chmod(0)
    code, error = Run(f"data={name}", f"data.root={root}", f"out={tmp_path / 'runs'}", before=without_privilege).end()
    root.chmod(0o755)
    assert code == 2
    assert "cannot be" in one_sentence(error)
    assert "Permission denied" in error
    assert str(root) in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.fault("F20", "F11")
@pytest.mark.parametrize("name", ["folder", "mnist"])
def test_a_root_that_is_a_file_on_the_command_line(name, elsewhere, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    code, _, err = run(*SETTINGS, f"data={name}", "data.root=file", capsys=capsys)
    assert f"data={name}: file cannot be read (it is a file, not a folder)" in one_sentence(err)
    assert code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.fault("F20", "F11")
@pytest.mark.parametrize("name", ["folder", "mnist", "names"])
def test_a_disk_that_fails_to_read(name, tmp_path, monkeypatch):
    """EIO, for which permissions do not matter."""
    for path in ("train/cat", "train/dog", "MNIST/raw", "names"):
        (tmp_path / path).mkdir(parents=True)
    for file in (*MNIST().files(), *(f"names/{language}.txt" for language in LANGUAGES)):
        (tmp_path / file).write_text("x")

    def fail(path: Path, *_: object, **__: object) -> None:
        raise OSError(5, "Input/output error", str(path))

    monkeypatch.setattr(*((os, "scandir") if name == "folder" else (Path, "open")), fail)
    with pytest.raises(UserError, match=r"^data=.*Input/output error"):
        SETS[name](root=str(tmp_path)).load(0, CPU)


# --- archives and servers --------------------------------------------------------------------------------------------


def tar(*members: tuple[str, bytes, str]) -> bytes:
    """A .tar.gz of (name, tarfile type, content or where a link leads)."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, kind, text in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            if kind == tarfile.REGTYPE:
                member.size = len(text)
                archive.addfile(member, io.BytesIO(text.encode()))
            else:
                member.linkname = text
                archive.addfile(member)
    return buffer.getvalue()


def hostile(kind: str, outside: Path) -> bytes:
    """An archive that writes to `outside`, or tries another trick."""
    there = str(outside / "canary")
    return {
        "climbs": lambda: tar(("../" * 12 + there.lstrip("/"), tarfile.REGTYPE, "x")),
        "absolute": lambda: tar((there, tarfile.REGTYPE, "x")),
        "link": lambda: tar(("way", tarfile.SYMTYPE, str(outside)), ("way/canary", tarfile.REGTYPE, "x")),
        "hard link": lambda: tar(("way", tarfile.LNKTYPE, str(outside / "mine")), ("way", tarfile.REGTYPE, "x")),
        "device": lambda: tar(("cifar-10-batches-py/data_batch_1", tarfile.CHRTYPE, "")),
        "pipe": lambda: tar(("cifar-10-batches-py/data_batch_1", tarfile.FIFOTYPE, "")),
        "bomb": lambda: gzip.compress(bytes(100_000_000)),
        "truncated": lambda: tar(("cifar-10-batches-py/data_batch_1", tarfile.REGTYPE, "x" * 100_000))[:200],
        "html": lambda: b"<!DOCTYPE html><title>Not found</title>",
    }[kind]()


KINDS = ["climbs", "absolute", "link", "hard link", "device", "pipe", "bomb", "truncated", "html"]


@pytest.fixture(params=KINDS)
def planted(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, bytes]:
    """A data root with a hostile archive under an official name, and its content; beside it a folder of the user's."""
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (outside / "mine").write_text("mine")
    content = hostile(request.param, outside)
    (root / ARCHIVE).write_bytes(content)
    return root, content


@pytest.mark.fault("F20")
def test_an_archive_with_another_sum_is_never_opened(planted, tmp_path, no_network):
    """The user's own file is named with both sums, and stays."""
    root, content = planted
    with pytest.raises(UserError, match="is damaged or another file") as caught:
        CIFAR10(root=str(root)).load(0, CPU)
    assert hashlib.md5(content).hexdigest() in str(caught.value)
    assert "\n" not in str(caught.value)
    assert below(tmp_path) == {"outside/mine": b"mine", f"root/{ARCHIVE}": content}


@pytest.mark.fault("F20")
def test_an_archive_with_the_right_sum_writes_nothing_outside(planted, tmp_path, no_network, monkeypatch):
    """As if the publisher's own archive were hostile; what it holds is checked again, file by file."""
    from torchvision import datasets

    root, content = planted
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    with pytest.raises(UserError) as caught:
        CIFAR10(root=str(root)).load(0, CPU)
    assert "\n" not in str(caught.value)
    assert below(tmp_path) == {"outside/mine": b"mine", f"root/{ARCHIVE}": content}


@pytest.mark.fault("F20")
def test_a_truncated_archive_of_one_file_is_named(tmp_path, no_network):
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    file = raw / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(b"x" * 1000)[:20])
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz is damaged or another file \(20 bytes"):
        MNIST(root=str(tmp_path)).load(0, CPU)
    assert [path.name for path in raw.iterdir()] == [file.name]


class Server(ThreadingHTTPServer):
    """Answers by `mode` to whoever asks for a data set."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.mode = "html"
        self.asked = 0

    def handle_error(self, *_: object) -> None:
        """A client that has gone away."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.asked += 1
        mode = self.server.mode
        if mode == "hang":
            time.sleep(3)
            return
        self.send_response({"500": 500, "404": 404, "around": 302, "file": 302}.get(mode, 200))
        if mode in ("around", "file"):
            self.send_header("Location", self.path if mode == "around" else "file:///etc/passwd")
        self.send_header("Content-Length", {"half": "1000000"}.get(mode, "20"))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(b"<html>log in</html>\n")

    do_HEAD = do_GET


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    from torchvision import datasets

    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{server.server_port}/{ARCHIVE}")
    monkeypatch.setattr(vision, "TIMEOUT_SECONDS", 0.5)
    yield server
    server.shutdown()
    server.server_close()


REFUSED = ("500", "404", "hang", "around", "file")


@pytest.mark.fault("F20")
@pytest.mark.parametrize("mode", ["html", "half", *map(slow, REFUSED), "down"])
def test_a_server_with_something_else(mode, server, tmp_path, elsewhere, capsys):
    server.mode = mode
    if mode == "down":
        server.shutdown()
        server.server_close()
    started = time.monotonic()
    code, out, err = run(*SETTINGS, "data=cifar10", "data.root=root", capsys=capsys)
    assert "the download failed" in one_sentence(err)
    assert ARCHIVE in err
    assert (code, out) == (2, "")
    assert time.monotonic() - started < 60
    assert server.asked or mode == "down"
    assert not (tmp_path / "root").exists()


@pytest.mark.fault("F20", "F12")
def test_what_a_killed_download_left_is_not_taken_for_the_set(tmp_path, no_network):
    """A download killed before its files were moved, and one killed between two moves."""
    left = tmp_path / ".download-x/MNIST/raw"
    left.mkdir(parents=True)
    for path in MNIST().files():
        (left / Path(path).name).write_bytes(b"half")
    with pytest.raises(UserError, match=r"has no MNIST/raw/train-images-idx3-ubyte \(and 3 more\)"):
        MNIST(root=str(tmp_path)).load(0, CPU)
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").write_bytes(b"half")
    with pytest.raises(UserError, match="train-labels-idx1-ubyte is damaged or another file"):
        MNIST(root=str(tmp_path)).load(0, CPU)


@pytest.mark.fault("F20", "F12")
def test_an_interrupted_download_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(_: object, root: str) -> None:
        (Path(root) / "MNIST").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(MNIST, "fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MNIST(root=str(tmp_path)).load(0, CPU)
    assert not list(tmp_path.iterdir())


@pytest.mark.fault("F20")
def test_a_folder_without_images_of_a_class_or_with_one_each(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    with pytest.raises(UserError, match="the test part has no samples"):
        Folder(root=str(tmp_path), size=8).load(0, CPU)
    (tmp_path / "dog/0.png").unlink()
    with pytest.raises(UserError, match="dog holds no image"):
        Folder(root=str(tmp_path), size=8).load(0, CPU)
