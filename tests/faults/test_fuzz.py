"""Random compositions, and every file of `conf/`: each trains two steps with finite losses, or is refused in one
sentence before anything is written; none ends in a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import hypothesis
import pytest
import yaml
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from helpers.strategies import ALIKE
from locallearn.cli import main as cli
from locallearn.config.compose import choices, compose, conf_dir
from locallearn.config.settings import SEVERAL
from locallearn.config.targets import resolve
from locallearn.errors import UserError
from locallearn.options import fields_of

pytestmark = [pytest.mark.fault("F22"), pytest.mark.usefixtures("no_network")]
STEPS = 2
BOUNDED = ["epochs=2", f"max_steps={STEPS}", "threads=1"]
TINY_SET = ["data=synthetic", "data.images=24", "data.size=8", "data.classes=3"]
TINY_MODEL = ["model=mlp", "model.width=8", "model.depth=3"]
NOT_FINITE = re.compile(r"\b(nan|inf)\b|not finite")


@pytest.fixture
def root(found_root: Path | None, tmp_path: Path) -> Path:
    """Where data are looked for: a folder with real sets, or one that is not there where there are none."""
    return found_root or tmp_path / "no-data"


@pytest.fixture
def attempt(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], str]:
    """Runs a command line in this process, and says whether it "trained", was "refused" or "diverged"; anything else
    fails the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOCALLEARN_DATA", str(root))
    monkeypatch.setattr(sys, "argv", ["locallearn"])
    return lambda arguments: outcome(arguments, tmp_path / "runs")[0]


def outcome(arguments: list[str], out: Path) -> tuple[str, str]:
    """What became of a run, and what it said: checked against the promise at the top of this file; the folder `out` is
    removed."""
    said, printed = io.StringIO(), io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            code = cli.main([*arguments, f"out={out}"])
        text = f"{' '.join(arguments)}\nexit code {code}\n{said.getvalue()}"
        assert "Traceback" not in text, text
        lines = said.getvalue().splitlines()
        if code == 0:
            check_trained(out, text)
            return "trained", ""
        assert lines[-1].startswith("locallearn: "), text
        assert all(line.startswith(("warning: ", "note: ")) for line in lines[:-1]), text
        if code == 2:
            assert not list(out.glob("*")), f"{text}wrote {list(out.glob('*'))}"
            return "refused", lines[-1]
        assert code == 1, text
        assert NOT_FINITE.search(lines[-1]), text
        return "diverged", lines[-1]
    finally:
        shutil.rmtree(out, ignore_errors=True)


def check_trained(out: Path, text: str) -> None:
    (folder,) = [path for path in out.iterdir() if path.is_dir() and not path.name.startswith(".")]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["step"] == STEPS, text
    losses = {name: v for name, v in summary.items() if re.fullmatch(r"(train|block/\d+)/loss", name)}
    assert losses or "runtime=replay" in text, text  # there two steps may be over before the last block has had one
    for name, value in losses.items():
        assert value is not None, f"{text}{name} is not finite"


def report(record: Callable[[str, object], None], became: Counter[str]) -> None:
    """What a table of injected faults says of a test."""
    record("injected", became.total())
    for how, count in became.items():
        record(how, count)


# Every file of conf/

