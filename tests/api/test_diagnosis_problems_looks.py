"""Looks at gradients: cosines, the null of one task, norms and losses against autograd by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from toy_diagnosis import KINDS, STEPS, make

from xferkit.data.ragged import RaggedLabels
from xferkit.data.seeding import seeded
from xferkit.diagnosis import RunSpec
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
        assert look.cosine["-".join(tasks)][place] == pytest.approx(expected, abs=1e-5)
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
        assert set(look.cosine) == {"xx-yy", "xx-zz", "yy-zz"}
        assert all(abs(v) <= 1 + 1e-9 for values in look.cosine.values() for v in values)
        assert {len(v) for v in (*look.cosine.values(), *look.norm.values())} == {len(look.groups)}
    assert found[0].loss != found[1].loss


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
    with pytest.raises(ValueError, match="'books' has 1 training examples; expected at least 2"):
        halves_of("books", 0, texts.select(one), labels[:1], 4, 1)
    with pytest.raises(ValueError, match="has no classifier to look at"):
        classifier_of(object())
