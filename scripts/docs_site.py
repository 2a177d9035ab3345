"""What mkdocs.yml hooks into: pages outside docs/ become pages of the site, and so does every file that one links to.

The links in the pages are those of the repository, as a host of code follows them. In the site README.md is the start
page, `PAGES` says where the others outside docs/ stand, and any other file or folder of the repository, such as
src/locallearn/contract.py, is shown as a page below files/. mkdocs itself is imported where it is used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = {
    ROOT / "README.md": "index.md",
    ROOT / "CONTRIBUTING.md": "project/contributing.md",
    ROOT / "CHANGELOG.md": "project/changelog.md",
    ROOT / "CORRECTIONS.md": "project/corrections.md",
    ROOT / "results" / "README.md": "project/results.md",
}
SHOWN = "files/"
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".json": "json", ".toml": "toml"}
FENCE = "~" * 8
_FENCED = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(\]\()([^)\s]+)(\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill in the patterns of the navigation, and name titles as hosts of code do."""
    config.nav = expanded(config.nav)
    config.mdx_configs.setdefault("toc", {})["slugify"] = lambda title, separator: anchor(title)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages outside docs/, and the files that pages link to."""
    from mkdocs.structure.files import File, InclusionLevel

    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    for path in DOCS.rglob("*.html"):
        files.append(File.generated(config, place(path), abs_src_path=str(path), inclusion=InclusionLevel.INCLUDED))
    for path, uri in shown().items():
        files.append(File.generated(config, uri, content=as_page(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page to where their targets are in the site."""
    uri = page.file.src_uri
    return markdown if uri.startswith(SHOWN) else moved(markdown, source(uri))


def expanded(nav: Any) -> Any:
    """The navigation, with the pages that match it in place of each pattern, such as strategies/*.md; but no index."""
    if isinstance(nav, dict):
        return {title: expanded(own) for title, own in nav.items()}
    if not isinstance(nav, list):
        return nav
    entries = []
    for entry in nav:
        if isinstance(entry, str) and "*" in entry:
            entries += [str(p.relative_to(DOCS)) for p in sorted(DOCS.glob(entry)) if p.name != "README.md"]
        else:
            entries.append(expanded(entry))
    return entries


def anchor(title: str) -> str:
    """The name of a title in a link: `#words-in-lower-case`."""
    return re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-")


def source(uri: str) -> Path:
    """The file of the repository that a page of the site is made from."""
    return next((path for path, own in PAGES.items() if own == uri), DOCS / uri)


def place(path: Path) -> str:
    """Where a file or folder of the repository stands in the site."""
    if path in PAGES:
        return PAGES[path]
    if path.is_relative_to(DOCS):  # a page of HTML has a folder of its own: NAME.md becomes NAME.html, too
        return f"{'html/' * (path.suffix == '.html')}{path.relative_to(DOCS).as_posix()}"
    return f"{SHOWN}{path.relative_to(ROOT).as_posix()}{'/index' if path.is_dir() else ''}.md"


def links(markdown: str, page: Path) -> Iterator[Path]:
    """The files and folders of the repository that a page links to."""
    for part in _FENCED.split(markdown)[::2]:
        yield from (aim for _, target, _ in _LINK.findall(part) if (aim := _aim(target, page)) is not None)


def moved(markdown: str, page: Path) -> str:
    """The text of a page with links as they are in the site."""
    here = os.path.dirname(place(page))

    def link(match: re.Match[str]) -> str:
        aim = _aim(match[2], page)
        if aim is None:
            return match[0]
        _, hash_, title = match[2].partition("#")
        return f"{match[1]}{os.path.relpath(place(aim), here or '.')}{hash_}{title}{match[3]}"

    parts = _FENCED.split(markdown)
    return "".join(part if k % 2 else _LINK.sub(link, part) for k, part in enumerate(parts))


def _aim(target: str, page: Path) -> Path | None:
    """The file that a link of a page leads to; None for one out of the repository, or within the page."""
    file = target.partition("#")[0]
    return None if not file or re.match(r"\w+:", file) else (page.parent / file).resolve()


def shown() -> dict[Path, str]:
    """What pages link to and is not a page itself: files, folders and their contents, with their places in the site."""
    pages = [*PAGES, *DOCS.rglob("*.md")]
    aims = {aim for page in pages for aim in links(page.read_text(encoding="utf-8"), page)}
    aims |= {inner for folder in aims if folder.is_dir() for inner in _listed(folder)}
    return {aim: uri for aim in sorted(aims) if (uri := place(aim)).startswith(SHOWN)}


def as_page(path: Path) -> str:
    """A file or folder as a page, which the search leaves out."""
    head = f"---\nsearch:\n  exclude: true\n---\n\n# `{path.relative_to(ROOT).as_posix()}`\n\n"
    if path.is_dir():
        return head + "\n".join(f"- [`{inner.name}`]({inner.name}.md)" for inner in _listed(path))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return head + "\n\n".join(_cells(json.loads(text)["cells"]))
    return f"{head}{_fenced(text, LANGUAGES.get(path.suffix, 'text'))}"


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _fenced(text: str, language: str) -> str:
    return f"{FENCE}{language}\n{text.rstrip()}\n{FENCE}"


def _cells(cells: list[dict[str, Any]]) -> Iterator[str]:
    """The cells of a notebook as Markdown, with what they showed when it was saved."""
    for cell in cells:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"!\[([^\]]*)\]\(https?:[^)]*\)", r"\1", text)  # a badge: the site needs no network
            yield re.sub("^#", "##", text, flags=re.MULTILINE)
        else:
            yield _fenced(text, "python")
        for output in cell.get("outputs", []):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                yield f"![](data:image/png;base64,{''.join(data['image/png'].split())})"
            elif "text/markdown" in data:
                yield "".join(data["text/markdown"])
            else:
                yield _fenced("".join(data["text/plain"]), "text")
