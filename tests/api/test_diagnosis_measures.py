"""What a diagnosis measures beside accuracy: macro-F1, sentences as examples, masks of tasks."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from toy_diagnosis import KINDS, make, toy_names

from xferkit.data.seeding import seeded
from xferkit.data.streams import DomainData
from xferkit.diagnosis import NameProblem, RunResult, RunSpec
from xferkit.diagnosis.config import DiagnosisConfig, open_problem
from xferkit.diagnosis.engine import SpecCell
from xferkit.diagnosis.masking import compare_task_masks, unit_sites
from xferkit.diagnosis.observe import classifier_of
from xferkit.diagnosis.plans import LEAST_EXAMPLES, all_tasks_spec, mask_examples, mask_spec
from xferkit.masks import MaskComparison
from xferkit.models import TokenSequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measures")


# ---- scores


@pytest.mark.parametrize("kind", KINDS)
def test_macro_f1_is_that_of_scikit_learn_and_the_other_score_is_told_too(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    spec = RunSpec(problem.tasks, 1)
    by_accuracy = problem.train(spec)
    problem.metric = "macro_f1"
    found = problem.train(spec)
    tasks = problem.tasks
    data = problem._data(tasks)
    trained: dict[str, object] = {}
    predict = problem._answers

    def spy(method, own, part, number):  # type: ignore[no-untyped-def]
        gold, best = predict(method, own, part, number)
        trained.setdefault("pair", (gold, best))
        return gold, best

    problem._answers = spy  # type: ignore[method-assign]
    again = problem.train(spec)
    gold, best = trained["pair"]  # type: ignore[misc]
    assert len(gold) and data[problem.target].parts["dev"]
    assert again.scores == found.scores
    first = problem.everything[0]
    # Of the classes among the labels, which are the same for every model.
    expected = f1_score(gold, best, labels=np.unique(gold), average="macro", zero_division=0)
    assert found.scores[first] == pytest.approx(expected)
    assert by_accuracy.also == {"macro_f1": found.scores[problem.target]}
    assert found.also == {"accuracy": by_accuracy.scores[problem.target]}
    assert found.correct == {problem.target: []}, "macro-F1 is no mean over examples"


def test_the_score_is_a_setting_of_runs_and_configurations() -> None:
    with pytest.raises(ValueError, match="metric must be one of accuracy, macro_f1, got 'f1'"):
        NameProblem("xx", ("yy",), data=toy_names(), metric="f1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"metric is 'macro_f'.*macro_f1"):
        DiagnosisConfig(target="en", metric="macro_f")  # type: ignore[arg-type]
    one, other = (NameProblem("xx", ("yy",), data=toy_names(), metric=m) for m in ("accuracy", "macro_f1"))  # type: ignore[arg-type]
    assert one.settings() != other.settings()
    config = DiagnosisConfig(problem="names", target="en", sources=("de",), metric="macro_f1")
    assert open_problem(config).metric == "macro_f1"


def test_a_sentence_is_one_example_and_their_mean_is_the_accuracy_of_tokens(folder: Path) -> None:
    problem = make("tagging", folder)
    found = problem.train(RunSpec(problem.tasks, 1))
    right = found.correct[problem.target]
    assert len(right) == problem.sizes()[problem.target]["dev"]
    assert np.mean(right) == pytest.approx(found.scores[problem.target])
    assert len(set(right)) > 1


# ---- masks


def test_masks_of_equal_tasks_are_as_alike_as_halves_and_the_model_is_untouched(folder: Path) -> None:
    problem = make("names", folder, steps=60, batch_size=24)
    tasks = problem.tasks
    data = problem._data(tasks)
    with seeded(1):
        method = problem._method(RunSpec(tasks, 1), tasks, data)
    model = classifier_of(method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    own = problem._labelled("xx", data["xx"], "train")

    def run(seed: int = 1) -> object:
        return compare_task_masks(
            method, own, [[own], [problem._labelled("yy", data["yy"], "train")]], batch_size=16, seed=seed
        )

    found = run()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert run() == found and run(2) != found
    several = [problem._labelled(task, data[task], "train") for task in ("yy", "zz")] + [own]
    uneven = compare_task_masks(method, own, [several * 12], batch_size=16, seed=1)
    assert uneven.examples == found.examples  # type: ignore[attr-defined]
    # The same examples, batches and draws but for their order: the first half of the target with itself.
    same = MaskComparison.from_json(found.across[0])  # type: ignore[attr-defined]
    assert found.examples == len(own.inputs) // 2  # type: ignore[attr-defined]
    assert same.whole.centred_cosine > 0.5
    assert {s.name for s in same.sites} == {s.name for s in unit_sites(model)}


def test_masks_tell_tasks_apart_that_need_other_units() -> None:
    """Two tasks of other letters, learned by one network: their masks are less alike than those of halves."""
    problem = make_disjoint()
    spec = RunSpec(problem.tasks, 1, masks=(("same",), ("other",)))
    found = problem.train(spec).masks
    assert found is not None
    halves = MaskComparison.from_json(found.within).whole
    same, other = (MaskComparison.from_json(row).whole for row in found.across)
    assert other.centred_cosine < min(halves.centred_cosine, same.centred_cosine) - 0.1
    assert other.overlap.iou < min(halves.overlap.iou, same.overlap.iou)


def make_disjoint() -> NameProblem:
    """``same`` has the target's letters and ``other`` its own, and each class is a letter."""
    import random

    from xferkit.data.cldr import NameData, Names
    from xferkit.diagnosis import names

    parts: dict[str, dict[str, Names]] = {"train": {}, "test": {}}
    for lang, letters in (("xx", "abcdef"), ("same", "abcdef"), ("other", "uvwxyz")):
        rng = random.Random(lang)
        rows = []
        for number in range(600):
            label = rng.randrange(6)
            text = "".join(rng.choice("....---") for _ in range(3)) + letters[label] + rng.choice(".-")
            rows.append((text, label, f"k:{number}"))
        for part, own in (("train", rows[:500]), ("test", rows[500:])):
            words, labels, keys = zip(*own, strict=True)
            parts[part][lang] = Names(words, np.array(labels, dtype=np.int64), keys)
    data = NameData(("xx", "same", "other"), tuple("123456"), False, parts["train"], parts["test"])
    recipe = replace(names.RECIPE, steps=150, batch_size=64, observed=6)
    return NameProblem("xx", ("same", "other"), labelled=True, data=data, recipe=recipe)


