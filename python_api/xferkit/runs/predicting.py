"""Labels of texts by a trained method, in batches of like length, in the order of the texts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from xferkit.data.ragged import Texts
from xferkit.methods import ClassifierMethod

__all__ = ["Predicted", "device_of", "mean_source_weights", "predict_numbers"]

#: Tokens of a batch, padding included: what bounds its memory, whatever the lengths.
_BATCH_TOKENS = 8192


def device_of(method: ClassifierMethod) -> torch.device:
    """Where the method's parameters are."""
    return next(method.module.parameters()).device


@dataclass(frozen=True)
class Predicted:
    """Labels of texts by their numbers.

    Attributes:
        flat: ``int64[total]``, those of the first text, then of the second, ...
        lengths: ``int64[n]``, labels of each text: its words when tagging, 1 when classifying.
        probabilities: ``float[n]``, of each text's label when classifying; None when tagging.
    """

    flat: Tensor
    lengths: Tensor
    probabilities: Tensor | None

    def rows(self) -> list[list[int]]:
        """The labels of each text."""
        return [row.tolist() for row in self.flat.split(self.lengths.tolist())]


def predict_numbers(
    method: ClassifierMethod,
    texts: Texts,
    *,
    tagging: bool,
    source: int | None = None,
    batch_size: int = 64,
) -> Predicted:
    """The likeliest label of each text, or of each of its words.

    Args:
        method: trained; put into evaluation mode while it predicts.
        texts: of one language.
        tagging: a label for each word.
        source: the language's number where it is a source; None for a target.
        batch_size: texts at once at most.
    """
    device, count = device_of(method), len(texts)
    lengths = texts.lengths.cpu() if tagging else torch.ones(count, dtype=torch.int64)
    starts = lengths.cumsum(0) - lengths
    flat = torch.empty(int(lengths.sum()), dtype=torch.int64)
    probabilities = None if tagging else torch.empty(count)
    for index in _batches(texts.lengths.cpu(), batch_size):
        batch = texts.select(index)
        log_probs = method.predict(batch.to(device), source).float().cpu()
        best = log_probs.argmax(-1)
        if probabilities is not None:
            flat[index] = best
            probabilities[index] = log_probs.max(-1).values.exp()
            continue
        mask = torch.arange(best.shape[1]) < lengths[index].unsqueeze(1)
        places = (starts[index].unsqueeze(1) + torch.arange(best.shape[1]))[mask]
        flat[places] = best[mask]
    return Predicted(flat, lengths, probabilities)


def _batches(lengths: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Texts of like length together: at most `batch_size`, and no more tokens than fit into memory."""
    order = lengths.argsort(stable=True)
    ordered = lengths[order].tolist()
    start = 0
    while start < len(ordered):
        end = min(start + batch_size, len(ordered))
        while end > start + 1 and ordered[end - 1] * (end - start) > _BATCH_TOKENS:
            end -= 1
        yield order[start:end]
        start = end


def mean_source_weights(method: ClassifierMethod, texts: Texts) -> Tensor | None:
    """How much each source counts for these target texts: ``[num_sources]`` summing to 1, or None.

    The mean over all texts of what :meth:`~xferkit.methods.ClassifierMethod.source_weights` says of batches.
    """
    device, total = device_of(method), 0.0
    mean: Tensor | None = None
    for index in _batches(texts.lengths.cpu(), 256):
        weights = method.source_weights(texts.select(index).to(device))
        if weights is None:
            return None
        part = weights.double().cpu() * len(index)
        mean = part if mean is None else mean + part
        total += len(index)
    return None if mean is None else mean / total
