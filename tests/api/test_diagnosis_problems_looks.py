"""Looks at gradients: cosines, the null of one task, norms and losses against autograd by hand."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_diagnosis import KINDS, SMALL, STEPS, make, toy_names

from xferkit.data.ragged import RaggedLabels
from xferkit.data.seeding import derive_seed, seeded
from xferkit.diagnosis import Look, NameProblem, RunSpec, TrainedProblem, names
from xferkit.diagnosis.observe import GradientObserver, classifier_of, halves_of, look_steps, task_loss


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("looks")


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method_name", ["pooled", "man_moe"])
def test_a_look_is_what_autograd_says(kind: str, method_name: str, folder: Path) -> None:
    problem = make(kind, folder)
    tasks = problem.tasks[:2]
    data = problem._data(tasks)
    with seeded(1):
        method = problem._method(RunSpec(tasks, 1, method=method_name), tasks, data)
    model = classifier_of(method)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    halves = {task: halves_of(task, i, *data[task].labelled, 3, seed=9) for i, task in enumerate(tasks)}
    method.module.eval()
    look = GradientObserver(method, halves).look(4)
    assert look.step == 4 and look.groups[0] == "whole" and len(look.groups) >= 3
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    for place, group in enumerate(look.groups):
        own = [p for n, p in named.items() if group == "whole" or n.startswith(group)]
        flat: dict[str, list[Tensor]] = {}
        for task, half in halves.items():
            flat[task] = []
            for inputs, labels in half.batches:
                model.zero_grad(set_to_none=True)
                task_loss(method, half.number, inputs, labels).backward()
                parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in own]
                flat[task].append(torch.cat(parts).double())
        a, b = (flat[task] for task in tasks)
        if min(float(g.norm()) for g in (*a, *b)) < 1e-9:
            continue
        expected = sum(_cosine(x, y) for x in a for y in b) / 4
        assert look.between(*tasks)[place] == pytest.approx(expected, abs=1e-5)
        assert look.between(*tasks[::-1]) == look.between(*tasks)
        for task in tasks:
            assert look.null[task][place] == pytest.approx(_cosine(*flat[task]), abs=1e-5)
            counts = [float((labels >= 0).sum()) for _, labels in halves[task].batches]
            mean = sum(c * g for c, g in zip(counts, flat[task], strict=True)) / sum(counts)
            assert look.norm[task][place] == pytest.approx(float(mean.norm()), rel=1e-4, abs=1e-7)
    for task, half in halves.items():
        values = [
            (float(task_loss(method, half.number, *b).detach()), int((b[1] >= 0).sum())) for b in half.batches
        ]
        expected = sum(v * n for v, n in values) / sum(n for _, n in values)
        assert look.loss[task] == pytest.approx(expected, rel=1e-5)


def test_looks_of_a_training(folder: Path) -> None:
    problem = make("names", folder)
    found = problem.train(RunSpec(problem.tasks, 1, observe=2)).looks
    assert [look.step for look in found] == list(look_steps(STEPS, 2))
    for look in found:
        assert set(look.null) == set(look.loss) == set(problem.tasks)
        pairs = [look.between(a, b) for a, b in itertools.combinations(problem.tasks, 2)]
        assert len(pairs) == 3 and all(abs(v) <= 1 + 1e-9 for values in pairs for v in values)
        assert {len(v) for v in (*pairs, *look.norm.values())} == {len(look.groups)}
    assert found[0].loss != found[1].loss


@pytest.mark.parametrize("kind", ["no labels", "names", "texts", "tagging"])
def test_a_target_that_is_not_trained_on_is_looked_at(kind: str, folder: Path) -> None:
    if kind == "no labels":
        recipe = replace(names.RECIPE, **SMALL)
        problem: TrainedProblem = NameProblem("xx", ("yy", "zz"), data=toy_names(), recipe=recipe)
    else:
        problem = make(kind, folder)
    others = tuple(task for task in problem.tasks if task != problem.target)
    spec = RunSpec(others, 1, observe=2)
    found = problem.train(spec)
    last = found.looks[-1]
    assert set(last.null) == set(problem.everything) and problem.target not in found.examples
    # By hand, at the start: on its training examples, or where those have no labels on development examples.
    data = problem._data(others)
    with seeded(derive_seed(1, "run")):
        method = problem._method(spec, others, data)
        looked = problem._looked_at(problem._streams(spec, others, data)["labelled"].domains, data)
    number, domain = looked[-1]
    assert number is None and domain.name == problem.target
    split = "dev" if kind == "no labels" else "train"
    assert len(domain.inputs) == problem.sizes()[problem.target][split]
    halves = halves_of(domain.name, number, domain.inputs, domain.labels, problem.recipe.observed, 1)
    model = classifier_of(method)
    model.eval()
    look = GradientObserver(method, {domain.name: halves}).look(1)
    a, b = (
        torch.cat([
            (torch.zeros_like(p) if g is None else g).flatten().double()
            for p, g in zip(
                model.parameters(),
                torch.autograd.grad(task_loss(method, None, *batch), list(model.parameters()), allow_unused=True),
                strict=True,
            )
        ])
        for batch in halves.batches
    )  # fmt: skip
    assert look.null[domain.name][0] == pytest.approx(_cosine(a, b), abs=1e-5)


def test_classes_that_the_model_lacks_are_left_out_of_the_loss(folder: Path) -> None:
    problem = make("names", folder)
    data = problem._data(problem.tasks)
    with seeded(1):
        method = problem._method(RunSpec(problem.tasks, 1), problem.tasks, data)
    method.module.eval()
    texts, labels = data["xx"].parts["dev"]
    rows = torch.arange(6)
    some = labels[rows].clone()
    some[1], some[4] = -1, 99
    kept = torch.tensor([0, 2, 3, 5])
    found = task_loss(method, None, texts.select(rows), some)
    assert found.item() == pytest.approx(
        task_loss(method, None, texts.select(kept), labels[kept]).item(), rel=1e-6
    )


def test_names_with_hyphens_are_not_mixed_up() -> None:
    cosine = {"a-b": {"c": [0.5]}, "a": {"b-c": [-0.5]}}
    look = Look(1, ["whole"], cosine, {}, {}, {})
    assert look.between("a-b", "c") == [0.5] and look.between("b-c", "a") == [-0.5]
    with pytest.raises(KeyError):
        look.between("a", "c")


def test_look_steps_are_spread_over_the_training() -> None:
    assert look_steps(400, 4) == (50, 150, 250, 350)
    assert look_steps(2, 9) == (1, 2)


def test_batches_that_are_looked_at_depend_on_the_task_and_the_seed_alone(folder: Path) -> None:
    texts, labels = make("texts", folder)._data(("books",))["books"].labelled
    assert not isinstance(labels, RaggedLabels)

    def ids(*arguments: object) -> list[list[int]]:
        halves = halves_of(*arguments)
        return [batch[0].ids.tolist() for batch in halves.batches]

    first = ids("books", 0, texts, labels, 4, 1)
    assert first == ids("books", 3, texts, labels, 4, 1) and first[0] != first[1]
    assert first != ids("books", 0, texts, labels, 4, 2) != ids("dvd", 0, texts, labels, 4, 2)
    one = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="'books' has 1 examples to look at; expected at least 2"):
        halves_of("books", 0, texts.select(one), labels[:1], 4, 1)
    with pytest.raises(ValueError, match="has no classifier to look at"):
        classifier_of(object())
