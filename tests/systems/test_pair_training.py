"""``xferkit train dual-encoder`` as a person runs it: trained, tested, killed, started again, refused."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from xferkit.cli import main
from xferkit.ranking import retrieval_ranks
from xferkit.runs.config import make_run_config, run_options
from xferkit.runs.files import read_sealed
from xferkit.runs.folder import read_run
from xferkit.runs.pairs.config import PairRunConfig
from xferkit.runs.pairs.data import read_pair_texts
from xferkit.runs.pairs.model import TextEncoder

SMALL = [
    "--encoder.dim", "32", "--encoder.out_dim", "32", "--encoder.word_buckets", "512", "--encoder.gram_buckets",
    "512", "--options.batch_size", "64",
]  # fmt: skip


def write(path: Path, count: int, seed: int) -> Path:
    """Sentences of made-up words and the same in another spelling, word for word."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 60, (count, 5), generator=rng).tolist()
    lines = [" ".join(f"w{i}a" for i in row) + "\t" + " ".join(f"{i}zz" for i in row) for row in rows]
    path.write_text("aa\tbb\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pairs")
    for name, count, seed in (("train", 600, 0), ("dev", 80, 1), ("test", 100, 2)):
        write(folder / f"{name}.tsv", count, seed)
    return folder


def words(data: Path, out: Path, *more: str, steps: int = 40) -> list[str]:
    return [
        "train", "dual-encoder", "--train", f"aa-bb={data}/train.tsv", "--test", f"aa-bb={data}/test.tsv",
        "--steps", str(steps), "--out", str(out), *SMALL, *more,
    ]  # fmt: skip


def test_a_run_learns_and_goes_on(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert main(words(data, out, "--dev", f"aa-bb={data}/dev.tsv")) == 0
    assert "test aa-bb" in capsys.readouterr().out
    found = {s["name"]: s for s in read_run(out)["results"]["pairs"] if s["role"] == "test"}
    assert set(found) == {"aa-bb", "bb-aa"}
    assert all(s["interval"]["mean"] > 0.8 and s["words"] == 0.0 for s in found.values())
    # The model that was saved gives those scores.
    model = TextEncoder.from_pretrained(out / "seed-1/model")
    rows = [line.split("\t") for line in (data / "test.tsv").read_text().splitlines()[1:]]
    ranks = retrieval_ranks(model.encode([a for a, _ in rows]), model.encode([b for _, b in rows], "second"))
    assert float((ranks == 1).double().mean()) == found["aa-bb"]["interval"]["mean"]
    # The same command has nothing left to do; another seed is added to what is there.
    assert main(words(data, out, "--dev", f"aa-bb={data}/dev.tsv")) == 0
    assert "left to do: 0" in capsys.readouterr().err
    assert main(words(data, out, "--dev", f"aa-bb={data}/dev.tsv", "--seeds", "2")) == 0
    assert set(read_run(out)["results"]["pairs"][0]["per_seed"]) == {"1", "2"}


def test_a_development_set_is_cut_off_where_none_is_given(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(words(data, out, steps=20)) == 0
    scores = read_sealed(out / "seed-1/result.json")["scores"]
    assert scores["dev aa-bb"]["texts"] == 60
    assert read_run(out)["facts"]["train"]["aa-bb"] <= 540


def test_no_training_file_shares_a_text_with_a_development_set(data: Path, tmp_path: Path) -> None:
    """The same captions in three languages: what is held out of one pair is no text of the other's training."""
    rows = [line.split("\t") for line in (data / "train.tsv").read_text().splitlines()[1:]]
    both = tmp_path / "three.tsv"
    both.write_text("aa\tbb\tcc\n" + "".join(f"{a}\t{b}\t{b} q\n" for a, b in rows))
    config = make_run_config({"method": "dual-encoder", "train": {"aa-bb": str(both), "aa-cc": str(both)}})
    assert isinstance(config, PairRunConfig)
    texts = read_pair_texts(config, lambda text: None, lambda text: None, None)
    assert [len(part) for part in texts.dev] == [60, 60]
    assert {len(part) for part in texts.train} <= {*range(470, 490)}
    held = {text for part in texts.dev for text in part.first}
    assert not any(text in held for part in texts.train for text in part.first)


def test_settings_are_the_same_from_python_and_the_command_line() -> None:
    made = make_run_config({"method": "dual-encoder", "train": {"aa-bb": "x.tsv"}})
    shown = {name: option.default for name, option in run_options("dual-encoder").items()}
    assert made.trainer.schedule == shown["trainer.schedule"] == "linear"
    other = make_run_config(
        {"method": "dual-encoder", "train": {"aa-bb": "x.tsv"}, "trainer.schedule": "constant"}
    )
    assert other.trainer.schedule == "constant"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--train", "aa-bb=missing.tsv"], "missing.tsv"),
        (["--train", "aa=train.tsv"], "aa"),
        (["--dev", "aa-cc={data}/dev.tsv"], "no training file is of that pair"),
        (["--columns", '{{"bb": "zz"}}'], "train.tsv:1"),
        (["--options.scale", "-1"], "scale must be positive"),
        (["--options.bacth_size", "3"], "bacth_size"),
        (["--trainer.accumulation", "2"], "accumulation must be 1"),
        (["--trainer.select", "target_dev"], "target_dev"),
        (["--workers", "2"], "workers must be 0"),
        (["--test", "bb-aa={data}/test.tsv", "--options.shared", "false"], "none was trained on bb-aa"),
    ],
)
def test_bad_input_is_one_sentence(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], sentence: str
) -> None:
    line = words(data, tmp_path / "run", steps=5)
    change = [word.format(data=data) for word in change]
    if change[0] in line:
        line[line.index(change[0]) + 1] = change[1]
        line += change[2:]
    else:
        line += change
    try:
        code = main(line)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2 and sentence in error, error
    assert not (tmp_path / "run" / "seed-1").exists()


def test_other_commands_say_what_they_cannot_do(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(words(data, out, steps=5)) == 0
    capsys.readouterr()
    for line, sentence in (
        (["report", str(out)], "a run on pairs of texts"),
        (["predict", str(out), str(data / "test.tsv")], "kind 'dual_encoder'"),
    ):
        assert main(line) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_run_comes_out_the_same_to_the_bit(data: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
        "OMP_NUM_THREADS": "1",
    }

    def start(out: Path) -> subprocess.Popen[str]:
        line = words(data, out, "--trainer.checkpoint_every", "10", steps=400)
        return subprocess.Popen(
            [sys.executable, "-m", "xferkit", *line], env=environment, stdout=subprocess.DEVNULL, text=True
        )

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert start(whole).wait(timeout=240) == 0
    kills = 0
    for step in (10, 150, 300):
        process = start(cut)
        while process.poll() is None and not (cut / f"seed-1/checkpoints/step-{step}").exists():
            kept = [int(p.name.split("-")[1]) for p in (cut / "seed-1/checkpoints").glob("step-*")]
            if kept and max(kept) >= step:
                break
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait(timeout=60)
    assert kills >= 2
    assert start(cut).wait(timeout=240) == 0
    models = [(out / "seed-1/model/model.safetensors").read_bytes() for out in (whole, cut)]
    assert hashlib.sha256(models[0]).digest() == hashlib.sha256(models[1]).digest()
