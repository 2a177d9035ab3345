"""Run folders and configurations from strangers: nothing in them runs, climbs out or ends in a traceback."""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import locallearn
import locallearn.config.compose
from helpers.commands import SMALL, run
from helpers.marks import slow
from helpers.runs import STAGE
from locallearn import stored
from locallearn.cli import main as cli
from locallearn.config.targets import KINDS, resolve
from locallearn.errors import RunError, UserError
from locallearn.runs import checkpoint
from locallearn.runs.folder import RunFolder
from locallearn.studies import repeat
from locallearn.training.saved import saved_experiment

SRC = Path(locallearn.__file__).parent
SETTINGS = [
    *SMALL,
    "strategy=dgl",
    "auxiliary=linear",
    "epochs=1",
    "batch_size=400",
    "checkpoint.every=1it",
    "checkpoint.keep=9",
]


def quietly(*arguments: str) -> tuple[int, str]:
    """A command line in this process: its exit code and what it said."""
    said = io.StringIO()
    argv = sys.argv
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            code = cli.main(list(arguments))
    finally:
        sys.argv = argv
    assert "Traceback" not in said.getvalue()
    return code, said.getvalue()


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 3 steps, with the checkpoint of each."""
    out = tmp_path_factory.mktemp("done")
    assert quietly(*SETTINGS, f"out={out}")[0] == 0
    return next(out.glob("*/summary.json")).parent


def unfinished(done: Path, to: Path) -> Path:
    """The same run as if it had been stopped before its last step."""
    run = Path(shutil.copytree(done, to))
    for name in ("summary.json", "model.safetensors"):
        (run / name).unlink()
    shutil.rmtree(run / "checkpoints/step-00000003")
    (run / "status.json").write_text('{"state": "interrupted"}')
    return run


@pytest.fixture
def stopped(done: Path, tmp_path: Path) -> Path:
    return unfinished(done, tmp_path / "stopped")


@pytest.fixture
def copied(done: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(done, tmp_path / "copied"))


def loaded(run: Path) -> int:
    """`locallearn.load` in the terms of the command line."""
    try:
        locallearn.load(run)
    except (UserError, RunError) as error:
        return 2 if isinstance(error, UserError) else 1
    return 0


def begun_again(run: Path) -> int:
    """`repeat` up to the training, whose result is the run itself."""
    before = repeat.start
    repeat.start = lambda *_, **__: _Ended(run)  # type: ignore
    try:
        return quietly("repeat", str(run))[0]
    finally:
        repeat.start = before


class _Ended:
    def __init__(self, run: Path) -> None:
        self.run_dir = run


COMMANDS: dict[str, Callable[[Path], int]] = {
    "resume": lambda run: quietly("resume", str(run))[0],
    "evaluate": lambda run: quietly("evaluate", str(run))[0],
    "probe": lambda run: quietly("probe", str(run), "probe=filters")[0],
    "repeat": begun_again,
    "load": loaded,
    "report": lambda run: quietly("report", str(run), "--to", str(run.parent / "to"))[0],
    "compare": lambda run: quietly("compare", str(run), str(run))[0],
}


def seal(folder: Path, version: int = 2) -> None:
    """Make the sums of a checkpoint right again, as whoever forges one would."""
    contents = {name: (folder / name).read_bytes() for name in (STAGE, "state.json")}
    files = {
        name: {"bytes": len(content), "algorithm": "xxh3_128", "sum": xxhash.xxh3_128_hexdigest(content)}
        for name, content in contents.items()
    }
    manifest = {"format": version, "step": int(folder.name.removeprefix("step-")), "files": files}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()
    (folder / "manifest.json").write_text(json.dumps({**manifest, "sum": xxhash.xxh3_128_hexdigest(text)}))


def newest(run: Path) -> Path:
    return max(run.glob("checkpoints/step-*"))


@pytest.mark.slow
def test_sound_folders_pass_every_command(done, copied, tmp_path):
    """Else the tests below would show nothing."""
    assert {name: command(copied) for name, command in COMMANDS.items()} == dict.fromkeys(COMMANDS, 0)
    assert COMMANDS["resume"](unfinished(done, tmp_path / "stopped")) == 0


# --- nothing runs ----------------------------------------------------------------------------------------------------


@pytest.mark.fault("F8", "R7")
def test_nothing_in_the_package_unpickles_or_evaluates():
    """Calls by their dotted names, `yaml.load` and `np.load` by their arguments."""
    never = {"torch.hub.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "joblib.load"}
    never |= {"pickle.load", "pickle.loads", "os.system", "os.popen", "eval", "exec", "np.fromfile", "hydra.utils.call"}
    never |= {"hydra.utils.instantiate", "pd.read_pickle"}
    loads = 0
    for path in SRC.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert name not in never, f"{path}: {name}"
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert options.get("allow_pickle", "False") == "False", path
            assert options.get("shell", "False") == "False", path
            if name == "torch.load":  # of a file that the user names, never of a run folder
                assert (path.name, options.get("weights_only")) == ("weights.py", "True"), path
            if name in ("yaml.load", "yaml.parse"):
                loads += 1
                assert [ast.unparse(argument) for argument in node.args[1:]] == ["_Loader"], path
    assert loads
    assert issubclass(stored._Loader, getattr(yaml, "CSafeLoader", yaml.SafeLoader))


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch {self.canary}",))


def pickles(canary: Path) -> Iterator[bytes]:
    yield pickle.dumps(Bomb(canary))
    buffer = io.BytesIO()
    torch.save(Bomb(canary), buffer)
    yield buffer.getvalue()


CHECKPOINT = "checkpoints/step-00000003"


@pytest.mark.slow
@pytest.mark.fault("F8", "R7")
@pytest.mark.parametrize(
    ("name", "commands"),
    [
        (f"{CHECKPOINT}/{STAGE}", ("evaluate", "probe")),
        slow(f"{CHECKPOINT}/state.json", ("evaluate",)),
        slow(f"{CHECKPOINT}/manifest.json", ("evaluate",)),
        ("model.safetensors", ("load", "repeat")),
        ("config.yaml", ("evaluate", "load", "report")),
        slow("manifest.json", ("evaluate", "compare")),
        slow("status.json", ("resume", "repeat", "report")),
        slow("summary.json", ("resume", "report")),
        slow("metrics.jsonl", ("resume", "report")),
        slow("overrides.yaml", ("report",)),
        slow("wandb.json", ("evaluate",)),
    ],
)
def test_a_pickle_by_any_name_is_never_opened(name, commands, copied, tmp_path, record_property):
    canary = tmp_path / "canary"
    record_property("injected", 2 * len(commands))
    for content in pickles(canary):
        (copied / name).write_bytes(content)
        if name.startswith(CHECKPOINT) and not name.endswith("manifest.json"):
            seal(copied / CHECKPOINT)
        for command in commands:
            assert COMMANDS[command](copied) in (0, 1, 2)
    assert not canary.exists()
    with contextlib.suppress(TypeError):
        pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists(), "the pickle is harmless, so this test shows nothing"


TARGETS = [
    *("os.system", "subprocess.call", "builtins.eval", "torch.load", "torch.hub.load", "pickle.loads"),
    *("torch.utils.cpp_extension.load_inline", "logging.os.system", "pdb.Pdb._getval", "hydra.utils.call"),
    *("locallearn.os.system", "locallearn.cli.main.os.system", "locallearn.runs.folder.os.system"),
    *("locallearn.runs.folder.os", "locallearn.runs.wandb_sink.subprocess.Popen"),
    *("locallearn.runs.wandb_sink.subprocess", "locallearn.config.targets.importlib.import_module"),
    *("locallearn.config.targets.instantiate", "locallearn.config.targets.resolve", "locallearn.api.train"),
    *("locallearn.runs.checkpoint.save", "locallearn.training.run.train"),
    *(
        "locallearn.__main__.entry",
        "locallearn.cli.main.entry",
        "locallearn.config.compose.Path",
        "locallearn.seeds.torch.load",
    ),
    *("locallearn.contract.Strategy", "locallearn.data.DataSource", "locallearn.probes.Probe"),
    *("locallearnx.os.system", "locallearn", "locallearn.", ".locallearn.x", "locallearn..cli.os", "locallearn.cli."),
    *("locallearn.cli\0.os", "locallearn/../os.system", "", " ", "locallearn.cli.main.os.system", "x" * 10_000),
    *(None, 7, True, 1.5, ["os.system"], {"_target_": "os.system"}, ["locallearn.strategies.greedy.DGL"]),
]


@pytest.mark.fault("F23", "R7")
@pytest.mark.parametrize("group", [*KINDS, "model"])
def test_only_our_own_classes_of_the_right_kind_are_reached(group, record_property):
    record_property("injected", len(TARGETS))
    for target in TARGETS:
        with pytest.raises(UserError) as caught:
            resolve(target, group, [])
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 2000


@pytest.mark.slow
@pytest.mark.fault("F23", "R7")
@pytest.mark.parametrize(
    "target", ["mine.X", *map(slow, ("os.system", "locallearn.cli.main.os.system", "torch.hub.load"))]
)
def test_a_saved_target_is_refused_by_every_command(target, copied, stopped, tmp_path, record_property):
    """In every group, nested in an option, and with an `allow` of the stranger's own."""
    canary = tmp_path / "canary"
    (tmp_path / "mine.py").write_text(f"open({str(canary)!r}, 'w').close()\nX = 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        cases = 0
        for folder in (copied, stopped):
            config = yaml.safe_load((folder / "config.yaml").read_text())
            for group in [*KINDS, "model"]:
                own = {"evil": {"_target_": target, "command": f"touch {canary}"}} if group == "probe" else {}
                evil = own or {"_target_": target, "command": f"touch {canary}"}
                changed = {**config, group: evil, "allow": ["os", "torch", "mine"]}
                (folder / "config.yaml").write_text(yaml.safe_dump(changed))
                with pytest.raises(UserError, match=r"lies outside locallearn|cannot import|unknown key"):
                    saved_experiment(RunFolder.open(folder), [])
                cases += 1
            nested = {**config["optim"], "lr": {"_target_": target}}
            (folder / "config.yaml").write_text(yaml.safe_dump({**config, "optim": nested}))
            with pytest.raises(UserError, match=r"optim\.lr=.*must be a number"):
                saved_experiment(RunFolder.open(folder), [])
            (folder / "config.yaml").write_text(yaml.safe_dump({**config, "strategy": {"_target_": target}}))
        names = ("evaluate", "probe", "repeat", "load", "resume")
        assert [COMMANDS[name](stopped if name == "resume" else copied) for name in names] == [2] * 5
        assert [COMMANDS[name](copied) for name in ("report", "compare")] == [0, 0]
        record_property("injected", cases + 9)
        assert not canary.exists()
    finally:
        sys.path.remove(str(tmp_path))


def bomb(levels: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, levels)]
    return "\n".join([*lines, f"seed: *a{levels - 1}", ""])


