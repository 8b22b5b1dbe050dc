"""GradVac and PCGrad on Gram matrices: against vectors, their identities, and each defect seen in other libraries."""

from __future__ import annotations

import itertools
import math
from types import ModuleType
from typing import Any

import pytest
import torch
from surgery_vectors import KINDS, conflicting, cosine_of, normal, random_case, random_orders, vaccinate
from torch import Tensor

import xfercore
from xfercore.reference.gradient_surgery import surgery_order
from xfercore.testing import assert_close, same_values

CASES = 80  # of each kind
SEED_STEP = torch.tensor([2**40 + 17, 5])


def _zeros(gram: Tensor) -> Tensor:
    return torch.zeros_like(gram)


# ---- against vectors


@pytest.mark.parametrize("kind", KINDS)
def test_random_cases_agree_with_vectors(kind: str) -> None:
    """Rows within max(1e-9, 1e-14 / (|g'|/|g|)) of the vector loop, averages and cosines with them."""
    rows = 0
    for seed in range(CASES):
        case = random_case(kind, seed)
        found, wanted = case.actual(), case.expected()
        actual = found.coefficients[0] @ case.g
        eps = case.kwargs.get("residual_eps", 1e-6)
        for i, (one, other) in enumerate(zip(actual, wanted.rows, strict=True)):
            what = f"{case.name}, row {i}"
            least, norm = wanted.least[i], float(case.g[i].norm())
            if eps / 2 < least < 2 * eps or least < 1e-14:  # rounding decides what has vanished
                continue
            bound = max(1e-9, 1e-14 / least)
            assert float((one - other).norm()) <= bound * max(norm, float(other.norm())), what
            # A cosine with what is left of a gradient carries the rounding of the whole.
            tolerance = {"rtol": 0.0, "atol": max(1e-9, 1e-14 / least**2)}
            torch.testing.assert_close(
                found.cosine[0, i], wanted.cosine[i], equal_nan=True, msg=what, **tolerance
            )
            torch.testing.assert_close(found.ema[0, i], wanted.ema[i], msg=what, **tolerance)
            clear = wanted.margin[i].abs() > tolerance["atol"]
            assert torch.equal(found.moved[0, i][clear], wanted.moved[i][clear]), what
            rows += 1
        assert_close(found.weights[0], found.coefficients[0].sum(0), f"{case.name}: weights", tolerance=1e-14)
        if float(found.weights.abs().max()) > 1e38:  # a ratio of norms beyond float32
            continue
        g = case.g.float()
        combined = xfercore.combine_gradients(g, None, found.weights).double()
        parts = found.weights[0][:, None] * g.double()
        assert bool(((combined - parts.sum(0)).abs() <= 1e-6 * parts.abs().sum(0) + 1e-37).all()), case.name
    assert rows > CASES, "the cases were all passed over"


def test_groups_are_surgeries_of_their_own() -> None:
    g, offsets = conflicting(4, 60), [0, 1, 21, 21, 60]
    order = random_orders(4, groups=4)
    found = xfercore.gradvac_coef(
        gram := xfercore.task_gram(g, offsets), ema := _zeros(gram) + 0.1, order=order, beta=0.5
    )
    for k, (a, b) in enumerate(itertools.pairwise(offsets)):
        alone = vaccinate(g[:, a:b], ema[k], order[k], beta=0.5)
        assert_close(found.coefficients[k] @ g[:, a:b], alone.rows, f"group {k}", tolerance=1e-12)
        assert_close(found.ema[k], alone.ema, f"group {k}", tolerance=1e-12)


# ---- identities


@pytest.mark.parametrize("kind", KINDS)
def test_pcgrad_is_gradvac_with_target_0_and_beta_0_to_the_bit(kind: str) -> None:
    for seed in range(10):
        case = random_case(kind, seed)
        gram = xfercore.task_gram(case.g)
        kwargs: dict[str, Any] = {k: v for k, v in case.kwargs.items() if k in ("task_mask", "apply_to")}
        pcgrad = xfercore.pcgrad_coef(gram, order=case.order, **kwargs)
        fixed = xfercore.gradvac_coef(gram, None, order=case.order, beta=0.0, target=0.0, **kwargs)
        averaged = xfercore.gradvac_coef(gram, _zeros(gram), order=case.order, beta=0.0, **kwargs)
        for one, two, three in zip(pcgrad, fixed, averaged, strict=True):
            assert same_values(one, two) and same_values(one, three)


