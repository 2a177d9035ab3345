"""What tests share: small nets, command lines, runs, and the programs that some of them start."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
