"""What a model reads and what it answers: vocabularies, labels and how texts become their numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from xferkit.data.encoding import LabelledRecord, encode_classification, encode_tagging
from xferkit.data.lexicon import Lexicon
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.tokenization import TokenizerVocabulary
from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary

__all__ = ["MAX_CLASSIFIED_TOKENS", "Coder"]

Task = Literal["tagging", "classification"]
Reads = Literal["words", "characters", "pieces"]

#: Words (or characters, or pieces) of a classified text that are read where nothing else is said.
MAX_CLASSIFIED_TOKENS = 512

_SCHEMA = 1


@dataclass(frozen=True)
class Coder:
    """How records become inputs of a model, whatever the model is.

    Attributes:
        task: a label per word or one per text.
        reads: ``"words"`` with their spelling, ``"characters"``, or ``"pieces"`` of words.
        labels: what the model answers.
        chars: numbers of characters.
        words: numbers of words; empty where pieces or characters are read.
        pieces: the tokenizer, where pieces are read.
        max_chars: characters of a word that are read.
        max_tokens: words, characters or pieces of a classified text that are read.
        by_language: whether the words of each language have numbers of their own; then they stand in `words`
            with their language and a colon before them.
    """

    task: Task
    reads: Reads
    labels: LabelSet
    chars: CharVocabulary
    words: WordVocabulary
    pieces: TokenizerVocabulary | None = None
    max_chars: int = 24
    max_tokens: int = MAX_CLASSIFIED_TOKENS
    by_language: bool = False

    @property
    def num_words(self) -> int:
        """Rows of an embedding of words (or pieces)."""
        return len(self.words) if self.pieces is None else len(self.pieces)

    def lexicon(self, language: str = "") -> Lexicon:
        """A new lexicon for texts of `language`; texts that share one are put together faster."""
        prefix = f"{language}:" if self.by_language else ""
        return Lexicon(self.words, self.chars, max_chars=self.max_chars, prefix=prefix)

    def encode(
        self,
        records: Iterable[LabelledRecord],
        lexicon: Lexicon,
        *,
        labels: LabelSet | None = None,
        path: str | None = None,
    ) -> tuple[Texts, Tensor | RaggedLabels | None]:
        """The inputs of `records`, and their labels by the numbers of `labels`.

        Args:
            records: gone through once.
            lexicon: from :meth:`lexicon`; gets the words it has not met. Not used for characters and pieces.
            labels: None leaves labels unread.
            path: names the file in errors.

        Raises:
            DataError: an empty text, or a label that is missing or unknown; with its line.
        """
        if self.task == "tagging":
            return encode_tagging(records, lexicon, labels, path=path)
        vocabulary: Lexicon | CharVocabulary | TokenizerVocabulary = lexicon
        if self.reads == "characters":
            vocabulary = self.chars
        elif self.pieces is not None:
            vocabulary = self.pieces
        return encode_classification(records, vocabulary, labels, max_length=self.max_tokens, path=path)

    def to_json(self) -> dict[str, Any]:
        """All of it as plain values, for :meth:`from_json`."""
        return {
            "schema": _SCHEMA,
            "task": self.task,
            "reads": self.reads,
            "max_chars": self.max_chars,
            "max_tokens": self.max_tokens,
            "by_language": self.by_language,
            "labels": self.labels.to_json(),
            "chars": self.chars.to_json(),
            "words": self.words.to_json(),
            "pieces": None if self.pieces is None else self.pieces.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Coder:
        """The coder that :meth:`to_json` wrote.

        Raises:
            ValueError: when it is not one, or one of a newer version.
        """
        schema = data.get("schema")
        if type(schema) is not int or not 1 <= schema <= _SCHEMA:
            raise ValueError(f"vocabularies have schema {schema!r}, and this version reads up to {_SCHEMA}")
        if data.get("task") not in ("tagging", "classification"):
            raise ValueError(
                f"vocabularies: task must be 'tagging' or 'classification', got {data.get('task')!r}"
            )
        if data.get("reads") not in ("words", "characters", "pieces"):
            raise ValueError(
                f"vocabularies: reads must be words, characters or pieces, got {data.get('reads')!r}"
            )
        for name in ("max_chars", "max_tokens"):
            if type(data.get(name)) is not int or data[name] < 1:
                raise ValueError(f"vocabularies: {name} must be a number from 1 on, got {data.get(name)!r}")
        parts = {name: data.get(name) for name in ("labels", "chars", "words")}
        for name, part in parts.items():
            if not isinstance(part, Mapping):
                raise ValueError(f"vocabularies: {name} must be a mapping, got {type(part).__name__}")
        pieces = data.get("pieces")
        return cls(
            task=data["task"],
            reads=data["reads"],
            labels=LabelSet.from_json(data["labels"]),
            chars=CharVocabulary.from_json(data["chars"]),
            words=WordVocabulary.from_json(data["words"]),
            pieces=None if pieces is None else TokenizerVocabulary.from_json(pieces),
            max_chars=data["max_chars"],
            max_tokens=data["max_tokens"],
            by_language=bool(data.get("by_language")),
        )
