"""The target language's gate: measured once, kept with the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from xferkit.methods.classifier import TargetTexts, in_chunks
from xferkit.models import SharedPrivateClassifier

__all__ = ["TargetGate", "mean_bag_logits"]


class TargetGate(nn.Module):
    """Gate logits of the target language, as buffers, so that a saved model mixes as the trained one did.

    Args:
        gates: names of the gates.
        num_sources: number of experts of each.
    """

    def __init__(self, gates: Sequence[str], num_sources: int) -> None:
        super().__init__()
        self.gates = tuple(gates)
        for name in self.gates:
            self.register_buffer(name, torch.zeros(1, num_sources))
        self.register_buffer("measured", torch.tensor(False))

    @property
    def logits(self) -> dict[str, Tensor] | None:
        """``float[1, num_sources]`` by gate; None until measured."""
        if not bool(self.get_buffer("measured")):
            return None
        return {name: self.get_buffer(name) for name in self.gates}

    def keep(self, logits: Mapping[str, Tensor]) -> None:
        """Take over measured logits."""
        for name in self.gates:
            self.get_buffer(name).copy_(logits[name])
        self.get_buffer("measured").fill_(True)


@torch.no_grad()
def mean_bag_logits(
    model: SharedPrivateClassifier, texts: TargetTexts, gates: Sequence[str]
) -> dict[str, Tensor]:
    """The logits with which a gate on the language level mixes ``texts``, all one bag.

    A gate is measured with the gates before it in place, whose mixture it reads; each takes a pass over the
    texts in chunks that fit into memory.

    Args:
        model: in evaluation mode.
        texts: texts of one language.
        gates: the model's gates in their order, ``"private"`` before ``"predictor"``.

    Returns:
        ``float[1, num_sources]`` by gate.
    """
    found: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    for name in gates:
        sums, items = [], []
        for chunk in in_chunks(texts, sequences=model.shared.is_sequence, device=device):
            bags = torch.zeros(len(chunk), dtype=torch.int64, device=device)
            output = model(chunk, bags=bags, bag_logits=found)
            per_token = output.gate_logits[name].dim() == 3
            sums.append(output.bag_logits[name])
            items.append(int(chunk.lengths.sum()) if per_token else len(chunk))
        # A single chunk has a share of exactly 1.
        found[name] = torch.stack([s * (n / sum(items)) for s, n in zip(sums, items, strict=True)]).sum(0)
    return found
