"""Hashed texts, the dual encoder, pairs of texts, and retrieval by what texts share."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch

from xferkit.data.errors import DataError
from xferkit.data.hashing import TextHasher, character_grams, hash_bucket, split_words
from xferkit.data.pair_streams import PairData, PairStream
from xferkit.data.pairs import PairName, pair_groups, read_pairs, text_groups
from xferkit.methods.dual_encoder import PAIRS, DualEncoderConfig, DualEncoderMethod
from xferkit.models.hashed_text import HashedEncoderConfig, HashedTextEncoder
from xferkit.ranking import overlap_ranks, word_grams

SMALL = HashedEncoderConfig(word_buckets=97, gram_buckets=89, dim=8, out_dim=6)


# ---- hashing


def test_buckets_are_crc32_of_utf8() -> None:
    assert hash_bucket("straße", 1000) == zlib.crc32("straße".encode()) % 1000
    assert hash_bucket("", 7) == 0


def test_words_and_grams() -> None:
    assert split_words("Ein Hund, 2 Katzen!") == ["ein", "hund", ",", "2", "katzen", "!"]
    assert split_words("Cafe\u0301") == ["caf\u00e9"]  # one form for what looks the same
    assert split_words("  \n ") == [] and split_words("a b c", max_words=2) == ["a", "b"]
    assert character_grams("ab", 3) == ["<ab", "ab>"] and character_grams("a", 4) == ["<a>"]


def test_texts_are_their_words() -> None:
    hasher = TextHasher(SMALL)
    texts = hasher(["a dog", "", "dog a dog"])
    assert texts.lengths.tolist() == [2, 0, 3] and len(texts.words) == 2
    again = texts.select(torch.tensor([2, 1]))
    assert again.lengths.tolist() == [3, 0]
    assert again.words.buckets[again.index].tolist() == [hash_bucket(w, 97) for w in ("dog", "a", "dog")]


# ---- the encoder


def test_order_and_batch_do_not_matter() -> None:
    torch.manual_seed(0)
    encoder, hasher = HashedTextEncoder(SMALL), TextHasher(SMALL)
    alone = encoder(hasher(["a dog runs"]))
    batch = encoder(TextHasher(SMALL)(["something else", "runs a dog", ""]))
    torch.testing.assert_close(alone[0], batch[1])
    assert encoder.projection is not None
    torch.testing.assert_close(batch[2], encoder.projection.bias)  # no words: the mean is zero


def test_a_text_is_the_mean_of_its_words_by_hand() -> None:
    torch.manual_seed(0)
    encoder = HashedTextEncoder(SMALL)
    embedder = encoder.embedder
    vectors = []
    for word in ("ein", "hund"):
        vector = embedder.words.weight[hash_bucket(word, 97)]
        for size, table, layer in zip((3, 4), embedder.grams, embedder.layers, strict=True):
            grams = [table.weight[hash_bucket(gram, 89)] for gram in character_grams(word, size)]
            vector = vector + torch.tanh(layer(torch.stack(grams).sum(0)))
        vectors.append(vector)
    wanted = encoder.projection(torch.stack(vectors).mean(0))
    torch.testing.assert_close(encoder(TextHasher(SMALL)(["Ein Hund"]))[0], wanted)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HashedEncoderConfig(dim=0), "dim must be at least 1, got 0"),
        (lambda: HashedEncoderConfig(gram_sizes=(3, 3)), "gram_sizes must be different"),
        (lambda: HashedEncoderConfig(init_scale=0.0), "init_scale must be positive"),
        (lambda: DualEncoderConfig(scale=0.0), "scale must be positive"),
        (lambda: DualEncoderConfig(batch_size=1), "batch_size must be at least 2"),
        (lambda: DualEncoderMethod(SMALL, DualEncoderConfig(head=(5,))), "head must be sizes that end in"),
    ],
)
def test_settings_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_adam_undoes_a_factor_on_the_embeddings() -> None:
    assert "no effect with Adam" in DualEncoderConfig(embedding_multiplier=100.0).notes()[0]
    config = DualEncoderConfig(optimizer="sgd", learning_rate=0.008, embedding_multiplier=100.0)
    assert not config.notes()
    groups = DualEncoderMethod(SMALL, config).optimizers["main"].param_groups
    assert [group["lr"] for group in groups] == pytest.approx([0.008, 0.8])


# ---- pairs


def test_names_of_pairs() -> None:
    name = PairName.parse("en-de/flickr")
    assert (name.languages, name.domain, str(name)) == (("en", "de"), "flickr", "en-de/flickr")
    for wrong in ("en", "en-", "en-de-fr", "en-en"):
        with pytest.raises(DataError, match="no pair of languages"):
            PairName.parse(wrong)


def test_pairs_of_a_table_by_their_columns(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv.gz"
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.write("id\ten\tde\n1\ta dog\tein Hund\n2\ta cat\teine Katze\n")
    assert [(p.first, p.second, p.line) for p in read_pairs(path, ("de", "en"))] == [
        ("ein Hund", "a dog", 2),
        ("eine Katze", "a cat", 3),
    ]
    bare = tmp_path / "bare.tsv"
    bare.write_text("a dog\tein Hund\n")
    assert [p.second for p in read_pairs(bare, ("en", "de"))] == ["ein Hund"]
    lines = tmp_path / "pairs.jsonl"
    lines.write_text(json.dumps({"en": "a dog", "x": "ein Hund"}) + "\n")
    assert [p.second for p in read_pairs(lines, ("en", "de"), columns={"de": "x"})] == ["ein Hund"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("en\tfr\na\tb\n", r"pairs.tsv:1: no column .*de"),
        ("en\tde\na dog\n", r"pairs.tsv:2: "),
        ("en\tde\na dog\t\n", r"pairs.tsv:2: "),
        ("", "pairs.tsv"),
    ],
)
def test_files_that_hold_no_pairs(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        list(read_pairs(path, ("en", "de")))


def test_pairs_that_share_a_text_are_one_group() -> None:
    assert text_groups(["a", "b", "a"]).tolist() == [0, 1, 0]
    groups = pair_groups(["a", "a", "b", "c"], ["x", "y", "y", "z"]).tolist()
    assert groups[0] == groups[1] == groups[2] != groups[3]


def _toy(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Sentences of made-up words, and the same in another spelling, word for word."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 60, (count, 5), generator=rng).tolist()
    return [" ".join(f"w{i}a" for i in row) for row in rows], [
        " ".join(f"{i}zz" for i in row) for row in rows
    ]


def _stream(seed: int = 0) -> PairStream:
    hasher, (first, second) = TextHasher(SMALL), _toy(50)
    data = PairData("a-b", hasher(first), hasher(second), pair_groups(first, second))
    return PairStream([data, data], 16, seed=seed, name=PAIRS)


def test_a_stream_goes_on_where_it_stood() -> None:
    one, other = _stream(), _stream()
    for _ in range(5):
        one.next()
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        a, b = one.next(), other.next()
        assert (
            torch.equal(a.groups, b.groups) and torch.equal(a.first.index, b.first.index) and a.pair == b.pair
        )
    with pytest.raises(ValueError, match="belongs to other data or settings: seed"):
        _stream(seed=1).load_state_dict(one.state_dict())
    with pytest.raises(ValueError, match="cannot be cut into 2 shards"):
        one.draw().shard(0, 2)


# ---- retrieval by shared words


def test_overlap_by_hand() -> None:
    ranks = overlap_ranks(["red dog", "blue cat", "green"], ["red dog", "cat", "house"])
    assert ranks.tolist() == [1, 1, 3]  # one that shares nothing ranks behind all that share as little
    assert overlap_ranks(["Haus"], ["Hausboot", "Baum"], terms=word_grams).tolist() == [1]
    assert overlap_ranks([], []).shape == (0,)
    with pytest.raises(ValueError, match="a key for each of 2"):
        overlap_ranks(["a", "b"], ["a"])
