"""What is measured on a trained tagger: its tags, its gates, and how far its shared features tell languages apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from xferkit.data.ragged import Texts
from xferkit.data.records import Record
from xferkit.data.streams import DomainData, DomainStream
from xferkit.experiments.tagging_cell import TaggingSettings
from xferkit.experiments.tagging_settings import TaggerSettings
from xferkit.methods import ClassifierMethod
from xferkit.methods.classifier import evaluating
from xferkit.metrics.spans import as_bio, span_f1
from xferkit.models import CNNDiscriminator, SharedPrivateClassifier, TokenSequences
from xferkit.objectives import discriminator_loss

__all__ = [
    "gate_weights",
    "language_accuracy",
    "language_probe",
    "lookup_tags",
    "model_of",
    "predict_tags",
    "tag_scores",
]

Tags = Sequence[tuple[str, ...]]


def _chunks(texts: Texts, size: int = 64) -> Iterator[tuple[Tensor, TokenSequences]]:
    """All texts, those of like length together, with their numbers."""
    for index in texts.lengths.argsort(stable=True).split(size):
        yield index, texts.select(index)


def predict_tags(
    method: ClassifierMethod, texts: Texts, names: Sequence[str], source: int | None = None
) -> list[tuple[str, ...]]:
    """The likeliest tag of each token of each text.

    Args:
        method: trained.
        texts: of one language.
        names: of the tags.
        source: the language's number among the sources; None for a target.
    """
    tags: list[tuple[str, ...]] = [()] * len(texts)
    for index, batch in _chunks(texts):
        best = method.predict(batch, source).argmax(-1).tolist()
        for place, row, length in zip(index.tolist(), best, batch.lengths.tolist(), strict=True):
            tags[place] = tuple(names[number] for number in row[:length])
    return tags


def lookup_tags(train: Sequence[Record], texts: Sequence[Record], *, by_word: bool) -> list[tuple[str, ...]]:
    """Tags without training: the most frequent one of `train`, or of each word there (the former for others).

    Words are compared in lower case; of tags that come equally often the first in the alphabet counts.
    """
    counts: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for record in train:
        for word, tag in zip(record.tokens, _tags(record), strict=True):
            counts.setdefault(word.lower(), Counter())[tag] += 1
            total[tag] += 1
    best = {word: _most_frequent(found) for word, found in counts.items()} if by_word else {}
    default = _most_frequent(total)
    return [tuple(best.get(word.lower(), default) for word in record.tokens) for record in texts]


def _most_frequent(counts: Counter[str]) -> str:
    return min(counts, key=lambda tag: (-counts[tag], tag))


def _tags(record: Record) -> tuple[str, ...]:
    assert isinstance(record.labels, tuple), "a tagging reader gives a tag per token"
    return record.labels


def tag_scores(records: Sequence[Record], predicted: Tags, settings: TaggerSettings) -> dict[str, float]:
    """Token accuracy and, for spans, precision, recall and F1. A tag that the sources lack is never right."""
    gold = [_tags(record) for record in records]
    pairs = [
        (g, p) for row, guess in zip(gold, predicted, strict=True) for g, p in zip(row, guess, strict=True)
    ]
    scores = {"accuracy": sum(g == p for g, p in pairs) / len(pairs)}
    if settings.score == "span_f1":
        # Some training tags of xSID are slips (`Orecurring_datetime`), which a tagger may learn to give.
        spans = span_f1([as_bio(g) for g in gold], [as_bio(p) for p in predicted], scheme=settings.scheme)
        scores |= {"precision": spans.precision, "recall": spans.recall, "f1": spans.f1}
    return scores


def gate_weights(
    method: ClassifierMethod, texts: Texts, own: int | None = None
) -> dict[str, tuple[list[float], float]]:
    """What every gate of a MAN-MoE says of a language's texts; nothing for models without gates.

    Args:
        method: trained.
        texts: of one language.
        own: the language's number among the sources; None for a target.

    Returns:
        By gate, the mean weight of each source (over tokens, then texts), and the share of tokens whose largest
        weight is that of source `own` (0 without one).
    """
    model = model_of(method)
    sums: dict[str, Tensor] = {}
    right: Counter[str] = Counter()
    tokens = int(texts.lengths.sum())
    with evaluating(model):
        for _, batch in _chunks(texts):
            mask = batch.mask
            for gate, logits in model(batch).gate_logits.items():
                weights = torch.softmax(logits, dim=-1)
                of_text = (weights * mask.unsqueeze(-1)).sum(1) / batch.lengths.unsqueeze(-1)
                sums[gate] = sums.get(gate, torch.zeros(weights.shape[-1])) + of_text.sum(0)
                right[gate] += 0 if own is None else int(((logits.argmax(-1) == own) & mask).sum())
    return {gate: ((total / len(texts)).tolist(), right[gate] / tokens) for gate, total in sums.items()}


def model_of(method: ClassifierMethod) -> SharedPrivateClassifier:
    """The classifier of a method that is a single one.

    Raises:
        ValueError: it is built otherwise.
    """
    model = getattr(method, "model", None)
    if not isinstance(model, SharedPrivateClassifier):
        raise ValueError(
            f"{type(method).__name__} has no shared features to look at; expected a SharedPrivateClassifier"
        )
    return model


def language_accuracy(
    method: ClassifierMethod, classify: Callable[[Tensor, Tensor | None], Tensor], texts: Sequence[Texts]
) -> float:
    """Share of texts whose language `classify` finds from the shared features, mean over languages.

    Args:
        method: trained.
        classify: logits from features and their mask, in evaluation mode.
        texts: of each language, in the order of the logits.
    """
    model = model_of(method)
    shares = []
    with evaluating(model):
        for number, of in enumerate(texts):
            right = 0
            for _, batch in _chunks(of):
                logits = classify(*model.discriminator_inputs(batch))
                right += int((logits.argmax(-1) == number).sum())
            shares.append(right / len(of))
    return sum(shares) / len(shares)


def language_probe(
    method: ClassifierMethod,
    train: Sequence[DomainData],
    test: Sequence[Texts],
    settings: TaggingSettings,
    seed: int,
) -> float:
    """Accuracy on `test` of a fresh classifier of languages, trained on the frozen shared features of `train`.

    What an adversary that is still in training says depends on how good it is; this one has no opponent.

    Args:
        method: trained.
        train: texts of the sources, then of the target.
        test: other texts of the same languages, in this order.
        settings: its number of steps, and the batch size and learning rate of the methods.
        seed: of its batches; its parameters come from the global generator.
    """
    model = model_of(method)
    probe = CNNDiscriminator(
        model.shared.out_dim,
        len(train),
        hidden_dim=settings.method.discriminator_hidden,
        dropout=settings.method.dropout,
        ops=settings.ops,
    )
    optimizer = torch.optim.Adam(probe.parameters(), lr=settings.learning_rate)
    stream = DomainStream(train, settings.batch_size, seed=seed, name="probe")
    for _ in range(settings.probe_steps):
        batch = stream.next()
        with evaluating(model):
            features, mask = model.discriminator_inputs(batch.inputs)
        optimizer.zero_grad(set_to_none=True)
        discriminator_loss(probe(features, mask), batch.domains).backward()
        optimizer.step()
    probe.eval()
    return language_accuracy(method, probe, test)