FILES = sorted(
    file for file in conf_dir().rglob("*.yaml") if not file.name.startswith("_") and file.parent.name != "study"
)
MAPS = ["model=plainnet", "model.depth=8", "data.size=16"]
BOXES = ["data=bccd", "data.fraction=0.05", "data.size=[64,64]", "model=detector", "model.width=0.125"]
TEXT = ["data.context=8", "model=gpt", "model.width=8", "model.layers=1", "model.heads=2"]
OWN = {
    "model/mlp": ["model.width=8"],
    "model/lenet": ["data.size=16"],
    "model/basic_cnn": ["model.width=8", "model.hidden=16"],
    "model/gelan": ["model.width=0.125"],
    "model/cspnet": ["model.width=0.125"],
    "model/torchvision": ["data.size=32"],
    "data/bccd": [*BOXES, "auxiliary=detect"],
    "model/detector": [*BOXES, "auxiliary=detect"],
    "auxiliary/detect": BOXES,
    "auxiliary/pointwise_mlp": MAPS,
    "auxiliary/transformer": ["model=vit", "model.patch=4", "model.layers=2", "model.width=8", "model.heads=2"],
    "objective/distil": ["init.teacher=teacher"],
    "objective/infonce": [*MAPS, "blocks=3"],
    "objective/cpc": [*MAPS, "blocks=3"],
    "strategy/infomax": [*MAPS, "blocks=3"],
    "strategy/petra": ["model=revnet", "model.depth=14"],
    "experiment/auxiliary_networks": ["model.width=1"],
    "experiment/pgi_ablation": ["model.width=0.125"],
    "short/pgi_ablation": ["model.width=0.125"],
    "experiment/bccd_pgi": BOXES,
    "short/bccd_pgi": BOXES,
    "experiment/shakespeare_cpu": ["data=shakespeare", *TEXT],
    "short/shakespeare_cpu": ["data=shakespeare", *TEXT],
    "record/wandb": ["record.wandb.mode=offline"],
    "probe/bottleneck": ["bottleneck=vib"],
    "probe/detections": [*BOXES, "auxiliary=detect"],
    "probe/features": MAPS,
    "probe/filters": MAPS,
    "probe/inpainting": [*MAPS, "strategy=dgl", "objective=masked"],
    "probe/levels": ["data=hierarchical", "data.images=100"],
    "probe/noisy_weights": ["bottleneck=weights"],
    "probe/nuisance": ["data.nuisance=occlusion", "probe.nuisance.samples=10"],
    "probe/usable_information": ["probe.usable_information.samples=16"],
    "probe/reconstruction": ["probe.reconstruction.decoder=network"],
}
"""What a choice needs, or makes it small."""
FEWER = {"samples": 8, "steps": 2, "batches": 2, "batch_size": 4, "draws": 1, "filters": 4, "channels": 2}
"""Of a probe."""
EMBEDDED = ("synthetic", "hierarchical", "picture", "digits", "digit_ink", "digit_segments", "clicks", "diabetes")
OF_REAL_ROOT = ("mnist", "fashion_mnist", "cifar10", "cora", "names", "tishby", "shakespeare", "bccd")


def is_slow(file: Path) -> bool:
    """All but the strategies that are not alike another."""
    return file.parent.name != "strategy" or file.stem in ALIKE


def title(file: Path) -> str:
    return str(file.relative_to(conf_dir()).with_suffix(""))


def small_run(file: Path) -> list[str]:
    """A command line with a file of `conf/` in it, as small as it gets."""
    group, name = file.parent.name, file.stem
    start = [*BOUNDED, "batch_size=4"]
    own = OWN.get(title(file), [])
    tiny = [] if any(word.startswith("data=") for word in own) else TINY_SET
    if file.parent == conf_dir():
        return [*start, *TINY_SET, *TINY_MODEL]
    if group in ("experiment", "short"):
        larger = ["data.size=16"] if tiny else []
        return [f"+{group}={name}", *start, *tiny, *larger, "probe=none", *own]
    if group == "tune":
        return ["tune", f"space={name}", "trials=1", *start, *TINY_SET, *TINY_MODEL]
    if name in ("cora", "gcn"):
        return [*BOUNDED, "data=cora", "model=gcn", "auxiliary=linear"]
    if name in ("names", "rnn"):
        return [*start, "data=names", "data.fraction=0.01", "model=rnn", "model.width=8"]
    if name in ("shakespeare", "text", "gpt"):
        text = ["data=text", f"data.file={__file__}"] if name == "text" else ["data=shakespeare"]
        return [*start, *text, *TEXT, "auxiliary=linear"]
    if name == "digit_ink":
        return [*start, "data=digit_ink", "data.fraction=0.1", "model=gelan", "model.width=0.125", "auxiliary=linear"]
    if group == "data" and not own:
        return [*start, f"data={name}", "data.fraction=0.1", *TINY_MODEL]
    few = [f"{key}={value}" for key, value in small_probe(name).items()] if group == "probe" else []
    model = [] if group == "model" else TINY_MODEL
    if any(word.startswith("model=") for word in own):
        model = []
    return [*start, *tiny, *model, f"{group}={name}", *few, *own]


