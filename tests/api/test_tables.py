"""Tables: plan, sums, claims, files, page, resuming and errors, from made-up results whose statistics are known."""

from __future__ import annotations

import csv
import functools
import gzip
import html
import io
import json
import re
from dataclasses import replace

import pytest

from xferkit.experiments.tables.claims import check_claims, sentences
from xferkit.experiments.tables.config import Panel, TableConfig
from xferkit.experiments.tables.figures import gate_maps
from xferkit.experiments.tables.files import table_csv, table_markdown, table_tex
from xferkit.experiments.tables.grid import mean_sd
from xferkit.experiments.tables.page import table_html
from xferkit.experiments.tables.plan import cell_of, plan_cells
from xferkit.experiments.tables.run import main, run_table
from xferkit.experiments.tables.summary import summarise
from xferkit.experiments.tagging_cell import LOOKUPS, TaggingOutcome, TaggingSettings
from xferkit.experiments.tagging_data import TaggingFiles
from xferkit.metrics import Interval
from xferkit.report.heat_map import HeatMap, heat_maps_png
from xferkit.runs.errors import RunError

FILES = TaggingFiles(
    train={"default": "{lang}-train.tsv.gz"},
    dev={"default": "{lang}-dev.tsv.gz"},
    test={"default": "{lang}-test.tsv.gz"},
)
TABLE = TableConfig(
    title="A <b>table</b>",
    task="tags & spans",
    notes=("A note.",),
    panels={
        "A": Panel(
            ("en", "de", "fr"),
            {"nl": "related", "tr": "distant"},
            {"nl": ("en", "de")},
            "Why A.",
            ("no_man",),
        ),
        "B": Panel(("es", "ru"), {"it": "related", "hi": "distant"}, {"it": ("es",)}, "Why B."),
    },
    seeds=(1, 2, 3),
    settings=TaggingSettings(files=FILES, score="span_f1"),
)
#: F1 of each method: pooled and MAN alike, MAN-MoE better on related targets and worse on distant ones.
MEANS = {
    "pooled": 0.40,
    "man": 0.40,
    "man_moe": 0.46,
    "no_man": 0.43,
    "majority_tag": 0.0,
    "most_frequent_tag": 0.2,
}
#: What every method shares from seed to seed, and what MAN-MoE has of its own: both of mean 0.
COMMON = {0: 0.0, 1: -0.02, 2: 0.0, 3: 0.02}
OWN = {1: 0.001, 2: -0.002, 3: 0.001}
DISTANT = ("tr", "hi")


def outcome(cell, given=None):
    gated = cell.method in ("man_moe", "no_man")
    near = {"nl": ("en", "de"), "it": ("es",)}

    def f1(lang):
        value = MEANS[cell.method] + COMMON[cell.seed]
        if cell.method == "man_moe":
            value += OWN[cell.seed] - (0.12 if lang in DISTANT else 0.0)
        return value

    def weights(lang):
        wanted = [s for s in cell.sources if s in near.get(lang, (lang,))] or cell.sources
        left = [s for s in cell.sources if s not in wanted]
        return [0.8 / len(wanted) if s in wanted and left else 0.2 / max(1, len(left)) if left else 1 / len(wanted)
                for s in cell.sources]  # fmt: skip

    rows = {lang: weights(lang) for lang in (*cell.targets, *cell.sources)}
    return TaggingOutcome(
        targets={
            lang: {"accuracy": 0.9, "precision": 0.5, "recall": 0.4, "f1": f1(lang)} for lang in cell.targets
        },
        sources={
            lang: {"accuracy": 0.95, "precision": 0.6, "recall": 0.6, "f1": 0.6} for lang in cell.sources
        },
        gates={"private": rows, "predictor": rows} if gated else {},
        gate_accuracy={"private": 0.75, "predictor": 0.8 + COMMON[cell.seed]} if gated else {},
        discriminator_accuracy=0.3 if cell.method in ("man", "man_moe") else None,
        probe_accuracy={} if cell.method in LOOKUPS else dict.fromkeys(cell.targets, 0.5 if gated else 0.7),
        sizes={
            **{lang: {"train": 100, "dev": 20} for lang in cell.sources},
            **{
                lang: {"unlabelled": 90, "test": 50, "test_tokens": 400, "unknown": 300}
                for lang in cell.targets
            },
        },
        selected_step=None if cell.method in LOOKUPS else 100,
        seconds=1.5,
        steps=120,
        losses={"main/task": 0.1},
    )


