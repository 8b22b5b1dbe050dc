"""The benchmarks of gradient surgery: baselines that compute the same, floors worked out by hand, rows that run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks import harness, measures, report, run  # noqa: E402  (the folder is no installed package)
from benchmarks.harness import Bench, Case, Options, Variant  # noqa: E402
from benchmarks.ops import bench_gradient_surgery as bench  # noqa: E402
from benchmarks.ops import surgery_baselines as baselines  # noqa: E402
from benchmarks.systems import bench_surgery_step as steps  # noqa: E402

QUICK = Options(quick=True, compile=False, memory=False, rounds=1, warmup=1)
HAS_TORCHJD = find_spec("torchjd") is not None


@pytest.fixture(autouse=True)
def _keep_the_random_state() -> Any:
    with torch.random.fork_rng():
        yield


def _case(dtype: torch.dtype, **shape: int | str) -> Case:
    options = replace(QUICK, dtype=dtype)
    (found,) = [case for case in bench.cases(options) if case.shape.items() >= shape.items()]
    return found


def test_the_command_knows_both() -> None:
    assert run.OPS["gradient_surgery"] == ("benchmarks.ops.bench_gradient_surgery", "cases")
    assert run.SYSTEMS["surgery_step"] == ("benchmarks.systems.bench_surgery_step", "cases")


@pytest.mark.parametrize("name", [case.name for case in bench.cases(QUICK)])
def test_quick_rows_agree_with_the_oracle(name: str) -> None:
    (case,) = [case for case in bench.cases(QUICK) if case.name == name]
    row = harness.measure(case)
    for variant, entry in row["variants"].items():
        if variant.startswith("torchjd") and not HAS_TORCHJD:
            assert "No module named 'torchjd'" in entry["error"]
        elif (variant, case.shape.get("input")) != ("torchjd.optimize_gramian", "arena"):
            assert entry["rel_err"] < 1e-5, variant
    if "input" in case.shape:
        assert any(variant.startswith("torchjd") for variant in row["variants"])
    assert report.table(row).startswith(name)


@pytest.mark.parametrize("groups", [1, 5])
def test_every_way_computes_the_same_in_double(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients and moving averages, to the last digits, from the arena and from lists of the same gradients."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    case = _case(torch.float64, T=8, K=groups, input="arena")
    problem = bench._problem(case)
    sizes = bench._parameter_sizes(12_000, 5)
    listed = problem.by_parameter(sizes, bench._bounds(len(sizes), groups))
    expected = bench._exact(problem)

    def check(name: str, results: Sequence[Tensor], bound: float = 1e-11) -> None:
        combined = torch.cat([result for result in results if result.dim() == 1])
        assert (combined - torch.cat(expected[:-1])).abs().max() < bound * combined.abs().max(), name
        if results[-1].dim() == 3:
            assert torch.allclose(results[-1], expected[-1], rtol=0, atol=bound), name

    check("the oracle by parameter", bench._exact(listed))
    for name, results in {
        "ours": bench._ours(problem)(),
        "ours by parameter": bench._ours(listed)(),
        "vector_loop": baselines.vector_loop(problem),
        "vector_loop.compiled": baselines.compiled_vector_loop()(problem),
        "gram_loop": baselines.gram_loop(problem),
        "gram_loop whole": baselines.gram_loop(problem, whole=True),
        "gram_loop by parameter": baselines.gram_loop_of_list(listed),
    }.items():
        check(name, results)
    moved = (expected[-1] - problem.ema).abs() > 0
    assert moved.sum() == groups * 8 * 7  # every pair was visited


@pytest.mark.parametrize("groups", [1, 5])
def test_torchjd_visits_in_the_same_order(groups: int) -> None:
    pytest.importorskip("torchjd")
    problem = bench._problem(_case(torch.float64, T=8, K=groups, input="arena"))
    sizes = bench._parameter_sizes(12_000, 5)
    listed = problem.by_parameter(sizes, bench._bounds(len(sizes), groups))
    expected = torch.cat(bench._exact(problem)[:-1])
    ways = {
        "matrix": baselines.TorchJD(problem, bench._SEED).matrix,
        "jac_to_grad": baselines.TorchJD(listed, bench._SEED).jac_to_grad(optimize=False),
        "optimize_gramian": baselines.TorchJD(listed, bench._SEED).jac_to_grad(optimize=True),
    }
    for name, way in ways.items():
        for _ in range(2):  # the second call starts from the same averages
            assert torch.allclose(torch.cat(list(way())), expected, rtol=1e-8, atol=1e-7), name  # its eps


def test_half_of_the_pairs_move() -> None:
    """Neither all pairs nor none: loops over vectors take twice as long for one that moves."""
    import xfercore

    problem = bench._problem(_case(torch.float32, T=8, K=5, input="arena"))
    gram = torch.stack([bench._gram64([grads]) for grads in problem.matrices()])
    moved = xfercore.gradvac_coef(gram, problem.ema, order=problem.order).moved
    assert 0.3 < moved.sum() / (5 * 8 * 7) < 0.7


def test_draw_order_holds_permutations_that_end_with_the_task() -> None:
    order = baselines.draw_order(3, 4, seed=1)
    assert torch.equal(order.sort(dim=2).values, torch.arange(4).expand(3, 4, 4))
    assert torch.equal(order[:, :, -1], torch.arange(4).expand(3, 4))
    assert not torch.equal(order[0], order[1])
    assert baselines.draw_order(1, 1, seed=0).tolist() == [[[0]]]


@pytest.mark.parametrize("numel", [25, 2400, 40_000, 400_000])
def test_layers_have_twelve_parameters_and_the_right_size(numel: int) -> None:
    sizes = bench._layer_sizes(numel)
    assert len(sizes) == 12
    assert sum(sizes) == numel
    assert min(sizes) >= 1
    assert bench._bounds(10, 3) == [(0, 3), (3, 6), (6, 10)]


def test_floors_are_two_reads_and_a_write_or_one_triangle() -> None:
    """T = 4, P = 12,000 in float32: 48,000 numbers read twice, 12,000 written; 10 pairs, a product and a sum each."""
    whole = _case(torch.float32, T=4, K=1, input="list").work
    assert (whole.bytes, whole.flops) == (4 * (2 * 48_000 + 12_000), 2 * 10 * 12_000)
    assert whole.matmul_dtype is torch.float64
    seconds, bound = measures.floor_seconds(whole, 1e9, 1e9)
    assert (seconds, bound) == (432_000 / 1e9, "bytes")
    alone = {case.op: case.work for case in bench.cases(QUICK) if dict(case.shape) == {"T": 4, "P": 12_000}}
    assert (alone["task_gram"].bytes, alone["task_gram"].flops) == (4 * 48_000, 2 * 10 * 12_000)
    assert (alone["combine_gradients"].bytes, alone["combine_gradients"].flops) == (4 * 60_000, 0.0)
    # 25 tasks: by FLOPs where a byte takes less than 25 * 26 / 2 * 2 / (51 * 4) = 3.2 of them.
    full = [c for c in bench.cases(replace(QUICK, quick=False)) if c.shape.get("T") == 25 and "K" in c.shape]
    assert measures.floor_seconds(full[0].work, 3.1e9, 1e9)[1] == "flops"
    assert measures.floor_seconds(full[0].work, 3.3e9, 1e9)[1] == "bytes"


def test_the_rate_of_a_product_is_taken_in_its_own_dtype() -> None:
    case = _case(torch.float32, T=4, K=1, input="arena")
    product, flops = harness._ceilings(case)["matmul"]
    (result,) = product()
    assert (result.dtype, flops) == (torch.float64, 2.0 * 256**3)


def test_rounds_of_a_slow_row_become_fewer_but_three(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours, a baseline and the copy take a second each: 30 seconds are ten rounds, 5 seconds are not two but three."""

    def fake_time(run: harness.Run, repeats: int, device: str, flush: Tensor | None) -> dict[str, float]:
        run()
        return {"cpu": 1.0, "wall": 1.0}

    def setup(case: Case) -> Bench:
        return Bench([Variant("ours", "ours", list), Variant("base", "eager", list)])

    monkeypatch.setattr(harness, "time_calls", fake_time)
    for seconds, rounds in ((30.0, 10), (5.0, 3), (1e6, 11)):
        case = Case("toy", "call", {}, replace(QUICK, rounds=11), setup, seconds=seconds)
        assert harness.measure(case)["rounds"] == rounds
    assert harness.measure(replace(case, options=replace(QUICK, rounds=2), seconds=1.0))["rounds"] == 2


