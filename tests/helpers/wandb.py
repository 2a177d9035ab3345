"""The server that stands in for W&B's, and the key that it takes."""

import sys

from helpers import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

from bench.wandb_server import Server

__all__ = ["KEY", "Server"]
KEY = "0123456789abcdef0123456789abcdef01234567"