@pytest.fixture(autouse=True)
def same_code(monkeypatch):
    # The real hash changes when somebody builds or edits while the tests run.
    monkeypatch.setattr("xferkit.experiments.tables.run.code_fingerprint", lambda subpackages: "0" * 64)
    # One test draws them.
    monkeypatch.setattr("xferkit.experiments.tables.transfer._write_pngs", lambda *a: None)


@pytest.fixture(scope="module")
def records():
    return {cell: outcome(cell) for cell in plan_cells(TABLE)}


@pytest.fixture(scope="module")
def panels(records):
    return summarise(TABLE, records)


# -- plan ----------------------------------------------------------------------------------------------------


def test_plan_trains_once_what_never_reads_a_target():
    cells = plan_cells(TABLE)
    assert len(cells) == len(set(cells))
    per_seed_a = 1 + 1 + 2 * 2  # pooled, no_man; man and man_moe for each target
    per_seed_b = 1 + 2 * 2
    assert len(cells) == 3 * (per_seed_a + per_seed_b) + 2 * len(LOOKUPS)
    for cell in cells:
        assert len(cell.targets) == (1 if cell.method in ("man", "man_moe") else 2)
    assert {cell.seed for cell in cells if cell.method in LOOKUPS} == {0}
    assert cell_of(TABLE, "A", "nl", "pooled", 2) == cell_of(TABLE, "A", "tr", "pooled", 2)
    assert [cell.seed for cell in cells if cell.method == "man"] == [1] * 4 + [2] * 4 + [3] * 4, (
        "seed by seed"
    )


# -- sums ----------------------------------------------------------------------------------------------------


def test_means_deviations_and_paired_differences(panels):
    nl, tr = panels[0].targets
    pooled, moe = nl.method("pooled"), nl.method("man_moe")
    assert pooled.score.mean == pytest.approx(0.40) and pooled.sd == pytest.approx(0.02)
    assert pooled.runs == pytest.approx((0.38, 0.40, 0.42)) and pooled.gain is None and pooled.verdict is None
    assert moe.gain.mean == pytest.approx(0.06)
    # The seeds' common part cancels: s of (0.001, -0.002, 0.001) is sqrt(3) / 1000, t_{0.975, 2} = 4.3027.
    assert moe.gain.half_width == pytest.approx(4.3027 * 3**0.5 / 1000 / 3**0.5, rel=1e-4)
    assert moe.verdict == "helps" and tr.method("man_moe").verdict == "hurts"
    assert nl.method("man").verdict == "no clear difference"
    assert moe.man_gain == moe.gain and nl.method("man").man_gain is None
    assert nl.lookups == {"majority_tag": 0.0, "most_frequent_tag": 0.2}
    assert tr.method("no_man").runs == nl.method("no_man").runs
    assert panels[1].targets[0].method("no_man") is None


def test_one_seed_has_no_interval_and_no_verdict(records):
    config = replace(TABLE, seeds=(2,))
    (nl, _), *_ = (panel.targets for panel in summarise(config, records))
    assert nl.method("man_moe").verdict == "one run only"
    assert mean_sd(nl.method("pooled").score, nl.method("pooled").sd) == "40.0"
    text = table_markdown(config, summarise(config, records))
    assert "over 1 seed;" in text and "nan" not in text.lower()


def test_gates_are_averaged_over_runs_and_know_the_sisters(panels):
    rows = {row.language: row for row in panels[0].gates["man_moe"]["private"]}
    assert list(rows) == ["nl", "tr", "en", "de", "fr"]
    assert rows["nl"].weights == pytest.approx({"en": 0.4, "de": 0.4, "fr": 0.2})
    assert rows["nl"].preference == pytest.approx(0.2) and rows["tr"].preference is None
    assert rows["de"].weights["de"] == pytest.approx(0.8) and rows["de"].sisters == ("de",)
    accuracy = panels[0].gate_accuracy["man_moe"]
    assert accuracy["private"].n == 6 and accuracy["predictor"].mean == pytest.approx(0.8)
    assert panels[0].gate_accuracy["no_man"]["private"].n == 3, (
        "one run stands for both targets and counts once"
    )
    first, second = gate_maps(panels[0], "man_moe")
    assert first.title != second.title and first.columns == ("en", "de", "fr")
    assert first.rows == ("nl (related)", "tr (distant)", "", "en, held out", "de, held out", "fr, held out")
    assert first.marked == {(0, 0), (0, 1), (3, 0), (4, 1), (5, 2)}


