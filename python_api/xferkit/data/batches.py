"""What streams give and methods take: texts of several domains in one batch, and how their losses are averaged."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from xferkit.models.inputs import TokenSequences

__all__ = ["DomainBatch"]


@dataclass(frozen=True)
class DomainBatch:
    """Texts of several domains (languages) in one batch, or one shard of such a batch.

    A batch may be cut into shards, for data-parallel processes (replicas) and for gradient accumulation. A
    loss that divides the values of domain d by ``counts[d]`` is additive over shards: summed over the shards
    of one process and averaged over processes it is the loss of the whole batch, to rounding, however
    uneven the shards are.

    Attributes:
        inputs: n texts.
        domains: ``int64[n]``, the domain of each text: sources 0..S-1, then the target.
        labels: ``int64[n]``, or ``[n, length]`` for tagging with -1 on padding, or None when unlabelled.
        text_counts: ``float[num_domains]``, texts of each domain in the whole batch divided by the number of
            replicas; None: count in this batch.
        token_counts: the same for tokens.
    """

    inputs: TokenSequences
    domains: Tensor
    labels: Tensor | None = None
    text_counts: Tensor | None = None
    token_counts: Tensor | None = None

    @property
    def share(self) -> Tensor | float:
        """This shard's part of the batch: the weight of a term that is no mean over texts, like a penalty.

        Summed over the shards of a process and averaged over processes it is 1.
        """
        return 1.0 if self.text_counts is None else len(self.domains) / self.text_counts.sum()

    def to(self, device: torch.device | str) -> DomainBatch:
        """The same batch on ``device``; this one where it is there already."""
        if self.domains.device == torch.device(device):
            return self

        def moved(value: Tensor | None) -> Tensor | None:
            return None if value is None else value.to(device)

        return DomainBatch(
            self.inputs.to(device),
            self.domains.to(device),
            moved(self.labels),
            moved(self.text_counts),
            moved(self.token_counts),
        )
