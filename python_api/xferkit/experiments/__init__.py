"""Experiments on real data, one module each."""
