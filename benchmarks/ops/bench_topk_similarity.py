"""``topk_similarity``: exact nearest keys by inner product, against faiss's exact index and whole blocks of torch.

The least work is one matrix product of ``queries x keys x dim``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

import xfercore
from benchmarks.harness import Bench, Case, Options, Variant, Work

__all__ = ["cases"]

_K = 10
_CSLS = 10
_BLOCK = 256  # queries of a block of torch.topk


def _blocks(queries: Tensor, keys: Tensor) -> Sequence[Tensor]:
    found = [torch.topk(part @ keys.T, _K) for part in queries.split(_BLOCK)]
    return [torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])]


def _faiss(queries: Tensor, keys: Tensor, threads: int) -> Callable[[], Sequence[Tensor]] | None:
    try:
        import faiss
    except ImportError:
        return None
    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(keys.shape[1])
    index.add(keys.numpy())
    asked = queries.numpy()
    return lambda: [torch.from_numpy(part) for part in index.search(asked, _K)]


def _ours(queries: Tensor, keys: Tensor, csls: int | None) -> Sequence[Tensor]:
    return xfercore.topk_similarity(queries, keys, _K, csls=csls)


def _csls_blocks(queries: Tensor, keys: Tensor) -> Sequence[Tensor]:
    key_mean = torch.cat([torch.topk(part @ queries.T, _CSLS).values.mean(1) for part in keys.split(_BLOCK)])
    found = []
    for part in queries.split(_BLOCK):
        sim = part @ keys.T
        own = torch.topk(sim, _CSLS).values.mean(1, keepdim=True)
        found.append(torch.topk(2 * sim - key_mean - own, _K))
    return [torch.cat([part.values for part in found]), torch.cat([part.indices for part in found])]


def _setup(case: Case) -> Bench:
    options = case.options
    sizes = (int(case.shape["queries"]), int(case.shape["keys"]))
    dim = int(case.shape["d"])
    queries, keys = (
        normalize(torch.randn(size, dim, device=options.device), dim=-1).to(options.dtype) for size in sizes
    )
    csls = case.shape["form"] == "csls"
    variants = [
        Variant("xfercore", "ours", partial(_ours, queries, keys, _CSLS if csls else None)),
        Variant("torch_blocks", "eager", partial(_csls_blocks if csls else _blocks, queries, keys)),
    ]
    if not csls and options.device == "cpu" and options.dtype == torch.float32:
        search = _faiss(queries, keys, options.threads)
        if search is not None:
            variants.append(Variant("faiss_flat_ip", "eager", search))

    def exact() -> Sequence[Tensor]:
        # Neighbours in fp32 against torch's own in fp64: ranks that differ show as an error of values or of indices.
        return (_csls_blocks if csls else _blocks)(queries.double(), keys.double())

    return Bench(variants, oracle=exact if options.device == "cpu" else None)


def cases(options: Options) -> list[Case]:
    """Rows: 1,000 and 10,000 queries of 300 dimensions against 200,000 keys; CSLS between 10,000 and 10,000."""
    if options.quick:
        rows = [(100, 5_000, "plain"), (500, 500, "csls")]
    else:
        rows = [(1_000, 200_000, "plain"), (10_000, 200_000, "plain"), (10_000, 10_000, "csls")]
    dim = 300
    return [
        Case(
            op="topk_similarity",
            passes="call",
            shape={"queries": queries, "keys": keys, "d": dim, "k": _K, "form": form},
            options=options,
            setup=_setup,
            work=Work(
                flops=(6.0 if form == "csls" else 2.0) * queries * keys * dim,
                bytes=float((queries + keys) * dim * options.dtype.itemsize),
                matmul=(1024, dim, 2048),
            ),
        )
        for queries, keys, form in rows
    ]
