"""The multilingual table: plan, sums, claims, files, page and resuming, from made-up results of known statistics."""

from __future__ import annotations

import csv
import gzip
import html
import io
import json
import re
from dataclasses import replace

import pytest

from xferkit.experiments.multilingual.cell import ALONE, LOOKUP, MultilingualOutcome, PairRecord
from xferkit.experiments.multilingual.claims import check_claims, sentences, watched
from xferkit.experiments.multilingual.config import Language, MultilingualConfig, MultilingualSettings, Row
from xferkit.experiments.multilingual.figures import by_family, cosine_maps, difference_rows
from xferkit.experiments.multilingual.files import pairs_csv, table_csv, table_markdown, table_tex
from xferkit.experiments.multilingual.page import multilingual_html
from xferkit.experiments.multilingual.plan import plan_cells
from xferkit.experiments.multilingual.summary import summarise
from xferkit.experiments.tables.facts import table_facts
from xferkit.experiments.tables.run import run_table
from xferkit.experiments.tagging_data import TaggingFiles
from xferkit.report.heat_map import HeatMap, heat_maps_png, heat_maps_svg
from xferkit.runs.errors import RunError

FILES = TaggingFiles(**{split: {"default": f"{{lang}}-{split}.tsv.gz"} for split in ("train", "dev", "test")})
TABLE = MultilingualConfig(
    title="A <b>table</b>",
    task="tags & spans",
    notes=("A note.",),
    languages={
        "en": Language("Germanic", why="Why en."),
        "fr": Language("Romance"),
        "nl": Language("Germanic", low=True, max_train=10),
        "hi": Language("Indic", low=True),
    },
    methods={
        "joint_sum": Row("joint_sum", label="Sum", note="the baseline"),
        "observed": Row("gradvac_fixed", {"target": -0.9}, label="Observed"),
        "pcgrad": Row("pcgrad", label="PCGrad"),
        "vac": Row("gradvac", label="GradVac"),
        "layer": Row("gradvac", {"grouping": "layer"}, label="GradVac layer"),
    },
    alone=True,
    settings=MultilingualSettings(files=FILES),
)
#: What every method adds to each language, what all share from seed to seed, and what GradVac has of its own.
GAIN = {"joint_sum": 0.0, "observed": 0.0, "pcgrad": 0.0, "vac": 0.05, "layer": -0.05, ALONE: -0.2}
COMMON = {0: 0.0, 1: -0.02, 2: 0.0, 3: 0.02}
OWN = {1: 0.001, 2: -0.002, 3: 0.001}
BASE = {"en": 0.8, "fr": 0.7, "nl": 0.6, "hi": 0.5}
ACTIVE = {"observed": 0, "pcgrad": 40, "vac": 50, "layer": 45}


