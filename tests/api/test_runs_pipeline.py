"""A model as a folder and back: the same answers to the bit, nothing overwritten, nothing damaged in silence."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from toy_runs import make_tags, make_texts, run

import xferkit
from xferkit.checkpoints import open_folder, write_folder
from xferkit.data.records import Record
from xferkit.runs import pipeline as module
from xferkit.runs.models import load_model, model_folder
from xferkit.runs.pipeline import MODEL_KIND, Pipeline
from xferkit.runs.predicting import predict_numbers

FILES = {"config.json", "vocabularies.json", "model.safetensors", "manifest.json"}


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classifier and a tagger."""
    folder = tmp_path_factory.mktemp("runs")
    make_texts(folder)
    make_tags(folder)
    run(folder, folder / "texts", steps=30)
    train = {lang: f"{folder}/{lang}.bio" for lang in ("en", "de")}
    unlabelled, test = {"es": f"{folder}/es.bio"}, {"es": f"{folder}/es.bio"}
    run(folder, folder / "tags", train=train, unlabelled=unlabelled, test=test, steps=30)
    return folder


def model(runs: Path, name: str = "texts") -> Path:
    return runs / name / "seed-1" / "model"


def answers(pipeline: Pipeline, texts, **options):
    return [(a.labels, a.probability) for a in pipeline.predict(texts, **options)]


TEXTS = ["good great fine", "bad", "blue red the the awful", "nothing known here", "Good GREAT Éclair"]


@pytest.mark.parametrize("name", ["texts", "tags"])
def test_answers_are_the_same_to_the_bit_after_a_round_trip(runs, tmp_path, name):
    first = xferkit.Pipeline.from_pretrained(model(runs, name))
    first.save_pretrained(tmp_path / "copy")
    second = Pipeline.from_pretrained(tmp_path / "copy")
    assert {p.name for p in (tmp_path / "copy").iterdir()} == FILES
    assert answers(first, TEXTS) == answers(second, TEXTS)
    assert first.blueprint == second.blueprint and first.facts == second.facts
    for key, value in first.method.module.state_dict().items():
        assert torch.equal(value, second.method.module.state_dict()[key]), key
    inputs, _ = first.coder.encode(
        [Record(tuple(t.split()), None, 1, t) for t in TEXTS], first.coder.lexicon()
    )
    batch = inputs.select(torch.arange(len(TEXTS)))
    assert torch.equal(first.method.predict(batch), second.method.predict(batch))


def test_a_saved_model_answers_as_it_was_tested(runs):
    """The scores of result.json are those of the folder's model."""
    from xferkit.runs.evaluation import evaluate_model
    from xferkit.runs.files import read_sealed

    for name, file in (("texts", "es_test.tsv"), ("tags", "es.bio")):
        found = evaluate_model(load_model(model(runs, name)), str(runs / file))
        kept = read_sealed(runs / name / "seed-1/result.json")["test"]["es"]
        assert json.loads(json.dumps(found.scores.to_json())) == kept


def test_loading_leaves_random_numbers_and_threads_alone(runs):
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    Pipeline.from_pretrained(model(runs))
    assert torch.equal(before, torch.random.get_rng_state()) and torch.get_num_threads() == threads


