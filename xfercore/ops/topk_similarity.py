"""``topk_similarity``: the k most similar keys of every query, without the matrix of similarities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit

from xfercore.interop import accept_arrays
from xfercore.ops._checks import check_like, check_rank, check_tensors
from xfercore.ops._ranking_checks import check_flags, check_matrix
from xfercore.ops._surgery_checks import refuse_functorch, refuse_grad

__all__ = ["topk_similarity"]

_OP = "topk_similarity"


@accept_arrays
def topk_similarity(
    queries: Tensor,
    keys: Tensor,
    k: int,
    *,
    csls: int | None = None,
    normalize: bool = False,
    workspace_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The ``k`` keys with the largest inner product for every query: exact, over blocks of similarities.

    .. math:: s_{ij} = \langle q_i, k_j \rangle, \qquad
        \mathrm{CSLS}_{ij} = 2 s_{ij} - r_i - r'_j

    where :math:`r_i` is the mean similarity of query i to its ``csls`` most similar keys and :math:`r'_j` that of key j
    to its most similar queries (Conneau et al., "Word translation without parallel data", ICLR 2018, equation 4),
    which takes two more passes. Memory: the results and a workspace.

    Args:
        queries: ``[num_queries, dim]``, float32, bfloat16, float16 or (CPU) float64.
        keys: ``[num_keys, dim]``, same dtype.
        k: number of keys for each query, 1 to ``num_keys``.
        csls: neighbourhood of the CSLS correction for hubs (10 in the paper), 1 to the smaller of ``num_queries`` and
            ``num_keys``; None: the plain similarity.
        normalize: divide queries and keys by their lengths first, which makes the similarity a cosine: in float32, and
            rounded back to their dtype.
        workspace_bytes: memory of a block of similarities; None: 8 MiB on the CPU, 1 GiB on CUDA.

    Returns:
        ``values [num_queries, k]``, float32 (float64 for float64), best first, and ``indices [num_queries, k]``, int64.
        NaN comes before all numbers, as in :func:`torch.topk`; of equal values the lower index comes first
        (with csls: of those that are equal before r_i is taken off).

    Raises:
        ValueError: a shape, dtype, device or number that does not fit, named with its argument.
        RuntimeError: for inputs that require grad while gradients are recorded, since the op has no derivative; under
            ``torch.func`` transforms.

    Half types are multiplied as they are and summed in float32. Autocast changes nothing.
    """
    refuse_functorch(_OP)
    check_tensors(_OP, queries=queries, keys=keys)
    refuse_grad(_OP, "queries", queries)
    refuse_grad(_OP, "keys", keys)
    check_matrix(_OP, "queries", queries, "[num_queries, dim]")
    check_matrix(_OP, "keys", keys, "[num_keys, dim]")
    if keys.shape[1] != queries.shape[1]:
        raise ValueError(
            f"{_OP}(): keys must have shape [num_keys, dim] with dim = {queries.shape[1]} as in queries, got "
            f"{list(keys.shape)}"
        )
    if keys.dtype != queries.dtype:
        raise ValueError(f"{_OP}(): keys must have the dtype of queries ({queries.dtype}), got {keys.dtype}")
    num_queries, num_keys = queries.shape[0], keys.shape[0]
    _check_count("k", k, num_keys, "num_keys")
    if workspace_bytes is not None:
        _check_count("workspace_bytes", workspace_bytes, 2**62, "2^62")
    if csls is not None:
        _check_count("csls", csls, min(num_queries, num_keys), "the smaller of num_queries and num_keys")
    check_flags(_OP, normalize=normalize)
    if normalize:
        queries, keys = _unit(queries), _unit(keys)
    budget = workspace_bytes or 0
    if csls is None:
        return torch.ops.xfercore.topk_similarity(queries, keys, k, 1.0, None, budget)
    nearest = torch.ops.xfercore.topk_similarity
    query_mean = nearest(queries, keys, csls, 1.0, None, budget)[0].mean(1, keepdim=True)
    key_mean = nearest(keys, queries, csls, 1.0, None, budget)[0].mean(1)
    values, indices = nearest(queries, keys, k, 2.0, key_mean, budget)
    return values - query_mean, indices


def _unit(t: Tensor) -> Tensor:
    return unit(t.to(torch.promote_types(t.dtype, torch.float32)), dim=-1).to(t.dtype)


def _check_count(name: str, value: object, most: int | torch.SymInt, meaning: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise ValueError(f"{_OP}(): {name} must be an integer, got {value!r}")
    if value < 1 or value > most:
        raise ValueError(f"{_OP}(): {name} must be between 1 and {meaning} = {most}, got {value}")


@torch.library.register_fake("xfercore::topk_similarity")
def _fake(
    queries: Tensor, keys: Tensor, k: int, factor: float, key_offset: Tensor | None, workspace_bytes: int
) -> tuple[Tensor, Tensor]:
    check_rank(_OP, "queries", queries, 2, "[num_queries, dim]")
    check_like(_OP, "keys", keys, queries, "queries", keys.shape[0], queries.shape[1])
    compute = torch.promote_types(queries.dtype, torch.float32)
    shape = (queries.shape[0], k)
    return queries.new_empty(shape, dtype=compute), queries.new_empty(shape, dtype=torch.int64)