def test_claims_fall_as_the_figures_do(panels, records):
    claims = check_claims(panels)
    assert {claim.holds for claim in claims} == {"yes"}
    assert sum("better than MAN" in claim.text for claim in claims) == 2, "related targets alone"

    def turned(cell, out):
        sour = replace(out, gate_accuracy=dict.fromkeys(out.gate_accuracy, 0.2))
        sour = replace(
            sour, probe_accuracy=dict.fromkeys(out.probe_accuracy, 0.9 if cell.method != "pooled" else 0.6)
        )
        gates = {gate: {k: w[::-1] for k, w in rows.items()} for gate, rows in out.gates.items()}
        if cell.method == "man_moe":
            sour = replace(sour, targets={k: {**v, "f1": v["f1"] - 0.2} for k, v in out.targets.items()})
        return replace(sour, gates=gates)

    worse = summarise(TABLE, {cell: turned(cell, out) for cell, out in records.items()})
    held = {claim.text: claim.holds for claim in check_claims(worse)}
    assert set(held.values()) <= {"no", "no, worse"}
    assert all(f"{kind}:" in sentences(panels)[1] for kind in ("helps", "hurts"))


# -- files ---------------------------------------------------------------------------------------------------


def test_markdown_csv_and_tex_hold_the_same_figures(panels):
    text = table_markdown(TABLE, panels)
    row = next(line for line in text.splitlines() if line.startswith("| MAN-MoE "))
    assert "46.0 ± 2.0" in row and "+6.0 [+5.6 to +6.4] helps" in row and "hurts" in row
    assert "span F1 (conlleval), %" in text and "A note." in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert len(widths) == 1

    rows = list(csv.DictReader(io.StringIO(table_csv(panels))))
    assert len(rows) == 2 * (2 + 4) + 2 * (2 + 3) and None not in rows[0]
    moe = next(r for r in rows if (r["panel"], r["target"], r["method"]) == ("A", "nl", "man_moe"))
    assert float(moe["score"]) == pytest.approx(0.46) and moe["verdict"] == "helps"
    assert float(moe["against_pooled_low"]) > 0.05 and float(moe["private_gate_accuracy"]) == 0.75
    lookup = next(r for r in rows if r["method"] == "most_frequent_tag")
    assert lookup["sd"] == lookup["verdict"] == "" and float(lookup["accuracy"]) == 0.9

    tex = table_tex(TABLE, panels)
    assert tex.count(r"\begin{table}") == tex.count(r"\end{table}") == 2
    assert r"46.0 $\pm$ 2.0" in tex and r"\%" in tex
    for line in tex.splitlines():
        if line.endswith(r"\\"):
            assert line.count("&") == 8, line
    assert not re.search(r"(?<!\\)[%#_]", tex)


def test_page_shows_figures_and_escapes_text(panels, records):
    page = table_html(TABLE, panels, records, [("Machine", "<script>alert(1)</script>")])
    assert "<script>" not in page and "A &lt;b&gt;table&lt;/b&gt;" in page
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page), "self-contained"
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", page)))
    for part in (
        "46.0 ± 2.0",
        "+6.0",
        "Why A.",
        "held out",
        "A note.",
        "MAN-MoE is better than MAN",
        "75 / 80",
    ):
        assert part in text, part
    assert "nan" not in text.lower().split()
    assert page.count("<svg") == 1 + 2 * (1 + 2) + 3, (
        "patterns; scores and differences; gates of three methods"
    )
    single = replace(TABLE, seeds=(1,))
    assert "one run only" in table_html(single, summarise(single, records), records, [])


def test_gates_as_png(panels):
    pytest.importorskip("matplotlib", reason="PNGs come with the demo's extra")
    picture = heat_maps_png("Weights", gate_maps(panels[1], "man_moe"))
    assert picture.startswith(b"\x89PNG") and len(picture) > 5000


def test_a_matrix_needs_a_value_in_every_cell():
    with pytest.raises(ValueError, match="row 'a' has 1 values"):
        HeatMap("m", ("a",), ("x", "y"), ((0.5,),))
    with pytest.raises(ValueError, match="1 rows of values for 2 labels"):
        HeatMap("m", ("a", "b"), ("x",), ((0.5,),))


