"""Made-up languages for taggers' tests: the right answer is known, and so is what gives a language away.

A word is a stem and an ending. Stems are common to all languages and decide the tag in some of them and its
opposite in the others; the endings are a language's own, so that every word names its language.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from xferkit.methods import ClassifierSpec, DomainBatch
from xferkit.models import EncoderConfig, Spellings, TokenSequences, make_encoder

NUM_SOURCES, NUM_TAGS, NUM_STEMS = 3, 3, 12
NUM_WORDS = 2 + NUM_STEMS * (NUM_SOURCES + 1)
NUM_CHARS = 2 + NUM_STEMS + NUM_SOURCES + 1
ENCODER = EncoderConfig(
    feature_dim=12,
    layers=1,
    dropout=0.0,
    word_dim=8,
    char_dim=6,
    char_flag_dim=2,
    char_channels=8,
    char_widths=(1, 2),
    char_out=6,
)


def sentences(
    rng: np.random.Generator, languages: np.ndarray, longest: int = 7
) -> tuple[TokenSequences, torch.Tensor]:
    """A sentence of each language, with tags ``int64[n, length]``, -1 on padding."""
    lengths = torch.from_numpy(rng.integers(1, longest + 1, len(languages)))
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(1)
    stems = torch.from_numpy(rng.integers(0, NUM_STEMS, mask.shape))
    language = torch.from_numpy(languages).unsqueeze(1)
    ids = (2 + stems + NUM_STEMS * language) * mask
    tags = torch.where(language % 2 == 0, stems % NUM_TAGS, (stems + 1) % NUM_TAGS).masked_fill(~mask, -1)
    words, place = torch.unique(ids[mask], return_inverse=True)
    index = torch.zeros_like(ids).masked_scatter_(mask, place)
    stem, owner = (words - 2) % NUM_STEMS, (words - 2) // NUM_STEMS
    chars = torch.stack([2 + stem, 2 + NUM_STEMS + owner], dim=1)
    spelled = TokenSequences(chars, torch.full((len(words),), 2), chars % 2)
    return TokenSequences(ids, lengths, None, Spellings(spelled, index)), tags


class ToyStreams:
    """Fresh batches by stream name; the languages' sizes differ on purpose, the last one is the target."""

    def __init__(self, seed: int = 0, *, tagging: bool = True, fixed: bool = False) -> None:
        self.seed, self.tagging, self.fixed, self.drawn = seed, tagging, fixed, 0

    def __call__(self, name: str) -> DomainBatch:
        self.drawn += not self.fixed
        rng = np.random.default_rng([self.seed, self.drawn, name == "labelled"])
        sizes = [5, 2, 6] if name == "labelled" else [5, 2, 6, 4]
        domains = np.arange(len(sizes)).repeat(sizes)
        inputs, tags = sentences(rng, domains)
        labels = None
        if name == "labelled":
            labels = tags if self.tagging else tags[:, 0]
        return DomainBatch(inputs, torch.from_numpy(domains), labels)


def target_texts(number: int = 20) -> TokenSequences:
    return sentences(np.random.default_rng(99), np.full(number, NUM_SOURCES))[0]


def toy_spec(encoder: EncoderConfig = ENCODER, *, ops: str = "fused", **changes) -> ClassifierSpec:
    spec = ClassifierSpec(
        make_encoder=lambda: make_encoder(encoder, NUM_WORDS, NUM_CHARS, ops=ops),
        num_classes=NUM_TAGS,
        num_sources=NUM_SOURCES,
        target_inputs=target_texts(),
        dropout=0.0,
        learning_rate=1e-2,
        ops=ops,
        tagging=True,
    )
    return replace(spec, **changes)


def widened(batch: DomainBatch, by: int = 3) -> DomainBatch:
    """The same batch with more padding, also in its words."""
    inputs, labels = batch.inputs, batch.labels
    pad = torch.nn.functional.pad
    chars = inputs.spellings.chars
    wide_chars = TokenSequences(pad(chars.ids, (0, by)), chars.lengths, pad(chars.flags, (0, by)))
    wide = TokenSequences(
        pad(inputs.ids, (0, by)),
        inputs.lengths,
        None,
        Spellings(wide_chars, pad(inputs.spellings.index, (0, by))),
    )
    if labels is not None and labels.dim() == 2:
        labels = pad(labels, (0, by), value=-1)
    return replace(batch, inputs=wide, labels=labels)


def rows_of(batch: DomainBatch, rows: torch.Tensor) -> DomainBatch:
    """Some texts of a batch, in the order of ``rows``."""
    inputs, labels = batch.inputs.select(rows), None
    if batch.labels is not None:
        labels = batch.labels[rows]
        if labels.dim() == 2:
            labels = labels[:, : inputs.ids.shape[1]]
    return replace(batch, inputs=inputs, domains=batch.domains[rows], labels=labels)
