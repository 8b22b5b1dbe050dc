"""Plain texts of a language, masks, languages' shares, and streams of batches of one language."""

from __future__ import annotations

import gzip
import math
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xferkit.data import (
    DataError,
    MaskedTextBatch,
    MaskedTextStream,
    Masking,
    Ragged,
    TextFile,
    TokenCorpus,
    TokenizerVocabulary,
    fixed_batches,
    read_plain_texts,
    temperature_shares,
)
from xferkit.data.samplers import make_shares

DATA = Path(os.environ.get("XFER_DATA", Path(__file__).resolve().parents[3] / "shared/data"))
VOCAB = 40  # the last number, 39, is the mask


def corpus(name: str, texts: int, seed: int = 0, longest: int = 12) -> TokenCorpus:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (texts,), generator=generator).tolist()
    rows = [torch.randint(1, VOCAB - 1, (n,), generator=generator).tolist() for n in lengths]
    return TokenCorpus(name, Ragged.from_lists(rows))


def stream(**options: Any) -> MaskedTextStream:
    settings: dict[str, Any] = {"max_length": 8, "seed": 3, "sampler": "cycling"}
    return MaskedTextStream(
        [corpus("a", 29, 1), corpus("b", 17, 2)], 6, Masking(VOCAB), **(settings | options)
    )


def same(one: MaskedTextBatch, other: MaskedTextBatch) -> bool:
    fields = ("tokens", "lengths", "positions", "labels")
    return one.language == other.language and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in fields
    )


def restored(batch: MaskedTextBatch) -> Tensor:
    """The tokens with the labels in their places."""
    return batch.tokens.flatten().scatter(0, batch.positions, batch.labels).view(batch.tokens.shape)


# ---- files


def test_texts_of_files_of_every_kind(tmp_path: Path) -> None:
    lines = tmp_path / "a.txt"
    lines.write_text("  ein Hund \n\nCafe\u0301\n", encoding="utf-8")
    table = tmp_path / "b.tsv.gz"
    with gzip.open(table, "wt", encoding="utf-8") as file:
        file.write("en\tde\na dog\tein Hund\nx\t  \na cat\tdie Katze\nthe end\tEnde\n")
    tokens = tmp_path / "c.tsv"
    tokens.write_text("Das\tDET\nist\tAUX\n\nCaf\u00e9\tNOUN\n")
    objects = tmp_path / "d.jsonl"
    objects.write_text('{"text": "noch eins"}\n')
    found = read_plain_texts([lines, TextFile(table, "de"), tokens, objects], without=[" Ende"])
    wanted = ["ein Hund", "Caf\u00e9", "die Katze", "Das ist", "noch eins"]
    assert list(found) == wanted == list(found)
    report = found.report
    assert (report.read, report.kept, report.empty, report.repeated, report.excluded) == (9, 5, 1, 2, 1)
    assert report.summary() == "9 texts read, 5 kept (1 empty, 2 repeated, 1 excluded)"
    assert report.read == report.kept + report.empty + report.repeated + report.excluded


@pytest.mark.parametrize(
    ("name", "column", "text", "words"),
    [
        ("a.tsv", "de", "en\tfr\na\tb\n", r"a.tsv:1: no column 'de' among en, fr; expected it"),
        ("a.tsv", "de", "en\tde\na\tb\nc\n", r"a.tsv:3: 1 column; expected 2"),
        ("a.tsv", None, "Das\tDET\nist\n", r"a.tsv:2: 1 column; expected 2 as in line 1"),
        ("a.txt", None, "", r"a.txt: the file holds no rows; expected at least one text"),
        ("a.xyz", "de", "en\n", r"a.xyz: the suffix '.xyz' names no format"),
    ],
)
def test_files_that_hold_no_texts(tmp_path: Path, name: str, column: str, text: str, words: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        list(read_plain_texts([TextFile(path, column)]))


def test_arguments_about_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least one file"):
        read_plain_texts([])
    with pytest.raises(DataError, match="kind must be one of auto, lines, table, tokens, got 'x'"):
        TextFile("a.txt", kind="x")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="a file of lines has no columns"):
        TextFile("a.txt", "de", "lines")
    with pytest.raises(DataError, match=r"none\.txt: no such file"):
        list(read_plain_texts([tmp_path / "none.txt"]))
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good\n\xff\xfe bad\n")
    with pytest.raises(DataError, match=r"bad\.txt:2: byte 0xff"):
        list(read_plain_texts([bad]))


