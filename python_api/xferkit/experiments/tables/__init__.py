"""Tables of an experiment: many runs from one file, what they say together, and a page that shows it."""
