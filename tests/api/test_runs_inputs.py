"""What runs read: files, labels, vocabularies and vectors; and what is wrong with them, in a sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from toy_runs import make_tags, make_texts, run, values

from xferkit.data.errors import DataError
from xferkit.methods import method_names
from xferkit.runs import Pipeline, make_run_config, run_training
from xferkit.runs.files import read_sealed
from xferkit.runs.folder import read_run


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return make_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def tags(tmp_path_factory):
    return make_tags(tmp_path_factory.mktemp("tags"))


# -- bad input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"train": {}}, "train names no file"),
        ({"train": {"en": "{}/none.tsv"}}, "none.tsv (for 'en') does not exist"),
        ({"train": {"en": "{}/en.tsv", "de": "{}/en.tsv"}}, "is given for 'en' and for 'de'"),
        ({"unlabelled": {"es": "{}/es.txt", "it": "{}/es.tsv"}}, "2 languages without labels (es, it)"),
        (
            {"dev": {"fr": "{}/es.tsv"}},
            "--dev names 'fr', which is neither a source (en, de) nor the target 'es'",
        ),
        ({"trainer.select": "target_dev"}, "select is target_dev, but --dev names no file of the target"),
        ({"task": "tagging"}, "en.tsv:"),
        ({"encoder.vectors": "{}/none.vec"}, "none.vec does not exist"),
        ({"vectors": {"en": "{}/es.txt"}}, "--vectors names no file for de, es"),
        ({"dev_share": 0.001}, "120 rows are too few to hold out 0.1 % of them; expected --dev en=FILE"),
        ({"vocabulary.pieces": "bpe", "task": "tagging"}, "expected 'none' for tagging"),
        ({"encoder.kind": "char_cnn", "task": "tagging"}, "expected 'words' for tagging"),
        ({"train": {"a task:en": "{}/en.tsv"}}, "is not the name of a language"),
        ({"train": {"pos:en": "{}/en.tsv"}}, "names a task"),
        ({"workers": 2, "out": None}, "workers need a folder"),
    ],
)
def test_bad_input_is_told_in_a_sentence(texts, tmp_path, changes, sentence):
    filled = {}
    for key, value in changes.items():
        if isinstance(value, dict):
            value = {k: v.format(texts) for k, v in value.items()}
        filled[key] = value.format(texts) if isinstance(value, str) else value
    with pytest.raises(ValueError) as caught:
        run(texts, filled.pop("out", tmp_path / "run"), **filled)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"seeds": ()}, "seeds must be different numbers"),
        ({"seeds": (1, 1)}, "seeds must be different numbers, 0 or more, at least one, got [1, 1]"),
        ({"seeds": (-1,)}, "got [-1]"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"dev_share": 1.0}, "dev_share must lie between 0 and 1"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"vocabulary.min_count": 0}, "vocabulary.min_count must be at least 1"),
        ({"trainer.log_every": 0}, "log_every must be at least 1"),
        ({"method": "man-mo"}, "unknown method 'man-mo'; the nearest is 'man_moe'; methods are pooled,"),
        ({"method": "own"}, "unknown method 'own'"),  # pooling, in truth: the files say on what
        ({"method": "same-convention"}, "unknown method 'same-convention'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, sentence):
    with pytest.raises(ValueError) as caught:
        make_run_config({"method": "man-moe", **settings})
    assert sentence in str(caught.value)


def test_rows_that_do_not_fit_are_named_or_counted(texts, tmp_path):
    bad = tmp_path / "bad.tsv"
    rows = (texts / "en.tsv").read_text().splitlines()
    rows[4] = "a text without label"
    bad.write_text("\n".join(rows) + "\n")
    train = {"en": str(bad), "de": f"{texts}/de.tsv"}
    with pytest.raises(DataError, match=r"bad\.tsv:5: "):
        run(texts, tmp_path / "run", train=train)
    warned = []
    run(texts, tmp_path / "run", train=train, mode="skip", steps=10, warned=warned)
    assert len(warned) == 1 and "119 of 120 rows read, 1 left out" in warned[0]
    rows = read_run(tmp_path / "run")["facts"]["rows"]["train/en"]
    assert (
        rows["in"] == 120 and rows["out"] == 119 == rows["used"] + rows["held_out"] and rows["rejected"] == 1
    )


def test_labels_that_training_lacks_are_errors_or_counted_as_missed(texts, tmp_path):
    new = tmp_path / "new.tsv"
    new.write_text("good good fine\tpos\nbad poor\tnew\n")
    with pytest.raises(
        DataError, match=r"new\.tsv:2: unknown label 'new'.*; --unknown_labels count takes it for"
    ):
        run(texts, tmp_path / "run", test={"es": str(new)})
    warned = []
    result = run(texts, tmp_path / "run", test={"es": str(new)}, unknown_labels="count", warned=warned)
    scores = result.seeds[1].test["es"]
    assert "1 labels are in no training file (new); they count as missed." in warned[0]
    assert scores["labels"]["new"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 1}
    assert scores["accuracy"] == 0.5


def test_the_target_may_choose_weights_but_not_in_silence(texts, tmp_path):
    warned = []
    dev = {"es": f"{texts}/es.tsv"}
    result = run(texts, tmp_path / "a", dev=dev, steps=20, warned=warned)
    assert any("scored along the way and chooses nothing" in w for w in warned) and result.seeds[1].dev["es"]
    warned = []
    run(texts, tmp_path / "b", dev=dev, steps=20, warned=warned, **{"trainer.select": "target_dev"})
    assert any("this is not zero-resource" in w for w in warned)
    lines = (tmp_path / "b/seed-1/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    best = max((e for e in entries if "scores" in e), key=lambda e: e["scores"]["target_dev/score"])
    assert read_sealed(tmp_path / "b/seed-1/result.json")["selected_step"] == best["step"]


def test_a_test_file_that_was_trained_on_is_pointed_out(texts, tmp_path):
    warned = []
    run(texts, tmp_path / "run", test={"de": f"{texts}/de.tsv"}, steps=10, warned=warned)
    assert any("has the content of --train de=" in w for w in warned)


# -- what is read ----------------------------------------------------------------------------------------------


def test_word_classes_are_tagged_by_accuracy(tags, tmp_path):
    files = {lang: f"{tags}/{lang}.conll" for lang in ("en", "de", "es")}
    train = {lang: files[lang] for lang in ("en", "de")}
    result = run(
        tags,
        tmp_path / "run",
        train=train,
        unlabelled={"es": files["es"]},
        test={"es": files["es"]},
        steps=30,
    )
    scores = result.seeds[1].test["es"]
    assert scores["accuracy"] > 0.95 and scores["name"] == "accuracy" and scores["spans"] is None
    assert scores["tokens"] > scores["texts"] == 60 and set(scores["labels"]) == {"DET", "NOUN", "VERB"}


def test_bio_tags_are_scored_by_spans(tags, tmp_path):
    files = {lang: f"{tags}/{lang}.bio" for lang in ("en", "de", "es")}
    train = {lang: files[lang] for lang in ("en", "de")}
    said = []
    result = run(
        tags, tmp_path / "run", train=train, unlabelled={"es": files["es"]}, test={"es": files["es"]},
        steps=60, scheme="strict", said=said,
    )  # fmt: skip
    scores = result.seeds[1].test["es"]
    assert scores["name"] == "span F1 (strict)" and scores["score"] == scores["all_spans"]["f1"] > 0.9
    assert set(scores["spans"]) == {"PER", "LOC"} and set(scores["labels"]) > {"O", "B-PER"}
    assert "Task: tagging (a word and its tag a line" in said[0]


def test_tags_outside_of_the_scheme_are_told(tags, tmp_path):
    odd, bioes = tmp_path / "odd.bio", tmp_path / "bioes.bio"
    odd.write_text((tags / "en.bio").read_text().replace("and\tO", "and\tOoops"))
    bioes.write_text((tags / "en.bio").read_text().replace("\tB-", "\tS-") + "\nx\tB-LOC\n")
    for file, words, name in (
        (odd, "none of O, B-x and I-x (Ooops) count as O where spans are scored", "span F1 (conlleval)"),
        (bioes, "too many are none of O, B-x and I-x: words are scored, not spans", "accuracy"),
    ):
        warned = []
        train, more = {"en": str(file)}, {"es": str(tags / "es.bio")}
        out = tmp_path / file.stem
        result = run(tags, out, train=train, unlabelled=more, test={}, steps=2, warned=warned)
        assert words in "\n".join(warned) and result.seeds[1].dev["en"]["name"] == name


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {"encoder.kind": "char_cnn"},
        {"encoder.kind": "char_bilstm"},
        {"vocabulary.pieces": "bpe", "vocabulary.max_size": 60},
        {"sampler": "temperature", "temperature": 3.0, "bucket": 4},
        {"sampler": "cycling"},
    ],
    ids=lambda more: " ".join(map(str, more.values())),
)
def test_other_readings_and_samplers_learn_too(texts, tmp_path, more):
    result = run(texts, tmp_path / "run", **{"steps": 60, "options.batch_size": 16, **more})
    assert result.seeds[1].test["es"]["accuracy"] > 0.6
    pipeline = Pipeline.from_pretrained(tmp_path / "run/seed-1/model")
    answers = [a.labels for a in pipeline.predict(["good great fine", "awful bad", "blue red blue"])]
    assert len(answers) == 3 and set(answers) <= {"pos", "neg", "other"}


@pytest.mark.parametrize("method", [n for n in method_names() if n not in ("own", "same_convention")])
def test_every_method_trains_saves_and_loads(texts, tmp_path, method):
    settings = values(texts, tmp_path / "run", steps=2)
    own = {k: v for k, v in settings.items() if not k.startswith("options.")}
    result = run_training(make_run_config({**own, "method": method}), say=lambda t: None, warn=lambda t: None)
    pipeline = Pipeline.from_pretrained(tmp_path / "run/seed-1/model")
    assert pipeline.blueprint.method == method and result.seeds[1].test["es"]["texts"] == 60
    assert next(iter(pipeline.predict(["good"]))).labels in ("pos", "neg", "other")


def test_a_method_that_needs_no_target_takes_any_tests(texts, tmp_path):
    settings = {
        k: v for k, v in values(texts, tmp_path / "run", steps=10).items() if not k.startswith("options.")
    }
    settings |= {
        "method": "pooled",
        "unlabelled": {},
        "test": {"es": f"{texts}/es_test.tsv", "it": f"{texts}/es.tsv"},
    }
    result = run_training(make_run_config(settings), say=lambda t: None, warn=lambda t: None)
    assert set(result.seeds[1].test) == {"es", "it"} and result.seeds[1].source_weights == {}


def write_vectors(path: Path, words: dict[str, list[float]]) -> str:
    path.write_text("".join(f"{w} {' '.join(map(str, v))}\n" for w, v in words.items()), encoding="utf-8")
    return str(path)


CLASSES = {
    "good": [1, 0, 0], "great": [1, 0, 0], "fine": [1, 0, 0], "bad": [0, 1, 0], "poor": [0, 1, 0],
    "awful": [0, 1, 0], "blue": [0, 0, 1], "red": [0, 0, 1], "green": [0, 0, 1], "unseen": [9, 9, 9],
}  # fmt: skip


def test_given_vectors_are_kept_as_they_are_and_saved(texts, tmp_path):
    said = []
    path = write_vectors(tmp_path / "v.vec", CLASSES)
    run(texts, tmp_path / "run", said=said, **{"encoder.vectors": path, "encoder.char_dim": 0})
    assert f"{path}: vectors for 9 of the 10 words (90 %)." in said
    Path(path).unlink()
    pipeline = Pipeline.from_pretrained(tmp_path / "run/seed-1/model")
    assert (
        pipeline.coder.words.words[:3] == ("good", "great", "fine")
        and "unseen" not in pipeline.coder.words.words
    )
    table = next(v for k, v in pipeline.method.module.state_dict().items() if tuple(v.shape) == (11, 3))
    assert table[2].tolist() == [1, 0, 0] and table[0].tolist() == [0, 0, 0]
    assert table[1].tolist() == pytest.approx([1 / 3] * 3), "unknown words are the mean word"
    assert next(iter(pipeline.predict(["awful poor bad"]))).labels == "neg"


def test_vectors_by_language_make_languages_meet(texts, tmp_path):
    """The target's words are other words, with the vectors of their translations: nothing else can help."""
    translated = tmp_path / "es.tsv"
    rows = [line.split("\t") for line in (texts / "es_test.tsv").read_text().splitlines()]
    translated.write_text("".join(f"{' '.join(w[::-1] for w in t.split())}\t{y}\n" for t, y in rows))
    own = write_vectors(tmp_path / "en.vec", CLASSES)
    other = write_vectors(tmp_path / "es.vec", {w[::-1]: v for w, v in CLASSES.items()})
    de = write_vectors(tmp_path / "de.vec", CLASSES)
    result = run(
        texts, tmp_path / "run", vectors={"en": own, "de": de, "es": other}, test={"es": str(translated)},
        **{"encoder.char_dim": 0},
    )  # fmt: skip
    assert result.seeds[1].test["es"]["accuracy"] > 0.9
    pipeline = Pipeline.from_pretrained(tmp_path / "run/seed-1/model")
    assert next(iter(pipeline.predict(["eulb der"]))).labels == "other"
    assert next(iter(pipeline.predict(["blue red"], language="en"))).labels == "other"
    with pytest.raises(ValueError, match="has word vectors for en, de, es; expected one of them, got 'fr'"):
        next(iter(pipeline.predict(["x"], language="fr")))
