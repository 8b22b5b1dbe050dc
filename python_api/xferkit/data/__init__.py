"""Data: typed records, readers, vocabularies, encoded texts and streams of batches; nothing here knows a loss.

What needs torch loads on first use, so that reading files costs no more than it must.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from xferkit.data.cldr import CLASSES, NameData, Names, load_names
from xferkit.data.panels import (
    CAPITALISING,
    CONVENTIONS,
    ENGLISH_PANEL,
    LATIN_POOL,
    SIMILARITY_PANEL,
    capitalised_share,
    capitalises,
    same_convention_sources,
    sources_for,
)

if TYPE_CHECKING:
    from xferkit.data.batches import DomainBatch
    from xferkit.data.corpus import Corpus, CorpusKey, fingerprint, group_by_key, parse_named_files
    from xferkit.data.encoding import encode_classification, encode_tagging
    from xferkit.data.errors import DataError
    from xferkit.data.lexicon import EncodedTexts, EncodedTokens, Lexicon
    from xferkit.data.masked_text import (
        MaskedTextBatch,
        MaskedTextStream,
        Masking,
        TokenCorpus,
        fixed_batches,
        temperature_shares,
    )
    from xferkit.data.plain_text import PlainTexts, TextFile, read_plain_texts
    from xferkit.data.ragged import Ragged, RaggedLabels, Texts
    from xferkit.data.readers.progress import with_progress
    from xferkit.data.records import Columns, ReadReport, Record, RecordReader, read_records
    from xferkit.data.seeding import derive_seed, over_seeds, seeded
    from xferkit.data.streams import BatchStream, DomainData, DomainStream, Draw
    from xferkit.data.tokenization import TokenizerVocabulary
    from xferkit.data.vectors import load_word_vectors
    from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary, count_words

_LAZY = {
    "BatchStream": "streams",
    "CharVocabulary": "vocabulary",
    "Columns": "records",
    "Corpus": "corpus",
    "CorpusKey": "corpus",
    "DataError": "errors",
    "DomainBatch": "batches",
    "DomainData": "streams",
    "DomainStream": "streams",
    "Draw": "streams",
    "EncodedTexts": "lexicon",
    "EncodedTokens": "lexicon",
    "LabelSet": "vocabulary",
    "Lexicon": "lexicon",
    "MaskedTextBatch": "masked_text",
    "MaskedTextStream": "masked_text",
    "Masking": "masked_text",
    "PlainTexts": "plain_text",
    "Ragged": "ragged",
    "RaggedLabels": "ragged",
    "ReadReport": "records",
    "Record": "records",
    "RecordReader": "records",
    "TextFile": "plain_text",
    "Texts": "ragged",
    "TokenCorpus": "masked_text",
    "TokenizerVocabulary": "tokenization",
    "WordVocabulary": "vocabulary",
    "count_words": "vocabulary",
    "derive_seed": "seeding",
    "encode_classification": "encoding",
    "encode_tagging": "encoding",
    "fingerprint": "corpus",
    "fixed_batches": "masked_text",
    "group_by_key": "corpus",
    "load_word_vectors": "vectors",
    "over_seeds": "seeding",
    "parse_named_files": "corpus",
    "read_plain_texts": "plain_text",
    "read_records": "records",
    "seeded": "seeding",
    "temperature_shares": "masked_text",
    "with_progress": "readers.progress",
}

__all__ = [
    "CAPITALISING",
    "CLASSES",
    "CONVENTIONS",
    "ENGLISH_PANEL",
    "LATIN_POOL",
    "SIMILARITY_PANEL",
    "BatchStream",
    "CharVocabulary",
    "Columns",
    "Corpus",
    "CorpusKey",
    "DataError",
    "DomainBatch",
    "DomainData",
    "DomainStream",
    "Draw",
    "EncodedTexts",
    "EncodedTokens",
    "LabelSet",
    "Lexicon",
    "MaskedTextBatch",
    "MaskedTextStream",
    "Masking",
    "NameData",
    "Names",
    "PlainTexts",
    "Ragged",
    "RaggedLabels",
    "ReadReport",
    "Record",
    "RecordReader",
    "TextFile",
    "Texts",
    "TokenCorpus",
    "TokenizerVocabulary",
    "WordVocabulary",
    "capitalised_share",
    "capitalises",
    "count_words",
    "derive_seed",
    "encode_classification",
    "encode_tagging",
    "fingerprint",
    "fixed_batches",
    "group_by_key",
    "load_names",
    "load_word_vectors",
    "over_seeds",
    "parse_named_files",
    "read_plain_texts",
    "read_records",
    "same_convention_sources",
    "seeded",
    "sources_for",
    "temperature_shares",
    "with_progress",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
