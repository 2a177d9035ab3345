"""Every probe of `conf/probe`: it looks and never changes, its rows and pictures are found, and its absence is free."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
import torch
import yaml
from safetensors.torch import load_file

import locallearn
from helpers.runs import STAGE
from locallearn.config import targets
from locallearn.config.compose import choices
from locallearn.config.targets import RENAMED
from locallearn.data import Split
from locallearn.errors import UserError
from locallearn.probes.base import numbers
from locallearn.probes.depth import sample

pytestmark = pytest.mark.xdist_group("probes")  # one worker makes the runs that the tests share
SETTINGS = {"model": "lenet", "epochs": 2, "max_steps": 12, "batch_size": 64, "threads": 1, "quiet": True}
ELSEWHERE = {"detections", "bottleneck", "inpainting", "levels", "noisy_weights", "nuisance"}
"""Probes that look at what only some runs have; tests of their own make these."""
NAMES = sorted(set(choices("probe")) - ELSEWHERE - {"none"})
CHEAP = {
    "probe.effective_information.samples": 24,
    "probe.linear.samples": 200,
    "probe.reconstruction.samples": 200,
    "probe.similarity.samples": 200,
    "probe.usable_information.samples": 200,
    "probe.usable_information.steps": 20,
    "probe.weight_information.samples": 64,
    "probe.weight_information.draws": 1,
}
"""What is measured is still real; the tests of each probe ask whether it is right."""


def state(run_dir):
    newest = max((run_dir / "checkpoints").iterdir())
    return load_file(newest / STAGE)


def rows(run_dir, name):
    return [json.loads(line) for line in (run_dir / "probes" / name / "rows.jsonl").read_text().splitlines()]


def run(command, *arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "locallearn", command, *map(str, arguments)],
        capture_output=True, text=True, cwd=cwd, timeout=280,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return locallearn.train(strategy="dni", out=str(tmp_path_factory.mktemp("plain")), **SETTINGS)


@pytest.fixture(scope="module")
def probed(tmp_path_factory):
    """One run with every probe there is."""
    return locallearn.train(
        strategy="dni", probe=NAMES, out=str(tmp_path_factory.mktemp("probed")), **CHEAP, **SETTINGS
    )


@pytest.mark.slow
def test_a_run_with_every_probe_ends_with_the_same_bits(plain, probed):
    """Weights, optimizer states, synthesizers, batch statistics; and every number that both runs record."""
    before, after = state(plain.run_dir), state(probed.run_dir)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    for one, other in zip(plain.history, probed.history, strict=True):
        same = {k for k in one if "second" not in k and "memory" not in k}
        assert {k: one[k] for k in same} == {k: other[k] for k in same}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_rows_and_pictures(name, probed):
    found = rows(probed.run_dir, name)
    assert {row["epoch"] for row in found} == {0, 1}  # max_steps ends the run in the first epoch
    assert all(isinstance(row["step"], int) for row in found)
    folder = probed.run_dir / "probes" / name
    pictures = sorted(folder.glob("*.png"))
    assert pictures
    for picture in pictures:
        assert picture.read_bytes().startswith(b"\x89PNG")
        assert "<svg" in picture.with_suffix(".svg").read_text()[:1000]
    assert probed.history[-1][f"probe/{name}/seconds"] > 0
    last = numbers(row for row in found if row["epoch"] == 1)
    assert last
    assert last.items() <= probed.history[-1].items()


@pytest.mark.slow
def test_no_two_probes_record_a_number_under_one_name(probed):
    """They share the record of an epoch."""
    owner = {}
    for name in NAMES:
        for key in numbers(rows(probed.run_dir, name)):
            assert owner.setdefault(key, name) == name, f"{key} is of {owner[key]} and of {name}"


@pytest.mark.parametrize("name", NAMES)
def test_yaml_names_its_package(name):
    first, summary, *_ = choices("probe")[name].read_text().splitlines()
    assert first == f"# @package probe.{name}"
    assert summary.startswith("# ")
    content = yaml.safe_load(choices("probe")[name].read_text())
    assert content["_target_"].startswith("locallearn.probes.")
    assert "every" in content


@pytest.mark.slow
def test_afterwards_on_the_checkpoints(plain):
    """The same numbers as beside training, and nothing of the run is replaced."""
    done = run("probe", plain.run_dir, "probe=alignment", "probe.alignment.samples=64")
    assert done.returncode == 0, done.stderr
    first = rows(plain.run_dir, "alignment")
    assert {row["epoch"] for row in first} == {0, 1}
    assert str(plain.run_dir / "probes" / "alignment" / "rows.jsonl") in done.stdout
    again = run("probe", plain.run_dir, "probe=alignment", "probe.alignment.samples=64")
    assert again.returncode == 0, again.stderr
    assert rows(plain.run_dir, "alignment-2") == first


@pytest.mark.slow
def test_afterwards_equals_beside(tmp_path):
    """What the command finds in the checkpoints is what the probe saw while the run went on."""
    beside = locallearn.train(strategy="dni", probe="alignment", out=str(tmp_path), **SETTINGS)
    done = run("probe", beside.run_dir, "probe=alignment")
    assert done.returncode == 0, done.stderr
    assert rows(beside.run_dir, "alignment-2") == rows(beside.run_dir, "alignment")


@pytest.mark.slow
def test_a_run_made_before_probes_were_renamed_still_loads(probed, tmp_path, monkeypatch):
    folder = shutil.copytree(probed.run_dir, tmp_path / "old")
    text = (folder / "config.yaml").read_text()
    for old, new in RENAMED.items():
        assert new in text
        text = text.replace(new, old)
    (folder / "config.yaml").write_text(text)
    for name, weight in locallearn.load(folder).state_dict().items():
        assert torch.equal(weight, probed.model.state_dict()[name])
    monkeypatch.setattr(targets, "RENAMED", {})
    with pytest.raises(UserError, match="has no"):
        locallearn.load(folder)


@pytest.mark.slow
def test_a_resumed_run_forgets_and_repeats_its_rows(tmp_path):
    whole = locallearn.train(strategy="dgl", probe="alignment", out=str(tmp_path), **(SETTINGS | {"max_steps": 40}))
    folder = whole.run_dir
    before = rows(folder, "alignment")
    newest = max((folder / "checkpoints").iterdir())
    for file in newest.iterdir():
        file.unlink()
    newest.rmdir()  # as if killed before the last checkpoint, with the rows of the last look half written
    (folder / "model.safetensors").unlink()
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"state": "running"}))
    with open(folder / "probes/alignment/rows.jsonl", "a") as file:
        file.write('{"epoch": 2, "st')
    assert run("resume", folder).returncode == 0
    assert rows(folder, "alignment") == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["probe=alignmnt"], "did you mean 'alignment'"),
        (["probe=[alignment,fishr]"], "fishr"),
        (["probe.alignment.samples=3"], "belongs to probe=alignment"),
        (["probe=alignment", "probe.alignment.sampels=3"], "samples"),
        (["probe=alignment", "probe.alignment.every=never"], "whole number of at least 1"),
        (["probe=alignment", "probe.alignment.every=0"], "at least 1"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_bad_input_is_one_sentence(settings, sentence, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "locallearn", "model=lenet", "epochs=1", f"out={tmp_path / 'runs'}", *settings],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["probe=none"], "needs a probe"),
        (["epochs=3"], "only settings of probe"),
        ([], "needs a probe"),
    ],
)
def test_bad_input_of_the_command(arguments, sentence, plain):
    done = run("probe", plain.run_dir, *arguments)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_a_probe_that_cannot_look_leaves_no_run(tmp_path):
    """Said before the run has a folder."""
    settings = {"probe": "features", "probe.features.image": 10**6, "out": str(tmp_path / "runs"), **SETTINGS}
    with pytest.raises(UserError, match=r"probe\.features\.image"):
        locallearn.train(**settings)
    assert not (tmp_path / "runs").exists()


def test_sample_draws_from_a_split():
    from locallearn.config.compose import compose
    from locallearn.config.experiment import experiment
    from locallearn.training.prepare import prepare

    _, data = prepare(experiment(*compose(["model=lenet"])))
    inputs, labels = sample(data, "all", len(data.train) + len(data.validation) + 3)
    images, of = sample(data, "test")
    for image, label in zip(inputs[-3:], labels[-3:], strict=True):
        places = (images == image).flatten(1).all(dim=1).nonzero().squeeze(1)
        assert label in of[places], "a sample of the test set with its own label"
    assert torch.equal(labels, sample(data, "all", len(labels))[1]), "the same ones whenever"
    order = data.train.labels.argsort()
    data.train = Split(data.train.store, data.train.index[order], data.train.labels[order])
    assert len(sample(data, "train", 100)[1].unique()) == 10, "though the set is sorted by class"
    assert len(sample(data, "test")[0]) == len(data.test)
    with pytest.raises(UserError, match="tset"):
        sample(data, "tset", 1)


@pytest.mark.parametrize("strategy", [{"strategy": "dtp"}, {"strategy": "predictive_coding", "strategy.order": "each"}])
@pytest.mark.parametrize("probe", ["alignment", "gradient_snr"])
def test_what_one_update_would_be_is_not_asked_of_who_takes_several(strategy, probe, tmp_path):
    small = {"model": "mlp", "model.width": 8, "blocks": "max", "max_steps": 2}
    with pytest.raises(UserError, match=rf"probe.{probe} asks what one update .* updates its weights several times"):
        locallearn.train(**strategy, **small, probe=probe, quiet=True, out=str(tmp_path))
    assert not list(tmp_path.iterdir())
