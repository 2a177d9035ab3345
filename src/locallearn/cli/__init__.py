"""The command line: it reads words and calls the rooms below."""