YAMLS = {
    "tag": "a: !!python/object/apply:os.system ['touch CANARY']\n",
    "new": "a: !!python/object/new:os.system ['touch CANARY']\n",
    "name": "a: !!python/name:os.system\n",
    "module": "a: !!python/module:this\n",
    "aliases": bomb(9),
    "itself": "a: &a [*a]\nseed: *a\n",
    "twice": "seed: 0\nseed: 1\n",
    "deep lists": "[" * 100_000,
    "deep mappings": "{a: " * 100_000,
    "deep dashes": "- " * 100_000,
    "long": "a: " + "x" * 11_000_000,
    "list": "[1, 2]\n",
    "keys": "? [1, 2]\n: 3\n",
    "numbers": "1: 2\n",
    "binary": "\x00\x01",
    "digits": "seed: " + "9" * 5000 + "\n",
    "empty": "",
}


@pytest.mark.fault("F23", "R7")
@pytest.mark.parametrize("kind", YAMLS)
def test_hostile_yaml_is_refused_at_once(kind, copied, tmp_path):
    canary = tmp_path / "canary"
    (copied / "config.yaml").write_text(YAMLS[kind].replace("CANARY", str(canary)))
    started = time.process_time()
    with pytest.raises(UserError, match=r"config\.yaml cannot be read") as caught:
        saved_experiment(RunFolder.open(copied), [])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert quietly("report", str(copied))[0] == 0
    assert time.process_time() - started < 10
    assert not canary.exists()


