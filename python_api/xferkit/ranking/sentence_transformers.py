"""The ranking loss of sentence-transformers on the fused op, for its trainer and with its arguments.

Training imports nothing of sentence-transformers here: its models are called as any module is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import xfercore

__all__ = ["FusedMultipleNegativesRankingLoss"]


def _name(function: Callable[..., Tensor]) -> str:
    return getattr(function, "__name__", type(function).__name__)


_PLAIN, _SYMMETRIC = {"query_to_doc"}, {"query_to_doc", "doc_to_query"}


class FusedMultipleNegativesRankingLoss(nn.Module):
    r"""``MultipleNegativesRankingLoss`` of sentence-transformers, in place of it, without its matrix of scores.

    .. math:: \ell = \frac1B \sum_i \Bigl( \log \sum_j e^{s \cdot \mathrm{sim}(q_i, d_j)}
        - s \cdot \mathrm{sim}(q_i, d_i) \Bigr)

    where j runs over the positives and all hard negatives of the batch (van den Oord et al. 2018). Value and gradient
    are those of the original: in float64 to 1e-12, and in float32 to 1e-5 of what the original gives in float64 (in
    float32 it loses more itself on confident rows).

    Args:
        model: a ``SentenceTransformer``, or any module that maps features to ``{"sentence_embedding": [n, dim]}``.
        scale: factor of the similarities.
        similarity_fct: ``sentence_transformers.util.cos_sim`` or ``dot_score``, or their names.
        gather_across_devices: rank the documents of all processes. Unlike in the original, batches may differ in size.
        directions: ``("query_to_doc",)``, or with ``"doc_to_query"`` beside it both directions.
        partition_mode: with both directions ``"per_direction"``, a softmax for each, averaged.
        hardness_mode: None; weights by hardness are not fused.
        hardness_strength: means nothing without a mode.
        workspace_bytes: memory for blocks of scores; None: the op's default.

    Raises:
        ValueError: for an argument that the fused loss does not cover, or a scale that is not above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        scale: float = 20.0,
        similarity_fct: Callable[..., Tensor] | str = "cos_sim",
        gather_across_devices: bool = False,
        directions: Sequence[str] = ("query_to_doc",),
        partition_mode: str = "joint",
        hardness_mode: str | None = None,
        hardness_strength: float = 0.0,
        *,
        workspace_bytes: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not scale > 0:
            raise ValueError(f"{name}: scale must be above 0, got {scale}")
        similarity = similarity_fct if isinstance(similarity_fct, str) else _name(similarity_fct)
        if similarity not in ("cos_sim", "dot_score"):
            raise ValueError(f"{name}: similarity_fct must be cos_sim or dot_score, got {similarity}")
        asked = set(directions)
        if asked != _PLAIN and not (asked == _SYMMETRIC and partition_mode == "per_direction"):
            raise ValueError(
                f"{name}: directions {tuple(directions)} with partition_mode {partition_mode!r} are not fused, "
                "expected ('query_to_doc',), or ('query_to_doc', 'doc_to_query') with 'per_direction'; "
                "sentence_transformers.losses.MultipleNegativesRankingLoss has the others"
            )
        if hardness_mode is not None:
            raise ValueError(
                f"{name}: hardness_mode {hardness_mode!r} is not fused, expected None; "
                "sentence_transformers.losses.MultipleNegativesRankingLoss has it"
            )
        self.model, self.scale, self.similarity = model, float(scale), similarity
        self.gather_across_devices = gather_across_devices
        self.directions, self.partition_mode = tuple(directions), partition_mode
        self.hardness_strength = hardness_strength
        self.workspace_bytes = workspace_bytes

    def forward(self, sentence_features: Iterable[dict[str, Tensor]], labels: Tensor | None = None) -> Tensor:
        """The loss of a batch: features of queries, of positives, and of any number of columns of hard negatives.

        Args:
            sentence_features: one mapping for each column, as the package's collator makes them.
            labels: not read; row i of the second column is the positive of query i.
        """
        return self.compute_loss_from_embeddings(
            [self.model(features)["sentence_embedding"] for features in sentence_features], labels
        )

    def compute_loss_from_embeddings(
        self, embeddings: Sequence[Tensor], labels: Tensor | None = None
    ) -> Tensor:
        """The same from embeddings ``[n, dim]``, one tensor for each column.

        Raises:
            ValueError: for fewer than two columns.
        """
        if len(embeddings) < 2:
            raise ValueError(
                f"{type(self).__name__}: expected columns of queries and positives, got {len(embeddings)} columns"
            )
        queries, positives, *negatives = embeddings
        loss = xfercore.inbatch_softmax_loss(
            queries,
            positives,
            hard_neg=torch.stack(negatives, dim=1) if negatives else None,
            hard_neg_scope="all",
            scale=self.scale,
            normalize=self.similarity == "cos_sim",
            symmetric=len(self.directions) == 2,
            workspace_bytes=self.workspace_bytes,
            group=self._group(),
        )
        assert isinstance(loss, Tensor)  # no statistics were asked for
        return loss

    def _group(self) -> Any:
        distributed = torch.distributed
        if not (self.gather_across_devices and distributed.is_available() and distributed.is_initialized()):
            return None
        return distributed.group.WORLD if distributed.get_world_size() > 1 else None

    def get_config_dict(self) -> dict[str, Any]:
        """The settings, for model cards and checkpoints."""
        return {
            "scale": self.scale,
            "similarity_fct": self.similarity,
            "gather_across_devices": self.gather_across_devices,
            "directions": self.directions,
            "partition_mode": self.partition_mode,
            "hardness_mode": None,
            "hardness_strength": self.hardness_strength,
        }

    @property
    def temperature(self) -> float:
        """``1 / scale``."""
        return 1.0 / self.scale

    @property
    def citation(self) -> str:
        """BibTeX of the paper that the package names for these settings."""
        from sentence_transformers.losses import MultipleNegativesRankingLoss

        original = MultipleNegativesRankingLoss(
            self.model, directions=self.directions, partition_mode=self.partition_mode
        )
        return str(original.citation)
