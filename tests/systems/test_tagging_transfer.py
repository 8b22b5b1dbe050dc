"""The table of MAN-MoE on treebanks, whole, on made-up languages in the format of the shared data.

A word's ending tells its tag in every language, and stems are a language's own: what carries over is spelling.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_spans import read_sentences, write_language, write_sentences

from xferkit.experiments.tables.config import load_table_config
from xferkit.experiments.tables.plan import plan_cells
from xferkit.experiments.tables.run import main
from xferkit.experiments.tagging_cell import TaggingCell, reads_target
from xferkit.experiments.tagging_data import read_split
from xferkit.experiments.tagging_transfer import run_tagging_cell
from xferkit.methods import method_names

LETTERS = {"aa": "bdg", "bb": "bdp", "cc": "szf", "dd": "bdgp"}
CONFIG = """
title: Spans of made-up languages
task: Spans in BIO tags
panels:
  A:
    sources: [aa, bb]
    targets: {dd: related, cc: distant}
    sisters: {dd: [aa]}
    why: Two languages of like letters.
seeds: [1, 2]
settings:
  files:
    train: {default: "toy/{lang}/train.tsv.gz"}
    dev: {default: "toy/{lang}/dev.tsv.gz"}
    test: {default: "toy/{lang}/test.tsv.gz"}
    max_dev: 20
  score: span_f1
  steps: 60
  batch_size: 8
  learning_rate: 0.02
  dropout: 0.0
  hidden_dim: 16
  probe_steps: 10
  min_char_count: 1
  encoder: {feature_dim: 16, layers: 1, dropout: 0.0, word_dim: 8, word_dropout: 0.2, char_dim: 8,
            char_flag_dim: 2, char_channels: 16, char_widths: [2], char_out: 16}
  method: {lambda1: 0.01, lambda2: 0.3, detach_gate_input: false, private_dim: 16, expert_hidden: 16,
           predictor_hidden: 16, discriminator_hidden: 16, dropout: 0.0}
  trainer: {eval_every: 20}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    for language, letters in LETTERS.items():
        write_language(folder / "toy", language, letters)
    (folder / "table.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def config(place):
    return load_table_config(place / "table.yaml")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", autouse=True)
def same_code():
    # The real hash changes when somebody builds or edits while the tests run.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("xferkit.experiments.tables.run.code_fingerprint", lambda subpackages: "0" * 64)
        yield


@pytest.fixture(scope="module")
def out(place):
    torch.set_num_threads(1)
    folder = place / "out"
    arguments = [str(place / "table.yaml"), "--data", str(place), "--out", str(folder), "--workers", "0"]
    assert main(arguments) == 0
    return folder


def test_the_command_writes_the_whole_table(out, config):
    names = {path.name for path in out.iterdir()}
    assert {
        "report.html",
        "results.json",
        "table.md",
        "table.csv",
        "table.tex",
        "cells.csv",
        "cells",
    } <= names
    assert len(list((out / "cells").glob("*.json"))) == len(plan_cells(config))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Spans of made-up languages" in page and page.count("<svg") >= 4
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert results["score"] == "span F1 (conlleval), %" and results["runs_reused"] == 0
    assert all(cell["selected_step"] in (20, 40, 60) for cell in results["cells"] if cell["seed"])


def test_what_comes_out_is_what_the_languages_hold(out):
    rows = {
        (r["target"], r["method"]): r for r in csv.DictReader((out / "table.csv").read_text().splitlines())
    }
    for target in ("dd", "cc"):
        assert float(rows[target, "majority_tag"]["score"]) == 0.0
        # The stems of a target are new, so that only its spelling helps.
        assert (
            float(rows[target, "pooled"]["score"])
            > 0.8
            > 0.2
            > float(rows[target, "most_frequent_tag"]["score"])
        )
        for method in ("man", "man_moe"):
            assert 0.0 <= float(rows[target, method]["adversary_accuracy"]) <= 1.0
        assert rows[target, "pooled"]["adversary_accuracy"] == ""
        assert rows[target, "pooled"]["private_gate_accuracy"] == ""
        assert float(rows[target, "man_moe"]["private_gate_accuracy"]) > 0.6 > 1 / 2
    cells = json.loads((out / "results.json").read_text(encoding="utf-8"))["cells"]
    for cell in cells:
        for gate in cell["gates"].values():
            assert set(gate) == {*cell["sources"], *cell["targets"]}
            assert all(sum(weights) == pytest.approx(1.0, abs=1e-4) for weights in gate.values())
        if cell["method"] == "man_moe":
            assert set(cell["gates"]) == {"private", "predictor"}
            assert set(cell["probe_accuracy"]) == set(cell["targets"])
    target = next(cell for cell in cells if cell["method"] == "pooled")["sizes"]["dd"]
    assert (
        target["unlabelled"] == 60
        and target["test"] == 30
        and target["unknown"] > 0.9 * target["test_tokens"]
    )


def test_the_same_command_does_nothing_again(out, place, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")}
    arguments = [str(place / "table.yaml"), "--data", str(place), "--out", str(out), "--workers", "0"]
    assert main(arguments) == 0
    assert {path.name: path.stat().st_mtime_ns for path in (out / "cells").glob("*.json")} == before
    assert f"{len(before)} of {len(before)} runs are finished already" in capsys.readouterr().err


def test_a_cell_is_the_same_to_the_bit_and_never_sees_the_targets_tags(out, place, config, tmp_path):
    cell = TaggingCell("man_moe", 1, ("aa", "bb"), ("dd",))
    short = replace(config.settings, steps=8, trainer=replace(config.settings.trainer, eval_every=4))
    first = run_tagging_cell(cell, short, place)
    hidden = tmp_path / "toy"
    for path in (place / "toy").rglob("*.gz"):
        write_sentences(hidden / path.relative_to(place / "toy"), read_sentences(path))
    # Other tags of the target's training file, and none at all.
    train = hidden / "dd" / "train.tsv.gz"
    write_sentences(train, [[(word, "B-NEVER") for word, _ in rows] for rows in read_sentences(train)])
    again = run_tagging_cell(cell, short, tmp_path)
    assert replace(again, seconds=0.0) == replace(first, seconds=0.0)
    for path in (hidden / "dd").glob("train*"):
        with gzip.open(path, "wt", encoding="utf-8") as file:
            for rows in read_sentences(place / "toy" / "dd" / "train.tsv.gz"):
                file.write("".join(f"{word}\n" for word, _ in rows) + "\n")
    bare = run_tagging_cell(cell, short, tmp_path)
    assert replace(bare, seconds=0.0) == replace(first, seconds=0.0)
    other = run_tagging_cell(replace(cell, seed=2), short, place)
    assert other.losses != first.losses


@pytest.mark.parametrize("method", ["pooled", "no_man", "moe"])
def test_what_shares_a_run_between_targets_reads_none_of_them(method, place, config):
    short = replace(
        config.settings, steps=6, probe_steps=0, trainer=replace(config.settings.trainer, eval_every=0)
    )
    outcomes = [
        run_tagging_cell(TaggingCell(method, 1, ("aa", "bb"), targets), short, place)
        for targets in (("dd",), ("cc",), ("dd", "cc"))
    ]
    assert outcomes[0].sources == outcomes[1].sources and outcomes[0].losses == outcomes[1].losses
    assert outcomes[2].targets == {**outcomes[0].targets, **outcomes[1].targets}


def test_methods_with_an_adversary_take_one_target(place, config):
    for method in ("man", "man_moe", "no_c_moe", "no_private_moe", "no_moe"):
        assert reads_target(method) and method in method_names()
    cell = TaggingCell("man", 1, ("aa", "bb"), ("dd", "cc"))
    with pytest.raises(ValueError, match=r"'man' reads the target's texts, so it is trained for one target"):
        run_tagging_cell(cell, config.settings, place)
    for bad, sentence in (
        (replace(cell, method="mann"), "unknown method 'mann'"),
        (replace(cell, targets=("aa",)), "different languages"),
        (replace(cell, sources=()), "at least one each"),
    ):
        with pytest.raises(ValueError, match=sentence):
            run_tagging_cell(bad, config.settings, place)


def test_a_tag_that_no_source_has_is_a_miss(place, config, tmp_path):
    for path in (place / "toy").rglob("*.gz"):
        write_sentences(tmp_path / "toy" / path.relative_to(place / "toy"), read_sentences(path))
    test = tmp_path / "toy" / "dd" / "test.tsv.gz"
    write_sentences(
        test, [[(w, "B-NEW" if tag == "B-LOC" else tag) for w, tag in rows] for rows in read_sentences(test)]
    )
    files = config.settings.files
    assert {tag for r in read_split(files, tmp_path, "test", "dd") for tag in r.labels} >= {"B-NEW"}
    cell = TaggingCell("pooled", 1, ("aa", "bb"), ("dd",))
    whole, missed = (
        run_tagging_cell(cell, config.settings, folder).targets["dd"] for folder in (place, tmp_path)
    )
    assert missed["f1"] < whole["f1"] and missed["recall"] < whole["recall"] - 0.1


@pytest.mark.long
def test_a_stopped_command_goes_on_with_workers(place, tmp_path):
    out = tmp_path / "out"
    config = load_table_config(place / "table.yaml")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nimport xferkit.experiments.tables.run as run\n\n"
        "if __name__ == '__main__':\n    run.code_fingerprint = lambda subpackages: '0' * 64\n"
        "    sys.exit(run.main())\n"
    )
    command = [
        sys.executable,
        str(script),
        str(place / "table.yaml"),
        "--data",
        str(place),
        "--out",
        str(out),
    ]
    command += ["--workers", "2"]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=variables, start_new_session=True
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and len(list(out.glob("cells/*.json"))) < 4:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=30)
    done = len(list(out.glob("cells/*.json")))
    assert 4 <= done < len(plan_cells(config)) and not (out / "report.html").exists()
    finished = subprocess.run(command, capture_output=True, text=True, env=variables, check=True, timeout=300)
    assert f"{done} of {len(plan_cells(config))} runs are finished already" in finished.stderr
    assert Path(out / "report.html").is_file() and not list(out.rglob("*.tmp"))
