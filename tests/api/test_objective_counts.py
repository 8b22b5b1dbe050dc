"""Losses that divide by given counts add up over the shards of a batch, however uneven these are."""

from __future__ import annotations

import pytest
import torch

from xferkit.objectives import (
    classification_nll,
    discriminator_accuracy,
    discriminator_loss,
    gate_nll,
    sum_of_domain_means,
)


def test_given_counts_replace_the_batchs_own():
    values, domains = torch.tensor([1.0, 3.0, 5.0, 100.0]), torch.tensor([0, 0, 1, -1])
    own = sum_of_domain_means(values, domains, 3)
    assert float(own) == 2.0 + 5.0
    assert torch.equal(sum_of_domain_means(values, domains, 3, counts=torch.tensor([2.0, 1.0, 0.0])), own)
    # Half a text of a language is what two replicas have of one.
    halves = sum_of_domain_means(values, domains, 3, counts=torch.tensor([4.0, 0.5, 0.0]))
    assert float(halves) == 1.0 + 10.0
    weights = torch.tensor([10.0, 1.0, 1.0])
    assert float(sum_of_domain_means(values, domains, 3, weights=weights)) == 25.0
    with pytest.raises(ValueError, match=r"counts must have shape \[3\], got \[2\]"):
        sum_of_domain_means(values, domains, 3, counts=torch.ones(2))


def test_half_precision_values_are_summed_in_single_precision():
    values = torch.full((3000,), 1.01, dtype=torch.bfloat16)
    total = sum_of_domain_means(values, torch.zeros(3000, dtype=torch.int64), 1)
    assert total.dtype == torch.float32
    assert float(total) == pytest.approx(float(values[0]), rel=1e-5)


@pytest.mark.parametrize("num_shards", [1, 2, 3, 9])
def test_losses_add_up_over_shards(num_shards):
    torch.manual_seed(0)
    n, length, k = 7, 4, 3
    domains = torch.tensor([0, 0, 0, 1, 1, 2, 0])
    mask = torch.arange(length) < torch.tensor([4, 1, 3, 2, 2, 4, 1]).unsqueeze(1)
    labels = torch.randint(5, (n, length)).masked_fill(~mask, -1)
    log_probs, gates = torch.randn(n, length, 5).log_softmax(-1), torch.randn(n, length, k)
    logits = torch.randn(n, k)
    texts = torch.bincount(domains, minlength=k).float()
    tokens = torch.zeros(k).index_add_(0, domains, mask.sum(1).float())
    shards = [torch.arange(n)[i::num_shards] for i in range(num_shards)]

    def losses(rows, text_counts, token_counts):
        return torch.stack(
            [
                classification_nll(log_probs[rows], labels[rows], domains[rows], k, counts=token_counts),
                classification_nll(log_probs[rows, 0], labels[rows, 0], domains[rows], k, counts=text_counts),
                gate_nll(gates[rows], domains[rows], mask=mask[rows], counts=token_counts),
                gate_nll(logits[rows], domains[rows], counts=text_counts),
                discriminator_loss(logits[rows], domains[rows], counts=text_counts),
                discriminator_accuracy(logits[rows], domains[rows], counts=text_counts),
            ]
        )

    whole = losses(torch.arange(n), None, None)
    parts = sum(losses(rows, texts, tokens) for rows in shards)
    torch.testing.assert_close(parts, whole)