@pytest.mark.parametrize("kind", KINDS)
def test_units_are_hidden_ones_alone(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    with seeded(1):
        method = problem._method(RunSpec(problem.tasks, 1), problem.tasks, problem._data(problem.tasks))
    model = classifier_of(method)
    sites = unit_sites(model)
    names = {part.name for site in sites for part in site.parts}
    assert sites and not any("embed" in name for name in names)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    assert all(shapes[name][0] == site.num_gates for site in sites for name in (p.name for p in site.parts))
    last = [name for name in shapes if name.startswith("predictor") and name.endswith("weight")][-1]
    assert last not in names and shapes[last][0] == problem._num_classes


def test_a_run_with_masks_is_kept_and_read_again(folder: Path) -> None:
    problem = make("texts", folder)
    spec = replace(mask_spec(problem, {"g": ("dvd", "pets")}, 1))
    assert spec.masks == (("dvd", "pets"),) and spec.observe == 0
    cell = SpecCell.of(spec)
    assert cell.run_spec() == spec and "masks" in cell.describe()
    assert cell.cost > SpecCell.of(all_tasks_spec(problem, 1)).cost
    found = problem.train(spec)
    text = json.dumps(asdict(found), allow_nan=False)
    assert RunResult.from_json(json.loads(text)) == found and found.masks is not None
    unmasked = problem.train(replace(spec, masks=()))
    assert (unmasked.scores, unmasked.masks) == (found.scores, None)
    with pytest.raises(ValueError, match="masks must be sets of its tasks"):
        RunSpec(("a", "b"), 1, masks=(("c",),))
    with pytest.raises(ValueError, match="has no masks; expected 'pooled'"):
        problem.train(replace(spec, method="man_moe"))


def test_masks_are_of_one_part_for_target_and_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the target lends development labels, sources do too: the model knows their training examples."""
    from xferkit.diagnosis import names, training

    given: list[list[int]] = []

    def spy(method: object, target: DomainData, groups: list[list[DomainData]], **more: object) -> None:
        given.append([len(target.inputs), *(len(m.inputs) for group in groups for m in group)])

    monkeypatch.setattr(training, "compare_task_masks", spy)
    recipe = replace(names.RECIPE, steps=1, batch_size=4)
    for labelled, split in ((True, "train"), (False, "dev")):
        problem = NameProblem("xx", ("yy", "zz"), labelled=labelled, data=toy_names(), recipe=recipe)
        problem.train(RunSpec(problem.tasks, 1, masks=(("yy",), ("zz",))))
        sizes = [problem.sizes()[task][split] for task in ("xx", "yy", "zz")]
        assert given.pop() == sizes
        assert mask_examples(problem, {"g": ("yy",)}) == min(sizes[0] // 2, sizes[1])


def test_how_many_examples_a_mask_has(folder: Path) -> None:
    problem = make("texts", folder)
    sizes = {task: size["train"] for task, size in problem.sizes().items()}
    half = sizes["books"] // 2
    assert mask_examples(problem, {"g": ("dvd", "pets")}) == min(half, 2 * min(sizes["dvd"], sizes["pets"]))
    assert mask_examples(problem, {"g": ("dvd",), "h": ("pets",)}) == min(half, sizes["dvd"], sizes["pets"])
    assert half < LEAST_EXAMPLES
    one = TokenSequences(torch.ones(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
    single = DomainData("t", one, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="at least two examples of the target"):
        compare_task_masks(None, single, [[single]], batch_size=2, seed=1)
