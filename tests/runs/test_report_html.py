"""The page of a report: what is in it, that no text of a run can do harm, and how it works in a real browser."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import shutil
import time
from pathlib import Path

import pytest
import yaml

from locallearn.report import grouped, read
from locallearn.report.html import page

STRATEGIES = ("backprop", "dgl", "dfa", "shallow")
PATIENCE = 250_000  # milliseconds; a busy machine is slow, and no test of the page is about that
HOSTILE = "</script></style><img src=x onerror=\"document.title='owned'\"><b>&amp;{{7*7}}"


def write_run(
    out: Path, strategy: str, seed: int, lr: float = 0.1, epochs: int = 5, state: str = "done", **more
) -> Path:
    """A run folder as a run leaves it, with numbers that grow in the order of STRATEGIES."""
    folder = out / more.get("name", f"strategy-{strategy}_optim.lr-{lr}_seed-{seed}")
    folder.mkdir(parents=True)
    config = {"strategy": {"_target_": f"mine.{strategy}"}, "optim": {"lr": lr}, "seed": seed, "epochs": epochs}
    rank = STRATEGIES.index(strategy) if strategy in STRATEGIES else 4
    top = 0.95 - 0.1 * rank + 0.01 * seed - 0.001 * lr
    history = []
    for epoch in range(1, epochs + 1):
        accuracy = top * (1 - math.exp(-epoch))
        record = {"epoch": epoch, "step": 10 * epoch, "train/loss": 1 / epoch, "test/accuracy": accuracy}
        record |= {f"block/{k:02d}/test_accuracy": accuracy * (k + 1) / 4 for k in range(4)}
        history.append(record | {"seconds": (1.0 + rank) * epoch, "peak_memory_bytes": 2**28 / (1 + rank)})
    choices = {"strategy": strategy, "model": "lenet", "data": "digits", "optim": "sgd"} | more.get("choices", {})
    files = {
        "config.yaml": yaml.safe_dump(config),
        "overrides.yaml": yaml.safe_dump([f"strategy={strategy}", f"seed={seed}", f"optim.lr={lr}", f"out={out}"]),
        "manifest.json": json.dumps({"choices": choices}),
        "status.json": json.dumps({"state": state, "reason": more.get("reason", "")}),
        "metrics.jsonl": "".join(json.dumps(record) + "\n" for record in history),
    }
    if state == "done":
        files["summary.json"] = json.dumps(history[-1] | {"parameters": 100, "auxiliary_parameters": 10 * rank})
    for name, text in files.items():
        (folder / name).write_text(text)
    for probe, rows in more.get("probes", {}).items():
        (folder / "probes" / probe).mkdir(parents=True)
        (folder / "probes" / probe / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def probes(seed: int) -> dict[str, list[dict[str, object]]]:
    looks = [(epoch, k) for epoch in (0, 1, 5) for k in range(3)]
    return {
        "alignment": [{"epoch": e, "block": k, "update_cosine": 0.1 * e + 0.1 * k + 0.01 * seed} for e, k in looks],
        "information_plane": [
            {
                "epoch": e,
                "layer": k,
                "name": f"fc{k}",
                "i_x_t": 8 - k - 0.2 * e,
                "i_t_y": 0.1 * e + 0.1 * k + 0.01 * seed,
            }
            for e, k in looks
        ],
    }


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Four strategies on three seeds, a failed run with a hostile reason, and a truncated one."""
    out = tmp_path_factory.mktemp("sweep")
    for strategy in STRATEGIES:
        for seed in range(3):
            write_run(out, strategy, seed, probes=probes(seed))
    write_run(out, "dgl", 3, state="failed", reason=HOSTILE)
    torn = write_run(out, "dgl", 4, state="interrupted") / "metrics.jsonl"
    torn.write_text(torn.read_text()[:-20])
    return out


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_a_page_says_what_the_study_says(sweep):
    found = grouped(read([sweep]))
    text = page(found)
    data = data_of(text)
    assert [group["label"] for group in data["groups"]] == [group.label for group in found.groups]
    curve = next(c for c in data["curves"] if c["key"] == "test/accuracy")
    for group, series in zip(found.groups, curve["values"], strict=True):
        number = group.numbers["test/accuracy"]
        assert series["x"] == [1, 2, 3, 4, 5]
        assert series["y"][-1] == pytest.approx(100 * number.mean, rel=1e-4)  # five digits, in percent
        assert series["s"][-1] == pytest.approx(100 * number.std, rel=1e-4)
    assert {p["title"] for p in data["probes"]} == {
        "Test accuracy by block",
        "Probe: alignment",
        "Probe: information plane",
    }
    blocks = data["probes"][0]["values"]["test accuracy"]
    backprop = found.groups[0].numbers
    assert blocks[0]["1"]["y"][-1] == pytest.approx(100 * backprop["block/01/test_accuracy"].mean, rel=1e-4)
    assert "python -m locallearn -m strategy=dgl optim.lr=0.1 seed=0,1,2" in text
    assert "ends in the middle of line 5" in text
    assert "1 failed" in text


