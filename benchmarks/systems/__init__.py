"""One module per method: a whole training step, with the fused ops and with their references."""