def test_answers_come_in_order_whatever_the_lengths_and_chunks(runs, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", 7)
    monkeypatch.setattr(module, "_MOST_TYPES", 5)
    rng = random.Random(0)
    words = ["good", "bad", "blue", "the", "in", "Anna", "Rome", "new", "xyz"]
    texts = [" ".join(rng.choice(words) for _ in range(rng.randint(1, 30))) for _ in range(60)]
    for name in ("texts", "tags"):
        pipeline = Pipeline.from_pretrained(model(runs, name))
        together = list(pipeline.predict(iter(texts), batch_size=5))
        assert [" ".join(a.record.words()) for a in together] == texts
        for answer, text in zip(together, texts, strict=True):
            (alone,) = pipeline.predict([text])
            assert alone.labels == answer.labels
            if name == "tags":
                assert len(answer.labels) == len(text.split())


def test_records_texts_and_lists_of_words_are_the_same(runs):
    for name in ("texts", "tags"):
        pipeline = Pipeline.from_pretrained(model(runs, name))
        words = ("good", "great")
        record = Record(words, None, 3) if name == "tags" else Record((), None, 3, "good great")
        forms = answers(pipeline, [record, "good great", list(words)])
        assert forms[0] == forms[1] == forms[2]


def test_a_source_is_answered_as_a_source(runs, monkeypatch):
    pipeline = Pipeline.from_pretrained(model(runs))
    assert [pipeline.source_number(x) for x in ("en", "de", "es", None, "fr")] == [0, 1, None, None, None]
    seen = []
    true = pipeline.method.predict
    monkeypatch.setattr(
        pipeline.method, "predict", lambda x, source=None: (seen.append(source), true(x, source))[1]
    )
    list(pipeline.predict(["good"], language="de"))
    list(pipeline.predict(["good"]))
    assert seen == [1, None]


def test_batches_hold_as_many_words_as_fit(runs, monkeypatch):
    from xferkit.runs import predicting

    monkeypatch.setattr(predicting, "_BATCH_TOKENS", 12)
    pipeline = Pipeline.from_pretrained(model(runs))
    sizes = []
    true = pipeline.method.predict

    def watched(inputs, source=None):
        sizes.append(tuple(inputs.ids.shape))
        return true(inputs, source)

    monkeypatch.setattr(pipeline.method, "predict", watched)
    texts = ["good " * n for n in (1, 20, 2, 3, 3, 6, 1)]
    inputs, _ = pipeline.coder.encode([Record((), None, 1, t) for t in texts], pipeline.coder.lexicon())
    found = predict_numbers(pipeline.method, inputs, tagging=False, batch_size=4)
    assert all(rows * width <= 12 or rows == 1 for rows, width in sizes) and sum(r for r, _ in sizes) == 7
    assert max(rows for rows, _ in sizes) <= 4 and len(found.flat) == 7


# -- the folder ------------------------------------------------------------------------------------------------


def test_nothing_is_overwritten_unless_told(runs, tmp_path):
    pipeline = Pipeline.from_pretrained(model(runs))
    (tmp_path / "m").mkdir()
    (tmp_path / "m/notes").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=str(tmp_path / "m")):
            pipeline.save_pretrained(tmp_path / "m", overwrite=overwrite)
    assert (tmp_path / "m/notes").read_text() == "mine"
    pipeline.save_pretrained(tmp_path / "n")
    with pytest.raises(ValueError, match="is there already; nothing was overwritten"):
        pipeline.save_pretrained(tmp_path / "n")
    pipeline.facts = {"new": True}
    pipeline.save_pretrained(tmp_path / "n", overwrite=True)
    assert Pipeline.from_pretrained(tmp_path / "n").facts == {"new": True}
    assert {p.name for p in (tmp_path / "n").iterdir()} == FILES


def test_a_damaged_model_does_not_stop_a_run(runs, tmp_path):
    """Its result is gone as well, so the seed is tested and saved once more from its last checkpoint."""
    run(runs, tmp_path / "run", steps=10)
    folder = tmp_path / "run/seed-1"
    (folder / "result.json").unlink()
    (folder / "model/manifest.json").write_text("{")
    warned = []
    run(runs, tmp_path / "run", steps=10, warned=warned)
    assert any("It was moved to model.corrupt and is written again." in w for w in warned)
    assert next(iter(load_model(tmp_path / "run").predict(["good"]))).labels in ("pos", "neg", "other")


def test_a_kill_while_saving_leaves_the_old_model_or_the_new_one(runs, tmp_path, monkeypatch):
    """The process ends at each rename, flush and write of a save in turn."""
    pipeline = Pipeline.from_pretrained(model(runs))
    target = tmp_path / "m"
    pipeline.save_pretrained(target)
    pipeline.facts = {"new": True}

    class Killed(BaseException):
        pass

    ends, whole = 0, 0
    for number in range(200):
        calls = 0

        def dying(true, number=number):
            def call(*args, **kwargs):
                nonlocal calls
                calls += 1
                if calls == number + 1:
                    raise Killed
                return true(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, dying(getattr(os, name)))
            try:
                pipeline.save_pretrained(target, overwrite=True)
                whole = 1
            except Killed:
                ends += 1
        facts = Pipeline.from_pretrained(target).facts
        assert facts == {"new": True} or "seed" in facts
        if whole:
            break
    assert whole and ends > 5
    shutil.rmtree(target)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_byte_is_noticed_and_the_file_named(runs, tmp_path, name):
    folder = tmp_path / "m"
    shutil.copytree(model(runs), folder)
    whole = (folder / name).read_bytes()
    rng = random.Random(name)
    for _ in range(25):
        place = rng.randrange(len(whole))
        changed = bytearray(whole)
        changed[place] ^= 1 << rng.randrange(8)
        (folder / name).write_bytes(changed)
        with pytest.raises(ValueError) as caught:
            Pipeline.from_pretrained(folder)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=str(folder)):
        Pipeline.from_pretrained(folder)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=str(folder)):
        Pipeline.from_pretrained(folder)


