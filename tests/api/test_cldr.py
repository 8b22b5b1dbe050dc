"""CLDR names: the split, the cleaning, the panels and the sentences for wrong input."""

from __future__ import annotations

import pickle
import sys
import zlib

import numpy as np
import pytest

babel = pytest.importorskip("babel", reason="the CLDR names come with the demo's extra")

from xferkit.data import (  # noqa: E402 - after the skip
    CLASSES,
    ENGLISH_PANEL,
    LATIN_POOL,
    Names,
    capitalised_share,
    capitalises,
    load_names,
    same_convention_sources,
    sources_for,
)
from xferkit.data.cldr import is_test_concept  # noqa: E402

LANGS = ("es", "en", "de", "fi", "pl")


@pytest.fixture(scope="module")
def data():
    return load_names(LANGS)


def test_split_is_pinned():
    # crc32("123456789") = 0xCBF43926 is the published check value of this CRC.
    assert zlib.crc32(b"123456789") == 0xCBF43926
    codes = ("AED", "USD", "EUR", "SEK", "NOK", "DKK", "PLN")
    assert [code for code in codes if is_test_concept("currency", code)] == ["DKK"]
    assert zlib.crc32(b"currency:DKK") % 5 == 0
    assert not is_test_concept("unit", "DKK")  # the class is part of the concept


def test_a_concept_is_on_the_same_side_in_every_language(data):
    train = {key for lang in LANGS for key in data.train(lang).keys}
    test = {key for lang in LANGS for key in data.test(lang).keys}
    assert not train & test
    assert len(test) > 300


def test_labels_follow_the_concepts(data):
    for lang in LANGS:
        for names in (data.train(lang), data.test(lang)):
            assert names.labels.dtype == np.int64
            assert [CLASSES[y] for y in names.labels] == [key.split(":")[0] for key in names.keys]
            assert list(names.labels) == sorted(names.labels)


def test_size_and_cleaning(data):
    for lang in LANGS:
        train, test = data.train(lang), data.test(lang)
        assert 1500 < len(train) + len(test) < 1900
        assert 0.17 < len(test) / (len(train) + len(test)) < 0.23
        rows = list(zip(train.labels.tolist() + test.labels.tolist(), train.texts + test.texts, strict=True))
        assert len(set(rows)) == len(rows), "a name repeats within its language and class"
        keys = [key.split(":", 1)[1] for key in train.keys + test.keys]
        for (_, text), key in zip(rows, keys, strict=True):
            assert text and text == text.strip() and text != key and any(map(str.isalpha, text))
        assert not any(key.startswith("Etc/") for key in keys)


def test_known_names(data):
    names = {lang: {} for lang in LANGS}
    for lang in LANGS:
        for part in (data.train(lang), data.test(lang)):
            names[lang].update(zip(part.keys, part.texts, strict=True))
    assert names["es"]["territory:DE"] == "Alemania"
    assert names["es"]["language:de"] == "alemán"
    assert names["de"]["language:es"] == "Spanisch"
    assert names["fi"]["script:Cyrl"] == "kyrillinen"
    assert names["en"]["currency:EUR"] == "Euro"
    assert names["es"]["unit:length-meter"] == "metros"
    assert names["de"]["unit:length-meter"] == "Meter"  # the long form is inherited from the short one
    assert names["pl"]["city:Europe/Rome"] == "Rzym"


def test_lowercase_keeps_concepts_and_order(data):
    lower = load_names(LANGS, lowercase=True)
    for lang in LANGS:
        assert lower.train(lang).keys == data.train(lang).keys
        assert lower.test(lang).texts == tuple(text.lower() for text in data.test(lang).texts)
    assert lower.fingerprint() != data.fingerprint()


def test_loading_twice_gives_the_same_bits(data):
    again = load_names(LANGS)
    assert again.fingerprint() == data.fingerprint()
    assert pickle.loads(pickle.dumps(data)).fingerprint() == data.fingerprint()


def test_panels():
    assert len(sources_for("es")) == 13 and "es" not in sources_for("es")
    assert sources_for("en") == ENGLISH_PANEL and len(set(ENGLISH_PANEL)) == 14
    assert set(sources_for("fi")) | {"fi"} == set(LATIN_POOL)
    assert set(same_convention_sources("en")) == {"nl", "de"}
    assert set(same_convention_sources("es")) == {"sv", "da", "fr", "it", "pl", "hr", "fi", "et"}
    assert same_convention_sources("es", ["en", "fr"]) == ("fr",)
    with pytest.raises(ValueError, match="no source panel for target 'ja'"):
        sources_for("ja")
    with pytest.raises(ValueError, match="no language 'ja'"):
        capitalises("ja")


def test_the_convention_table_agrees_with_the_names():
    langs = tuple(dict.fromkeys(LATIN_POOL + ENGLISH_PANEL))
    data = load_names(langs)
    for lang in langs:
        for class_name in ("language", "script"):
            share = capitalised_share(data.train(lang), CLASSES.index(class_name))
            assert share > 0.9 if capitalises(lang) else share < 0.2, (lang, class_name, share)


def test_capitalised_share_by_hand():
    names = Names(("Abc", "def", "3x", "Éa", "no"), np.array([1, 1, 1, 1, 0]))
    assert capitalised_share(names, 1) == pytest.approx(2 / 3)
    assert np.isnan(capitalised_share(names, 5))


@pytest.mark.parametrize(
    ("languages", "sentence"),
    [
        (["spanish"], r"no locale 'spanish'; near names are es"),
        (["xx"], r"no locale 'xx'"),
        (["es", "de", "es"], r"each language may be given once, got es"),
        ([], r"at least one language"),
        ("es", r"got the string 'es'"),
    ],
)
def test_wrong_languages(languages, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_names(languages)


def test_unloaded_language(data):
    with pytest.raises(ValueError, match="holds no language 'sv'; it holds es, en"):
        data.test("sv")


def test_names_check_their_shapes():
    with pytest.raises(ValueError, match=r"shape \[2\]"):
        Names(("a", "b"), np.array([0]))
    with pytest.raises(ValueError, match="keys must be empty or one per text"):
        Names(("a", "b"), np.array([0, 1]), ("unit:x",))


def test_missing_babel_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "babel", None)
    with pytest.raises(ValueError, match=r"pip install 'xfercore\[demo\]'"):
        load_names(["es"])
