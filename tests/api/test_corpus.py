"""Files by task, language and domain: names, mistakes in them, and what identifies data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from xferkit.data import Corpus, CorpusKey, DataError, fingerprint, group_by_key, parse_named_files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("en", "de", "es"):
        (tmp_path / f"{name}.tsv").write_text(f"{name} text\tpos\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("en", CorpusKey("", "en")),
        ("en/books", CorpusKey("", "en", "books")),
        ("pos:en", CorpusKey("pos", "en")),
        ("pos:pt-BR/news.2", CorpusKey("pos", "pt-BR", "news.2")),
        ("zh_Hant", CorpusKey("", "zh_Hant")),
        ("日本語", CorpusKey("", "日本語")),
    ],
)
def test_keys_are_written_as_they_are_read(text: str, key: CorpusKey) -> None:
    assert CorpusKey.parse(text) == key and str(key) == text


@pytest.mark.parametrize(
    "text",
    ["", " ", "e n", "en/", "/books", ":en", "pos:", "a:b:c", "a/b/c", "..", "-en", "_", "en\n", "a\\b"],
)
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(DataError, match="is not the name of a language; expected letters"):
        CorpusKey.parse(text)


def test_a_task_for_keys_that_name_none() -> None:
    assert CorpusKey.parse("en", task="ner") == CorpusKey("ner", "en")
    assert CorpusKey.parse("pos:en", task="ner") == CorpusKey("pos", "en")


def test_named_files(folder: Path) -> None:
    files = parse_named_files(["en=en.tsv", "de/news=de.tsv", f"pos:es={folder / 'es.tsv'}"])
    assert files == {
        CorpusKey("", "en"): "en.tsv",
        CorpusKey("", "de", "news"): "de.tsv",
        CorpusKey("pos", "es"): str(folder / "es.tsv"),
    }
    (folder / "a=b.tsv").touch()
    assert list(parse_named_files(["en=a=b.tsv"]).values()) == ["a=b.tsv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["en=en.tsv", "en=de.tsv"],
            "--train: 'en' is given twice, as en.tsv and de.tsv; expected each once",
        ),
        (["pos:en=en.tsv", "pos:en=de.tsv"], "'pos:en' is given twice"),
        (["en=en.tsv", "de=en.tsv"], "en.tsv is given for 'en' and for 'de'; expected each file once"),
        (["en=en.tsv", "de=./en.tsv"], "./en.tsv is given for 'en' and for 'de'"),
        (["en=enn.tsv"], r"enn.tsv \(for 'en'\) does not exist \(did you mean 'en.tsv'\?\); expected a file"),
        (["en=no/en.tsv"], r"no/en.tsv \(for 'en'\) does not exist; expected a file"),
        (["en"], "--train: 'en' is not NAME=FILE; expected for example en=en.tsv"),
        (["en.tsv"], "'en.tsv' is not NAME=FILE"),
        (["=en.tsv"], "'=en.tsv' is not NAME=FILE"),
        (["en="], "'en=' is not NAME=FILE"),
        (["e n=en.tsv"], "--train: 'e n' is not the name of a language"),
        ([""], "'' is not NAME=FILE"),
    ],
)
def test_mistakes_in_named_files(arguments: list[str], words: str, folder: Path) -> None:
    with pytest.raises(DataError, match=words) as caught:
        parse_named_files(arguments, argument="--train")
    assert str(caught.value).isprintable()


def test_a_string_is_no_list(folder: Path) -> None:
    with pytest.raises(DataError, match="a list of NAME=FILE is expected"):
        parse_named_files("en=en.tsv")


def test_a_corpus(folder: Path) -> None:
    corpus = Corpus.parse(["en=en.tsv", "en/books=de.tsv", "ner:es=es.tsv"], task="pos")
    assert (
        corpus.tasks == ("pos", "ner")
        and corpus.languages == ("en", "es")
        and corpus.domains == ("", "books")
    )
    assert list(map(str, corpus.keys)) == ["pos:en", "pos:en/books", "ner:es"]
    assert list(map(str, corpus.select(task="pos", language="en").keys)) == ["pos:en", "pos:en/books"]
    assert list(map(str, corpus.select(domain="books").keys)) == ["pos:en/books"]
    assert [r.text for r in corpus.reader(CorpusKey("ner", "es"))] == ["es text"]
    assert [r.labels for r in corpus.reader(CorpusKey("ner", "es"), labelled=False)] == [None]
    with pytest.raises(
        DataError, match="no file of language 'fr'; expected one of pos:en, pos:en/books, ner:es"
    ):
        corpus.select(language="fr")
    with pytest.raises(DataError, match="no file of 'pos:fr'"):
        corpus.reader(CorpusKey("pos", "fr"))


def test_grouping() -> None:
    en, de = CorpusKey("", "en"), CorpusKey("", "de")
    assert group_by_key([(en, 1), (de, 2), (en, 3)]) == {en: [1, 3], de: [2]}


def test_fingerprint_of_a_file(folder: Path) -> None:
    data = os.urandom(3 * 2**20 + 5)
    (folder / "big").write_bytes(data)
    told: list[int] = []
    assert fingerprint("big", on_progress=told.append) == hashlib.sha256(data).hexdigest()
    assert sum(told) == len(data) and max(told) <= 2**20
    (folder / "big").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert fingerprint("big") != hashlib.sha256(data).hexdigest()


def test_fingerprint_of_a_folder(folder: Path) -> None:
    def make(name: str, files: dict[str, bytes]) -> str:
        for file, data in files.items():
            path = folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return fingerprint(folder / name)

    first = make("a", {"x": b"1", "sub/y": b"2"})
    assert make("b", {"sub/y": b"2", "x": b"1"}) == first
    different = [
        make("c", {"x": b"2", "sub/y": b"1"}),
        make("d", {"x": b"1", "y": b"2"}),
        make("e", {"x": b"12", "sub/y": b""}),
        make("f", {"x": b"1", "sub/y": b"2", "z": b""}),
    ]
    assert len({first, *different}) == 5


def test_fingerprint_of_nothing(folder: Path) -> None:
    with pytest.raises(DataError, match=r"^no.tsv: cannot be read \(No such file or directory\); expected"):
        fingerprint("no.tsv")


def test_fingerprint_of_a_corpus(folder: Path) -> None:
    corpus = Corpus.parse(["en=en.tsv", "de=de.tsv"])
    assert corpus.fingerprint() == Corpus.parse(["de=de.tsv", "en=en.tsv"]).fingerprint()
    assert corpus.fingerprint() != Corpus.parse(["de=en.tsv", "en=de.tsv"]).fingerprint()
    (folder / "moved.tsv").write_bytes((folder / "en.tsv").read_bytes())
    assert corpus.fingerprint() == Corpus.parse(["en=moved.tsv", "de=de.tsv"]).fingerprint()
    (folder / "de.tsv").write_text("other\tpos\n")
    assert corpus.fingerprint() != Corpus.parse(["en=moved.tsv"]).fingerprint()
    before = Corpus.parse(["en=en.tsv", "de=de.tsv"]).fingerprint()
    (folder / "de.tsv").write_text("another\tpos\n")
    assert corpus.fingerprint() != before
