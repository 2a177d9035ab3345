"""What happens at moments of a run; `conf/callback/*.yaml` is the list of those that are ready."""

from locallearn.callbacks.base import Callback, RunView

__all__ = ["Callback", "RunView"]
