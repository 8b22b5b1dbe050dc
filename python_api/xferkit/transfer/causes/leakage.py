"""Are texts of the test in the training data of this or another task? Equal and near-equal texts, with
positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from scipy.stats import hypergeom

from xferkit.transfer.causes.cause import Cause, Flag, all_flags
from xferkit.transfer.causes.shingles import fold_text, near_pairs

__all__ = ["DuplicateExample", "Leakage", "PartDuplicates", "TextPart", "leakage"]

_EXAMPLES, _EXAMPLE_LENGTH = 3, 80
_OTHERS = 10  # times as many texts of other parts as of the probe


@dataclass(frozen=True)
class TextPart:
    """Texts of one split of one task.

    Attributes:
        name: for sentences, such as ``"books train"``.
        texts: in the order of the file.
        path: of the file, or None.
        lines: line of each text, counted from 1; None: one text a line.
    """

    name: str
    texts: Sequence[str]
    path: str | None = None
    lines: Sequence[int] | None = None

    def position(self, n: int) -> str:
        """``path:line`` of text n, or ``name, text n`` without a path."""
        number = self.lines[n] if self.lines is not None else n + 1
        return f"{self.path}:{number}" if self.path else f"{self.name}, text {number}"


@dataclass(frozen=True)
class DuplicateExample:
    """Two texts that are one.

    Attributes:
        text: of the probed part, cut to 80 characters.
        position: where it stands.
        other_position: where the other stands.
        similarity: Jaccard index of their shingles; 1 for equal texts.
    """

    text: str
    position: str
    other_position: str
    similarity: float


@dataclass(frozen=True)
class PartDuplicates:
    """Texts of the probed part that another part has too.

    Attributes:
        part: name of the other part.
        size: its number of texts.
        flag: exact ones: yes where there are any; near ones: against their null.
        exact: texts with an equal one after folding; null 0.
        near: texts with a near-equal one and no equal one, among those that were compared.
        near_share: share with a near-equal text in a sample of the other part, mean over samples.
        null_share: the same of texts of the other part itself; NaN for a single text.
        p_value: of the near ones, by Fisher's exact test against these.
        examples: at most 3, equal ones first.
    """

    part: str
    size: int
    flag: Flag
    exact: int
    near: int
    near_share: float
    null_share: float
    p_value: float
    examples: tuple[DuplicateExample, ...]


@dataclass(frozen=True)
class Leakage(Cause):
    """Duplicates of one part in others.

    Attributes:
        probe: name of the probed part.
        size: its number of texts.
        leaked: how many of its texts have an equal one in any other part.
        parts: one record for each other part.
        compared: near-equal ones of so many texts of the probe at most were looked for, among ten times as many.
    """

    cause: ClassVar[str] = "duplicates"
    probe: str
    size: int
    leaked: int
    parts: tuple[PartDuplicates, ...]
    compared: int

    def sentence(self) -> str:
        """One plain sentence with the worst part and an example."""
        worst = max(self.parts, key=lambda part: (part.flag == self.flag, part.exact, part.near))
        if not worst.exact and not worst.near:
            none = f"None of the {self.size} texts of {self.probe} stands in another part, equal or nearly so"
            return f"{none}{self._among()}."
        example = ""
        if worst.examples:
            first = worst.examples[0]
            example = f', such as "{first.text}" ({first.position} and {first.other_position})'
        own = (
            ""
            if np.isnan(worst.null_share)
            else (
                f" ({100 * worst.near_share:.1f} % by samples, {100 * worst.null_share:.1f} % within "
                f"{worst.part} itself)"
            )
        )
        return (
            f"{self.leaked} of {self.size} texts of {self.probe} stand in other parts too, where none "
            f"is expected; {worst.part} has {worst.exact} of them and {worst.near} nearly equal{own}{example}"
            f"{self._among()}."
        )

    def _among(self) -> str:
        """What to know where not all texts were compared."""
        most = _OTHERS * self.compared
        if self.size <= self.compared and max(part.size for part in self.parts) <= most:
            return ""
        return f" (nearly equal ones of {min(self.size, self.compared)} were looked for among {most} of each part)"


def leakage(
    probe: TextPart,
    others: Sequence[TextPart],
    *,
    threshold: float = 0.8,
    length: int = 5,
    splits: int = 50,
    min_effect: float = 0.01,
    alpha: float = 0.05,
    compared: int = 2000,
    seed: int = 0,
) -> Leakage:
    """Texts of a part (the target's test) that stand in others (training of any task), equal or nearly so.

    Equal: after NFC, case folding and white space; none are expected, and one is *yes*. Near-equal: Jaccard
    index of character shingles of at least `threshold`
    (:func:`~xferkit.transfer.causes.shingles.near_pairs`). Short or formal
    texts are alike without a leak, so that their null is the rate within one part: texts drawn from the other
    part against what remains of it, where the probed part is compared with the same remainder. *yes*: the
    rate is higher by `min_effect` or more, with p <= `alpha` by Fisher's exact test; *no*: by less than
    `min_effect`; else not clear.

    Args:
        probe: the part that should be new.
        others: parts that training may see.
        threshold: in [0.5, 1].
        length: of a shingle in characters.
        splits: random draws of the null.
        min_effect: excess of the near-equal share that would matter.
        alpha: largest p-value that counts.
        compared: near-equal ones of at most so many random texts of the probe are looked for, among ten times as
            many of each other part; equal ones everywhere.
        seed: of hash functions and draws.

    Raises:
        ValueError: no other part, a part without texts, or lines that do not fit its texts.

    Source: Lee et al. (2022), Deduplicating training data makes language models better, section 4; Fisher
    (1922) for the test.
    """
    if not others:
        raise ValueError("leakage: others must be one or more parts, got none")
    if compared < 2:
        raise ValueError(f"leakage: compared must be at least 2, got {compared}")
    if splits < 1 or not 0.0 < alpha < 1.0:
        raise ValueError(f"leakage: splits must be at least 1 and alpha in (0, 1), got {splits} and {alpha}")
    for name, part in (("probe", probe), *(("others", part) for part in others)):
        if not len(part.texts):
            raise ValueError(f"leakage: {name} must have texts, got none in {part.name}")
        if part.lines is not None and len(part.lines) != len(part.texts):
            raise ValueError(
                f"leakage: {name} must have a line for each of its {len(part.texts)} texts, got "
                f"{len(part.lines)} in {part.name}"
            )
    numbers: dict[str, int] = {}
    ids = [
        np.array([numbers.setdefault(fold_text(text), len(numbers)) for text in part.texts])
        for part in (probe, *others)
    ]
    rng = np.random.default_rng(seed)
    rows = [
        np.sort(rng.choice(len(own), most, replace=False)) if len(own) > most else np.arange(len(own))
        for own, most in zip(ids, [compared, *[_OTHERS * compared] * len(others)], strict=True)
    ]
    texts = list(numbers)
    near = np.unique(np.concatenate([own[r] for own, r in zip(ids, rows, strict=True)])).tolist()
    alike = near_pairs([texts[n] for n in near], threshold=threshold, length=length, seed=seed)
    pairs = _Pairs(texts, [(near[i], near[j], index) for i, j, index in alike])
    found = [
        _duplicates(probe, part, (ids[0], rows[0]), (own, r), pairs, (splits, min_effect, alpha), rng)
        for part, own, r in zip(others, ids[1:], rows[1:], strict=True)
    ]
    leaked = int((np.isin(ids[0], np.concatenate(ids[1:])) & (ids[0] != pairs.blank)).sum())
    effect = max(leaked / len(ids[0]), *(max(0.0, part.near_share - part.null_share) for part in found), 0.0)
    flag = all_flags([part.flag for part in found])
    return Leakage(flag, min(1.0, effect), probe.name, len(ids[0]), leaked, tuple(found), compared)


class _Pairs:
    """Near-equal folded texts by their numbers, in both directions."""

    def __init__(self, texts: list[str], pairs: list[tuple[int, int, float]]) -> None:
        self.size = len(texts)
        self.blank = texts.index("") if "" in texts else -1  # says nothing when it stands twice
        self.first = np.array([i for i, _, _ in pairs] + [j for _, j, _ in pairs], dtype=np.int64)
        self.second = np.array([j for _, j, _ in pairs] + [i for i, _, _ in pairs], dtype=np.int64)
        self.index = np.array([x for _, _, x in pairs] * 2, dtype=np.float64)

    def touched(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Bool ``[size]``: texts that are near-equal to one of `ids`."""
        member = np.zeros(self.size, dtype=bool)
        member[ids] = True
        touched = np.zeros(self.size, dtype=bool)
        touched[self.first[member[self.second]]] = True
        return touched

    def nearest(self, text: int, ids: npt.NDArray[np.int64]) -> tuple[int, float]:
        """The number among `ids` that is nearest to `text`, and its Jaccard index."""
        of = (self.first == text) & np.isin(self.second, ids)
        best = int(np.argmax(np.where(of, self.index, -1.0)))
        return int(self.second[best]), float(self.index[best])


def _duplicates(
    probe: TextPart,
    part: TextPart,
    probed_of: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    own_of: tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]],
    pairs: _Pairs,
    settings: tuple[int, float, float],
    rng: np.random.Generator,
) -> PartDuplicates:
    """Equal texts among all, near-equal ones among the rows that were drawn of both parts."""
    splits, margin, alpha = settings
    (all_probed, rows), (all_own, own_rows) = probed_of, own_of
    probed, own = all_probed[rows], all_own[own_rows]
    equal = np.isin(all_probed, all_own) & (all_probed != pairs.blank)
    near = pairs.touched(own)[probed] & ~equal[rows]
    examples = []
    for n in [*np.flatnonzero(equal), *rows[np.flatnonzero(near)]][:_EXAMPLES]:
        number = int(all_probed[n])
        other, index = (number, 1.0) if equal[n] else pairs.nearest(number, own)
        place = part.position(int(np.flatnonzero(all_own == other)[0]))
        text = " ".join(probe.texts[int(n)].split())[:_EXAMPLE_LENGTH]
        examples.append(DuplicateExample(text, probe.position(int(n)), place, index))
    share, null, p = float(near.mean()), float("nan"), 1.0
    flag: Flag = "not clear" if near.any() else "no"
    if len(own) > 1:
        size = min(len(probed), len(own) // 2)
        rates = []
        for _ in range(splits):
            order = rng.permutation(len(own))
            touched = pairs.touched(own[order[size:]])
            rates.append((touched[probed].mean(), touched[own[order[:size]]].mean()))
        share, null = (float(x) for x in np.mean(rates, axis=0))
        found, expected = round(share * len(probed)), round(null * size)
        p = float(hypergeom.sf(found - 1, len(probed) + size, found + expected, len(probed)))
        # Of a sampled part only so many near-equal texts can be met.
        flag = (
            "no" if share - null < margin * len(own) / len(all_own) else "yes" if p <= alpha else "not clear"
        )
    return PartDuplicates(
        part.name,
        len(all_own),
        "yes" if equal.any() else flag,
        int(equal.sum()),
        int(near.sum()),
        share,
        null,
        p,
        tuple(examples),
    )