@pytest.mark.fault("F23", "R7")
@pytest.mark.parametrize(
    "override",
    [
        "hydra.searchpath=[file:///tmp]",
        slow("+hydra.searchpath=[pkg://evil]"),
        "hydra.launcher._target_=os.system",
        slow("++hydra.sweeper._target_=os.system"),
        slow("+hydra.callbacks.x._target_=os.system"),
        "+hydra.callbacks={x:{_target_:os.system}}",
        "hydra.launcher={_target_:os.system}",
    ],
)
def test_hydra_itself_is_told_to_run_nothing(override, elsewhere, tmp_path, capsys):
    code, _, err = run(*SETTINGS, override, capsys=capsys)
    assert code == 2
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError):
        locallearn.config.compose.compose([override])


# --- tensors and numbers ---------------------------------------------------------------------------------------------


def header(text: str | bytes, body: bytes = b"", length: int | None = None) -> bytes:
    content = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(content) if length is None else length) + content + body


def entry(start: int, stop: int, shape: str = "[1]", dtype: str = "F32") -> str:
    return f'{{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{start}, {stop}]}}'


SAFETENSORS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length 2^63": header("{}", length=2**63),
    "length beyond the file": header("{}", length=10_000),
    "100 MB of header": header("{}" + " " * 8, length=99_000_000) + bytes(99_000_000),
    "overlapping": header(f'{{"a": {entry(0, 4)}, "b": {entry(0, 4)}}}', bytes(4)),
    "a hole": header(f'{{"a": {entry(4, 8)}}}', bytes(8)),
    "a name twice": header(f'{{"a": {entry(0, 4)}, "a": {entry(0, 4)}}}', bytes(4)),
    "unknown dtype": header(f'{{"a": {entry(0, 4, dtype="F99")}}}', bytes(4)),
    "wrong size": header(f'{{"a": {entry(0, 4, "[2]")}}}', bytes(4)),
    "endless shape": header(f'{{"a": {entry(0, 4, f"[{2**40}, {2**40}]")}}}', bytes(4)),
    "100,000 dimensions": header(f'{{"a": {entry(0, 4, str([1] * 100_000))}}}', bytes(4)),
    "shape of text": header(f'{{"a": {entry(0, 4, chr(34) + "x" + chr(34))}}}', bytes(4)),
    "no mapping": header("[1, 2]"),
    "nan in metadata": header('{"__metadata__": {"x": NaN}}'),
    "deep": header("[" * 100_000),
    "not text": header(b"\xff\xfe{}"),
    "another model": header(f'{{"a": {entry(0, 4)}}}', bytes(4)),
    "eighths": header(f'{{"a": {entry(0, 1, "[2]", "F4")}}}', bytes(1)),
}


