"""Masks of several languages: cosines, signs, overlap against chance, and the gates at both ends."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from toy_masks import own_encoder

from xferkit.masks import HardConcreteMasks, compare_masks, find_sites, overlap, rank_groups


def masks_with(values, model=None):
    """Columns of a linear map, with these log alphas."""
    model = model or nn.Linear(len(values), 1)
    masks = HardConcreteMasks(model, find_sites(model, "column"))
    with torch.no_grad():
        masks.log_alpha("weight/columns").copy_(torch.tensor(values))
    return masks


def test_cosines_and_signs_by_hand():
    a, b = [3.0, 1.0, -2.0, 4.0], [1.0, -1.0, -3.0, 2.0]
    found = compare_masks(masks_with(a), masks_with(b)).site("weight/columns")
    assert found.cosine == pytest.approx((3 - 1 + 6 + 8) / math.sqrt(30 * 15))
    x, y = np.array(a) - 1.5, np.array(b) + 0.25
    assert found.centred_cosine == pytest.approx(float(x @ y / np.sqrt((x @ x) * (y @ y))))
    assert (found.universal, found.pruned, found.specific) == (0.5, 0.25, 0.25)
    assert found.gates == 4
    # Open in evaluation: above -log 11 = -2.398, so that the second mask closes one gate alone.
    assert (found.overlap.kept_a, found.overlap.kept_b, found.overlap.kept_both) == (4, 3, 3)
    assert found.overlap.iou == 0.75


def test_a_shared_mean_makes_cosines_high_and_centred_ones_not():
    generator = torch.Generator().manual_seed(0)
    a, b = (5 + torch.randn(400, generator=generator) for _ in range(2))
    found = compare_masks(masks_with(a.tolist()), masks_with(b.tolist())).whole
    assert found.cosine > 0.9 and abs(found.centred_cosine) < 0.15


def test_sites_layers_kinds_and_the_whole():
    model = own_encoder()
    masks = [HardConcreteMasks(model, find_sites(model, ("head", "ffn_unit", "matrix"))) for _ in range(2)]
    with torch.no_grad():
        for p in (*masks[0].parameters(), *masks[1].parameters()):
            p.copy_(torch.randn(p.shape))
    found = compare_masks(*masks)
    assert [a.name for a in found.layers] == ["layer 0", "layer 1"]
    assert [a.name for a in found.kinds] == ["attention", "ffn", "embedding", "other"]
    assert [a.name for a in found.sites] == [s.name for s in masks[0].sites]
    assert found.whole.gates == sum(a.gates for a in found.sites) == sum(a.gates for a in found.kinds)
    chosen = [s for s in masks[0].sites if s.layer == 1]
    x, y = (torch.cat([m.log_alpha(s).detach() for s in chosen]) for m in masks)
    assert found.layers[1].cosine == pytest.approx(torch.cosine_similarity(x, y, dim=0).item(), rel=1e-5)
    swapped = compare_masks(masks[1], masks[0]).whole
    assert swapped.cosine == pytest.approx(found.whole.cosine)
    assert swapped.overlap.iou == found.whole.overlap.iou
    with pytest.raises(
        ValueError, match=r"unknown site 'layers.0.atention/heads'; .*'layers.0.attention/heads'"
    ):
        found.site("layers.0.atention/heads")


def enumerated(strata):
    """Mean of intersection over union and upper tail over all pairs of sets, counted one by one."""
    options = []
    for a, b in strata:
        n = len(a)
        first = [set(c) for c in itertools.combinations(range(n), int(a.sum()))]
        second = [set(c) for c in itertools.combinations(range(n), int(b.sum()))]
        options.append([len(x & y) for x in first for y in second])
    sums = [sum(values) for values in itertools.product(*options)]
    union = sum(int(a.sum() + b.sum()) for a, b in strata)
    observed = sum(int((a & b).sum()) for a, b in strata)
    mean, deviation = np.mean(sums), np.std(sums)
    return (
        np.mean([k / (union - k) for k in sums]),
        np.mean([k >= observed for k in sums]),
        (observed - mean) / deviation,
    )


@pytest.mark.parametrize("sizes", [[(6, 3, 2)], [(5, 2, 3), (4, 1, 2)], [(4, 4, 2), (3, 1, 1)]])
def test_overlap_against_all_random_sets(sizes):
    rng = np.random.default_rng(0)
    for _ in range(3):
        strata = []
        for n, a, b in sizes:
            x, y = np.zeros(n, bool), np.zeros(n, bool)
            x[rng.choice(n, a, replace=False)] = True
            y[rng.choice(n, b, replace=False)] = True
            strata.append((x, y))
        found = overlap(strata)
        iou, p_value, z = enumerated(strata)
        assert found.exact
        assert found.expected_iou == pytest.approx(iou)
        assert found.p_value == pytest.approx(p_value)
        assert found.z == pytest.approx(z)


def test_random_masks_overlap_by_chance_and_equal_ones_do_not():
    rng = np.random.default_rng(1)
    values = []
    for _ in range(400):
        a, b = rng.random((2, 60)) < 0.5
        values.append(overlap([(a, b)]).p_value)
    # A discrete p-value is at most as often below a level as the level says, and not far from it here.
    assert 0.01 <= np.mean(np.array(values) <= 0.05) <= 0.08
    same = overlap([(a, a)])
    assert same.iou == 1.0 and same.p_value < 1e-10 and same.z > 5
    assert overlap([(a, ~a)]).p_value == pytest.approx(1.0)


def test_agreeing_on_how_much_of_each_site_to_keep_is_no_overlap():
    rng = np.random.default_rng(2)
    strata = [tuple(rng.random((2, 300)) < share) for share in (0.9, 0.1)]
    apart = overlap(strata)
    pooled = overlap([tuple(np.concatenate(x) for x in zip(*strata, strict=True))])
    assert pooled.p_value < 1e-6 < 0.01 < apart.p_value


def test_many_gates_go_by_the_normal_approximation():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 400_000)) < 0.5
    found = overlap([(a, b)])
    assert not found.exact and found.expected_iou == pytest.approx(1 / 3, abs=2e-3) and abs(found.z) < 4
    small = overlap([(a[:150_000], b[:150_000])])
    assert small.exact and small.expected_iou == pytest.approx(1 / 3, abs=2e-3)
    assert small.p_value == pytest.approx(1 - 0.5 * (1 + math.erf(small.z / math.sqrt(2))), abs=5e-3)


def test_sets_that_cannot_vary():
    full, none = np.ones(4, bool), np.zeros(4, bool)
    found = overlap([(full, full)])
    assert found.iou == found.expected_iou == found.p_value == 1.0 and math.isnan(found.z)
    empty = overlap([(none, none)])
    assert math.isnan(empty.iou) and math.isnan(empty.expected_iou) and empty.p_value == 1.0
    with pytest.raises(ValueError, match=r"sets of one shape, got \[4\] and \[3\]"):
        overlap([(full, full[:3])])
    with pytest.raises(ValueError, match="at least one gate"):
        overlap([])


def test_the_gates_at_both_ends():
    masks = {
        "de": masks_with([3.0, 4.0, -1.0, -2.0, 0.5]),
        "fr": masks_with([2.0, 5.0, -1.5, -2.0, -0.5]),
        "fi": masks_with([4.0, 1.0, 6.0, -3.0, 0.1]),
    }
    found = rank_groups(masks)
    assert [(s.gate, s.universal) for s in found.universal] == [(0, 2.0), (1, 1.0)]
    assert (found.num_universal, found.num_specific, found.num_pruned) == (2, 2, 1)
    first, second = found.specific
    assert (first.gate, first.language, first.difference) == (2, "fi", 7.25)
    assert first.log_alpha == {"de": -1.0, "fr": -1.5, "fi": 6.0}
    assert (second.gate, second.language) == (4, "fr")
    assert second.difference == pytest.approx(-0.8)
    assert math.isnan(first.noise) and math.isnan(first.z)
    assert [s.gate for s in rank_groups(masks, limit=1).specific] == [2]


def test_replicates_give_the_noise_of_a_difference():
    generator = torch.Generator().manual_seed(5)

    def language(mean):
        return [masks_with((mean + torch.randn(2000, generator=generator)).tolist()) for _ in range(3)]

    runs = {name: language(torch.zeros(2000)) for name in ("de", "fr", "fi")}
    masks = {name: found[0] for name, found in runs.items()}
    found = rank_groups(masks, replicates={name: found[1:] for name, found in runs.items()}, limit=4000)
    everything = [*found.universal, *found.specific]
    # Variance 1 within languages: a language minus the mean of two others has 1.5.
    assert everything[0].noise == pytest.approx(math.sqrt(1.5), rel=0.05)
    # Languages that do not differ: the largest of three differences is not beyond what noise gives.
    assert np.mean([abs(s.z) > 3 for s in everything]) < 0.02
    assert everything[0].z == pytest.approx(everything[0].difference / everything[0].noise)


def test_refusals_are_sentences():
    a, b = masks_with([1.0, 2.0]), masks_with([1.0, 2.0, 3.0])
    with pytest.raises(
        ValueError, match=r"has gates of shape \[3\] for the site 'weight/columns'; expected .* \[2\]"
    ):
        compare_masks(a, b)
    rows = HardConcreteMasks(model := nn.Linear(2, 1), find_sites(model, "row"))
    with pytest.raises(ValueError, match="has no such gates for the site 'weight/columns'"):
        compare_masks(a, rows)
    with pytest.raises(ValueError, match="at least two languages, got 1"):
        rank_groups({"de": a})
    with pytest.raises(ValueError, match="replicates of the unknown language 'fr'; the nearest"):
        rank_groups({"de": a, "fi": a}, replicates={"fr": [a]})
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        rank_groups({"de": a, "fi": a}, limit=0)
