"""How alike the gradients of two languages are, and of two batches of one language, by group of parameters."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from xfercore import task_gram
from xferkit.data.masked_text import MaskedTextStream
from xferkit.methods.masked_lm import MaskedLmMethod

__all__ = ["GradientObserver", "flat_scores", "group_of", "look_of"]

_LEAST_NORM = 1e-30


def group_of(name: str) -> tuple[str, str]:
    """Layer and kind of a parameter of :class:`~xferkit.models.MaskedLanguageModel` by its name.

    The layer is "layer 1", ..., "embeddings" or "head"; the kind "attention", "feed-forward", or "" for neither.
    """
    parts = name.split(".")
    if "layers" not in parts:
        return ("embeddings" if "embeddings" in parts else "head"), ""
    place = parts.index("layers")
    kind = {"attention": "attention", "feed_forward": "feed-forward"}.get(parts[place + 2], "")
    return f"layer {int(parts[place + 1]) + 1}", kind


class GradientObserver:
    r"""Draws two batches of every language and takes the cosines of their gradients.

    .. math:: \cos(g_{li}, g_{mj}) = \frac{\langle g_{li}, g_{mj} \rangle}{\lVert g_{li} \rVert \lVert g_{mj} \rVert}

    with :math:`g_{li}` the gradient of the loss on batch i of language l, without dropout, over the parameters of a
    group. Two batches of one language (l = m, i = 1, j = 2) are the control: what noise alone leaves. Wang's thesis,
    section 4.2.1 (Figure 4.3).

    Args:
        method: whose model's gradients are taken; they are cleared behind each look.
        stream: gives batches of a language by its name; of its own, so that looking does not change the training.
        languages: names.
    """

    def __init__(self, method: MaskedLmMethod, stream: MaskedTextStream, languages: Sequence[str]) -> None:
        self._method, self._stream, self._languages = method, stream, tuple(languages)
        named = sorted(method.model.named_parameters(), key=lambda item: group_of(item[0]))
        self._parameters: list[nn.Parameter] = [parameter for _, parameter in named]
        keys = [group_of(name) for name, _ in named]
        self._parts = list(dict.fromkeys(keys))
        sizes = [
            sum(p.numel() for key, p in zip(keys, self._parameters, strict=True) if key == part)
            for part in self._parts
        ]
        self._offsets = [0, *itertools.accumulate(sizes)]
        layers = sorted({layer for layer, _ in self._parts}, key=_layer_order)
        kinds = [kind for kind in ("attention", "feed-forward") if any(k == kind for _, k in self._parts)]
        inside = [f"{layer} {kind}" for layer in layers for kind in kinds if (layer, kind) in self._parts]
        #: Groups of parameters, the whole first: then layers, kinds, and kinds within layers.
        self.groups = ("whole", *layers, *kinds, *inside)

    def look(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Cosines within each language and across each pair, a number for each of ``groups``."""
        rows = [self._gradient(language) for language in self._languages for _ in range(2)]
        self._method.module.zero_grad(set_to_none=True)
        gram = task_gram(torch.stack(rows), self._offsets)
        total = {group: sum(gram[i] for i in self._members(group)) for group in self.groups}
        cosines = {group: _cosines(matrix) for group, matrix in total.items() if isinstance(matrix, Tensor)}
        within = {
            language: [float(cosines[group][2 * i, 2 * i + 1]) for group in self.groups]
            for i, language in enumerate(self._languages)
        }
        across = {
            f"{self._languages[i]}-{self._languages[j]}": [
                float(cosines[group][2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean()) for group in self.groups
            ]
            for i, j in itertools.combinations(range(len(self._languages)), 2)
        }
        return within, across

    def _gradient(self, language: str) -> Tensor:
        self._method.module.zero_grad(set_to_none=True)
        batch = self._stream.next(language).to(self._parameters[0].device)
        self._method.loss_of(batch, dropout=False).backward()
        return torch.cat(
            [(torch.zeros_like(p) if p.grad is None else p.grad).detach().flatten() for p in self._parameters]
        )

    def _members(self, group: str) -> list[int]:
        return [
            number
            for number, (layer, kind) in enumerate(self._parts)
            if group in ("whole", layer, kind, f"{layer} {kind}")
        ]


def _layer_order(layer: str) -> tuple[int, int]:
    """Embeddings, layers by number, head."""
    if layer.startswith("layer "):
        return 1, int(layer.split()[1])
    return (0, 0) if layer == "embeddings" else (2, 0)


def _cosines(gram: Tensor) -> Tensor:
    norms = gram.diagonal().clamp(min=_LEAST_NORM).sqrt()
    return gram / torch.outer(norms, norms)


def flat_scores(
    within: Mapping[str, Sequence[float]], across: Mapping[str, Sequence[float]]
) -> dict[str, float]:
    """A look as an evaluation's scores, by which a resumed training keeps it; the means of the whole first."""
    return {
        "cosine within": sum(values[0] for values in within.values()) / len(within),
        "across": sum(values[0] for values in across.values()) / len(across),
    } | {
        f"cosine/{side}/{name}/{number}": value
        for side, found in (("within", within), ("across", across))
        for name, values in found.items()
        for number, value in enumerate(values)
    }


def look_of(scores: Mapping[str, float], side: str) -> dict[str, list[float]]:
    """What :func:`flat_scores` made flat."""
    found: dict[str, list[float]] = {}
    for key, value in scores.items():
        if key.startswith(f"cosine/{side}/"):
            found.setdefault(key.split("/")[2], []).append(value)
    return found
