"""The problem of a configuration: its sources and options reach the problem, or a sentence says why not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from toy_diagnosis import KINDS, TARGETS, sentences, write_digits, write_tagged

from xferkit.diagnosis import DigitProblem, TagProblem, TextProblem, images, names, tagging
from xferkit.diagnosis.config import DiagnosisConfig, ProblemKind, diagnosis_config, open_problem

SOURCES = {"texts": ("dvd",), "names": ("de",), "tagging": ("yy",), "digits": ("mnist",)}
PLAIN = {
    "texts": "columns, encoding",
    "names": "labelled, lowercase",
    "tagging": "labelled, caps, max_test",
    "digits": "epsilon_x, epsilon_y, label_ratio, per_class, max_train, max_test, data_seed",
}


def write_texts(folder: Path, header: str = "text\tlabel") -> None:
    """Three tasks with rows enough for every part."""
    for name in ("books", "dvd", "pets"):
        rows = [f"{text}\t{label}" for text, label in sentences(name, 300)]
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("data")
    for name, write in (("texts", write_texts), ("tagging", write_tagged), ("digits", write_digits)):
        (base / name).mkdir()
        write(base / name)
    return base


def config(kind: str, **changes: Any) -> DiagnosisConfig:
    target = "en" if kind == "names" else TARGETS[kind]
    values = {
        "problem": kind,
        "target": target,
        "sources": SOURCES[kind],
        "data": "" if kind == "names" else kind,
        **changes,
    }
    return DiagnosisConfig(**values)


def test_every_kind_of_problem_is_tried_here() -> None:
    assert set(get_args(ProblemKind)) == set(KINDS) == set(SOURCES) == set(PLAIN)


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_named_sources_are_read(kind: str, folder: Path) -> None:
    problem = open_problem(config(kind), folder)
    assert set(problem.tasks) - {problem.target} == set(SOURCES[kind])


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_source_is_refused(kind: str, folder: Path) -> None:
    with pytest.raises((ValueError, KeyError), match="qq"):
        open_problem(config(kind, sources=("qq",)), folder)


def test_no_sources_are_all_that_there_are(folder: Path) -> None:
    assert open_problem(config("digits", sources=()), folder).tasks == ("usps", "mnist")
    assert set(open_problem(config("texts", sources=()), folder).tasks) == {"books", "dvd", "pets"}
    assert len(open_problem(config("names", sources=()), folder).tasks) > 10


def test_tagging_names_its_sources() -> None:
    with pytest.raises(ValueError, match=r"^sources is missing; expected the names of the other languages"):
        config("tagging", sources=())


def test_a_source_is_named_once() -> None:
    with pytest.raises(ValueError, match=r"^sources names 'dvd' twice; expected each task once$"):
        config("texts", sources=("dvd", "pets", "dvd"))


def test_options_reach_the_problem(folder: Path) -> None:
    recipe = replace(images.RECIPE, steps=3)
    digits = open_problem(
        config("digits", options={"epsilon_x": 1, "max_train": 30, "recipe": recipe}, metric="macro_f1"),
        folder,
    )
    assert isinstance(digits, DigitProblem)
    assert (digits.epsilon_x, digits.max_train, digits.metric) == (1.0, 30, "macro_f1")
    assert digits.recipe is recipe
    settings = replace(tagging.TAGGER, min_count=1)
    caps = {"caps": {"xx": 3}, "labelled": True, "settings": settings}
    tags = open_problem(config("tagging", options=caps), folder)
    assert isinstance(tags, TagProblem) and tags.sizes()["xx"]["train"] == 3 and tags.tagger is settings


def test_columns_are_given_as_a_mapping(tmp_path: Path) -> None:
    write_texts(tmp_path, "review\tstars")
    options = {"columns": {"text": "review", "label": "stars"}}
    texts = open_problem(config("texts", data="", options=options), tmp_path)
    assert isinstance(texts, TextProblem) and texts.classes == ("neg", "pos")


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_option_is_named_with_those_that_there_are(kind: str) -> None:
    with pytest.raises(ValueError) as caught:
        config(kind, options={"zzz": 1})
    assert str(caught.value) == f"options: unknown option 'zzz'; expected some of {PLAIN[kind]}"


def test_the_nearest_option_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"^options: unknown option 'epsilonx'; the nearest is 'epsilon_x'; expected"
    ):
        config("digits", options={"epsilonx": 0.5})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("target", "target"),
        ("sources", "sources"),
        ("tasks", "sources"),
        ("data", "data"),
        ("folder", "data"),
        ("metric", "metric"),
    ],
)
def test_what_has_a_key_is_no_option(kind: str, name: str, key: str) -> None:
    with pytest.raises(
        ValueError, match=f"^options names '{name}'; expected the key '{key}' beside options$"
    ):
        config(kind, options={name: "x"})


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("digits", {"epsilon_x": "0.3"}, "epsilon_x is '0.3'; expected a number"),
        ("digits", {"max_train": 2.5}, "max_train is 2.5; expected a whole number"),
        ("digits", {"max_train": True}, "max_train is True; expected a whole number"),
        ("names", {"labelled": "yes"}, "labelled is 'yes'; expected true or false"),
        ("names", {"settings": {"width": 3}}, "settings is {'width': 3}; expected an object of NameSettings"),
        ("tagging", {"caps": [3]}, r"caps is \[3\]; expected a mapping"),
        ("tagging", {"caps": {"xx": "3"}}, "caps is {'xx': '3'}; expected a whole number"),
        (
            "texts",
            {"recipe": 3},
            "recipe is 3; expected an object of Recipe, which no file",
        ),
    ],
)
def test_a_value_of_another_type_is_refused(kind: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^options: {sentence}"):
        config(kind, options=options)


def test_the_sentence_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.yaml"
    path.write_text("problem: digits\ntarget: usps\noptions: {epsilon: 0.5}\n")
    with pytest.raises(ValueError) as caught:
        diagnosis_config(path)
    assert str(caught.value).startswith(
        f"{path}: options: unknown option 'epsilon'; the nearest is 'epsilon_"
    )


def test_a_fault_inside_a_problem_is_not_laid_at_the_options(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("a fault of our own")

    monkeypatch.setattr(DigitProblem, "_spoil", broken)
    with pytest.raises(TypeError, match=r"^a fault of our own$"):
        open_problem(config("digits"), folder)


def test_a_recipe_is_given_by_what_differs() -> None:
    changed = {"recipe": {"steps": 7, "dropout": 0.1}}
    found = open_problem(DiagnosisConfig(problem="names", target="en", sources=("de",), options=changed))
    assert found.recipe == replace(names.RECIPE, steps=7, dropout=0.1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("recipe", "sentence"),
    [
        ({"step": 7}, "unknown key 'step' of recipe; the nearest is 'steps'"),
        ({"sizes": {}}, "unknown key 'sizes' of recipe"),
        ({"steps": 0}, "recipe: steps must be at least 1, got 0"),
        ({"steps": "many"}, "steps"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_sentence(recipe: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        DiagnosisConfig(problem="names", target="en", options={"recipe": recipe})


def test_names_have_no_data() -> None:
    with pytest.raises(ValueError, match="data is 'x'; expected none"):
        DiagnosisConfig(problem="names", target="en", data="x")