def _step_case(data: str, method: str = "GradVac", tasks: int = 2) -> Case:
    shape = {"tasks": tasks, "dim": 16, "layers": 2, "batch": 2, "data": data, "method": method}
    return Case("surgery_step", "step", shape, QUICK, steps._setup)


@pytest.mark.parametrize("method", ["GradVac", "PCGrad"])
@pytest.mark.parametrize("data", ["own", "shared"])
def test_with_two_tasks_all_variants_leave_the_same_gradients(data: str, method: str) -> None:
    pytest.importorskip("torchjd")
    case = _step_case(data, method)
    found: dict[str, list[Tensor]] = {}
    for kind in steps.kinds(data):
        stepper = steps.Stepper(case, kind)
        stepper.gradients()
        modules = (stepper.encoder, stepper.heads)
        found[kind] = [
            torch.cat([p.grad.reshape(-1) for p in module.parameters() if p.grad is not None])
            for module in modules
        ]
    encoder, heads = found.pop("surgery")
    for kind, (shared, own) in found.items():
        assert torch.allclose(own, heads, rtol=1e-4, atol=1e-7), kind
        if kind != "sum":
            assert torch.allclose(shared, encoder, rtol=1e-3, atol=1e-5 * float(encoder.abs().max())), kind


@pytest.mark.slow
def test_quick_row_of_the_step() -> None:
    pytest.importorskip("torchjd")
    (case,) = [c for c in steps.cases(QUICK) if c.shape["data"] == "shared" and c.shape["method"] == "PCGrad"]
    row = harness.measure(case)
    assert list(row["variants"]) == ["surgery", "sum", "torchjd", "torchjd.best", "torchjd.engine"]
    assert 0 < row["variants"]["sum"]["share_of_ours"]["p50"] < 1.5
    assert row["best_eager"].startswith("torchjd")
    assert row["profile"]["phases_ms"].keys() == {"forward", "backward and surgery", "optimiser"}
    assert set(row["profile"]["peak_bytes_of_first_steps"]) == set(row["variants"])