@pytest.mark.fault("R7")
def test_the_page_fetches_nothing_and_runs_only_its_own_script(sweep):
    text = page(grouped(read([sweep])))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1].replace("&#39;", "'")
    assert policy.startswith("default-src 'none';")
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        content = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.S)[1]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}';" in policy
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest|innerHTML|\son\w+=\"", text)


@pytest.mark.fault("R7")
def test_text_of_a_run_stays_text(tmp_path):
    write_run(
        tmp_path,
        "dgl",
        0,
        name="a<b>&\"'",
        probes={"<i>": [{"epoch": 0, "block": 0, "</script>": 1.0}, {"epoch": 1, "block": 0, "</script>": 2.0}]},
        choices={"model": HOSTILE},
    )
    write_run(tmp_path, "dgl", 1, name="c\udcff", state="failed", reason=HOSTILE)
    text = page(grouped(read([tmp_path])))
    assert "<img" not in text
    assert text.count("</script>") == 2  # of the data and of the script
    assert "{{7*7}}" in text
    assert "&lt;/script&gt;" in text
    assert data_of(text)["probes"][1]["quantities"] == [["</script>", "< script>"]]
    text.encode()


@pytest.mark.fault("R7")
def test_no_file_of_a_run_reaches_the_page_as_markup(tmp_path):
    """Its name, keys and values of its configuration, classes, git fields, metrics, overrides and the W&B address."""
    folder = write_run(tmp_path, "dgl", 0, name="<script>alert(1)<")
    evil = "<img src=x onerror=alert(1)>"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, evil: evil, "data": {evil: [evil]}}))
    manifest = {"classes": [evil], "git": {"commit": evil}, "device": evil, "choices": {evil: evil}, "threads": evil}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "wandb.json").write_text(json.dumps({"url": "javascript:alert(1)", "path": evil}))
    (folder / "overrides.yaml").write_text(yaml.safe_dump([f"strategy={evil}"]))
    record = {"epoch": 1, evil: 0.5, "test/accuracy": 0.5}
    (folder / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "summary.json").write_text(json.dumps(record))
    text = page(grouped(read([tmp_path])))
    assert "&lt;img src=x" in text
    assert "<img" not in text
    assert "<script>alert" not in text
    assert "javascript:" not in text
    assert not re.search(r"(?:src|href)=\"(?!#|data:)", text)


def test_runs_without_numbers_and_runs_that_differ(tmp_path):
    write_run(tmp_path, "backprop", 0, state="interrupted", epochs=0)
    assert "0 of 1" in page(grouped(read([tmp_path])))
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "status.json").write_text("{}")
    (tmp_path / "odd" / "metrics.jsonl").write_text(
        '{"epoch": NaN, "test/accuracy": "high", "x": 1e999, "y": 1%s}\n' % ("0" * 400)
    )
    other = write_run(tmp_path, "dgl", 0)
    (other / "summary.json").write_text('{"epoch": 5, "reward": 3.5}')
    text = page(grouped(read([tmp_path])))
    assert "unreadable" in text
    assert "NaN" not in json.dumps(data_of(text))