OFTEN = {"100 MB of header", "overlapping", "eighths"}


@pytest.mark.fault("F9", "R7")
@pytest.mark.parametrize("kind", [kind if kind in OFTEN else slow(kind) for kind in SAFETENSORS])
def test_hostile_tensors_are_refused_in_bounded_time_and_memory(kind, copied):
    (copied / "model.safetensors").write_bytes(SAFETENSORS[kind])
    (newest(copied) / STAGE).write_bytes(SAFETENSORS[kind])
    seal(newest(copied))
    for path in sorted(copied.glob("checkpoints/*"))[:-1]:
        shutil.rmtree(path)
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match=r"model\.safetensors (cannot be read|does not fit)") as caught:
        locallearn.load(copied)
    assert "\n" not in str(caught.value)
    code, said = quietly("evaluate", str(copied))
    assert code == 2
    assert "does not fit this run" in said or "1 checkpoints under" in said
    assert time.process_time() - started < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


@pytest.mark.fault("F7")
@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("command", ["evaluate", slow("resume"), slow("probe")])
def test_a_newer_checkpoint_is_refused_by_its_version(command, version, stopped, tmp_path):
    """And not passed over: an older one would silently undo training."""
    state = json.loads((newest(stopped) / "state.json").read_text())
    (newest(stopped) / "state.json").write_text(json.dumps({**state, "format": 3, "new": [1]}))
    seal(newest(stopped), version)
    arguments = ["probe=filters"] if command == "probe" else []
    code, said = quietly(command, str(stopped), *arguments)
    assert code == 2
    assert f"{newest(stopped)} has format 3; this locallearn reads up to {checkpoint.FORMAT}" in said


