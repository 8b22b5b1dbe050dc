"""Which texts come next: endless shuffled orders and shares of the domains, all with a state that can be kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

__all__ = ["EndlessOrder", "SamplerKind", "Shares", "make_shares"]

SamplerKind = Literal["balanced", "temperature", "cycling"]
"""How a batch is shared out among the domains."""


class EndlessOrder:
    """A shuffled range without end, shuffled again at every pass.

    Every item comes once per pass; what is taken at once may span two passes. The order depends on the
    generator alone, not on the global one.

    Args:
        num_items: size of the range.
        generator: draws the permutations; used by nothing else.

    Raises:
        ValueError: when there is nothing to draw from.
    """

    def __init__(self, num_items: int, generator: torch.Generator) -> None:
        if num_items < 1:
            raise ValueError(f"EndlessOrder: num_items must be at least 1, got {num_items}")
        self._num_items, self._generator = num_items, generator
        self._shuffle()

    def take(self, num: int) -> Tensor:
        """The next ``num`` items, ``int64[num]``."""
        parts = []
        while num > self._num_items - self._position:
            parts.append(self._order[self._position :])
            num -= len(parts[-1])
            self._shuffle()
        parts.append(self._order[self._position : self._position + num])
        self._position += num
        return torch.cat(parts)

    def state_dict(self) -> dict[str, Any]:
        """The generator before the running pass and the place in the pass, which is all there is to it."""
        return {"generator": self._before, "position": self._position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken.

        Raises:
            ValueError: when it is no state of an order of this size.
        """
        position = state["position"]
        if not isinstance(position, int) or not 0 <= position <= self._num_items:
            raise ValueError(
                f"EndlessOrder: the position must be between 0 and {self._num_items}, got {position}"
            )
        set_generator(self._generator, state["generator"])
        self._shuffle()
        self._position = position

    def _shuffle(self) -> None:
        # The state of the generator and not the order is kept: 5 KiB whatever the number of items.
        self._before = self._generator.get_state()
        self._order = torch.randperm(self._num_items, generator=self._generator)
        self._position = 0


def set_generator(generator: torch.Generator, state: object) -> None:
    """Set a CPU generator; ValueError when ``state`` is not the state of one."""
    expected = generator.get_state()
    if (
        not isinstance(state, Tensor)
        or state.dtype != expected.dtype
        or state.device.type != "cpu"
        or state.shape != expected.shape
    ):
        raise ValueError(
            f"the state of a generator must be uint8[{len(expected)}], the form this version of torch has"
        )
    generator.set_state(state)


class Shares(Protocol):
    """How many texts of each domain the next batch has."""

    def next(self) -> list[int]:
        """Texts of each domain, in the domains' order."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next shares depend on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken; ValueError when it does not fit."""
        ...


def make_shares(
    kind: SamplerKind,
    sizes: Sequence[int],
    batch_size: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator,
) -> Shares:
    """The shares of a sampler.

    Args:
        kind: ``"balanced"``: ``batch_size`` texts of every domain in every batch. ``"temperature"``:
            ``batch_size`` texts in all, each of domain d with probability ``n_d^(1/T) / sum_e n_e^(1/T)``: T
            = 1 in proportion to the texts there are, T towards infinity the same for every domain.
            ``"cycling"``: ``batch_size`` texts of one domain, the domains in turn.
        sizes: texts of each domain, n_d.
        batch_size: as above.
        temperature: T, above 0.
        generator: draws the domains; used by nothing else.

    Raises:
        ValueError: for an unknown kind, a batch size below 1 or a temperature that is not above 0.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if kind == "balanced":
        return _Balanced(len(sizes), batch_size)
    if kind == "temperature":
        return _Temperature(sizes, batch_size, temperature, generator)
    if kind == "cycling":
        return _Cycling(len(sizes), batch_size)
    raise ValueError(f"sampler must be one of {', '.join(get_args(SamplerKind))}, got {kind!r}")


class _Balanced:
    def __init__(self, num_domains: int, batch_size: int) -> None:
        self._shares = [batch_size] * num_domains

    def next(self) -> list[int]:
        return self._shares

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class _Temperature:
    def __init__(
        self, sizes: Sequence[int], batch_size: int, temperature: float, generator: torch.Generator
    ) -> None:
        # As a softmax of log n_d / T, so that a small T overflows nothing.
        logits = torch.tensor([math.log(size) / temperature for size in sizes], dtype=torch.float64)
        self._probabilities = logits.softmax(0)
        self._batch_size, self._generator = batch_size, generator

    def next(self) -> list[int]:
        drawn = torch.multinomial(
            self._probabilities, self._batch_size, replacement=True, generator=self._generator
        )
        shares: list[int] = drawn.bincount(minlength=len(self._probabilities)).tolist()
        return shares

    def state_dict(self) -> dict[str, Any]:
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        set_generator(self._generator, state["generator"])


class _Cycling:
    def __init__(self, num_domains: int, batch_size: int) -> None:
        self._num_domains, self._batch_size, self._turn = num_domains, batch_size, 0

    def next(self) -> list[int]:
        shares = [0] * self._num_domains
        shares[self._turn] = self._batch_size
        self._turn = (self._turn + 1) % self._num_domains
        return shares

    def state_dict(self) -> dict[str, Any]:
        return {"turn": self._turn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        turn = state["turn"]
        if not isinstance(turn, int) or not 0 <= turn < self._num_domains:
            raise ValueError(f"the turn must be between 0 and {self._num_domains - 1}, got {turn}")
        self._turn = turn
