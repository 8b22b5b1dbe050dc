"""Gradient conflict, groups of sources, domination and capacity: planted, absent, by hand, and refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from xferkit.metrics import t_interval
from xferkit.transfer.causes import capacity, cluster_sources, domination, gradient_conflict


def planted(rng, cosine, rho=0.5, seeds=5, looks=12, groups=3, noise=0.08):
    """Cosines of batches with noise; `cosine` is that of the true gradients, one a group."""
    shape = (seeds, looks, groups)
    pair = np.asarray(cosine) * rho + noise * rng.standard_normal(shape)
    nulls = [rho + noise * rng.standard_normal(shape) for _ in range(2)]
    return [np.clip(x, -1, 1) for x in (pair, *nulls)]


def test_conflict_is_found_in_the_layer_that_has_it():
    found = gradient_conflict(
        *planted(np.random.default_rng(0), [0.9, -0.8, 0.0]),
        groups=["embedding", "layer 1", "head"],
        steps=range(10, 130, 10),
        target="en",
        source="fr",
    )
    assert found.flag == "yes"
    assert [group.flag for group in found.groups] == ["no", "yes", "not clear"]
    assert found.worst.name == "layer 1" and found.worst.first_step == 10
    assert found.worst.negative_share > 0.9
    assert found.sentence().startswith(
        "The gradients of fr oppose those of en in 1 of 3 groups of parameters"
    )
    assert json.loads(json.dumps(found.to_json()))["groups"][1]["name"] == "layer 1"


def test_conflict_by_hand():
    pair = np.array([[[-0.2], [-0.4]], [[-0.1], [0.1]]])
    target = np.array([[[0.5], [0.7]], [[0.4], [0.4]]])
    source = np.array([[[0.3], [0.5]], [[0.1], [0.3]]])
    group = gradient_conflict(pair, target, source).groups[0]
    # seed 1: -0.3 against sqrt(0.6 * 0.4); seed 2: 0 against sqrt(0.4 * 0.2)
    nulls = [0.24**0.5, 0.08**0.5]
    assert group.name == "model"
    assert group.cosine.mean == pytest.approx(-0.15)
    assert group.null.mean == pytest.approx(np.mean(nulls))
    expected = t_interval([-0.3 - nulls[0], 0.0 - nulls[1]])
    assert group.difference.low == pytest.approx(expected.low)
    assert group.negative_share == 0.75


def test_conflict_begins_where_it_begins():
    pair, a, b = planted(np.random.default_rng(1), [1.0], groups=1, noise=0.02)
    pair[:, 6:] -= 1.2
    group = gradient_conflict(pair, a, b, steps=range(100, 1300, 100)).groups[0]
    assert group.first_step == 700


def test_one_seed_or_one_look_is_no_verdict_by_itself():
    rng = np.random.default_rng(2)
    one = gradient_conflict(*planted(rng, [-1.0], seeds=1, groups=1))
    assert one.flag == "not clear" and one.groups[0].first_step is None and "no interval" in one.sentence()
    assert one.to_json()["groups"][0]["difference"]["low"] is None
    look = gradient_conflict(*planted(rng, [-1.0], looks=1, groups=1, noise=0.02))
    assert look.flag == "yes" and look.groups[0].first_step == 1


@pytest.mark.parametrize("rho", [0.0, 0.3])
def test_conflict_is_rarely_found_where_there_is_none(rho):
    """Two halves of one task, with gradients of which nothing (rho 0) or much is signal; 4 layers at once."""
    rng = np.random.default_rng(3)
    repeats = [gradient_conflict(*planted(rng, 1.0, rho, looks=6, groups=4)).flag for _ in range(150)]
    assert repeats.count("yes") <= 0.05 * 150


@pytest.mark.parametrize(
    ("pair", "null", "sentence"),
    [
        (
            np.full((1, 1, 1), np.nan),
            np.zeros((1, 1, 1)),
            r"pair must be finite numbers, got nan at \[0, 0, 0\]",
        ),
        (
            np.zeros((1, 1, 1)),
            np.zeros((1, 2, 1)),
            r"null_target must have pair's shape \[1, 1, 1\], got \[1, 2, 1\]",
        ),
        (
            np.zeros((0, 1, 1)),
            np.zeros((0, 1, 1)),
            r"pair must be of shape \[seeds, looks, groups\].*got shape \[0, 1",
        ),
        (np.full((1, 1, 1), 2.0), np.zeros((1, 1, 1)), r"pair must be cosines in \[-1, 1\], got 2"),
    ],
)
def test_conflict_refuses(pair, null, sentence):
    with pytest.raises(ValueError, match=f"^gradient_conflict: {sentence}"):
        gradient_conflict(pair, null, null)


def test_conflict_refuses_names_and_steps_that_do_not_fit():
    x = np.zeros((2, 3, 2))
    with pytest.raises(ValueError, match="groups must be 2 names, got 1"):
        gradient_conflict(x, x, x, groups=["all"])
    with pytest.raises(ValueError, match="steps must be 3 rising numbers"):
        gradient_conflict(x, x, x, steps=[1, 1, 2])


def cosines(rng, blocks, inside, outside, noise=0.1):
    kinds = np.repeat(np.arange(len(blocks)), blocks)
    matrix = np.where(kinds[:, None] == kinds, inside, outside) + noise * rng.standard_normal(
        (len(kinds),) * 2
    )
    matrix = np.clip((matrix + matrix.T) / 2, -1, 1)
    np.fill_diagonal(matrix, 1.0)
    return matrix


def test_two_conventions_among_sources_are_two_clusters():
    names = ["nl", "de", "fr", "es", "it", "pt", "pl"]
    to_target = [0.6, 0.7, -0.5, -0.5, -0.4, -0.6, -0.5]
    found = cluster_sources(
        cosines(np.random.default_rng(0), [2, 5], 0.7, -0.6), names, target_cosines=to_target
    )
    assert found.flag == "yes" and found.p_value <= 0.05 and found.between < -0.4
    assert [set(cluster.sources) for cluster in found.clusters] == [set(names[2:]), {"nl", "de"}]
    assert found.clusters[0].target_cosine == pytest.approx(-0.5)
    assert "form 2 groups" in found.sentence() and "oppose each other" in found.sentence()


def test_silhouette_and_linkage_by_hand():
    """Distances 0.2 inside pairs and 1.0 across: a = 0.2 and b = 1 everywhere, 0.8 for each source."""
    matrix = cosines(np.random.default_rng(0), [3, 3], 0.8, 0.0, noise=0.0)
    found = cluster_sources(np.stack([matrix, matrix]), list("abcdef"), draws=99)
    assert found.silhouette == pytest.approx(0.8) and found.flag == "no" and len(found.clusters) == 2
    assert found.clusters[0].cosine == pytest.approx(0.8) and found.between == pytest.approx(0.0)


def test_sources_without_groups_are_rarely_clustered():
    rng = np.random.default_rng(4)
    found = [cluster_sources(cosines(rng, [8], 0.1, 0.0), list("abcdefgh"), draws=59) for _ in range(60)]
    assert sum(len(f.clusters) > 1 for f in found) <= 6
    assert "no groups beyond chance" in next(f for f in found if len(f.clusters) == 1).sentence()


def test_few_sources_are_one_group_and_not_clear():
    for n in (1, 2, 3, 4):
        found = cluster_sources(cosines(np.random.default_rng(0), [n], 0.5, 0.0), list("abcd")[:n], draws=9)
        assert found.flag == "not clear" and len(found.clusters) == 1 and "cannot be told" in found.sentence()
        json.dumps(found.to_json(), allow_nan=False)


def test_clusters_refuse():
    with pytest.raises(ValueError, match="cosines must be finite numbers, got nan"):
        cluster_sources(np.full((3, 3), np.nan), "abc")
    with pytest.raises(ValueError, match="sources must be 3 different names"):
        cluster_sources(np.eye(3), ["a", "a", "b"])
    with pytest.raises(ValueError, match="symmetric"):
        cluster_sources([[1.0, 0.5], [0.1, 1.0]], "ab")


def norms(rng, scales, seeds=5, looks=8):
    return np.asarray(scales) * np.exp(0.2 * rng.standard_normal((seeds, looks, len(scales))))


def test_a_task_with_five_times_the_gradient_dominates():
    rng = np.random.default_rng(0)
    found = domination(
        norms(rng, [1, 5, 1]),
        ["en", "fr", "de"],
        target="en",
        losses=norms(rng, [1, 2, 1]),
        samples=[100, 300, 100],
    )
    assert found.flag == "yes" and found.largest.name == "fr" and found.over == "seeds"
    assert [task.flag for task in found.tasks] == ["no", "yes", "no"]
    assert "60 % of the samples" in found.sentence() and found.sentence().startswith("fr dominates: it has")
    # The target's own weight is no reason why a source would hurt it.
    assert domination(norms(rng, [5, 1, 1]), ["en", "fr", "de"], target="en").flag == "no"


def test_domination_by_hand():
    found = domination(
        [[[1.0, 3.0], [2.0, 2.0]]], ["a", "b"], losses=[[[1.0, 4.0], [1.0, 1.0]]], samples=[1, 3]
    )
    b = found.tasks[1]
    assert b.norm_share.mean == pytest.approx((3 / 4 + 1 / 2) / 2) and b.norm_share.n == 2
    assert b.fair_share == 0.5 and b.limit == pytest.approx(2 / 3) and b.sampling_share == 0.75
    assert b.log_norm_ratio.mean == pytest.approx(np.log(3) / 2)
    assert b.log_loss_ratio is not None and b.log_loss_ratio.mean == pytest.approx(np.log(4) / 2)
    assert found.over == "looks"


def test_equal_tasks_rarely_dominate_and_one_look_is_not_clear():
    rng = np.random.default_rng(5)
    names = ["a", "b", "c"]
    flags = [domination(norms(rng, [1, 1, 1], seeds=3), names).flag for _ in range(100)]
    assert flags.count("yes") <= 5 and flags.count("no") >= 90
    # At the limit itself, every second mean is above it and few intervals are.
    edge = [domination(norms(rng, [1, 2], seeds=3), ["a", "b"]).tasks[1].flag for _ in range(200)]
    assert edge.count("yes") <= 20
    assert domination(norms(rng, [1, 9], 1, 1), ["a", "b"]).flag == "not clear"


def test_domination_shows_no_share_and_no_ratio_that_cannot_be():
    """Two looks that differ much, and a task whose loss is next to nothing."""
    found = domination(
        [[[1.0, 9.0], [9.0, 1.0]]], ["a", "b"], target="a", losses=[[[1e-9, 1.0], [1e-9, 1.0]]]
    )
    assert found.tasks[1].norm_share.low < 0 and found.tasks[1].norm_share.high > 1
    sentence = found.sentence()
    assert "a share of the gradient norms of 0.50 (95 % interval 0.00 to 1.00, 2 looks)" in sentence
    assert "with 1.00 times the norm of the others and over 100 times their loss" in sentence
    other = domination(norms(np.random.default_rng(0), [1, 9e4]), ["a", "b"], target="b").sentence()
    assert "less than 0.01 times the norm of the others" in other
    assert "0.90 (n = 1, no interval)" in domination([[[1.0, 9.0]]], ["a", "b"]).sentence()


def test_domination_refuses():
    with pytest.raises(ValueError, match="gradient_norms must be finite numbers of at least 0, got -1 at"):
        domination([[[-1.0, 1.0]]], ["a", "b"])
    with pytest.raises(ValueError, match="losses must be finite numbers of at least 0, got nan"):
        domination([[[1.0, 1.0]]], ["a", "b"], losses=[[[np.nan, 1.0]]])
    with pytest.raises(ValueError, match="tasks must be two or more different names"):
        domination([[[1.0]]], ["a"])
    with pytest.raises(ValueError, match="must not all be 0 at a look"):
        domination([[[0.0, 0.0]]], ["a", "b"])
    with pytest.raises(ValueError, match="target must be one of a, b, got c"):
        domination([[[1.0, 1.0]]], ["a", "b"], target="c")


def test_a_gap_that_width_closes_is_capacity():
    rng = np.random.default_rng(0)
    base = 0.8 + 0.01 * rng.standard_normal((4, 5))
    found = capacity(base[0] - 0.1, base[1], base[2] - 0.02, base[3], widths=("64", "512"))
    assert found.flag == "yes" and 0.5 < found.effect <= 1.0
    assert "in the 64 model" in found.sentence() and found.sentence().startswith("A wider model shrinks")
    losses = capacity(1 - base[0] + 0.1, 1 - base[1], 1 - base[2] + 0.02, 1 - base[3], higher_is_better=False)
    assert losses.shrinkage.mean == pytest.approx(found.shrinkage.mean)


def test_capacity_by_hand():
    found = capacity([0.5, 0.6], [0.7, 0.7], [0.7, 0.8], [0.8, 0.8])
    # gaps 0.2, 0.1 and 0.1, 0.0: shrinkage 0.1 in both seeds
    assert found.narrow_gap.mean == pytest.approx(0.15) and found.wide_gap.mean == pytest.approx(0.05)
    assert found.shrinkage.mean == pytest.approx(0.1) and found.shrinkage.half_width == pytest.approx(0.0)
    assert found.effect == pytest.approx(2 / 3)
    assert found.flag == "not clear"  # the same in both seeds: were they used?


def test_capacity_without_a_gap_or_without_an_effect_of_width():
    rng = np.random.default_rng(6)
    draw = lambda shift: shift + 0.01 * rng.standard_normal(5)  # noqa: E731 - three words, used in one test
    helped = capacity(draw(0.9), draw(0.8), draw(0.85), draw(0.8))
    assert helped.flag == "no" and "costs nothing" in helped.sentence()
    same = [capacity(draw(0.7), draw(0.8), draw(0.7), draw(0.8)).flag for _ in range(200)]
    assert same.count("yes") <= 10
    assert capacity([0.5], [0.7], [0.7], [0.7]).flag == "not clear"


def test_capacity_refuses():
    with pytest.raises(ValueError, match="capacity: wide_with must be finite numbers, got nan at"):
        capacity([1.0], [1.0], [np.nan], [1.0])
    with pytest.raises(
        ValueError, match="narrow_without must pair seed by seed with narrow_with's 2 scores, got 1"
    ):
        capacity([1.0, 1.0], [1.0], [1.0, 1.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="narrow_with must be of shape"):
        capacity([], [], [], [])
