"""A small made-up task for the systems' tests: two conventions, and languages that follow one of them.

Three classes. Class 2 has letters of its own everywhere. Classes 0 and 1 differ by their ending alone, and
the two conventions use it the other way round. A letter that gives the convention away stands in 40 % of the
names: most names alone do not tell their convention, many names together do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SOURCES = ("a1", "a2", "b1", "b2")
TARGET = "a3"


@dataclass(frozen=True)
class ToyNames:
    texts: tuple[str, ...]
    labels: np.ndarray


class ToyData:
    """Languages ``a*`` follow one convention, ``b*`` the other; ``conflict=False``: all follow the first.

    ``rotate_labels`` gives every training name the next class.
    """

    classes = ("ends_o", "ends_u", "other")
    languages = (*SOURCES, TARGET)

    def __init__(self, *, conflict: bool = True, rotate_labels: bool = False, size: int = 200) -> None:
        self.conflict, self.rotate_labels, self.size = conflict, rotate_labels, size

    def train(self, language: str, /) -> ToyNames:
        return self._names(language, "train")

    def test(self, language: str, /) -> ToyNames:
        return self._names(language, "test")

    def _names(self, language: str, part: str) -> ToyNames:
        rng = np.random.default_rng([ord(c) for c in language + part])
        labels = rng.integers(0, 3, size=self.size)
        swapped = self.conflict and language.startswith("b")
        texts = []
        for label in labels.tolist():
            stem = "".join(rng.choice(list("gkl" if label == 2 else "bdf"), size=int(rng.integers(3, 7))))
            if rng.random() < 0.4:
                stem = stem[:2] + ("x" if language.startswith("a") else "y") + stem[2:]
            ending = "e" if label == 2 else ("ou"[label] if not swapped else "uo"[label])
            texts.append(stem + ending)
        if self.rotate_labels and part == "train":
            labels = (labels + 1) % 3
        return ToyNames(tuple(texts), labels.astype(np.int64))
