"""The dual encoder: two texts that say the same find each other among all texts of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize as unit
from torch.optim import SGD, Adam, Optimizer

from xferkit.data.pair_streams import PairBatch
from xferkit.methods.protocol import NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import HashedEncoderConfig, HashedTexts, Side, make_dual_encoder
from xferkit.objectives import InBatchSoftmaxLoss

__all__ = ["DualEncoderConfig", "DualEncoderMethod"]

#: Name of the stream that batches of pairs come from.
PAIRS = "pairs"


@dataclass(frozen=True)
class DualEncoderConfig:
    """Settings of the dual encoder.

    Attributes:
        shared: both sides go through one encoder, as in Chidambaram et al. (2019); false: each has its own.
        head: sizes of tanh layers that the second side alone goes through, 320 512 for the paper's response side;
            none: as the paper translates.
        direction: "s2t": the first text is the query and the second ones are ranked; "t2s": the second is the
            query, as the paper prints it (-log P(s_i | t_i)); "both": the mean of the two, which the measurements of
            docs/tables/dual_encoder use.
        scale: factor of the similarities (inverse temperature); the paper has 1, without normalize.
        learn_scale: learn it, from this value on.
        margin: taken off the similarity of the right text.
        normalize: compare by cosine; false: by the plain dot product, as the paper does.
        mask_duplicates: pairs that share a text on either side are no negatives for each other.
        optimizer: "adam" or "sgd" (the paper).
        learning_rate: of the optimiser; the paper has 0.008 for SGD.
        embedding_multiplier: multiplies the gradient of the embeddings, 100 in the paper. With SGD that is a
            learning rate of its own; Adam undoes any factor, so that there it does nothing.
        batch_size: pairs of texts of a step.
    """

    shared: bool = True
    head: tuple[int, ...] = ()
    direction: Literal["s2t", "t2s", "both"] = "both"
    scale: float = 10.0
    learn_scale: bool = False
    margin: float = 0.0
    normalize: bool = True
    mask_duplicates: bool = True
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = 3e-3
    embedding_multiplier: float = 1.0
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("scale", "learning_rate", "embedding_multiplier"):
            if not getattr(self, name) > 0:
                raise ValueError(f"DualEncoderConfig: {name} must be positive, got {getattr(self, name)}")
        if self.batch_size < 2:
            raise ValueError(
                f"DualEncoderConfig: batch_size must be at least 2, as the negatives are the batch's other texts, "
                f"got {self.batch_size}"
            )
        if not 0 <= self.margin < float("inf"):
            raise ValueError(f"DualEncoderConfig: margin must be 0 or more, got {self.margin}")
        if self.learn_scale and self.scale > 100:
            raise ValueError(
                f"DualEncoderConfig: scale must be at most 100 where it is learned, got {self.scale}"
            )

    def notes(self) -> tuple[str, ...]:
        """Sentences on settings that have no effect together."""
        if self.optimizer == "adam" and self.embedding_multiplier != 1.0:
            return (
                f"embedding_multiplier {self.embedding_multiplier:g} has no effect with Adam, which undoes any factor "
                "on a gradient; it counts with --options.optimizer sgd.",
            )
        return ()


class DualEncoderMethod:
    r"""Ranks each text's partner among those of the batch.

    With :math:`u_i` and :math:`v_i` the vectors of pair i, :math:`\varphi` their dot product or cosine,

    .. math:: \ell = -\frac1K \sum_i \log \frac{e^{s (\varphi(u_i, v_i) - m)}}{e^{s (\varphi(u_i, v_i) - m)}
              + \sum_{j \notin G_i} e^{s \varphi(u_i, v_j)}}

    for ``direction="s2t"`` (u and v exchanged: ``"t2s"``; the mean of both: ``"both"``), where :math:`G_i` are the
    pairs that share a text with pair i.

    Equation 1 of Chidambaram, Yang, Cer, Yuan, Sung, Strope and Kurzweil, "Learning
    Cross-Lingual Sentence Representations via a Multi-task Dual-Encoder Model" (RepL4NLP 2019), whose translation task
    this is; there s = 1, m = 0 and nothing is normalised.

    Args:
        encoder: sizes of the encoders.
        config: everything else.
    """

    replicable = False

    def __init__(self, encoder: HashedEncoderConfig, config: DualEncoderConfig | None = None) -> None:
        self.config = config = config or DualEncoderConfig()
        self.model = make_dual_encoder(encoder, shared=config.shared, head=config.head)
        self.objective = InBatchSoftmaxLoss(
            config.scale,
            learn_scale=config.learn_scale,
            margin=config.margin,
            normalize=config.normalize,
            symmetric=config.direction == "both",
        )
        self._module = nn.ModuleDict({"model": self.model, "objective": self.objective})
        self._optimizer = _make_optimizer(self._module, self.model.tables(), config)

    @property
    def module(self) -> nn.Module:
        """The encoders, and the scale where it is learned."""
        return self._module

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser, ``main``."""
        return {"main": self._optimizer}

    def stages(self, steps: int) -> Sequence[Stage]:
        """One stage of one phase."""
        return [Stage("train", [Phase("main", self.loss, ("main",))], steps)]

    def loss(self, next_batch: NextBatch) -> PhaseLoss:
        """The loss on a fresh batch of the stream ``pairs``."""
        batch = cast(PairBatch, next_batch(PAIRS))
        first, second = self.model(batch.first, batch.second)
        queries, ranked = (second, first) if self.config.direction == "t2s" else (first, second)
        found: Any = self.objective(
            queries, ranked, doc_ids=batch.groups if self.config.mask_duplicates else None, return_stats=True
        )
        right = (found.rank == 1).float().mean()
        return PhaseLoss(found.loss, {"ranking": found.loss.detach(), "accuracy": right})

    def encode(self, texts: HashedTexts, side: Side = "first", *, chunk: int = 4096) -> Tensor:
        """``float32[n, out_dim]``, vectors whose dot product is the similarity; of length 1 with ``normalize``.

        Args:
            texts: the texts.
            side: which tower and head.
            chunk: texts at once.
        """
        was_training = self._module.training
        self._module.eval()
        device = self.model.first.embedder.words.weight.device
        parts = []
        with torch.no_grad():
            for rows in torch.arange(len(texts)).split(chunk):
                part = texts if len(rows) == len(texts) else texts.select(rows)
                parts.append(self.model.encode(part.to(device), side).cpu())
        self._module.train(was_training)
        vectors = torch.cat(parts) if parts else torch.zeros(0, self.model.first.out_dim)
        return unit(vectors, dim=-1) if self.config.normalize else vectors


def _make_optimizer(
    module: nn.Module, tables: Sequence[nn.Parameter], config: DualEncoderConfig
) -> Optimizer:
    if config.optimizer == "adam":
        return Adam(module.parameters(), lr=config.learning_rate, fused=True)
    known = {id(table) for table in tables}
    others = [p for p in module.parameters() if id(p) not in known]
    groups: list[dict[str, Any]] = [
        {"params": others},
        {"params": list(tables), "lr": config.learning_rate * config.embedding_multiplier},
    ]
    return SGD(groups, lr=config.learning_rate)