def test_real_files() -> None:
    if not (DATA / "MANIFEST.tsv").is_file():
        pytest.skip(f"no data in {DATA}: set XFER_DATA")
    files = [
        TextFile(DATA / "multi30k/val.tsv.gz", "de"),
        TextFile(DATA / "tatoeba/de-en.tsv.gz", "de"),
        TextFile(DATA / "topic/sib200/de-dev.tsv.gz", "text"),
        TextFile(DATA / "ud/de/dev.tsv.gz"),
    ]
    texts = read_plain_texts(files)
    listed = list(texts)
    assert texts.report.read == 1014 + 1000 + 99 + 1000
    assert len(set(listed)) == len(listed) == texts.report.kept > 3000
    assert all(text == text.strip() and text for text in listed)


# ---- numbers, shares and masks


def test_a_vocabulary_and_one_number_for_the_mask() -> None:
    vocabulary = TokenizerVocabulary.train(["ein Hund", "eine Katze"], size=30)
    found = TokenCorpus.encode("de", ["ein Hund", "Katze"], vocabulary)
    assert len(found) == 2 and found.num_tokens == len(found.texts.flat) and found.size("texts") == 2
    assert found.texts.flat.tolist() == vocabulary.numbers("ein Hund") + vocabulary.numbers("Katze")
    masking = Masking(len(vocabulary) + 1)
    assert masking.mask == len(vocabulary) > int(found.texts.flat.max())


def test_shares_by_hand() -> None:
    root = [math.sqrt(900 / 1000), math.sqrt(100 / 1000)]
    wanted = torch.tensor([root[0] / sum(root), root[1] / sum(root)], dtype=torch.float64)
    torch.testing.assert_close(temperature_shares([900, 100], 2.0), wanted)
    torch.testing.assert_close(wanted, torch.tensor([0.75, 0.25], dtype=torch.float64))
    assert temperature_shares([900, 100], 1.0).tolist() == pytest.approx([0.9, 0.1])
    assert temperature_shares([900, 100], 1e9).tolist() == pytest.approx([0.5, 0.5])
    sampler = make_shares("temperature", [900, 100], 1, temperature=2.0, generator=torch.Generator())
    assert torch.equal(sampler._probabilities, temperature_shares([900, 100], 2.0))
    for sizes, temperature in (([1, 0], 1.0), ([1, 2], 0.0)):
        with pytest.raises(ValueError, match="sizes and temperature must be above 0"):
            temperature_shares(sizes, temperature)


@pytest.mark.parametrize("by", ["tokens", "texts"])
def test_a_stream_draws_languages_by_their_shares(by: Any) -> None:
    parts = [corpus("a", 300, 1, longest=3), corpus("b", 40, 2, longest=30)]
    found = MaskedTextStream(parts, 1, Masking(VOCAB), max_length=4, seed=0, temperature=2.0, by=by)
    wanted = float(temperature_shares([part.size(by) for part in parts], 2.0)[0])
    draws = 1500
    share = sum(found.draw().language == 0 for _ in range(draws)) / draws
    assert abs(share - wanted) < 4 * math.sqrt(wanted * (1 - wanted) / draws)


def test_masks_are_as_often_as_they_should() -> None:
    masking, total = Masking(VOCAB), 200_000
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCAB - 1, (total,), generator=generator)
    found, selected = masking.apply(tokens, generator)

    def near(count: int, of: int, share: float) -> bool:
        return abs(count - of * share) < 4 * math.sqrt(of * share * (1 - share))

    chosen = int(selected.sum())
    assert near(chosen, total, 0.15)
    assert torch.equal(found[~selected], tokens[~selected])
    before, after = tokens[selected], found[selected]
    assert near(int((after == masking.mask).sum()), chosen, 0.8)
    pieces = VOCAB - 3  # neither padding, unknown nor mask
    others = after[(after != masking.mask) & (after != before)]
    assert near(len(others), chosen, 0.1 * (1 - 1 / pieces))
    assert near(int((after == before).sum()), chosen, 0.1 + 0.1 / pieces)
    counts = Counter(others.tolist())
    assert set(counts) == set(range(2, VOCAB - 1))
    assert all(near(count, len(others), 1 / pieces) for count in counts.values())


