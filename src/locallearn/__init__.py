"""locallearn: one harness for local learning and decoupled training of neural networks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_LAZY = {
    "train": "locallearn.api",
    "build": "locallearn.api",
    "resume": "locallearn.api",
    "load": "locallearn.api",
    "evaluate": "locallearn.api",
    "probe": "locallearn.api",
    "as_blocks": "locallearn.models",
    "BlockModel": "locallearn.models",
    "Tracker": "locallearn.analysis.tracker",
    "information": "locallearn.analysis.information",
}
__all__ = [*_LAZY, "__version__"]

if TYPE_CHECKING:
    from locallearn.analysis.information import information as information
    from locallearn.analysis.tracker import Tracker as Tracker
    from locallearn.api import build as build
    from locallearn.api import evaluate as evaluate
    from locallearn.api import load as load
    from locallearn.api import probe as probe
    from locallearn.api import resume as resume
    from locallearn.api import train as train
    from locallearn.models import BlockModel as BlockModel
    from locallearn.models import as_blocks as as_blocks


def __getattr__(name: str) -> Any:
    """Import torch only when a name that needs it is used, so that `--help` and `list` stay instant."""
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
