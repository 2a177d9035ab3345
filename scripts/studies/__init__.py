"""The experiments of docs/experiments.md, a module each. To add one is to add a file. A module has

NUMBER         its place on the page
NAME           as on the command line; its files and pictures begin with it
TITLE, TEXT    the heading; what is done and why, in two or three sentences, with the paper
run(options)   do it (see `common.Options`) and return what JSON can hold; with `options.quick` in seconds
draw(results)  {file name without ending: Figure}
render(results)  lines of Markdown: a table of our numbers beside the published ones, then what agrees and what does not
NEEDS_DATA     whether the quick form, too, needs files of a data set
"""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def studies() -> dict[str, ModuleType]:
    """Every study by name, in the order of the page."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if found.name != "common"]
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return {module.NAME: module for module in sorted(modules, key=lambda module: module.NUMBER)}
