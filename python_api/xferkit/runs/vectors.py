"""Given word vectors as a vocabulary and a table of embeddings: one file for all languages, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from xferkit.data.vectors import load_word_vectors
from xferkit.data.vocabulary import WordVocabulary
from xferkit.runs.config import RunConfig
from xferkit.runs.inputs import Inputs, Watch

__all__ = ["WordVectors", "read_vectors"]

Say = Callable[[str], None]


@dataclass(frozen=True)
class WordVectors:
    """Words that have a vector, and the vectors.

    Attributes:
        words: the words; with a file for each language, ``de:Haus``.
        table: ``float[len(words), dim]``; 0 for padding, the mean vector for unknown words.
    """

    words: WordVocabulary
    table: Tensor


def read_vectors(
    config: RunConfig,
    inputs: Inputs,
    words: Mapping[str, set[str]],
    say: Say,
    watch: Watch | None = None,
) -> WordVectors:
    """The vectors of `words` from the files that `config` names.

    Args:
        config: the settings.
        inputs: the files, ``vectors`` among them.
        words: the words that are wanted, by language.
        say: told how many were found.
        watch: gives a file's reading something to tell its progress to.

    Raises:
        DataError: a file cannot be read (file and line), no word has a vector, or files of several sizes.
    """
    lowercase = config.vocabulary.lowercase
    normal = WordVocabulary((), lowercase=lowercase).normal
    files = dict(inputs.vectors) or {"": str(config.encoder.vectors)}
    found: dict[str, np.ndarray] = {}
    size: int | None = None
    for lang, path in files.items():
        texts = set().union(*words.values()) if not lang else words.get(lang, set())
        wanted = texts | {normal(word) for word in texts}
        forms = {normal(word) for word in texts}
        names, table = load_word_vectors(path, wanted, on_progress=watch(path) if watch is not None else None)
        if size is not None and len(names) and table.shape[1] != size:
            raise ValueError(
                f"{path}: vectors have {table.shape[1]} numbers; expected {size} as in the files before"
            )
        prefix = f"{lang}:" if lang else ""
        before = len(found)
        for name, row in zip(names, table, strict=True):
            # Of several spellings of a word the first counts, which is the most frequent one.
            found.setdefault(normal(prefix + normal(name)), row)
        size = table.shape[1] if len(names) else size
        share = (len(found) - before) / max(len(forms), 1)
        of = f" of {lang}" if lang else ""
        say(
            f"{path}: vectors for {len(found) - before:,} of the {len(forms):,} words{of} ({100 * share:.0f} %)."
        )
    if not found or size is None:
        raise ValueError(
            f"{', '.join(files.values())}: no word of the texts has a vector; expected the same language"
        )
    rows = np.stack(list(found.values()))
    table = np.concatenate([np.zeros((1, size), np.float32), rows.mean(0, keepdims=True), rows])
    return WordVectors(WordVocabulary(found, lowercase=lowercase), torch.from_numpy(table.astype(np.float32)))
