"""Readers of people's own files, one module per kind; :func:`xferkit.data.records.read_records` is the way in."""
