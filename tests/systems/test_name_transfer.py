"""What each method learns, on names made up so that the right answer is known, and what a cell promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_names import SOURCES, TARGET, ToyData

from xferkit.experiments.name_transfer import NAME_CONFIG, Cell, NameSettings, run_cell
from xferkit.methods import (
    method_names,
)

TOY = NameSettings(batch_size=64, channels=24, feature_dim=24, width=3, min_count=1, learning_rate=1e-2)
ALIKE = ("same_convention", "own", "language_gate", "gate_weighted_pooling")


def toy_cell(method: str, *, seed: int = 0, steps: int = 80) -> Cell:
    sources = {"own": (TARGET,), "same_convention": SOURCES[:2]}.get(method, SOURCES)
    return Cell(TARGET, method, seed, sources, steps=steps)


@pytest.mark.parametrize("method", method_names())
def test_each_method_learns_where_the_sources_agree(method):
    result = run_cell(toy_cell(method), ToyData(conflict=False), TOY)
    assert result.accuracy > 0.9 and result.macro_f1 > 0.9  # chance is 1/3
    assert result.seconds > 0 and result.steps >= 80


@pytest.mark.parametrize("method", ["pooled", "man_moe"])
def test_methods_learn_with_a_bilstm_and_attention_too(method):
    settings = replace(TOY, encoder="bilstm")
    result = run_cell(toy_cell(method, steps=40), ToyData(conflict=False), settings)
    assert result.accuracy > 0.9


@pytest.mark.parametrize("method", method_names())
def test_control_every_method_learns_the_wrong_thing_from_wrong_training_labels(method):
    assert run_cell(toy_cell(method), ToyData(conflict=False, rotate_labels=True), TOY).accuracy < 0.1


def test_language_gate_and_gate_weighted_pooling_find_the_sources_of_the_targets_convention():
    data = ToyData()
    accuracy = {m: run_cell(toy_cell(m, steps=150), data, TOY) for m in ("pooled", *ALIKE)}
    for method in ALIKE:
        assert accuracy[method].accuracy > accuracy["pooled"].accuracy + 0.1, method
    for method in ("language_gate", "gate_weighted_pooling"):
        gate = accuracy[method].gate
        assert gate["a1"] + gate["a2"] > 0.7, gate  # 0.5 without a choice
        assert sum(gate.values()) == pytest.approx(1.0, abs=1e-5)
    assert accuracy["pooled"].gate is None


def test_the_same_cell_gives_the_same_result_and_leaves_the_global_generator_alone():
    cell = toy_cell("man_moe", steps=5)
    torch.manual_seed(3)
    first = run_cell(cell, ToyData(), TOY)
    state = torch.random.get_rng_state()
    torch.manual_seed(4)
    second = run_cell(cell, ToyData(), TOY)
    assert first.losses == second.losses and first.gate == second.gate
    assert first.accuracy == second.accuracy
    torch.manual_seed(3)
    assert torch.equal(state, torch.random.get_rng_state())
    other = run_cell(replace(cell, seed=1), ToyData(), TOY)
    assert other.losses != first.losses


def test_target_labels_are_never_read():
    class Blind(ToyData):
        """The target's training labels are nonsense that would show in any loss."""

        def train(self, language: str, /):
            names = super().train(language)
            if language == TARGET:
                return replace(names, labels=np.full_like(names.labels, -7))
            return names

    for method in method_names():
        if method != "own":
            cell = toy_cell(method, steps=3)
            assert run_cell(cell, Blind(), TOY).losses == run_cell(cell, ToyData(), TOY).losses


def test_lowercase_removes_the_case():
    class Capital(ToyData):
        """The class shows in the case alone."""

        def _names(self, language, part):
            names = super()._names(language, part)
            cased = ("bdbd", "Bdbd", "bdbD")
            return replace(names, texts=tuple(cased[label] for label in names.labels.tolist()))

    cell = toy_cell("pooled", steps=60)
    assert run_cell(cell, Capital(), TOY).accuracy > 0.95
    assert run_cell(replace(cell, lowercase=True), Capital(), TOY).accuracy < 0.5


def test_cells_that_make_no_sense_are_refused():
    cell = toy_cell("pooled")
    with pytest.raises(ValueError, match="unknown method 'x'"):
        run_cell(replace(cell, method="x"), ToyData(), TOY)
    with pytest.raises(ValueError, match="at least one"):
        run_cell(replace(cell, sources=()), ToyData(), TOY)
    with pytest.raises(ValueError, match="may see its labels"):
        run_cell(replace(cell, sources=(TARGET, "a1")), ToyData(), TOY)
    with pytest.raises(ValueError, match="'char_cnn' or 'bilstm', got 'gru'"):
        run_cell(cell, ToyData(), replace(TOY, encoder="gru"))


def test_name_settings_are_those_of_the_published_trial():
    settings = NameSettings()
    assert settings.config == NAME_CONFIG
    assert (settings.width, settings.channels, settings.feature_dim, settings.dropout) == (4, 96, 64, 0.3)
    assert (NAME_CONFIG.lambda1, NAME_CONFIG.lambda2, NAME_CONFIG.k, NAME_CONFIG.private_dim) == (
        0.1,
        0.5,
        2,
        32,
    )