@pytest.mark.slow
def test_five_hundred_runs_are_one_small_page(tmp_path):
    for i in range(500):
        write_run(tmp_path, STRATEGIES[i % 4], i % 2, lr=round(0.001 * (1 + i // 8), 4), epochs=60, name=str(i))
    found = grouped(read([tmp_path]))
    begin = time.process_time()
    text = page(found)
    assert time.process_time() - begin < 10
    assert len(text.encode()) < 5e6
    data = data_of(text)
    assert len(data["groups"]) == 252
    curve = data["curves"][0]["values"][0]
    assert curve["x"][:: len(curve["x"]) - 1] == [1, 60]  # thinned, with both ends


def _chromium(playwright) -> str | None:
    own = Path(playwright.chromium.executable_path)
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    return str(own) if own.is_file() else next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    from playwright import sync_api as api

    with api.sync_playwright() as playwright:
        found = _chromium(playwright)
        if found is None:
            pytest.skip("no Chromium here: playwright install chromium, or that of the system (apt install chromium)")
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


class Opened:
    """A page in a tab, with what it complained of and asked for."""

    def __init__(self, browser, file: Path, **how) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}} | how)
        self.context.set_default_timeout(PATIENCE)
        self.tab = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.tab.on("console", lambda message: self.complaints.append(message.text))
        self.tab.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.tab.on("request", lambda request: self.requests.append(request.url))
        self.tab.goto(file.as_uri())
        self.tab.wait_for_selector("#charts figure svg")
        self.file = file

    def labels(self) -> list[str]:
        rows = self.tab.locator("#results-table tbody tr:not([hidden]) th")
        return [text.splitlines()[0] for text in rows.all_inner_texts()]

    def wait_for_rows(self, count: int, table: str = "results-table") -> None:
        """Filters act a moment after the last key."""
        from playwright.sync_api import expect

        rows = self.tab.locator(f"#{table} tbody tr:not([hidden])")
        expect(rows).to_have_count(count, timeout=PATIENCE)

    def legend(self) -> list[str]:
        return self.tab.locator("#charts figure").first.locator(".legend li > span:nth-of-type(1)").all_inner_texts()

    def close(self) -> None:
        """Raises if anything went wrong, or anything but the file itself was asked for."""
        self.context.close()
        assert self.complaints == []
        assert self.requests == [self.file.as_uri()]


@pytest.fixture(scope="module")
def file(sweep) -> Path:
    found = sweep / "report.html"
    found.write_text(page(grouped(read([sweep]))))
    return found


@pytest.fixture
def opened(browser, file):
    found = Opened(browser, file)
    yield found
    found.close()


