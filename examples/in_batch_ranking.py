"""A dual encoder in one's own loop: all other documents of a large batch as negatives, activations of a small one.

Pairs are made up: a query is a noisy view of its document through another map. Run: ``python in_batch_ranking.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xferkit.metrics import mean_reciprocal_rank, precision_at
from xferkit.objectives import InBatchSoftmaxLoss
from xferkit.ranking import cached_backward, retrieval_ranks


def make_pairs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    meaning = torch.randn(count, 16, generator=rng)
    maps = torch.Generator().manual_seed(0)
    first, second = (torch.randn(16, 32, generator=maps) for _ in range(2))
    noise = torch.randn(count, 32, generator=rng)
    return torch.tanh(meaning @ first + 0.3 * noise), torch.tanh(meaning @ second)


def encoder() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 24))


def main(steps: int = 60, batch: int = 512) -> tuple[float, float]:
    """Precision at 1 on held-out pairs, before training and after."""
    torch.manual_seed(0)
    towers = nn.ModuleList([encoder(), encoder()])
    loss = InBatchSoftmaxLoss(10.0, learn_scale=True, symmetric=True)
    optimizer = torch.optim.Adam([*towers.parameters(), *loss.parameters()], lr=3e-3)
    queries, docs = make_pairs(4096, seed=1)
    test = make_pairs(500, seed=2)

    def ranks() -> Tensor:
        with torch.no_grad():
            return retrieval_ranks(towers[0](test[0]), towers[1](test[1]), normalize=True)

    before = precision_at(ranks())
    for _ in range(steps):
        rows = torch.randint(0, len(queries), (batch,))
        optimizer.zero_grad()
        # The same gradients as loss(towers[0](q), towers[1](d)).backward(), with activations of 64 texts at a time.
        cached_backward(loss, list(towers), [queries[rows], docs[rows]], chunk_size=64)
        optimizer.step()
    after = precision_at(ranks())
    print(f"P@1 {before:.3f} -> {after:.3f}, MRR {mean_reciprocal_rank(ranks()):.3f}, {loss}")
    return before, after


if __name__ == "__main__":
    main()
