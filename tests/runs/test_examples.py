"""What is in examples/ runs from beginning to end; the notebooks were saved with what they print."""

from __future__ import annotations

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parents[2] / "examples"
EXAMPLES = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("epochs=8", "epochs=1")  # the same cells in less time
    client = NotebookClient(notebook, timeout=250, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    assert (tmp_path / "runs").is_dir()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_found(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs or cell is cells[0] for cell in cells)
    assert not any(output.output_type in ("error", "stream") and output.get("name") != "stdout"
                   for cell in cells for output in cell.outputs)  # fmt: skip


def code_of(path: Path) -> str:
    """A script, or the code of a notebook with `pass` for the lines that are for IPython or a shell."""
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return re.sub(
        r"^( *)[%!].*", r"\1pass", "\n".join(cell.source for cell in cells if cell.cell_type == "code"), flags=re.M
    )


@pytest.mark.parametrize("path", [*EXAMPLES, *sorted(FOLDER.glob("*.py"))], ids=lambda path: path.name)
def test_names_of_the_package_in_an_example_exist(path):
    tree, known = ast.parse(code_of(path)), {}
    for node in ast.walk(tree):
        names = node.names if isinstance(node, ast.Import | ast.ImportFrom) else []
        origin = getattr(node, "module", None) or ""
        for name in names:
            if (origin or name.name).partition(".")[0] == "locallearn":
                module = importlib.import_module(origin or name.name)
                if origin and not hasattr(module, name.name):
                    importlib.import_module(f"{origin}.{name.name}")
                known[name.asname or name.name] = getattr(module, name.name) if origin else module
    assert known
    used = [node for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)]
    for node in used:
        if isinstance(module := known.get(node.value.id), ModuleType):
            assert hasattr(module, node.attr), f"{module.__name__} has no {node.attr}"


@pytest.mark.slow
def test_the_three_stages_of_simclrv2(real_root, tmp_path):
    """With a twentieth of MNIST: each stage says what it has reached, and pretraining is worth something."""
    script = Path(__file__).resolve().parents[2] / "examples" / "simclrv2.py"
    command = [sys.executable, script, "--data", real_root, "--quick", "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    found = {title: float(number) for title, number in re.findall(r"^(\S.*?) +(0\.\d+) +[\d.]+ s$", done.stdout, re.M)}
    assert list(found) == [
        "100 labels alone",
        "pretrained, and its head on top",
        "pretrained, a linear classifier on top",
        "fine-tuned",
        "distilled",
    ]
    assert min(found["100 labels alone"], found["fine-tuned"]) > 0.6


@pytest.mark.slow
def test_a_script_brings_its_own_objects_into_a_pipeline(tmp_path):
    """From classes of the script itself, which no process can import; and no folder holds what was handed over."""
    command = [sys.executable, str(FOLDER / "own_objects.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1].split()
    assert last[:2] == ["test", "accuracy"]
    assert float(last[-3]) > 0.7
    (run,) = (tmp_path / "runs/own").iterdir()
    assert {path.suffix for path in run.rglob("*") if path.is_file()} <= {
        ".json",
        ".jsonl",
        ".yaml",
        ".safetensors",
        "",
    }
    config = (run / "config.yaml").read_text()
    assert all(f"_object_: __main__.{name}" in config for name in ("Net", "Digits", "Sparse", "Largest"))
