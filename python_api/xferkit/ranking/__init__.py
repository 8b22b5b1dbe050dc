"""What is built on in-batch ranking and exact search: mining, and training with more negatives than activations fit."""

from xferkit.ranking.cached import cached_backward
from xferkit.ranking.mining import BitextPairs, mine_bitext, mine_hard_negatives
from xferkit.ranking.overlap import overlap_ranks, word_grams
from xferkit.ranking.retrieval import retrieval_ranks

__all__ = [
    "BitextPairs",
    "cached_backward",
    "mine_bitext",
    "mine_hard_negatives",
    "overlap_ranks",
    "retrieval_ranks",
    "word_grams",
]