def one_run_of(words: list[str]) -> list[str]:
    """What the refusal of an experiment with a sweep proposes to add, so that it is one run."""
    try:
        compose(words)
    except UserError as error:
        return str(error).partition("choose one run of it, such as ")[2].split()
    return []


def small_probe(name: str) -> dict[str, str]:
    """Options that keep a probe small."""
    content = yaml.safe_load(choices("probe")[name].read_text()) or {}
    return {f"probe.{name}.{key}": str(value) for key, value in FEWER.items() if key in content}


def becomes(arguments: list[str], root: Path) -> str:
    """What a run of a file of `conf/` must become: data that are not here are refused."""
    data = [a.partition("=")[2] for a in arguments if a.startswith("data=")][-1]
    return "trained" if data in (*EMBEDDED, "text", *(OF_REAL_ROOT if root.is_dir() else ())) else "refused"


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", [pytest.param(f, marks=pytest.mark.slow if is_slow(f) else (), id=title(f)) for f in FILES]
)
def test_every_file_of_conf(file, attempt, root, record_property):
    arguments = small_run(file)
    arguments += one_run_of(arguments) if file.parent.name in ("experiment", "short") else []
    expected = becomes(arguments, root)  # asked first: a download that fails leaves a folder
    if "init.teacher=teacher" in arguments:  # a run that has ended
        assert cli.main([*BOUNDED, *TINY_SET, *TINY_MODEL, "out=before"]) == 0
        next(Path("before").iterdir()).rename("teacher")
    became = attempt(arguments)
    report(record_property, Counter([became]))
    assert became == expected


def test_no_file_of_conf_is_left_out():
    """Every choice of every group is tried, and every part belongs to a choice."""
    named = {file: re.compile(rf"(\W|^){file.parent.name}={file.stem}$|^space={file.stem}$") for file in FILES}
    for file in FILES:
        assert file.parent == conf_dir() or any(map(named[file].search, small_run(file))), file
        assert file.parent == conf_dir() or file.stem in choices(file.parent.name), file
    parts = {*conf_dir().rglob("_*.yaml")} - {conf_dir() / "data/_objects.yaml"}  # which is of Python alone
    for part in parts:
        users = [f for f in part.parent.glob("[!_]*.yaml") if part.stem in yaml.safe_load(f.read_text())["defaults"]]
        assert users, f"{part} belongs to no choice"


# Random compositions