@pytest.mark.fault("F3", "R3")
@pytest.mark.parametrize(
    "change",
    [
        {"format": "1"},
        slow({"format": None}),
        slow({"step": "2"}),
        slow({"step": 7}),
        slow({"step": [2]}),
        slow({"epoch": {}}),
        slow({"offset": 1.5}),
        slow({"seconds": "soon"}),
        slow({"blocks": None}),
        slow({"blocks": [1, 2]}),
        {"blocks": [{"totals": [1.0], "predicts": True, "notes": {}}]},
        slow({"more": 1}),
    ],
)
def test_a_forged_state_counts_as_damage(change, stopped):
    """It is named, and the checkpoint before is used."""
    state = json.loads((newest(stopped) / "state.json").read_text())
    (newest(stopped) / "state.json").write_text(json.dumps({**state, **change}))
    seal(newest(stopped))
    code, said = quietly("resume", str(stopped))
    assert code == 0
    assert "step-00000002 is damaged (" in said
    assert "from step 1" in said


MANIFESTS = {
    "cut": ["x", None, [], [[0, 10**9]], [[0]], [[1, 2]], [[0, 1], [2, 3]], [[0, 0]], [["0", "4"]], [[0, 3.5]]],
    "image": ["x", [], [-1, 3], [10**9, 10**9], [1.5], None, [1, 1, 1, 1, 1], [True, 32, 32]],
    "classes": [None, "ab", [1, 2], {}, 3],
    "choices": [None, [], {"model": 3}, "x"],
    "versions": [None, [], "2.0"],
}


@pytest.mark.fault("F3")
@pytest.mark.parametrize("key", MANIFESTS)
def test_a_forged_manifest_is_refused_in_one_sentence(key, copied, record_property):
    sound = json.loads((copied / "manifest.json").read_text())
    record_property("injected", len(MANIFESTS[key]))
    for value in MANIFESTS[key]:
        (copied / "manifest.json").write_text(json.dumps({**sound, key: value}))
        with pytest.raises(UserError, match=r"manifest\.json") as caught:
            prepared(copied)
        assert "\n" not in str(caught.value)
    del sound[key]
    (copied / "manifest.json").write_text(json.dumps(sound))
    with pytest.raises(UserError, match="incomplete"):
        prepared(copied)


def prepared(run: Path) -> None:
    """As far as every command comes before it computes."""
    _, known = saved_experiment(RunFolder.open(run), [])
    if known["cut"][-1][1] > 100:
        from locallearn.training.prepare import prepare
        from locallearn.training.saved import ranges

        prepare(saved_experiment(RunFolder.open(run), [])[0], ranges(known["cut"]))


WEIRD: list[Any] = [None, "x", "", [], {}, -1, 0, True, 1e308, -1e308, float("nan"), float("inf"), [[0, 10**9]]]
WEIRD += [10**400, [[[[[[[[[]]]]]]]]], {"cut": "x"}, "\ud800", "\x1b[2J", ["x", None], 2**63, "9" * 400, "<b>", "=1+1"]
NO_JSON = [b"", b"null", b"[]", b"\xff\xfe", b"{", b"[" * 100_000, b'{"a": 1' + b"0" * 5000 + b"}"]
FILES = ["manifest.json", "status.json", "summary.json", "metrics.jsonl", "state.json", "config.yaml"]


def mutated(content: Any, chance: random.Random) -> Any:
    """A copy with one value, somewhere in it, made another or taken away."""
    content = json.loads(json.dumps(content))
    at, above = content, []
    while isinstance(at, dict | list) and at and (not above or chance.random() < 0.7):
        key = chance.choice(list(at) if isinstance(at, dict) else range(len(at)))
        above.append((at, key))
        at = at[key]
    if not above:
        return chance.choice(WEIRD)
    place, key = above[-1]
    if chance.random() < 0.2:
        del place[key]
    else:
        place[key] = chance.choice(WEIRD)
    return content


def forge(run: Path, name: str, chance: random.Random) -> None:
    file = newest(run) / name if name == "state.json" else run / name
    if not file.exists():
        return
    if chance.random() < 0.1:
        file.write_bytes(chance.choice(NO_JSON))
    elif name == "metrics.jsonl":
        lines = [json.dumps(mutated(json.loads(line), chance)) + "\n" for line in file.read_text().splitlines()]
        file.write_text("".join(lines))
    elif name == "config.yaml":
        file.write_text(json.dumps(mutated(yaml.safe_load(file.read_text()), chance)))  # JSON is YAML
    else:
        file.write_text(json.dumps(mutated(json.loads(file.read_text()), chance)))
    if name == "state.json":
        seal(newest(run))