def test_masks_at_the_ends() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((50,), 7)
    found, selected = Masking(VOCAB, 1.0, (1.0, 0.0, 0.0)).apply(tokens, generator)
    assert selected.all() and (found == VOCAB - 1).all()
    found, selected = Masking(VOCAB, 1.0, (0.0, 0.0, 1.0)).apply(tokens, generator)
    assert selected.all() and torch.equal(found, tokens)
    found, selected = Masking(VOCAB, 1.0, (0.0, 1.0, 0.0)).apply(torch.full((5000,), 7), generator)
    assert selected.all() and set(found.tolist()) == set(range(2, VOCAB - 1))
    for _ in range(20):  # one token at least, whatever the share
        assert int(Masking(VOCAB, 1e-9).apply(tokens, generator)[1].sum()) == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Masking(3), "vocab_size must be at least 4"),
        (lambda: Masking(9, 0.0), r"share must be in \(0, 1\], got 0.0"),
        (lambda: Masking(9, split=(0.8, 0.1, 0.2)), "three probabilities that sum to 1"),
        (lambda: MaskedTextStream([], 2, Masking(9), max_length=4, seed=0), "at least one language"),
        (lambda: stream(max_length=0), "max_length of 1 or more"),
        (lambda: stream(by="words"), "by one of tokens, texts.* got 8, 0 and 'words'"),
        (lambda: stream(sampler="x"), "sampler must be one of temperature, cycling, got 'x'"),
        (lambda: stream(sampler="temperature", temperature=0.0), "'masked': temperature must be above 0"),
        (lambda: stream(only="c"), "one of the languages a, b, got 'c'"),
        (lambda: stream().draw("c"), "one of the languages a, b, got 'c'"),
    ],
)
def test_settings_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([[2], []], "text 1 of language 'x' has no tokens"),
        ([], "language 'x' has no texts"),
        ([[2, 0]], "holds the numbers 0 to 2; expected 1 to 38, as 0 is padding and 39 the mask"),
        ([[39]], "holds the numbers 39 to 39"),
    ],
)
def test_texts_that_cannot_be(rows: list[list[int]], words: str) -> None:
    bad = TokenCorpus("x", Ragged.from_lists(rows))
    with pytest.raises(ValueError, match=f"MaskedTextStream 'masked': .*{words}"):
        MaskedTextStream([bad], 2, Masking(VOCAB), max_length=4, seed=0)
    with pytest.raises(ValueError, match=f"fixed_batches: .*{words}"):
        fixed_batches(bad, Masking(VOCAB), max_length=4)


# ---- batches


def test_a_batch_is_of_one_language_and_cut() -> None:
    parts = [corpus("a", 29, 1), corpus("b", 17, 2)]
    rows = [[part.texts.flat[s:e].tolist() for s, e in _bounds(part)] for part in parts]
    found = stream()
    for turn in range(12):
        batch = found.next()
        assert batch.language == turn % 2 and batch.tokens.shape == (6, int(batch.lengths.max()))
        assert len(batch.labels) == len(batch.positions) >= 1
        real = torch.arange(batch.tokens.shape[1]) < batch.lengths.unsqueeze(1)
        assert not batch.tokens[~real].any() and (batch.tokens[real] > 0).all()
        assert real.flatten()[batch.positions].all()
        texts = restored(batch)
        for text, length in zip(texts.tolist(), batch.lengths.tolist(), strict=True):
            whole = [row for row in rows[batch.language] if row[:8] == text[:length]]
            assert whole and min(len(whole[0]), 8) == length
        assert batch.share == 1.0 or float(batch.share) == 1.0
        assert batch.to("cpu") is batch


def _bounds(part: TokenCorpus) -> list[tuple[int, int]]:
    offsets = part.texts.offsets.tolist()
    return list(pairwise(offsets))


@pytest.mark.parametrize("bucket", [0, 3])
def test_every_text_comes_once_a_pass(bucket: int) -> None:
    one = TokenCorpus("a", Ragged.from_lists([[2 + i] * (i % 5 + 1) for i in range(18)]))
    found = MaskedTextStream([one], 6, Masking(VOCAB), max_length=8, seed=0, bucket=bucket)
    for _ in range(3):
        seen = Counter(text[0] for _ in range(3) for text in restored(found.next()).tolist())
        assert seen == Counter(range(2, 20))


def test_buckets_leave_less_padding() -> None:
    def padding(bucket: int) -> int:
        parts = [corpus("a", 400, 1, longest=30)]
        found = MaskedTextStream(parts, 8, Masking(VOCAB), max_length=30, seed=0, bucket=bucket)
        batches = [found.next() for _ in range(50)]
        return sum(b.tokens.numel() - int(b.lengths.sum()) for b in batches)

    assert padding(10) < padding(0) / 3


