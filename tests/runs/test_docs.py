"""The documentation is run, in an empty folder, the first pages with an installed wheel: commands, code and files. Its
links lead somewhere, and its generated pages are up to date."""

from __future__ import annotations

import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

import locallearn
from helpers import scenes
from helpers.commands import Done, Installed
from locallearn.cli import main as cli
from locallearn.cli.commands import COMMANDS
from locallearn.config.compose import choices, compose, header

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PROGRAMS = (["python", "-m", "locallearn"], ["locallearn"])
STRATEGIES = choices("strategy")
ORDER = [
    "What it is",
    "Paper",
    "Equation",
    "The last block",
    "Command",
    "Options",
    "What is logged",
    "Cost",
    "Differences from the paper",
    "Verified",
    "Results",
]
NEEDS_NO_FILES = {"digits", "synthetic", "folder", "voc"}
NOT_RUN = {"make", "pip", "."}
"""Programs of a checkout, or that install something."""
SHORT = ("max_steps=2", "threads=1", "evaluate_every=99", "batch_size=16")
SHORTER = {"strategy=equilibrium": ("strategy.free=2", "strategy.nudged=2"), "data=voc": ("batch_size=4",)}
"""What takes long, at their defaults."""


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
    return next((words[len(program) :] for program in PROGRAMS if words[: len(program)] == program), [])


def typed(text: str) -> list[list[str]]:
    """The lines of a page that start this project, as words: those of its blocks, and indented ones."""
    code = [block for language, block in blocks(text) if not language]
    code += re.findall(r"^    (\S.*)", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    found = re.findall(r"^(?:python -m )?locallearn .*", "\n".join(code).replace("\\\n", " "), re.MULTILINE)
    return [words for line in found for words in lines(line)]


FIRST = [ROOT / "README.md", DOCS / "getting-started.md"]
FIRST += [DOCS / f"own-{what}.md" for what in ("model", "strategy", "objective", "probe", "callback", "sink", "task")]
"""What a user reads first, and what brings files of their own."""
PAGES = [page for page in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))) if typed(page.read_text())]


class ThisProcess:
    """A machine on which locallearn has been imported already: what starts it as a program runs here."""

    def run(self, *command: str, terminal: bool = False, **variables: str) -> Done:
        if not (words := command_of(list(command))):
            done = subprocess.run([sys.executable, *command[1:]], capture_output=True, text=True, check=False)
            return Done(done.returncode, done.stdout, done.stderr)
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name, value in variables.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", list(command))
            code = cli.main(words)
        return Done(code, out.getvalue(), err.getvalue())


