"""``evaluate``, ``predict`` and ``report`` on a model that was trained in this process."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import sys

import pytest
import torch
from toy_runs import SMALL, make_tags, make_texts, run, values

from xferkit.cli import main
from xferkit.runs import make_run_config, run_training
from xferkit.runs.files import read_sealed


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A classifier with two seeds, the pooled baseline beside it, and a tagger of spans."""
    folder = tmp_path_factory.mktemp("runs")
    make_texts(folder)
    make_tags(folder)
    run(folder, folder / "texts", seeds=(1, 2))
    own = {
        k: v
        for k, v in values(folder, folder / "pooled", seeds=(1, 2)).items()
        if not k.startswith("options.")
    }
    run_training(
        make_run_config({**own, **SMALL, "method": "pooled", "options.learning_rate": 0.01, "steps": 5})
    )
    train = {lang: f"{folder}/{lang}.bio" for lang in ("en", "de")}
    spans = {"es": f"{folder}/es.bio"}
    run(folder, folder / "tags", train=train, unlabelled=spans, test=spans, steps=60)
    return folder


def xferkit(*words: object) -> int:
    return main([str(word) for word in words])


# -- evaluate --------------------------------------------------------------------------------------------------


def test_evaluate_prints_scores_and_labels(runs, capsys):
    assert xferkit("evaluate", runs / "texts/seed-1", runs / "es_test.tsv", f"en={runs}/en.tsv") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["file", "score", "%", "accuracy", "macro-F1", "most", "frequent", "texts"]
    assert lines[1].startswith(f"{runs}/es_test.tsv  accuracy") and lines[1].endswith("60")
    assert lines[2].startswith(f"{runs}/en.tsv") and lines[2].endswith("120")
    assert f"{runs}/es_test.tsv: by label" in lines
    assert sum(line.split()[:1] == ["pos"] for line in lines) == 2
    kept = read_sealed(runs / "texts/seed-1/result.json")["test"]["es"]
    assert f"{100 * kept['accuracy']:.1f}" in lines[1] and f"{100 * kept['macro_f1']:.1f}" in lines[1]


def test_evaluate_writes_json(runs, tmp_path, capsys):
    path = tmp_path / "scores.json"
    model = runs / "tags"
    assert xferkit("evaluate", model, runs / "es.bio", "--scheme", "strict", "--json", path) == 0
    (found,) = json.loads(path.read_text())["files"]
    shown = capsys.readouterr().out
    assert found["name"] == "span F1 (strict)" and found["score"] == found["all_spans"]["f1"] > 0.8
    assert set(found["spans"]) == {"LOC", "PER"} and found["rows"] == {"in": 60, "out": 60, "rejected": 0}
    assert "by span type" in shown and "all spans" in shown
    assert xferkit("evaluate", model, runs / "es.bio", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["name"] == "span F1 (conlleval)"


def test_evaluate_knows_labels_that_the_model_does_not(runs, tmp_path, capsys):
    path = tmp_path / "new.tsv"
    path.write_text("good fine\tpos\nbad\tnew\n")
    assert xferkit("evaluate", runs / "texts/seed-1", path) == 2
    assert f"{path}:2: unknown label 'new'" in capsys.readouterr().err
    assert xferkit("evaluate", runs / "texts/seed-1", path, "--unknown_labels", "count") == 0
    shown = capsys.readouterr()
    assert "labels that the model does not have: new" in shown.err and re.search(
        r"new +0\.0 +0\.0 +0\.0 +1", shown.out
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{}/texts", "{}/es_test.tsv"], "holds 2 models; expected one of them"),
        (["{}/none", "{}/es_test.tsv"], "none is no folder"),
        (["{}/texts/seed-1", "{}/none.tsv"], "none.tsv does not exist; expected a file, or LANG=FILE"),
        (["{}/texts/seed-1", "es={}/none.tsv"], "none.tsv (for 'es') does not exist"),
        (["{}/texts/seed-1", "{}/es.txt"], "plain text holds no labels"),
        (
            ["{}/texts/seed-1", "{}/es_test.tsv", "--columns", "txt=1"],
            "unknown name 'txt'; the nearest is 'text'",
        ),
        (["{}/texts/seed-1", "{}/es_test.tsv", "--columns", "text"], "'text' is not NAME=COLUMN"),
        (
            ["{}/texts/seed-1", "{}/es_test.tsv", "--columns", "header=x"],
            "header is 'x'; expected true or false",
        ),
    ],
)
def test_bad_evaluations_get_one_sentence_and_code_2(runs, words, sentence, capsys):
    assert xferkit("evaluate", *(word.format(runs) for word in words)) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_columns_say_what_is_where(runs, tmp_path, capsys):
    path = tmp_path / "t.tsv"
    path.write_text("pos\tx\tgood fine\nneg\tx\tawful bad\n")
    words = ["--columns", "text=2", "label=0", "header=false", "--json", "-"]
    assert xferkit("evaluate", runs / "texts/seed-1", path, *words) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["accuracy"] == 1.0


