"""The benchmarks of readers and of the tagging step: their made-up text, and that they measure what they say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

np = pytest.importorskip("numpy")

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.harness import Case, Options  # noqa: E402  (the folder is no installed package)
from benchmarks.synthetic_text import Language, sentence_lengths  # noqa: E402
from benchmarks.systems import bench_man_moe_tagging as tagging  # noqa: E402
from benchmarks.systems import bench_readers as readers  # noqa: E402
from benchmarks.systems import read_once  # noqa: E402

QUICK = Options(quick=True, compile=False, rounds=2, warmup=1)


@pytest.fixture(autouse=True)
def _keep_the_random_state() -> Any:
    with torch.random.fork_rng():
        yield


def test_made_up_text_is_like_that_of_treebanks() -> None:
    sentences, ranks = Language(0).sentences(3000)
    lengths = np.array([len(words) for words in sentences])
    assert [len(row) for row in ranks] == lengths.tolist()
    assert 19 < lengths.mean() < 23
    assert np.median(lengths) in (16, 17, 18)
    counts = Counter(word for words in sentences for word in words)
    (common, most), *_ = counts.most_common(1)
    assert 0.04 < most / lengths.sum() < 0.08
    assert len(common) <= 3
    batches = [[word for words in sentences[i : i + 48] for word in words] for i in range(0, 2400, 48)]
    assert 0.45 < np.mean([len(set(words)) / len(words) for words in batches]) < 0.65
    assert 6 < np.mean([len(word) for word in counts]) < 10


def test_made_up_words_are_distinct_and_the_same_for_the_same_seed() -> None:
    # Asked for in two portions or in one, in whatever order.
    in_two, in_one = Language(7), Language(7)
    first = in_two.words(np.arange(5000))
    assert len(set(first)) == 5000
    assert in_one.words(np.arange(5000)) == first
    assert in_two.words(np.array([4999, 0])) == [first[4999], first[0]]
    assert Language(8).words(np.arange(5000)) != first
    assert sentence_lengths(1000, np.random.default_rng(0)).min() >= 1


@pytest.mark.parametrize("format", ["conll", "tsv"])
@pytest.mark.parametrize("lines", [1, 2, 3, 500])
def test_files_have_the_lines_they_should(format: str, lines: int, tmp_path: Path) -> None:
    path = tmp_path / f"text.{format}"
    found = readers._write(readers.ReaderCase(format, lines, QUICK), path)
    text = path.read_text("utf-8")
    assert text.count("\n") == lines == found["lines"]
    assert text.endswith("\n")
    if format == "conll":
        sentences = [block.splitlines() for block in text.split("\n\n") if block.strip()]
        assert (len(sentences), sum(map(len, sentences))) == (found["records"], found["tokens"])
    else:
        texts = [line.split("\t")[0].split(" ") for line in text.splitlines()]
        assert (len(texts), sum(map(len, texts))) == (found["records"], found["tokens"])


@pytest.mark.parametrize("format", ["conll", "tsv"])
def test_all_ways_of_reading_find_what_is_in_the_file(format: str, tmp_path: Path) -> None:
    path = tmp_path / f"text.{format}"
    expected = readers._write(readers.ReaderCase(format, 700, QUICK), path)
    looked: Counter[str] = Counter()
    for way in readers._WAYS[format]:
        if way == "datasets":  # its import alone takes seconds
            continue
        found = read_once.WAYS[way].read(str(path))
        for key, value in expected.items():
            assert getattr(found, key) in (0, value), (way, key)
            looked[key] += getattr(found, key) == value
    assert min(looked[key] for key in expected) >= (1 if format == "tsv" else 2)
    encoded = read_once._encode(str(path))
    per_row = 8 if format == "conll" else 16
    per_token = 8 if format == "conll" else 4
    rows, tokens = expected["records"], expected["tokens"]
    assert encoded.array_bytes == per_token * tokens + per_row * rows + 8


def test_a_process_reports_its_own_memory() -> None:
    """Not that of the process that starts it, larger by far; and what is kept is less than the peak."""
    code = (
        "import json\n"
        "from benchmarks.systems import read_once\n"
        "def read(path):\n"
        "    passing = bytearray(b'1' * (48 << 20))\n"
        "    return read_once.Found(held=passing[: 16 << 20])\n"
        "read_once.WAYS['toy'] = read_once.Way(read)\n"
        "print(json.dumps(read_once.measure('toy', '')))\n"
    )
    paths = [str(ROOT), *filter(None, sys.path)]
    environ = dict(os.environ, PYTHONPATH=os.pathsep.join(paths))
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=True)
    figures = json.loads(done.stdout)
    if figures["peak_bytes"] is None:
        pytest.skip("this system does not let a process reset its memory high-water mark")
    # The bytes and their copy; when the slice is taken, the bytes are gone.
    assert 94 << 20 <= figures["peak_bytes"] <= 104 << 20
    assert 15 << 20 <= figures["kept_bytes"] <= 20 << 20


def _figures(way: str, path: Path, seconds: float = 2.0) -> dict[str, Any]:
    lines = path.read_text("utf-8").count("\n")
    speed = 1.0 if way == "lines" else 5.0
    figures: dict[str, Any] = {"cpu_s": speed * seconds, "wall_s": speed * seconds, "lines": lines}
    return figures | {"peak_bytes": 1 << 20, "kept_bytes": 0, "records": 0, "tokens": 0, "array_bytes": 0}


def test_a_reader_that_loses_lines_ends_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    def losing(way: str, path: Path) -> dict[str, Any]:
        return _figures(way, path) | ({"lines": 99} if way == "read" else {})

    monkeypatch.setattr(readers, "_read_once", losing)
    with pytest.raises(RuntimeError, match="read found 99 lines of 100"):
        readers.measure(readers.ReaderCase("tsv", 100, QUICK))


def test_reading_is_compared_with_the_floor_of_its_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = iter(range(1000))

    def slower_and_slower(way: str, path: Path) -> dict[str, Any]:
        if way == "datasets":
            raise RuntimeError("datasets failed on text.tsv: no")
        return _figures(way, path, 2.0 ** (next(rounds) // 5))  # five ways besides

    monkeypatch.setattr(readers, "_read_once", slower_and_slower)
    monkeypatch.setattr(readers, "find_spec", lambda name: name)
    row = readers.measure(readers.ReaderCase("tsv", 100, replace(QUICK, rounds=4)))
    read = row["variants"]["read"]
    assert read["times_floor"] == {"p20": 5.0, "p50": 5.0, "p80": 5.0}
    assert read["lines_per_second"]["p50"] == pytest.approx((100 / 10 + 100 / 20) / 2)
    text = readers.table(row)
    assert "5.0x" in text
    assert "failed: datasets failed on text.tsv: no" in text


def test_the_loader_draws_what_a_step_draws() -> None:
    case = Case("man_moe_tagging", "step", {"K": 2, "batch": 2, "p": 0.5}, QUICK, tagging._setup)
    corpus = tagging._corpus(2, 20, 8)
    stepper = tagging._Stepper(case, corpus, 2, "fused")
    loader = tagging._Loader(corpus.streams(2), 2, "cpu")
    before = [p.detach().clone() for p in stepper.method.module.parameters() if p.requires_grad]
    drawn: list[list[torch.Tensor]] = []
    for run in (stepper, loader, stepper):
        run()
        streams = (run.loader if isinstance(run, tagging._Stepper) else run).streams
        drawn.append([streams[name].next().inputs.ids for name in ("labelled", "unlabelled")])
    for others in drawn[1:]:
        assert all(torch.equal(a, b) for a, b in zip(drawn[0], others, strict=True))
    after = [p for p in stepper.method.module.parameters() if p.requires_grad]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_variants_compute_the_same_loss_without_dropout() -> None:
    case = Case("man_moe_tagging", "step", {"K": 2, "batch": 2, "p": 0.0}, QUICK, tagging._setup)
    corpus = tagging._corpus(2, 20, 8)
    mixture = tagging.batched_mixture
    losses = [
        tagging._Stepper(case, corpus, 1, "fused").first_loss(),
        tagging._Stepper(case, corpus, 1, "reference").first_loss(),
        tagging._Stepper(case, corpus, 1, "reference", mixture).first_loss(),
        tagging._Stepper(case, corpus, 1, "reference", mixture, plain=True).first_loss(),
        tagging._Stepper(case, corpus, 1, "fused", mixture).first_loss(),
    ]
    assert losses == pytest.approx([losses[0]] * len(losses), rel=1e-4)


@pytest.mark.long
def test_quick_run_of_the_readers(tmp_path: Path) -> None:
    target = tmp_path / "result.json"
    paths = [p for p in sys.path if p] + [str(ROOT / "python_api")]
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), "--system", "readers", "--only", "N3000"]
    done = subprocess.run(
        [*command, "--quick", "--rounds", "1", "--json", str(target)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    assert "lines/s" in done.stdout
    (run,) = json.loads(target.read_text())["runs"]
    assert [row["name"] for row in run["rows"]] == ["readers/conll/cpu/N3000", "readers/tsv/cpu/N3000"]
    for row in run["rows"]:
        for name, entry in row["variants"].items():
            assert name == "datasets" or entry["lines_per_second"]["p50"] > 0
        assert row["variants"]["count + encode"]["array_bytes_per_token"] > 4
