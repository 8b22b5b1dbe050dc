"""The demo's comparison of gradients: summaries of known cosines, sentences, page, files, and finished runs."""

from __future__ import annotations

import html
import itertools
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("babel", reason="the demo's names come with its extra")

from xferkit.data import CLASSES, CONVENTIONS, SIMILARITY_PANEL, capitalised_share, capitalises, load_names
from xferkit.demo.errors import DemoError
from xferkit.demo.output import write_report
from xferkit.demo.page import language_names, report_html
from xferkit.demo.plan import PRESETS, Preset, plan_cells, plan_similarity
from xferkit.demo.result import Run
from xferkit.demo.run import run_demo
from xferkit.demo.similarity import FAMILIES, similarity_sentences, summarise_similarity
from xferkit.demo.similarity_figures import layer_figure, similarity_maps
from xferkit.demo.store import CellOutcome, SimilarityOutcome, SimilarityStore
from xferkit.demo.summary import summarise

PLAN = plan_similarity(replace(PRESETS["full"], similarity_seeds=3))
NAMES = language_names(SIMILARITY_PANEL)
CAPITAL = np.array([capitalises(lang) for lang in SIMILARITY_PANEL])
#: What seeds add: mean 0, so that the means are exact.
NOISE = (0.01, -0.02, 0.01)


def pairs(within, across):
    rows, columns = np.triu_indices(len(SIMILARITY_PANEL), 1)
    return tuple(np.where(CAPITAL[rows] == CAPITAL[columns], within, across).tolist())


def outcome(spec, written=(0.6, -0.4), lower=(0.3, 0.3), batch=(0.05, -0.05)):
    within, across = lower if spec.lowercase else written
    own = pairs(within + NOISE[spec.seed], across)
    course = {str(step): pairs(within, across) for step in (*spec.course, *spec.focus)}
    samples = {str(size): pairs(batch[0] + NOISE[spec.seed], batch[1]) for size in spec.samples}
    layers = {"shared.convolutions.0": own, "shared.other": pairs(0.1, 0.1)}
    return SimilarityOutcome(own, layers, samples, course, 1.0, spec.steps, {"main/task": 0.5})


def summary_of(plan=PLAN, **changes):
    return summarise_similarity({spec: outcome(spec, **changes) for spec in plan})


def test_summary_by_hand():
    summary = summary_of()
    assert summary.seeds == 3 and summary.by_chance == 15 and summary.strays == ()
    written = summary.written
    assert (written.within.mean, written.across.mean) == (pytest.approx(0.6), pytest.approx(-0.4))
    # s of NOISE is sqrt(6e-4 / 2), t_{.975, 2} = 4.302653
    assert written.gap.half_width == pytest.approx(4.302653 * math.sqrt(3e-4 / 3), rel=1e-6)
    assert summary.lower.gap.mean == pytest.approx(0.0, abs=1e-12)
    assert summary.change.mean == pytest.approx(1.0)
    assert set(summary.samples) == {0, 64, 256} and summary.samples[0].within.mean == pytest.approx(0.05)
    assert [row[0] for row in summary.course] == sorted({*PLAN[0].course, *PLAN[0].focus})
    assert summary.course[0][1:] == (pytest.approx(0.6), pytest.approx(-0.4))
    assert summary.num_comparisons == 1 + 1 + 3 + 1
    first = [summary.families[n] for n in summary.by_convention]
    assert first == [FAMILIES[0]] * 8 + [FAMILIES[1]] * 15
    assert sorted(summary.by_clustering) == list(range(23))
    clustered = [summary.families[n] for n in summary.by_clustering]
    assert sum(a != b for a, b in itertools.pairwise(clustered)) == 1


def test_strays_are_those_that_the_gradients_put_elsewhere():
    records = {}
    place = SIMILARITY_PANEL.index("vi")
    for spec in PLAN:
        matrix = np.eye(23)
        rows, columns = np.triu_indices(23, 1)
        side = CAPITAL.copy()
        side[place] = not side[place]
        values = np.where(side[rows] == side[columns], 0.6, -0.4)
        matrix[rows, columns] = matrix[columns, rows] = values
        moved = tuple(values.tolist())
        records[spec] = replace(outcome(spec), model=moved)
    summary = summarise_similarity(records)
    assert summary.strays == ("vi",)
    said = similarity_sentences(summary, NAMES)[2]
    assert "put 22 of 23 languages with their convention (not Vietnamese)" in said and "right for 15" in said


