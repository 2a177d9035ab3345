"""The documentation is run: commands, code and files of its pages; links; whether generated pages are up to date."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from locallearn import cli
from locallearn.commands import COMMANDS
from locallearn.compose import choices, compose, header

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
STORIES = [
    "getting-started",
    "own-model",
    "own-data",
    "own-strategy",
    "how-results-are-measured",
    "analysis",
    "parallel",
]
PAGES = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in STORIES)]
STRATEGIES = choices("strategy")
ORDER = [
    "What it is",
    "Paper",
    "Equation",
    "The last block",
    "Command",
    "Options",
    "What is logged",
    "Differences from the paper",
    "Results",
]
NEEDS_NO_FILES = {"digits", "synthetic", "folder"}


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """The fenced blocks of a page: language and content."""
    for match in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield match[1], match[2]


def lines(text: str) -> Iterator[list[str]]:
    """The words of each line of a block, without comments; continued lines are one."""
    for line in text.replace("\\\n", " ").splitlines():
        yield shlex.split(line, comments=True)


def command_of(words: list[str]) -> list[str]:
    """What follows `python -m locallearn` or `locallearn`; nothing for other lines."""
    starts = (["python", "-m", "locallearn"], ["locallearn"])
    return next((words[len(start) :] for start in starts if words[: len(start)] == start), [])


def commands(text: str) -> list[list[str]]:
    return [command for words in lines(text) if (command := command_of(words))]


def run_in_a_process(words: list[str]) -> bool:
    """Run a line of another program: torchrun on one machine, a script on runs that are there."""
    if words[:1] == ["torchrun"] and not any(word.startswith("--nnodes") for word in words):
        command = [sys.executable, "-m", "torch.distributed.run", *words[1:], "max_steps=2", "threads=1"]
    elif words[:2] == ["python", "scripts/picture.py"]:
        Path(words[3]).parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(ROOT / words[1]), *words[2:]]
    else:
        return False
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    return True


def run(words: list[str], request: pytest.FixtureRequest) -> None:
    """Run one command in the current folder: a run with two steps, a sweep or a run on real data with --dry-run."""
    for k, word in enumerate(words):
        if match := re.fullmatch(r"(runs.*)/RUN(\d?)", word):
            newest = sorted(Path(match[1]).glob("*/summary.json"), key=lambda p: p.stat().st_mtime, reverse=True)
            words[k] = str(newest[int(match[2] or 1) - 1].parent)
    words = [word.replace("=DIR", f"={Path('images').resolve()}") for word in words]
    if not words[0].startswith("-") and words[0] in COMMANDS:
        if words[0] == "tune":
            words = [*(word for word in words if not word.startswith("trials")), "trials=2", "max_steps=2", "threads=1"]
        assert cli.main(words) == 0, words
        return
    if "--dry-run" in words or "--help" in words:
        shown = True
    else:
        plain = [w for w in words if "=" in w and not re.search(r"=[^\[{]*,", w)]
        whole = {key for key, _, _ in (w.partition("=") for w in plain)}
        data = "digits" if "--config-dir" in words else compose(plain)[1]["data"]
        shown = ("-m" in words and "out" not in whole) or data not in NEEDS_NO_FILES
        if data not in NEEDS_NO_FILES:
            request.getfixturevalue("files")
        few = [k for k in ("max_steps=2", "threads=1", "evaluate_every=99") if k.partition("=")[0] not in whole]
        words = [*words, "--dry-run"] if shown else [*words, *few]
    assert cli.main(words) == 0, words


@pytest.fixture
def files(request, monkeypatch) -> None:
    monkeypatch.setenv("LOCALLEARN_DATA", str(request.getfixturevalue("real_root")))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with a few images of two classes in images/."""
    import torch
    from torchvision.io import write_png

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    before = set(sys.modules)
    g = torch.Generator().manual_seed(0)
    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for k in range(20):
            image = torch.randint(256, (3, 40, 40), generator=g, dtype=torch.uint8)
            write_png(image, str(tmp_path / "images" / label / f"{k}.png"))
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def yours() -> dict[str, object]:
    """What the Python of the pages takes from its reader."""
    import torch
    from torch import nn

    g = torch.Generator().manual_seed(0)
    images, labels = torch.randn(64, 3, 32, 32, generator=g), torch.arange(64) % 10
    units = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (3, 4, 4, 4)]
    small = nn.Sequential()
    for name, part in {"conv1": nn.Conv2d(3, 4, 3), "flat": nn.Flatten(), "fc1": nn.Linear(3600, 10)}.items():
        small.add_module(name, part)
    return {
        "my_module": nn.Sequential(*units, nn.Sequential(nn.Flatten(), nn.Linear(4096, 10))),
        "my_loader": [(images, labels)] * 2,
        "model": small,
        "train_one_epoch": lambda model: None,
        "images": images,
        "labels": labels,
        "t": torch.randn(512, 2, generator=g),
        "y": torch.arange(512) % 2,
    }


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_what_a_page_says_works(page, here, request, capsys):
    """Every block in order, in one folder: files are written, Python is executed, commands are run."""
    space: dict[str, object] = yours()
    ran = 0
    for language, text in blocks(page.read_text()):
        if file := re.match(r"# ([\w/]+\.(py|yaml))\b.*\n", text):
            path = here / file[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.partition("\n")[2] if file[2] == "yaml" else text)
        elif language == "python":
            exec(compile(text, page.name, "exec"), space)
            ran += 1
        else:
            for words in lines(text):
                if command := command_of(words):
                    run(command, request)
                    ran += 1
                else:
                    ran += run_in_a_process(words)
    assert ran
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_commands_of_a_strategys_page(name, here, request, capsys):
    found = [words for _, text in blocks((DOCS / "strategies" / f"{name}.md").read_text()) for words in commands(text)]
    assert found
    for words in found:
        run(words, request)
    capsys.readouterr()


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("strategy_pages", ROOT / "scripts" / "strategy_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_its_page_up_to_date(name, pages):
    """All but "What is logged", for which the next test trains."""
    text = (DOCS / "strategies" / f"{name}.md").read_text()
    found = pages.sections(text)
    assert list(found) == ORDER
    facts = header(STRATEGIES[name])
    assert found["What it is"].startswith(facts["summary"])
    assert found["Paper"] == f"{facts['paper']}."
    assert found["Options"] == pages.options(name)
    assert found["Results"] == pages.results(name)
    assert "TO BE WRITTEN" not in text
    for section in ("Equation", "Differences from the paper"):
        assert len(found[section]) > 60, f"{name}.md: {section} is written by hand"


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_page_says_what_is_logged(name, pages):
    assert pages.page(name) == (DOCS / "strategies" / f"{name}.md").read_text()


def test_the_index_is_up_to_date(pages):
    assert (DOCS / "strategies" / "README.md").read_text() == pages.index()


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "path",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_links_lead_somewhere(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"(https?|mailto):", target):
            continue
        file, _, anchor = target.partition("#")
        aim = (path.parent / file).resolve() if file else path
        assert aim.exists(), f"{path.name} links to {target}, which is not there"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", aim.read_text(), re.MULTILINE)
            assert anchor in map(_anchor, titles), f"{path.name} links to {target}: no such title"


def test_what_the_pages_name_exists():
    """Options as `group.option` and commands as `locallearn WORD`, in all pages that are written by hand."""
    known = set(COMMANDS)
    for page in PAGES:
        text = page.read_text()
        for word in re.findall(r"^locallearn (\w+)", text, re.MULTILINE) + re.findall(r"`locallearn (\w+)", text):
            assert word in known, f"{page.name} names locallearn {word}"
