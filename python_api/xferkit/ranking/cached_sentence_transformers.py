"""The cached ranking loss of sentence-transformers on the fused op: its chunked encoding, without its matrix of scores.

Unlike the plain loss beside it this one is a subclass of the package's own, so importing it needs the package.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xferkit.ranking.sentence_transformers import FusedMultipleNegativesRankingLoss

try:
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss
    from sentence_transformers.util import cos_sim
except ImportError as error:
    raise ImportError(
        "FusedCachedMultipleNegativesRankingLoss needs the package sentence-transformers, which cannot be imported; "
        "run: pip install 'xfercore[sentence-transformers]'"
    ) from error

__all__ = ["FusedCachedMultipleNegativesRankingLoss"]


class FusedCachedMultipleNegativesRankingLoss(CachedMultipleNegativesRankingLoss):
    r"""``CachedMultipleNegativesRankingLoss`` of sentence-transformers (GradCache, Gao et al. 2021), in place of it.

    .. math:: \ell = \frac1B \sum_i \Bigl( \log \sum_j e^{s \cdot \mathrm{sim}(q_i, d_j)}
        - s \cdot \mathrm{sim}(q_i, d_i) \Bigr)

    Encoding in mini-batches, random numbers, DDP and the backward hook are the package's own; the loss of all
    embeddings is one call of the op, in blocks of ``workspace_bytes``, instead of a loop over ``mini_batch_size`` rows.

    Args:
        model: a ``SentenceTransformer``.
        scale: factor of the similarities.
        similarity_fct: ``sentence_transformers.util.cos_sim`` or ``dot_score``.
        mini_batch_size: texts that are encoded at a time.
        mini_batch_num_tokens: tokens instead of texts at a time, where the installed package (6.0 on) has it.
        gather_across_devices: rank the documents of all processes.
        directions: as in :class:`~xferkit.ranking.sentence_transformers.FusedMultipleNegativesRankingLoss`.
        partition_mode: as there.
        show_progress_bar: while encoding.
        hardness_mode: None; weights by hardness are not fused.
        hardness_strength: means nothing without a mode.
        workspace_bytes: memory for blocks of scores; None: the op's default.

    Raises:
        ImportError: from the module, when sentence-transformers is not installed.
        ValueError: for an argument that the fused loss does not cover, or that the package refuses.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Callable[..., Tensor] = cos_sim,
        mini_batch_size: int = 32,
        mini_batch_num_tokens: int | None = None,
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        show_progress_bar: bool = False,
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        *,
        workspace_bytes: int | None = None,
    ) -> None:
        # The package before 6.0 has no such argument, and says so itself when it is given.
        tokens: dict[str, Any] = (
            {} if mini_batch_num_tokens is None else {"mini_batch_num_tokens": mini_batch_num_tokens}
        )
        super().__init__(
            model,
            scale=scale,
            similarity_fct=similarity_fct,
            mini_batch_size=mini_batch_size,
            gather_across_devices=gather_across_devices,
            directions=directions,
            partition_mode=partition_mode,
            show_progress_bar=show_progress_bar,
            hardness_mode=hardness_mode,
            hardness_strength=hardness_strength,
            **tokens,
        )
        self.workspace_bytes = workspace_bytes
        self._fused()  # refuses now what it would refuse in the first step

    def _fused(self) -> FusedMultipleNegativesRankingLoss:
        """The loss of the settings as they stand: the package lets them be assigned later."""
        return FusedMultipleNegativesRankingLoss(
            nn.Identity(),
            scale=self.scale,
            similarity_fct=self.similarity_fct,
            gather_across_devices=self.gather_across_devices,
            directions=self.directions,
            partition_mode=self.partition_mode,
            hardness_mode=self.hardness_mode,
            hardness_strength=self.hardness_strength,
            workspace_bytes=self.workspace_bytes,
        )

    def calculate_loss(
        self, reps: list[list[Tensor]], labels: Tensor | None = None, *, with_backward: bool = False
    ) -> Tensor:
        """The loss of embeddings ``[mini_batch, dim]``, a list of them for each column.

        With ``with_backward`` the gradients of the embeddings are left in them, and the loss returns detached.
        """
        loss = self._fused().compute_loss_from_embeddings([torch.cat(parts) for parts in reps], labels)
        if with_backward:
            loss.backward()
            loss = loss.detach()
        return loss
