"""Training on an accelerator: the bits of the CPU, no wait of the host, nothing on another device. It needs no GPU: the
device of `helpers.shadow` computes real numbers under another name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers import ROOT, on_shadow, shadow
from helpers.marks import slow
from helpers.strategies import FILES, make, slow_where_alike
from locallearn.config.compose import choices

pytestmark = [
    pytest.mark.xdist_group("shadow"),
    pytest.mark.skipif(not shadow.possible(), reason="this PyTorch has no hook for a device in Python"),
]
AUGMENTED = ["data.crop=2", "data.flip=true", "data.cutout=3"]


@pytest.fixture(scope="module")
def there() -> Iterator[Callable[..., Any]]:
    with shadow.process() as call:
        yield call


@pytest.mark.slow
@pytest.mark.parametrize("name", slow_where_alike(FILES))
def test_a_step_has_the_bits_of_the_cpu_and_waits_for_nothing(there, name):
    for micro_batches in (1,) if make(name).repeats else (1, 2):
        there(on_shadow.steps_of, name, micro_batches, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_another_device_is_the_current_one(there, name):
    there(on_shadow.steps_of, name, 1, 1)


def test_adam_and_clipping(there):
    there(on_shadow.steps_of, "dgl", 2, 0, "adam")


def test_only_the_look_for_an_overflow_waits(there):
    assert there(on_shadow.half, "bf16") == 0
    assert there(on_shadow.half, "fp16") == 4, "once a block"


def test_replicas_that_add_on_the_device_wait_for_nothing(there):
    assert there(on_shadow.summed, True) == 0
    assert there(on_shadow.summed, False) > 0, "by way of the CPU"


def test_check_waits_once_a_block_and_a_state_is_that_of_the_cpu(there):
    there(on_shadow.checked_and_restored)


@pytest.mark.parametrize(
    "options",
    [
        [],
        AUGMENTED,
        ["data.deficit=noise"],
        ["data.deficit=permutation", *AUGMENTED],
        ["data.mixup=0.2", "data.cutmix=1"],
        ["data.jitter=1", "data.fraction=0.3"],
    ],
    ids=" ".join,
)
def test_no_batch_waits(there, options):
    there(on_shadow.loaded, "data=digits", *options)


@pytest.mark.slow
@pytest.mark.parametrize("option", ["data.memory_share=0", "data.resized_crop=0.3"])
def test_no_batch_of_files_waits(there, tmp_path, option):
    draws = np.random.default_rng(0)
    for place in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / place).mkdir(parents=True)
        for number in range(20):
            Image.fromarray(draws.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(
                tmp_path / place / f"{number}.png"
            )
    options = [f"data.root={tmp_path}", "data.size=16", "data.workers=0", "batch_size=6", option, *AUGMENTED]
    there(on_shadow.loaded, "data=folder", *options)


RUN = ["data=digits", "data.crop=2", "data.fraction=0.2", "model=lenet", "batch_size=32"]
TRAINED = [
    ["data=digits", "model=lenet", "strategy=backprop", "data.class_weights=balanced", "optim.clip=1"],
    ["data=digits", "model=lenet", "strategy=backprop", "data.mixup=0.2", "optim=adam"],
    ["data=diabetes", "model=mlp", "strategy=dgl"],
    ["data=cora", "model=gcn", "strategy=dgl"],
]
MORE = [
    ["data=digit_segments", "model=lenet", "strategy=dfa"],
    ["data=digit_ink", "model=plainnet", "strategy=backprop", "data.crop=2"],
    ["data=names", "model=rnn", "strategy=dgl"],
    ["data=shakespeare", "data.context=16", "model=gpt", "model.width=16", "model.heads=2", "strategy=backprop"],
    ["data=digits", "model=cspnet", "strategy=pgi", "channels_last=true"],
    ["data=digits", "model=revnet", "strategy=backprop"],
    ["data=digits", "model=lenet", "strategy=backprop", "runtime.staleness=1"],
    ["data=digits", "model=lenet", "strategy=dgl", "runtime=replay"],
    *(
        ["data=digits", "model=lenet", "strategy=dgl", f"objective={name}"]
        for name in (
            "simclr",
            "supcon",
            "similarity",
            "predsim",
            "infopro",
            "reconstruction",
            "inpainting",
            "masked",
            "vib",
        )
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("options", [*TRAINED, *map(slow, MORE)], ids=" ".join)
def test_what_is_asked_and_how_it_is_learned(there, real_root, options):
    there(on_shadow.trained, f"data.root={real_root}", *options)


def test_a_run(there, tmp_path):
    there(on_shadow.run, str(tmp_path), "strategy=dgl", *RUN, "epochs=2")


def test_rank_0_measures_and_looks_where_the_process_that_prepared_has_no_device(there, tmp_path):
    small = ["data=digits", "data.fraction=0.2", "model=mlp", "model.width=8", "model.depth=3", "probe=alignment"]
    before = there(on_shadow.told, str(tmp_path), *small, "strategy=dgl", "runtime=pipeline", "blocks=3")
    after = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert "device" not in before
    assert (after["device"], after["device_type"]) == ("Shadow", "shadow")
    (a, b), (c, d) = after.pop("stages")
    assert (a, d) == (0, 3)
    assert b == c
    assert len((tmp_path / "run" / "probes" / "alignment" / "rows.jsonl").read_text().splitlines()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["dgl", "dni", "backprop", "dfa"])
def test_a_pipeline(tmp_path, strategy):
    """Two stages with a device each, in processes of their own, beside one on the CPU."""
    (tmp_path / "sitecustomize.py").write_text("from helpers import shadow\nshadow.COUNT = 1\nshadow.register()\n")
    folders = []
    for device, more, paths in (("auto", ["runtime=pipeline"], [tmp_path, ROOT / "tests"]), ("cpu", [], [])):
        words = [*RUN, f"strategy={strategy}", "epochs=1", f"device={device}", f"out={tmp_path / device}", *more]
        command = [sys.executable, "-m", "locallearn", *words, "blocks=3", "threads=1"]
        path = os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")])
        ran = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
        )
        assert ran.returncode == 0, ran.stderr
        folders.append(next((tmp_path / device).iterdir()))
    assert json.loads((folders[0] / "manifest.json").read_text())["device"] == "Shadow"
    ours, truth = (load_file(folder / "model.safetensors") for folder in folders)
    assert all(torch.equal(ours[name], t) for name, t in truth.items())


LOOKS_AT = {
    "bottleneck": ["bottleneck=vib"],
    "inpainting": ["objective=masked"],
    "levels": ["data=hierarchical", "data.images=200"],
    "noisy_weights": ["bottleneck=weights"],
    "nuisance": ["data.nuisance=occlusion", "probe.nuisance.steps=2", "probe.nuisance.samples=40"],
}
"""What a probe needs of a run, or takes less time with; `detections` needs boxes, and is elsewhere."""


@pytest.mark.slow
@pytest.mark.parametrize("probe", sorted(choices("probe").keys() - {"none", "detections"}))
def test_a_probe(there, tmp_path, probe):
    there(on_shadow.run, str(tmp_path), f"probe={probe}", "strategy=dgl", *RUN, "epochs=1", *LOOKS_AT.get(probe, []))


@pytest.mark.parametrize("plant", sorted(on_shadow.PLANTS.keys() - {"nothing"}))
def test_a_planted_fault_is_caught(there, plant):
    with pytest.raises((AssertionError, shadow.Mixed, TypeError)):
        there(on_shadow.planted, plant)


def test_nothing_planted_is_no_fault(there):
    there(on_shadow.planted, "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("what", ["none", "current"])
def test_a_generator_that_nobody_seeds_is_caught(there, what):
    with pytest.raises(AssertionError, match="apart"):
        there(on_shadow.unseeded, what)
