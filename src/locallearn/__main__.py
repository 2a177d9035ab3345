"""`python -m locallearn`."""

from locallearn.cli import entry

if __name__ == "__main__":
    entry()