@pytest.mark.xdist_group("browser")
class TestInABrowser:
    def test_sorting_by_keyboard(self, opened):
        tab = opened.tab
        assert opened.labels() == ["backprop", "dfa", "dgl", "shallow"]
        heading = tab.locator("#results-table th", has_text="test accuracy %").first
        heading.locator("button").focus()
        tab.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "ascending"
        assert opened.labels() == ["shallow", "dfa", "dgl", "backprop"]
        assert opened.legend() == ["shallow", "dfa", "dgl", "backprop"]
        tab.keyboard.press("Space")
        assert heading.get_attribute("aria-sort") == "descending"
        assert opened.labels() == ["backprop", "dgl", "dfa", "shallow"]
        tab.keyboard.press("Tab")
        tab.keyboard.press("Enter")
        assert heading.get_attribute("aria-sort") == "none"

    def test_what_is_missing_is_sorted_last(self, opened):
        heading = opened.tab.locator("#results-table th", has_text="vs backprop")
        for _ in range(2):  # backprop has no difference to itself
            heading.locator("button").click()
            assert opened.labels()[-1] == "backprop"

    @pytest.mark.slow
    def test_filtering_by_keyboard(self, opened):
        tab = opened.tab
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.className") == "skip"
        tab.get_by_role("searchbox", name="Filter").first.focus()
        tab.keyboard.type("d f")  # both words
        opened.wait_for_rows(2)
        assert opened.labels() == opened.legend() == ["dfa", "dgl"]
        tab.keyboard.press("Escape")
        assert len(opened.labels()) == 4
        tab.get_by_label("strategy").select_option("dgl")
        opened.wait_for_rows(1)
        assert opened.legend() == ["dgl"]
        tab.get_by_role("button", name="Show all").first.press("Enter")
        opened.wait_for_rows(4)
        tab.get_by_label("State").select_option("failed")
        opened.wait_for_rows(1, "runs-table")

    def test_figures_have_their_numbers_as_text(self, opened):
        figure = opened.tab.locator("#charts figure").first
        assert "backprop 9" in figure.locator("svg[role=img]").get_attribute("aria-label")
        figure.get_by_role("slider").focus()
        opened.tab.keyboard.press("Home")
        at_first = figure.locator(".legend li").first.inner_text()
        assert figure.locator(".slider").inner_text() == "epoch 1"
        figure.locator("summary").focus()
        opened.tab.keyboard.press("Enter")
        table = figure.locator("details table")
        table.locator("tbody td").first.wait_for()  # made when it is opened
        assert table.locator("thead th").all_inner_texts() == ["epoch", "backprop", "dfa", "dgl", "shallow"]
        assert table.locator("tbody tr").count() == 5
        assert table.locator("tbody td").first.inner_text() in at_first

    @pytest.mark.slow
    def test_every_view_of_a_probe(self, opened):
        for title, views in (("Probe: alignment", 2), ("Probe: information plane", 3)):
            figure = opened.tab.locator("#charts figure", has=opened.tab.get_by_text(title, exact=True))
            options = figure.get_by_label("View").locator("option").all_inner_texts()
            assert len(options) == views
            for option in options:
                figure.get_by_label("View").select_option(option)
                assert figure.locator("svg[role=img]").count() == (1 if "by" in option else 4)
        assert figure.locator("svg[role=img] circle").count() > 0

    @pytest.mark.slow
    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_fits_and_can_be_read(self, browser, file, width, scheme):
        opened = Opened(browser, file, viewport={"width": width, "height": 800}, color_scheme=scheme)
        tab = opened.tab
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == {
            "light": "rgb(255, 255, 255)", "dark": "rgb(21, 24, 28)"
        }[scheme]  # fmt: skip
        line = "getComputedStyle(document.querySelector('#charts path.series:not(.band)')).stroke"
        assert tab.evaluate(line) == {"light": "rgb(0, 0, 0)", "dark": "rgb(232, 234, 237)"}[scheme]  # backprop
        tab.get_by_label("Colours").select_option("dark" if scheme == "light" else "light")
        assert tab.evaluate(line) == {"dark": "rgb(0, 0, 0)", "light": "rgb(232, 234, 237)"}[scheme]
        opened.close()

    def test_prints(self, opened, tmp_path):
        opened.tab.emulate_media(media="print", color_scheme="dark")
        assert opened.tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not opened.tab.locator("form.controls").first.is_visible()
        assert opened.tab.pdf(format="A4").startswith(b"%PDF")

    @pytest.mark.fault("R7")
    def test_hostile_text_does_nothing(self, browser, tmp_path):
        write_run(
            tmp_path,
            "backprop",
            0,
            choices={"model": HOSTILE},
            probes={HOSTILE.replace("/", ""): probes(0)["alignment"]},
        )
        write_run(tmp_path, "backprop", 1, choices={"model": HOSTILE * 2})
        file = tmp_path / "report.html"
        file.write_text(page(grouped(read([tmp_path]))))
        opened = Opened(browser, file)
        assert opened.tab.title() != "owned"
        assert opened.tab.locator("img, b").count() == 0
        assert HOSTILE in opened.legend()
        opened.close()

    @pytest.mark.slow
    def test_many_groups_stay_quick(self, browser, tmp_path):
        for i in range(500):
            write_run(tmp_path, STRATEGIES[i % 4], 0, lr=i + 1, name=str(i))
        file = tmp_path / "report.html"
        file.write_text(page(grouped(read([tmp_path]))))
        opened = Opened(browser, file)
        milliseconds = opened.tab.evaluate(
            "() => { const begin = performance.now(); document.querySelectorAll('#results-table th button')[2].click();"
            " return performance.now() - begin; }"
        )
        assert len(opened.labels()) == 500
        assert len(opened.legend()) == 8
        assert milliseconds < 20_000  # 270 ms of CPU time
        opened.close()