def forged_everywhere(done: Path, seed: int, names: list[str]) -> None:
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        resumes = names == ["resume"]
        run = unfinished(done, place) if resumes else Path(shutil.copytree(done, place))
        forge(run, chance.choice(FILES), chance)
        for name in names:
            assert COMMANDS[name](run) in (0, 1, 2)


@pytest.mark.slow
@pytest.mark.fault("F3", "F22")
@pytest.mark.parametrize("name", ["resume", "load"])
@settings(max_examples=3, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_forged_numbers_end_in_a_sentence(name, done, seed):
    forged_everywhere(done, seed, [name])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.fault("F3", "F22")
@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=40, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_many_forged_numbers_end_in_a_sentence(name, done, seed):
    forged_everywhere(done, seed, [name])


# --- nothing is written elsewhere ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.fault("F11", "R7")
@pytest.mark.parametrize(
    "name",
    [
        *(".lock", "checkpoints"),
        *map(
            slow,
            (
                "metrics.jsonl",
                "checkpoints/step-00000009",
                "status.json",
                "model.safetensors",
                "log.txt",
                "probes",
                "wandb",
                "probes/filters",
                "repeats",
            ),
        ),
    ],
)
def test_a_link_out_of_a_run_folder_is_not_followed(name, stopped, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for number in (1, 2):
        (outside / f"step-0000000{number}").mkdir()
        (outside / f"step-0000000{number}/mine").write_text("mine")
    (outside / "mine.txt").write_text("a line of mine without an end")
    before = {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()}
    place = stopped / name
    place.parent.mkdir(exist_ok=True)
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    is_folder = "." not in name
    if name == "status.json":
        (outside / "mine.txt").write_text('{"state": "interrupted"}')
        before[outside / "mine.txt"] = b'{"state": "interrupted"}'
    place.symlink_to(outside if is_folder else outside / "mine.txt")
    for command in ("resume", "probe"):
        arguments = ["probe=filters"] if command == "probe" else []
        code, said = quietly(command, str(stopped), *arguments)
        assert code == 2
        assert f"{place} is a link out of the run folder" in said
    assert {path: path.read_bytes() for path in outside.rglob("*") if path.is_file()} == before


@pytest.mark.fault("F11")
@pytest.mark.parametrize(
    "name", ["metrics.jsonl", *map(slow, (".lock", "config.yaml", "manifest.json", "model.safetensors"))]
)
def test_a_pipe_in_a_run_folder_blocks_nothing(name, copied, stopped):
    for folder in (copied, stopped):
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
    started = time.monotonic()
    assert quietly("resume", str(stopped))[0] == 2
    assert quietly("report", str(copied))[0] == 0
    assert loaded(copied) == (0 if name in (".lock", "metrics.jsonl") else 2)
    assert time.monotonic() - started < 60


# --- the environment stays secret ------------------------------------------------------------------------------------

SECRETS = {
    name: f"canary-{hashlib.sha256(name.encode()).hexdigest()[:24]}"
    for name in (
        *("MY_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "HF_TOKEN", "OPENAI_API_KEY", "DATABASE_URL"),
        *("SSH_PRIVATE_KEY", "PGPASSWORD", "http_proxy_password", "SLURM_JWT", "HYDRA_SECRET", "LOCALLEARN_SECRET"),
    )
}


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)


def leaks(folder: Path, *more: str) -> list[str]:
    """Where one of the secrets stands."""
    found = [str(path) for path in folder.rglob("*") if path.is_file() and _names_one(path.read_bytes())]
    return found + [text[:100] for text in more if _names_one(text.encode())]


def _names_one(content: bytes) -> bool:
    return any(value.encode() in content for value in SECRETS.values())


@pytest.mark.slow
@pytest.mark.fault("F23")
def test_no_secret_in_what_runs_and_sweeps_leave(secret, elsewhere, tmp_path, capsys, monkeypatch):
    from locallearn.strategies.greedy import DGL

    many = run("-m", *SETTINGS, "seed=1,2", capsys=capsys)
    monkeypatch.setattr(DGL, "loss", lambda *_: os.environ["NOT_THERE"])
    failing = run(*SETTINGS, capsys=capsys)
    assert [many[0], failing[0]] == [0, 1]
    assert "NOT_THERE" in next(tmp_path.glob("runs/*/log.txt")).read_text()
    assert list(tmp_path.glob("runs/.*/*.jsonl")), "the sweep has a journal"
    assert leaks(tmp_path, *map(str, (*many, *failing))) == []


@pytest.mark.slow
@pytest.mark.fault("F23")
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_no_secret_at_wandb(mode, secret, elsewhere, tmp_path, capsys, monkeypatch):
    """The key is for the head of a request, and for nothing else."""
    import threading

    from helpers.wandb import KEY, Server

    for key in [key for key in os.environ if key.startswith("WANDB_")]:
        monkeypatch.delenv(key)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    server = Server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    said = run(*SETTINGS, "record=wandb", f"record.wandb.mode={mode}", capsys=capsys)
    server.shutdown()
    server.server_close()
    assert said[0] == 0
    assert bool(server.requests) == (mode == "online")
    assert list(tmp_path.glob("runs/*/wandb/*run-*"))
    assert leaks(tmp_path, *map(str, said), *map(str, server.requests)) == []
    texts = [path.read_bytes() for path in tmp_path.glob("runs/**/*") if path.is_file()]
    assert not any(KEY.encode() in text for text in texts)
    assert KEY not in str(server.requests)


@pytest.mark.slow
@pytest.mark.fault("F23")
def test_no_secret_in_what_a_pipeline_leaves(secret, elsewhere, tmp_path, capsys):
    said = run(*SETTINGS, "runtime=pipeline", "runtime.stages=2", capsys=capsys)
    assert said[0] == 0
    assert leaks(tmp_path, *map(str, said)) == []


SPELLINGS = [
    "${oc.env:MY_TOKEN}",
    "${ oc.env:MY_TOKEN}",
    "${oc.env :MY_TOKEN}",
    "${oc.env: MY_TOKEN}",
    "${oc.${balance_}:MY_TOKEN}",
    "${${name_}:MY_TOKEN}",
    "x${oc.decode:${oc.env:MY_TOKEN}}",
    "${oc.select:no_such_key,${oc.env:MY_TOKEN}}",
    "${oc.env:NO_SUCH,${oc.env:MY_TOKEN}}",
    "${record.other_}",
]


@pytest.mark.fault("F23")
@pytest.mark.parametrize("text", [SPELLINGS[1], *map(slow, (SPELLINGS[0], *SPELLINGS[2:]))])
@pytest.mark.parametrize("place", ["project", "tags"])
def test_no_variable_reaches_a_logged_field_by_any_spelling(place, text, secret, elsewhere, tmp_path, capsys):
    """In a yaml of the user's own, as a value and inside a list."""
    (tmp_path / "conf/record").mkdir(parents=True)
    value = [text] if place == "tags" else text
    record = {"wandb": {"mode": "disabled", place: value}, "other_": "${oc.env:MY_TOKEN}"}
    top = {"balance_": "env", "name_": "oc.env", "record": record}
    (tmp_path / "conf/experiment").mkdir()
    (tmp_path / "conf/experiment/mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(top))
    said = run("--config-dir", "conf", "+experiment=mine", *SETTINGS, "out=out", capsys=capsys)
    assert said[0] == 2
    assert "environment variables would be written to the run folder" in said[2]
    assert said[2].count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert leaks(tmp_path, *map(str, said)) == []


@pytest.mark.fault("F23")
def test_folders_may_come_from_the_environment(monkeypatch, tmp_path):
    """And Hydra's own resolver is back afterwards."""
    from omegaconf import OmegaConf

    monkeypatch.setenv("PLACE", str(tmp_path))
    config, _ = locallearn.config.compose.compose(["out=${oc.env:PLACE}/runs", "data.root=${oc.env:PLACE}"])
    assert config["out"] == f"{tmp_path}/runs"
    assert config["data"]["root"] == str(tmp_path)
    assert OmegaConf.create({"a": "${oc.env:PLACE}"}).a == str(tmp_path)