# -- predict ---------------------------------------------------------------------------------------------------


def test_predict_answers_line_by_line(runs, tmp_path, capfd):
    path = tmp_path / "in.txt"
    path.write_text("good fine great\n\n\nawful\tbad\nblue\n")
    assert xferkit("predict", runs / "texts/seed-1", path) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("\t")[0] for line in lines] == ["pos", "", "", "neg", "other"], (
        "line i belongs to line i"
    )
    assert lines[3].split("\t", 2)[2] == "awful\tbad" and 0.3 < float(lines[0].split("\t")[1]) <= 1


def test_predict_writes_conll_for_tags(runs, tmp_path, capfd):
    path = tmp_path / "in.txt"
    path.write_text("Anna sees Rome\nin Oslo\n")
    assert xferkit("predict", runs / "tags", path) == 0
    assert capfd.readouterr().out == "Anna\tB-PER\nsees\tO\nRome\tB-LOC\n\nin\tO\nOslo\tB-LOC\n\n"


def test_predict_reads_many_files_and_formats(runs, tmp_path, capfd):
    packed = tmp_path / "b.txt.gz"
    packed.write_bytes(gzip.compress(b"green\n"))
    table = tmp_path / "c.csv"
    table.write_text('text,label\n"awful, poor",pos\n')
    words = [runs / "texts/seed-1", packed, "--to", "jsonl", table]
    assert xferkit("predict", *words) == 0
    found = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(f["file"], f["line"], f["text"], f["label"]) for f in found] == [
        (str(packed), 1, "green", "other"),
        (str(table), 2, "awful, poor", "neg"),
    ]
    assert all(0 < f["probability"] <= 1 for f in found)
    assert xferkit("predict", runs / "tags", runs / "es.bio", "--to", "jsonl") == 0
    first = json.loads(capfd.readouterr().out.splitlines()[0])
    assert len(first["tokens"]) == len(first["tags"]) and "file" not in first and first["line"] == 1


def test_predict_reads_stdin(runs, tmp_path, capfd, monkeypatch):
    path = tmp_path / "in"
    path.write_text("good\nbad\n")
    monkeypatch.setattr("xferkit.runs.prediction._STDIN_PATH", str(path))
    assert xferkit("predict", runs / "texts/seed-1") == 0
    assert [line.split("\t")[0] for line in capfd.readouterr().out.splitlines()] == ["pos", "neg"]


def test_predict_writes_whole_files_or_none(runs, tmp_path, capfd):
    out = tmp_path / "o.tsv.gz"
    assert xferkit("predict", runs / "texts/seed-1", runs / "es.txt", "--out", out) == 0
    first = out.read_bytes()
    assert len(gzip.decompress(first).splitlines()) == 80
    assert xferkit("predict", runs / "texts/seed-1", runs / "es.txt", "--out", out) == 2
    assert f"{out} is there already; expected a free name, or --overwrite" in capfd.readouterr().err
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"good\n\xff\n")
    assert xferkit("predict", runs / "texts/seed-1", bad, "--out", out, "--overwrite") == 2
    assert f"{bad}:2: byte 0xff" in capfd.readouterr().err
    assert out.read_bytes() == first and sorted(p.name for p in tmp_path.iterdir()) == ["bad.txt", "o.tsv.gz"]
    assert xferkit("predict", runs / "texts/seed-1", bad, "--out", out, "--overwrite", "--skip") == 0
    shown = capfd.readouterr()
    assert "1 of 2 rows read, 1 left out" in shown.err and shown.out == ""
    assert gzip.decompress(out.read_bytes()).startswith(b"pos\t")
    assert xferkit("predict", runs / "texts/seed-1", bad, "--out", tmp_path / "no/folder.tsv", "--skip") == 2
    assert "cannot write" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["-", "-"], "- (the standard input) is named twice"),
        (["{}/none.txt"], "none.txt does not exist; expected a file, or - for the standard input"),
        (["{}/texts"], "expected"),
        (["{}/es.txt", "--format", "cvs"], "format must be one of"),
        (["{}/es.txt", "--encoding", "klingon"], "klingon"),
    ],
)
def test_bad_predictions_get_one_sentence_and_code_2(runs, words, sentence, capfd):
    assert xferkit("predict", runs / "texts/seed-1", *(word.format(runs) for word in words)) == 2
    shown = capfd.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and shown.out == ""


def test_tabs_and_line_ends_inside_texts_do_not_break_rows(runs, tmp_path, capfd):
    table = tmp_path / "c.csv"
    table.write_text('text\n"good\nfine"\nbad\n')
    assert xferkit("predict", runs / "texts/seed-1", table) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line.split("\t")[2] for line in lines] == ["good fine", "bad"]


