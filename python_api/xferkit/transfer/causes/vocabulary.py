"""Does the source know the target's words? Unknown words against another half of the target itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from xferkit.transfer.causes.cause import Cause, flag_excess, relative

__all__ = ["WordCoverage", "word_coverage"]


@dataclass(frozen=True)
class WordCoverage(Cause):
    """Running words of the target that the source does not have.

    Attributes:
        unknown: share of the words of a half of the target that a sample of the source lacks, mean over
            splits.
        folded: the same without the case of letters.
        null_mean, null_high: share that the other half of the target, of as many words, lacks: mean and
            quantile.
        p_value: share of splits in which that is as large as `unknown`.
        unknown_to_all: share of all the target's words that all texts of the source lack.
        source_texts: how many these are.
        examples: the most frequent of these, at most 3.
        words: of each sample, on average.
    """

    cause: ClassVar[str] = "unknown words"
    unknown: float
    folded: float
    null_mean: float
    null_high: float
    p_value: float
    unknown_to_all: float
    source_texts: int
    examples: tuple[str, ...]
    words: int

    def sentence(self) -> str:
        """One plain sentence with the share and its null."""
        start = {
            "yes": "The source lacks words of the target",
            "no": "The source has the target's words much as the target's own texts do",
            "not clear": "It is not clear from so few texts whether the source lacks words of the target",
        }[self.flag]
        named = f", such as {', '.join(self.examples)}" if self.examples else ""
        return (
            f"{start}: {100 * self.unknown:.0f} % of its words are not in as large a sample of the source "
            f"({100 * self.folded:.0f} % without the case of letters), and {100 * self.null_mean:.0f} % not "
            f"in the other half of the target; the {self.source_texts} texts read of the source together lack "
            f"{100 * self.unknown_to_all:.0f} %{named}."
        )


def word_coverage(
    target: Sequence[str],
    source: Sequence[str],
    *,
    words: Callable[[str], Sequence[str]] = str.split,
    splits: int = 20,
    min_effect: float = 0.1,
    alpha: float = 0.05,
    seed: int = 0,
) -> WordCoverage:
    """Share of the target's running words that the source lacks, against another half of the target.

    Each split cuts the target's texts into two halves at random. Words of the first are looked up among those
    of the second (the null) and among those of random texts of the source with as many words: more text has
    more words, so that samples of one size are compared. *yes* and *no* as in
    :func:`~xferkit.transfer.causes.cause.flag_excess`.

    Args:
        target: texts, at least 2.
        source: texts, of one source or of all of them.
        words: from a text to its words; the default cuts at white space, and is none for languages without
            it.
        splits: number of splits.
        min_effect: excess over the null that would matter.
        alpha: quantile of the null is 1 - alpha.
        seed: of the splits.

    Raises:
        ValueError: fewer texts, or texts without a word.

    Source: Gururangan et al. (2020), Don't stop pretraining, section 3.1, for overlap of vocabularies of
        domains.
    """
    if splits < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(
            f"word_coverage: splits must be at least 1 and alpha in (0, 1), got {splits} and {alpha}"
        )
    own, other = ([list(words(text)) for text in texts] for texts in (target, source))
    own, other = [text for text in own if text], [text for text in other if text]
    for name, texts, least in (("target", own, 2), ("source", other, 1)):
        if len(texts) < least:
            raise ValueError(
                f"word_coverage: {name} must have {least} or more texts with a word, got {len(texts)}"
            )
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(splits):
        order = rng.permutation(len(own))
        asked = _join(own, order[: len(own) // 2])
        mine = _join(own, order[len(own) // 2 :])
        theirs = _join(other, rng.permutation(len(other)))
        size = min(len(mine), len(theirs))
        mine, theirs = mine[:size], theirs[:size]
        folded = _lacking([w.casefold() for w in asked], [w.casefold() for w in theirs])
        rows.append((_lacking(asked, theirs), folded, _lacking(asked, mine), float(size)))
    unknown, case, null, sizes = np.array(rows).T
    observed, mean = float(unknown.mean()), float(null.mean())
    flag, p = flag_excess(observed, null, min_effect, max(alpha, 1.0 / (1.0 + splits)))
    known = {word for text in other for word in text}
    counts = Counter(word for text in own for word in text)
    lacked = {word: n for word, n in counts.items() if word not in known}
    return WordCoverage(
        flag,
        relative(observed - mean, 1.0 - mean),
        observed,
        float(case.mean()),
        mean,
        float(np.quantile(null, 1.0 - alpha)),
        p,
        sum(lacked.values()) / sum(counts.values()),
        len(other),
        tuple(sorted(lacked, key=lambda word: (-lacked[word], word))[:3]),
        round(float(sizes.mean())),
    )


def _join(texts: Sequence[Sequence[str]], order: np.ndarray) -> list[str]:
    return [word for n in order for word in texts[int(n)]]


def _lacking(asked: Sequence[str], known: Sequence[str]) -> float:
    have = set(known)
    return sum(word not in have for word in asked) / len(asked)
