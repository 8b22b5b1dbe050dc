"""The reduction of every multi-source loss: a mean within each language, a sum over languages."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["sum_of_domain_means"]


def sum_of_domain_means(
    values: Tensor,
    domains: Tensor,
    num_domains: int,
    *,
    weights: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """Sum over domains d of ``weights[d] * mean(values[domains == d])``, in one pass over a mixed batch.

    This is what a loop over languages with a mean loss each accumulates (Chen et al., ACL 2019, with means
    for the sums of Eq. 2 and 5: only with means does the weight of the gate loss not depend on the batch).

    Args:
        values: ``float[num_items]``.
        domains: ``int64[num_items]`` in ``[-1, num_domains)``; items of domain -1 (padding) are ignored,
            whatever their value, and domains without items add nothing.
        num_domains: number of domains.
        weights: ``float[num_domains]``, default 1 each.
        counts: ``float[num_domains]``, what each domain's sum is divided by in place of its number of items
            here. With the counts of a whole batch the result is additive over shards of that batch, however
            uneven they are. Domains with count 0 add nothing.

    Returns:
        A scalar of the dtype of ``values``, float32 for half types.

    Raises:
        ValueError: when shapes do not agree.
    """
    if values.dim() != 1 or values.shape != domains.shape:
        raise ValueError(
            "sum_of_domain_means: values and domains must be vectors of one length, got "
            f"{list(values.shape)} and {list(domains.shape)}"
        )
    if weights is not None and weights.shape != (num_domains,):
        raise ValueError(
            f"sum_of_domain_means: weights must have shape [{num_domains}], got {list(weights.shape)}"
        )
    if counts is not None and counts.shape != (num_domains,):
        raise ValueError(
            f"sum_of_domain_means: counts must have shape [{num_domains}], got {list(counts.shape)}"
        )
    if values.dtype in (torch.bfloat16, torch.float16):
        values = values.float()
    valid = domains >= 0
    index = domains.clamp(min=0)
    if counts is None:
        counts = values.new_zeros(num_domains).index_add(0, index, valid.to(values.dtype))
    counts = counts.to(values.dtype)
    scale = torch.where(counts > 0, counts, 1.0).reciprocal()
    if weights is not None:
        scale = scale * weights.to(values.dtype)
    return (values.masked_fill(~valid, 0.0) * scale[index]).sum()