def resealed(folder: Path, target: Path, **changes) -> Path:
    """A model whose parts were changed by somebody who knew how to seal them."""
    checked = open_folder(folder, kind=MODEL_KIND)
    config, vocabularies = checked.json("config.json"), checked.json("vocabularies.json")
    weights = checked.tensors("model.safetensors")
    for key, value in changes.items():
        part, _, name = key.partition("__")
        {"config": config, "vocabularies": vocabularies, "weights": weights}[part][name] = value
    weights = {k: v for k, v in weights.items() if v is not None}
    files = {
        "config.json": json.dumps(config),
        "vocabularies.json": json.dumps(vocabularies),
        "model.safetensors": weights,
    }
    write_folder(target, files, kind=MODEL_KIND)
    return target


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"config__schema": 2}, "config.json has schema 2, and this version reads up to 1; use a newer one"),
        ({"config__schema": None}, "schema is None; expected a number from 1"),
        ({"config__schema": True}, "schema is True; expected a number from 1"),
        ({"config__method": "tarot"}, "unknown method 'tarot'"),
        ({"config__method": 3}, "method is 3; expected a name"),
        ({"config__sources": []}, "sources is []; expected a list of languages"),
        ({"config__sources": ["en"]}, "has shape"),
        ({"config__ops": "magic"}, "ops is 'magic'; expected 'fused' or 'reference'"),
        ({"config__target": 1}, "target is 1; expected a language or null"),
        (
            {"config__encoder": {"layerz": 1}},
            "config.json: encoder: unknown key 'layerz'; the nearest is 'layers'",
        ),
        ({"config__options": {"lambda1": "x"}}, "config.json: options: lambda1 is 'x'; expected a number"),
        ({"config__encoder": 3}, "encoder is 3; expected a mapping"),
        ({"vocabularies__schema": 7}, "vocabularies have schema 7, and this version reads up to 1"),
        ({"vocabularies__task": "poetry"}, "task must be 'tagging' or 'classification', got 'poetry'"),
        ({"vocabularies__labels": {"kind": "labels", "labels": []}}, "expected at least one label"),
        ({"vocabularies__words": [1]}, "words must be a mapping, got list"),
        ({"vocabularies__max_chars": 0}, "max_chars must be a number from 1 on, got 0"),
        ({"vocabularies__reads": "tea"}, "reads must be words, characters or pieces, got 'tea'"),
        ({"weights__extra": torch.zeros(1)}, "holds extra, which the method has not"),
    ],
)
def test_a_model_that_does_not_fit_is_refused_in_a_sentence(runs, tmp_path, changes, sentence):
    with pytest.raises(ValueError) as caught:
        Pipeline.from_pretrained(resealed(model(runs), tmp_path / "m", **changes))
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


def test_lacking_weights_are_named(runs, tmp_path):
    name = next(iter(open_folder(model(runs), kind=MODEL_KIND).tensors("model.safetensors")))
    with pytest.raises(ValueError, match=f"model.safetensors lacks {name}; expected the weights"):
        Pipeline.from_pretrained(resealed(model(runs), tmp_path / "m", **{f"weights__{name}": None}))


def test_a_checkpoint_is_no_model(runs, tmp_path):
    checkpoint = next((runs / "texts/seed-1/checkpoints").glob("step-*"))
    with pytest.raises(ValueError, match="is a folder of kind 'checkpoint', expected 'model'"):
        Pipeline.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"none is no folder; expected one that holds a model"):
        Pipeline.from_pretrained(tmp_path / "none")
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Pipeline.from_pretrained(tmp_path)


def test_a_model_is_found_from_the_folders_above_it(runs, tmp_path):
    folder = model(runs)
    assert {model_folder(p) for p in (folder, folder.parent, folder.parents[1])} == {folder}
    for number in (2, 10):
        shutil.copytree(folder, tmp_path / f"run/seed-{number}/model")
    with pytest.raises(
        ValueError, match=r"holds 2 models; expected one of them: .*seed-2/model, .*seed-10/model"
    ):
        model_folder(tmp_path / "run")
    with pytest.raises(ValueError, match="holds no model; expected a folder such as"):
        model_folder(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds no model \(its training is not finished\)"):
        model_folder(tmp_path)
    with pytest.raises(ValueError, match="is no folder"):
        model_folder(tmp_path / "none")


def test_short_names_load_on_first_use():
    assert xferkit.Pipeline is Pipeline
    assert {"Pipeline", "run_training", "runs", "checkpoints"} <= set(dir(xferkit))
    with pytest.raises(AttributeError, match="has no attribute 'Pipline'"):
        xferkit.Pipline  # noqa: B018
    with pytest.raises(AttributeError, match="has no attribute 'Pipline'"):
        xferkit.runs.Pipline  # noqa: B018
