"""Modules: encoders, discriminators, mixtures of experts. They know no data set and no loss."""

from xferkit.models.attention import DotProductAttention
from xferkit.models.bilstm import BiLSTMEncoder
from xferkit.models.char_cnn import CharCNNEncoder
from xferkit.models.characters import CharVocabulary
from xferkit.models.discriminators import CNNDiscriminator, MLPDiscriminator
from xferkit.models.inputs import TokenSequences
from xferkit.models.moe import Bags, MixtureOfExperts, MixtureOutput
from xferkit.models.ops import OpsName, resolve_ops
from xferkit.models.segments import segment_max
from xferkit.models.shared_private import (
    ClassifierOutput,
    Encoder,
    MLPPredictor,
    PrivateExperts,
    PrivatePerDomain,
    SharedPrivateClassifier,
)

__all__ = [
    "Bags",
    "BiLSTMEncoder",
    "CNNDiscriminator",
    "CharCNNEncoder",
    "CharVocabulary",
    "ClassifierOutput",
    "DotProductAttention",
    "Encoder",
    "MLPDiscriminator",
    "MLPPredictor",
    "MixtureOfExperts",
    "MixtureOutput",
    "OpsName",
    "PrivateExperts",
    "PrivatePerDomain",
    "SharedPrivateClassifier",
    "TokenSequences",
    "resolve_ops",
    "segment_max",
]
