"""The language discriminator's loss; who minimises and who maximises it is the method's business."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from xferkit.objectives.domains import sum_of_domain_means

__all__ = ["discriminator_accuracy", "discriminator_loss"]


def discriminator_loss(logits: Tensor, domains: Tensor, *, counts: Tensor | None = None) -> Tensor:
    """J_D = sum over languages of the mean of ``-log D(language | features)`` (Chen et al., ACL 2019, Eq. 1).

    Args:
        logits: ``float[num_items, num_domains]``.
        domains: ``int64[num_items]`` in ``[0, num_domains)``.
        counts: ``float[num_domains]``, texts of each language to divide by, see :func:`sum_of_domain_means`.

    Returns:
        A scalar, positive. The discriminator minimises it, the shared extractor maximises it.
    """
    losses = cross_entropy(logits, domains, reduction="none")
    return sum_of_domain_means(losses, domains, logits.shape[-1], counts=counts)


@torch.no_grad()
def discriminator_accuracy(logits: Tensor, domains: Tensor, *, counts: Tensor | None = None) -> Tensor:
    """Share of items whose language the discriminator names, a scalar in [0, 1].

    Args:
        logits: ``float[num_items, num_domains]``.
        domains: ``int64[num_items]``.
        counts: ``float[num_domains]``: the number of right answers is divided by their sum, additive over the
            shards of a batch; None divides by ``num_items``.
    """
    right = (logits.argmax(-1) == domains).to(logits.dtype)
    return right.mean() if counts is None else right.sum() / counts.sum().to(right.dtype)
