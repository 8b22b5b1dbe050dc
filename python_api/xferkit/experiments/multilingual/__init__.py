"""One tagger for many languages: which way of joining their losses is better for which of them."""
