"""How a task alone is trained, and what that makes of a method's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from xferkit.data.errors import close_name
from xferkit.diagnosis.problem import RunSpec
from xferkit.methods import method_config
from xferkit.methods.surgery import GradVacConfig

__all__ = ["Recipe", "method_settings", "scaled"]

_HIDDEN = ("hidden_dim", "private_dim", "expert_hidden", "predictor_hidden", "discriminator_hidden")


@dataclass(frozen=True)
class Recipe:
    """How one task alone is trained; with other tasks as the matching says.

    Attributes:
        steps: S.
        batch_size: b, examples of a step.
        learning_rate: Adam's, of every optimiser, falling to 0 along a cosine.
        weight_decay: Adam's.
        dropout: dropout probability outside the encoders.
        sizes: settings of methods (those that a method has) in place of its own defaults.
        clip_norm: gradients are scaled down to this norm; None: as they are.
        observed: examples of a batch whose gradient is looked at.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float = 0.0
    dropout: float = 0.3
    sizes: Mapping[str, Any] = field(default_factory=dict)
    clip_norm: float | None = None
    observed: int = 256

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "observed"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0, got {self.learning_rate}")


def scaled(size: int, width: float, multiple: int = 1) -> int:
    """A hidden size times ``width``, rounded to a multiple, at least one; 0 stays 0."""
    return max(1, round(size * width / multiple)) * multiple if size else 0


def method_settings(spec: RunSpec, recipe: Recipe) -> Any:
    """The method's settings: the recipe's, then the spec's, with hidden sizes times the width; None: it has none.

    Raises:
        ValueError: an unknown method or option.
    """
    kind = method_config(spec.method)
    names = [f.name for f in fields(kind)]
    for option in spec.options:
        if option not in names or option == "batch_size":
            known = [name for name in names if name != "batch_size"]
            why = "is matched between runs" if option == "batch_size" else "does not exist"
            raise ValueError(
                f"option {option!r} of method {spec.method!r} {why}{close_name(option, known)}; expected one of "
                f"{', '.join(known) or 'none'}"
            )
    if not names:
        return None
    base: dict[str, Any] = {"seed": spec.seed, **asdict(recipe), **recipe.sizes}
    if issubclass(kind, GradVacConfig):
        base["grouping"] = "layer"
    values = {name: base[name] for name in names if name in base} | dict(spec.options)
    for name in _HIDDEN:
        if name in names:
            values[name] = scaled(values.get(name, getattr(kind(), name)), spec.width)
    return kind(**values)
