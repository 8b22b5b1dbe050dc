"""Benchmarks of the ops and of training steps that use them; ``run.py`` is the command."""

SCHEMA_VERSION = 1  # of the JSON that run.py writes
