"""Which parameters stand together: their gradients share one Gram matrix and one set of coefficients."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Sequence
from typing import Literal, get_args

__all__ = ["Grouping", "GroupingName", "group_names"]

GroupingName = Literal["model", "layer", "matrix", "encoder_decoder"]
Grouping = GroupingName | Callable[[str], Hashable]
"""How parameters are grouped: by one of four rules on their names, or by ``callable(name)``, a group for each value."""

_RNN_LAYER = re.compile(r"_l(\d+)(_reverse)?$")


def group_names(names: Sequence[str], grouping: Grouping) -> list[str]:
    """The group of each parameter.

    ``"model"``: all together. ``"layer"``: up to the first number in the name (``encoder.layers.3`` of
    ``encoder.layers.3.attention.key.weight``), else the module that holds it, and within recurrent modules the layer
    (``rnn.l0`` of ``rnn.weight_ih_l0_reverse``). ``"matrix"``: each by itself. ``"encoder_decoder"``: ``encoder``,
    ``decoder`` and ``rest`` by the first part of the name that holds one of these words.

    Args:
        names: of the parameters, as ``named_parameters()`` gives them.
        grouping: the rule.

    Returns:
        A name for each parameter; a callable's values as text.

    Raises:
        ValueError: an unknown rule, values of a callable that differ but read the same, or ``"encoder_decoder"``
            where no name holds either word.
    """
    if callable(grouping):
        keys = [grouping(name) for name in names]
        text: dict[str, Hashable] = {}
        for key in keys:
            if text.setdefault(str(key), key) != key:
                raise ValueError(
                    f"grouping: the groups {text[str(key)]!r} and {key!r} read the same; expected values whose "
                    "texts differ, since states name groups by them"
                )
        return [str(key) for key in keys]
    if grouping == "model":
        return ["model"] * len(names)
    if grouping == "layer":
        return [_layer(name) for name in names]
    if grouping == "matrix":
        return list(names)
    if grouping == "encoder_decoder":
        sides = [_side(name) for name in names]
        if set(sides) == {"rest"}:
            raise ValueError(
                f"grouping 'encoder_decoder': no parameter's name holds 'encoder' or 'decoder' (the first is "
                f"{names[0]!r}); expected another grouping, or a callable of the name"
            )
        return sides
    raise ValueError(
        f"grouping must be one of {', '.join(map(repr, get_args(GroupingName)))} or a callable of a parameter's "
        f"name, got {grouping!r}"
    )


def _layer(name: str) -> str:
    *owner, last = name.split(".")
    for place, part in enumerate(owner):
        if part.isdecimal():
            return ".".join(owner[: place + 1])
    layer = _RNN_LAYER.search(last)
    return ".".join([*owner, f"l{layer[1]}"] if layer else owner) or last


def _side(name: str) -> str:
    for part in name.lower().split("."):
        sides = [side for side in ("encoder", "decoder") if side in part]
        if len(sides) == 1:
            return sides[0]
    return "rest"
