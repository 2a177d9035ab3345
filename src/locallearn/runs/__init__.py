"""The folder of a run on disk, written and read; what is recorded, and where it is shown. Reading needs no torch."""
