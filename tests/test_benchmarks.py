"""The benchmark harness: its arithmetic on toys whose answers are known, and every benchmark once, small."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks import SCHEMA_VERSION, harness, measures, report  # noqa: E402  (the folder is no installed package)
from benchmarks.harness import Bench, Candidate, Case, Options, Variant, Work  # noqa: E402

QUICK = Options(quick=True, compile=False, rounds=4, warmup=1)


@pytest.fixture(autouse=True)
def _keep_the_random_state() -> Any:
    with torch.random.fork_rng():
        yield


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 1))
def test_quantile_is_numpys_linear_one(values: list[float], q: float) -> None:
    numpy = pytest.importorskip("numpy")
    assert measures.quantile(values, q) == pytest.approx(numpy.quantile(values, q), rel=1e-9, abs=1e-9)


def test_quantile_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        measures.quantile([], 0.5)


def test_summary_names_its_quantiles() -> None:
    assert measures.summary([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == {"p20": 2.0, "p50": 3.5, "p80": 5.0}


@pytest.mark.parametrize("count", [1, 2, 3, 6, 7])
def test_every_round_runs_all_and_every_place_is_taken_by_all(count: int) -> None:
    rounds = [measures.rotated(count, r) for r in range(count)]
    assert all(sorted(order) == list(range(count)) for order in rounds)
    assert all(sorted(places) == list(range(count)) for places in zip(*rounds, strict=True))


def test_an_even_number_of_variants_follow_each_other_equally_often() -> None:
    count = 6
    rounds = [measures.rotated(count, r) for r in range(count)]
    neighbours = [pair for order in rounds for pair in itertools.pairwise(order)]
    assert len(set(neighbours)) == len(neighbours) == count * (count - 1)


def test_floor_is_the_larger_of_two_times() -> None:
    work = Work(flops=6e9, bytes=1e9)
    assert measures.floor_seconds(work, 2e9, 1e10) == (3.0, "flops")
    assert measures.floor_seconds(work, 1e12, 1e8) == (10.0, "bytes")
    assert measures.floor_seconds(work, None, 1e9) == (1.0, "bytes")


def test_relative_error_takes_the_worst_of_the_common_tensors_and_sees_nan() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.ones(2)
    assert measures.relative_error([a, b], [a, b]) == 0.0
    assert measures.relative_error([a * 1.5, b, b], [a, b]) == pytest.approx(0.5)
    assert math.isnan(measures.relative_error([b * math.nan, a], [b, a]))
    with pytest.raises(ValueError, match="shapes"):
        measures.relative_error([a], [torch.ones(3)])


def test_peak_memory_sees_temporaries_and_results() -> None:
    def run() -> list[Tensor]:
        # Above 32 MiB glibc maps a block of its own; below, free heap that earlier tests left may serve.
        temporary = torch.ones(16 << 20)  # 64 MiB
        return [temporary[: 10 << 20] * 2.0]  # and 40 MiB

    peak = measures.peak_memory(run, "cpu")
    if peak is None:
        pytest.skip("this system does not let a process reset its memory high-water mark")
    assert 100 << 20 <= peak <= 112 << 20
    assert (measures.peak_memory(lambda: [torch.ones(1)], "cpu") or 0) < 4 << 20


def test_time_calls_divides_by_the_calls() -> None:
    calls = itertools.count()
    seconds = measures.time_calls(lambda: [torch.tensor(next(calls))], 7, "cpu", None)
    assert next(calls) == 7
    assert seconds.keys() == {"cpu", "wall"}
    assert 0 <= seconds["wall"] < 1


def _toy_setup(case: Case) -> Bench:
    n = int(case.shape["N"])
    x = torch.randn(n, n, requires_grad=True)

    def square(x: Tensor) -> Tensor:
        return x @ x

    def square_slowly(x: Tensor) -> Tensor:
        return sum(x @ x for _ in range(20)) / 20  # type: ignore[return-value]

    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("this baseline does not run here")

    ours = Candidate(square, [x], [x])
    baselines = {
        "slow": Candidate(square_slowly, [x], [x]),
        "wrong": Candidate(lambda x: 2.0 * (x @ x), [x], [x]),
        "broken": Candidate(broken, [x], [x]),
    }
    cotangents = [torch.ones(n, n)]
    double = x.detach().double().requires_grad_()
    oracle = harness.bind(Candidate(square, [double], [double]), case.passes, cotangents)
    return Bench(
        harness.make_variants(case, ours, baselines, cotangents), oracle, lambda: {"table": "  the profile"}
    )


def _toy(passes: str = "forward_backward") -> Case:
    n = 96
    work = Work(flops=6.0 * n**3, bytes=16.0 * n * n, matmul=(n, n, n))
    return Case("toy", passes, {"N": n, "kind": "square"}, QUICK, _toy_setup, work)


def test_a_row_has_its_name_quantiles_ratios_and_share_of_the_floor() -> None:
    row = harness.measure(_toy())
    assert row["name"] == "toy/forward_backward/cpu/float32/N96-square"
    variants = row["variants"]
    assert list(variants) == ["xfercore", "slow", "wrong", "broken"]
    assert variants["xfercore"]["rel_err"] < 1e-5
    assert variants["wrong"]["rel_err"] > 0.5
    assert "does not run here" in variants["broken"]["error"]
    for name in ("xfercore", "slow", "wrong"):
        entry = variants[name]
        for key in ("cpu_ms", "wall_ms", "share_of_floor"):
            assert 0 < entry[key]["p20"] <= entry[key]["p50"] <= entry[key]["p80"]
    assert variants["slow"]["speedup_of_ours"]["p50"] > 3
    assert row["best_eager"] == "wrong"
    assert row["speedup_vs_eager"] == variants["wrong"]["speedup_of_ours"]
    assert row["best_compiled"] is None
    assert row["floor"]["bound"] == "flops"
    assert json.loads(json.dumps(row)) == {
        **row,
        "ceilings": {**row["ceilings"], "matmul_shape": [96, 96, 96]},
    }
    text = report.table(row)
    assert "the best eager one, wrong" in text
    assert "failed: RuntimeError" in text
    assert "the profile" in text


def test_ratios_are_taken_within_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that slows down threefold from round to round changes no ratio and no share of the floor.

    Exact, with made-up times: on a busy machine the median of real ratios is not the ratio of real medians.
    """
    speed = {"ours": 1.0, "base": 2.5, "copy": 0.5}
    order: list[str] = []

    def fake_time(run: harness.Run, repeats: int, device: str, flush: Tensor | None) -> dict[str, float]:
        before = len(order)
        run()
        name = order[before] if len(order) > before else "copy"
        counts[name] = counts.get(name, 0) + 1
        return {"cpu": speed[name] * 3.0 ** counts[name], "wall": 1.0}

    counts: dict[str, int] = {}

    def call(name: str) -> harness.Run:
        def run() -> Sequence[Tensor]:
            order.append(name)
            return []

        return run

    def setup(case: Case) -> Bench:
        return Bench([Variant("ours", "ours", call("ours")), Variant("base", "eager", call("base"))])

    monkeypatch.setattr(harness, "time_calls", fake_time)
    case = Case("toy", "step", {}, replace(QUICK, memory=False), setup, Work(bytes=8.0 * (2 << 20)))
    row = harness.measure(case)
    assert row["speedup_vs_eager"] == {"p20": 2.5, "p50": 2.5, "p80": 2.5}
    assert row["variants"]["ours"]["share_of_floor"]["p50"] == pytest.approx(0.5)
    assert row["variants"]["base"]["share_of_floor"]["p80"] == pytest.approx(0.2)
    timed = order[-8:]  # a call in each of 4 rounds; long calls are not repeated
    assert sorted(timed) == ["base"] * 4 + ["ours"] * 4
    assert {tuple(timed[i : i + 2]) for i in range(0, 8, 2)} == {("ours", "base"), ("base", "ours")}