# -- the whole -----------------------------------------------------------------------------------------------


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    languages = {lang for panel in TABLE.panels.values() for lang in (*panel.sources, *panel.targets)}
    for lang in languages:
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
    out = tmp_path / "out"
    first = Counting(fail=("no_man",))
    with pytest.raises(
        RunError, match=r"the run en\+de\+fr to nl/tr no_man seed 1 failed: FloatingPointError"
    ):
        run_table(TABLE, data, out, 0, first)
    kept = len(first.cells) - 1
    assert kept >= 3 and len(list((out / "cells").glob("*.json"))) == kept
    second = Counting()
    page = run_table(TABLE, data, out, 0, second)
    assert page == out / "report.html" and len(second.cells) == len(plan_cells(TABLE)) - kept
    said = capsys.readouterr().err
    assert f"{kept} of {len(plan_cells(TABLE))} runs are finished already" in said and "left" in said
    assert "MAN-MoE against pooled, points. helps: nl (A, related) +6.0" in said
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["runs_reused"] == kept and len(results["cells"]) == len(plan_cells(TABLE))
    names = {path.name for path in out.iterdir()}
    assert {"table.md", "table.csv", "table.tex", "cells.csv", "results.json", "report.html"} <= names

    third = Counting()
    run_table(replace(TABLE, seeds=(1, 2)), data, out, 0, third)
    assert third.cells == [], "fewer seeds are runs that are there"
    run_table(replace(TABLE, settings=replace(TABLE.settings, steps=7)), data, out, 0, third)
    assert len(third.cells) == len(plan_cells(TABLE)), "other settings are other runs"
    with gzip.open(data / "nl-test.tsv.gz", "at", encoding="utf-8") as file:
        file.write("more\tO\n\n")
    fourth = Counting()
    run_table(TABLE, data, out, 0, fourth)
    assert len(fourth.cells) == len(plan_cells(TABLE)), "other data are other runs"


def test_bad_arguments_get_one_sentence(data, tmp_path):
    with pytest.raises(ValueError, match="no folder; expected the folder of the data"):
        run_table(TABLE, tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="workers must be 0 or more, got -1"):
        run_table(TABLE, data, tmp_path / "out", -1)
    (tmp_path / "file").write_text("here")
    with pytest.raises(ValueError, match=r"cannot use .*file as the output folder"):
        run_table(TABLE, data, tmp_path / "file", 0)
    (data / "hi-test.tsv.gz").unlink()
    with pytest.raises(ValueError, match=r"hi-test\.tsv\.gz"):
        run_table(TABLE, data, tmp_path / "out", 0, Counting())
    assert not (tmp_path / "out").exists(), "nothing is made for bad input"
    for files, sentence in (
        (replace(FILES, test={"nl": "x"}), "files.test names no file for"),
        (replace(FILES, test={"default": "../{lang}"}), "expected a path below the data folder"),
        (replace(FILES, test={"default": "{lang}[1%0]"}), r"is '\{lang\}\[1%0\]'; expected a path"),
    ):
        config = replace(TABLE, settings=replace(TABLE.settings, files=files))
        with pytest.raises(ValueError, match=sentence):
            run_table(config, data, tmp_path / "out", 0, Counting())


def test_two_tables_do_not_share_a_folder(data, tmp_path):
    inner = functools.partial(run_table, TABLE, data, tmp_path / "out", 0)

    def again(cell, given):
        with pytest.raises(RunError, match="another table is writing to"):
            inner(Counting())
        return outcome(cell)

    inner(again)


def test_main_needs_data_and_out(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["table.yaml"])
    assert stop.value.code == 2 and "--data" in capsys.readouterr().err


def test_outcomes_are_checked():
    good = json.loads(json.dumps(outcome(plan_cells(TABLE)[0]).__dict__))
    assert TaggingOutcome.checked({**good, "losses": {"a": float("nan")}}).losses == {"a": None}
    for bad in ({"seconds": -1.0}, {"discriminator_accuracy": 1.5}, {"gate_accuracy": {"x": float("nan")}}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            TaggingOutcome.checked({**good, **bad})


def test_mean_and_deviation():
    assert mean_sd(Interval(0.5, 0.1, 3), 0.02) == "50.0 ± 2.0"
