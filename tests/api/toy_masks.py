"""Small models of every known form for the tests of masks, and heads and units taken away by hand."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import nn

from xferkit.models.transformer import TransformerConfig, TransformerEncoder

__all__ = ["CLOSED", "OPEN", "own_encoder", "own_inputs", "torch_encoder", "without_inputs"]

#: Log alphas whose gates are 1 and 0, in evaluation and in every draw.
OPEN, CLOSED = 40.0, -40.0


def own_encoder() -> TransformerEncoder:
    torch.manual_seed(1)
    config = TransformerConfig(vocab_size=23, dim=12, layers=2, heads=3, feed_forward=10, max_length=9)
    return TransformerEncoder(config).eval()


def own_inputs() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randint(1, 23, (2, 7), generator=torch.Generator().manual_seed(3))
    return tokens, torch.tensor([7, 4])


def torch_encoder(batch_first: bool = True) -> nn.TransformerEncoder:
    torch.manual_seed(2)
    layer = nn.TransformerEncoderLayer(12, 3, 10, dropout=0.1, batch_first=batch_first)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()


@contextmanager
def without_inputs(linear: nn.Linear, columns: slice | list[int]):
    """Inside, `linear` sees zeros in those columns of its input: what feeds them is taken away."""

    def cut(_, inputs):
        changed = inputs[0].clone()
        changed[..., columns] = 0
        return (changed, *inputs[1:])

    handle = linear.register_forward_pre_hook(cut)
    try:
        yield
    finally:
        handle.remove()
