"""The documentation as a site: every page has a place, and every link of the repository one that leads to the same."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
OUTSIDE = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "CORRECTIONS", "results/README")]
PAGES = [*OUTSIDE, *sorted(DOCS.rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s#]+)[^)\s]*\)")


@pytest.fixture(scope="module")
def site() -> ModuleType:
    """The hooks, which need no mkdocs until it calls them."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "scripts" / "docs_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def leaves(nav: object) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    for part in nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ():
        yield from leaves(part)


def test_every_page_is_in_the_navigation_once(site):
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    found = list(leaves(site.expanded(nav)))
    assert len(found) == len({*found})
    inside = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert {name for name in found if (DOCS / name).is_file()} == inside
    outside = {site.source(name) for name in found if name not in inside}
    assert outside == {*OUTSIDE}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_leads_to_the_same_in_the_site(site, page):
    """Word for word beside the link of the repository."""
    text = prose(page)
    shown = {DOCS / uri: path for path, uri in site.shown().items()}
    uri = next((uri for path, uri in site.PAGES.items() if path == page), None) or str(page.relative_to(DOCS))
    before, after = (LINK.findall(content) for content in (text, site.moved(text, page)))
    for here, there in zip(before, after, strict=True):
        if re.match(r"https?:", here):
            assert there == here
            continue
        aim, place = (page.parent / here).resolve(), Path(os.path.normpath(DOCS / uri / ".." / there))
        assert place.is_relative_to(DOCS)
        if aim.suffix == ".html":
            assert place == DOCS / "html" / aim.relative_to(DOCS)
        elif aim in OUTSIDE:
            assert site.source(place.relative_to(DOCS).as_posix()) == aim
        else:
            assert shown.get(place, place) == aim


def test_every_picture_and_page_of_html_is_shown_by_a_page():
    aims = {(page.parent / link).resolve() for page in PAGES for link in LINK.findall(prose(page))}
    made = {path for kind in ("svg", "png", "html") for path in DOCS.rglob(f"*.{kind}")}
    ignored = {path for path in made if path.parent.name == "experiments" and path.suffix == ".png"}  # by git, too
    assert made - ignored <= aims


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_list_and_a_table_begin_after_an_empty_line(page):
    """Else the site, unlike a host of code, takes them for the paragraph above; and what is in a list for its end,
    where it does not stand four columns in."""
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"^ {1,3}(```|([-*]|\d+\.) )", text, re.MULTILINE), f"{page.name}: indent it by four columns"
    for before, line in zip((lines := prose(page).splitlines()), lines[1:], strict=False):
        item = re.match(r"([-*]|\d+\.) ", line) and not re.match(r"([-*]|\d+\.) |  ", before)
        row = line.startswith("|") and not before.startswith("|")
        assert not (before.strip() and (item or row)), f"{page.name}: an empty line is missing before {line!r}"


class Page(HTMLParser):
    """The names in a page of the site, what it links to and what it loads."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path, self.names, self.links, self.loads = path, set[str](), set[str](), set[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id" and value:
                self.names.add(value)
            elif name in ("src", "href", "data") and value:
                (self.links if tag == "a" else self.loads).add(value)


@pytest.mark.slow
def test_the_site_is_built_whole_and_needs_no_network(tmp_path):
    pytest.importorskip("material", reason="no mkdocs here: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr
    pages = {path: Page(path) for path in tmp_path.rglob("*.html") if path.name != "404.html"}
    assert len(pages) > len(PAGES)
    assert "locallearn" in (tmp_path / "search" / "search_index.js").read_text(encoding="utf-8")
    for page in pages.values():
        for load in page.loads:
            assert not urlsplit(load).netloc, f"{page.path.name} loads {load}"
        for link in page.links | page.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or link == ".":
                continue
            aim = (page.path.parent / unquote(parts.path)).resolve() if parts.path else page.path
            assert aim.exists(), f"{page.path.relative_to(tmp_path)} links to {link}"
            if parts.fragment and aim in pages:
                assert unquote(parts.fragment) in pages[aim].names, f"{page.path.name}: {link} has no such title"
    styles = "".join(path.read_text(encoding="utf-8") for path in tmp_path.rglob("*.css"))
    assert not re.search(r"url\(\s*[\"']?(https?:)?//", styles)