def pairs(cell):
    if cell.method not in ACTIVE:
        return None
    near, far, step = 0.3 + OWN[cell.seed], 0.1, 0.01 * (ACTIVE[cell.method] // 10)

    def matrix(more=0.0):
        def value(i, j):
            if i == j or {i, j} == {1, 3}:  # fr and hi never met
                return None
            return (near if {i, j} == {0, 2} else far) + more

        return tuple(tuple(value(i, j) for j in range(4)) for i in range(4))

    groups = ("model",) if cell.method != "layer" else ("embedder", "lstm.l0")
    return PairRecord(
        steps=10,
        groups=groups,
        before=matrix(),
        before_groups=tuple(matrix(0.01 * n) for n in range(len(groups))),
        after=matrix(step),
        after_groups=tuple(matrix(step) for _ in groups),
        visited=100,
        active=max(0, ACTIVE[cell.method] + cell.seed - 2),
    )


def outcome(cell, given=None):
    def score(lang):
        if cell.method == LOOKUP:
            return {"accuracy": 0.4}
        own = OWN[cell.seed] if cell.method == "vac" else 0.0
        more = 0.1 if cell.method == ALONE and lang == "hi" else GAIN[cell.method]
        return {"accuracy": BASE[lang] + more + own + COMMON[cell.seed]}

    counts = {"train": 50, "train_tokens": 300, "dev": 20, "test": 30, "test_tokens": 200, "unknown": 60}
    trained = cell.method != LOOKUP
    return MultilingualOutcome(
        test={lang: score(lang) for lang in cell.languages},
        dev={lang: score(lang) for lang in cell.languages},
        sizes={lang: dict(counts) for lang in cell.languages},
        start=f"{cell.seed}",
        parameters=7 * trained,
        pairs=pairs(cell),
        cpu_seconds=(4.0 if cell.method == "joint_sum" else 10.0) * trained,
        seconds=1.5,
        steps=100 * trained,
        losses={"main/task": 0.1} if trained else {},
    )


@pytest.fixture(autouse=True)
def same_code(monkeypatch):
    # The real hash changes when somebody builds or edits while the tests run.
    monkeypatch.setattr("xferkit.experiments.tables.run.code_fingerprint", lambda subpackages: "0" * 64)
    monkeypatch.setattr("xferkit.experiments.multilingual.table._write_png", lambda *a: None)


@pytest.fixture(scope="module")
def records():
    return {cell: outcome(cell) for cell in plan_cells(TABLE)}


@pytest.fixture(scope="module")
def result(records):
    return summarise(TABLE, records)


@pytest.fixture(scope="module")
def facts():
    conditions = {"data": "d" * 64, "code": "c" * 64}
    return table_facts(conditions, runs=3, reused=0, workers=2, wall_seconds=9.0, run_seconds=12.0)


# -- plan and sums ----------------------------------------------------------------------------------------------------


def test_the_plan_goes_seed_by_seed():
    cells = plan_cells(TABLE)
    assert len(cells) == len(set(cells)) == 1 + 3 * (5 + 4)
    assert [cell.seed for cell in cells] == [0] + [1] * 9 + [2] * 9 + [3] * 9
    assert all(cell.uses == "joint_sum" for cell in cells if cell.method == ALONE)
    assert len(plan_cells(replace(TABLE, alone=False))) == 1 + 3 * 5
    other = replace(TABLE, methods={**TABLE.methods, "pcgrad": Row("pcgrad", {"seed": 4}, label="PCGrad")})
    assert len(set(plan_cells(other)) & set(cells)) == len(cells) - 3, "other options are other runs"


def test_means_and_paired_differences(result):
    base, vac, layer = result.row("joint_sum"), result.row("vac"), result.row("layer")
    assert result.means == ("all", "low", "high")
    assert base.test["all"].interval.mean == pytest.approx(0.65)
    assert base.test["low"].interval.mean == pytest.approx(0.55)
    assert base.test["high"].interval.mean == pytest.approx(0.75)
    assert base.test["all"].sd == pytest.approx(0.02) and base.test["all"].gain is None
    for key in ("all", "low", "high", "nl"):
        gain = vac.test[key].gain
        assert gain.mean == pytest.approx(0.05)
        # The seeds' common part cancels: s of (0.001, -0.002, 0.001) is sqrt(3) / 1000, t_{0.975, 2} = 4.3027.
        assert gain.half_width == pytest.approx(4.3027 * 3**0.5 / 1000 / 3**0.5, rel=1e-4)
        assert (vac.test[key].verdict, layer.test[key].verdict) == ("helps", "hurts")
    assert result.row("pcgrad").test["all"].verdict == "no clear difference"
    assert vac.cost.mean == pytest.approx(2.5) and vac.step_seconds.mean == pytest.approx(0.1)
    assert result.row(LOOKUP).test["all"].interval.n == 1 and result.row(LOOKUP).cost is None
    assert result.joint_gain["en"].mean == pytest.approx(0.2)
    assert result.joint_gain["hi"].mean == pytest.approx(-0.1)
    assert result.row(ALONE).test["hi"].gain.mean == pytest.approx(0.1)


def test_what_was_seen_of_gradients(result):
    seen = result.row("vac").pairs
    assert seen.active.mean == pytest.approx(0.5) and seen.runs["active"] == pytest.approx((0.49, 0.5, 0.51))
    assert seen.before.mean == pytest.approx((0.3 + 4 * 0.1) / 5), "pairs that never met do not count"
    assert seen.after.mean == pytest.approx(seen.before.mean + 0.05)
    assert seen.related.mean == pytest.approx(0.3) and seen.others.mean == pytest.approx(0.1)
    assert seen.difference.mean == pytest.approx(0.2)
    assert seen.matrix[0][2] == pytest.approx(0.3) and seen.matrix[1][3] is None
    groups = result.row("layer").pairs.groups
    assert groups["lstm.l0"] == pytest.approx((0.31, 0.11)) and list(groups) == ["embedder", "lstm.l0"]
    assert result.row("joint_sum").pairs is None and watched(result).name == "observed"


def test_one_seed_has_no_interval_and_no_verdict(records, facts):
    config = replace(TABLE, seeds=(2,))
    result = summarise(config, records)
    assert result.row("vac").test["all"].verdict == "one run only"
    text = table_markdown(config, result)
    assert "over 1 seed;" in text and "nan" not in text.lower()
    assert {claim.holds for claim in check_claims(config, result)} == {"one run only"}
    assert "nan" not in multilingual_html(config, result, records, facts).lower().split()


def test_languages_of_one_kind_have_one_mean(records):
    config = replace(TABLE, languages={name: Language(of.family) for name, of in TABLE.languages.items()})
    result = summarise(config, {cell: outcome(cell) for cell in plan_cells(config)})
    assert result.means == ("all",) and "low-resource" not in table_markdown(config, result)


def test_runs_that_did_not_begin_alike_are_not_compared(records):
    broken = {
        cell: replace(run, start="x") if (cell.method, cell.seed) == ("vac", 2) else run
        for cell, run in records.items()
    }
    with pytest.raises(RunError, match="the runs vac and joint_sum of seed 2 began with other parameters"):
        summarise(TABLE, broken)


# -- claims and sentences ---------------------------------------------------------------------------------------------


def test_claims_fall_as_the_figures_do(result, records):
    held = {claim.text: claim for claim in check_claims(TABLE, result)}
    assert len(held) == 1 + 2 + 4
    related = held["Gradients of related languages point more alike than those of others"]
    assert related.holds == "yes" and "+0.300" in related.figures and "(Observed)" in related.figures
    assert held["GradVac turns more pairs than PCGrad"].holds == "yes"
    assert held["GradVac leaves gradients at least as alike as PCGrad"].holds == "yes"
    assert held["GradVac is not worse than Sum in the mean over languages"].holds == "yes, better"
    assert held["GradVac layer is not worse than Sum in the mean over languages"].holds == "no, worse"
    assert not any("layer turns" in text for text in held), "PCGrad has other groups"

    def turned(cell, run):
        if run.pairs is None:
            return run
        swap = {"pcgrad": 60, "vac": 30}.get(cell.method, run.pairs.active)
        flipped = tuple(tuple(None if v is None else -v for v in row) for row in run.pairs.before)
        return replace(run, pairs=replace(run.pairs, active=swap, before=flipped))

    worse = summarise(TABLE, {cell: turned(cell, run) for cell, run in records.items()})
    held = {claim.text: claim.holds for claim in check_claims(TABLE, worse)}
    assert held["Gradients of related languages point more alike than those of others"] == "no, the opposite"
    assert held["GradVac turns more pairs than PCGrad"] == "no, the opposite"


def test_sentences_say_where_it_helps_and_where_it_hurts(result):
    first, *_, vac, layer, alone = sentences(TABLE, result)
    assert first.startswith("Sum: all languages 65.0, low-resource 55.0, high-resource 75.0")
    assert "low-resource +5.0 [+4.6 to +5.4] helps" in vac and "en +5.0, fr +5.0, nl +5.0, hi +5.0" in vac
    assert "hurts" in layer
    assert "helps: en +20.0, fr +20.0, nl +20.0; hurts: hi −10.0" in alone


# -- files and page ---------------------------------------------------------------------------------------------------


def test_markdown_csv_and_tex_hold_the_same_figures(result):
    text = table_markdown(TABLE, result)
    row = next(line for line in text.splitlines() if line.startswith("| GradVac |"))
    for part in ("70.0 ± 2.0", "+5.0 [+4.6 to +5.4] helps", "50", "+0.140 → +0.190", "100 ms (2.5x)"):
        assert part in row, part
    single = [line for line in text.splitlines() if line.startswith("| GradVac |")][1]
    assert single.count("▲") == 4 and "85.0 ▲" in single
    assert "| nl | Germanic | low | 50 |" in text and "nl (low)" in text and "A note." in text
    rows = list(csv.DictReader(io.StringIO(table_csv(TABLE, result))))
    assert len(rows) == 7 * (3 + 4) and None not in rows[0]
    vac = next(r for r in rows if (r["method"], r["language"]) == ("vac", "low"))
    assert (
        float(vac["score"]) == pytest.approx(0.6) and vac["verdict"] == "helps" and vac["resource"] == "mean"
    )
    assert float(vac["active"]) == pytest.approx(0.5) and float(vac["relative_step"]) == pytest.approx(2.5)
    lookup = next(r for r in rows if (r["method"], r["language"]) == (LOOKUP, "en"))
    assert lookup["sd"] == lookup["verdict"] == lookup["step_seconds"] == ""
    met = list(csv.DictReader(io.StringIO(pairs_csv(TABLE, result))))
    assert len(met) == 4 * 6
    never = next(r for r in met if (r["method"], r["one"], r["other"]) == ("vac", "fr", "hi"))
    assert (never["cosine"], never["related"]) == ("", "0")
    tex = table_tex(TABLE, result)
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 2 and r"\uparrow" in tex
    assert not re.search(r"(?<!\\)[%#_]", tex) and not re.search("[▲▼→]", tex)


def test_page_shows_figures_and_escapes_text(result, records, facts):
    given = {**facts, "environment": {"Machine": "<script>alert(1)</script>"}}
    page = multilingual_html(TABLE, result, records, given)
    assert "<script>" not in page and "A &lt;b&gt;table&lt;/b&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page), "self-contained"
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))
    for part in ("70.0 ± 2.0", "+0.140 → +0.190", "en: Why en.", "A note.", "turns more pairs", "2.5x"):
        assert part in text, part
    assert page.count("<svg") == 1 + 1 + 3 + 1, "patterns, scores, differences of three means, cosines"