@pytest.mark.parametrize("target", [-0.5, 0.0, 0.3, 0.9, 0.999])
def test_a_fixed_target_is_reached_exactly_where_the_row_has_one_partner(target: float) -> None:
    for seed in range(30):
        g = normal(2, 50, seed=seed)
        g[1] -= (seed % 5) * 0.2 * g[0]
        found = xfercore.gradvac_coef(xfercore.task_gram(g), order=torch.arange(2), target=target)
        for i, row in enumerate(found.coefficients[0] @ g):
            before = cosine_of(g[0], g[1])
            assert bool(found.moved[0, i, 1 - i]) == (before < target)
            assert abs(cosine_of(row, g[1 - i]) - max(before, target)) < 1e-12
            assert abs(float(found.cosine[0, i, 1 - i]) - before) < 1e-14


def test_a_cosine_above_the_target_is_never_lowered() -> None:
    g = normal(3, 40) + 2 * normal(40, seed=1)
    found = xfercore.gradvac_coef(xfercore.task_gram(g), order=torch.arange(3), target=0.1)
    assert not found.moved.any() and torch.equal(found.coefficients[0], torch.eye(3, dtype=torch.float64))


def test_weighing_tasks_is_weighing_their_losses() -> None:
    g, order = conflicting(5, 60), random_orders(5)
    scale = torch.tensor([0.5, 1.0, 2.0, 0.1, 7.0], dtype=torch.float64)
    ema = _zeros(gram := xfercore.task_gram(g)) + 0.2
    weighted = xfercore.gradvac_coef(gram, ema, order=order, task_weights=scale)
    scaled = xfercore.gradvac_coef(xfercore.task_gram(scale[:, None] * g), ema, order=order)
    one = xfercore.combine_gradients(g, None, weighted.weights)
    other = xfercore.combine_gradients(scale[:, None] * g, None, scaled.weights)
    assert_close(one, other, "combined", tolerance=1e-12)
    assert_close(weighted.ema, scaled.ema, "ema", tolerance=1e-12)


def test_tasks_outside_apply_to_keep_their_gradient_and_stay_references() -> None:
    g = conflicting(4, 60)
    low = torch.tensor([False, True, False, True])
    found = xfercore.pcgrad_coef(xfercore.task_gram(g), order=random_orders(4), apply_to=low)
    eye = torch.eye(4, dtype=torch.float64)
    assert torch.equal(found.coefficients[0][~low], eye[~low])
    assert found.moved[0][low][:, ~low].any() and not found.moved[0][~low].any()


# ---- the averages


def test_the_average_takes_the_cosine_from_before_the_move_moved_or_not() -> None:
    g = normal(2, 30)
    g[1] -= 0.8 * g[0]
    gram, before = xfercore.task_gram(g), cosine_of(g[0], g[1])
    for start, moves in ((0.9, True), (-0.9, False)):
        ema = torch.full_like(gram, start)
        found = xfercore.gradvac_coef(gram, ema, order=torch.arange(2), beta=0.25)
        assert bool(found.moved[0, 0, 1]) == moves
        assert abs(float(found.ema[0, 0, 1]) - (0.75 * start + 0.25 * before)) < 1e-14
        assert float(ema[0, 0, 1]) == start, "the old average was written to"
    newest = xfercore.gradvac_coef(gram, torch.zeros_like(gram), order=torch.arange(2), beta=1.0)
    assert abs(float(newest.ema[0, 1, 0]) - before) < 1e-14


def test_the_cosine_is_of_the_modified_gradient_with_the_raw_one() -> None:
    """Visited second, j sees g'_i; as a reference, j is what it was before its own surgery."""
    g = conflicting(3, 40)
    found = xfercore.pcgrad_coef(xfercore.task_gram(g), order=torch.arange(3))
    first = g[0] - min(0.0, float(g[0] @ g[1])) / float(g[1] @ g[1]) * g[1]
    assert abs(float(found.cosine[0, 0, 2]) - cosine_of(first, g[2])) < 1e-12
    assert abs(cosine_of(first, g[2]) - cosine_of(g[0], g[2])) > 1e-3
    assert abs(float(found.cosine[0, 2, 0]) - cosine_of(g[2], g[0])) < 1e-12


def test_averages_are_directional_and_carry_on_from_a_saved_state() -> None:
    ema = torch.zeros(1, 3, 3, dtype=torch.float64)
    kept: list[Tensor] = []
    for step in range(6):
        gram = xfercore.task_gram(conflicting(3, 40, seed=step))
        seed_step = torch.tensor([3, step])
        ema = xfercore.gradvac_coef(gram, ema, seed_step=seed_step, beta=0.5).ema
        kept.append(ema.clone())
    assert not torch.allclose(ema, ema.mT)
    again = kept[2]  # what a checkpoint brings back
    for step in range(3, 6):
        gram = xfercore.task_gram(conflicting(3, 40, seed=step))
        again = xfercore.gradvac_coef(gram, again, seed_step=torch.tensor([3, step]), beta=0.5).ema
    assert torch.equal(again, ema)


