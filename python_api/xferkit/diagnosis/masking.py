"""Does the target need the hidden units that the sources need? Masks of one trained model, a set of tasks each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from xferkit.data.ragged import RaggedLabels
from xferkit.data.seeding import derive_seed
from xferkit.data.streams import DomainData
from xferkit.diagnosis.batches import TaskStream, equal_shares
from xferkit.diagnosis.observe import classifier_of, task_loss
from xferkit.diagnosis.problem import MaskRun
from xferkit.masks import (
    HardConcreteMasks,
    MaskSite,
    MaskTrainingConfig,
    compare_masks,
    find_sites,
    train_masks,
)
from xferkit.models import SharedPrivateClassifier

__all__ = ["MASK_STEPS", "compare_task_masks", "unit_sites"]

#: Steps of a mask.
MASK_STEPS = 200
_MOST_EXAMPLES = 1000
_TRAINING = MaskTrainingConfig(steps=MASK_STEPS, lr=0.2, target_sparsity=0.5, count="gates")


def unit_sites(model: SharedPrivateClassifier) -> tuple[MaskSite, ...]:
    """Gates of hidden units: a row of every matrix with its bias, embeddings and the last layer left out.

    A row of an embedding belongs to a word, which other tasks may not have, and one of the last layer to a class:
    masks of them would tell of words and classes, and not of what is shared.
    """
    last = [name for name, part in model.predictor.named_modules() if isinstance(part, nn.Linear)][-1:]
    outputs = {f"predictor.{name}.weight" for name in last}
    return tuple(
        site
        for site in find_sites(model, "row")
        if site.kind != "embedding" and not outputs & {part.name for part in site.parts}
    )


def compare_task_masks(
    method: Any,
    target: DomainData,
    groups: Sequence[Sequence[DomainData]],
    *,
    batch_size: int,
    seed: int,
) -> MaskRun:
    """Masks of two halves of the target and of each set of sources, and how alike they are.

    Every mask is trained on as many examples, half of the target's or fewer, for as many steps, to keep half of the
    hidden units; a set of sources gives equally many of each member, to within one. Only the loss of the labels counts.

    Args:
        method: of the pooled kind, trained; it stays as it is.
        target: examples with labels.
        groups: of each set of sources the members' examples with labels.
        batch_size: examples of a step of a mask.
        seed: of the examples and of the gates' draws.

    Raises:
        ValueError: the target has fewer than two examples, or a member of a group too few.
    """
    size = min(len(target.inputs) // 2, _MOST_EXAMPLES)
    for group in groups:
        size = min(size, len(group) * min(len(member.inputs) for member in group))
    if not size:
        raise ValueError("masks need at least two examples of the target and one of each source")
    model = classifier_of(method)
    sites = unit_sites(model)

    def trained(members: Sequence[DomainData], name: str) -> HardConcreteMasks:
        # The draws are the same for every mask: what differs is the examples.
        masks = HardConcreteMasks(model, sites, seed=derive_seed(seed, "gates") % 2**62)
        stream = TaskStream(
            members,
            min(batch_size, size),
            equal_shares(len(members)),
            seed=seed,
            name=f"masks {name}",
        )

        def loss(_: nn.Module, step: int) -> torch.Tensor:
            batch = stream.next()
            assert batch.labels is not None
            return task_loss(method, 0, batch.inputs, batch.labels)

        train_masks(model, loss, lambda step: step, masks, _TRAINING)
        return masks

    order = _order(target, seed)
    halves = [trained([_rows(target, rows)], "target") for rows in (order[:size], order[size : 2 * size])]
    across = []
    for group in groups:
        share, more = divmod(size, len(group))
        counts = [share + (number < more) for number in range(len(group))]
        members = [
            _rows(member, _order(member, seed)[:count])
            for member, count in zip(group, counts, strict=True)
            if count
        ]
        across.append(compare_masks(halves[0], trained(members, "sources")).to_json())
    return MaskRun(size, compare_masks(*halves).to_json(), across)


def _order(domain: DomainData, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(derive_seed(seed, "masks", domain.name))
    return torch.randperm(len(domain.inputs), generator=generator)


def _rows(domain: DomainData, rows: torch.Tensor) -> DomainData:
    labels = domain.labels
    assert labels is not None, "masks are trained with labels"
    chosen = (
        RaggedLabels.from_padded(labels.select(rows)) if isinstance(labels, RaggedLabels) else labels[rows]
    )
    return DomainData(domain.name, domain.inputs.select(rows), chosen)
