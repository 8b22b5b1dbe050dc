"""Finds the sites of a model by the names and shapes of its parameters."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor, nn

from xferkit.masks.names import matching, nearest
from xferkit.masks.patterns import Block, find_blocks
from xferkit.masks.sites import Granularity, Kind, MaskPart, MaskSite

__all__ = ["find_sites"]

_SUFFIX = {
    "head": "heads",
    "ffn_unit": "units",
    "row": "rows",
    "column": "columns",
    "matrix": "matrix",
    "parameter": "parameters",
}
_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "nhead")
_SIZES = ("head_dim", "attention_head_size")


def find_sites(
    module: nn.Module,
    granularity: Granularity | Sequence[Granularity] = ("head", "ffn_unit"),
    *,
    include: str | Sequence[str] | None = None,
    num_heads: int | None = None,
) -> tuple[MaskSite, ...]:
    """The gates of a model, by what one gate switches.

    ============= ==============================================================================================
    "head"        an attention head: its rows of query, key and value, their biases, its columns of the output
    "ffn_unit"    a hidden unit of a feed-forward part: its rows of the first map(s), biases, its column of the last
    "row"         a row of a matrix (an output of a linear map, a word of an embedding), and its bias
    "column"      a column of a matrix (an input)
    "matrix"      a whole parameter tensor
    "parameter"   a single weight
    ============= ==============================================================================================

    All parameters of a head or a unit are multiplied by its gate: at 0 it is gone, at 1 untouched, and between, as in
    some draws, the gate acts on each of the maps it goes through.

    A parameter belongs to the first granularity that takes it, so that ``("head", "ffn_unit", "matrix")`` has whole
    matrices for what lies outside of heads and units. Heads and units are found by the names and shapes of
    xferkit's own encoder, torch's ``MultiheadAttention`` and ``TransformerEncoderLayer``, and the encoders of
    Hugging Face (BERT, RoBERTa, XLM-R, DistilBERT, XLM, ModernBERT and others); for any other module there is
    :func:`xferkit.masks.declare_site`. Tied parameters are found once.

    Args:
        module: any; it is only looked at.
        granularity: one or several.
        include: patterns (``*``, ``?``, ``[...]``) of the names of sites or of their parameters; None: all.
        num_heads: heads of every attention; None: what the attention modules or their configuration say.

    Returns:
        Sites in the order of the granularities, then of the model.

    Raises:
        ValueError: an unknown granularity, one of which nothing is found, a pattern that fits nothing, or a number of
            heads that is unknown or does not divide the attention's size.
    """
    wanted: tuple[Granularity, ...] = (
        cast("tuple[Granularity, ...]", (granularity,))
        if isinstance(granularity, str)
        else tuple(granularity)
    )
    if not wanted:
        raise ValueError("find_sites: granularity is empty; expected at least one")
    for name in wanted:
        if name not in _SUFFIX:
            raise ValueError(f"find_sites: granularity must be one of {', '.join(_SUFFIX)}, got {name!r}")
    finder = _Finder(module, num_heads)
    found: list[MaskSite] = []
    for name in wanted:
        sites = list(finder.sites(name))
        if not sites:
            raise ValueError(f"find_sites: {finder.missing(name)}")
        finder.taken.update(part.name for site in sites for part in site.parts)
        found.extend(sites)
    return _included(found, include)


def _included(sites: list[MaskSite], include: str | Sequence[str] | None) -> tuple[MaskSite, ...]:
    if include is None:
        return tuple(sites)
    patterns = (include,) if isinstance(include, str) else tuple(include)
    names = {site.name: (site.name, *(part.name for part in site.parts)) for site in sites}
    for pattern in patterns:
        if not any(matching((pattern,), known) for known in names.values()):
            hints = nearest(pattern, names)
            raise ValueError(
                f"find_sites: include pattern {pattern!r} matches no site and no parameter{hints}"
            )
    chosen = tuple(site for site in sites if matching(patterns, names[site.name]))
    if not chosen:
        raise ValueError("find_sites: include is empty; expected at least one pattern, or None for all sites")
    return chosen


class _Finder:
    """Looks at one module; ``taken`` are the parameters that have a site already."""

    def __init__(self, module: nn.Module, num_heads: int | None) -> None:
        self.module, self.num_heads = module, num_heads
        self.modules = dict(module.named_modules(remove_duplicate=False))
        self.parameters: dict[str, Tensor] = {
            name: p for name, p in module.named_parameters() if p.is_floating_point() and p.numel()
        }
        self.blocks = find_blocks(self.parameters)
        self.taken: set[str] = set()

    def sites(self, granularity: Granularity) -> Iterator[MaskSite]:
        if granularity in ("head", "ffn_unit"):
            kind = "attention" if granularity == "head" else "ffn"
            for block in self.blocks:
                if block.kind == kind:
                    yield self._block_site(granularity, block)
            return
        for name, p in self.parameters.items():
            if name in self.taken:
                continue
            shape = tuple(p.shape)
            if granularity == "parameter":
                parts = [MaskPart(name, shape, shape, ())]
            elif granularity == "matrix":
                parts = [MaskPart(name, shape, (1, *shape), tuple(range(1, len(shape) + 1)))]
            elif len(shape) < 2:
                continue
            elif granularity == "row":
                parts = [MaskPart(name, shape, shape, tuple(range(1, len(shape))))]
                bias = self._bias(name, shape[0])
                parts += [MaskPart(bias, (shape[0],), (shape[0],), ())] if bias else []
            else:
                parts = [MaskPart(name, shape, shape, (0, *range(2, len(shape))))]
            yield MaskSite(
                f"{name}/{_SUFFIX[granularity]}", _layer(name), self._kind(name), tuple(parts), granularity
            )

    def missing(self, granularity: Granularity) -> str:
        if granularity == "head":
            return "no attention with known names was found; expected one, or a site by declare_site"
        if granularity == "ffn_unit":
            return "no feed-forward part with known names was found; expected one, or a site by declare_site"
        left = "no parameter is left" if granularity in ("matrix", "parameter") else "no matrix is left"
        return f"{left} for the granularity {granularity!r}; expected one that no earlier granularity takes"

    def _block_site(self, granularity: Granularity, block: Block) -> MaskSite:
        heads = self._heads(block) if granularity == "head" else block.units
        unit = (heads,) if granularity == "ffn_unit" else (heads, block.units // heads)
        parts: list[MaskPart] = []
        for projection in block.inputs:
            for name in (projection.weight, projection.bias):
                if name not in self.parameters or name in self.taken:
                    continue
                shape = tuple(self.parameters[name].shape)
                times = shape[0] // block.units
                front = (times,) if times > 1 else ()
                view = (*front, *unit, *shape[1:])
                shared = tuple(dim for dim in range(len(view)) if dim != len(front))
                parts.append(MaskPart(name, shape, view, shared))
        name = block.output.weight
        shape = tuple(self.parameters[name].shape)
        view = (shape[0], *unit)
        parts.append(MaskPart(name, shape, view, tuple(dim for dim in range(len(view)) if dim != 1)))
        where = block.prefix or block.inputs[0].weight
        title = f"{block.prefix}/{_SUFFIX[granularity]}" if block.prefix else _SUFFIX[granularity]
        return MaskSite(title, _layer(where), block.kind, tuple(parts), granularity)

    def _bias(self, weight: str, rows: int) -> str | None:
        """The bias beside that weight, as torch's own modules name it."""
        path, dot, leaf = weight.rpartition(".")
        bias = path + dot + leaf.replace("weight", "bias")
        tensor = self.parameters.get(bias)
        free = (
            bias != weight
            and bias not in self.taken
            and tensor is not None
            and tuple(tensor.shape) == (rows,)
        )
        return bias if free else None

    def _kind(self, name: str) -> Kind:
        for block in self.blocks:
            if block.kind == "attention" and name.startswith(block.prefix + "." if block.prefix else ""):
                return "attention"
            if block.kind == "ffn" and any(name in (p.weight, p.bias) for p in (*block.inputs, block.output)):
                return "ffn"
        owner = self.modules.get(name.rpartition(".")[0])
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)) or "embed" in name.lower():
            return "embedding"
        return "other"

    def _heads(self, block: Block) -> int:
        heads = self.num_heads if self.num_heads is not None else self._known_heads(block)
        where = block.prefix or "the module"
        if heads is None:
            raise ValueError(
                f"find_sites: the number of heads of {where} is unknown; expected num_heads, or an attribute "
                f"{' or '.join(_COUNTS)} of the attention module"
            )
        if heads < 1 or block.units % heads:
            raise ValueError(
                f"find_sites: {heads} heads do not divide the {block.units} rows of the attention {where}"
            )
        return heads

    def _known_heads(self, block: Block) -> int | None:
        own = self.modules[block.prefix]
        near = [own, *own.children()]
        for attributes, sizes in ((_COUNTS, False), (_SIZES, True)):
            for holder in near:
                number = _number(holder, attributes)
                if number:
                    return block.units // number if sizes else number
        path = block.prefix.split(".")
        above = [self.modules[".".join(path[:depth])] for depth in range(len(path), 0, -1)] + [self.module]
        for holder in (*near, *above):
            number = _number(getattr(holder, "config", None), _COUNTS)
            if number:
                return number
        return None


def _number(holder: object, attributes: tuple[str, ...]) -> int | None:
    for attribute in attributes:
        value = getattr(holder, attribute, None)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None


def _layer(name: str) -> int | None:
    """The number behind "layers", "blocks" or the like, else the first there is."""
    found = re.search(r"(?:^|\.)\w*(?:layers?|blocks?|groups?|h)\.(\d+)(?:\.|$)", name) or re.search(
        r"(?:^|\.)(\d+)(?:\.|$)", name
    )
    return int(found[1]) if found else None
