"""Masked language modelling of several languages with one encoder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import AdamW, Optimizer

from xferkit.data.masked_text import (
    LanguageSampler,
    MaskedTextBatch,
    MaskedTextStream,
    Masking,
    ShareMeasure,
    TokenCorpus,
    fixed_batches,
)
from xferkit.methods.classifier import evaluating
from xferkit.methods.protocol import NextBatch, Phase, PhaseLoss, Stage
from xferkit.models.masked_lm import MaskedLanguageModel, MaskedLmOutput
from xferkit.models.transformer import TransformerConfig

__all__ = ["MASKED", "MaskedLmConfig", "MaskedLmMethod"]

#: Name of the stream that batches come from.
MASKED = "masked"


@dataclass(frozen=True)
class MaskedLmConfig:
    """Settings of masked language modelling.

    Attributes:
        learning_rate: Adam's, at the end of the warm-up. XLM has 1e-4 for models of hundreds of millions of
            parameters; 1e-3 is for ones of a few millions.
        schedule: what comes behind the warm-up, for :meth:`trainer_options`; XLM's decay with the inverse square root
            of the step is none of the trainer's, which has "linear" (to 0), "cosine" and "constant".
        warmup_steps: steps over which the rate rises from 0, likewise; XLM has 4,000 of hundreds of thousands.
        betas: Adam's; XLM's schedule comes with (0.9, 0.98).
        weight_decay: decoupled, of matrices and tables but not of biases and LayerNorms; XLM has none.
        batch_size: texts of a batch, all of one language.
        sampler: whose turn a batch is.
        temperature: T of the languages' shares. Not given in chapter 4 of Wang's thesis; 5 in its chapter 6.
        shares_by: what a language's size is in its share, "tokens" or "texts" (which of the two, the thesis leaves
            open; XLM counts sentences).
        bucket: batches of a language that are sorted by length together, see
            :class:`~xferkit.data.masked_text.MaskedTextStream`; 0: none are.
        mask_share: of the tokens that are to be named.
        mask_split: probabilities of the mask, another piece and the token itself in their place.
    """

    learning_rate: float = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "linear"
    warmup_steps: int = 200
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.0
    batch_size: int = 64
    sampler: LanguageSampler = "temperature"
    temperature: float = 5.0
    shares_by: ShareMeasure = "tokens"
    bucket: int = 32
    mask_share: float = 0.15
    mask_split: tuple[float, float, float] = (0.8, 0.1, 0.1)

    def __post_init__(self) -> None:
        if not self.learning_rate > 0 or not self.temperature > 0:
            raise ValueError(
                f"MaskedLmConfig: learning_rate and temperature must be positive, got {self.learning_rate} and "
                f"{self.temperature}"
            )
        if self.batch_size < 1 or self.bucket < 0 or self.warmup_steps < 0 or not self.weight_decay >= 0:
            raise ValueError(
                "MaskedLmConfig: expected batch_size >= 1 and bucket, warmup_steps and weight_decay >= 0, got "
                f"{self.batch_size}, {self.bucket}, {self.warmup_steps} and {self.weight_decay}"
            )
        self.masking(vocab_size=4)  # checks share and split

    def masking(self, vocab_size: int) -> Masking:
        """What is masked, for a vocabulary of ``vocab_size - 1`` numbers and the mask."""
        return Masking(vocab_size, self.mask_share, self.mask_split)

    def trainer_options(self) -> dict[str, Any]:
        """Schedule and warm-up, for :class:`~xferkit.trainers.Trainer`, to which they belong."""
        return {"schedule": self.schedule, "warmup_steps": self.warmup_steps}


class MaskedLmMethod:
    r"""Names the masked tokens of texts of one language a batch.

    .. math:: \ell = -\frac{1}{|S|} \sum_{s \in S} \log p(x_s \mid \tilde x)

    with S the selected tokens of the batch and :math:`\tilde x` its texts with others in their place. Devlin et al.,
    "BERT" (NAACL 2019), in several languages as Conneau and Lample, "Cross-lingual Language Model Pretraining" (NeurIPS
    2019), and chapter 4 of Wang's thesis on negative interference, whose d = 512 with 12 heads cannot be.

    Args:
        encoder: sizes of the encoder; its ``vocab_size`` is ``len(vocabulary) + 1``, the last number being the mask.
        config: everything else.

    Attributes:
        model: the encoder and its head.
    """

    replicable = True

    def __init__(self, encoder: TransformerConfig, config: MaskedLmConfig | None = None) -> None:
        self.encoder, self.config = encoder, config or MaskedLmConfig()
        self.masking = self.config.masking(encoder.vocab_size)
        self.model = MaskedLanguageModel(encoder)
        self._module = nn.ModuleDict({"model": self.model})
        self._optimizer = _make_adam(self.model, self.config)

    @property
    def module(self) -> nn.Module:
        """The encoder and its head, under ``model``."""
        return self._module

    @property
    def optimizers(self) -> Mapping[str, Optimizer]:
        """One optimiser, ``main``."""
        return {"main": self._optimizer}

    def stages(self, steps: int) -> Sequence[Stage]:
        """One stage of one phase."""
        return [Stage("train", [Phase("main", self.loss, ("main",))], steps)]

    def loss(self, next_batch: NextBatch) -> PhaseLoss:
        """The loss on a fresh batch of the stream ``masked``, and the share of tokens named right."""
        batch = cast(MaskedTextBatch, next_batch(MASKED))
        logits = self.output(batch).logits
        loss = _mean_nll(logits, batch)
        right = (logits.detach().argmax(1) == batch.labels).sum() / _count(batch)
        return PhaseLoss(loss, {"loss": loss.detach(), "accuracy": right})

    def loss_of(self, batch: MaskedTextBatch, *, dropout: bool | None = None) -> Tensor:
        """The loss of a batch, a scalar to differentiate, for studies of gradients.

        Args:
            batch: the whole of one, or a shard: losses and gradients of all shards sum to those of the whole.
            dropout: True or False whatever the model's mode; None: as that is.
        """
        was_training = self._module.training
        self._module.train(was_training if dropout is None else dropout)
        try:
            return _mean_nll(self.output(batch).logits, batch)
        finally:
            self._module.train(was_training)

    def output(self, batch: MaskedTextBatch, *, with_states: bool = False) -> MaskedLmOutput:
        """Logits of the selected tokens, and states of all where asked for, in the model's mode."""
        output: MaskedLmOutput = self.model(
            batch.tokens, batch.lengths, batch.positions, with_states=with_states
        )
        return output

    def stream(
        self, corpora: Sequence[TokenCorpus], *, seed: int, only: str | None = None
    ) -> MaskedTextStream:
        """Batches of these languages by the settings, for ``Trainer.fit(method, {MASKED: stream}, ...)``.

        Args:
            corpora: the languages.
            seed: of all that is drawn.
            only: the one language that batches are of.
        """
        config = self.config
        return MaskedTextStream(
            corpora,
            config.batch_size,
            self.masking,
            max_length=self.encoder.max_length,
            seed=seed,
            name=MASKED,
            sampler=config.sampler,
            temperature=config.temperature,
            by=config.shares_by,
            bucket=config.bucket,
            only=only,
        )

    def fixed_batches(
        self, corpora: Sequence[TokenCorpus], *, seed: int = 0
    ) -> dict[str, list[MaskedTextBatch]]:
        """Each language's texts once, always with the same masks, for :meth:`mean_nll`."""
        return {
            corpus.name: fixed_batches(
                corpus, self.masking, max_length=self.encoder.max_length, seed=seed, language=number
            )
            for number, corpus in enumerate(corpora)
        }

    def mean_nll(self, batches: Iterable[MaskedTextBatch]) -> float:
        """Mean negative log-likelihood (natural logarithm) of the selected tokens of all batches, without dropout."""
        device = self.model.bias.device
        total, count = 0.0, 0
        with evaluating(self._module):
            for batch in batches:
                here = batch.to(device)
                logits = self.output(here).logits
                total += float(cross_entropy(logits.float(), here.labels, reduction="sum"))
                count += len(here.labels)
        return total / count if count else float("nan")

    def dev_scores(self, dev: Mapping[str, Iterable[MaskedTextBatch]]) -> dict[str, float]:
        """``nll/<language>`` of each language, and minus their mean as ``source_dev/score``, which selects weights.

        Args:
            dev: batches of :meth:`fixed_batches`.
        """
        found = {name: self.mean_nll(batches) for name, batches in dev.items()}
        return {
            "source_dev/score": -sum(found.values()) / len(found),
            **{f"nll/{name}": value for name, value in found.items()},
        }


def _count(batch: MaskedTextBatch) -> Tensor | int:
    """What sums over selected tokens are divided by; a batch by itself may have none, and then a loss of 0."""
    return max(len(batch.labels), 1) if batch.token_count is None else batch.token_count


def _mean_nll(logits: Tensor, batch: MaskedTextBatch) -> Tensor:
    return cross_entropy(logits, batch.labels, reduction="sum") / _count(batch)


def _make_adam(module: nn.Module, config: MaskedLmConfig) -> Optimizer:
    parameters = list(module.parameters())
    if config.weight_decay == 0.0:
        groups: list[dict[str, Any]] = [{"params": parameters}]
    else:
        groups = [
            {"params": [p for p in parameters if p.dim() > 1]},
            {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
        ]
    return AdamW(
        groups, lr=config.learning_rate, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