# -- report ----------------------------------------------------------------------------------------------------


def test_report_is_one_page_that_needs_nothing(runs, tmp_path, capsys):
    assert xferkit("report", runs / "texts", runs / "pooled", "--out", tmp_path / "r") == 0
    page = (tmp_path / "r/report.html").read_text()
    assert capsys.readouterr().out == f"The report is {tmp_path / 'r/report.html'}\n"
    assert {p.name for p in (tmp_path / "r").iterdir()} == {"report.html", "report.csv"}
    assert not re.search(r"(src|href)=|<script|url\((?!#)|@import|https?://(?!www\.w3\.org)", page)
    for words in (
        "Test: es",
        "Development data: en",
        "Learning curves",
        "How much each source counts",
        "against texts",
    ):
        assert words in page, words
    assert page.count("<svg") >= 7 and "{{" not in page and "helps" in page and "hurts" in page
    rows = list(csv.DictReader(io.StringIO((tmp_path / "r/report.csv").read_text())))
    assert len(rows) == 2 * 2 * 3 and {r["run"] for r in rows} == {"texts", "pooled"}
    mine = [float(r["score"]) for r in rows if (r["run"], r["set"]) == ("texts", "test")]
    kept = [read_sealed(runs / f"texts/seed-{s}/result.json")["test"]["es"]["score"] for s in (1, 2)]
    assert mine == kept
    mean = sum(kept) / 2
    assert f"{100 * mean:.1f} ±" in page


def test_report_of_spans_names_their_types(runs, tmp_path, capsys):
    assert xferkit("report", runs / "tags", "--out", tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert "By span type" in page and ">PER<" in page and "span F1 (conlleval)" in page


def test_text_of_people_cannot_become_markup(runs, tmp_path):
    import shutil

    from xferkit.runs.files import write_sealed
    from xferkit.runs.page import write_run_report

    evil = "<script>alert(1)</script>"
    folder = tmp_path / evil.replace("/", "_")
    shutil.copytree(runs / "texts", folder)
    for seed in (1, 2):
        path = folder / f"seed-{seed}/result.json"
        text = path.read_text().replace('"pos"', json.dumps(evil)).replace('"es"', json.dumps(evil))
        content = json.loads(text)
        content.pop("sha256")
        write_sealed(path, content)
    page = write_run_report([folder], tmp_path / "out").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page


def test_report_tells_of_what_is_not_finished_or_not_zero_resource(runs, tmp_path):
    import shutil

    from xferkit.runs.files import write_sealed
    from xferkit.runs.page import write_run_report

    folder = tmp_path / "part"
    shutil.copytree(runs / "texts", folder)
    (folder / "seed-2/result.json").unlink()
    content = read_sealed(folder / "run.json")
    content["config"]["trainer.select"] = "target_dev"
    write_sealed(folder / "run.json", content)
    page = write_run_report([folder]).read_text()
    assert "part: seeds 2 are not finished" in page and "this is not zero-resource" in page
    (folder / "seed-1/result.json").unlink()
    with pytest.raises(ValueError, match="part: no seed is finished"):
        write_run_report([folder])


def test_bad_reports_get_one_sentence_and_code_2(runs, tmp_path, capsys):
    for words, sentence in (
        ([tmp_path], "is no folder of a run: it holds no run.json"),
        ([runs / "texts", runs / "texts"], "a run is named twice"),
        ([runs / "texts", "--out", runs / "en.tsv"], "cannot use"),
    ):
        assert xferkit("report", *words) == 2
        shown = capsys.readouterr()
        assert sentence in shown.err and shown.err.count("\n") == 1


# -- memory ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_predict_takes_no_more_memory_for_more_lines(runs, tmp_path):
    """100,000 lines of ever new words, in a process of its own, against 2,000: the peak hardly grows.

    The kernel's own mark, as getrusage hands a parent's peak on to its children.
    """
    import subprocess

    from test_cli import variables

    def peak(lines: int) -> int:
        path = tmp_path / f"{lines}.txt"
        with open(path, "w") as file:
            for number in range(lines):
                file.write(f"good fine word{number} other{number}\n")
        words = ["predict", str(runs / "texts/seed-1"), str(path), "--out", f"{path}.out"]
        code = (
            f"from xferkit.cli import main\ncode = main({words!r})\n"
            "lines = open('/proc/self/status').read().splitlines()\n"
            "print(code, next(line.split()[1] for line in lines if line.startswith('VmHWM')))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=variables(), check=True
        )
        status, kib = done.stdout.split()
        with open(f"{path}.out") as file:
            assert status == "0" and sum(1 for _ in file) == lines
        return int(kib)

    few, many = peak(2_000), peak(100_000)
    assert many - few < 40 * 1024, f"{few} KiB for 2,000 lines, {many} KiB for 100,000"
