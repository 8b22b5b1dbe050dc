"""One module per op: ``cases(options)`` gives its rows, one setup function builds inputs and variants."""
