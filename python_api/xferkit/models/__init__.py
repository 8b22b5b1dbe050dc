"""Modules: encoders, discriminators, mixtures of experts. They know no data set and no loss."""

from xferkit.models.attention import DotProductAttention
from xferkit.models.bilstm import BiLSTM, BiLSTMEncoder
from xferkit.models.char_cnn import CharCNNEncoder
from xferkit.models.characters import CharVocabulary
from xferkit.models.discriminators import CNNDiscriminator, MLPDiscriminator
from xferkit.models.dropout import FastDropout
from xferkit.models.dual_encoder import DualEncoder, Side, make_dual_encoder
from xferkit.models.embedder import BiLSTMBody, EmbeddedTokens, WordEmbedder, WordEncoder
from xferkit.models.encoders import EncoderConfig, EncoderKind, make_encoder, take_apart
from xferkit.models.hashed_text import (
    HashedEncoderConfig,
    HashedTextEncoder,
    HashedTexts,
    HashedWordEmbedder,
    HashedWords,
)
from xferkit.models.inputs import Spellings, TokenSequences
from xferkit.models.layout import TokenLayout
from xferkit.models.masked_lm import MaskedLanguageModel, MaskedLmOutput
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
from xferkit.models.transformer import TransformerConfig, TransformerEncoder

__all__ = [
    "Bags",
    "BiLSTM",
    "BiLSTMBody",
    "BiLSTMEncoder",
    "CNNDiscriminator",
    "CharCNNEncoder",
    "CharVocabulary",
    "ClassifierOutput",
    "DotProductAttention",
    "DualEncoder",
    "EmbeddedTokens",
    "Encoder",
    "EncoderConfig",
    "EncoderKind",
    "FastDropout",
    "HashedEncoderConfig",
    "HashedTextEncoder",
    "HashedTexts",
    "HashedWordEmbedder",
    "HashedWords",
    "MLPDiscriminator",
    "MLPPredictor",
    "MaskedLanguageModel",
    "MaskedLmOutput",
    "MixtureOfExperts",
    "MixtureOutput",
    "OpsName",
    "PrivateExperts",
    "PrivatePerDomain",
    "SharedPrivateClassifier",
    "Side",
    "Spellings",
    "TokenLayout",
    "TokenSequences",
    "TransformerConfig",
    "TransformerEncoder",
    "WordEmbedder",
    "WordEncoder",
    "make_dual_encoder",
    "make_encoder",
    "resolve_ops",
    "segment_max",
    "take_apart",
]
