"""Benchmarks of the ops and of training steps that use them; ``run.py`` is the command."""