@pytest.mark.parametrize("shape", [(1, 4, 4), (2, 3, 3), (3, 3), (1, 3, 4)])
def test_averages_of_other_tasks_or_groups_are_refused(shape: tuple[int, ...]) -> None:
    gram = xfercore.task_gram(normal(3, 10))
    with pytest.raises(ValueError, match=r"gradvac_coef\(\): ema must have shape .* = \[1, 3, 3\], got"):
        xfercore.gradvac_coef(gram, torch.zeros(shape, dtype=torch.float64), seed_step=SEED_STEP)


# ---- defects of others


@pytest.mark.parametrize("how", ["masked", "zero", "masked-nan"])
def test_an_absent_task_leaves_its_row_and_its_averages_untouched(how: str) -> None:
    """Ten steps without a task are ten steps without news of it; others forget it meanwhile."""
    g = conflicting(4, 60)
    mask = torch.tensor([True, True, False, True])
    g[2] = math.nan if how == "masked-nan" else 0.0 if how == "zero" else g[2]
    kwargs = {} if how == "zero" else {"task_mask": mask}
    start = torch.full((1, 4, 4), 0.4, dtype=torch.float64)
    ema = start
    for step in range(10):
        found = xfercore.gradvac_coef(
            xfercore.task_gram(g), ema, seed_step=torch.tensor([1, step]), beta=0.5, **kwargs
        )
        ema = found.ema
    assert torch.equal(ema[0, 2], start[0, 2]) and torch.equal(ema[0, :, 2], start[0, :, 2])
    assert (ema[0][~torch.eye(4, dtype=torch.bool) & mask & mask[:, None]] != 0.4).all()
    assert found.cosine[0, 2].isnan().all() and found.cosine[0, :, 2].isnan().all()
    assert not found.moved[0, 2].any() and not found.moved[0, :, 2].any()
    own = torch.zeros(4, dtype=torch.float64)
    own[2] = float(how == "zero")
    assert torch.equal(found.coefficients[0, 2], own) and torch.equal(found.coefficients[0, :, 2], own)
    three = xfercore.gradvac_coef(
        xfercore.task_gram(g[mask]), torch.full((1, 3, 3), 0.4, dtype=torch.float64), order=torch.arange(3)
    )
    rest = xfercore.gradvac_coef(xfercore.task_gram(g), start, order=torch.tensor([0, 1, 2, 3]), **kwargs)
    assert_close(rest.coefficients[0][mask][:, mask], three.coefficients[0], "the others", tolerance=1e-12)


@pytest.mark.parametrize("second", [1.0, -1.0])
def test_a_vanished_residual_leaves_the_rest_of_its_row_untouched(second: float) -> None:
    """g_0 = -g_1: nothing is left of either, and what rounding leaves has no direction."""
    g = normal(3, 50)
    g[1] = -g[0]
    g[2] *= second
    start = torch.full((1, 3, 3), 0.0, dtype=torch.float64)
    found = xfercore.gradvac_coef(xfercore.task_gram(g), start, order=torch.tensor([1, 0, 2]), beta=0.5)
    assert float(found.cosine[0, 0, 1]) == pytest.approx(-1.0) and float(found.ema[0, 0, 1]) == pytest.approx(
        -0.5
    )
    for i in (0, 1):
        assert found.cosine[0, i, 2].isnan() and found.ema[0, i, 2] == 0.0 and not found.moved[0, i, 2]
        assert float((found.coefficients[0, i] @ g).norm()) <= 1e-12 * float(g[i].norm())
    # residual_eps says where that is: with 0 the search goes on, with 0.9 it ends early.
    early = xfercore.pcgrad_coef(
        xfercore.task_gram(conflicting(6, 20)), order=torch.arange(6), residual_eps=0.9
    )
    late = xfercore.pcgrad_coef(
        xfercore.task_gram(conflicting(6, 20)), order=torch.arange(6), residual_eps=0.0
    )
    assert early.cosine.isnan().sum() > late.cosine.isnan().sum() == 6


def test_overflow_of_the_gram_itself_never_reaches_the_averages() -> None:
    """float64 gradients whose squared norm overflows, while their products with others do not."""
    g = torch.tensor([[1e160, 0.0, 1.0], [1.0, 1.0, 0.0], [-1.0, 0.5, 0.0]], dtype=torch.float64)
    start = torch.full((1, 3, 3), 0.25, dtype=torch.float64)
    found = xfercore.gradvac_coef(xfercore.task_gram(g), start, order=torch.arange(3), beta=0.5)
    assert torch.equal(found.ema[0, 0], start[0, 0]) and torch.equal(found.ema[0, :, 0], start[0, :, 0])


