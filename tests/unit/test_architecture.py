"""Who may import whom, and how long files may get: read from the syntax trees, so that no import can hide."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOT = REPOSITORY / "src" / "locallearn"
ROW = re.compile(r"^\| (\d+) \| `(\w+)` \| [^|]+ \| ([\w, ]*)\| ([\w, ]*)\|$", re.MULTILINE)
"""A row of the table of rooms in CONTRIBUTING.md: floor, room, what it may import beside it, what it never may."""
ROOMS = {
    room: (int(floor), set(re.findall(r"\w+", beside)), set(re.findall(r"\w+", never)))
    for floor, room, beside, never in ROW.findall((REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8"))
}
KNOW_HYDRA = {"cli/main.py", "config/compose.py", "config/explain.py"}
FILES = sorted(ROOT.rglob("*.py"))
WITHOUT_TORCH = [
    *(
        "errors.py",
        "paths.py",
        "options.py",
        "stored.py",
        "plan/options.py",
        "studies/options.py",
        "training/stopping.py",
    ),
    *(f"config/{name}.py" for name in ("compose", "explain", "outside", "record", "registry", "settings")),
    "figures/text.py",
    *(str(path.relative_to(ROOT)) for room in ("cli", "report", "runs") for path in (ROOT / room).glob("*.py")),
]
WITHOUT_TORCH = [name for name in WITHOUT_TORCH if name not in ("runs/checkpoint.py", "runs/snapshot.py")]  # tensors


HANDOVER = ROOT / "training" / "handover.py"
"""To processes that this one starts, and through no file that has a name."""


def part(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide where they lead"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_room_is_in_the_table():
    assert {part(path) for path in FILES} == ROOMS.keys()
    floors = [floor for floor, *_ in ROOMS.values()]
    assert floors == sorted(floors)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_from_below(path):
    names = imported(ast.parse(path.read_text()))
    room = part(path)
    floor, beside, never = ROOMS[room]
    below = {name for name, (lower, *_) in ROOMS.items() if lower < floor} | beside
    others = {n.split(".")[1] for n in names if n.startswith("locallearn.")} - {room, "__version__"}
    assert others <= below - never, f"{path} must not import {others - (below - never)}"
    if any(n.split(".")[0] in ("hydra", "omegaconf") for n in names):
        assert str(path.relative_to(ROOT)) in KNOW_HYDRA, f"{path} knows Hydra"


def test_no_module_imports_itself_by_way_of_others():
    modules = {".".join(("locallearn", *path.relative_to(ROOT).with_suffix("").parts)) for path in FILES}
    arrows: dict[str, set[str]] = {}
    for path in FILES:
        module = ".".join(("locallearn", *path.relative_to(ROOT).with_suffix("").parts))
        names = imported(ast.parse(path.read_text()))
        arrows[module] = {n if n in modules else n.rpartition(".")[0] for n in names} & modules
    while ends := {module for module, to in arrows.items() if not to & set(arrows)}:
        arrows = {module: to for module, to in arrows.items() if module not in ends}
    assert not arrows, f"these import each other in a circle, or one of a circle: {sorted(arrows)}"


@pytest.mark.parametrize("name", WITHOUT_TORCH)
def test_no_torch_at_import(name):
    tree = ast.parse((ROOT / name).read_text())
    top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    heavy = {"torch", "torchvision", "sklearn", "wandb", "numpy", "hydra", "omegaconf"}
    assert not {n.split(".")[0] for n in imported(top)} & heavy


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 295, f"{path} is {text.count(chr(10))} lines long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is too long"


def test_a_class_name_has_one_meaning():
    where: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert not {name: paths for name, paths in where.items() if len(paths) > 1}


def test_no_pickle_and_no_eval():
    for path in FILES:
        names = imported(ast.parse(path.read_text()))
        pickles = {n.split(".")[0] for n in names} & {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
        assert pickles == ({"cloudpickle"} if path == HANDOVER else set()), path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path


def test_the_three_walks_are_short_and_lead_through_functions_that_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line for line in text.partition("## Three walks")[2].partition("\n## ")[0].splitlines() if ".py`" in line]
    walks = [re.findall(r"`([\w/]+\.py)`(?: \(([^)]*)\))?", row) for row in rows]
    assert all(len(walk) <= most for walk, most in zip(walks, (8, 6, 8), strict=True))
    for file, functions in (step for walk in walks for step in walk if "NAME" not in step[0]):
        nodes = ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8")))
        defined = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        assert {name.rpartition(".")[2] for name in re.findall(r"`([\w.]+)`", functions)} <= defined, file


def test_one_file_knows_a_device_by_name():
    """Everybody else asks whether something is the CPU, so that another kind of device goes the way of a GPU."""
    for path in FILES:
        if path.name == "accelerator.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            name = node.value if isinstance(node, ast.Constant) else getattr(node, "attr", None)
            assert name not in ("cuda", "is_cuda", "mps", "xpu"), f"{path}:{node.lineno}: ask locallearn.accelerator"