@pytest.mark.parametrize(
    ("changes", "place", "expected"),
    [
        (
            {},
            0,
            "around step 150 of 400, languages of different conventions pull against each other; their mean",
        ),
        ({}, 0, "cosine is +0.60 [+0.56 to +0.64] within a convention and −0.40 [−0.40 to −0.40] across"),
        ({"written": (0.6, 0.2)}, 0, "all pull together, those of one convention more"),
        ({"written": (0.6, 0.6)}, 0, "gradients do not clearly agree more within a convention than across"),
        ({"written": (0.2, 0.6)}, 0, "gradients agree less within a convention than across"),
        ({}, 1, "yes, as far as these runs show; within less across is +1.00"),
        ({}, 1, "lower-cased: no clear difference is left without them"),
        ({"lower": (0.5, 0.2)}, 1, "the difference shrinks without them"),
        ({"lower": (0.2, 0.5)}, 1, "it turns round without them"),
        ({"lower": (0.6, -0.4)}, 1, "these figures do not show it"),
        ({}, 3, "are +0.05 [+0.01 to +0.09] and −0.05 [−0.05 to −0.05]: sampling noise"),
    ],
)
def test_sentences_for_every_outcome(changes, place, expected):
    assert expected in similarity_sentences(summary_of(**changes), NAMES)[place]


def test_no_claim_of_noise_where_a_batch_says_as_much():
    assert similarity_sentences(summary_of(batch=(0.6, -0.4)), NAMES)[3].endswith("−0.40 [−0.40 to −0.40].")


def test_one_seed_and_no_control_claim_nothing():
    summary = summary_of(PLAN[:2])
    sentences = similarity_sentences(summary, NAMES)
    assert "of one run, their mean cosine" in sentences[0] and "one run cannot tell" in sentences[1]
    alone = summary_of([spec for spec in PLAN if not spec.lowercase])
    assert alone.lower is None and alone.lower_course == ()
    assert len(similarity_sentences(alone, NAMES)) == 3
    assert len(layer_figure(alone)[1]) == 1
    assert summarise_similarity({}) is None
    with pytest.raises(ValueError, match=r"got seeds \[0, 1, 2\] and \[0, 1\]"):
        summary_of(PLAN[:-1])


def test_the_two_maps_hold_the_same_numbers():
    one, two = similarity_maps(summary_of(), NAMES)
    assert one.blocks == (("capitalise", 8), ("lower case", 15)) and two.blocks == ()
    assert {one.labels[n] for n in one.bold} == {two.labels[n] for n in two.bold}
    place = {name: two.labels.index(name) for name in one.labels}
    for a, row in enumerate(one.values):
        for b, value in enumerate(row):
            assert two.values[place[one.labels[a]]][place[one.labels[b]]] == value
    labels, panels = layer_figure(summary_of())
    assert labels == ["whole model", "convolution", "shared.other"] and len(panels) == 2


@pytest.fixture(scope="module")
def run():
    preset = Preset("one", {"es": 1}, ("pooled",), (), 400)
    records = {spec: CellOutcome(0.5, 0.4, 1.0, None, 400, {"a": 1.0}) for spec in plan_cells(preset)}
    languages = tuple(dict.fromkeys(["es", *SIMILARITY_PANEL]))
    data = load_names(languages)
    compared = {spec: outcome(spec) for spec in PLAN}
    return Run(
        preset=preset,
        records=records,
        summaries=summarise(records, data),
        data=data,
        environment={},
        date="2026-01-02",
        wall_seconds=1.0,
        reused=0,
        workers=2,
        similarity_records=compared,
        similarity=summarise_similarity(compared),
    )


def test_page(run):
    page = report_html(run)
    text = re.sub(
        r"\s+",
        " ",
        html.unescape(re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.S))),
    )
    assert (
        "Whose gradients pull which way" in text
        and "One pooled model learns the names of 23 languages" in text
    )
    assert "9 names, with dropout: a training step +0.05" in text and "64 names" in text
    counts = [len(run.data.train(language).texts) for language in run.data.languages]
    assert f"all {min(counts):,} to {max(counts):,} names +0.60 [+0.56 to +0.64] −0.40" in text
    assert "all names, lower-cased: the control +0.30" in text
    assert "Means over steps" not in text and "means over steps 148 to 152 of 400" in text
    assert "German: every noun begins with a capital letter" in text
    assert f"{run.similarity.num_comparisons} intervals of differences are shown" in text
    assert "Gradients: 3 seeds, one moment of training" in text and "7 runs of 400 steps" in text
    assert "http://" not in page and "https://" not in page and len(page.encode()) < 1_000_000
    assert "nan" not in text.lower().split()
    without = report_html(replace(run, similarity_records={}, similarity=None))
    assert "Whose gradients" not in without and "Gradients:" not in without


