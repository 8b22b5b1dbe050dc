"""What grad_reverse promises beyond the checks generated for all ops: above all, never to lose the reversal."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import xfercore
from xfercore.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, inside its compiler

LAMS: dict[str, Callable[[], float | Tensor]] = {
    "number": lambda: 0.5,
    "tensor": lambda: torch.tensor(0.5),
    "rows": lambda: torch.tensor([0.5, -1.0, 0.0, 2.0]),
}
lams = pytest.mark.parametrize("make_lam", LAMS.values(), ids=list(LAMS))


def _x() -> Tensor:
    return torch.randn(4, 3, generator=torch.Generator().manual_seed(0))


def _loss(lam: float | Tensor) -> Callable[[Tensor], Tensor]:
    return lambda x: (xfercore.grad_reverse(x, lam) ** 3).sum()


def _expected(x: Tensor, lam: float | Tensor) -> Tensor:
    factor = lam if isinstance(lam, float) or lam.dim() == 0 else lam[:, None]
    return -factor * 3 * x**2


@lams
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_forward_is_a_view(make_lam: Callable[[], float | Tensor], dtype: torch.dtype) -> None:
    x = _x().to(dtype).requires_grad_()
    y = xfercore.grad_reverse(x, make_lam())
    assert torch.equal(x, y) and y.data_ptr() == x.data_ptr() and y.dtype == dtype
    view = x.detach().t()
    assert xfercore.grad_reverse(
        view, make_lam() if not isinstance(make_lam(), Tensor) else 0.5
    ).stride() == (view.stride())


@lams
def test_eager_gradient(make_lam: Callable[[], float | Tensor]) -> None:
    x = _x().requires_grad_()
    _loss(make_lam())(x).backward()
    assert x.grad is not None
    assert_close(x.grad, _expected(x, make_lam()), "gradient")


@lams
def test_every_transform_reverses(make_lam: Callable[[], float | Tensor]) -> None:
    """Compiling torch.func.grad of an autograd.Function drops its backward (pytorch#193279); this op must not."""
    x, loss = _x(), _loss(make_lam())
    expected = _expected(x, make_lam())

    def eager(x: Tensor) -> Tensor:
        return torch.autograd.grad(loss(x), x)[0]

    def compiled(x: Tensor, **options: str) -> Tensor:
        torch._dynamo.reset()
        return torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(x), x)[0]

    func = torch.func.grad(loss)
    got = {
        "autograd": eager(x.clone().requires_grad_()),
        "compile(f)": compiled(x.clone().requires_grad_()),
        "func.grad": func(x),
        "func.vjp": torch.func.vjp(loss, x)[1](torch.tensor(1.0))[0],
        "jacrev": torch.func.jacrev(loss)(x),
        "jacfwd": torch.func.jacfwd(loss)(x),
        "vmap(grad)": torch.func.vmap(func)(torch.stack([x, x]))[1],
        "functional.jacobian": torch.autograd.functional.jacobian(loss, x),
        "functional.jacobian vectorised": torch.autograd.functional.jacobian(loss, x, vectorize=True),
        "checkpoint": torch.autograd.grad(
            checkpoint(loss, leaf := x.clone().requires_grad_(), use_reentrant=False), leaf
        )[0],
    }
    torch._dynamo.reset()
    got["compile(func.grad)"] = torch.compile(func, backend="aot_eager")(x)
    torch._dynamo.reset()
    got["compile(func.grad) whole graph"] = torch.compile(func, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()
    got["compile(vmap(grad))"] = torch.compile(torch.func.vmap(func), backend="aot_eager")(x.unsqueeze(0))[0]
    for name, grad in got.items():
        assert_close(grad, expected, name)


@pytest.mark.slow
@lams
def test_compiled_functional_gradient_with_inductor(make_lam: Callable[[], float | Tensor]) -> None:
    torch._dynamo.reset()
    x, loss = _x(), _loss(make_lam())
    assert_close(torch.compile(torch.func.grad(loss))(x), _expected(x, make_lam()), "inductor")


def test_vmap_over_lam_and_x() -> None:
    xs, lams = torch.randn(5, 3), torch.linspace(0, 1, 5)
    grads = torch.func.vmap(torch.func.grad(lambda x, lam: xfercore.grad_reverse(x, lam).sum()))(xs, lams)
    assert_close(grads, -lams[:, None].expand(5, 3), "a lam for every mapped x")


def test_batched_gradients() -> None:
    x = _x().requires_grad_()
    cotangents = torch.randn(5, 4, 3)
    (grads,) = torch.autograd.grad(xfercore.grad_reverse(x, 0.5), x, cotangents, is_grads_batched=True)
    assert_close(grads, -0.5 * cotangents, "one reversal a cotangent")


@pytest.mark.parametrize(
    "lam", [0.0, -0.0, torch.tensor(0.0), torch.zeros(4)], ids=["0", "-0", "0-dim", "rows"]
)
def test_lam_zero_gives_exactly_zero(lam: float | Tensor) -> None:
    x = _x().requires_grad_()
    (xfercore.grad_reverse(x, lam) * 1e38).sum().backward()
    assert x.grad is not None and (x.grad == 0).all()


def test_rows_scale_each_their_own_row() -> None:
    x = torch.ones(4, 2, 3, requires_grad=True)
    lam = torch.tensor([0.0, 1.0, -2.0, 0.25])
    xfercore.grad_reverse(x, lam).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, (-lam)[:, None, None].expand(4, 2, 3))


