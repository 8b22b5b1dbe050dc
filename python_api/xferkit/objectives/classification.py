"""Negative log-likelihood of labels under given log-probabilities."""

from __future__ import annotations

from torch import Tensor

from xferkit.objectives.domains import sum_of_domain_means

__all__ = ["classification_nll"]


def classification_nll(
    log_probs: Tensor,
    labels: Tensor,
    domains: Tensor,
    num_domains: int,
    *,
    weights: Tensor | None = None,
    counts: Tensor | None = None,
    ignore_index: int = -1,
) -> Tensor:
    """J_C = sum over source languages of the mean of ``-log p(label)`` (Chen et al., ACL 2019, Eq. 2).

    The mean is over texts, or over labelled tokens when tagging.

    Args:
        log_probs: ``float[num_items, num_classes]``, or ``[num_items, length, num_classes]`` for tagging.
            Values need not be normalised: the geometric mixture of ``mix='logprob'`` is not.
        labels: ``int64[num_items]`` or ``[num_items, length]``; ``ignore_index`` marks padding.
        domains: ``int64[num_items]``, the source language of each item, -1 to leave an item out.
        num_domains: number of source languages.
        weights: ``float[num_domains]``, weight of each language's mean, default 1.
        counts: ``float[num_domains]``, texts (tokens when tagging) of each language to divide by, see
            :func:`sum_of_domain_means`.
        ignore_index: the label that is left out.

    Returns:
        A scalar.

    Raises:
        ValueError: when shapes do not agree.
    """
    if log_probs.shape[:-1] != labels.shape or domains.shape != labels.shape[:1]:
        raise ValueError(
            "classification_nll: expected log_probs [n, ..., classes], labels [n, ...] and domains [n], got "
            f"{list(log_probs.shape)}, {list(labels.shape)} and {list(domains.shape)}"
        )
    ignored = labels == ignore_index
    picked = log_probs.gather(-1, labels.masked_fill(ignored, 0).unsqueeze(-1)).squeeze(-1)
    while domains.dim() < labels.dim():
        domains = domains.unsqueeze(-1)
    item_domains = domains.expand_as(labels).masked_fill(ignored, -1)
    return sum_of_domain_means(
        -picked.reshape(-1), item_domains.reshape(-1), num_domains, weights=weights, counts=counts
    )
