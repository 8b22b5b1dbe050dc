"""Runs on own files in this process: what is read and decided, what comes out, and the folder's rules."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from toy_runs import make_texts, run, values

from xferkit.runs import make_run_config
from xferkit.runs.files import read_config, read_sealed
from xferkit.runs.folder import read_run
from xferkit.trainers import Interrupted


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return make_texts(tmp_path_factory.mktemp("texts"))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# -- what comes out --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    said, warned = [], []
    result = run(texts, out, seeds=(1, 2), said=said, warned=warned)
    return result, out, said, warned


def test_a_run_learns_the_target_from_its_sources(finished):
    result, _, _, warned = finished
    test = next(s for s in result.summaries if (s.role, s.language) == ("test", "es"))
    assert test.interval.mean > 0.9 and test.interval.n == 2 and test.texts == 60, "chance is a third"
    assert test.name == "accuracy" and test.majority < 0.5
    assert test.sd == pytest.approx(
        math.sqrt(sum((v - test.interval.mean) ** 2 for v in test.per_seed.values()))
    )
    assert {(s.role, s.language) for s in result.summaries} == {("dev", "en"), ("dev", "de"), ("test", "es")}
    for seed in result.seeds.values():
        assert set(seed.source_weights) == {"es"} and set(seed.source_weights["es"]) == {"en", "de"}
        assert sum(seed.source_weights["es"].values()) == pytest.approx(1.0, abs=1e-5)
        assert seed.steps == 40 and seed.losses["main/task"] < 0.5
    assert warned == []


def test_a_run_says_what_it_saw_and_decided(finished, texts):
    _, _, said, _ = finished
    text = "\n".join(said)
    assert f"Task: classification (a text and its label a line in {texts}/en.tsv)." in text
    assert (
        f"{texts}/en.tsv: 108 rows to train on; 12 (10 %, seed 0) are held out as development data of en."
        in text
    )
    assert f"{texts}/es.txt: 80 texts of es without labels." in text
    assert "man-moe: sources en 108, de 108; target es; 3 labels" in text
    assert "40 steps (as told) with 8 texts of each language; development data every 10 steps" in text


def test_the_folder_holds_all_there_is_to_know(finished, texts):
    result, out, _, _ = finished
    content = read_run(out)
    assert content["status"] == "finished" and content["seeds"] == [1, 2] and content["method"] == "man_moe"
    assert [(f["role"], f["language"]) for f in content["files"]] == [
        ("train", "en"), ("train", "de"), ("unlabelled", "es"), ("test", "es"),
    ]  # fmt: skip
    session = content["sessions"][-1]
    assert {"torch", "xfercore", "python"} <= set(session["versions"]) and session["hardware"]["cores"]
    assert session["ranks"] == 1
    assert session["status"] == "finished" and session["ended"] >= session["begun"]
    assert content["facts"]["rows"]["train/en"] == {
        "in": 120,
        "out": 120,
        "rejected": 0,
        "used": 108,
        "held_out": 12,
    }
    assert content["facts"]["labels"] == ["neg", "other", "pos"] and content["facts"]["steps"] == 40
    assert content["results"]["test/es"]["mean"] == next(iter(result.summaries[-1:])).interval.mean
    again = make_run_config(read_flat(out / "config.yaml"))
    assert again == make_run_config(values(texts, out, seeds=(1, 2)))
    for seed in (1, 2):
        folder = out / f"seed-{seed}"
        assert {p.name for p in folder.iterdir()} == {
            "checkpoints", "metrics.jsonl", "metrics.csv", "result.json", "model",
        }  # fmt: skip
        assert read_sealed(folder / "result.json")["test"]["es"]["texts"] == 60


def read_flat(path):
    from xferkit.runs.config import run_options
    from xferkit.runs.schema import flatten

    tree = read_config(path)
    return {**flatten(tree, run_options(tree["method"]), "config"), "method": tree["method"]}


def test_a_finished_run_is_not_done_again(finished, texts):
    _, out, _, _ = finished
    before = {k: v for k, v in snapshot(out).items() if k.startswith("seed-")}
    said = []
    run(texts, out, seeds=(1, 2), said=said)
    assert "All seeds are finished" in "\n".join(said)
    assert {k: v for k, v in snapshot(out).items() if k.startswith("seed-")} == before
    assert len(read_run(out)["sessions"]) >= 2


def test_the_same_settings_give_the_same_model_to_the_bit(finished, texts, tmp_path):
    _, out, _, _ = finished
    torch.manual_seed(99)
    run(texts, tmp_path / "again", seeds=(2,))
    assert (tmp_path / "again/seed-2/model/model.safetensors").read_bytes() == (
        out / "seed-2/model/model.safetensors"
    ).read_bytes()


def test_a_run_without_a_folder_gives_the_same_scores(finished, texts, monkeypatch, tmp_path):
    result, *_ = finished
    monkeypatch.chdir(tmp_path)
    bare = run(texts, None, seeds=(1,))
    assert bare.seeds[1].test == result.seeds[1].test and bare.out is None
    assert not list(tmp_path.iterdir())


# -- going on --------------------------------------------------------------------------------------------------


def test_a_stopped_run_goes_on_bit_for_bit(finished, texts, tmp_path, monkeypatch):
    """Stopped in the middle of its first seed: the second call ends where the run left alone ended."""
    _, whole, _, _ = finished
    from xferkit.runs import seed as module

    true, calls = module._dev_scores, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGTERM)
        return true(*args)

    monkeypatch.setattr(module, "_dev_scores", interrupted)
    with pytest.raises(Interrupted) as stopped:
        run(texts, tmp_path / "run", seeds=(1,))
    assert stopped.value.exit_code == 143
    content = read_run(tmp_path / "run")
    assert content["status"] == content["sessions"][0]["status"] == "stopped" and content["results"] is None
    assert "SIGTERM" in content["sessions"][0]["reason"]
    assert not (tmp_path / "run/seed-1/result.json").exists()
    run(texts, tmp_path / "run", seeds=(1,))
    assert len(calls) == 4, "the third was the one that was stopped at; the fourth is the last"
    for name in ("model/model.safetensors", "metrics.csv"):
        mine, theirs = (tmp_path / "run/seed-1" / name).read_bytes(), (whole / "seed-1" / name).read_bytes()
        if name.endswith("csv"):
            mine, theirs = without_seconds(mine), without_seconds(theirs)
        assert mine == theirs, name


def without_seconds(table: bytes) -> list[list[str]]:
    rows = [line.split(",") for line in table.decode().splitlines()]
    place = rows[0].index("seconds")
    return [row[:place] + row[place + 1 :] for row in rows]


def test_more_seeds_join_a_run(finished, texts, tmp_path):
    _, whole, _, _ = finished
    said = []
    run(texts, tmp_path / "run", seeds=(2,))
    result = run(texts, tmp_path / "run", seeds=(1, 2), said=said)
    assert "Seeds 2 are finished" in "\n".join(said) and "left to do: 1" in "\n".join(said)
    assert sorted(result.seeds) == [1, 2] and read_run(tmp_path / "run")["seeds"] == [2, 1]
    assert (tmp_path / "run/seed-1/model/model.safetensors").read_bytes() == (
        whole / "seed-1/model/model.safetensors"
    ).read_bytes()
    fewer = run(texts, tmp_path / "run", seeds=(2,))
    assert sorted(fewer.seeds) == [1, 2], "what is finished stays part of the run"


def test_a_damaged_result_is_moved_aside_and_made_again(texts, tmp_path):
    run(texts, tmp_path / "run", steps=10)
    path = tmp_path / "run/seed-1/result.json"
    good = path.read_text()
    path.write_text(good.replace('"seed": 1', '"seed": 2'))
    warned = []
    run(texts, tmp_path / "run", steps=10, warned=warned)
    assert (
        len(warned) == 1 and "result.json is damaged or was edited" in warned[0] and "moved to" in warned[0]
    )
    assert path.with_name("result.json.corrupt").exists()
    new, old = read_sealed(path), json.loads(good)
    assert new["test"] == old["test"]


# -- the folder's rules ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"encoder.layers": 2}, "encoder.layers is 1 there and 2 here"),
        ({"steps": 11}, "steps is 10 there and 11 here"),
        ({"options.lambda1": 0.5}, "options.lambda1 is 0.002 there and 0.5 here"),
        ({"encoder.layers": 2, "bucket": 3, "dev_seed": 4, "temperature": 2.0}, "(and 1 more)"),
        ({"method": "moe"}, "method is man_moe there and moe here"),
        ({"test": {}}, "--test es="),
        ({"train": {"de": "{}/de.tsv", "en": "{}/en.tsv"}}, "the languages are in another order"),
        ({"train": {"en": "{}/en.tsv", "de": "{}/es.tsv"}}, "the content of --train de="),
        ({"train": {"en": "{}/en.tsv"}}, "was read there and is not named here"),
    ],
)
def test_another_run_does_not_touch_the_folder(started, texts, changes, sentence):
    before = snapshot(started)
    filled = {
        key: {k: v.format(texts) for k, v in value.items()} if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    with pytest.raises(ValueError) as caught:
        run(texts, started, **{"steps": 10, **filled})
    assert str(caught.value).startswith(f"{started} holds another run: ") and sentence in str(caught.value)
    assert str(caught.value).endswith("nothing was changed") and "\n" not in str(caught.value)
    assert snapshot(started) == before


@pytest.fixture(scope="module")
def started(texts, tmp_path_factory):
    out = tmp_path_factory.mktemp("started") / "run"
    run(texts, out, steps=10)
    return out


def test_settings_that_decide_nothing_may_change(started, texts):
    run(texts, started, steps=10, **{"trainer.progress": "plain", "trainer.title": "x"})
    copies = {lang: f"{texts}/{lang}_copy.tsv" for lang in ("en", "de")}
    for lang, path in copies.items():
        Path(path).write_bytes((texts / f"{lang}.tsv").read_bytes())
    run(texts, started, steps=10, train=copies)


def test_a_folder_with_other_content_is_left_alone(texts, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(
        ValueError, match=r"holds other files \(thesis\.tex\) and no run; expected an empty folder"
    ):
        run(texts, tmp_path)
    assert snapshot(tmp_path) == {"thesis.tex": b"years of work"}
    file = tmp_path / "thesis.tex"
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        run(texts, file)
    with pytest.raises(ValueError, match=r"cannot use .* as the folder of the run: Not a directory"):
        run(texts, file / "run")


def test_a_folder_in_use_names_its_user(started, texts):
    from xferkit.checkpoints import locked_folder

    with locked_folder(started), pytest.raises(ValueError, match=r"is being written to by process \d+ on"):
        run(texts, started, steps=10)


def test_newer_and_damaged_run_files_are_refused(texts, tmp_path):
    from xferkit.runs.files import write_sealed

    out = tmp_path / "run"
    run(texts, out, steps=10)
    content = read_sealed(out / "run.json")
    write_sealed(out / "run.json", {**content, "schema": 99})
    with pytest.raises(ValueError, match=r"run\.json has schema 99, and this version reads up to 1"):
        run(texts, out, steps=10)
    (out / "run.json").write_text("{")
    before = snapshot(out)
    with pytest.raises(ValueError, match=r"run\.json: cannot be read as JSON"):
        run(texts, out, steps=10)
    assert snapshot(out) == before


def test_a_run_that_never_made_a_step_gives_way(texts, tmp_path):
    """Bad input found while reading leaves a folder with nothing in it; the next try is not refused for it."""
    out, said = tmp_path / "run", []
    with pytest.raises(
        ValueError, match="man-moe reads text of a target language; expected --unlabelled LANG=FILE"
    ):
        run(texts, out, unlabelled={})
    assert read_run(out)["status"] == "failed"
    with pytest.raises(
        ValueError, match="a language without labels; --unlabelled names en, which --train names"
    ):
        run(texts, out, unlabelled={"en": f"{texts}/es.txt"}, test={})
    run(texts, out, steps=10, said=said)
    assert "holds a run that never made a step; its settings are replaced." in "\n".join(said)
