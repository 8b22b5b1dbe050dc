"""The languages' gradients while they are learned together: who agrees is known, and looking changes nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_names import SOURCES, ToyData

from xferkit.experiments.name_similarity import SimilarityCell, measure_similarity
from xferkit.experiments.name_transfer import Cell, NameSettings, name_encoder, read_sources, run_cell
from xferkit.surgery.relatedness import family_means

TOY = NameSettings(batch_size=64, channels=24, feature_dim=24, width=3, min_count=1, learning_rate=1e-2)
CELL = SimilarityCell(SOURCES, seed=0, focus=(59, 60), course=(1, 30), samples=(0, 8), steps=60)
FAMILIES = ("a", "a", "b", "b")


def means(pairs):
    matrix = np.eye(4)
    rows, columns = np.triu_indices(4, 1)
    matrix[rows, columns] = matrix[columns, rows] = pairs
    return family_means(matrix, FAMILIES)


@pytest.fixture(scope="module")
def result():
    return measure_similarity(CELL, ToyData(), TOY)


def test_languages_of_one_convention_agree_and_those_of_two_do_not(result):
    found = means(result.model)
    assert found.within > 0.5 and found.across < -0.2
    assert set(result.course) == {1, 30, 59, 60} and set(result.samples) == {0, 8}
    groups = ("token_embedding", "flag_embedding", "convolutions.0", "hidden")
    assert tuple(result.layers) == (*(f"shared.{name}" for name in groups), "predictor.layers")
    assert all(len(pairs) == 6 for pairs in (*result.layers.values(), *result.samples.values()))
    mean = (np.array(result.course[59]) + np.array(result.course[60])) / 2
    np.testing.assert_allclose(result.model, mean, atol=2e-6)


def test_without_a_conflict_all_agree():
    found = means(
        measure_similarity(replace(CELL, course=(), samples=()), ToyData(conflict=False), TOY).model
    )
    assert found.across > 0.3 and abs(found.within - found.across) < 0.3


def test_looking_does_not_change_the_training(result):
    pooled = run_cell(Cell("a3", "pooled", 0, SOURCES, steps=60), ToyData(), TOY)
    assert result.losses == pooled.losses and result.steps == 60
    again = measure_similarity(replace(CELL, course=(), samples=()), ToyData(), TOY)
    assert again.losses == pooled.losses and again.model == result.model


def test_a_languages_gradient_is_that_of_its_mean_loss_over_all_its_names(monkeypatch):
    """Against autograd over the whole data, at the first step, whose parameters a second training repeats."""
    seen = {}

    def spy(self):
        seen.setdefault("state", {k: v.clone() for k, v in self.model.state_dict().items()})
        return original(self)

    from xferkit.experiments import name_similarity
    from xferkit.models import MLPPredictor, SharedPrivateClassifier

    original = name_similarity._Look.__call__
    monkeypatch.setattr(name_similarity._Look, "__call__", spy)
    found = measure_similarity(
        SimilarityCell(SOURCES, seed=0, focus=(1,), course=(2,), steps=2), ToyData(), TOY
    )
    vocabulary, encode, _ = read_sources(SOURCES, ToyData(), TOY, lowercase=False)
    model = SharedPrivateClassifier(
        name_encoder(TOY, len(vocabulary)), MLPPredictor(24, None, 3, dropout=0.3)
    )
    model.load_state_dict(seen["state"])
    model.eval()
    rows = []
    for language in SOURCES:
        names = ToyData().train(language)
        model.zero_grad()
        log_probs = model(encode(names.texts)).log_probs
        torch.nn.functional.nll_loss(log_probs, torch.tensor(names.labels)).backward()
        rows.append(torch.cat([p.grad.flatten().double() for p in model.parameters()]))
    unit = torch.nn.functional.normalize(torch.stack(rows))
    wanted = (unit @ unit.T)[tuple(np.triu_indices(4, 1))]
    np.testing.assert_allclose(found.model, wanted.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"languages": ("a1",)}, "at least two different ones"),
        ({"languages": ("a1", "a1")}, "at least two different ones"),
        ({"focus": ()}, "focus must be at least one step"),
        ({"focus": (0,)}, "step 0 is outside the training's 1 to 60"),
        ({"course": (61,)}, "step 61 is outside the training's 1 to 60"),
    ],
)
def test_cells_that_make_no_sense_are_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        measure_similarity(replace(CELL, **change), ToyData(), TOY)
