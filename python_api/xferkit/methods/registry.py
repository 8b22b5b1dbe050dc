"""Methods by name, each with the type of its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass, replace
from functools import partial
from typing import Any, get_type_hints

from xferkit.methods.classifier import ClassifierMethod, ClassifierSpec
from xferkit.methods.gate_weighted import GateWeightedConfig, GateWeightedPooling
from xferkit.methods.man_moe import MANMoE
from xferkit.methods.pooled import Pooled, PooledConfig
from xferkit.methods.presets import ABLATIONS, MANMoEConfig
from xferkit.methods.surgery import SURGERY_METHODS, PooledSurgery

__all__ = ["build_method", "method_config", "method_names", "register_method"]

Builder = Callable[[ClassifierSpec, Any], ClassifierMethod]


@dataclass(frozen=True)
class _NoSettings:
    """The settings of a method that has none."""


@dataclass(frozen=True)
class _Entry:
    builder: Builder
    config: type
    accepts: type


_METHODS: dict[str, _Entry] = {}


def register_method(
    name: str, builder: Builder, config: type = _NoSettings, *, accepts: type | None = None
) -> None:
    """Add a method.

    Args:
        name: its name; ``-`` counts as ``_``.
        builder: ``builder(spec, config)`` returns it ready to train; ``config`` is None for its defaults.
        config: dataclass of its settings, each with a default, for configuration files and command lines.
        accepts: a base class of ``config`` whose instances the builder takes as well.

    Raises:
        ValueError: when the name is taken.
    """
    key = name.replace("-", "_")
    if key in _METHODS:
        raise ValueError(f"register_method: a method named {key!r} exists already")
    _METHODS[key] = _Entry(builder, config, accepts or config)


def method_names() -> tuple[str, ...]:
    """The registered names, in the order of their registration."""
    return tuple(_METHODS)


def _entry(name: str) -> _Entry:
    key = name.replace("-", "_")
    if key not in _METHODS:
        raise ValueError(f"unknown method {name!r}, expected one of {', '.join(_METHODS)}")
    return _METHODS[key]


def method_config(name: str) -> type:
    """The dataclass of that method's settings.

    Raises:
        ValueError: for an unknown name.
    """
    return _entry(name).config


def build_method(name: str, spec: ClassifierSpec, config: object | None = None) -> ClassifierMethod:
    """The method of that name, ready to train; its state is in ``module`` and ``optimizers``.

    Built again from the same spec and config, and with the state loaded, it is the same method.

    Args:
        name: one of :func:`method_names`; ``-`` counts as ``_``.
        spec: encoder, sizes and optimiser.
        config: an instance of :func:`method_config`; for all names of the MAN-MoE family also a
            :class:`MANMoEConfig`, of which the name then decides which parts are on. None: the defaults.

    Raises:
        ValueError: for an unknown name or the settings of another method.
    """
    entry = _entry(name)
    if config is not None and not isinstance(config, entry.accepts):
        raise ValueError(
            f"build_method: method {name!r} is set by a {entry.accepts.__name__}, got a {type(config).__name__}"
        )
    return entry.builder(spec, config)


def _register_man_moe(name: str, **fixed: Any) -> None:
    """A name for MAN-MoE with some settings fixed: its own dataclass has them as defaults and refuses others."""

    def check(self: MANMoEConfig) -> None:
        MANMoEConfig.__post_init__(self)
        for key, value in fixed.items():
            if getattr(self, key) != value:
                raise ValueError(
                    f"method {name!r} has {key}={value!r} by its name, got {getattr(self, key)!r}; "
                    "method 'man_moe' lets it be chosen"
                )

    hints = get_type_hints(MANMoEConfig)
    config = make_dataclass(
        "".join(part.capitalize() for part in name.split("_")) + "Config",
        [(key, hints[key], field(default=value)) for key, value in fixed.items()],
        bases=(MANMoEConfig,),
        namespace={"__post_init__": check, "__doc__": MANMoEConfig.__doc__, "__module__": __name__},
        frozen=True,
    )

    def build(spec: ClassifierSpec, given: MANMoEConfig | None) -> ClassifierMethod:
        return MANMoE(spec, config() if given is None else replace(given, **fixed))

    register_method(name, build, config, accepts=MANMoEConfig)


# The three differ in the sources they are given, not in what they do with them.
for _name in ("pooled", "same_convention", "own"):
    register_method(_name, Pooled, PooledConfig)
_register_man_moe(
    "man", private_moe=False, predictor_moe=False, private_per_source=True, adversary=True, gate="text"
)
_register_man_moe("moe", adversary=False, gate="text")
register_method("man_moe", MANMoE, MANMoEConfig)
_register_man_moe("language_gate", adversary=False, gate="language")
register_method("gate_weighted_pooling", GateWeightedPooling, GateWeightedConfig)
for _name, _fixed in ABLATIONS.items():
    _register_man_moe(_name, **_fixed)
for _name, _config in SURGERY_METHODS.items():
    register_method(_name, partial(PooledSurgery, default=_config), _config)
