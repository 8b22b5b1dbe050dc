"""Cuts closed hidden units and heads out of a module."""

from __future__ import annotations

import math

from torch import Tensor, nn

from xferkit.masks.sites import MaskPart, MaskSite

__all__ = ["shrink_site"]

# Attributes of an attention that say how many heads there are and how large one is: with both, its forward pass takes
# any number of heads. torch's MultiheadAttention has no size apart, and its output keeps the size of its input.
_HEAD_COUNTS = ("num_attention_heads", "n_heads", "num_heads")
_HEAD_SIZES = ("attention_head_size", "head_dim")
_ALL_HEADS = ("all_head_size",)


def shrink_site(module: nn.Module, site: MaskSite, kept: Tensor) -> bool:
    """Cut the closed gates of a site out of the module, in place, where its structure allows it.

    Args:
        module: its weights are zero already where gates are closed.
        site: of heads or hidden units; others are left as they are.
        kept: bool ``[num_gates]``, true for those that stay; where none does, the first one does.

    Returns:
        Whether it was cut.
    """
    if site.granularity not in ("head", "ffn_unit"):
        return False
    owners = {part.name: _owner(module, part.name) for part in site.parts}
    if not all(isinstance(owner, nn.Linear) for owner in owners.values()):
        return False
    if len(_users(module, site)) != len(site.parts):
        return False
    if site.granularity == "head":
        attention = _attention(module, site)
        if attention is None:
            return False
    index = kept.flatten().nonzero()[:, 0]
    if len(index) == site.num_gates:
        return False
    if len(index) == 0:
        index = kept.new_zeros(1, dtype=index.dtype)
    for part in site.parts:
        owner = owners[part.name]
        leaf = part.name.rpartition(".")[2]
        old = owner.get_parameter(leaf)
        setattr(owner, leaf, nn.Parameter(_cut(old.detach(), part, index), requires_grad=old.requires_grad))
    for owner in owners.values():
        weight = owner.get_parameter("weight")
        owner.out_features, owner.in_features = weight.shape  # type: ignore[assignment]
    if site.granularity == "head" and attention is not None:
        _set_heads(attention, len(index))
    return True


def _cut(value: Tensor, part: MaskPart, index: Tensor) -> Tensor:
    (dim,) = (d for d in range(len(part.view)) if d not in part.group_dims)
    left = value.reshape(part.view).index_select(dim, index)
    # The dimension of the parameter that the gates' one is a factor of.
    inside, own = math.prod(part.view[:dim]), 0
    while math.prod(part.shape[: own + 1]) <= inside:
        own += 1
    shape = list(part.shape)
    shape[own] = shape[own] // part.view[dim] * len(index)
    return left.reshape(shape)


def _owner(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def _users(module: nn.Module, site: MaskSite) -> list[str]:
    """Names of the site's parameters in the module, tied ones under each: a tied one cannot be cut."""
    own = {id(module.get_parameter(part.name)) for part in site.parts}
    return [name for name, p in module.named_parameters(remove_duplicate=False) if id(p) in own]


def _attention(module: nn.Module, site: MaskSite) -> nn.Module | None:
    """The module that splits the states into heads, if it takes any number of them."""
    first = _owner_path(site.parts[0].name)
    for path in (first.rpartition(".")[0], first):
        found = module.get_submodule(path)
        sizes = [getattr(found, name) for name in _HEAD_SIZES if isinstance(getattr(found, name, None), int)]
        counts = [name for name in _HEAD_COUNTS if isinstance(getattr(found, name, None), int)]
        if sizes and counts and getattr(found, counts[0]) == site.num_gates:
            return found
    return None


def _owner_path(name: str) -> str:
    return name.rpartition(".")[0]


def _set_heads(attention: nn.Module, heads: int) -> None:
    for name in _HEAD_COUNTS:
        if isinstance(getattr(attention, name, None), int):
            setattr(attention, name, heads)
    size = next(getattr(attention, name) for name in _HEAD_SIZES if hasattr(attention, name))
    for name in _ALL_HEADS:
        if isinstance(getattr(attention, name, None), int):
            setattr(attention, name, heads * size)
