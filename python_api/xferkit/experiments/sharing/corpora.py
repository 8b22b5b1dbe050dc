"""The texts of the study, held-out ones apart, numbered with one vocabulary of all languages."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

import torch

from xferkit.data.corpus import fingerprint
from xferkit.data.masked_text import TokenCorpus
from xferkit.data.plain_text import TextFile, read_plain_texts
from xferkit.data.ragged import Ragged
from xferkit.data.tokenization import TokenizerVocabulary
from xferkit.experiments.sharing.cell import HALVES
from xferkit.experiments.sharing.config import SharingConfig

__all__ = ["Corpora", "half_of", "read_corpora", "texts_fingerprint"]

_HELD_OUT = 20  # one text in so many


@dataclass(frozen=True)
class Corpora:
    """All texts as numbers.

    Attributes:
        vocab_size: numbers of the vocabulary and the mask.
        train: by language, in the order of the configuration.
        dev: held-out texts, likewise.
    """

    vocab_size: int
    train: tuple[TokenCorpus, ...]
    dev: tuple[TokenCorpus, ...]

    def sizes(self) -> dict[str, dict[str, int]]:
        """Counts by language."""
        return {
            train.name: {"texts": len(train), "tokens": train.num_tokens, "held_out": len(dev)}
            for train, dev in zip(self.train, self.dev, strict=True)
        }

    def unigram(self) -> dict[str, float]:
        """Mean -log p of held-out tokens under the training texts' counts plus one, by language, in nats."""
        found = {}
        for train, dev in zip(self.train, self.dev, strict=True):
            counts = torch.bincount(train.texts.flat.long(), minlength=self.vocab_size).double() + 1
            found[train.name] = float(-(counts / counts.sum()).log()[dev.texts.flat.long()].mean())
        return found


def read_corpora(config: SharingConfig, data: Path) -> Corpora:
    """What :func:`_read` reads, kept for the next run in the same process, which needs the same."""
    return _kept(_Reading(config, data))


class _Reading:
    """A configuration and a folder as what :func:`functools.lru_cache` tells apart by their texts."""

    def __init__(self, config: SharingConfig, data: Path) -> None:
        self.config, self.data = config, data
        languages = {name: [asdict(file) for file in of.files] for name, of in config.languages.items()}
        self._key = json.dumps([languages, asdict(config.settings), str(data)], default=str)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reading) and self._key == other._key


@lru_cache(maxsize=1)
def _kept(reading: _Reading) -> Corpora:
    return _read(reading.config, reading.data)


def _read(config: SharingConfig, data: Path) -> Corpora:
    """Read all texts, hold out one in twenty of each language by its hash, and learn the vocabulary from the others.

    Raises:
        ValueError: a file is missing or malformed (with its line), or a language has too few texts.
    """
    settings = config.settings
    texts = {name: _texts(name, language.files, data) for name, language in config.languages.items()}
    train, dev = {}, {}
    for name, found in texts.items():
        held = [text for text in found if _is_held_out(text)][: settings.max_dev]
        kept = [text for text in found if not _is_held_out(text)]
        train[name] = kept[: settings.max_texts or None]
        dev[name] = held
        if len(train[name]) < 2 * len(HALVES) or not held:
            raise ValueError(
                f"languages.{name}: {len(found)} texts, of which {len(held)} are held out; expected at least "
                f"{2 * len(HALVES)} to train on and one held out"
            )
    learn = (text for found in train.values() for text in islice(found, settings.vocabulary_texts))
    vocabulary = TokenizerVocabulary.train(learn, size=settings.vocabulary)
    return Corpora(
        len(vocabulary) + 1,
        tuple(TokenCorpus.encode(name, found, vocabulary) for name, found in train.items()),
        tuple(TokenCorpus.encode(name, found, vocabulary) for name, found in dev.items()),
    )


def half_of(corpus: TokenCorpus, half: str) -> TokenCorpus:
    """Every second text: two halves of one language that share none."""
    first = HALVES.index(half)
    rows = torch.arange(first, len(corpus), len(HALVES))
    numbers, lengths, mask = corpus.texts.rows(rows)
    offsets = torch.zeros(len(rows) + 1, dtype=torch.int64)
    torch.cumsum(lengths, 0, out=offsets[1:])
    return replace(corpus, texts=Ragged(numbers[mask].to(torch.int32), offsets))


def texts_fingerprint(config: SharingConfig, data: Path) -> str:
    """SHA-256 over all files: paths, columns, and the SHA-256 of each content.

    Raises:
        ValueError: a file cannot be read.
    """
    digest = hashlib.sha256()
    for name, language in config.languages.items():
        for file in language.files:
            content = fingerprint(data / file.path)
            digest.update(f"{name}\0{file.path}\0{file.column}\0{file.kind}\0{content}\0".encode())
    return digest.hexdigest()


def _texts(name: str, files: tuple[TextFile, ...], data: Path) -> list[str]:
    placed = [TextFile(data / file.path, file.column, file.kind) for file in files]
    try:
        return list(read_plain_texts(placed))
    except ValueError as error:
        raise ValueError(f"languages.{name}: {error}") from None


def _is_held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") % _HELD_OUT == 0