def test_a_floor_by_flops_sets_the_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three products of the ceiling's own size, each 0.5 s, are a floor of 1.5 s, whatever the rounds' noise."""
    called: list[str] = []
    seconds = {"ours": 6.0, "base": 15.0, "ceiling": 0.5}

    def fake_time(run: harness.Run, repeats: int, device: str, flush: Tensor | None) -> dict[str, float]:
        called.clear()
        run()
        return dict.fromkeys(("cpu", "wall"), seconds[called[0] if called else "ceiling"])

    def call(name: str) -> harness.Run:
        def run() -> Sequence[Tensor]:
            called.append(name)
            return []

        return run

    def setup(case: Case) -> Bench:
        return Bench([Variant("ours", "ours", call("ours")), Variant("base", "eager", call("base"))])

    monkeypatch.setattr(harness, "time_calls", fake_time)
    work = Work(flops=3 * 2.0 * 96**3, bytes=16.0, matmul=(96, 96, 96))
    row = harness.measure(Case("toy", "step", {}, replace(QUICK, memory=False), setup, work))
    assert row["floor"]["bound"] == "flops"
    assert row["floor"]["ms"]["p50"] == pytest.approx(1500.0)
    assert row["variants"]["ours"]["share_of_floor"]["p50"] == pytest.approx(0.25)
    assert row["variants"]["base"]["share_of_floor"]["p80"] == pytest.approx(0.1)


def test_a_part_is_a_share_of_ours_and_amounts_are_by_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """600 tokens in 3 s are 200 a second; a part of 0.5 s is a sixth, and no baseline however fast."""
    called: list[str] = []
    seconds = {"ours": 3.0, "base": 6.0, "part": 0.5, "ceiling": 1.0}

    def fake_time(run: harness.Run, repeats: int, device: str, flush: Tensor | None) -> dict[str, float]:
        called.clear()
        run()
        return dict.fromkeys(("cpu", "wall"), seconds[called[0] if called else "ceiling"])

    def call(name: str) -> harness.Run:
        def run() -> Sequence[Tensor]:
            called.append(name)
            return []

        return run

    def setup(case: Case) -> Bench:
        variants = [
            Variant("ours", "ours", call("ours")),
            Variant("base", "eager", call("base")),
            Variant("part", "part", call("part")),
        ]
        return Bench(variants, amount=("tokens", 600))

    monkeypatch.setattr(harness, "time_calls", fake_time)
    row = harness.measure(Case("toy", "step", {}, replace(QUICK, memory=False), setup))
    assert row["amount"] == {"unit": "tokens", "per_call": 600}
    rates = {name: entry["per_second"]["p50"] for name, entry in row["variants"].items()}
    assert rates == {"ours": 200.0, "base": 100.0, "part": 1200.0}
    assert row["variants"]["part"]["share_of_ours"]["p50"] == pytest.approx(1 / 6)
    assert "speedup_of_ours" not in row["variants"]["part"]
    assert row["best_eager"] == "base"
    assert row["speedup_vs_eager"]["p50"] == 2.0
    head, ours, _, part = report.table(row).splitlines()[2:6]
    assert head.endswith("tokens/s")
    assert ours.split()[-1] == "200"
    assert "16.7 % of ours" in part


def test_our_own_failure_is_no_finding_but_an_error() -> None:
    def setup(case: Case) -> Bench:
        def fail() -> Sequence[Tensor]:
            raise RuntimeError("ours is broken")

        return Bench([Variant("ours", "ours", fail)])

    with pytest.raises(RuntimeError, match="ours is broken"):
        harness.measure(Case("toy", "step", {}, QUICK, setup))


def test_an_unknown_pass_is_refused() -> None:
    with pytest.raises(ValueError, match="backward_only"):
        harness.bind(Candidate(torch.relu, [torch.ones(1)], []), "backward_only")


def test_threads_decide_the_clock() -> None:
    assert Options(threads=1).clock == "cpu"
    assert Options(threads=2).clock == "wall"
    assert Options(device="cuda", threads=2).clock == "device"


def _run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    target = tmp_path / "result.json"
    # The script puts the source tree last; the tests may run with the tree in front.
    paths = [p for p in sys.path if p] + [str(ROOT / "python_api")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments, "--json", str(target)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    assert "ours faster by" in done.stdout
    result: dict[str, Any] = json.loads(target.read_text())
    return result


@pytest.mark.parametrize("op", ["moe_mlp_mix", "gated_mix", "grad_reverse", "linear_grad_reverse"])
def test_quick_run_of_an_op(op: str, tmp_path: Path) -> None:
    result = _run(tmp_path, "--op", op, "--quick", "--rounds", "2")
    assert result["schema_version"] == SCHEMA_VERSION
    (run,) = result["runs"]
    environment = run["environment"]
    for key in ("cpu", "cores", "python", "torch", "date", "threads", "thp_system"):
        assert key in environment
    assert environment["threads"] == 1
    assert environment["thp_mem_alloc_enable"] is False
    assert run["rows"]
    for row in run["rows"]:
        assert row["name"].startswith(f"{op}/")
        assert row["variants"]["xfercore"]["rel_err"] < 1e-5
        assert row["speedup_vs_eager"]["p50"] > 0
        # Dropout masks of torch's own generator are others, so only those baselines go uncompared.
        for name, entry in row["variants"].items():
            if row["shape"].get("p", 0.0) == 0.0:
                assert entry["rel_err"] < 1e-5, name


@pytest.mark.slow
def test_both_huge_page_settings_stand_side_by_side(tmp_path: Path) -> None:
    arguments = ("--op", "grad_reverse", "--only", "N208", "--quick", "--rounds", "1", "--thp", "both")
    runs = _run(tmp_path, *arguments)["runs"]
    assert [run["environment"]["thp_mem_alloc_enable"] for run in runs] == [False, True]
    assert [row["name"] for row in runs[0]["rows"]] == [row["name"] for row in runs[1]["rows"]]


@pytest.mark.long
def test_quick_run_of_the_training_step(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    (run,) = _run(tmp_path, "--system", "man_moe_step", "--quick", "--rounds", "1")["runs"]
    for row in run["rows"]:
        assert set(row["variants"]) == {"fused", "reference", "batched"}
        assert row["profile"]["ms"] == pytest.approx(sum(row["profile"]["groups_ms"].values()))
        assert row["profile"]["phases_ms"].keys() == {"discriminator", "main"}


@pytest.mark.long
def test_quick_run_of_tagging(tmp_path: Path) -> None:
    arguments = ("--system", "man_moe_tagging", "--only", "p0.5", "--quick", "--rounds", "1")
    (row,) = _run(tmp_path, *arguments)["runs"][0]["rows"]
    names = {"fused", "reference", "batched", "plain", "fused.batched", "loader"}
    assert set(row["variants"]) == names
    assert row["amount"]["per_call"] == row["profile"]["batch"]["tokens"]  # one step a call
    for entry in row["variants"].values():
        assert entry["per_second"]["p50"] == pytest.approx(
            1e3 * row["amount"]["per_call"] / entry["cpu_ms"]["p50"]
        )
    assert 0 < row["variants"]["loader"]["share_of_ours"]["p50"] < 1
    assert row["profile"]["phases_ms"].keys() == {"discriminator", "main"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--op", "nothing"], "invalid choice: 'nothing'"),
        (["--op", "all", "--threads", "0"], "--threads: expected a number of at least 1, got 0"),
        ([], "one of the arguments --op --system is required"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
