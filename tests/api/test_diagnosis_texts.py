"""N-grams with numbers of their own: the same in every process, no two alike, and nothing learned by mistake."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_diagnosis import sentences

from xferkit.data.hashing import character_grams, split_words
from xferkit.data.records import Columns
from xferkit.data.seeding import seeded
from xferkit.diagnosis import RunSpec, TextProblem
from xferkit.diagnosis.ngrams import LIMIT, MAX_WORDS, UNKNOWN, NgramTable
from xferkit.diagnosis.observe import task_loss
from xferkit.diagnosis.texts import RECIPE, BagEncoder, ngram_matrix

CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz0123456789", "абцдефгхийклмнопярстувьшызⅠⅡⅢⅣⅤⅥⅦⅧⅨⅩ")


def ngrams_of(text: str) -> set[str]:
    """By the definition."""
    words = split_words(text, max_words=MAX_WORDS)
    found = {f"w:{word}" for word in words} | {
        f"g:{gram}" for word in words for gram in character_grams(word, 4)
    }
    return found | {f"p:{a} {b}" for a, b in itertools.pairwise(words)}


def random_texts(seed: str, count: int, words: int = 12, vocabulary: int = 60) -> list[str]:
    rng = random.Random(seed)
    names = ["".join(rng.choices("abcdefg", k=rng.randint(1, 8))) for _ in range(vocabulary)]
    return [" ".join(rng.choices(names, k=rng.randint(1, words))) for _ in range(count)]


def write_tasks(folder: Path, **tasks: list[tuple[str, str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tasks.items():
        (folder / f"{name}.tsv").write_text("".join(f"{text}\t{label}\n" for text, label in rows))


def test_the_table_has_what_two_texts_share_and_no_number_twice() -> None:
    tasks = [random_texts("a", 40), random_texts("b", 25), random_texts("a", 1), []]
    table = NgramTable(tasks)
    every = [ngrams_of(text) for own in tasks for text in own]
    wanted = {g for own in every for g in own if sum(g in other for other in every) >= 2}
    assert set(table.numbers) == wanted and {ngram[0] for ngram in wanted} == set("wgp")
    assert sorted(table.numbers.values()) == list(range(UNKNOWN + 1, len(table)))
    texts = [*tasks[0], "zzz", "", "zzz " * MAX_WORDS + tasks[0][0]]
    found = table.encode(texts)
    for i, text in enumerate(texts):
        numbers = sorted(table.numbers[g] for g in ngrams_of(text) & wanted)
        assert found.flat[found.offsets[i] : found.offsets[i + 1]].tolist() == (numbers or [UNKNOWN])
    assert found.lengths[-3:].tolist() == [1, 1, 1]
    assert len(NgramTable([])) == len(NgramTable([["", "one"], []])) == UNKNOWN + 1
    assert len(table.encode([])) == 0


def test_the_table_does_not_depend_on_the_order_of_texts_and_tasks() -> None:
    tasks = [random_texts("a", 40), random_texts("b", 25), random_texts("c", 9)]
    for limit in (LIMIT, 100):
        first = NgramTable(tasks, limit)
        again = NgramTable([own[::-1] for own in tasks[::-1]], limit)
        assert list(first.numbers.items()) == list(again.numbers.items()) and len(first.numbers) >= 100


def test_each_task_keeps_its_own_frequent_ngrams() -> None:
    many, few = random_texts("a", 300, words=30, vocabulary=200), ["ξυ ξυ ξο"] * 3 + ["ξυ"]
    whole = NgramTable([many, few])
    table = NgramTable([many, few], limit=40)
    assert len(table.numbers) == 40 < len(whole.numbers) and set(table.numbers) < set(whole.numbers)
    assert ngrams_of("ξυ ξυ ξο") <= set(table.numbers)
    every = [[ngrams_of(text) for text in own] for own in (many, few)]
    share = {g: max(sum(g in text for text in own) / len(own) for own in every) for g in whole.numbers}
    kinds = "wgp"
    order = sorted(whole.numbers, key=lambda g: (-share[g], kinds.index(g[0]), g[2:].split(" ")))
    assert set(order[:40]) == set(table.numbers)


def test_numbers_are_the_same_in_every_process(tmp_path: Path) -> None:
    write_tasks(tmp_path, books=sentences("books", 150), dvd=sentences("dvd", 60))
    code = (
        "import sys; from xferkit.diagnosis import TextProblem; import test_diagnosis_texts as here\n"
        "print(here.digest(TextProblem(sys.argv[1], 'books')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == digest(TextProblem(tmp_path, "books"))


def digest(problem: TextProblem) -> str:
    """Of all numbers."""
    rows = [data.parts["test"][0].codes.flat.numpy().tobytes() for data in problem._encoded.values()]
    return hashlib.sha256(repr([*problem.ngrams.numbers.items(), *rows]).encode()).hexdigest()


def _embeddings(problem: TextProblem, tasks: tuple[str, ...]) -> torch.Tensor:
    """After some steps on ``tasks``."""
    spec = RunSpec(tasks, 1)
    data = problem._data(tasks)
    with seeded(3):
        method = problem._method(spec, tasks, data)
        stream = problem._streams(spec, tasks, data)["labelled"]
        optimizer = torch.optim.Adam(method.module.parameters(), 5e-3)
        for _ in range(6):
            batch = stream.next()
            optimizer.zero_grad()
            task_loss(method, 0, batch.inputs, batch.labels).backward()
            optimizer.step()
    (encoder,) = (module for module in method.module.modules() if isinstance(module, BagEncoder))
    return encoder.embedding.weight.detach()


@pytest.mark.parametrize("flip", [False, True])
def test_a_source_in_another_alphabet_trains_no_ngram_of_the_target(tmp_path: Path, flip: bool) -> None:
    other = {"pos": "neg", "neg": "pos"}
    foreign = [
        (text.translate(CYRILLIC), other[label] if flip else label) for text, label in sentences("dvd", 200)
    ]
    write_tasks(tmp_path, books=sentences("books", 200), foreign=foreign)
    problem = TextProblem(tmp_path, "books", recipe=replace(RECIPE, steps=6))
    books, theirs = (
        torch.cat([part[0].codes.flat for part in (*data.parts.values(), data.labelled)]).unique() >> 1
        for data in (problem._encoded["books"], problem._encoded["foreign"])
    )
    assert not set(books.tolist()) & set(theirs.tolist()) and min(len(books), len(theirs)) > 100
    weight = _embeddings(problem, ("foreign",))
    assert not weight[books].any() and weight[theirs].any()


def test_another_alphabet_neither_helps_nor_hurts(tmp_path: Path) -> None:
    """Where what is to be learned is easy, the scores are the same with it and without it."""
    foreign = [(text.translate(CYRILLIC), label) for text, label in sentences("dvd", 150)]
    write_tasks(tmp_path, books=sentences("books", 150), foreign=foreign)
    problem = TextProblem(tmp_path, "books", recipe=replace(RECIPE, steps=60))
    scores = [problem.train(RunSpec(tasks, 1)).scores["books"] for tasks in (("books",), problem.tasks)]
    assert min(scores) > 0.95 and abs(scores[0] - scores[1]) < 0.05


def test_a_text_without_known_ngrams_is_answered_and_a_target_without_labels_adds_none(
    tmp_path: Path,
) -> None:
    write_tasks(tmp_path, dvd=sentences("dvd", 60), pets=sentences("pets", 60))
    strange = [(f"{chr(0x3041 + i)}{chr(0x3041 + i)}", "pos" if i % 2 else "neg") for i in range(80)]
    (tmp_path / "kana-test.tsv").write_text("".join(f"{t}\t{y}\n" for t, y in strange * 2))
    problem = TextProblem(tmp_path, "kana", recipe=replace(RECIPE, steps=3))
    texts, _ = problem._encoded["kana"].parts["test"]
    assert texts.select(torch.arange(3)).ids.tolist() == [[UNKNOWN]] * 3
    known = NgramTable([problem.texts(name) for name in problem.tasks])
    assert problem.ngrams.numbers == known.numbers and problem.tasks == ("dvd", "pets")
    found = problem.train(RunSpec(problem.tasks, 1, observe=1))
    assert len(found.correct["kana"]) == problem.sizes()["kana"]["dev"]


def test_a_text_takes_four_bytes_an_ngram() -> None:
    texts = random_texts("a", 300, words=250, vocabulary=3000)
    table = NgramTable([texts])
    tracemalloc.start()
    found = table.encode(texts)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.flat.dtype == torch.int32 and peak < 12 * len(found.flat) + 2_000_000


def test_hashed_features_stay_what_they_were() -> None:
    found = ngram_matrix(["The quick brown fox, the lazy dog.", "naïve ÜBER 12", ""], 64)
    assert found.shape == (3, 64) and np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 0])
    assert zlib.crc32((found * 1000).round().astype(np.int32).tobytes()) == 3353805296


@pytest.mark.parametrize(
    "columns", [{"text": "review", "label": "stars"}, {"text": 0, "label": 1, "header": True}]
)
def test_columns_as_a_mapping(tmp_path: Path, columns: Mapping[str, Any]) -> None:
    write_tasks(tmp_path, **{name: [("review", "stars"), *sentences(name, 150)] for name in ("books", "dvd")})
    problem = TextProblem(tmp_path, "books", columns=columns)
    assert problem.classes == ("neg", "pos")
    same = TextProblem(tmp_path, "books", columns=Columns(**columns))
    assert same.fingerprint() == problem.fingerprint()


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"txt": "review"}, r"columns: unknown key 'txt'; the nearest is 'text'; expected keys of text, label, header"),
        ({"tags": 1}, r"columns: unknown key 'tags'.*; expected keys of text, label, header, delimiter$"),
        ({7: "review"}, r"columns: unknown key 7; expected keys of text"),
        ({"header": "yes"}, r"columns: header is 'yes'; expected true or false or nothing"),
        ("review", r"columns is 'review'; expected a mapping with keys of text, label, header, delimiter$"),
    ],
)  # fmt: skip
def test_columns_that_do_not_exist_are_one_sentence(tmp_path: Path, columns: Any, sentence: str) -> None:
    write_tasks(tmp_path, books=sentences("books", 150), dvd=sentences("dvd", 60))
    with pytest.raises(ValueError, match=f"^{sentence}"):
        TextProblem(tmp_path, "books", columns=columns)


def test_the_description_says_what_is_read(tmp_path: Path) -> None:
    write_tasks(tmp_path, books=sentences("books", 150), dvd=sentences("dvd", 60))
    problem = TextProblem(tmp_path, "books")
    said = problem.describe()
    assert "of each text the first 256 words are read" in said and "most frequent" not in said
    assert f"of the n-grams the {len(problem.ngrams.numbers)} that at least two training texts have" in said


def test_a_class_that_only_a_source_trains_can_be_answered(tmp_path: Path) -> None:
    """What a source can teach of a class that the target trains not at all counts as its help."""

    def write(name: str, rows: list[tuple[str, str]]) -> None:
        (tmp_path / f"{name}.tsv").write_text("text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in rows))

    def rows(count: int, *moods: str) -> list[tuple[str, str]]:
        return [(f"{mood}word {mood}s number {i}", mood) for i in range(count) for mood in moods]

    write("books-train", rows(30, "pos", "neg"))
    for split in ("dev", "test"):
        write(f"books-{split}", [(f"{t} {split}", y) for t, y in rows(12, "pos", "neutral")])
    write("dvd", rows(60, "pos", "neg", "neutral"))
    problem = TextProblem(tmp_path, "books", recipe=replace(RECIPE, steps=60))
    alone = problem.train(RunSpec(("books",), 1)).scores["books"]
    helped = problem.train(RunSpec(("books", "dvd"), 1)).scores["books"]
    assert alone <= 0.5 and helped > 0.9
