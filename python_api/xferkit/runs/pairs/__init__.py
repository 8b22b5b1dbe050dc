"""Runs on pairs of texts: configuration, reading, training, retrieval scores, models and their page."""