def test_cosines_stand_by_family_with_sisters_framed(result):
    assert by_family(TABLE) == ("en", "nl", "fr", "hi")
    (figure,) = cosine_maps(TABLE, result)
    assert figure.rows == figure.columns == ("en", "nl", "fr", "hi")
    assert figure.marked == {(0, 1), (1, 0)} and figure.full == pytest.approx(0.3)
    assert figure.values[0][0] is None and figure.values[2][3] is None
    assert [row.label for row in difference_rows(TABLE, result, "low")] == [
        "Observed", "PCGrad", "GradVac", "GradVac layer",
    ]  # fmt: skip


def test_heat_maps_of_cosines():
    figure = HeatMap("m", ("a", "b"), ("a", "b"), ((None, -0.1), (0.2, -0.001)), full=0.2)
    assert [cell[3] for cell in figure.cells(0)] == ["−10"]
    assert [cell[3] for cell in figure.cells(1)] == ["20", "0"]
    assert figure.cells(1)[0][1] == "#0072B2" and figure.cells(0)[0][1] != "#FFFFFF"
    assert str(heat_maps_svg("t", [figure])).count("<rect") == 3
    with pytest.raises(ValueError, match="full must be above 0, got 0"):
        HeatMap("m", (), (), (), full=0)
    pytest.importorskip("matplotlib", reason="PNGs come with the demo's extra")
    assert heat_maps_png("t", [figure]).startswith(b"\x89PNG")


