"""Gate weights, mask overlap, rank correlation and the ranking of causes."""

from __future__ import annotations

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr

from xferkit.masks.overlap import overlap
from xferkit.transfer.causes import (
    CAUSES,
    capacity,
    domination,
    gate_choice,
    label_shift,
    mask_overlap,
    missing_classes,
    rank_causes,
    rank_correlation,
)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]),
        ([1, 1, 2, 3, 3, 3], [6, 5, 5, 1, 2, 2]),
        ([0.3, 0.1], [1, 2]),
        ([3, 1, 2, 5, 4, 6, 7], [7, 6, 5, 4, 3, 2, 1]),
    ],
)
def test_rank_correlation_is_exact(x, y):
    found = rank_correlation(x, y)
    assert found.rho == pytest.approx(spearmanr(x, y).statistic)
    a, b = rankdata(x), rankdata(y)
    rhos = [np.corrcoef(a, b[list(order)])[0, 1] for order in itertools.permutations(range(len(x)))]
    assert found.p_value == pytest.approx(np.mean(np.abs(rhos) >= abs(found.rho) - 1e-9)) and found.exact


def test_rank_correlation_of_many_and_of_constants():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(14)
    found = rank_correlation(x, x + 0.8 * rng.standard_normal(14))
    assert not found.exact and 0.0 < found.p_value < 0.1
    same = rank_correlation([1, 1, 1], [1, 2, 3])
    assert math.isnan(same.rho) and same.p_value == 1.0
    with pytest.raises(ValueError, match="2 or more pairs, got 1 and 1"):
        rank_correlation([1], [1])


NAMES = ["nl", "de", "fr", "es", "it", "pt"]
GAINS = [0.05, 0.04, -0.03, -0.05, -0.04, -0.06]


def weights(rng, logits, seeds=5):
    z = np.exp(np.asarray(logits) + 0.1 * rng.standard_normal((seeds, len(logits))))
    return z / z.sum(1, keepdims=True)


def test_a_gate_that_prefers_what_hurts_is_found_and_one_that_helps_is_cleared():
    rng = np.random.default_rng(0)
    bad = gate_choice(
        weights(rng, -30 * np.array(GAINS)), NAMES, gains=GAINS, recognition=np.full((5, 6), 0.8)
    )
    assert bad.flag == "yes" and bad.effect > 0.8 and bad.recognition is not None
    assert bad.recognition.mean == pytest.approx(0.8) and bad.uniform == pytest.approx(1 / 6)
    assert "0.80" in bad.sentence() and bad.sentence().startswith("The gate prefers sources that hurt: ")
    good = gate_choice(weights(rng, 30 * np.array(GAINS)), NAMES, gains=GAINS)
    assert (
        good.flag == "no"
        and good.effect == 0.0
        and good.correlation is not None
        and good.correlation.rho > 0.8
    )
    assert [s.above_uniform for s in good.sources] == ["yes", "yes", "no", "no", "no", "no"]
    json.dumps(good.to_json(), allow_nan=False)


def test_a_gate_that_knows_nothing_is_rarely_blamed():
    rng = np.random.default_rng(1)
    found = [
        gate_choice(weights(rng, 0.5 * rng.standard_normal(6)), NAMES, gains=GAINS).flag for _ in range(200)
    ]
    assert found.count("yes") <= 10 and found.count("no") <= 10
    uniform = [gate_choice(weights(rng, np.zeros(6)), NAMES) for _ in range(100)]
    assert sum(any(s.above_uniform == "yes" for s in found.sources) for found in uniform) <= 10
    assert uniform[0].flag == "not clear" and "cannot be judged" in uniform[0].sentence()


def test_gates_take_one_source_and_one_seed_and_refuse():
    one = gate_choice([[1.0]], ["de"], gains=[0.1])
    assert one.flag == "not clear" and one.correlation is None
    with pytest.raises(ValueError, match="gate_choice: weights must add up to 1 in every seed"):
        gate_choice([[0.5, 0.1]], ["de", "fr"])
    with pytest.raises(ValueError, match="weights must be finite numbers of at least 0, got nan at"):
        gate_choice([[np.nan, 0.1]], ["de", "fr"])
    with pytest.raises(ValueError, match="gains must be finite numbers, got nan"):
        gate_choice([[0.5, 0.5]], ["de", "fr"], gains=[np.nan, 1.0])
    with pytest.raises(ValueError, match="sources must be 2 different names"):
        gate_choice([[0.5, 0.5]], ["de"])


