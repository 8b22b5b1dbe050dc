"""Text for benchmarks: words by a Zipf-Mandelbrot law, sentences of the lengths that treebanks have.

Fitted by eye to twelve UD treebanks, of which nothing is in here: the commonest word 5 % of the tokens, half as many
distinct words as tokens in a batch of 48 sentences, some 20,000 in 100,000 tokens, common words short.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Language", "sentence_lengths"]

Numbers = NDArray[np.int64]

_EXPONENT, _SHIFT, _MOST_WORDS = 1.15, 2.0, 400_000
_MOST_TOKENS, _MOST_LETTERS = 128, 24
_LETTERS = np.array(list("etaonisrhldcumfpgwybvkxjqzéüñøçš"))


@lru_cache(maxsize=1)
def _cumulated() -> NDArray[np.float64]:
    weights = (np.arange(1, _MOST_WORDS + 1) + _SHIFT) ** -_EXPONENT
    total: NDArray[np.float64] = np.cumsum(weights / weights.sum())
    return total


def sentence_lengths(count: int, rng: np.random.Generator, log_mean: float = 2.85) -> Numbers:
    """``int64[count]``, log-normal: with the default 21 tokens on average, 17 in the middle, 38 in every tenth."""
    lengths = np.exp(rng.normal(log_mean, 0.62, count)).round()
    return lengths.clip(1, _MOST_TOKENS).astype(np.int64)


class Language:
    """A language with words of its own, the same for the same seed.

    Args:
        seed: of its words and of all that is drawn.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self._words: list[str] = []
        self._taken: set[str] = set()

    def draw(self, num_tokens: int) -> Numbers:
        """Ranks of as many words, 0 the commonest."""
        ranks: Numbers = np.searchsorted(_cumulated(), self.rng.random(num_tokens)).astype(np.int64)
        return np.minimum(ranks, _MOST_WORDS - 1)

    def words(self, ranks: Numbers) -> list[str]:
        """The words of these ranks."""
        if not len(ranks):
            return []
        self._make(int(ranks.max()) + 1)
        return [self._words[rank] for rank in ranks.tolist()]

    def sentences(self, count: int, log_mean: float = 2.85) -> tuple[list[list[str]], list[Numbers]]:
        """The words of as many sentences, and their ranks."""
        lengths = sentence_lengths(count, self.rng, log_mean)
        ranks = self.draw(int(lengths.sum()))
        ends = np.cumsum(lengths)
        words = self.words(ranks)
        cut = [words[end - length : end] for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
        return cut, np.split(ranks, ends[:-1])

    def _make(self, count: int) -> None:
        """Words up to a rank: longer the rarer, every seventh with a capital, none twice."""
        start = len(self._words)
        if start >= count:
            return
        rarity = np.log(np.arange(start, count) + 1.0)
        lengths = self.rng.normal(1.4 + 0.65 * rarity, 1.2).round().clip(1, _MOST_LETTERS).astype(np.int64)
        share = 1.0 / np.arange(2, len(_LETTERS) + 2)
        letters = "".join(self.rng.choice(_LETTERS, int(lengths.sum()), p=share / share.sum()).tolist())
        end = 0
        for rank, length in enumerate(lengths.tolist(), start):
            word, end = letters[end : end + length], end + length
            if rank % 7 == 6:
                word = word.capitalize()
            while word in self._taken:
                word += _LETTERS[int(self.rng.integers(len(_LETTERS)))]
            self._taken.add(word)
            self._words.append(word)