@dataclass
class Reader:
    """Who types what a page says, in an empty folder: runs with two steps, sweeps and runs on real data with
    --dry-run."""

    machine: Installed | ThisProcess
    data: Callable[[], Path]
    terminal: bool = False

    def type(self, words: list[str]) -> None:
        """Run one line as it stands on the page, but for its length."""
        command = self.shortened(words)
        if not command:
            return
        root = {"LOCALLEARN_DATA": str(self.data())} if self.reads_files(command_of(words)) else {}
        done = self.machine.run(*command, terminal=self.terminal, **root)
        assert done.code == 0, f"{shlex.join(command)}\n{done.out}\n{done.err}"
        assert "Traceback" not in done.out + done.err

    def shortened(self, words: list[str]) -> list[str]:
        """The line as it is run here; nothing for what no test can run, and for the rows of a study, which test_studies
        runs."""
        if "ROW" in words:
            return []
        if command := command_of(words):
            return [*words[: -len(command)], *self.short(self.filled(command))]
        if words[:1] == ["torchrun"] and not any(word.startswith("--nnodes") for word in words):
            return ["python", "-m", "torch.distributed.run", *words[1:], *SHORT[:2]]
        if words[:2] == ["python", "scripts/picture.py"]:
            Path(words[3]).parent.mkdir(parents=True, exist_ok=True)
            return ["python", str(ROOT / words[1]), *words[2:]]
        known = not words or words[0] in NOT_RUN or words[0] == "torchrun"
        assert known, f"a page says {shlex.join(words)}: run it here, or say why not"
        return []

    def filled(self, words: list[str]) -> list[str]:
        """With what the reader puts in: a run for RUN, a folder of images for DIR."""
        folder = Path("boxes" if "data=voc" in words else "images").resolve()
        words = [word.replace("=DIR", f"={folder}") for word in words if word != "data.root=DATA"]
        for k, word in enumerate(words):
            if match := re.fullmatch(r"([\w.]+=)?(runs.*)/RUN(\d?)", word):
                words[k] = (match[1] or "") + str(self.runs(match[2], int(match[3] or 1))[-1])
            if word == "model.weights=resnet18.pth":
                import torch
                from torchvision.models import resnet18

                torch.save(resnet18().state_dict(), "resnet18.pth")
        return words

    def runs(self, folder: str, count: int) -> list[Path]:
        """The newest runs that the reader has in a folder. Who reads of a run without being told of one has one."""
        while True:
            found = sorted(Path(folder).glob("*/summary.json"), key=lambda p: p.stat().st_mtime, reverse=True)
            if len(found) >= count:
                return [path.parent for path in found[:count]]
            self.type(["locallearn", "strategy=dgl", "model=lenet", f"out={folder}"])

    def short(self, words: list[str]) -> list[str]:
        if words[0] == "study" and "--config-dir" not in words:  # its runs take hours
            return ["list", *words[:2]]
        if words[0] == "leaderboard" or "--result" in words:  # of a study's results
            return [words[0], "--help"]
        if words[0] == "sample":  # from a run on a set of files, which is only tried with --dry-run
            return ["sample", "--help"]
        if words[0] == "tasks":
            return [word.replace("steps=2000", "steps=2") for word in words]
        if words[0] == "tune":
            return [*(word for word in words if not word.startswith("trials")), "trials=2", *SHORT[:2]]
        if words[0] == "resume":  # a run that was cut short for this test has no more epochs
            return [word for word in words if not word.startswith("epochs=")]
        if words[0] in COMMANDS or {"--dry-run", "--help"} & set(words):
            return words
        given = {word.partition("=")[0] for word in words if "=" in word}
        if ("-m" in words and "out" not in given) or self.reads_files(words):
            return [*words, "--dry-run"]
        short = [*SHORT, *(word for key, own in SHORTER.items() if key in words for word in own)]
        return [*words, *(word for word in short if word.partition("=")[0] not in given)]

    def reads_files(self, words: list[str]) -> bool:
        """Whether a run needs a set that is neither embedded nor the reader's own."""
        if not words or words[0] in COMMANDS or "--config-dir" in words or "--help" in words:
            return False
        plain = [
            word for word in words if re.fullmatch(r"\+?[\w.]+=([^,]*|[\[{].*)", word) and word != "data.root=DATA"
        ]
        return compose(plain, one_run=False)[1]["data"] not in NEEDS_NO_FILES


@pytest.fixture
def reader(installed: Installed, request: pytest.FixtureRequest) -> Reader:
    """A user of the wheel."""
    return Reader(installed, lambda: request.getfixturevalue("real_root"))


