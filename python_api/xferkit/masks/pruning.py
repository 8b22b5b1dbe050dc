"""A plain module whose weights are those that the gates of evaluation leave."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import nn

from xferkit.masks.gates import HardConcreteMasks
from xferkit.masks.shrinking import shrink_site

__all__ = ["prune"]

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def prune(module: Module, masks: HardConcreteMasks, *, shrink: bool = False) -> Module:
    """A copy of `module` that computes what the masked one does in evaluation, without the masks.

    Its ``state_dict`` has the keys and shapes of the module's own and loads wherever that does, and tied parameters are
    still tied.

    Args:
        module: left as it is.
        masks: of it.
        shrink: whether closed units are cut out as well, where the structure allows it: hidden units between two linear
            layers (one always stays), and heads of attentions that keep the number and the size of heads apart and take
            what is left (BERT, RoBERTa, XLM-R, DistilBERT). All others stay, as zeros. The copy is
            smaller and faster, but has shapes of its own: its configuration, and so ``from_pretrained``, do not
            know them.

    Raises:
        ValueError: masks that do not fit the module.
    """
    masked = masks.masked(module, "eval")
    pruned = copy.deepcopy(module)
    for name, value in masked.items():
        pruned.get_parameter(name).copy_(value)
    if shrink:
        for site in masks.sites:
            shrink_site(pruned, site, masks.gates(site, "eval") > 0)
    return pruned
