"""What linear_grad_reverse promises beyond the checks generated for all ops."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear
from torch.utils._python_dispatch import TorchDispatchMode

import xfercore
from xfercore.testing import assert_close

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's own, inside its compiler


def _leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize(
    "lam", [0.5, torch.tensor(0.5), torch.linspace(-1, 1, 6)], ids=["number", "0-dim", "rows"]
)
@pytest.mark.parametrize("out_dim", [2, 9], ids=["narrow", "wide"])  # the factor rides on another operand
@pytest.mark.parametrize("lead", [(6,), (6, 5)], ids=str)
def test_only_the_inputs_gradient_is_reversed(
    lam: float | Tensor, out_dim: int, lead: tuple[int, ...]
) -> None:
    x, weight, bias = _leaves((*lead, 4), (out_dim, 4), (out_dim,))
    y = xfercore.linear_grad_reverse(x, weight, bias, lam)
    plain = linear(x, weight, bias)
    assert torch.equal(y, plain)
    g = torch.randn_like(y)
    grads, wanted = (torch.autograd.grad(out, (x, weight, bias), g) for out in (y, plain))
    factor = lam.double() if isinstance(lam, Tensor) else lam
    if isinstance(factor, Tensor) and factor.dim():
        factor = factor.reshape(-1, *[1] * len(lead))
    assert_close(grads[0], -factor * wanted[0], "x")
    assert_close(grads[1], wanted[1], "weight")
    assert_close(grads[2], wanted[2], "bias")


def test_equals_reversal_then_linear_to_second_order() -> None:
    x, weight, bias = _leaves((5, 4), (3, 4), (3,))
    lam = torch.linspace(0.1, 2, 5)

    def second(fn: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = fn(x, weight, bias)
        first = torch.autograd.grad((y**3).sum(), (x, weight, bias), create_graph=True)
        return torch.autograd.grad(sum(f.pow(2).sum() for f in first), (x, weight, bias))  # type: ignore[arg-type]

    fused = second(lambda x, w, b: xfercore.linear_grad_reverse(x, w, b, lam))
    composed = second(lambda x, w, b: linear(xfercore.grad_reverse(x, lam), w, b))
    for a, b in zip(fused, composed, strict=True):
        assert_close(a, b, "second order")


def test_lam_zero_gives_exactly_zero() -> None:
    for lam in (0.0, torch.tensor(0.0), torch.zeros(5)):
        x, weight = _leaves((5, 4), (3, 4))
        (xfercore.linear_grad_reverse(x, weight, None, lam) * 1e100).sum().backward()
        assert x.grad is not None and (x.grad == 0).all()
        assert weight.grad is not None and (weight.grad != 0).all()


class _Gemms(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


def test_the_reversal_costs_no_op_of_its_own() -> None:
    x, weight, bias = _leaves((6, 4), (3, 4), (3,))
    with _Gemms() as ops:
        xfercore.linear_grad_reverse(x, weight, bias, 0.5).sum().backward()
    own = [name for name in ops.names if name.startswith("xfercore::")]
    assert own == ["xfercore::linear_grad_reverse", "xfercore::linear_grad_reverse_backward"]
    assert not any("mul" in name or "neg" in name for name in ops.names)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_gradients_that_nobody_wants_are_not_made(frozen: int) -> None:
    leaves = _leaves((6, 4), (3, 4), (3,))
    leaves[frozen].requires_grad_(False)
    xfercore.linear_grad_reverse(*leaves, 0.5).sum().backward()
    assert [leaf.grad is None for leaf in leaves] == [i == frozen for i in range(3)]


def test_every_transform_reverses() -> None:
    x, weight, bias = (t.detach() for t in _leaves((5, 4), (3, 4), (3,)))
    lam = 0.5

    def loss(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (xfercore.linear_grad_reverse(x, weight, bias, lam) ** 2).sum()

    upstream = 2 * linear(x, weight, bias)
    expected = (-lam * upstream @ weight, upstream.t() @ x, upstream.sum(0))
    func = torch.func.grad(loss, argnums=(0, 1, 2))
    torch._dynamo.reset()
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    results = {
        "func.grad": func(x, weight, bias),
        "compile(func.grad)": torch.compile(func, backend="aot_eager")(x, weight, bias),
        "compile(f)": torch.autograd.grad(
            torch.compile(loss, backend="aot_eager", fullgraph=True)(*leaves), leaves
        ),
    }
    for name, grads in results.items():
        for grad, wanted in zip(grads, expected, strict=True):
            assert_close(grad, wanted, name)


def test_a_discriminator_learns_while_its_encoder_is_held_against_it() -> None:
    """One backward pass: the layer's own gradient descends its loss, the encoder's ascends it."""
    encoder, weight = _leaves((4, 4), (2, 4))
    inputs, labels = torch.randn(32, 4, dtype=torch.float64), torch.randint(2, (32,))

    def loss(encoder: Tensor, weight: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(
            xfercore.linear_grad_reverse(inputs @ encoder, weight, None, 1.0), labels
        )

    before = loss(encoder, weight)
    grads = torch.autograd.grad(before, (encoder, weight))
    with torch.no_grad():
        assert loss(encoder, weight - 1e-3 * grads[1]) < before
        assert loss(encoder - 1e-3 * grads[0], weight) > before