def test_files(run, tmp_path):
    pytest.importorskip("matplotlib", reason="PNGs come with the demo's extra")
    write_report(run, tmp_path)
    for name in ("gradients.png", "gradients-course.png", "gradients-layers.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    found = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["gradients"]
    assert found["as_written"]["within"]["mean"] == pytest.approx(0.6)
    assert found["lower_cased"]["gap"]["mean"] == pytest.approx(0.0, abs=1e-12)
    assert found["by_number_of_names"]["training batch"]["across"]["mean"] == pytest.approx(-0.05)
    assert found["conventions"]["de"] == "capitalise" and len(found["cosines"]) == 23
    assert set(found["order_by_clustering"]) == set(SIMILARITY_PANEL)


# -- the panel -----------------------------------------------------------------------------------------------


def test_every_language_of_the_panel_has_a_rule_and_no_other_script():
    assert len(SIMILARITY_PANEL) == len(set(SIMILARITY_PANEL)) == 23
    assert set(SIMILARITY_PANEL) <= set(CONVENTIONS) and all(CONVENTIONS.values())
    data = load_names(SIMILARITY_PANEL)
    for lang in SIMILARITY_PANEL:
        letters = [c for text in data.train(lang).texts for c in text if c.isalpha()]
        assert sum(ord(c) < 0x250 or 0x1E00 <= ord(c) < 0x1F00 for c in letters) > 0.99 * len(letters), lang
        share = capitalised_share(data.train(lang), CLASSES.index("language"))
        assert share > 0.9 if capitalises(lang) else share < 0.1, (lang, share)


# -- finished runs -------------------------------------------------------------------------------------------


def test_outcomes_survive_the_store_and_are_checked(tmp_path):
    store = SimilarityStore(tmp_path, {"data": "1"})
    spec, found = PLAN[0], outcome(PLAN[0])
    found = replace(found, model=(None, *found.model[1:]))
    assert store.load(spec) is None
    store.save(spec, found)
    assert store.load(spec) == found
    others = [
        replace(spec, seed=9),
        replace(spec, focus=(1,)),
        replace(spec, samples=()),
        replace(spec, lowercase=True),
    ]
    assert len({store.key(one) for one in (spec, *others)}) == 5
    values = vars(found)
    for change, reason in (
        ({"model": [2.0]}, "model must hold cosines, got 2.0"),
        ({"layers": {"a": [0.1]}}, r"layers\[a\] must hold 253 cosines, got 1"),
        ({"course": {"x": found.model}}, "invalid literal"),
        ({"seconds": -1}, "seconds"),
    ):
        with pytest.raises(ValueError, match=reason):
            SimilarityOutcome.checked({**values, **change})


def test_a_demo_with_gradients_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("xferkit.demo.output._write_pngs", lambda *a: None)
    monkeypatch.setattr("xferkit.demo.run.code_fingerprint", lambda: "0" * 64)
    preset = Preset("tiny", {"es": 1}, ("pooled",), (), 8, 2, (1.0,))
    asked = []

    def train(spec, data):
        return CellOutcome(0.5, 0.4, 1.0, None, spec.steps, {"a": 1.0})

    def measure(spec, data):
        assert data.lowercase == spec.lowercase
        asked.append(spec)
        if len(asked) == 3:
            raise FloatingPointError("loss is not finite")
        return outcome(spec)

    with pytest.raises(DemoError, match="the run gradients seed 1 failed: FloatingPointError"):
        run_demo(tmp_path, preset, workers=0, run=train, measure=measure)
    assert len(list((tmp_path / "cells").glob("gradients*.json"))) == 2
    run_demo(tmp_path, preset, workers=0, run=train, measure=measure)
    assert len(asked) == 3 + 2, "what was finished is not done again"
    said = capsys.readouterr().err
    assert "3 of 5 runs are finished already" in said and "\nWho pulls together: " in said
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert results["gradients"]["seeds"] == 2 and results["runs_reused"] == 3
    run_demo(tmp_path, preset, workers=0, run=train, measure=measure)
    assert len(asked) == 5


def test_a_run_that_gives_the_wrong_kind_of_result_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("xferkit.demo.run.code_fingerprint", lambda: "0" * 64)
    preset = Preset("tiny", {"es": 1}, ("pooled",), (), 8)
    with pytest.raises(TypeError, match="es pooled seed 0 gave a SimilarityOutcome"):
        run_demo(tmp_path, preset, workers=0, run=lambda spec, data: outcome(PLAN[0]))
