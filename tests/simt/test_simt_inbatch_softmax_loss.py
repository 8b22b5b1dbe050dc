"""inbatch_softmax_loss's CUDA passes, run thread by thread, against the definition in fp64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from simt_harness import DTYPES, Arena, call
from simt_ranking import GRADS, HardGradsArgs, HardSimsArgs, Ranking, run_columns, run_rows
from torch import Tensor

from xfercore.reference import inbatch_softmax_loss

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 8e-3, torch.float16: 1e-3}
ABSENT = -(2**63)


def make(rows: int, columns: int, num_hard: int = 0, *, seed: int = 0, **options: Any) -> Ranking:
    rng = torch.Generator().manual_seed(seed + rows * 1009 + columns)
    sim = torch.randn(rows, columns, generator=rng)
    hard = torch.randn(rows, num_hard, generator=rng)
    return Ranking(sim, hard, torch.rand(rows, generator=rng) + 0.1, **options)


def with_ids(p: Ranking, seed: int = 0) -> Ranking:
    rng = torch.Generator().manual_seed(seed)
    rows, columns = p.sim.shape
    p.targets = torch.randint(0, columns, (rows,), generator=rng)
    p.col_ids = torch.randint(-1, 5, (columns,), generator=rng)
    p.row_ids = p.col_ids[p.targets]
    p.hard_ids = torch.randint(-1, 5, p.hard.shape, generator=rng)
    return p


def expected(p: Ranking, symmetric: bool = False) -> dict[str, Tensor]:
    """The definition, given embeddings whose products are the similarities."""
    rows, columns = p.sim.shape
    sim = p.sim.double().requires_grad_()
    hard = p.hard.double().requires_grad_()
    scale = torch.tensor(float(p.scale), dtype=torch.float64, requires_grad=True)
    # u = [sim_i, e_i] and v = [1 at its column, 0], hard = [0, its similarity at its row].
    u = torch.cat([sim, torch.ones(rows, 1, dtype=torch.float64)], 1)
    v = torch.cat([torch.eye(columns, dtype=torch.float64), torch.zeros(columns, 1)], 1)
    negatives = torch.cat([torch.zeros(rows, p.hard.shape[1], columns), hard.unsqueeze(2)], 2)
    out = inbatch_softmax_loss(
        u, v, hard_neg=negatives, targets=p.targets, scale=scale, margin=p.margin, query_ids=p.row_ids,
        doc_ids=p.col_ids, hard_neg_ids=p.hard_ids, symmetric=symmetric, reduction="none", return_stats=True,
    )  # fmt: skip
    grads = torch.autograd.grad((out.loss * p.coef).sum(), (sim, hard, scale), allow_unused=True)
    zero = torch.zeros(rows, p.hard.shape[1])
    return {
        "loss": out.loss.detach(), "lse": out.lse, "pos_logit": out.pos_logit, "rank": out.rank,
        "argmax": out.argmax, "grad": grads[0], "hard_sim": zero if grads[1] is None else grads[1],
        "grad_scale": grads[2],
    }  # fmt: skip


def assert_equal(
    actual: dict[str, Tensor], wanted: dict[str, Tensor], dtype: torch.dtype = torch.float32
) -> None:
    assert torch.equal(actual["rank"], wanted["rank"])
    assert torch.equal(actual["argmax"], wanted["argmax"])
    for name in ("loss", "lse", "pos_logit"):
        torch.testing.assert_close(actual[name].double(), wanted[name], rtol=4e-6, atol=4e-6, msg=name)
    for name in ("grad", "hard_sim"):
        size = float(wanted["grad"].abs().max())
        torch.testing.assert_close(
            actual[name].double(),
            wanted[name].double(),
            rtol=TOLERANCE[dtype],
            atol=TOLERANCE[dtype] * size,
            msg=name,
        )
    total = actual["grad_scale"].double().sum()
    torch.testing.assert_close(total, wanted["grad_scale"], rtol=1e-5, atol=1e-5)


# Rows of a multiple of 4 columns take 16-byte accesses; of long ones shared memory keeps a part alone.
SHAPES = [(1, 1, 0), (3, 3, 0), (5, 7, 1), (4, 67, 7), (2, 1031, 3), (3, 2050, 0), (5, 64, 2), (2, 2052, 33)]
LONG = [(1, 33000, 2), (1, 25001, 0)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_whole_row_at_once(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    p = make(*shape, scale=1.7, margin=0.2)
    assert_equal(run_rows(p, shape[1], dtype, seed=3, layout=1), expected(p), dtype)
    with_ids(p)
    assert_equal(run_rows(p, shape[1], dtype, seed=4), expected(p), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_a_row_longer_than_shared_memory(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    p = make(*shape, scale=2.0)
    rng = torch.Generator().manual_seed(1)
    p.targets = torch.tensor([shape[1] - 2])
    p.col_ids = torch.randint(-1, 4, (shape[1],), generator=rng)
    p.row_ids = p.col_ids[p.targets]
    sim, target = p.sim.double(), p.targets
    wanted_row = (2.0 * sim).masked_fill((p.col_ids == p.row_ids) & (p.row_ids >= 0), -torch.inf)
    wanted_row[0, target] = 2.0 * sim[0, target]
    wanted_row = torch.cat([wanted_row, 2.0 * p.hard.double()], 1)
    wanted = wanted_row.softmax(1)
    wanted[0, target] -= 1.0
    wanted = wanted * p.coef.double() * 2.0
    out = run_rows(p, shape[1], dtype, seed=1, layout=1)
    actual = torch.cat([out["grad"], out["hard_sim"]], 1).double()
    torch.testing.assert_close(actual, wanted, rtol=TOLERANCE[dtype], atol=2e-7)
    torch.testing.assert_close(out["lse"].double(), wanted_row.logsumexp(1))
    rivals = torch.arange(wanted_row.shape[1]) != target
    assert out["rank"].item() == 1 + int((wanted_row[0, rivals] >= wanted_row[0, target]).sum())
    assert out["argmax"].item() == wanted_row.argmax()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tile", [300, 7000, 8400])
def test_half_gradients_overtake_no_reading_of_their_row(tile: int, dtype: torch.dtype) -> None:
    """Gradients alone: the row is read where it lies, and half ones are written to its front meanwhile."""
    p = make(1, 16800, scale=2.0, targets=torch.tensor([9000]))
    if tile < 1000:
        p.sim, p.targets = p.sim[:, :900].contiguous(), torch.tensor([400])
    wanted = (2.0 * p.sim.double()).softmax(1)
    wanted[0, p.targets] -= 1.0
    for seed in range(2):
        actual = run_rows(p, tile, dtype, seed=seed, late=GRADS)["grad"].double()
        torch.testing.assert_close(actual, wanted * p.coef * 2.0, rtol=TOLERANCE[dtype], atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [67, 2052, 25000])
def test_bits_do_not_depend_on_the_order_of_threads(columns: int, dtype: torch.dtype) -> None:
    p = with_ids(make(2, columns, 3, scale=1.5))
    for tile in (columns, columns // 2):
        runs = [run_rows(p, tile, dtype, seed=seed) for seed in range(3)]
        for name in ("loss", "grad", "hard_sim", "grad_scale", "rank", "argmax", "row_rest"):
            assert all(torch.equal(runs[0][name], other[name]) for other in runs[1:]), name
    some = Ranking(p.sim[:, :67], p.hard, p.coef, scale=1.5, targets=p.targets.clamp(max=66))
    assert torch.equal(run_columns(some, 67, seed=1), run_columns(some, 67, seed=2))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("tile", [1, 5, 64, 100])
def test_tiles_of_columns(tile: int, dtype: torch.dtype) -> None:
    p = with_ids(make(4, 131, 3, scale=0.7, margin=0.1))
    assert_equal(run_rows(p, tile, dtype, seed=tile), expected(p), dtype)


@pytest.mark.parametrize("scale", [0.0, -1.5, 100.0, 1e4])
def test_scales_and_extreme_logits(scale: float) -> None:
    p = with_ids(make(6, 40, 2, scale=scale))
    wanted = expected(p)
    for tile in (40, 7):
        actual = run_rows(p, tile)
        assert torch.equal(actual["rank"], wanted["rank"])
        for name in ("loss", "grad"):
            assert actual[name].isfinite().all()
            size = float(wanted[name].abs().max()) + 1e-30
            torch.testing.assert_close(actual[name].double(), wanted[name], rtol=1e-4, atol=1e-5 * size)


def test_a_confident_row_keeps_its_gradient() -> None:
    """p = 1 - 1e-9 or so: p - 1 in fp32 would be 0."""
    p = make(3, 9, scale=1.0)
    p.sim[range(3), range(3)] = 22.0
    actual, wanted = run_rows(p, 9), expected(p)
    diagonal = actual["grad"][range(3), range(3)].double()
    torch.testing.assert_close(diagonal, wanted["grad"][range(3), range(3)], rtol=1e-5, atol=0.0)
    torch.testing.assert_close(actual["loss"].double(), wanted["loss"], rtol=1e-5, atol=0.0)


def test_nothing_competes() -> None:
    p = make(3, 5, 2)
    p.col_ids, p.row_ids = torch.full((5,), 4), torch.full((3,), 4)
    p.hard_ids = torch.tensor([[4, -1]] * 3)
    for tile in (5, 2):
        actual = run_rows(p, tile)
        assert (actual["loss"] == 0).all() and (actual["grad"] == 0).all() and (actual["rank"] == 1).all()
        assert torch.equal(actual["argmax"], torch.arange(3))


def test_absent_columns_are_seen_by_no_row() -> None:
    p = make(3, 8)
    p.col_ids = torch.tensor([-1, -1, -1, -1, ABSENT, ABSENT, -1, -1])
    kept = Ranking(p.sim[:, [0, 1, 2, 3, 6, 7]].contiguous(), p.hard, p.coef)
    actual, wanted = run_rows(p, 8), expected(kept)
    torch.testing.assert_close(actual["loss"].double(), wanted["loss"], rtol=4e-6, atol=4e-6)
    assert (actual["grad"][:, 4:6] == 0).all()


def test_ties_count_against_the_positive_and_nan_ranks_last() -> None:
    p = make(2, 6, 1)
    p.sim[0], p.hard[0] = 0.5, 0.5
    p.sim[1, 1] = math.nan
    for tile in (6, 4):
        actual = run_rows(p, tile)
        assert actual["rank"].tolist() == [7, 7]
        assert actual["argmax"][0] == 1
        assert actual["loss"][1].isnan() and actual["grad"][1].isnan().all()


def test_a_target_out_of_range_is_never_trained_on() -> None:
    for wrong in (-1, 9):
        p = make(3, 9, 1, targets=torch.tensor([0, wrong, 4]))
        actual = run_rows(p, 9, stale_pos=0.5)
        assert actual["status"].tolist() == [4]
        assert actual["loss"].isnan().tolist() == [False, True, False]
        assert actual["grad"][1].isnan().all() and not actual["grad"][[0, 2]].isnan().any()
    assert run_rows(make(3, 9), 9)["status"].tolist() == [0]


@pytest.mark.parametrize("tile", [1000, 13])
@pytest.mark.parametrize("duplicates", [False, True])
def test_symmetric(tile: int, duplicates: bool) -> None:
    p = make(11, 37, scale=1.3, margin=0.2)
    p.coef = p.coef / 2  # the caller halves both directions
    rng = torch.Generator().manual_seed(5)
    p.targets = (
        torch.randint(0, 6, (11,), generator=rng) if duplicates else torch.randperm(37, generator=rng)[:11]
    )
    p.col_ids = torch.randint(-1, 30, (37,), generator=rng)
    p.row_ids = p.col_ids[p.targets]
    maximum, rest, positive, count, coef_sum = run_columns(p, tile, seed=2)
    total = rest + positive
    lse = maximum + total.log()
    mine = p.targets
    pos_logit = p.scale * (p.sim.gather(1, mine.unsqueeze(1)).squeeze(1) - p.margin)
    share = (pos_logit - lse[mine]).exp()
    extra = torch.where(count[mine] > 1, coef_sum[mine] * share - p.coef, -p.coef * rest[mine] / total[mine])
    actual = run_rows(p, tile, column_terms=(lse, coef_sum, extra))
    p.coef = p.coef * 2
    wanted = expected(p, symmetric=True)
    size = float(wanted["grad"].abs().max())
    torch.testing.assert_close(actual["grad"].double(), wanted["grad"], rtol=1e-5, atol=5e-6 * size)
    torch.testing.assert_close(
        actual["grad_scale"].double().sum(), wanted["grad_scale"], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("shape", [(1100, 9), (3, 32 * 1024 + 3)], ids=str)
def test_columns_of_many_rows_and_many_columns(shape: tuple[int, int]) -> None:
    p = make(*shape, scale=3.0, margin=0.1)
    rng = torch.Generator().manual_seed(3)
    p.targets = torch.randint(0, shape[1], (shape[0],), generator=rng)
    p.col_ids = torch.randint(-1, 9, (shape[1],), generator=rng)
    p.row_ids = p.col_ids[p.targets]
    maximum, rest, positive, count, coef_sum = run_columns(p, shape[1]).double()
    own = torch.arange(shape[1]) == p.targets.unsqueeze(1)
    masked = (p.col_ids == p.row_ids.unsqueeze(1)) & (p.row_ids.unsqueeze(1) >= 0) & ~own
    z = (3.0 * (p.sim.double() - 0.1 * own)).masked_fill(masked, -torch.inf)
    torch.testing.assert_close(maximum, z.amax(0), rtol=1e-6, atol=1e-6)
    e = (z - maximum).exp().masked_fill(masked, 0.0)
    torch.testing.assert_close(rest, (e * ~own).sum(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(positive, (e * own).sum(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(count, own.sum(0).double())
    torch.testing.assert_close(coef_sum, (own * p.coef.double().unsqueeze(1)).sum(0), rtol=1e-5, atol=1e-6)


def test_a_column_that_every_row_masks_and_one_with_nan() -> None:
    p = make(4, 6)
    p.col_ids, p.row_ids = torch.tensor([-1, -1, -1, -1, ABSENT, -1]), torch.full((4,), -1)
    p.sim[2, 5] = math.nan
    maximum, rest, positive, _, _ = run_columns(p, 6)
    assert maximum[4] == -math.inf and rest[4] == 0 and positive[4] == 0
    assert rest.isnan().tolist() == [False] * 5 + [True]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 3, 67), (3, 7, 300), (4, 2, 2056)], ids=str)
def test_hard_negatives(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    rows, num_hard, dim = shape
    rng = torch.Generator().manual_seed(dim)
    u = torch.randn(rows, dim, generator=rng).to(dtype)
    hard = torch.randn(rows, num_hard, dim, generator=rng).to(dtype)
    arena = Arena(1)
    common = {"dtype": DTYPES[dtype], "num_rows": rows, "num_hard": num_hard, "dim": dim}
    pointers = {"u": arena.input("u", u), "hard": arena.input("hard", hard)}
    call(
        "inbatch_hard_sims",
        HardSimsArgs(**common, **pointers, sims=arena.output("sims", (rows, num_hard), torch.float32)),
        1,
    )
    sims = arena.outputs["sims"].double()
    torch.testing.assert_close(
        sims, torch.einsum("bd,bhd->bh", u.double(), hard.double()), rtol=1e-5, atol=1e-5
    )
    d = torch.randn(rows, num_hard, generator=rng)
    before = torch.randn(rows, dim, generator=rng)
    grad_u = arena.output("grad_u", (rows, dim), torch.float32)
    arena.outputs["grad_u"].copy_(before)
    args = HardGradsArgs(
        **common, **pointers, d=arena.input("d", d), factor=arena.input("factor", torch.tensor(1.5)), grad_u=grad_u,
        grad_hard=arena.output("grad_hard", hard.shape, dtype),
    )  # fmt: skip
    call("inbatch_hard_grads", args, 2)
    wanted_u = before.double() + torch.einsum("bh,bhd->bd", d.double(), hard.double())
    torch.testing.assert_close(arena.outputs["grad_u"].double(), wanted_u, rtol=1e-5, atol=1e-5)
    wanted = 1.5 * d.double().unsqueeze(2) * u.double().unsqueeze(1)
    actual = arena.outputs["grad_hard"].double()
    torch.testing.assert_close(actual, wanted, rtol=TOLERANCE[dtype], atol=1e-6)
