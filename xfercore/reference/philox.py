"""Philox4x32-10 in int64 tensor arithmetic: the same bits as ``csrc/common/philox.h``.

Salmon et al., SC 2011, *Parallel Random Numbers: As Easy as 1, 2, 3*.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["counter_words", "draw_seed_offset", "dropout_mask", "philox4x32"]

_MASK32 = 0xFFFFFFFF
_MUL = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def _mul_hi_lo(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    # int64 products wrap, but their 64 bits are those of the unsigned product.
    product = a * b
    return (product >> 32) & _MASK32, product & _MASK32


def philox4x32(counter: list[Tensor], key: list[Tensor]) -> list[Tensor]:
    """Ten rounds on four 32-bit counter words and two key words, all int64 tensors in [0, 2^32)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        hi0, lo0 = _mul_hi_lo(_MUL[0], c0)
        hi1, lo1 = _mul_hi_lo(_MUL[1], c2)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _WEYL[0]) & _MASK32, (k1 + _WEYL[1]) & _MASK32
    return [c0, c1, c2, c3]


def counter_words(seed_offset: Tensor, index: Tensor, stream: int = 0) -> list[Tensor]:
    """Four words an index: counter (lo(i), hi(i), lo(offset), hi(offset) ^ stream << 24), key (lo(seed), hi(seed)).

    Args:
        seed_offset: int64 ``[2]``.
        index: int64, any shape.
        stream: which use of randomness inside one call.
    """
    seed, offset = seed_offset[0], seed_offset[1]
    lo_offset, hi_offset = offset & _MASK32, (offset >> 32) & _MASK32
    counter = [
        index & _MASK32,
        index >> 32,
        lo_offset.expand_as(index),
        (hi_offset ^ (stream << 24)).expand_as(index),
    ]
    return philox4x32(counter, [seed & _MASK32, (seed >> 32) & _MASK32])


def draw_seed_offset(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """int64 ``[2]`` drawn from a generator, or from torch's own of the device."""
    if generator is None or generator.device.type == device.type:
        return torch.randint(2**62, (2,), dtype=torch.int64, device=device, generator=generator)
    return torch.randint(2**62, (2,), dtype=torch.int64, generator=generator).to(device)


def dropout_mask(seed_offset: Tensor, rows: int, units: int, stream: int, p: float) -> Tensor:
    """Keep-mask ``bool[rows, units]``: unit ``u`` of row ``r`` is dropped iff its 32 bits < p * 2^32.

    The bits are word ``u % 4`` of Philox(counter = (lo(i), hi(i), lo(offset), hi(offset) ^ stream << 24),
    key = (lo(seed), hi(seed))) with ``i = r * ceil(units / 4) + u // 4``, ``seed_offset = (seed, offset)``.
    """
    groups = (units + 3) // 4
    index = torch.arange(rows * groups, dtype=torch.int64, device=seed_offset.device)
    words = counter_words(seed_offset, index, stream)
    bits = torch.stack(words, dim=-1).reshape(rows, groups * 4)[:, :units]
    return bits >= drop_threshold(p)


def drop_threshold(p: float) -> int:
    """round(p * 2^32), the number of 32-bit words that mean "drop"."""
    return int(p * 4294967296.0 + 0.5)
