"""Records to the texts and labels that streams draw from, as they are read: four bytes a token and as many a label."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from xferkit.data.errors import DataError
from xferkit.data.lexicon import EncodedTexts, EncodedTokens, Lexicon
from xferkit.data.ragged import Ragged, RaggedLabels
from xferkit.data.tokenization import TokenizerVocabulary
from xferkit.data.vocabulary import LabelSet
from xferkit.models.characters import CharVocabulary

__all__ = ["LabelledRecord", "encode_classification", "encode_tagging"]

T = TypeVar("T")


class LabelledRecord(Protocol):
    """What is read of a record; :class:`~xferkit.data.records.Record` is one."""

    @property
    def text(self) -> str:
        """The text, where it is not split into tokens."""
        ...

    @property
    def labels(self) -> tuple[str, ...] | str | None:
        """A tag per token, the class of the text, or None."""
        ...

    @property
    def line(self) -> int:
        """Where it begins in its file."""
        ...

    def words(self) -> tuple[str, ...]:
        """Its tokens."""
        ...


def encode_tagging(
    records: Iterable[LabelledRecord],
    lexicon: Lexicon,
    labels: LabelSet | None,
    *,
    path: str | None = None,
) -> tuple[EncodedTexts, RaggedLabels | None]:
    """Sentences and their tags, in memory of 8 bytes a token beside the lexicon's words.

    Args:
        records: the sentences, gone through once.
        lexicon: gets the words it has not met.
        labels: the tags; None leaves tags unread and gives no labels.
        path: the file that errors name; default: that of a reader.

    Raises:
        DataError: a record has no tokens, an empty one, another number of tags, or a tag that is not among
            ``labels``.
    """
    types, tags = _Rows(), array("i")
    place = _Place(records, path)
    for record in records:
        words = record.words()
        types.add(place.tokens(record, lexicon.types, words))
        if labels is not None:
            tags.extend(place.tags(record, len(words), labels))
    sentences = types.ragged()
    ragged = None if labels is None else RaggedLabels(_tensor(tags), sentences.offsets)
    return EncodedTexts(sentences, lexicon), ragged


def encode_classification(
    records: Iterable[LabelledRecord],
    vocabulary: Lexicon | CharVocabulary | TokenizerVocabulary,
    labels: LabelSet | None,
    *,
    lowercase: bool = False,
    max_length: int | None = None,
    path: str | None = None,
) -> tuple[EncodedTexts | EncodedTokens, Tensor | None]:
    """Texts and their classes ``int64[n]``, in memory of 4 bytes a token.

    Args:
        records: the texts, gone through once.
        vocabulary: a lexicon for texts of words (the record's tokens, or its text split at white space),
            characters, or a tokenizer, for the text as it is.
        labels: the classes; None leaves classes unread and gives no labels.
        lowercase: drop the case of characters, as a control.
        max_length: tokens (or characters) of a text that are kept; None keeps all.
        path: the file that errors name; default: that of a reader.

    Raises:
        DataError: a record is empty, or its class is missing or not among ``labels``.
        ValueError: when ``max_length`` is below 1.
    """
    if max_length is not None and max_length < 1:
        raise ValueError(f"encode_classification: max_length must be at least 1, got {max_length}")
    rows, classes = _Rows(), array("i")
    place = _Place(records, path)

    def codes(text: str) -> list[int]:
        if isinstance(vocabulary, TokenizerVocabulary):
            return [2 * number for number in vocabulary.numbers(text)]
        assert isinstance(vocabulary, CharVocabulary)
        ids, flags = vocabulary.numbers(text, lowercase=lowercase, max_length=max_length)
        return [2 * number + flag for number, flag in zip(ids, flags, strict=True)]

    for record in records:
        if isinstance(vocabulary, Lexicon):
            row = place.tokens(record, vocabulary.types, record.words()[:max_length])
        else:
            text = record.text or " ".join(record.words())
            row = place.tokens(record, codes, text)[:max_length]
        rows.add(row)
        if labels is not None:
            classes.append(place.label(record, labels))
    ragged = rows.ragged()
    texts = (
        EncodedTexts(ragged, vocabulary)
        if isinstance(vocabulary, Lexicon)
        else EncodedTokens(ragged, with_flags=isinstance(vocabulary, CharVocabulary))
    )
    return texts, None if labels is None else _tensor(classes).to(torch.int64)


class _Place:
    """Names the place of a record that cannot be encoded."""

    def __init__(self, records: Iterable[LabelledRecord], path: str | None) -> None:
        self._path = path if path is not None else str(getattr(records, "path", "records"))

    def tokens(self, record: LabelledRecord, encode: Callable[[T], list[int]], what: T) -> list[int]:
        try:
            row = encode(what)
        except ValueError as error:
            raise self._error(record, str(error), "words of at least one character", "empty word") from None
        if not row:
            raise self._error(record, "the text is empty", "at least one token", "empty text")
        return row

    def tags(self, record: LabelledRecord, num_tokens: int, labels: LabelSet) -> list[int]:
        tags = record.labels
        if tags is None or isinstance(tags, str):
            raise self._error(record, "the sentence has no tags", "a tag for each token", "no label")
        if len(tags) != num_tokens:
            wrong = f"{num_tokens} tokens but {len(tags)} tags"
            raise self._error(record, wrong, "a tag for each token", "number of tags")
        return self._numbers(record, tags, labels)

    def label(self, record: LabelledRecord, labels: LabelSet) -> int:
        label = record.labels
        if not isinstance(label, str):
            raise self._error(record, "the text has no class", "one label", "no label")
        return self._numbers(record, (label,), labels)[0]

    def _numbers(self, record: LabelledRecord, names: Sequence[str], labels: LabelSet) -> list[int]:
        try:
            return labels.numbers(names)
        except DataError:
            name = next(name for name in names if name not in labels)
            raise self._error(record, *labels.unknown(name), "unknown label") from None

    def _error(self, record: LabelledRecord, wrong: str, expected: str, reason: str) -> DataError:
        return DataError.at(self._path, record.line, wrong, expected, reason=reason)


class _Rows:
    """Rows of numbers, collected without an object a number."""

    def __init__(self) -> None:
        self._flat, self._offsets = array("i"), array("q", [0])

    def add(self, row: Sequence[int]) -> None:
        self._flat.extend(row)
        self._offsets.append(len(self._flat))

    def ragged(self) -> Ragged:
        return Ragged(_tensor(self._flat), _tensor(self._offsets))


def _tensor(values: array[int]) -> Tensor:
    dtype = torch.int32 if values.typecode == "i" else torch.int64
    # The tensor keeps the array alive and shares its memory.
    return torch.frombuffer(values, dtype=dtype) if values else torch.empty(0, dtype=dtype)
