"""topk_similarity's CUDA kernel, run thread by thread, against a sort of the whole rows."""

from __future__ import annotations

import math

import pytest
import torch
from simt_harness import Arena, call
from simt_ranking import TopkArgs
from torch import Tensor


def best(
    sim: Tensor, k: int, tile: int, *, factor: float = 1.0, offset: Tensor | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    rows, columns = sim.shape
    arena = Arena()
    values = arena.output("values", (rows, k), torch.float32)
    indices = arena.output("indices", (rows, k), torch.int64)
    for begin in range(0, columns, tile):
        end = min(begin + tile, columns)
        args = TopkArgs(
            dtype=0,
            num_rows=rows,
            num_columns=end - begin,
            first_column=begin,
            k=k,
            first=begin == 0,
            last=end == columns,
            sim=arena.input("sim", sim[:, begin:end].contiguous()),
            factor=factor,
            key_offset=arena.input("offset", None if offset is None else offset[begin:end].contiguous()),
            values=values,
            indices=indices,
        )
        call("topk_similarity_tile", args, seed)
    return arena.outputs["values"].clone(), arena.outputs["indices"].clone()


def sorted_rows(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = torch.sort(sim, dim=1, descending=True, stable=True)
    return values[:, :k], indices[:, :k]


@pytest.mark.parametrize("tile", [1, 31, 64, 1000])
@pytest.mark.parametrize("k", [1, 3, 33, 70, 131])
def test_the_best_of_every_row(k: int, tile: int) -> None:
    sim = torch.randn(4, 131, generator=torch.Generator().manual_seed(k))
    values, indices = best(sim, k, tile, seed=tile)
    wanted, places = sorted_rows(sim, k)
    assert torch.equal(values, wanted) and torch.equal(indices, places)


def test_ties_nan_and_infinities() -> None:
    sim = torch.randint(0, 4, (3, 90), generator=torch.Generator().manual_seed(1)).float()
    sim[1, 5] = sim[1, 80] = math.nan
    sim[2] = -math.inf
    sim[2, 7] = math.inf
    for tile in (17, 90):
        values, indices = best(sim, 40, tile)
        wanted, places = sorted_rows(sim, 40)
        assert torch.equal(indices, places)
        torch.testing.assert_close(values, wanted, rtol=0, atol=0, equal_nan=True)


def test_factor_and_offset() -> None:
    rng = torch.Generator().manual_seed(2)
    sim, offset = torch.randn(3, 50, generator=rng), torch.randn(50, generator=rng)
    values, indices = best(sim, 7, 20, factor=2.0, offset=offset)
    wanted, places = sorted_rows(2 * sim - offset, 7)
    assert torch.equal(indices, places)
    torch.testing.assert_close(values, wanted)


@pytest.mark.parametrize("order", ["ascending", "descending", "equal"])
@pytest.mark.parametrize("k", [1, 10, 130, 300])
@pytest.mark.parametrize("columns", [1500, 1501])
def test_rows_that_fill_the_list_again_and_again(columns: int, k: int, order: str) -> None:
    row = torch.arange(columns).float()
    row = {"ascending": row, "descending": -row, "equal": row * 0.0}[order]
    sim = torch.stack([row, -row])
    for tile in (columns, 700):
        values, indices = best(sim, k, tile, seed=k)
        wanted, places = sorted_rows(sim, k)
        assert torch.equal(values, wanted) and torch.equal(indices, places)


def test_many_nan_and_all_minus_infinity() -> None:
    sim = torch.randn(2, 400, generator=torch.Generator().manual_seed(4))
    sim[0, ::3] = math.nan
    sim[1] = -math.inf
    _, indices = best(sim, 50, 160)
    assert torch.equal(indices, sorted_rows(sim, 50)[1])


def test_bits_do_not_depend_on_the_order_of_threads() -> None:
    sim = torch.randint(0, 50, (2, 1200), generator=torch.Generator().manual_seed(5)).float()
    runs = [best(sim, 20, 800, seed=seed) for seed in range(3)]
    assert all(torch.equal(runs[0][1], other[1]) for other in runs[1:])


@pytest.mark.parametrize(("k", "columns"), [(8128, 8200), (8129, 70)])
def test_lists_that_shared_memory_just_holds_and_no_longer_holds(k: int, columns: int) -> None:
    sim = (-torch.arange(float(columns)) / 7).floor().unsqueeze(0)
    sim[0, columns - 10 :] = 5.0
    values, indices = best(sim, k, columns // 2)
    seen = min(k, columns)  # places behind the last key stay empty
    wanted, places = sorted_rows(sim, seen)
    assert torch.equal(values[:, :seen], wanted) and torch.equal(indices[:, :seen], places)
