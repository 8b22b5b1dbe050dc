"""topk_similarity against the sorted matrix, brute force and faiss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

import xfercore
from xfercore import reference


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("k", [1, 10, 300, 1001])
@pytest.mark.parametrize("workspace", [None, 1, 5000, 300_000])
def test_the_nearest_of_random_keys(k: int, workspace: int | None) -> None:
    queries, keys = draw(130, 19), draw(1001, 19, seed=1)
    values, indices = xfercore.topk_similarity(queries, keys, k, workspace_bytes=workspace)
    wanted, _ = reference.topk_similarity(queries.double(), keys.double(), k)
    torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)
    found = (queries.double() @ keys.double().T).gather(1, indices)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert all(len(set(row)) == k for row in indices.tolist())


@pytest.mark.parametrize("workspace", [None, 1])
def test_ties_take_the_lower_index_and_nan_comes_first(workspace: int | None) -> None:
    keys = torch.randint(0, 3, (200, 1), generator=torch.Generator().manual_seed(1)).float()
    keys[150] = math.nan
    values, indices = xfercore.topk_similarity(torch.ones(2, 1), keys, 120, workspace_bytes=workspace)
    wanted, places = torch.sort(keys.T.expand(2, -1), dim=1, descending=True, stable=True)
    assert torch.equal(indices, places[:, :120])
    torch.testing.assert_close(values, wanted[:, :120], equal_nan=True)


def test_infinite_similarities_are_candidates_too() -> None:
    keys = torch.tensor([[-math.inf], [1.0], [math.inf], [-math.inf]])
    values, indices = xfercore.topk_similarity(torch.ones(1, 1), keys, 4)
    assert indices.tolist() == [[2, 1, 0, 3]] and values[0, 0] == math.inf


@pytest.mark.parametrize("workspace", [None, 2000])
def test_csls_by_brute_force(workspace: int | None) -> None:
    queries, keys = unit(draw(40, 8)), unit(draw(70, 8, seed=1))
    cosine = (queries @ keys.T).double()
    r_query = cosine.topk(5, dim=1).values.mean(1, keepdim=True)
    r_key = cosine.topk(5, dim=0).values.mean(0, keepdim=True)
    wanted, places = (2 * cosine - r_query - r_key).topk(3, dim=1)
    values, indices = xfercore.topk_similarity(
        3.0 * queries, 2.0 * keys, 3, csls=5, normalize=True, workspace_bytes=workspace
    )
    torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(indices, places)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_are_summed_in_fp32(dtype: torch.dtype) -> None:
    queries, keys = draw(20, 64).to(dtype), draw(100, 64, seed=1).to(dtype)
    values, _ = xfercore.topk_similarity(queries, keys, 7)
    wanted, _ = reference.topk_similarity(queries.double(), keys.double(), 7)
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), wanted, rtol=1e-5, atol=1e-5)


def test_faiss_finds_the_same() -> None:
    faiss = pytest.importorskip("faiss", reason="faiss-cpu is an extra", exc_type=ImportError)
    queries, keys = unit(draw(200, 48)), unit(draw(5000, 48, seed=1))
    index = faiss.IndexFlatIP(48)
    index.add(keys.numpy())
    values, indices = index.search(queries.numpy(), 10)
    ours, places = xfercore.topk_similarity(queries, keys, 10)
    torch.testing.assert_close(ours, torch.from_numpy(values), rtol=1e-5, atol=1e-5)
    assert (places == torch.from_numpy(indices)).float().mean() > 0.999
