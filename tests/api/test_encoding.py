"""Records to ragged texts and labels, and what batches of them hold: against loops over single tokens."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
import weakref
from dataclasses import dataclass

import pytest
import torch

from xferkit.data.encoding import encode_classification, encode_tagging
from xferkit.data.errors import DataError
from xferkit.data.joining import join_texts
from xferkit.data.lexicon import EncodedTexts, EncodedTokens, Lexicon
from xferkit.data.ragged import Ragged, RaggedLabels
from xferkit.data.records import Record, read_records
from xferkit.data.streams import DomainData, DomainStream
from xferkit.data.tokenization import TokenizerVocabulary
from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary, count_words
from xferkit.models import Spellings, TokenSequences

TAGS = ("D", "N", "V")


def sentences(num: int, seed: int = 0) -> list[Record]:
    rng = random.Random(seed)
    words = ["Das", "das", "Haus", "haus", "İst", "gut", "É", "e\u0301t", "日本", "x" * 40, "Zz", "3"]
    rows = [[rng.choice(words) for _ in range(rng.randint(1, 9))] for _ in range(num)]
    return [
        Record(tuple(row), tuple(rng.choice(TAGS) for _ in row), 10 * i + 1) for i, row in enumerate(rows)
    ]


def lexicon(records, max_chars: int = 6, **kwargs) -> Lexicon:
    counts = count_words(record.words() for record in records)
    return Lexicon(
        WordVocabulary.from_counts(counts, lowercase=True, max_size=6),
        CharVocabulary.from_counts(counts, min_count=2),
        max_chars=max_chars,
        **kwargs,
    )


def check(batch: TokenSequences, rows, words: WordVocabulary, chars: CharVocabulary, max_chars: int) -> None:
    """The batch holds these sentences and nothing else, by a loop over their tokens."""
    width = max(map(len, rows), default=0)
    assert batch.ids.shape == batch.flags.shape == batch.spellings.index.shape == (len(rows), width)
    assert batch.lengths.tolist() == [len(row) for row in rows]
    spelled = batch.spellings.chars
    for i, row in enumerate(rows):
        for j in range(width):
            if j >= len(row):
                assert batch.ids[i, j] == batch.flags[i, j] == batch.spellings.index[i, j] == 0
                continue
            ids, flags = chars.numbers(row[j], max_length=max_chars)
            place = int(batch.spellings.index[i, j])
            assert batch.ids[i, j] == words.number(row[j]) and batch.flags[i, j] == flags[0]
            assert spelled.lengths[place] == len(ids)
            assert spelled.ids[place, : len(ids)].tolist() == ids and not spelled.ids[place, len(ids) :].any()
            assert spelled.flags[place, : len(ids)].tolist() == flags
            assert not spelled.flags[place, len(ids) :].any()
    assert len(spelled) == len({word for row in rows for word in row})


# Batches of words


def test_a_batch_holds_words_case_and_characters_of_each_token():
    records = sentences(40)
    lex = lexicon(records)
    texts, labels = encode_tagging(records, lex, LabelSet(TAGS))
    assert len(texts) == len(labels) == 40 and texts.types.flat.dtype == labels.flat.dtype == torch.int32
    for seed in range(20):
        index = torch.randint(40, (seed % 6,), generator=torch.Generator().manual_seed(seed))
        chosen = [records[i] for i in index.tolist()]
        batch = texts.select(index)
        check(batch, [r.tokens for r in chosen], lex.words, lex.chars, 6)
        expected = [
            [TAGS.index(tag) for tag in r.labels] + [-1] * (batch.ids.shape[1] - len(r.tokens))
            for r in chosen
        ]
        assert labels.select(index).tolist() == expected and labels.select(index).dtype == torch.int64


def test_selecting_from_a_batch_or_joining_batches_keeps_words_and_drops_those_left_out():
    records = sentences(30)
    lex = lexicon(records)
    texts, _ = encode_tagging(records, lex, None)
    batch = texts.select(torch.arange(30))
    for rows in ([3], [7, 2, 7], [*range(29, -1, -1)], []):
        part = batch.select(torch.tensor(rows, dtype=torch.int64))
        check(part, [records[i].tokens for i in rows], lex.words, lex.chars, 6)
    joined = TokenSequences.concat([texts.select(torch.tensor(rows)) for rows in ([4, 5], [6], [5, 8])])
    again = joined.select(torch.tensor([4, 0, 2]))
    for i, record in enumerate((8, 4, 6)):
        single = texts.select(torch.tensor([record]))
        part = again.select(torch.tensor([i]))
        assert torch.equal(part.ids, single.ids) and torch.equal(part.flags, single.flags)
        spelled = part.spellings.chars.select(part.spellings.index[0])
        expected = single.spellings.chars.select(single.spellings.index[0])
        assert torch.equal(spelled.ids, expected.ids) and torch.equal(spelled.flags, expected.flags)
    moved = batch.to("meta")
    assert moved.spellings.index.device.type == moved.spellings.chars.ids.device.type == "meta"
    with pytest.raises(ValueError, match="either every part has spellings or none has"):
        TokenSequences.concat([batch, TokenSequences(batch.ids, batch.lengths, batch.flags)])


def test_spellings_by_hand():
    chars = TokenSequences.from_lists([[2, 3], [4], [5, 6, 7]], [[0, 1], [1], [0, 0, 0]])
    index = torch.tensor([[0, 1, 0], [2, 1, 0]])
    batch = TokenSequences(
        torch.tensor([[2, 3, 0], [4, 1, 2]]), torch.tensor([2, 3]), None, Spellings(chars, index)
    )
    first = batch.select(torch.tensor([0]))
    assert first.spellings.index.tolist() == [[0, 1]] and first.spellings.chars.ids.tolist() == [
        [2, 3],
        [4, 0],
    ]
    joined = TokenSequences.concat([first, batch])
    assert joined.spellings.index.tolist() == [[0, 1, 0], [2, 3, 0], [4, 3, 2]]
    assert joined.spellings.chars.ids[4].tolist() == [5, 6, 7] and joined.flags is None


def test_words_met_after_training_are_unknown_but_spelled():
    records = sentences(20)
    lex = lexicon(records)
    texts, _ = encode_tagging(records, lex, None)
    before, size = texts.select(torch.arange(20)), len(lex)
    fresh = [Record(("Haus", "Neues", "neues", "☃", "Neues"), None, 1)]
    new, _ = encode_tagging(fresh, lex, None)
    assert len(lex) == size + 3
    batch = new.select(torch.tensor([0]))
    check(batch, [fresh[0].tokens], lex.words, lex.chars, 6)
    assert batch.ids[0].tolist() == [lex.words.number("Haus"), 1, 1, 1, 1] and batch.ids[0, 0] > 1
    assert batch.flags[0].tolist() == [1, 1, 0, 0, 1]
    # What was read before is what it was, though the lexicon has grown since.
    many, _ = encode_tagging([Record((f"w{i}",), None, 1) for i in range(500)], lex, None)
    check(many.select(torch.tensor([499])), [("w499",)], lex.words, lex.chars, 6)
    after = texts.select(torch.arange(20))
    assert torch.equal(before.ids, after.ids) and torch.equal(
        before.spellings.chars.ids, after.spellings.chars.ids
    )


def test_languages_with_embeddings_of_their_own_share_a_vocabulary_by_prefix():
    words = WordVocabulary(["de:die", "en:die"])
    chars = CharVocabulary(["die"], min_count=1)
    parts = []
    for number, language in enumerate(("de", "en"), 2):
        lex = Lexicon(words, chars, prefix=f"{language}:")
        texts, _ = encode_tagging([Record(("die", "de:die"), None, 1)], lex, None)
        assert texts.select(torch.tensor([0])).ids.tolist() == [[number, 1]]
        parts.append(DomainData(language, texts))
    # Lexicons differ, so batches are joined after padding.
    batch = DomainStream(parts, 2, seed=0, name="s").next()
    assert batch.inputs.ids.tolist() == [[2, 1], [2, 1], [3, 1], [3, 1]]
    with pytest.raises(ValueError, match="share one lexicon"):
        EncodedTexts.concat([part.inputs for part in parts])


def test_a_lexicon_comes_back_from_json():
    lex = lexicon(sentences(20), max_chars=5, prefix="x:")
    again = Lexicon.from_json(lex.to_json())
    assert again.to_json() == lex.to_json() and len(again) == 0 and again.max_chars == 5
    for bad in ({}, lex.to_json() | {"words": None}, lex.to_json() | {"max_chars": "5"}):
        with pytest.raises(ValueError, match=r"^Lexicon: expected kind 'lexicon'"):
            Lexicon.from_json(bad)
    with pytest.raises(ValueError, match="max_chars must be at least 1, got 0"):
        Lexicon(lex.words, lex.chars, max_chars=0)


def test_streams_of_encoded_texts_give_what_streams_of_padded_ones_give():
    parts = [sentences(15, seed) for seed in (1, 2)]
    lex = lexicon([*parts[0], *parts[1]])
    encoded = [encode_tagging(part, lex, LabelSet(TAGS)) for part in parts]

    def stream(pad: bool) -> DomainStream:
        domains = []
        for i, (texts, labels) in enumerate(encoded):
            everything = torch.arange(len(texts))
            inputs = texts.select(everything) if pad else texts
            domains.append(DomainData(str(i), inputs, labels.select(everything) if pad else labels))
        return DomainStream(domains, 4, seed=0, name="s", bucket=2)

    ragged, padded = stream(False), stream(True)
    for _ in range(10):
        a, b = ragged.next(), padded.next()
        assert torch.equal(a.inputs.ids, b.inputs.ids) and torch.equal(a.inputs.flags, b.inputs.flags)
        assert torch.equal(a.labels, b.labels) and torch.equal(a.token_counts, b.token_counts)
        assert torch.equal(a.labels >= 0, a.inputs.mask)
        spelled = [x.inputs.spellings.chars.ids[x.inputs.spellings.index] for x in (a, b)]
        assert torch.equal(spelled[0][a.inputs.mask], spelled[1][b.inputs.mask])


# Batches of characters and pieces


def test_texts_of_characters_are_those_of_the_vocabulary():
    records = [Record((), "a", i, text) for i, text in enumerate(["Das Haus", "É", "x" * 60, "日本 3"])]
    chars = CharVocabulary([record.text for record in records], min_count=1)
    labels = LabelSet(["b", "a"])
    for lowercase, max_length in ((False, 48), (True, 3)):
        texts, classes = encode_classification(
            records, chars, labels, lowercase=lowercase, max_length=max_length
        )
        expected = chars.encode([r.text for r in records], lowercase=lowercase, max_length=max_length)
        got = texts.select(torch.arange(4))
        assert torch.equal(got.ids, expected.ids) and torch.equal(got.flags, expected.flags)
        assert torch.equal(got.lengths, expected.lengths) and got.spellings is None
        assert classes.tolist() == [1] * 4 and classes.dtype == torch.int64
    texts, classes = encode_classification(records, chars, None)
    assert texts.lengths.tolist() == [8, 1, 60, 4] and classes is None


def test_texts_of_words_and_pieces():
    pytest.importorskip("tokenizers", reason="the package tokenizers is optional")
    records = [Record((), "a", 1, "das  Haus ist"), Record(("das", "Haus"), "b", 2)]
    lex = lexicon(records)
    texts, classes = encode_classification(iter(records), lex, LabelSet(["a", "b"]), max_length=2)
    check(texts.select(torch.arange(2)), [("das", "Haus")] * 2, lex.words, lex.chars, 6)
    assert classes.tolist() == [0, 1]
    pieces = TokenizerVocabulary.train(["das Haus ist"] * 9, size=20)
    texts, _ = encode_classification(records, pieces, None, max_length=2)
    batch = texts.select(torch.arange(2))
    assert batch.flags is None and batch.ids[0].tolist() == pieces.numbers("das Haus ist")[:2]
    assert batch.ids[1, : batch.lengths[1]].tolist() == pieces.numbers("das Haus")[:2]
    assert len(pieces.numbers("das Haus ist")) > 2
    with pytest.raises(ValueError, match="either every part has flags"):
        EncodedTokens.concat([texts, EncodedTokens(Ragged.from_lists([[2]]), with_flags=True)])
    with pytest.raises(ValueError, match="max_length must be at least 1"):
        encode_classification(records, lex, None, max_length=0)


def test_texts_of_several_kinds_are_numbered_through():
    parts = [
        TokenSequences.from_lists([[2], [3, 3]], [[0], [0, 0]]),
        EncodedTokens(Ragged.from_lists([[8, 9, 9], [10]]), with_flags=True),
        EncodedTokens(Ragged.from_lists([[12, 12]]), with_flags=True),
    ]
    for texts in (join_texts(parts), join_texts([parts[1], parts[2]])):
        every = texts.select(torch.arange(len(texts)))
        assert len(texts) == len(every) and texts.lengths.tolist() == every.lengths.tolist()
        for rows in ([len(texts) - 1, 0, 1, 0], [1], [2, 0]):
            got, expected = texts.select(torch.tensor(rows)), every.select(torch.tensor(rows))
            assert torch.equal(got.ids, expected.ids) and torch.equal(got.flags, expected.flags)
    assert join_texts(parts).select(torch.arange(5)).ids[:, 0].tolist() == [2, 3, 4, 5, 6]


# Errors


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record(("a", "b"), ("D",), 7), "f.tsv:7: 2 tokens but 1 tags; expected a tag for each token"),
        (Record(("a",), None, 7), "f.tsv:7: the sentence has no tags; expected"),
        (Record(("a",), "D", 7), "f.tsv:7: the sentence has no tags; expected"),
        (Record(("a",), ("Q",), 7), "f.tsv:7: unknown label 'Q'; expected one of D, N, V"),
        (Record((), (), 7), "f.tsv:7: the text is empty; expected at least one token"),
        (Record(("a", ""), ("D", "D"), 7), "f.tsv:7: a word is empty; expected"),
    ],
)
def test_sentences_that_cannot_be_encoded_are_named(record, message):
    lex = lexicon(sentences(5))
    with pytest.raises(DataError) as caught:
        encode_tagging([Record(("a",), ("D",), 1), record], lex, LabelSet(TAGS), path="f.tsv")
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)
    assert (caught.value.path, caught.value.line) == ("f.tsv", 7)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (Record((), None, 3, "x"), "records:3: the text has no class; expected one label"),
        (Record((), "c", 3, "x"), "records:3: unknown label 'c'; expected one of a, b"),
        (Record((), "a", 3, ""), "records:3: the text is empty; expected at least one token"),
    ],
)
def test_texts_that_cannot_be_encoded_are_named(record, message):
    for vocabulary in (CharVocabulary(["x"], min_count=1), lexicon(sentences(5))):
        with pytest.raises(DataError) as caught:
            encode_classification([record], vocabulary, LabelSet(["a", "b"]))
        assert str(caught.value).startswith(message)


def test_a_readers_file_is_named_without_being_told(tmp_path):
    path = tmp_path / "en.conll"
    path.write_text("das\tD\nHaus\tN\n\nist\tX\n")
    reader = read_records(path, task="tagging")
    with pytest.raises(DataError, match=r"en\.conll:4: unknown label 'X'"):
        encode_tagging(reader, lexicon(sentences(5)), LabelSet(TAGS))


# Memory


def test_records_are_let_go_one_by_one():
    @dataclass(frozen=True)
    class Kept(Record):
        pass

    alive: list[weakref.ref] = []

    def records():
        for i in range(50):
            record = Kept((f"w{i}",), ("D",), i)
            assert sum(ref() is not None for ref in alive) <= 1
            alive.append(weakref.ref(record))
            yield record
            del record

    texts, _ = encode_tagging(records(), lexicon(sentences(5)), LabelSet(TAGS))
    assert len(texts) == 50 and len(alive) == 50


def test_texts_take_four_bytes_a_token_and_four_a_label():
    script = """
        import re
        from pathlib import Path
        from xferkit.data.encoding import encode_tagging
        from xferkit.data.lexicon import Lexicon
        from xferkit.data.records import Record
        from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary

        words = [f"word{i}" for i in range(1000)]
        tags = ("N",) * 20

        def records(num):
            for i in range(num):
                yield Record(tuple(words[(i * 7 + j * 13) % 1000] for j in range(20)), tags, i)

        def peak():
            # Not ru_maxrss: a child starts with that of its parent.
            return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

        lexicon = Lexicon(WordVocabulary(words), CharVocabulary(words))
        labels = LabelSet(["N"])
        encode_tagging(records(2000), lexicon, labels)
        before = peak()
        texts, tags = encode_tagging(records(50_000), lexicon, labels)
        print(texts.types.flat.nbytes + tags.flat.nbytes + texts.types.offsets.nbytes, peak() - before)
    """
    out = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    held, grown = map(int, out.stdout.split())
    assert held == 1_000_000 * 8 + 50_001 * 8
    # Growing arrays hold a copy for a moment; an object a token would take 50 MB and more.
    assert grown < 3 * held


def test_ragged_rows_of_every_kind():
    ragged = Ragged.from_lists([[5], [], [6, 7, 8], []])
    values, lengths, mask = ragged.rows(torch.tensor([3, 2, 1, 0]))
    assert lengths.tolist() == [0, 3, 0, 1] and mask.sum(1).tolist() == [0, 3, 0, 1]
    assert values[1].tolist() == [6, 7, 8] and values[3, 0] == 5
    both = Ragged.concat([ragged, ragged])
    assert both.offsets.tolist() == [0, 1, 1, 4, 4, 5, 5, 8, 8] and len(both) == 8
    labels = RaggedLabels.from_padded(torch.tensor([[1, 2], [0, -1], [-1, -1]]))
    assert labels.flat.tolist() == [1, 2, 0] and labels.offsets.tolist() == [0, 2, 3, 3]
    assert labels.select(torch.tensor([1, 0])).tolist() == [[0, -1], [1, 2]]
    assert labels.select(torch.tensor([], dtype=torch.int64)).shape == (0, 0)
    empty, _ = encode_tagging([], lexicon(sentences(3)), LabelSet(TAGS))
    assert len(empty) == 0 and empty.select(torch.tensor([], dtype=torch.int64)).ids.shape == (0, 0)
