"""Pieces of words learnt from texts: a vocabulary on the package ``tokenizers``, which is optional."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from xferkit.data.errors import DataError, printable

__all__ = ["PieceModel", "TokenizerVocabulary"]

PieceModel = Literal["bpe", "unigram"]
"""How pieces are learnt: merges of frequent pairs, or a unigram language model."""

_PADDING, _UNKNOWN = "[PAD]", "[UNK]"
#: What other people's files call the two.
_PADDING_NAMES = (_PADDING, "<pad>", "<PAD>")
_UNKNOWN_NAMES = (_UNKNOWN, "<unk>", "<UNK>")


class TokenizerVocabulary:
    """The pieces of a tokenizer with this library's numbers: 0 padding, 1 unknown, from 2 on the pieces.

    Args:
        tokenizer: a ``tokenizers.Tokenizer``.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Cutting and padding are ours to do; a file may ask for them too.
        tokenizer.no_padding()
        tokenizer.no_truncation()
        pieces: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        unknown = _unknown_name(tokenizer, pieces)
        self._numbers: dict[int, int] = {}
        following = 2
        for piece, number in sorted(pieces.items(), key=lambda item: item[1]):
            if piece in _PADDING_NAMES or piece == unknown:
                # A padding piece that is written out in a text is nothing a model knows.
                self._numbers[number] = 1
            else:
                self._numbers[number] = following
                following += 1
        self._size = following

    @classmethod
    def train(
        cls, texts: Iterable[str], *, size: int = 8000, model: PieceModel = "bpe", lowercase: bool = False
    ) -> TokenizerVocabulary:
        """Learn pieces from texts, gone through once; the same texts in the same order give the same pieces.

        Args:
            texts: the texts.
            size: numbers in all, padding and unknown included; fewer when the texts give no more.
            model: ``"bpe"`` or ``"unigram"``.
            lowercase: learn and apply in lower case.

        Raises:
            ValueError: for an unknown model, a size below 3, texts without any word, or when the package
                ``tokenizers`` is missing.
        """
        if model not in get_args(PieceModel):
            raise ValueError(f"TokenizerVocabulary: model must be 'bpe' or 'unigram', got {model!r}")
        if size < 3:
            raise ValueError(f"TokenizerVocabulary: size must be at least 3, got {size}")
        package = _package()
        special = {"special_tokens": [_PADDING, _UNKNOWN], "vocab_size": size, "show_progress": False}
        if model == "bpe":
            tokenizer = package.Tokenizer(package.models.BPE(unk_token=_UNKNOWN))
            trainer = package.trainers.BpeTrainer(**special)
        else:
            tokenizer = package.Tokenizer(package.models.Unigram())
            trainer = package.trainers.UnigramTrainer(unk_token=_UNKNOWN, **special)
        forms = [package.normalizers.NFC(), *([package.normalizers.Lowercase()] if lowercase else [])]
        tokenizer.normalizer = package.normalizers.Sequence(forms)
        # Pieces that begin a word carry a mark, so that the text can be put together again.
        split = package.pre_tokenizers
        tokenizer.pre_tokenizer = split.Sequence([split.WhitespaceSplit(), split.Metaspace()])
        tokenizer.decoder = package.decoders.Metaspace()
        some = _NotEmpty(texts)
        tokenizer.train_from_iterator(some, trainer)
        if not some.found:
            raise ValueError("TokenizerVocabulary: expected texts to learn pieces from, got none")
        return cls(tokenizer if model == "bpe" else _rounded(tokenizer))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> TokenizerVocabulary:
        """A ``tokenizer.json`` of the package ``tokenizers``.

        Raises:
            DataError: when the file cannot be read or is none.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise DataError(
                f"{printable(path)}: {reason}; expected a tokenizer.json of the package tokenizers"
            ) from None
        return cls(_parsed(text, printable(path)))

    def __len__(self) -> int:
        """Number of embeddings needed: padding, unknown, and the pieces."""
        return self._size

    def pieces(self, text: str) -> list[str]:
        """The pieces of a text."""
        tokens: list[str] = self._tokenizer.encode(text, add_special_tokens=False).tokens
        return tokens

    def numbers(self, text: str) -> list[int]:
        """The numbers of the pieces of a text; empty for a text of white space."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        return [self._numbers[number] for number in ids]

    def to_json(self) -> dict[str, Any]:
        """The whole tokenizer, for :meth:`from_json`."""
        return {"kind": "tokenizer", "tokenizer": json.loads(self._tokenizer.to_str())}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TokenizerVocabulary:
        """The vocabulary that :meth:`to_json` wrote; ValueError when it is none."""
        tokenizer = data.get("tokenizer")
        if data.get("kind") != "tokenizer" or not isinstance(tokenizer, dict):
            raise ValueError(
                "TokenizerVocabulary: expected kind 'tokenizer' and a dictionary under 'tokenizer', got kind "
                f"{data.get('kind')!r} and {type(tokenizer).__name__}"
            )
        return cls(_parsed(json.dumps(tokenizer), "TokenizerVocabulary"))


class _NotEmpty:
    """Passes texts on and notices whether there was a word among them."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts, self.found = iter(texts), False

    def __iter__(self) -> _NotEmpty:
        return self

    def __next__(self) -> str:
        text = next(self._texts)
        self.found = self.found or bool(text.strip())
        return text


def _rounded(tokenizer: Any) -> Any:
    # The package sums scores in an order that differs from run to run, which shows from the 14th digit on, and
    # reads its own files to the 15th: without this, neither a second training nor a file gave the same numbers.
    data = json.loads(tokenizer.to_str())
    special, pieces = data["model"]["vocab"][:2], data["model"]["vocab"][2:]
    scores = sorted((-round(score, 6), piece) for piece, score in pieces)
    data["model"]["vocab"] = [*special, *([piece, -score] for score, piece in scores)]
    return _parsed(json.dumps(data), "TokenizerVocabulary")


def _unknown_name(tokenizer: Any, pieces: Mapping[str, int]) -> str | None:
    named = getattr(tokenizer.model, "unk_token", None)
    if isinstance(named, str):
        return named
    return next((name for name in _UNKNOWN_NAMES if name in pieces), None)


def _parsed(text: str, where: str) -> Any:
    package = _package()
    try:
        return package.Tokenizer.from_str(text)
    except Exception as error:  # the package raises Exception itself
        raise DataError(
            f"{where}: {' '.join(str(error).split())}; expected a tokenizer.json of the package tokenizers"
        ) from None


def _package() -> Any:
    try:
        return importlib.import_module("tokenizers")
    except ImportError:
        raise ValueError(
            "TokenizerVocabulary needs the package tokenizers, which is not installed: pip install tokenizers"
        ) from None
