"""Classification methods by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from xferkit.methods.classifier import ClassifierMethod, ClassifierSpec
from xferkit.methods.gate_weighted import GateWeightedPooling
from xferkit.methods.man_moe import MANMoE
from xferkit.methods.pooled import Pooled
from xferkit.methods.presets import MANMoEConfig

__all__ = ["build_method", "method_names", "register_method"]

Builder = Callable[[ClassifierSpec, MANMoEConfig], ClassifierMethod]

_BUILDERS: dict[str, Builder] = {}


def register_method(name: str, builder: Builder) -> None:
    """Add a method: ``builder(spec, config)`` returns it ready to train.

    Raises:
        ValueError: when the name is taken.
    """
    if name in _BUILDERS:
        raise ValueError(f"register_method: a method named {name!r} exists already")
    _BUILDERS[name] = builder


def method_names() -> tuple[str, ...]:
    """The registered names, in the order of their registration."""
    return tuple(_BUILDERS)


def build_method(name: str, spec: ClassifierSpec, config: MANMoEConfig | None = None) -> ClassifierMethod:
    """The method of that name.

    Args:
        name: one of :func:`method_names`.
        spec: encoder, sizes and optimiser.
        config: settings of the MAN-MoE family; the name decides which parts of it are on.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in _BUILDERS:
        raise ValueError(f"unknown method {name!r}, expected one of {', '.join(_BUILDERS)}")
    return _BUILDERS[name](spec, config or MANMoEConfig())


def _pooled(spec: ClassifierSpec, config: MANMoEConfig) -> ClassifierMethod:
    return Pooled(spec)


# The three differ in the sources they are given, not in what they do with them.
for _name in ("pooled", "same_convention", "own"):
    register_method(_name, _pooled)
register_method(
    "man",
    lambda spec, config: MANMoE(
        spec,
        replace(config, private_moe=False, predictor_moe=False, private_per_source=True, gate="text"),
    ),
)
register_method("moe", lambda spec, config: MANMoE(spec, replace(config, adversary=False, gate="text")))
register_method("man_moe", lambda spec, config: MANMoE(spec, replace(config, gate="text")))
register_method(
    "language_gate", lambda spec, config: MANMoE(spec, replace(config, adversary=False, gate="language"))
)
register_method("gate_weighted_pooling", lambda spec, config: GateWeightedPooling(spec))