# -- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    for lang in TABLE.languages:
        for split in ("train", "dev", "test"):
            with gzip.open(folder / f"{lang}-{split}.tsv.gz", "wt", encoding="utf-8") as file:
                file.write(f"{lang}\tO\n\n" * 3)
    return folder


class Counting:
    def __init__(self, fail=()):
        self.fail, self.cells = fail, []

    def __call__(self, cell, given):
        self.cells.append(cell)
        if cell.method in self.fail:
            raise FloatingPointError("loss is not finite")
        return outcome(cell)


def test_a_stopped_table_goes_on(data, tmp_path, capsys):
    out, total = tmp_path / "out", len(plan_cells(TABLE))
    first = Counting(fail=("layer",))
    with pytest.raises(RunError, match="the run layer seed 1 failed: FloatingPointError: loss is not finite"):
        run_table(TABLE, data, out, 0, first)
    kept = len(first.cells) - 1
    assert kept == 5 == len(list((out / "cells").glob("*.json")))
    second = Counting()
    assert run_table(TABLE, data, out, 0, second) == out / "report.html"
    assert len(second.cells) == total - kept
    said = capsys.readouterr().err
    assert f"{kept} of {total} runs are finished already" in said and "left" in said
    assert "alone on hi seed 3: 62.0" in said and "GradVac against Sum, points." in said
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["runs_reused"] == kept and len(results["cells"]) == total
    vac = next(row for row in results["rows"] if row["name"] == "vac")
    assert vac["pairs"]["active"]["mean"] == pytest.approx(0.5)

    third = Counting()
    run_table(replace(TABLE, seeds=(1, 2)), data, out, 0, third)
    fewer = {name: row for name, row in TABLE.methods.items() if name != "pcgrad"}
    run_table(replace(TABLE, methods=fewer), data, out, 0, third)
    assert third.cells == [], "fewer seeds and methods are runs that are there"
    capped = {**TABLE.languages, "en": Language("Germanic", max_train=2)}
    run_table(replace(TABLE, languages=capped), data, out, 0, third)
    assert len(third.cells) == total, "another cap is another training"
    fourth = Counting()
    run_table(replace(TABLE, settings=replace(TABLE.settings, temperature=2.0)), data, out, 0, fourth)
    assert len(fourth.cells) == total, "other settings are other runs"
    with gzip.open(data / "nl-test.tsv.gz", "at", encoding="utf-8") as file:
        file.write("more\tO\n\n")
    fifth = Counting()
    run_table(TABLE, data, out, 0, fifth)
    assert len(fifth.cells) == total, "other data are other runs"


def test_outcomes_are_checked():
    good = json.loads(json.dumps(results_of(plan_cells(TABLE)[3])))
    assert MultilingualOutcome.checked(good) == outcome(plan_cells(TABLE)[3])
    assert MultilingualOutcome.checked({**good, "losses": {"a": float("nan")}}).losses == {"a": None}
    for values, words in (
        ({"seconds": -1.0}, "seconds must be a finite number"),
        ({"test": {"en": {"accuracy": 1.5}}}, r"test\[en\].accuracy must be a finite number in \[0, 1\]"),
        ({"pairs": {**good["pairs"], "active": 101}}, "active must be at most"),
        ({"pairs": {**good["pairs"], "before": [[0.0]]}}, "a number for each pair of 4 languages"),
        ({"pairs": {**good["pairs"], "before": [[2.0] * 4] * 4}}, "must hold cosines"),
    ):
        with pytest.raises(ValueError, match=words):
            MultilingualOutcome.checked({**good, **values})


def results_of(cell):
    from dataclasses import asdict

    return asdict(outcome(cell))
