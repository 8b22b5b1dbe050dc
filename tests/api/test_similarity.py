"""The record of the tasks' similarities: cosines, windows, bounded memory, files; orders and means over families."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from xferkit.surgery.relatedness import (
    clusters,
    family_means,
    gram_cosines,
    order_by_clustering,
    order_by_family,
)
from xferkit.surgery.similarity import SimilarityRecord, SimilarityRecorder

GROUPS = ("embedding", "hidden")


def gram_of(gradients):
    return torch.einsum("kip,kjp->kij", gradients, gradients)


def direct(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def draw(seed, k=2, t=3, p=7):
    return torch.randn(k, t, p, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# -- the recorder --------------------------------------------------------------------------------------------


def test_windows_hold_the_mean_of_the_steps_cosines():
    recorder = SimilarityRecorder(window=3, flush_every=4)
    steps = [draw(seed) for seed in range(1, 8)]
    for gradients in steps:
        recorder.add(gram_of(gradients), ("a", "b", "c"), GROUPS)
    record = recorder.record()
    assert record.tasks == ("a", "b", "c") and record.groups == GROUPS
    assert record.first.tolist() == [1, 4, 7] and record.last.tolist() == [3, 6, 7]
    assert record.steps.tolist() == [3, 3, 1]
    for window, inside in enumerate((steps[:3], steps[3:6], steps[6:])):
        for k in range(2):
            wanted = np.mean([direct(g[k, 0], g[k, 2]) for g in inside])
            assert record.cosine[window, k, 0, 2] == pytest.approx(wanted, abs=1e-12)
        whole = np.mean([direct(g[:, 0].flatten(), g[:, 2].flatten()) for g in inside])
        assert record.model[window, 0, 2] == pytest.approx(whole, abs=1e-12)
    everything = np.mean([direct(g[1, 0], g[1, 1]) for g in steps])
    assert record.mean("hidden")[0, 1] == pytest.approx(everything, abs=1e-12)
    late = np.mean([direct(g[:, 0].flatten(), g[:, 1].flatten()) for g in steps[3:]])
    assert record.mean(first=4)[0, 1] == pytest.approx(late, abs=1e-12)
    assert record.middle.tolist() == [2, 5, 7]


def test_scale_of_a_gradient_does_not_count_and_extremes_stay_in_bounds():
    gradients = draw(0)
    tiny = gradients * torch.tensor([1e-150, 1.0, 1e120], dtype=torch.float64)[None, :, None]
    np.testing.assert_allclose(gram_cosines(gram_of(tiny)), gram_cosines(gram_of(gradients)), rtol=1e-9)
    same = torch.ones(1, 2, 3, dtype=torch.float32) * torch.tensor([1.0, 0.1])[None, :, None]
    assert np.abs(gram_cosines(gram_of(same))).max() <= 1.0
    with pytest.raises(ValueError, match=r"\[\.\.\., num_tasks, num_tasks\], got \[2, 3\]"):
        gram_cosines(np.zeros((2, 3)))


def test_tasks_come_and_go_and_zero_or_broken_gradients_do_not_count():
    recorder = SimilarityRecorder(window=10)
    first, second, third = draw(1, t=2), draw(2, t=3), draw(3, t=2)
    second[0, 1] = 0.0
    third[0, 1] = torch.nan
    recorder.add(gram_of(first), ("b", "a"), GROUPS)
    recorder.add(gram_of(second), ("a", "b", "c"), GROUPS)
    recorder.add(gram_of(third), ("a", "c"), GROUPS)
    record = recorder.record()
    assert record.tasks == ("b", "a", "c")
    b, a, c = range(3)
    assert record.cosine[0, 0, a, b] == pytest.approx(direct(first[0, 0], first[0, 1]))
    assert record.count[0, 0, a, b] == 1 and record.count[0, 1, a, b] == 2
    assert record.cosine[0, 0, a, c] == pytest.approx(direct(second[0, 0], second[0, 2]))
    assert record.count[0, 0, a, c] == 1 and record.model_count[0, a, c] == 1
    assert record.model_count[0, a, b] == 2, "a zero in one layer is no zero in the model"
    assert np.isnan(record.cosine[0, 0, b, c]) and record.cosine[0, 1, b, c] == pytest.approx(
        direct(second[1, 1], second[1, 2])
    )
    np.testing.assert_allclose(record.model, record.model.transpose(0, 2, 1))


def test_memory_is_bounded_and_joined_windows_lose_nothing():
    bounded, whole = SimilarityRecorder(window=1, max_windows=4, flush_every=3), SimilarityRecorder(window=1)
    for step in range(1, 31):
        gram = gram_of(draw(step))
        bounded.add(gram, "abc", GROUPS, step=step)
        whole.add(gram, "abc", GROUPS, step=step)
    record = bounded.record()
    assert record.window == 8 and record.first.tolist() == [1, 9, 17, 25] and record.steps.sum() == 30
    np.testing.assert_allclose(record.mean(), whole.record().mean(), rtol=1e-12)
    np.testing.assert_allclose(
        record.mean("hidden", last=16), whole.record().mean("hidden", last=16), rtol=1e-12
    )
    assert record.pairs.sum() == 30 * 2 * 3
    with pytest.raises(ValueError, match="no window lies within the steps 2 to 3; windows span 8"):
        record.mean(first=2, last=3)
    with pytest.raises(ValueError, match="no group 'x'; groups are embedding, hidden"):
        record.mean("x")


@dataclass(frozen=True)
class Info:
    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    gram: torch.Tensor | None
    cosine: torch.Tensor | None = None
    moved: torch.Tensor | None = None


def test_a_step_of_surgery_is_taken_as_it_is():
    gram = torch.tensor([[[1.0, -0.5, 0.2], [-0.5, 1.0, 0.1], [0.2, 0.1, 1.0]]], dtype=torch.float64)
    cosine = gram.clone()
    cosine.diagonal(dim1=1, dim2=2).fill_(torch.nan)
    cosine[0, 2, 1] = torch.nan
    moved = (cosine < 0).nan_to_num()
    recorder = SimilarityRecorder(window=100)
    recorder(Info(("a", "b", "c"), ("model",), gram, cosine, moved))
    gram.zero_()  # the surgery may write to its tensors again
    recorder(Info(("a", "b", "c"), ("model",), torch.eye(3, dtype=torch.float64)[None]), 7)
    record = recorder.record()
    assert (record.first[0], record.last[0], record.steps[0]) == (1, 7, 2)
    assert record.cosine[0, 0, 0, 1] == pytest.approx(-0.25)
    assert record.visited.tolist() == [[5]] and record.moved.tolist() == [[2]]
    assert record.active_share[0, 0] == pytest.approx(0.4)
    assert record.pairs.tolist() == [[6]] and record.opposed.tolist() == [[1]]
    assert record.opposed_share[0, 0] == pytest.approx(1 / 6)
    with pytest.raises(ValueError, match="no Gram matrix"):
        recorder(Info(("a",), ("model",), None))


def test_the_real_surgery_can_be_recorded():
    from xferkit.surgery import PCGrad

    model = torch.nn.Linear(4, 2)
    surgery = PCGrad(model, ("a", "b"))
    recorder = SimilarityRecorder()
    for step in range(1, 4):
        x = torch.randn(3, 4)
        recorder(surgery.backward({"a": model(x)[:, 0].sum(), "b": -model(x).square().sum()}), step)
    record = recorder.record()
    assert record.steps.tolist() == [3] and np.isfinite(record.model).all()
    assert record.visited.sum() == 6 and not np.isnan(record.active_share).any()


def test_nothing_is_computed_on_the_host_before_a_flush(monkeypatch):
    calls = []
    real = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: calls.append(self.numel()) or real(self))
    recorder = SimilarityRecorder(flush_every=5)
    for step in range(1, 5):
        recorder.add(gram_of(draw(step)), "abc", GROUPS)
    assert not calls
    recorder.add(gram_of(draw(5)), "abc", GROUPS)
    assert calls == [5 * (2 * 9 + 2 + 2)], "one transfer of everything"
    recorder.record()
    assert len(calls) == 1


def test_a_record_without_steps():
    record = SimilarityRecorder().record()
    assert record.tasks == () and len(record.first) == 0 and record.model.shape == (0, 0, 0)
    with pytest.raises(ValueError, match="no window"):
        record.mean()


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda r: r.add(np.eye(2), "abc"), r"= \[1, 3, 3\], got \[1, 2, 2\]"),
        (lambda r: r.add(np.ones((2, 2, 2)), "ab"), r"= \[1, 2, 2\], got \[2, 2, 2\]"),
        (lambda r: r.add(np.eye(2), "aa"), "different names, got a, a"),
        (lambda r: r.add(np.eye(2)[None], "ab", ["x"]), r"steps before \(model\), got x"),
        (lambda r: r.add(np.eye(2), "ab", step=4), "at least 5, the last one recorded, got 4"),
        (
            lambda r: r.add(np.eye(2), "ab", moved=torch.ones(2, 2)),
            r"moved must have the shape of gram \[1, 2, 2\]",
        ),
    ],
)
def test_what_does_not_fit_gets_a_sentence_and_changes_nothing(call, sentence):
    recorder = SimilarityRecorder()
    recorder.add(np.eye(2), "ab", step=5)
    with pytest.raises(ValueError, match=sentence):
        call(recorder)
    record = recorder.record()
    assert record.tasks == ("a", "b") and record.steps.tolist() == [1]


@pytest.mark.parametrize("name", ["window", "max_windows", "flush_every"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        SimilarityRecorder(**{name: 0})


# -- files ---------------------------------------------------------------------------------------------------


def filled():
    recorder = SimilarityRecorder(window=2)
    recorder.add(gram_of(draw(1, t=2)), ("größer", "b"), GROUPS)
    recorder.add(gram_of(draw(2)), ("b", "größer", "c"), GROUPS)
    recorder.add(gram_of(draw(3, t=1)), ("c",), GROUPS)
    return recorder


def same(one, other):
    assert one.tasks == other.tasks and one.groups == other.groups and one.window == other.window
    for name in ("first", "last", "steps", "cosine", "count", "model", "model_count", "pairs", "moved"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["r.npz", "r.json"])
def test_a_file_holds_the_same_to_the_bit(tmp_path, name):
    record = filled().record()
    record.save(tmp_path / name)
    same(record, SimilarityRecord.load(tmp_path / name))
    empty = SimilarityRecorder().record()
    empty.save(tmp_path / name)
    same(empty, SimilarityRecord.load(tmp_path / name))
    if name.endswith("json"):
        assert "NaN" not in (tmp_path / name).read_text(encoding="utf-8")


def test_a_loaded_record_goes_on(tmp_path):
    whole = filled()
    half = filled()
    half.record().save(tmp_path / "r.npz")
    resumed = SimilarityRecorder.resume(SimilarityRecord.load(tmp_path / "r.npz"))
    for recorder in (whole, resumed):
        recorder.add(gram_of(draw(4, t=2)), ("c", "d"), GROUPS)
    one, other = whole.record(), resumed.record()
    assert other.last.tolist() == [2, 4] and other.tasks == one.tasks
    np.testing.assert_allclose(other.cosine, one.cosine, rtol=1e-12)
    with pytest.raises(ValueError, match="at least 4, the last one recorded, got 3"):
        resumed.add(gram_of(draw(4, t=2)), ("c", "d"), GROUPS, step=3)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("r.npz", lambda raw: raw[: len(raw) // 2], "holds no record of similarities"),
        ("r.npz", lambda raw: b"", "holds no record"),
        ("r.json", lambda raw: raw[:-20], "holds no record"),
        ("r.json", lambda raw: b"[1]", "holds no record"),
        ("r.json", lambda raw: raw.replace(b'"format": 1', b'"format": 9'), "it has format 9, known is 1"),
        ("r.json", lambda raw: raw.replace(b'"first"', b'"frist"'), "it lacks 'first'"),
        ("r.json", lambda raw: raw.replace(b'"b", ', b""), r"model must have shape \[2, 2, 2\]"),
        ("r.json", lambda raw: raw.replace(b'"steps": [2', b'"steps": [2.5'), "steps must be whole numbers"),
    ],
)
def test_damaged_files_are_named(tmp_path, name, damage, reason):
    path = tmp_path / name
    filled().record().save(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=reason) as error:
        SimilarityRecord.load(path)
    assert str(path) in str(error.value)


def test_pickles_are_not_read(tmp_path):
    path = tmp_path / "r.npz"
    content = {name: np.zeros(0) for name in ("first", "last", "steps")}
    np.savez(path, header=np.array([{"a": 1}], dtype=object), **content)
    with pytest.raises(ValueError, match="holds no record"):
        SimilarityRecord.load(path)
    with pytest.raises(ValueError, match=r"must end in \.npz or \.json, got 'r.pkl'"):
        filled().record().save(tmp_path / "r.pkl")


def test_json_is_plain(tmp_path):
    filled().record().save(tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert content["tasks"] == ["größer", "b", "c"] and content["cosine"][1][0][0][0] is None


# -- orders and means ----------------------------------------------------------------------------------------


def blocks(sizes, within=0.8, across=-0.4):
    family = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(family[:, None] == family[None], within, across)
    np.fill_diagonal(matrix, 1.0)
    return matrix, family


def test_family_means_by_hand():
    matrix, _ = blocks((2, 2))
    matrix[0, 1] = matrix[1, 0] = 0.6
    matrix[0, 3] = matrix[3, 0] = np.nan
    means = family_means(matrix, ("x", "x", "y", "y"))
    assert means.within == pytest.approx(0.7) and means.across == pytest.approx(-0.4)
    assert (means.num_within, means.num_across) == (2, 3)
    assert means.by_family == {"x": pytest.approx(0.6), "y": pytest.approx(0.8)}
    alone = family_means(np.eye(1), ("x",))
    assert np.isnan(alone.within) and np.isnan(alone.across) and alone.num_within == 0
    with pytest.raises(ValueError, match=r"one family per task \(4\), got 1"):
        family_means(matrix, ("x",))


def test_orders():
    assert order_by_family("abcd", {"a": 1, "b": 0, "c": 1, "d": 0}) == (0, 2, 1, 3)
    with pytest.raises(ValueError, match="families lacks 'c'"):
        order_by_family("abc", {"a": 1, "b": 1})
    matrix, family = blocks((4, 3, 5))
    rng = np.random.default_rng(0)
    mixed = rng.permutation(len(family))
    shuffled = (matrix + 0.05 * rng.standard_normal(matrix.shape))[np.ix_(mixed, mixed)]
    order = order_by_clustering(shuffled)
    assert sorted(order) == list(range(12))
    found = family[mixed][list(order)]
    assert (np.diff(found) != 0).sum() == 2, "each family stands together"
    labels = np.array(clusters(shuffled, 3))
    assert labels[0] == 0
    for one in range(3):
        assert len(set(labels[family[mixed] == one])) == 1


def test_orders_of_few_tasks_and_of_pairs_never_seen():
    assert order_by_clustering(np.eye(0)) == () and order_by_clustering(np.eye(2)) == (0, 1)
    assert clusters(np.eye(1), 2) == (0,) and clusters(np.zeros((0, 0)), 1) == ()
    matrix, _ = blocks((2, 2))
    matrix[0, 2] = matrix[2, 0] = np.nan
    assert set(order_by_clustering(matrix)[:2]) in ({0, 1}, {2, 3})
    with pytest.raises(ValueError, match="at least 1, got 0"):
        clusters(matrix, 0)
    with pytest.raises(ValueError, match=r"got \[2, 3\]"):
        order_by_clustering(np.zeros((2, 3)))