def test_a_task_is_never_set_against_itself() -> None:
    """Wherever an order puts it. Its cosine would be 1, and an average of 1 would move it."""
    gram = xfercore.task_gram(conflicting(4, 60))
    ema = torch.eye(4, dtype=torch.float64)[None] * 0.7 + 0.1
    for order in itertools.permutations(range(4)):
        found = xfercore.gradvac_coef(gram, ema, order=torch.tensor(order), beta=1.0)
        own = found.cosine[0].diagonal(), found.ema[0].diagonal(), found.moved[0].diagonal()
        assert own[0].isnan().all() and torch.equal(own[1], ema[0].diagonal()) and not own[2].any()


@pytest.mark.parametrize("average", [0.999, 1.0, 1.5])
def test_an_average_near_1_does_not_explode_the_step(average: float) -> None:
    g = normal(2, 50)
    g[1] -= 0.5 * g[0]
    gram = xfercore.task_gram(g)
    for clip, largest in ((1 - 1e-6, 1500.0), (0.9, 5.0), (0.0, 1.0 + 1e-12)):
        found = xfercore.gradvac_coef(
            gram, torch.full_like(gram, average), order=torch.arange(2), target_clip=clip
        )
        rows = found.coefficients[0] @ g
        assert rows.isfinite().all() and bool((rows.norm(dim=1) <= largest * g.norm(dim=1)).all())
        assert abs(cosine_of(rows[0], g[1]) - min(average, clip)) < 1e-9
    ema = torch.full_like(gram, average)
    for step in range(50):  # parallel gradients drive the average to 1 and no further
        same = xfercore.task_gram(normal(1, 50, seed=step).expand(2, 50))
        ema = xfercore.gradvac_coef(same, ema, order=torch.arange(2), beta=0.9).ema
        assert ema.isfinite().all()
    assert float(ema[0, 0, 1]) == pytest.approx(1.0, abs=1e-9) and float(ema[0, 0, 1]) <= 1.0 + 1e-9


def test_the_order_is_a_function_of_seed_step_group_and_task() -> None:
    gram = xfercore.task_gram(conflicting(6, 90), [0, 30, 60, 90])
    ema = _zeros(gram) + 0.2
    for seed_step in (SEED_STEP, torch.tensor([-1, 0]), torch.tensor([2**62, -(2**63)])):
        drawn = surgery_order(seed_step, 3, 6)
        assert torch.equal(drawn.sort(-1).values, torch.arange(6).expand(3, 6, 6))
        one = xfercore.gradvac_coef(gram, ema, seed_step=seed_step)
        other = xfercore.gradvac_coef(gram, ema, order=drawn)
        assert all(same_values(a, b) for a, b in zip(one, other, strict=True))
    base = xfercore.gradvac_coef(gram, ema, seed_step=torch.tensor([1, 2]))
    for seed_step in ([2, 2], [1, 3], [1 + 2**32, 2], [1, 2 + 2**32]):
        changed = xfercore.gradvac_coef(gram, ema, seed_step=torch.tensor(seed_step))
        assert not torch.equal(base.weights, changed.weights), seed_step
    rows = surgery_order(SEED_STEP, 3, 6).reshape(18, 6).tolist()
    assert len({tuple(row) for row in rows}) > 12, "rows share their order"


def test_the_global_generator_is_neither_read_nor_moved() -> None:
    gram = xfercore.task_gram(conflicting(6, 90))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = xfercore.gradvac_coef(gram, _zeros(gram), seed_step=SEED_STEP)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    other = xfercore.gradvac_coef(gram, _zeros(gram), seed_step=SEED_STEP)
    assert all(same_values(a, b) for a, b in zip(one, other, strict=True))


def test_every_order_is_as_likely_as_every_other() -> None:
    """Chi-square over the 24 permutations of 4, over steps, over groups, and of neighbouring rows together."""
    names = {order: n for n, order in enumerate(itertools.permutations(range(4)))}
    by_step = [surgery_order(torch.tensor([11, step]), 1, 4)[0] for step in range(1200)]
    by_group = surgery_order(torch.tensor([12, 0]), 1200, 4)
    for drawn in (torch.stack(by_step), by_group):
        index = torch.tensor([names[tuple(row)] for row in drawn.reshape(-1, 4).tolist()]).reshape(-1, 4)
        counts = torch.bincount(index.flatten(), minlength=24).double()
        mean = 4800 / 24
        assert float(((counts - mean) ** 2 / mean).sum()) < 49.7  # 23 degrees of freedom, p = 0.001
        first = drawn[:, :, 0]
        pairs = torch.bincount((first[:, :-1] * 4 + first[:, 1:]).flatten(), minlength=16).double()
        assert float(((pairs - 225) ** 2 / 225).sum()) < 37.7  # 15 degrees of freedom, p = 0.001


