"""Losses as functions of tensors, or as modules where they have parameters; nothing here knows a model."""

from xferkit.objectives.adversarial import discriminator_accuracy, discriminator_loss
from xferkit.objectives.classification import classification_nll
from xferkit.objectives.domains import sum_of_domain_means
from xferkit.objectives.gate import gate_nll
from xferkit.objectives.ranking import InBatchSoftmaxLoss

__all__ = [
    "InBatchSoftmaxLoss",
    "classification_nll",
    "discriminator_accuracy",
    "discriminator_loss",
    "gate_nll",
    "sum_of_domain_means",
]
