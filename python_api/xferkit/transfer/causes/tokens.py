"""What does the shared tokenizer do to the target? Unknown tokens and tokens a word, of every task (language)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from xferkit.transfer.causes.cause import Cause, Flag, Floats, all_flags, flag_excess, relative

__all__ = ["LanguageTokens", "TokenCosts", "TokenExcess", "token_costs"]


@dataclass(frozen=True)
class LanguageTokens:
    """Texts of one task (a language, a domain) under the tokenizer.

    Attributes:
        name: of the task.
        texts, words, tokens: numbers of them.
        unknown_share: share of unknown tokens; NaN where unknown tokens have no name.
        fertility: tokens per word.
    """

    name: str
    texts: int
    words: int
    tokens: int
    unknown_share: float
    fertility: float


@dataclass(frozen=True)
class TokenExcess:
    """What the target has more than the mean of the sources.

    Attributes:
        flag: whether that is more than halves of one task differ by.
        excess: difference of unknown shares; of fertilities, as a share of the sources' mean.
        null_high: quantile 1 - alpha of the same between two halves of one task.
        p_value: share of halves that differ as much.
    """

    flag: Flag
    excess: float
    null_high: float
    p_value: float


@dataclass(frozen=True)
class TokenCosts(Cause):
    """All tasks under one tokenizer.

    Attributes:
        target: name of the target.
        languages: the tasks, the target first.
        fertility: excess of the target's.
        unknown: excess of the target's share of unknown tokens; None where unknown tokens have no name.
    """

    cause: ClassVar[str] = "tokenizer"
    target: str
    languages: tuple[LanguageTokens, ...]
    fertility: TokenExcess
    unknown: TokenExcess | None

    def sentence(self) -> str:
        """One plain sentence with the target's numbers beside the sources'."""
        own, *others = self.languages
        start = {
            "yes": f"The tokenizer serves {self.target} worse than the sources",
            "no": f"The tokenizer serves {self.target} as well as the sources",
            "not clear": f"It is not clear from so few texts whether the tokenizer serves {self.target} "
            "worse",
        }[self.flag]
        mean = float(np.mean([language.fertility for language in others]))
        unknown = ""
        if self.unknown is not None:
            theirs = float(np.mean([language.unknown_share for language in others]))
            unknown = (
                f"{100 * own.unknown_share:.1f} % unknown tokens where they have {100 * theirs:.1f} % "
                f"(halves of one task differ by {100 * self.unknown.null_high:.1f} points), and "
            )
        return (
            f"{start}: {unknown}{own.fertility:.2f} tokens a word where they have {mean:.2f} (halves of one "
            f"task differ by {100 * self.fertility.null_high:.0f} %)."
        )


def token_costs(
    texts: Mapping[str, Sequence[str]],
    target: str,
    *,
    tokenizer: Callable[[str], Sequence[Hashable]] | None = None,
    unknown: Hashable | None = None,
    words: Callable[[str], Sequence[str]] = str.split,
    splits: int = 50,
    min_unknown: float = 0.05,
    min_fertility: float = 0.2,
    alpha: float = 0.05,
    seed: int = 0,
) -> TokenCosts:
    """Unknown-token share and fertility (tokens / words) of each task, the target's against the sources'.

    The null is another split of the same task: the same differences between two random halves of it,
    pooled over tasks. *yes* and *no* as in :func:`~xferkit.transfer.causes.cause.flag_excess`, with a
    margin for each measure. Languages differ in fertility by their grammar too: read the sources' own spread
    in ``languages``.

    Args:
        texts: of each task (a language, a domain), at least 2 with a word; the target and one or more sources.
        target: name of the target.
        tokenizer: from a text to its tokens, **not built from these texts**. None, of a model that reads words or
            characters as they are, is refused: what its sources lack of the target's words is told by
            :func:`~xferkit.transfer.causes.vocabulary.word_coverage`.
        unknown: the tokenizer's unknown token; None: not counted.
        words: from a text to its words; the default cuts at white space.
        splits: random halves of each task.
        min_unknown: excess of the share of unknown tokens that would matter.
        min_fertility: excess of fertility that would matter, as a share of the sources'.
        alpha: quantile of the null is 1 - alpha.
        seed: of the splits.

    Raises:
        ValueError: no tokenizer, an unknown target, no source, or too few texts.

    Source: Rust et al. (2021), How good is your tokenizer?, section 3; Ács (2019), Exploring BERT's
        vocabulary.
    """
    if tokenizer is None:
        raise ValueError(
            "token_costs: tokenizer must be a function from a text to its tokens, got None (word_coverage tells of "
            "words)"
        )
    if target not in texts or len(texts) < 2:
        raise ValueError(
            f"token_costs: texts must have the target {target} and a source, got {', '.join(texts) or 'none'}"
        )
    if splits < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(
            f"token_costs: splits must be at least 1 and alpha in (0, 1), got {splits} and {alpha}"
        )
    measured = {target: list(texts[target]), **{name: list(texts[name]) for name in texts if name != target}}
    counts = {name: _count(name, found, tokenizer, unknown, words) for name, found in measured.items()}
    languages = tuple(_language(name, count, unknown) for name, count in counts.items())
    rng = np.random.default_rng(seed)
    halves = [
        (_sums(count[order[0::2]]), _sums(count[order[1::2]]))
        for count in counts.values()
        for order in (rng.permutation(len(count)) for _ in range(splits))
    ]
    own, others = languages[0], languages[1:]
    mean = float(np.mean([language.fertility for language in others]))
    apart = [(a[0] / a[1]) / (b[0] / b[1]) - 1.0 for a, b in halves]
    fertility = _excess(own.fertility / mean - 1.0, apart, min_fertility, alpha)
    effect = relative(own.fertility - mean, own.fertility)
    excess = None
    if unknown is not None:
        theirs = float(np.mean([language.unknown_share for language in others]))
        gaps = [a[2] / a[0] - b[2] / b[0] for a, b in halves]
        excess = _excess(own.unknown_share - theirs, gaps, min_unknown, alpha)
        effect = max(effect, relative(excess.excess, 1.0 - theirs))
    flag = all_flags([part.flag for part in (fertility, excess) if part is not None])
    return TokenCosts(flag, effect, target, languages, fertility, excess)


def _count(
    name: str,
    texts: Sequence[str],
    tokenizer: Callable[[str], Sequence[Hashable]],
    unknown: Hashable | None,
    words: Callable[[str], Sequence[str]],
) -> Floats:
    """``[texts, 3]``: tokens, words and unknown tokens of each text that has words and tokens."""
    rows = []
    for text in texts:
        tokens, size = list(tokenizer(text)), len(words(text))
        if size and tokens:
            rows.append((len(tokens), size, sum(token == unknown for token in tokens)))
    if len(rows) < 2:
        raise ValueError(
            f"token_costs: texts of {name} must be 2 or more with a word to measure, got {len(rows)}"
        )
    return np.array(rows, dtype=np.float64)


def _sums(count: Floats) -> npt.NDArray[np.float64]:
    return np.asarray(count.sum(0), dtype=np.float64)


def _language(name: str, count: Floats, unknown: Hashable | None) -> LanguageTokens:
    tokens, words, unknowns = (float(x) for x in count.sum(0))
    share = unknowns / tokens if unknown is not None else float("nan")
    return LanguageTokens(name, len(count), int(words), int(tokens), share, tokens / words)


def _excess(observed: float, null: Sequence[float], margin: float, alpha: float) -> TokenExcess:
    flag, p = flag_excess(observed, null, margin, alpha)
    return TokenExcess(flag, observed, float(np.quantile(null, 1.0 - alpha)), p)
