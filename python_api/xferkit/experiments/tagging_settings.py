"""Settings that every experiment with taggers has."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from xferkit.experiments.tagging_data import TaggingFiles
from xferkit.models.encoders import EncoderConfig
from xferkit.trainers import TrainerConfig

__all__ = ["TaggerSettings"]


@dataclass(frozen=True)
class TaggerSettings:
    """What all trainings of an experiment have in common.

    Attributes:
        files: the data.
        score: ``"accuracy"`` over tokens, or ``"span_f1"``: micro F1 over typed spans.
        scheme: how spans are read from tags, ``"conlleval"`` or ``"strict"``.
        steps: training steps.
        batch_size: sentences of each language in a batch, or of all together with a sampler that shares it out.
        learning_rate: Adam's, of every optimiser.
        weight_decay: Adam's.
        dropout: dropout probability outside the encoders.
        hidden_dim: hidden units of the tagger of methods with a single one; 0: a linear layer.
        min_count: words rarer in the labelled training sentences count as unknown and are read by their characters
            alone.
        lowercase: drop the case of words in the word embeddings; characters keep it.
        min_char_count: characters rarer there count as unknown.
        max_chars: characters of a word that are read.
        ops: ``"fused"`` or ``"reference"``.
        encoder: the encoders of every method.
        trainer: settings of the trainer.
    """

    files: TaggingFiles = field(default_factory=TaggingFiles)
    score: Literal["accuracy", "span_f1"] = "accuracy"
    scheme: Literal["conlleval", "strict"] = "conlleval"
    steps: int = 400
    batch_size: int = 8
    learning_rate: float = 3e-3
    weight_decay: float = 1e-8
    dropout: float = 0.3
    hidden_dim: int = 64
    min_count: int = 2
    lowercase: bool = True
    min_char_count: int = 5
    max_chars: int = 20
    ops: Literal["fused", "reference"] = "fused"
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "min_count", "min_char_count", "max_chars"):
            if getattr(self, name) < 1:
                raise ValueError(f"settings.{name} must be at least 1, got {getattr(self, name)}")

    @property
    def score_name(self) -> str:
        """Name of the score among those of :func:`~xferkit.experiments.tagging_scores.tag_scores`."""
        return "accuracy" if self.score == "accuracy" else "f1"

    @property
    def score_words(self) -> str:
        """The score with its scheme, as tables head it."""
        return "token accuracy, %" if self.score == "accuracy" else f"span F1 ({self.scheme}), %"
