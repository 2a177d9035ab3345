"""`python -m locallearn`."""

from locallearn.cli.main import entry

if __name__ == "__main__":
    entry()
