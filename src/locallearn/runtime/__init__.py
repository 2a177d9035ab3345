"""Where blocks run: one process, or one per stage; `conf/runtime/*.yaml` is the list."""

from locallearn.runtime.choice import Pipeline, Runtime, Serial

__all__ = ["Pipeline", "Runtime", "Serial"]
