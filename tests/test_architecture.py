"""Who may import whom, and how long files may get: read from the syntax trees, so that no import can hide."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "locallearn"
FOUNDATION = {"errors", "paths", "seeds", "coupling", "quiet", "stored", "fitted"}
MAY_IMPORT = {
    "errors": set(),
    "seeds": set(),
    "coupling": {"quiet"},
    "quiet": set(),
    "stored": set(),
    "contract": set(),
    "stopping": set(),
    "paths": {"errors"},
    "again": set(),
    "fitted": set(),
    "options": {"errors"},
    "models": FOUNDATION,
    "auxiliary": FOUNDATION,
    "data": FOUNDATION,
    "objectives": FOUNDATION | {"contract", "auxiliary"},
    "strategies": FOUNDATION | {"contract", "auxiliary", "objectives"},
    "engine": FOUNDATION | {"contract", "models"},
    "figures": {"errors"},
    "report": {"errors", "figures", "fitted", "compose", "config", "stored", "again", "arguments", "paths"},
    "analysis": FOUNDATION | {"figures"},
    "probes": FOUNDATION | {"contract", "analysis", "data", "engine", "figures", "models"},
    "config": FOUNDATION
    | {"contract", "auxiliary", "objectives", "data", "engine", "models", "probes", "runtime", "training"},
    "runtime": FOUNDATION | {"contract", "engine", "models", "options"},
    "training": FOUNDATION
    | {"analysis", "contract", "config", "data", "engine", "models", "probes", "runtime", "stopping", "figures"}
    | {"again", "options"},
    "explain": {"errors", "config"},
    "compose": {"errors", "config", "explain", "paths"},
    "outside": {"errors"},
    "arguments": {"errors", "compose", "fitted", "paths"},
    "completion": {"errors", "arguments", "commands", "on_runs", "config"},
    "listing": {"errors", "compose", "config", "fitted"},
    "tune": {"errors", "again", "compose", "config", "options", "training"},
    "on_runs": {"errors", "arguments", "fitted", "compose", "outside", "paths", "report", "training"} | {"stopping"},
    "commands": {"errors", "compose", "config", "runtime", "training", "tune", "data", "stopping"}
    | {"arguments", "listing", "on_runs", "options", "outside"},
    "cli": {"errors", "commands", "compose", "config", "listing", "outside", "training", "stopping", "report"}
    | {"again", "arguments", "completion", "paths"},
    "api": {"errors", "paths", "seeds", "compose", "config", "engine", "models", "training"},
    "__main__": {"cli"},
    "__init__": {"analysis", "api", "models"},
}
KNOW_HYDRA = {"cli", "compose", "explain"}
NO_TORCH_AT_IMPORT = [
    "cli.py",
    "commands.py",
    "compose.py",
    "listing.py",
    "errors.py",
    "on_runs.py",
    "again.py",
    "arguments.py",
    "completion.py",
    "explain.py",
    "fitted.py",
    "options.py",
    "paths.py",
    "config/registry.py",
    "stopping.py",
    "stored.py",
    "config/settings.py",
]
NO_TORCH_AT_IMPORT += [f"report/{path.name}" for path in (ROOT / "report").glob("*.py")]
FILES = sorted(ROOT.rglob("*.py"))


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


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    names = imported(ast.parse(path.read_text()))
    own = {n.split(".")[1] for n in names if n.startswith("locallearn.")} - {part(path), "__version__"}
    assert own <= MAY_IMPORT[part(path)], f"{path} must not import {own - MAY_IMPORT[part(path)]}"
    if any(n.split(".")[0] in ("hydra", "omegaconf") for n in names):
        assert part(path) in KNOW_HYDRA, f"{path} knows Hydra"


@pytest.mark.parametrize("name", NO_TORCH_AT_IMPORT)
def test_no_torch_at_import(name):
    tree = ast.parse((ROOT / name).read_text())
    top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
    heavy = {"torch", "torchvision", "sklearn", "wandb", "numpy", "hydra", "omegaconf"}
    assert not {n.split(".")[0] for n in imported(top)} & heavy


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_readable(path):
    text = path.read_text()
    assert text.count("\n") <= 290, f"{path} is {text.count(chr(10))} lines long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name} is too long"


def test_no_pickle_and_no_eval():
    for path in FILES:
        names = imported(ast.parse(path.read_text()))
        assert not {n.split(".")[0] for n in names} & {"pickle", "dill", "cloudpickle", "marshal", "shelve"}, path
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
