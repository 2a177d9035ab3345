"""Experiments that the field argues about, run again: what each makes of its runs. Their settings are in conf/study."""