# ---- TorchJD, where it is right, and where it is not


@pytest.fixture(scope="module")
def torchjd() -> ModuleType:
    """An independent implementation, also on Gram matrices; its orders come from the global generator."""
    return pytest.importorskip("torchjd.aggregation", reason="torchjd is part of the test extra")


def _torchjd_order(tasks: int, seed: int, among_others: bool) -> Tensor:
    """The orders that it draws after ``manual_seed(seed)``: of all tasks for PCGrad, of the others for GradVac."""
    torch.manual_seed(seed)
    rows = []
    for i in range(tasks):
        others = [j for j in range(tasks) if j != i]
        row = (
            [others[n] for n in torch.randperm(tasks - 1)] + [i]
            if among_others
            else torch.randperm(tasks).tolist()
        )
        rows.append(torch.tensor(row, dtype=torch.int64))
    return torch.stack(rows)


@pytest.mark.parametrize("tasks", [2, 4, 9, 33])
def test_pcgrad_agrees_with_torchjd(torchjd: ModuleType, tasks: int) -> None:
    for seed in range(10):
        g = conflicting(tasks, 120, seed=seed)
        found = xfercore.pcgrad_coef(xfercore.task_gram(g), order=_torchjd_order(tasks, seed, False))
        torch.manual_seed(seed)
        assert_close(
            xfercore.combine_gradients(g, None, found.weights), torchjd.PCGrad()(g), "sum", tolerance=1e-11
        )


@pytest.mark.parametrize("tasks", [2, 4, 9, 33])
def test_gradvac_agrees_with_torchjd_over_steps(torchjd: ModuleType, tasks: int) -> None:
    """Without its eps; its beta is the weight of the newest cosine as well."""
    theirs = torchjd.GradVac(beta=0.3, eps=0.0)
    ema = torch.zeros(1, tasks, tasks, dtype=torch.float64)
    for step in range(12):
        g = conflicting(tasks, 120, seed=step) + 0.3 * normal(120, seed=step + 100)
        found = xfercore.gradvac_coef(
            xfercore.task_gram(g), ema, beta=0.3, order=_torchjd_order(tasks, step, True)
        )
        ema = found.ema
        torch.manual_seed(step)
        assert_close(xfercore.combine_gradients(g, None, found.weights), theirs(g), "sum", tolerance=1e-10)
    assert_close(ema[0], theirs.gramian_weighting._phi_t, "averages", tolerance=1e-10)


def test_torchjd_switches_off_below_1e_5_and_we_do_not(torchjd: ModuleType) -> None:
    g = normal(2, 64)
    g[1] = 0.5 * g[1] - g[0]
    ours, theirs = [], []
    for scale in (1.0, 2.0**-20):  # norms of 1e1 and 1e-5
        torch.manual_seed(0)
        theirs.append(torchjd.GradVac()(g * scale) / scale)
        gram = xfercore.task_gram(g * scale)
        weights = xfercore.gradvac_coef(gram, _zeros(gram), order=torch.arange(2)).weights
        ours.append(xfercore.combine_gradients(g * scale, None, weights) / scale)
    assert torch.equal(ours[0], ours[1])
    assert_close(theirs[0], ours[0], "at norms of 1e1", tolerance=1e-7)
    assert float((theirs[1] - theirs[0]).norm() / theirs[0].norm()) > 0.05
    assert_close(theirs[1], g.sum(0), "it is the plain sum by then", tolerance=0.05)


def test_torchjd_forgets_an_absent_task_and_cannot_load_its_state(torchjd: ModuleType) -> None:
    theirs = torchjd.GradVac(eps=1e-8)
    g = normal(3, 40) + 2 * normal(40, seed=1)
    for _ in range(10):
        theirs(g)
    known = theirs.gramian_weighting._phi_t.clone()
    g[2] = 0.0
    for _ in range(10):
        theirs(g)
    assert float(known[0, 2]) > 0.5 and abs(float(theirs.gramian_weighting._phi_t[0, 2])) < 1e-2
    with pytest.raises(RuntimeError, match="_phi_t"):
        torchjd.GradVac(eps=1e-8).load_state_dict(theirs.state_dict())