SILLY = ["null", "abc", "''", "true", "[]", "[1]", "[2,1]", "[abc]", "{a: 1}", "nan", "inf", "-1", "0", "1e30", "0.5"]
HUGE = [str(10**15), str(10**20)]
WHOLE = ["0", "1", "2", "3", "5", "7", "20"]
SHARES = ["0", "1e-30", "0.1", "0.5", "0.9", "1"]
NUMBERS = ["-1", "-0.5", "0", "1e-30", "0.1", "0.5", "0.9", "1", "1.5", "2", "3", "5", "7", "20", "1e30"]
FLAGS = ["true", "false"]
LOOPS = r"depth|layers|convolutions|couplings|steps|batches|draws|workers|stages|replicas|negatives|width"
"""Options for which a huge number is a long loop and no mistake that could be seen."""
WORDS = {
    "activation": ["relu", "leaky_relu", "tanh"],
    "schedule": ["constant", "linear", "cosine", "step"],
    "anneal": ["constant", "linear", "cosine"],
    "projection": ["full", "channel"],
    "init": ["xavier", "kaiming"],
    "combine": ["sum", "mean", "next"],
    "last": ["joint", "local"],
    "taps": ["gradient", "detached", "local"],
    "task": ["cross_entropy", "supcon"],
    "normalise": ["standard", "unit", "symmetric", "imagenet"],
    "policy": ["rand", "trivial"],
    "deficit": ["blur", "flip", "permutation", "noise"],
    "form": ["kl", "cost", "slide"],
    "curvature": ["diagonal", "gram", "kfac"],
    "nuisance": ["occlusion", "clutter", "rotation", "translation"],
    "deficit_until": ["0", "1", "5"],
    "block": ["conv", "res", "dark", "csp"],
    "shortcut": ["A", "B"],
    "estimator": ["kde", "kde_upper", "kde_lower", "binned", "gaussian", "renyi", "mine", "ksg"],
    "split": ["train", "validation", "test", "all", "[1,1]", "[2,1]"],
    "decoder": ["linear", "network"],
    "message": ["exact", "bf16"],
    "wire": ["auto", "gloo", "ring", "nccl"],
    "slow": ["{0: 2}", "{1: 1.5}", "{9: 2}", "{0: 0.5}", "{a: 2}"],
    "milestones": ["[0.5]", "[0.9,0.1]", "[0,1]", "[2]", "[-1]"],
    "auxiliary_lr": ["0", "0.1"],
    "auxiliary_weight_decay": ["0", "0.1"],
    "every": ["1", "2", "log"],
    "bins": ["30", "0.07", "[-1,0,1]", "[1,0]", "[0]"],
    "noise_variance": ["0.1", "0"],
    "width": ["4", "8", "[8,4]", "[8,0]", "64"],
    "labelled": ["1", "3", "6", "10", "24", "1000"],
    "weights": ["nowhere.pt"],
    "cuts": ["[layer1]", "[layer1,layer2,layer3]", "[layer2,layer1]", "[nowhere]", "[conv1]", "[features.1]"],
}
SETTINGS = {
    "blocks": [
        "1",
        "2",
        "3",
        "auto",
        "max",
        "[1]",
        "[1,2]",
        "[2,4,7]",
        "0",
        "500",
        "[3,2]",
        "-1",
        "[0]",
        "[1,1]",
        "[1.5]",
    ],
    "batch_size": ["1", "2", "3", "4", "8", "0", "1000"],
    "micro_batches": ["1", "2", "4", "3", "0"],
    "precision": ["fp32", "bf16", "fp64", "fp16"],
    "channels_last": FLAGS,
    "balance": ["flops", "memory", "time", "size"],
    "train_blocks": ["[0]", "[1]", "[0,1]", "[1,2]", "[0,9]", "[]", "[-1]", "0"],
    "init.run": ["nowhere", "[]"],
    "init.blocks": ["[0]", "[]"],
    "init.teacher": ["nowhere"],
    "seed": ["0", "1", "12345", str(2**31), str(2**63), str(2**70), "-1"],
    "evaluate_every": ["1", "3it", "2ep", "never", "0", "often"],
    "log_every": ["2", "null", "0", "-1"],
    "checkpoint.every": ["1ep", "1it", "never", "0it", "often", "99999999999999999999it"],
    "checkpoint.keep": ["1", "2", "0"],
    "deterministic": FLAGS,
    "allocator": FLAGS,
    "device": ["cpu", "auto", "cuda:99", "gpu", "meta", "cpu:1"],
    "threads": ["1", "0", "auto", "abc", "-3"],
    "optim.clip": ["0", "1", "1e-30", "-1"],
    "optim.lr": ["0", "1e-3", "0.1", "1e30", "-1"],
    "optim.schedule": ["one_cycle", "step", "plateau", "{_target_: math.cos}", "{_target_: 1}", "1"],
}
HEAVY_SETS = ["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "stl10", "folder"]
LIGHT = {
    "mlp": [
        ["model.width=8"],
        ["model.width=4", "model.depth=1"],
        ["model.width=[8,4]"],
        ["model.width=3", "model.depth=5"],
    ],
    "lenet": [[]],
    "basic_cnn": [["model.width=4", "model.hidden=8"], ["model.width=8", "model.hidden=0"]],
    "gelan": [["model.width=0.125"], ["model.width=0.125", "model.elan_depth=1", "model.csp_depth=2"]],
    "cspnet": [["model.width=0.125"], ["model.width=0.125", "model.depth=1"]],
    "rnn": [["model.width=8"], ["model.width=8", "model.depth=1"]],
    "gcn": [["model.width=8"], ["model.depth=1"], ["model.depth=2"]],
    "plainnet": [["model.depth=8"]],
    "resnet20": [[], ["model.depth=8"], ["model.shortcut=B", "model.depth=8"]],
    "revnet": [["model.depth=14"]],
    "gpt": [["model.width=8", "model.layers=1", "model.heads=2"], ["model.width=6", "model.heads=4"]],
}
FOREIGN = {
    "torchvision": [
        "resnet18",
        "squeezenet1_1",
        "shufflenet_v2_x0_5",
        "mobilenet_v2",
        "alexnet",
        "googlenet",
        "resnet81",
    ],
    "timm": [
        "resnet18",
        "vit_tiny_patch16_224",
        "convnext_atto",
        "mobilenetv3_small_050",
        "regnetx_002",
        "botnet26t_256",
    ],
}


def leaves(content: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The options of a yaml by their full key."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, f"{prefix}.{key}")
        elif key != "_target_":
            found[f"{prefix}.{key}"] = value
    return found


def values(key: str, default: Any, often: Callable[[int], bool]) -> list[str]:
    """What may be tried for an option: mostly what is of its kind."""
    last = key.rpartition(".")[2]
    fitting = WORDS.get(last, [])
    if isinstance(default, bool):
        fitting = FLAGS
    elif isinstance(default, int):
        fitting = fitting + (WHOLE if often(80) else ["-1", "0.5", *([] if re.fullmatch(LOOPS, last) else HUGE)])
    elif isinstance(default, float) or (isinstance(default, str) and re.fullmatch(r"[\d.]+e-?\d+", default)):
        fitting = fitting + (SHARES if often(70) else NUMBERS)
    return fitting if fitting and often(80) else SILLY


def reads(strategy: str, group: str) -> bool:
    return group in fields_of(target("strategy", strategy))


def target(group: str, name: str) -> Any:
    return resolve(yaml.safe_load(choices(group)[name].read_text())["_target_"], group, [])


WITHOUT_NETWORK = {name for name in choices("objective") if not target("objective", name).reads_auxiliary}


def composition(draws: Random, pipelines: bool) -> list[str]:
    """A command line: most of its choices fit each other, and some options are strange."""

    def often(percent: int) -> bool:
        return draws.random() < percent / 100

    def one(options: Iterable[Any]) -> Any:
        return draws.choice(sorted(options))

    chosen = {group: one(choices(group)) for group in ("strategy", "objective", "auxiliary", "optim")}
    for group in ("objective", "auxiliary"):
        if not reads(chosen["strategy"], group) and often(90):
            del chosen[group]  # else it is refused
    if chosen.get("objective") in WITHOUT_NETWORK and often(90):
        chosen.pop("auxiliary", None)
    chosen["runtime"] = "replay" if chosen["strategy"] in ("dgl", "infomax", "shallow") and often(20) else "serial"
    if often(3):
        chosen["runtime"] = one({"replay", "pipeline"} if pipelines else {"replay"})
    if often(10):
        chosen["probe"] = one(choices("probe"))
    if often(15):
        chosen["callback"] = one(choices("callback"))
    if often(2):
        chosen["record"] = "tensorboard"
    chosen["data"], chosen["model"], own = given(often, one)
    drawn = {"batch_size": one(["1", "2", "4", "8"]), "blocks": one(["1", "2", "3", "max", "auto"])}
    for _ in range(draws.choice([0, 1, 2, 3])):
        key = one(SETTINGS)
        drawn[key] = draws.choice(SETTINGS[key][: None if often(20) else 2])
    known: dict[str, Any] = {}
    for group, name in chosen.items():
        content = yaml.safe_load(choices(group)[name].read_text()) or {}
        known |= leaves(content, f"{group}.{name}" if group in SEVERAL else group)
    for _ in range(draws.choice([0, 0, 1, 1, 2])):
        key = one(known)
        drawn[key] = draws.choice(values(key, known[key], often))
    drawn = small_probe(chosen.get("probe", "none")) | drawn
    if chosen["data"] == "cora" and often(90):
        del drawn["batch_size"]  # every step has the whole graph
    if often(3):
        chosen[one(chosen)] = draws.choice(SILLY)
    return [*(f"{g}={n}" for g, n in chosen.items()), *own, *(f"{k}={v}" for k, v in drawn.items()), *BOUNDED]


def given(often: Callable[[int], bool], one: Callable[[Iterable[Any]], Any]) -> tuple[str, str, list[str]]:
    """A data set and a model, and options that keep both small."""
    if often(3):
        light = one(["mlp", "lenet"])
        return one(HEAVY_SETS), light, ["data.fraction=0.01", *LIGHT[light][0]]
    if often(35):
        data = one(["digits", "tishby", "names", "cora", "diabetes", "digit_segments", "digit_ink", "shakespeare"])
        fitting = {"names": "rnn", "cora": "gcn", "tishby": "mlp", "diabetes": "mlp", "digit_ink": "gelan"}.get(data)
        fitting = "gpt" if data == "shakespeare" else fitting
        model = fitting if fitting and often(70) else one(LIGHT)
        return data, model, one(LIGHT[model])
    classes, side = one([2, 3, 4, 10, 50]), one([1, 2, 3, 4, 5, 8, 9, 12, 16, 20, 28, 32, 33])
    options = [f"data.classes={classes}", f"data.channels={one([1, 2, 3, 4])}"]
    options.append(f"data.images={max(classes, one([1, 24, 40, 41])) if often(20) else 4 * classes}")
    if often(70):
        model = one(LIGHT) if often(10) else one(set(LIGHT) - {"rnn", "gcn", "gpt"})
        return "synthetic", model, [*options, f"data.size={side}", *one(LIGHT[model])]
    if often(25):
        kind = one(FOREIGN)
        options += [f"model.name={one(FOREIGN[kind])}", f"data.size={one([16, 32, 64])}"]
        return "synthetic", kind, [*options, "data.channels=3"] if often(80) else options
    model = one(set(choices("model")) - set(FOREIGN))
    return "synthetic", model, [*options, f"data.size={min(side, 12)}"]


def fuzz(
    attempt: Callable[[list[str]], str], examples: int, seed: int, seconds: float, pipelines: bool
) -> Counter[str]:
    """Try random compositions, and begin no other after so many seconds."""
    became: Counter[str] = Counter()
    end = time.monotonic() + seconds

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(seed)
    @hypothesis.given(st.randoms(use_true_random=True))
    def try_one(draws: Random) -> None:
        if time.monotonic() < end:
            became[attempt(composition(draws, pipelines))] += 1

    try_one()
    return became


@pytest.mark.slow
def test_some_random_compositions(attempt, record_property):
    report(record_property, fuzz(attempt, 30, seed=0, seconds=10, pipelines=False))


@pytest.mark.slow
def test_many_random_compositions(attempt, record_property):
    report(record_property, fuzz(attempt, 400, seed=1, seconds=60, pipelines=True))