def test_gates_show_no_weight_outside_0_and_1():
    found = gate_choice([[0.1, 0.9], [0.9, 0.1]], ["a", "b"], recognition=[[0.9, 0.9], [0.2, 0.2]])
    assert found.sources[0].weight.low < 0 and found.sources[0].weight.high > 1
    assert found.sentence().count("95 % interval 0.00 to 1.00, 2 seeds") == 2


def comparison(rng, agreement, gates=400):
    """Of two layers of masks that keep half; `agreement` is the chance that a gate is copied."""
    strata = []
    for _ in range(2):
        a = rng.random(gates) < 0.5
        strata.append((a, np.where(rng.random(gates) < agreement, a, rng.random(gates) < 0.5)))
    layers = tuple(SimpleNamespace(name=f"layer {n}", overlap=overlap([s])) for n, s in enumerate(strata))
    return SimpleNamespace(whole=SimpleNamespace(overlap=overlap(strata)), layers=layers)


def compared(rng, agreement, seeds=5):
    return [comparison(rng, agreement) for _ in range(seeds)]


def test_masks_of_other_parts_are_found():
    rng = np.random.default_rng(0)
    across, within = compared(rng, 0.1), compared(rng, 0.8)
    found = mask_overlap(across, within)
    assert found.flag == "yes" and [layer.name for layer in found.layers] == ["layer 0", "layer 1"]
    assert found.iou.mean == pytest.approx(np.mean([c.whole.overlap.iou for c in across]))
    assert found.random.mean == pytest.approx(1 / 3, abs=0.02)
    # Half of the gates kept, copied with chance q: |A ∩ B| = (1 + q) / 4, |A ∪ B| = (3 - q) / 4.
    assert found.halves.mean == pytest.approx(1.8 / 2.2, abs=0.03)
    assert found.sentence().startswith("Target and source keep other parts of the model: ")
    json.dumps(found.to_json(), allow_nan=False)


def test_masks_of_one_language_are_rarely_told_apart():
    rng = np.random.default_rng(1)
    flags = [mask_overlap(compared(rng, 0.7), compared(rng, 0.7)).flag for _ in range(60)]
    assert flags.count("yes") <= 3 and flags.count("no") >= 30


def test_masks_refuse():
    rng = np.random.default_rng(2)
    one = compared(rng, 0.5, 1)
    assert mask_overlap(one, one).flag == "not clear"
    with pytest.raises(ValueError, match="across and within must pair seed by seed, got 1 and 2 comparisons"):
        mask_overlap(one, compared(rng, 0.5, 2))
    empty = np.zeros(4, dtype=bool)
    none = [SimpleNamespace(whole=SimpleNamespace(overlap=overlap([(empty, empty)])), layers=())]
    with pytest.raises(ValueError, match="mask_overlap: across must be finite numbers, got nan"):
        mask_overlap(none, none)


def test_causes_are_ranked_by_flag_and_effect():
    labels = ["a"] * 50 + ["b"] * 50
    causes = [
        capacity([0.9, 0.9], [0.8, 0.8], [0.9, 0.9], [0.8, 0.8]),
        capacity([0.5], [0.7], [0.7], [0.7]),
        label_shift(labels, ["a"] * 90 + ["b"] * 10),
        missing_classes(labels, ["b"] * 100),
        domination([[[1.0, 1.0], [1.0, 1.1]]], ["x", "y"]),
    ]
    ranked = rank_causes(causes, {"input shift": "no features were given"})
    assert [cause.flag for cause in ranked.causes] == ["yes", "yes", "not clear", "no", "no"]
    assert ranked.found == (causes[3], causes[2])  # half of the examples against 0.36
    sentences = ranked.sentences()
    assert sentences[0] == causes[3].sentence()
    assert "not measured: input shift (no features were given)" in sentences
    assert "not measured: gradient conflict (not asked for)" in sentences
    assert len(sentences) == len(causes) + len(CAUSES) - 4
    record = json.loads(json.dumps(ranked.to_json(), allow_nan=False))
    assert record["causes"][0]["cause"] == "missing classes" and record["causes"][0]["flag"] == "yes"


def test_ranking_of_nothing_and_refusals():
    assert rank_causes([]).causes == () and len(rank_causes([]).sentences()) == len(CAUSES)
    with pytest.raises(ValueError, match=r"not_measured must name one of gradient conflict, .*, got weather"):
        rank_causes([], {"weather": "none"})
    with pytest.raises(ValueError, match="not_measured names capacity, which was measured"):
        rank_causes([capacity([0.5], [0.7], [0.7], [0.7])], {"capacity": "none"})
