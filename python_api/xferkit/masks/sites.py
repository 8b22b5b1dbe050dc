"""Mask sites: which parameters hang on one vector of gates, and how."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor, nn

from xferkit.masks.names import nearest

__all__ = ["Granularity", "Kind", "MaskPart", "MaskSite", "check_sites", "declare_site"]

Kind = Literal["attention", "ffn", "embedding", "other"]
"""What a site belongs to."""

Granularity = Literal["head", "ffn_unit", "row", "column", "matrix", "parameter", "custom"]
"""What one gate switches; "custom" for sites that were declared by hand."""


@dataclass(frozen=True)
class MaskPart:
    """A parameter of a site: it is looked at as `view`, and a gate is shared over ``group_dims`` of that.

    Attributes:
        name: as ``named_parameters()`` has it.
        shape: its own shape.
        view: the shape it is looked at, with as many elements.
        group_dims: dimensions of `view` over which a gate is shared; the others, in order, are the gates' shape.

    Raises:
        ValueError: another number of elements, or dimensions that `view` lacks or that come twice.
    """

    name: str
    shape: tuple[int, ...]
    view: tuple[int, ...]
    group_dims: tuple[int, ...]

    def __post_init__(self) -> None:
        if math.prod(self.view) != math.prod(self.shape):
            raise ValueError(
                f"MaskPart: {self.name!r} of shape {list(self.shape)} cannot be viewed as {list(self.view)}; expected "
                f"{math.prod(self.shape)} elements"
            )
        rank = len(self.view)
        if any(not -rank <= dim < rank for dim in self.group_dims):
            raise ValueError(
                f"MaskPart: {self.name!r} has group_dims {list(self.group_dims)}; expected dimensions of the view "
                f"{list(self.view)}"
            )
        dims = tuple(sorted(dim % rank for dim in self.group_dims))
        if len(set(dims)) != len(dims):
            raise ValueError(
                f"MaskPart: {self.name!r} has group_dims {list(self.group_dims)}; expected each once"
            )
        object.__setattr__(self, "group_dims", dims)

    @property
    def gate_shape(self) -> tuple[int, ...]:
        """The sizes of the view's other dimensions."""
        return tuple(size for dim, size in enumerate(self.view) if dim not in self.group_dims)

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class MaskSite:
    """A vector of gates, and the parameters that hang on it: gate i switches its group in every part alike.

    Attributes:
        name: such as ``"layers.0.attention/heads"``.
        layer: number of the layer, None outside of layers.
        kind: what it belongs to.
        parts: at least one, all of the same gates' shape.
        granularity: what one gate switches.

    Raises:
        ValueError: no name, no part, one parameter twice, parts of different gates, an unknown kind or granularity.
    """

    name: str
    layer: int | None
    kind: Kind
    parts: tuple[MaskPart, ...]
    granularity: Granularity = "custom"

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"MaskSite: expected a name, got {self.name!r}")
        for what, value, known in (
            ("kind", self.kind, get_args(Kind)),
            ("granularity", self.granularity, get_args(Granularity)),
        ):
            if value not in known:
                raise ValueError(
                    f"MaskSite {self.name!r}: {what} must be one of {', '.join(known)}, got {value!r}"
                )
        if not self.parts:
            raise ValueError(f"MaskSite {self.name!r}: expected at least one part, got none")
        first = self.parts[0]
        names = [part.name for part in self.parts]
        for part in self.parts:
            if part.gate_shape != first.gate_shape:
                raise ValueError(
                    f"MaskSite {self.name!r}: {part.name!r} has gates of shape {list(part.gate_shape)}; expected "
                    f"{list(first.gate_shape)} as {first.name!r} has"
                )
            if names.count(part.name) > 1:
                raise ValueError(f"MaskSite {self.name!r}: {part.name!r} comes twice; expected it once")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the gates."""
        return self.parts[0].gate_shape

    @property
    def num_gates(self) -> int:
        """Number of gates."""
        return math.prod(self.shape)

    @property
    def num_parameters(self) -> int:
        """Number of parameters that they switch."""
        return sum(part.numel for part in self.parts)

    @property
    def parameters_per_gate(self) -> int:
        """Number of parameters that one gate switches."""
        return self.num_parameters // max(self.num_gates, 1)


def declare_site(
    module: nn.Module,
    name: str,
    parts: Iterable[tuple[str, Sequence[int] | None, Sequence[int]]],
    *,
    layer: int | None = None,
    kind: Kind = "other",
) -> MaskSite:
    """A site of one's own, for any module::

        declare_site(model, "experts", [("w1", None, (1, 2)), ("b1", None, (1,))])

    Args:
        module: whose parameters these are.
        name: of the site.
        parts: parameters' names, the shapes to look at them (None: their own), and the dimensions of these over
            which a gate is shared. What is left of each shape must be the same in all parts.
        layer, kind: see :class:`MaskSite`.

    Raises:
        ValueError: a parameter that the module lacks, with the nearest names, or as :class:`MaskSite`.
    """
    known = dict(module.named_parameters(remove_duplicate=False))
    built = []
    for parameter, view, dims in parts:
        if parameter not in known:
            raise ValueError(
                f"declare_site: {name!r} names the parameter {parameter!r}, which the module lacks"
                f"{nearest(parameter, known)}"
            )
        shape = tuple(known[parameter].shape)
        built.append(MaskPart(parameter, shape, shape if view is None else tuple(view), tuple(dims)))
    return MaskSite(name, layer, kind, tuple(built))


def check_sites(owner: str, sites: Sequence[MaskSite], parameters: Mapping[str, Tensor] | None) -> None:
    """Refuse sites that cannot be masked together.

    Args:
        owner: whose errors these are.
        sites: all of them.
        parameters: the module's, tied ones under each of their names; None where there is no module yet.

    Raises:
        ValueError: no site, one name or one parameter in two, or a parameter that is missing, of another shape or of
            whole numbers.
    """
    if not sites:
        raise ValueError(f"{owner}: expected at least one site, got none")
    names = [site.name for site in sites]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{owner}: two sites are named {name!r}; expected different names")
    holders: dict[object, str] = {}
    for site in sites:
        for part in site.parts:
            key: object = part.name
            if parameters is not None:
                tensor = parameters.get(part.name)
                if tensor is None:
                    raise ValueError(
                        f"{owner}: site {site.name!r} names the parameter {part.name!r}, which the module lacks"
                        f"{nearest(part.name, parameters)}"
                    )
                if tuple(tensor.shape) != part.shape:
                    raise ValueError(
                        f"{owner}: {part.name!r} of site {site.name!r} has shape {list(tensor.shape)}; expected "
                        f"{list(part.shape)}"
                    )
                if not tensor.is_floating_point():
                    raise ValueError(
                        f"{owner}: {part.name!r} of site {site.name!r} is {tensor.dtype}; expected floating point"
                    )
                key = id(tensor)
            if key in holders:
                where = (
                    f"twice in site {site.name!r}"
                    if holders[key] == site.name
                    else (f"in the sites {holders[key]!r} and {site.name!r}")
                )
                raise ValueError(f"{owner}: the parameter {part.name!r} is {where}; expected it in one part")
            holders[key] = site.name