def test_a_language_by_name() -> None:
    one, other = stream(), stream()
    asked = [one.next("b") for _ in range(2)]
    assert [batch.language for batch in asked] == [1, 1]
    assert one.next().language == 0  # whose turn it is did not change
    turns = [other.next() for _ in range(4)]
    assert same(asked[0], turns[1]) and same(asked[1], turns[3])
    alone = stream(only="b", sampler="temperature")
    assert same(alone.next(), asked[0]) and same(alone.next(), asked[1])


@pytest.mark.parametrize("sampler", ["cycling", "temperature"])
@pytest.mark.parametrize("bucket", [0, 3])
@pytest.mark.parametrize("drawn", [0, 1, 5, 12])
def test_a_stream_goes_on_where_it_stood(sampler: Any, bucket: int, drawn: int) -> None:
    one, other = (stream(sampler=sampler, bucket=bucket) for _ in range(2))
    for _ in range(drawn):
        one.next()
    state = one.state_dict()
    ahead = [one.next() for _ in range(9)]
    for _ in range(4):
        other.next()
    other.load_state_dict(state)
    assert all(same(batch, other.next()) for batch in ahead)


def test_positions_of_something_else_are_refused() -> None:
    one, other = stream(), stream()
    state = one.state_dict()
    for changes in ({"seed": 4}, {"bucket": 2}, {"max_length": 7}, {"only": "a"}, {"sampler": "temperature"}):
        with pytest.raises(ValueError, match=f"belongs to other data or settings: {next(iter(changes))} was"):
            stream(**changes).load_state_dict(state)
    changed = MaskedTextStream(
        [corpus("a", 29, 5), corpus("b", 17, 2)], 6, Masking(VOCAB), max_length=8, seed=3, sampler="cycling"
    )
    with pytest.raises(ValueError, match="content was"):
        changed.load_state_dict(state)
    one.next()
    damaged = one.state_dict()
    damaged["masks"] = [damaged["masks"][0], damaged["masks"][1][:7]]
    with pytest.raises(ValueError, match="the saved position cannot be used: the state of a generator"):
        other.load_state_dict(damaged)
    assert same(other.next(), stream().next())  # nothing was moved
    del damaged["decks"]
    with pytest.raises(ValueError, match="cannot be used: no 'decks'"):
        other.load_state_dict(damaged)


def test_shards_are_the_batch() -> None:
    draw = stream().draw()
    whole = draw.shard()
    parts = [draw.shard(i, 4, replicas=2) for i in range(4)]
    assert sum(len(part.labels) for part in parts) == len(whole.labels)
    assert all(float(part.token_count) == len(whole.labels) / 2 for part in parts)
    # Summed over the shards of a process and averaged over the two processes it is 1.
    assert float(sum(part.share for part in parts)) / 2 == pytest.approx(1.0)
    for i, part in enumerate(parts):
        rows = restored(whole)[i::4, : part.tokens.shape[1]]
        assert torch.equal(restored(part), rows) and torch.equal(part.lengths, whole.lengths[i::4])
        assert part.tokens.shape[1] == int(part.lengths.max()) and part.language == whole.language
    with pytest.raises(ValueError, match="a batch of 6 texts cannot be cut into 7 shards"):
        draw.shard(0, 7)
    for wrong in ((2, 2, 1), (0, 3, 2)):
        with pytest.raises(ValueError, match="expected a shard in"):
            draw.shard(*wrong)


def test_fixed_masks_are_always_the_same() -> None:
    part = corpus("a", 29, 1)

    def gathered(**options: Any) -> list[tuple[list[int], list[int]]]:
        batches = fixed_batches(part, Masking(VOCAB), max_length=8, **options)
        assert all(batch.language == options.get("language", 0) for batch in batches)
        return sorted(
            (text[:length], read[:length])
            for batch in batches
            for text, read, length in zip(
                restored(batch).tolist(), batch.tokens.tolist(), batch.lengths.tolist(), strict=True
            )
        )

    found = gathered()
    assert found == gathered(batch_size=5) == gathered(language=3) != gathered(seed=1)
    whole = sorted(part.texts.flat[s:e].tolist()[:8] for s, e in _bounds(part))
    assert [text for text, _ in found] == whole