@pytest.fixture
def quick_reader(request: pytest.FixtureRequest) -> Reader:
    return Reader(ThisProcess(), lambda: request.getfixturevalue("real_root"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with a few images of two classes in images/, and of boxes in boxes/."""
    import torch
    from torchvision.io import write_png

    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    for label in ("cats", "dogs"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for k in range(20):
            image = torch.randint(256, (3, 40, 40), generator=g, dtype=torch.uint8)
            write_png(image, str(tmp_path / "images" / label / f"{k}.png"))
    scenes.folder(tmp_path / "boxes", (8, 4, 4))
    return tmp_path


YOURS = """
# what the Python of the pages takes from its reader
import torch
from torch import nn

g = torch.Generator().manual_seed(0)
images, labels = torch.randn(64, 3, 32, 32, generator=g), torch.arange(64) % 10
units = [nn.Sequential(nn.Conv2d(c, 4, 3, padding=1), nn.ReLU()) for c in (3, 4, 4, 4)]
my_module = nn.Sequential(*units, nn.Sequential(nn.Flatten(), nn.Linear(4096, 10)))
my_loader = [(images, labels)] * 2
my_dataset = list(zip(images, labels, strict=True))
model = nn.Sequential()
for name, part in {"conv1": nn.Conv2d(3, 4, 3), "flat": nn.Flatten(), "fc1": nn.Linear(3600, 10)}.items():
    model.add_module(name, part)
train_one_epoch = lambda model: None
t, y = torch.randn(512, 2, generator=g), torch.arange(512) % 2
"""


def read_aloud(page: Path, reader: Reader) -> int:
    """Do what a page says, in its order: write its files, type its lines, and at the end run its Python, as one
    program. Returns how much there was to run."""
    program, ran = [YOURS], 0
    for language, text in blocks(page.read_text()):
        if file := re.match(r"# ([\w/]+\.(py|yaml))\b.*\n", text):
            path = Path(file[1])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text.partition("\n")[2] if file[2] == "yaml" else text)
        elif language == "python":
            program.append(text)
        elif language == "" and typed(f"```\n{text}```"):
            for words in lines(text):
                reader.type(words)
                ran += bool(command_of(words))
    for words in typed(re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)):
        reader.type(words)
        ran += 1
    if len(program) > 1:
        Path("program.py").write_text("\n".join(program))
        done = reader.machine.run("python", "program.py")
        assert done.code == 0, done.err
    return ran


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", [page for page in PAGES if page not in FIRST], ids=lambda p: p.stem)
def test_what_a_page_says_works(page, here, quick_reader):
    assert read_aloud(page, quick_reader)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", FIRST, ids=lambda p: p.stem)
def test_what_the_first_pages_say_works_with_the_wheel_and_on_a_terminal(page, here, reader):
    reader.terminal = True
    assert read_aloud(page, reader)


def test_the_first_run_of_the_readme(here, reader):
    """What a new user types first; the rest of the README is a slow test's."""
    start = (ROOT / "README.md").read_text().partition("\n## Start\n")[2]
    reader.type(typed(start)[0])
    assert Path("runs").exists()


@pytest.mark.slow
def test_the_first_result_looks_right(here, reader):
    """The first run of getting-started, exactly as it is printed."""
    first = typed((DOCS / "getting-started.md").read_text())[0]
    done = reader.machine.run(*first)
    assert done.code == 0, done.err
    summary = json.loads(Path(done.out.splitlines()[-1], "summary.json").read_text())
    assert summary["test/accuracy"] >= 0.95


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_commands_of_a_strategys_page(name, here, quick_reader):
    """All but those of its results, which are rows of the study of all families and run as such."""
    found = typed((DOCS / "strategies" / f"{name}.md").read_text().partition("\n## Results\n")[0])
    assert found
    for words in found:
        quick_reader.type(words)


@pytest.fixture(scope="module")
def pages():
    spec = importlib.util.spec_from_file_location("strategy_pages", ROOT / "scripts" / "strategy_pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_has_its_page_up_to_date(name, pages):
    """All but "What is logged" and "Cost", for which the next test trains."""
    text = (DOCS / "strategies" / f"{name}.md").read_text()
    found = pages.sections(text)
    assert list(found) == ORDER
    facts = header(STRATEGIES[name])
    assert found["What it is"].startswith(facts["summary"])
    assert found["Paper"] == f"{facts['paper']}."
    assert found["Options"] == pages.options(name)
    assert found["Results"] == pages.results(name)
    assert found["Verified"] == pages.verified(name)
    assert "TO BE WRITTEN" not in text
    for section in ("Equation", "Differences from the paper"):
        assert len(found[section]) > 60, f"{name}.md: {section} is written by hand"


def test_every_strategy_has_a_check_that_is_not_its_own_code():
    """Each names a test that is there, in a file that imports or names the strategy."""
    checks = yaml.safe_load((DOCS / "strategies" / "checks.yaml").read_text())
    assert checks.keys() == STRATEGIES.keys()
    for name, own in checks.items():
        kind = yaml.safe_load(STRATEGIES[name].read_text())["_target_"].rpartition(".")[2]
        assert own, name
        for check in own:
            file, _, test = check.partition("::")
            text = (ROOT / "tests" / file).read_text()
            assert f"def {test}(" in text, check
            assert re.search(rf"\b({name}|{kind})\b", text) or file.startswith("parity/"), f"{check} is not of {name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", STRATEGIES)
def test_a_page_says_what_is_logged(name, pages):
    assert pages.page(name) == (DOCS / "strategies" / f"{name}.md").read_text()


def test_the_page_of_deep_linear_nets_is_what_its_numbers_say():
    spec = importlib.util.spec_from_file_location("deep_linear", ROOT / "scripts" / "deep_linear.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    numbers = json.loads((DOCS / "images" / "deep_linear.json").read_text())
    assert (DOCS / "deep-linear.md").read_text() == "\n".join(script.page(numbers)) + "\n"


@pytest.mark.slow
def test_the_index_is_up_to_date(pages):
    assert (DOCS / "strategies" / "README.md").read_text() == pages.index()


def test_the_citation_has_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["dynamic"] == ["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (locallearn.__version__, project["license"])
    newest = re.search(r"^## (\S+?),? ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == locallearn.__version__


def _anchor(title: str) -> str:
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize(
    "path",
    [*sorted(ROOT.glob("*.md")), ROOT / "results" / "README.md", *sorted(DOCS.rglob("*.md"))],
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
    """Commands, as `locallearn WORD`, in all pages that are written by hand."""
    known = set(COMMANDS)
    for page in PAGES:
        text = page.read_text()
        for word in re.findall(r"(?:^|`)locallearn (\w+)(?![\w=])", text, re.MULTILINE):
            assert word in known, f"{page.name} names locallearn {word}"
