"""Where and when blocks run: one process, or one per stage; `conf/runtime/*.yaml` is the list."""

from locallearn.runtime.choice import Pipeline, Runtime, Serial
from locallearn.runtime.replay import Replay

__all__ = ["Pipeline", "Replay", "Runtime", "Serial"]
