"""Pooling whose sources are tasks: their gradients are taken apart and combined by gradient surgery."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from xferkit.methods.classifier import ClassifierSpec, counts_of, labels_of
from xferkit.methods.pooled import Pooled, PooledConfig
from xferkit.methods.protocol import DomainBatch, NextBatch, Phase, PhaseLoss, Stage
from xferkit.models import TokenSequences
from xferkit.objectives import classification_nll
from xferkit.surgery import (
    MGDA,
    FixedTarget,
    GradNorm,
    GradVac,
    GroupingName,
    Normalization,
    PCGrad,
    Sum,
    Surgery,
    SurgeryInfo,
)

__all__ = [
    "SURGERY_METHODS",
    "FixedTargetConfig",
    "GradNormConfig",
    "GradVacConfig",
    "JointSumConfig",
    "MGDAConfig",
    "PCGradConfig",
    "PooledSurgery",
    "SurgeryConfig",
]


@dataclass(frozen=True)
class SurgeryConfig(PooledConfig, ABC):
    """What the settings of all surgeries have in common: those of pooling, and which surgery they make."""

    @abstractmethod
    def make(self, shared: nn.Module, sources: Sequence[str]) -> Surgery:
        """The surgery on the parameters of ``shared``; its tasks are the sources."""


@dataclass(frozen=True)
class JointSumConfig(SurgeryConfig):
    """Settings of joint training: the plain sum of the sources' losses.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
    """

    def make(self, shared: nn.Module, sources: Sequence[str]) -> Sum:
        """The sum."""
        return Sum(shared, sources)


@dataclass(frozen=True)
class GradNormConfig(SurgeryConfig):
    """Settings of GradNorm.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
        alpha: how strongly sources that learn slowly are favoured.
        weight_learning_rate: of the sources' weights.
        grouping: names the groups that norm_of chooses from: "model", "layer" or "matrix".
        norm_of: gradients' norms are taken over "all", the "last" group or the group of that name. The paper takes the
            last shared layer; here the whole model is shared, and with grouping "model" all of it counts.
    """

    alpha: float = 1.5
    weight_learning_rate: float = 0.025
    grouping: GroupingName = "model"
    norm_of: str = "last"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.alpha >= 0 and self.weight_learning_rate >= 0):
            raise ValueError(
                f"GradNormConfig: expected alpha >= 0 and weight_learning_rate >= 0, got {self.alpha} and "
                f"{self.weight_learning_rate}"
            )

    def make(self, shared: nn.Module, sources: Sequence[str]) -> GradNorm:
        """The surgery."""
        rate = self.weight_learning_rate
        return GradNorm(
            shared,
            sources,
            grouping=self.grouping,
            alpha=self.alpha,
            learning_rate=rate,
            norm_of=self.norm_of,
        )


@dataclass(frozen=True)
class MGDAConfig(SurgeryConfig):
    """Settings of multiple-gradient descent.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
        normalization: gradients are divided by 1 ("none"), their norm ("l2"), their loss ("loss") or both ("loss+")
            before the shortest combination is sought.
        grouping: parameters that are combined alike: "model", "layer" or "matrix".
    """

    normalization: Normalization = "none"
    grouping: GroupingName = "model"

    def make(self, shared: nn.Module, sources: Sequence[str]) -> MGDA:
        """The surgery."""
        return MGDA(shared, sources, grouping=self.grouping, normalization=self.normalization)


@dataclass(frozen=True)
class _PairwiseConfig(SurgeryConfig):
    """Settings of the methods that go through pairs of sources."""

    grouping: GroupingName = "model"
    apply_to: tuple[int | str, ...] = ()
    seed: int = 0

    def chosen(self, sources: Sequence[str]) -> list[str] | None:
        """``apply_to`` as names of sources; None: all."""
        names = {str(number): name for number, name in enumerate(sources)} | {name: name for name in sources}
        return [names.get(str(one), str(one)) for one in self.apply_to] or None

    def _arguments(self, sources: Sequence[str]) -> dict[str, Any]:
        return {"grouping": self.grouping, "apply_to": self.chosen(sources), "seed": self.seed}


@dataclass(frozen=True)
class PCGradConfig(_PairwiseConfig):
    """Settings of PCGrad.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
        grouping: parameters that are treated together: "model", "layer" or "matrix".
        apply_to: sources, by name or number, whose gradients are changed; the others are only set against. Empty: all.
        seed: of the order of the pairs.
    """

    def make(self, shared: nn.Module, sources: Sequence[str]) -> PCGrad:
        """The surgery."""
        return PCGrad(shared, sources, **self._arguments(sources))


@dataclass(frozen=True)
class GradVacConfig(_PairwiseConfig):
    """Settings of Gradient Vaccine.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
        grouping: parameters that are treated together: "model", "layer" (the paper) or "matrix".
        apply_to: sources, by name or number, whose gradients are changed (the paper: low-resource languages); the
            others are only set against. Empty: all.
        seed: of the order of the pairs.
        beta: weight of the newest cosine in the moving average that is the target.
        ema: the average is of cosines of gradients as "modified" so far (the paper), or of "raw" ones.
    """

    beta: float = 1e-2
    ema: Literal["modified", "raw"] = "modified"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0.0 <= self.beta <= 1.0:
            raise ValueError(f"GradVacConfig: beta must be in [0, 1], got {self.beta}")

    def make(self, shared: nn.Module, sources: Sequence[str]) -> GradVac:
        """The surgery."""
        return GradVac(shared, sources, beta=self.beta, ema=self.ema, **self._arguments(sources))


@dataclass(frozen=True)
class FixedTargetConfig(_PairwiseConfig):
    """Settings of Gradient Vaccine with a target that stays.

    Attributes:
        hidden_dim: hidden units of the predictor; 0: a linear layer.
        dropout: dropout probability outside the encoder.
        learning_rate: Adam's learning rate, for whoever builds the :class:`ClassifierSpec`.
        weight_decay: Adam's weight decay, likewise.
        batch_size: texts per language and step, likewise.
        grouping: parameters that are treated together: "model", "layer" (the paper) or "matrix".
        apply_to: sources, by name or number, whose gradients are changed; the others are only set against. Empty: all.
        seed: of the order of the pairs.
        target: the cosine that pairs below it are lifted to; 0 is PCGrad. The paper gives no value.
    """

    target: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1.0 < self.target < 1.0:
            raise ValueError(f"FixedTargetConfig: target must be a cosine in (-1, 1), got {self.target}")

    def make(self, shared: nn.Module, sources: Sequence[str]) -> FixedTarget:
        """The surgery."""
        return FixedTarget(shared, sources, target=self.target, **self._arguments(sources))


class PooledSurgery:
    """Pooled weight sharing with a loss for each source, and gradient surgery between them and the optimiser.

    A source's loss is the mean NLL of its part of the labelled batch, computed by a forward pass of its own; the
    whole model is shared. A source that a batch has nothing of is absent from that step. What the surgery keeps is
    part of ``module``. Reported: ``task``, the mean loss of the sources; ``cosine``, the mean of the pairs' cosines
    over groups; ``active``, the share of pairs that were moved.

    Args:
        spec: encoder, sizes and optimiser; ``source_names`` name the tasks where they are given, else numbers do.
        config: the settings, which decide the surgery too; None: those of ``default``, with sizes from ``spec``.
        default: type of the settings where none are given.

    Raises:
        ValueError: settings that do not fit the model or the sources.
    """

    def __init__(
        self,
        spec: ClassifierSpec,
        config: SurgeryConfig | None = None,
        *,
        default: type[SurgeryConfig] = GradVacConfig,
    ) -> None:
        self.pooled = Pooled(spec, config)
        names = spec.source_names or tuple(str(number) for number in range(spec.num_sources))
        if len(names) != spec.num_sources:
            raise ValueError(
                f"PooledSurgery: source_names must name the {spec.num_sources} sources, got {', '.join(names)}"
            )
        self.surgery = (config or default()).make(self.pooled.model, names)
        self._module = nn.ModuleDict({"pooled": self.pooled.module, "surgery": self.surgery.state})

    @property
    def replicable(self) -> bool:
        """True of the plain sum alone: surgery is on the gradients of the whole batch."""
        return isinstance(self.surgery, Sum)

    @property
    def module(self) -> nn.Module:
        """The pooled classifier, and what the surgery keeps."""
        return self._module

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser, ``main``."""
        return self.pooled.optimizers

    def stages(self, steps: int) -> Sequence[Stage]:
        """One stage of one phase."""
        return [Stage("train", [Phase("main", self.loss, ("main",))], steps)]

    def loss(self, next_batch: NextBatch) -> PhaseLoss:
        """The sources' losses on a fresh labelled batch."""
        batch = next_batch("labelled")
        if isinstance(self.surgery, Sum):
            total = self._sum(batch)
            return PhaseLoss(total, {"task": total.detach() / len(self.surgery.tasks)})
        losses = self._losses(batch)
        values = torch.stack([loss.detach() for loss in losses.values()])

        def backward(scaler: Any) -> Mapping[str, Tensor]:
            return _seen(self.surgery.backward(losses, scaler=scaler, retain_graph=False))

        return PhaseLoss(torch.stack(list(losses.values())).sum(), {"task": values.mean()}, backward)

    def _sum(self, batch: DomainBatch) -> Tensor:
        log_probs = self.pooled.model(batch.inputs).log_probs
        counts = counts_of(batch, self.pooled.tagging)
        return classification_nll(
            log_probs, labels_of(batch), batch.domains, len(self.surgery.tasks), counts=counts
        )

    def _losses(self, batch: DomainBatch) -> dict[str, Tensor]:
        tasks, labels = self.surgery.tasks, labels_of(batch)
        texts = torch.bincount(batch.domains, minlength=len(tasks)).tolist()
        parts = torch.argsort(batch.domains, stable=True).split(texts)
        losses: dict[str, Tensor] = {}
        for name, rows in zip(tasks, parts, strict=False):
            if not len(rows):
                continue
            inputs = batch.inputs.select(rows)
            own = labels[rows][:, : inputs.ids.shape[1]] if labels.dim() == 2 else labels[rows]
            log_probs = self.pooled.model(inputs).log_probs
            losses[name] = classification_nll(log_probs, own, torch.zeros_like(rows), 1)
        return losses

    def predict(self, inputs: TokenSequences, source: int | None = None) -> Tensor:
        """Log-probabilities in evaluation mode; the same for every language."""
        return self.pooled.predict(inputs)

    def source_weights(self, inputs: TokenSequences) -> Tensor | None:
        """GradNorm's weights of the sources, summing to 1; None: the other methods do not choose."""
        if isinstance(self.surgery, GradNorm):
            return (self.surgery.weights / self.surgery.weights.sum()).float()
        return None


def _seen(info: SurgeryInfo) -> dict[str, Tensor]:
    pairs = info.similarity.clone()
    pairs.diagonal(dim1=1, dim2=2).fill_(torch.nan)
    seen = {"cosine": pairs.nanmean()}
    if info.moved is not None:
        seen["active"] = info.active.nanmean()
    return {name: value.nan_to_num(0.0) for name, value in seen.items()}  # a single source has no pairs


#: The methods by name, with the type of their settings.
SURGERY_METHODS: dict[str, type[SurgeryConfig]] = {
    "joint_sum": JointSumConfig,
    "gradnorm": GradNormConfig,
    "mgda": MGDAConfig,
    "pcgrad": PCGradConfig,
    "gradvac": GradVacConfig,
    "gradvac_fixed": FixedTargetConfig,
}
