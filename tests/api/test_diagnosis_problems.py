"""Problems of a diagnosis: compute is matched exactly, runs are paired and repeatable, targets have labels or none."""

from __future__ import annotations

import json
import os
import pickle
from collections import Counter
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_diagnosis import BATCH, KINDS, STEPS, TARGETS, make, sentences, toy_names, write_digits, write_texts

from xferkit.data.seeding import seeded
from xferkit.data.streams import DomainData
from xferkit.diagnosis import (
    DigitProblem,
    NameProblem,
    Problem,
    RunResult,
    RunSpec,
    TextProblem,
    TrainedProblem,
)
from xferkit.diagnosis.batches import KnownTexts, TaskStream, equal_shares, temperature_shares
from xferkit.models import TokenSequences


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("problems")


def plain(result: RunResult) -> dict[str, object]:
    return {**asdict(result), "seconds": 0.0}


@pytest.mark.parametrize("kind", KINDS)
def test_per_task_steps_gives_each_task_what_it_has_alone(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    alone = problem.train(RunSpec((problem.target,), 1))
    together = problem.train(RunSpec(problem.tasks, 1, "per_task_steps"))
    assert alone.examples == {problem.target: STEPS * BATCH}
    assert together.examples == dict.fromkeys(problem.tasks, STEPS * BATCH)
    assert alone.steps == together.steps == STEPS


@pytest.mark.parametrize("kind", KINDS)
def test_total_steps_shares_what_one_task_has_alone(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    together = problem.train(RunSpec(problem.tasks, 1, "total_steps"))
    assert sum(together.examples.values()) == STEPS * BATCH and together.steps == STEPS
    assert max(together.examples.values()) - min(together.examples.values()) <= 1
    alone = [problem.train(RunSpec((problem.target,), 1, m)) for m in ("total_steps", "per_task_steps")]
    assert plain(alone[0]) == plain(alone[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_the_same_again_and_after_pickling(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    spec = RunSpec(problem.tasks, 3, "total_steps", observe=2)
    first = problem.train(spec)
    copy = pickle.loads(pickle.dumps(problem))
    assert plain(copy.train(pickle.loads(pickle.dumps(spec)))) == plain(first)
    assert copy.fingerprint() == problem.fingerprint() and len(problem.fingerprint()) == 64
    backwards = problem.train(replace(spec, tasks=problem.tasks[::-1]))
    assert plain(backwards) == plain(first)
    unseen = problem.train(replace(spec, observe=0))
    assert (unseen.scores, unseen.correct) == (first.scores, first.correct), "looking changed the training"
    assert plain(RunResult.from_json(json.loads(json.dumps(asdict(first))))) == plain(first)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_of_every_task_and_agree_with_the_examples(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    assert problem.target == TARGETS[kind]
    for part in ("dev", "test"):
        found = problem.train(RunSpec(problem.tasks[1:2], 1, part=part))
        assert set(found.scores) == set(problem.tasks) and list(found.correct) == [problem.target]
        right = found.correct[problem.target]
        count = problem.sizes()[problem.target][part]
        assert len(right) == count and (kind == "tagging" or set(right) <= {0, 1})
        assert found.scores[problem.target] == pytest.approx(np.mean(right))
        assert len(list(problem.texts(problem.target, part))) == problem.sizes()[problem.target][part]


def _start(problem: TrainedProblem, tasks: tuple[str, ...]) -> dict[str, torch.Tensor]:
    with seeded(7):
        method = problem._method(RunSpec(tasks, 1), tasks, problem._data(tasks))
    return {name: p.detach() for name, p in method.module.named_parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_are_paired(kind: str, folder: Path) -> None:
    """The target's examples in their order, and the first parameters, do not depend on the sources."""
    problem = make(kind, folder)
    target = problem.target
    rows = {}
    for tasks in ((target,), problem.tasks, (target, problem.tasks[-1])):
        spec = RunSpec(tasks, 5)
        stream = problem._streams(spec, tasks, problem._data(tasks))["labelled"]
        rows[tasks] = [stream.draw()._rows[tasks.index(target)].tolist() for _ in range(9)]
        other = problem._streams(replace(spec, seed=6), tasks, problem._data(tasks))["labelled"]
        assert rows[tasks] != [other.draw()._rows[tasks.index(target)].tolist() for _ in range(9)]
    first, *others = rows.values()
    assert all(one == first for one in others)
    alone, together = _start(problem, (target,)), _start(problem, problem.tasks)
    assert list(alone) == list(together)
    assert all(torch.equal(alone[name], together[name]) for name in alone)


@pytest.mark.parametrize("kind", KINDS)
def test_width_scales_hidden_sizes(kind: str, folder: Path) -> None:
    problem = make(kind, folder)
    sizes = []
    for width in (0.5, 1.0, 2.0):
        spec = RunSpec(problem.tasks, 1, width=width)
        method = problem._method(spec, problem.tasks, problem._data(problem.tasks))
        sizes.append(sum(p.numel() for p in method.module.parameters()))
    assert sizes[0] < sizes[1] < sizes[2]
    assert problem.train(RunSpec((problem.target,), 1, width=2.0)).steps == STEPS


def test_problems_satisfy_the_protocol(folder: Path) -> None:
    for kind in KINDS:
        problem: Problem = make(kind, folder)
        assert problem.metric == "accuracy" and problem.higher_is_better
        assert problem.target in problem.describe() and problem.name in json.dumps(problem.settings())
        features = problem.encode(problem.target)
        assert features is not None and features.dtype == np.float32 and features.ndim == 2
        assert np.isfinite(features).all() and len(features) >= problem.sizes()[problem.target]["train"]
        with pytest.raises(ValueError, match=r"no task '.*' \(did you mean|no task .*expected one of"):
            problem.texts(problem.target + "x")


@pytest.mark.parametrize("method", ["man_moe", "man", "language_gate", "gate_weighted_pooling", "gradvac"])
def test_every_method_trains_with_and_without_labels_of_the_target(method: str) -> None:
    for labelled in (True, False):
        problem = NameProblem("xx", ("yy", "zz"), labelled=labelled, data=toy_names())
        problem.recipe = replace(problem.recipe, steps=4, batch_size=6)
        found = problem.train(RunSpec(problem.tasks, 1, "total_steps", method, observe=1))
        assert set(found.scores) == {"xx", "yy", "zz"}
        assert set(found.looks[0].null) == set(problem.everything)
        # A gate of its own stage reads labelled names too, half as many.
        assert sum(found.examples.values()) == (36 if method == "gate_weighted_pooling" else 24)


def test_a_target_without_labels_is_scored_and_not_trained_on() -> None:
    problem = NameProblem("xx", ("yy", "zz"), data=toy_names())
    assert problem.tasks == ("yy", "zz") and problem.labels("xx") == () and problem.labels("xx", "dev")
    assert "unlabelled" in problem.sizes()["xx"] and "train" not in problem.sizes()["xx"]
    with pytest.raises(ValueError, match=r"^no task 'xx'.*; expected one of yy, zz$"):
        problem.train(RunSpec(("xx", "yy"), 1))
    with pytest.raises(ValueError, match="the target 'xx' is among the sources"):
        NameProblem("xx", ("xx", "yy"), data=toy_names())


def test_a_task_that_was_trained_on_is_read_as_such() -> None:
    """But a gate per language has measured the target's by its own texts."""
    problem = NameProblem("xx", ("yy", "zz"), labelled=True, data=toy_names())
    tasks = ("xx", "yy")
    for method_name, numbers in (("man", [0, 1, None]), ("language_gate", [None, 1, None])):
        method = problem._method(RunSpec(tasks, 1, method=method_name), tasks, problem._data(tasks))
        assert [problem._number(method, task, tasks) for task in ("xx", "yy", "zz")] == numbers


def test_characters_that_a_run_never_saw_are_unknown_to_it() -> None:
    problem = NameProblem("xx", ("yy", "zz"), data=toy_names())
    problem.sized = replace(problem.sized, min_count=1)
    shown = "".join(problem._vocabulary.to_json()["characters"])
    number = 2 + shown.index("ß")
    for tasks, known in ((("yy",), False), (("zz",), True)):
        texts, _ = problem._data(tasks)["zz"].parts["test"]
        assert isinstance(texts, KnownTexts)
        assert bool((texts.select(torch.arange(len(texts))).ids == number).any()) is known


def test_development_and_test_parts_do_not_touch_training(folder: Path, tmp_path: Path) -> None:
    write_texts(tmp_path)
    before = TextProblem(tmp_path, "pets", recipe=make("texts", folder).recipe)
    spec = RunSpec(("books", "pets"), 1, part="dev")
    first = before.train(spec)
    with (tmp_path / "pets-test.tsv").open("w") as file:
        file.write("text\tlabel\n" + "".join(f"{t}\t{y}\n" for t, y in sentences("other", 30)))
    (tmp_path / "pets-test.jsonl.gz").unlink()
    after = TextProblem(tmp_path, "pets", recipe=before.recipe)
    assert after.fingerprint() != before.fingerprint()
    assert plain(after.train(spec)) == plain(first)
    assert after.train(replace(spec, part="test")).correct != before.train(replace(spec, part="test")).correct


def test_texts_learn_what_there_is_to_learn(folder: Path) -> None:
    problem = make("texts", folder, steps=40, batch_size=16)
    found = problem.train(RunSpec(("dvd", "pets"), 1, part="test"))
    assert found.scores["books"] == 1.0


def test_weights_and_temperature(folder: Path) -> None:
    problem = make("names", folder)
    tasks = problem.tasks
    built = problem._method(RunSpec(tasks, 1, weights={"yy": 2.0, "zz": 0.0}), tasks, problem._data(tasks))
    assert built.weights.tolist() == pytest.approx([1 / 3, 2 / 3, 0.0])
    found = problem.train(RunSpec(tasks, 1, "total_steps", temperature=1.0))
    total = {task: problem.sizes()[task]["train"] for task in tasks}
    for task in tasks:
        assert abs(found.examples[task] - STEPS * BATCH * total[task] / sum(total.values())) <= 1
    with pytest.raises(ValueError, match=r"method 'gradvac' does not weigh tasks .* expected 'pooled'"):
        problem.train(RunSpec(tasks, 1, method="gradvac", weights={"yy": 2.0}))
    with pytest.raises(ValueError, match=r"option 'lamda1' .* does not exist \(did you mean 'lambda1'\?\)"):
        problem.train(RunSpec(tasks, 1, method="man_moe", options={"lamda1": 1.0}))
    with pytest.raises(ValueError, match=r"option 'batch_size' .* is matched between runs"):
        problem.train(RunSpec(tasks, 1, options={"batch_size": 9}))


@pytest.mark.parametrize("kind", ["names", "tagging"])
def test_with_a_temperature_every_example_counts_alike(kind: str, folder: Path) -> None:
    """A rare task stands in few batches; a mean of its own there would weigh it down twice."""
    problem = make(kind, folder)
    tasks, size = problem.tasks, 4
    data = problem._data(tasks)
    shares = [Fraction(9, 10), Fraction(9, 100), Fraction(1, 100)]
    domains = [DomainData(task, *data[task].labelled) for task in tasks]
    with seeded(1):
        method = problem._method(RunSpec(tasks, 1), tasks, data)
    method.set_weights(torch.tensor([float(share) for share in shares]))
    method.module.eval()
    stream = TaskStream(domains, size, shares, seed=1, name="labelled", shared_mean=True)
    seen = set()
    for _ in range(40):
        batch = stream.next()
        seen.add(len(batch.domains.unique()))
        loss = method.loss(lambda name, batch=batch: batch).total
        log_probs = method.model(batch.inputs).log_probs
        known = batch.labels >= 0
        picked = log_probs.gather(-1, batch.labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)[known]
        assert loss.item() == pytest.approx(-picked.mean().item(), rel=1e-5)
        assert float(batch.share) == pytest.approx(1.0)
    assert seen == {1, 2} or seen == {1, 2, 3}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"tasks": ()}, "tasks must be different ones"),
        ({"tasks": ("a", "a")}, "tasks must be different ones"),
        ({"matching": "own"}, "matching must be one of per_task_steps, total_steps"),
        ({"part": "train"}, "part must be one of dev, test"),
        ({"width": 0.0}, "width must be a number above 0"),
        ({"temperature": float("nan")}, "temperature must be a number above 0"),
        ({"weights": {"c": 1.0}}, "weights names 'c'"),
        ({"weights": {"a": -1.0}}, "weight of 'a' must be at least 0"),
        ({"weights": {"a": 0.0, "b": 0.0}}, "weights are all 0"),
        ({"observe": -1}, "observe must be at least 0"),
    ],
)
def test_a_spec_refuses_what_makes_no_sense(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^RunSpec: .*{sentence}"):
        RunSpec(**{"tasks": ("a", "b"), "seed": 1, **values})


def test_shares_of_a_stream_are_exact_over_time() -> None:
    domains = [
        DomainData(f"t{i}", TokenSequences.from_lists([[i + 1]] * 7), torch.zeros(7).long()) for i in range(5)
    ]
    skewed = temperature_shares([1000, 10, 10, 1, 1], 1.0)
    for shares in (equal_shares(5), skewed):
        assert sum(shares) == 1
        stream = TaskStream(domains, 7, shares, seed=1, name="s")
        for count in range(1, 40):
            assert len(stream.next().domains) == 7
            for share, seen in zip(shares, stream.seen.values(), strict=True):
                assert abs(seen - count * 7 * share) < 2
        state = stream.state_dict()
        again = TaskStream(domains, 7, shares, seed=1, name="s")
        again.load_state_dict(state)
        for _ in range(9):
            assert torch.equal(again.next().inputs.ids, stream.next().inputs.ids)
    assert temperature_shares([100, 1], 2.0)[0] == pytest.approx(Fraction(10, 11))
    with pytest.raises(ValueError, match="expected one process"):
        stream.draw().shard(0, 2)


def test_only_sources_are_spoiled_and_only_some_labels_of_the_target_are_used(tmp_path: Path) -> None:
    write_digits(tmp_path)
    clean = DigitProblem(tmp_path, "usps", label_ratio=0.5, per_class=2)
    spoiled = DigitProblem(tmp_path, "usps", epsilon_x=0.5, epsilon_y=0.9, label_ratio=0.5, per_class=2)
    assert set(Counter(clean.labels("usps")).values()) == {2}
    assert clean.sizes()["usps"]["unlabelled"] == 80 == len(clean.encode("usps"))
    for task, split, same in (("usps", "train", True), ("mnist", "dev", True), ("mnist", "train", False)):
        assert (clean.labels(task, split) == spoiled.labels(task, split)) is same
        assert np.array_equal(clean.texts(task, split), spoiled.texts(task, split)) is same
    wrong = np.mean([a != b for a, b in zip(clean.labels("mnist"), spoiled.labels("mnist"), strict=True)])
    assert wrong == pytest.approx(0.9 * 2 / 3, abs=0.02)
    assert clean.fingerprint() != spoiled.fingerprint()
    none = DigitProblem(tmp_path, "usps", label_ratio=0.0)
    assert none.tasks == ("mnist",) and none.labels("usps") == ()
    with pytest.raises(
        ValueError, match=r"no file 'uspss.npz' \(did you mean 'usps'\?\); expected one of mnist"
    ):
        DigitProblem(tmp_path, "uspss")
    np.savez(tmp_path / "odd.npz", x_train=np.zeros(3))
    with pytest.raises(ValueError, match=r"odd\.npz: no array 'y_train'; expected x_train, y_train"):
        DigitProblem(tmp_path, "usps")


@pytest.mark.slow
def test_reviews_of_six_domains() -> None:
    data = os.environ.get("XFER_DATA")
    if not data:
        pytest.skip("XFER_DATA names no folder of real data")
    problem = TextProblem(Path(data) / "sentiment" / "fdu_mtl", "books")
    assert len(problem.tasks) == 6
    found = problem.train(RunSpec(problem.tasks, 1))
    assert min(found.scores.values()) > 0.7 and len(found.correct["books"]) == problem.sizes()["books"]["dev"]
