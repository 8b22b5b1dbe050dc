"""Constants, modes and starts of Hard-Concrete gates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xferkit.masks.names import nearest
from xferkit.masks.sites import MaskSite

__all__ = ["START", "Count", "GateSettings", "Mode", "Sparsity", "start_values"]

#: Log alpha of gates that are 1 in evaluation and open in 98 of 100 draws.
START = 2.5

Mode = Literal["sample", "eval", "off"]
"""Gates drawn at random, the gates of evaluation, or none."""

Count = Literal["parameters", "gates"]
"""What is counted."""


@dataclass(frozen=True)
class GateSettings:
    """The constants of Hard-Concrete gates, by default those of Louizos et al.

    Attributes:
        beta: temperature, positive.
        gamma: lower end of the stretched interval, below 0.
        zeta: upper end, above 1.

    Raises:
        ValueError: a constant out of its range.
    """

    beta: float = 2 / 3
    gamma: float = -0.1
    zeta: float = 1.1

    def __post_init__(self) -> None:
        for name, fits, wanted in (
            ("beta", 0 < self.beta < math.inf, "positive"),
            ("gamma", -math.inf < self.gamma < 0, "below 0"),
            ("zeta", 1 < self.zeta < math.inf, "above 1"),
        ):
            if not fits:
                raise ValueError(f"GateSettings: {name} must be {wanted}, got {getattr(self, name)}")


@dataclass(frozen=True)
class Sparsity:
    """Fractions in [0, 1] that the gates take away.

    Attributes:
        expected_parameters, expected_gates: expected over draws, of the masked parameters and of the gates.
        eval_parameters, eval_gates: whose gate of evaluation is 0.
    """

    expected_parameters: float
    expected_gates: float
    eval_parameters: float
    eval_gates: float


def start_values(
    sites: tuple[MaskSite, ...], init: float | Mapping[str, Tensor | float]
) -> dict[str, Tensor]:
    """Log alphas at the start by the names of sites, float32 on the CPU, each with memory of its own.

    Raises:
        ValueError: an unknown site, a start of another shape, or one that is not finite.
    """
    given = init if isinstance(init, Mapping) else {site.name: init for site in sites}
    names = [site.name for site in sites]
    for name in given:
        if name not in names:
            raise ValueError(f"HardConcreteMasks: init names the unknown site {name!r}{nearest(name, names)}")
    starts = {}
    for site in sites:
        value = torch.as_tensor(given.get(site.name, START), dtype=torch.float32).detach()
        if value.dim() and tuple(value.shape) != site.shape:
            raise ValueError(
                f"HardConcreteMasks: init of site {site.name!r} has shape {list(value.shape)}; expected "
                f"{list(site.shape)}"
            )
        if not bool(value.isfinite().all()):
            raise ValueError(f"HardConcreteMasks: init of site {site.name!r} is not finite; expected numbers")
        starts[site.name] = value.expand(site.shape).clone()
    return starts
