"""Two texts into one space: an encoder for each side, or one for both, and a head for what is retrieved."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from torch import Tensor, nn

from xferkit.models.hashed_text import HashedEncoderConfig, HashedTextEncoder, HashedTexts

__all__ = ["DualEncoder", "Side", "make_dual_encoder"]

Side = Literal["first", "second"]
"""Which text of a pair: that of the first column or that of the second."""


class DualEncoder(nn.Module):
    """``u = g(first)`` and ``v = head(h(second))``, to be compared by their dot product.

    Args:
        first: encoder of the first side.
        second: encoder of the second side; None: the first one.
        head: what the second side goes through behind its encoder; None: nothing.

    Shape:
        Two batches of n texts -> ``float32[n, out_dim]`` twice.
    """

    def __init__(
        self, first: HashedTextEncoder, second: HashedTextEncoder | None = None, head: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.first, self.second, self.head = first, second, head

    def encode(self, texts: HashedTexts, side: Side = "first") -> Tensor:
        """``float32[n, out_dim]``, the texts as one side of pairs."""
        if side == "first":
            return self.first(texts)
        vectors: Tensor = (self.first if self.second is None else self.second)(texts)
        return vectors if self.head is None else self.head(vectors)

    def tables(self) -> list[nn.Parameter]:
        """The embedding tables of all encoders."""
        return [*self.first.tables(), *(self.second.tables() if self.second is not None else ())]

    def forward(self, first: HashedTexts, second: HashedTexts) -> tuple[Tensor, Tensor]:
        """Both sides of n pairs."""
        return self.encode(first, "first"), self.encode(second, "second")


def make_dual_encoder(
    config: HashedEncoderConfig, *, shared: bool = True, head: Sequence[int] = ()
) -> DualEncoder:
    """A new dual encoder, drawn from torch's generator.

    Args:
        config: of each encoder.
        shared: one encoder for both sides.
        head: sizes of the tanh layers that the second side goes through.

    Raises:
        ValueError: the sides would differ in size.
    """
    first = HashedTextEncoder(config)
    if any(size < 1 for size in head) or (head and head[-1] != first.out_dim):
        raise ValueError(
            f"make_dual_encoder: head must be sizes that end in that of the first side, {first.out_dim}, got "
            f"{list(head)}"
        )
    second = None if shared else HashedTextEncoder(config)
    sizes = (first.out_dim, *head)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.Tanh()]
    return DualEncoder(first, second, nn.Sequential(*layers) if layers else None)