def test_square_lam_is_one_value_a_row() -> None:
    x = torch.ones(3, 3, requires_grad=True)  # a square: rows and columns must not be confused
    xfercore.grad_reverse(x, torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    assert x.grad is not None and x.grad[:, 0].tolist() == [-1.0, -2.0, -3.0]


def test_two_reversals_multiply() -> None:
    x = _x().requires_grad_()
    y = xfercore.grad_reverse(xfercore.grad_reverse(x, 0.5), 3.0)
    (grad,) = torch.autograd.grad(y.sum(), x)
    assert_close(grad, torch.full_like(x, 1.5), "(-0.5) (-3)")


@pytest.mark.parametrize(
    "lam", [0.5, torch.tensor(0.5), torch.full((4,), 0.5)], ids=["number", "0-dim", "rows"]
)
def test_second_order_sees_lambda_squared(lam: float | Tensor) -> None:
    x = _x().double().requires_grad_()
    y = xfercore.grad_reverse(x, lam)
    (grad,) = torch.autograd.grad((y**3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    # grad = -lam 3 y^2; its own derivative passes the reversal again: (-lam)^2 6 y
    assert_close(second, 0.25 * 6 * x.detach(), "lambda squared")


def test_changing_the_output_in_place_raises() -> None:
    base = _x().requires_grad_()
    for change in (lambda y: y.mul_(2.0), lambda y: y.zero_(), lambda y: y[0].fill_(1.0), torch.relu_):
        h = base * 1
        y = xfercore.grad_reverse(h, 0.5)
        with pytest.raises(RuntimeError, match="modified inplace"):
            change(y).sum().backward()


def test_changing_the_input_in_place_raises() -> None:
    h = _x().requires_grad_() * 1
    y = xfercore.grad_reverse(h, 0.5)
    h.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified inplace"):
        y.sum().backward()


def test_changing_the_output_in_place_raises_when_compiled() -> None:
    torch._dynamo.reset()
    step = torch.compile(lambda h: xfercore.grad_reverse(h, 0.5).mul_(2.0).sum(), backend="aot_eager")
    with (
        warnings.catch_warnings(),  # Dynamo looks at .grad of the tensor it reports on
        pytest.raises(RuntimeError, match="modified inplace"),
    ):
        warnings.simplefilter("ignore")
        step(_x().requires_grad_() * 1).backward()


def test_nan_and_inf_propagate() -> None:
    grad = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    for lam in (0.5, torch.tensor(0.5)):
        x = torch.tensor([math.inf, math.nan, -math.inf, 1.0], requires_grad=True)
        y = xfercore.grad_reverse(x, lam)
        assert torch.equal(y.nan_to_num(9.0), x.nan_to_num(9.0))
        (got,) = torch.autograd.grad(y, x, grad)
        assert got[0].isnan() and got[1:].tolist() == [-math.inf, math.inf, -0.5]
    x = torch.ones(2, requires_grad=True)
    xfercore.grad_reverse(x, math.nan).sum().backward()
    assert x.grad is not None and x.grad.isnan().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_types_round_once(dtype: torch.dtype) -> None:
    """lam stays in float32: 0.1 rounded to bfloat16 first would be off by 0.1 percent."""
    grad = torch.randn(512).to(dtype)
    for lam in (0.1, torch.tensor(0.1), torch.full((512,), 0.1)):
        x = torch.zeros(512, dtype=dtype, requires_grad=True)
        (got,) = torch.autograd.grad(xfercore.grad_reverse(x, lam), x, grad)
        assert torch.equal(got, (grad.float() * -torch.tensor(0.1)).to(dtype))


def test_no_gradient_recorded_where_none_is_wanted() -> None:
    assert not xfercore.grad_reverse(_x(), 0.5).requires_grad
    with torch.no_grad():
        assert xfercore.grad_reverse(_x().requires_grad_() * 1, 0.5).grad_fn is None
    with torch.inference_mode():
        assert torch.equal(xfercore.grad_reverse(_x(), 0.5), _x())


def test_schedule_follows_its_formula() -> None:
    schedule = xfercore.GradReverseSchedule(lo=0.1, hi=0.9, alpha=5.0, max_iters=20)
    for step in range(30):
        p = min(step / 20, 1.0)
        assert float(schedule()) == pytest.approx(0.1 + 0.8 * (2 / (1 + math.exp(-5.0 * p)) - 1), abs=1e-6)
        schedule.step()


def test_schedule_survives_a_checkpoint() -> None:
    schedule = xfercore.GradReverseSchedule(max_iters=10)
    for _ in range(7):
        schedule.step()
    state = {name: value.clone() for name, value in schedule.state_dict().items()}
    fresh = xfercore.GradReverseSchedule(max_iters=10)
    assert float(fresh()) == 0.0
    fresh.load_state_dict(state)
    assert torch.equal(fresh(), schedule()) and int(fresh.step_count) == 7
    assert torch.equal(copy.deepcopy(schedule)(), schedule())


def test_schedule_drives_the_gradient() -> None:
    schedule = xfercore.GradReverseSchedule(max_iters=4)
    for _ in range(6):
        x = _x().requires_grad_()
        lam = schedule()
        xfercore.grad_reverse(x, lam).sum().backward()
        assert x.grad is not None and torch.equal(x.grad, (-lam).expand_as(x))
        schedule.step()


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"alpha": math.nan}, {"max_iters": 0}, {"max_iters": -3}])
def test_schedule_refuses_bad_arguments(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=rf"GradReverseSchedule\(\): {next(iter(bad))} must be > 0"):
        xfercore.GradReverseSchedule(**bad)  # type: ignore[arg-type]
