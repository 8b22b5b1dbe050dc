"""torch.compile over every op: whole graphs, forward and backward equal to eager, no recompilation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from op_specs import OP_SPECS
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import xfercore
from xfercore.testing import OpSpec, Sample, assert_close, gradients

CPU = torch.device("cpu")
specs = pytest.mark.parametrize("spec", OP_SPECS.values(), ids=list(OP_SPECS))
# torch's own modules warn of their deprecation when the compiler imports them.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _assert_compiled_equals_eager(spec: OpSpec, sample: Sample, **options: Any) -> None:
    compiled = torch.compile(spec.op, fullgraph=True, **options)
    outputs, _, grads = gradients(compiled, sample)
    expected, _, expected_grads = gradients(spec.op, sample)
    for actual, wanted in zip((*outputs, *grads), (*expected, *expected_grads), strict=True):
        assert actual.stride() == wanted.stride() or actual.numel() <= 1
        assert_close(actual, wanted, f"{spec.name}[{sample.name}]")


@specs
@pytest.mark.parametrize("dynamic", [None, True], ids=["static", "dynamic"])
def test_compiled_equals_eager(spec: OpSpec, dynamic: bool | None) -> None:
    """Through Dynamo and AOTAutograd, which is where graphs and gradients are made."""
    samples = spec.samples(CPU, torch.float32, True)
    for sample in samples[:: max(1, len(samples) // 5)]:
        torch._dynamo.reset()
        _assert_compiled_equals_eager(spec, sample, dynamic=dynamic, backend="aot_eager")


@specs
def test_compiled_under_autocast_equals_eager(spec: OpSpec) -> None:
    sample = spec.samples(CPU, torch.float32, True)[0]
    compiled = torch.compile(spec.op, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, _, grads = gradients(compiled, sample)
        expected, _, expected_grads = gradients(spec.op, sample)
    for actual, wanted in zip((*outputs, *grads), (*expected, *expected_grads), strict=True):
        assert actual.dtype == wanted.dtype
        assert_close(actual, wanted, f"{spec.name}[{sample.name}]")


@pytest.mark.slow
@specs
def test_compiled_with_inductor_equals_eager(spec: OpSpec) -> None:
    _assert_compiled_equals_eager(spec, spec.large_samples(CPU, torch.float32, True)[-1])


def _recompilations(
    function: Callable[..., Any], calls: list[tuple[Any, ...]], *, dynamic: bool | None = None
) -> int:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    counts = []
    for call in calls:
        out = compiled(*call)
        total = sum(o.sum() for o in (out if isinstance(out, tuple) else (out,)))
        if total.requires_grad:
            total.backward()
        counts.append(counter.frame_count)
    assert counts[0] > 0
    return counts[-1] - counts[0]  # the first call may take Dynamo two attempts


def _batches(make: Callable[[int], tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [make(rows) for rows in (8, 9, 14, 33)]  # equal to no other size: Dynamo would tie the two


def test_dynamic_batch_sizes_do_not_recompile() -> None:
    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, requires_grad=True)

    weights = (leaf(3, 4), leaf(3), leaf(3, 6, 4), leaf(3, 6), leaf(3, 5, 6), leaf(3, 5))
    linear = (leaf(5, 4), leaf(5))
    cases: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[Any, ...]]]] = {
        "moe_mlp_mix": (xfercore.moe_mlp_mix, lambda rows: (leaf(rows, 4), *weights)),
        "gated_mix": (xfercore.gated_mix, lambda rows: (leaf(rows, 3), leaf(rows, 3, 4))),
        "grad_reverse": (xfercore.grad_reverse, lambda rows: (leaf(rows, 4), torch.rand(rows))),
        "linear_grad_reverse": (
            xfercore.linear_grad_reverse,
            lambda rows: (leaf(rows, 4), *linear, torch.rand(rows)),
        ),
        "inbatch_softmax_loss": (_ranked, lambda rows: (leaf(rows, 4), leaf(rows + 3, 4), leaf(rows, 2, 4))),
        "hard_concrete": (_heads, lambda rows: (leaf(3), leaf(3, rows), torch.tensor([1, 2]))),
        "hard_concrete_eval": (xfercore.hard_concrete_eval, lambda rows: (leaf(rows, 4), leaf(rows, 4))),
        "topk_similarity": (_nearest, lambda rows: (torch.randn(rows, 4), torch.randn(rows + 3, 4))),
    }
    cases |= {name: (function, _gram_of_rows(name)) for name, function in _surgery_functions().items()}
    assert set(cases) == set(OP_SPECS)
    for name, (function, make) in cases.items():
        torch._dynamo.reset()
        assert _recompilations(function, _batches(make), dynamic=True) == 0, name


def _ranked(u: Tensor, v: Tensor, hard_neg: Tensor) -> Tensor:
    return xfercore.inbatch_softmax_loss(u, v, hard_neg=hard_neg, hard_neg_scope="all", symmetric=True)


def _heads(log_alpha: Tensor, theta: Tensor, seed_offset: Tensor) -> Tensor:
    masked, penalty = xfercore.hard_concrete(log_alpha, theta, seed_offset=seed_offset, group_dims=(1,))
    return masked.sum() + penalty


def _nearest(queries: Tensor, keys: Tensor) -> Tensor:
    return xfercore.topk_similarity(queries, keys, 5, csls=2)[0]


def _surgery_functions() -> dict[str, Callable[..., Any]]:
    """The ops of gradient surgery on sizes alone: columns, and for the coefficients tasks."""
    gradvac, pcgrad = xfercore.gradvac_coef, xfercore.pcgrad_coef
    return {
        "task_gram": xfercore.task_gram,
        "combine_gradients": lambda grads: xfercore.combine_gradients(
            grads, None, torch.ones(1, 3, dtype=torch.float64)
        ),
        "gradvac_coef": lambda gram, seed: gradvac(gram, torch.zeros_like(gram), seed_step=seed).weights,
        "pcgrad_coef": lambda gram, seed: pcgrad(gram, seed_step=seed).weights,
        "mgda_coef": lambda gram, seed: xfercore.mgda_coef(gram).weights,
        "gradnorm_stats": lambda gram, seed: (
            xfercore.gradnorm_stats(gram, gram[0, 0], gram[0, 1], gram[:, 0]).loss
        ),
        "agem_coef": lambda gram, seed: xfercore.agem_coef(gram, reference=0).weights,
    }


def _gram_of_rows(name: str) -> Callable[[int], tuple[Any, ...]]:
    def make(rows: int) -> tuple[Any, ...]:
        if name in ("task_gram", "combine_gradients"):
            return (torch.randn(3, rows),)
        g = torch.randn(5, rows, 40, dtype=torch.float64)
        return g @ g.mT, torch.tensor([rows, 2**40 + rows])

    return make


def test_lists_of_gradients_do_not_recompile_over_seeds_steps_and_weights() -> None:
    """A whole step of surgery as one graph: what changes between steps is in tensors."""
    grads = [[torch.randn(2, 3), None, torch.randn(4)] for _ in range(3)]
    out = [torch.empty(2, 3), None, torch.empty(4)]
    counter = CompileCounterWithBackend("aot_eager")

    def step(grads: Any, ema: Tensor, seed_step: Tensor, beta: float) -> Tensor:
        found = xfercore.gradvac_coef(xfercore.task_gram(grads), ema, seed_step=seed_step, beta=beta)
        xfercore.combine_gradients(grads, None, found.weights, out=out)
        return found.ema

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    ema = torch.zeros(1, 3, 3, dtype=torch.float64)
    for number in range(5):
        seed_step = torch.tensor([7, number])
        fresh = [[None if g is None else torch.randn_like(g) for g in row] for row in grads]
        wanted_ema = step(fresh, ema, seed_step, 0.5)
        wanted = [o.clone() for o in out if o is not None]
        got_ema = compiled(fresh, ema, seed_step, 0.5)
        assert torch.equal(got_ema, wanted_ema)
        assert all(torch.equal(a, b) for a, b in zip((o for o in out if o is not None), wanted, strict=True))
        ema = got_ema
    assert counter.frame_count == 1


def test_a_schedule_of_lam_does_not_recompile() -> None:
    schedule = xfercore.GradReverseSchedule(max_iters=10)
    x = torch.randn(4, 3, requires_grad=True)
    weight = torch.randn(2, 3)
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(backend=counter, fullgraph=True)
    def step(x: Tensor) -> Tensor:
        lam = schedule()
        first = xfercore.grad_reverse(x, lam).sum()
        return first + xfercore.linear_grad_reverse(x, weight, None, lam).sum()

    for _ in range(6):
        x.grad = None
        step(x).backward()
        wanted = -schedule() * (1.0 + weight.sum(0)).expand(4, 3)
        assert x.grad is not None
        assert_close(x.grad, wanted, "gradient at the schedule's present lam")
        schedule.step()
    assert counter.frame_count == 1


def test_seeds_do_not_recompile() -> None:
    args = OP_SPECS["moe_mlp_mix"].samples(CPU, torch.float32, True)[0].args

    def step(seed_offset: Tensor) -> Tensor:
        return xfercore.moe_mlp_mix(*args, dropout_p=0.5, seed_offset=seed_offset)[0]

    calls = [(torch.tensor([seed, offset]),) for seed in (1, 2**60) for offset in (0, 3)]
    assert _recompilations(step, calls) == 0


def test_compiled_dropout_without_a_seed_draws_anew() -> None:
    args = OP_SPECS["moe_mlp_mix"].samples(CPU, torch.float32, False)[0].args
    step = torch.compile(lambda: xfercore.moe_mlp_mix(*args, dropout_p=0.5)[0], backend="aot_eager")
    assert not torch.equal(step(), step())
    torch.manual_seed(3)
    first = step()
    torch.manual_seed(3)
    assert torch.equal(first, step())


def test_compiled_double_backward_is_refused() -> None:
    for spec in OP_SPECS.values():
        if not spec.differentiable:
            continue
        torch._dynamo.reset()
        sample = spec.samples(CPU, torch.float32, True)[0]
        out = sample.call(torch.compile(spec.op, backend="aot_eager"))[0]
        (grad, *_) = torch.autograd.grad(out.pow(2).sum(), sample.variables(), create_graph=True)
        with pytest.raises(RuntimeError, match="does not currently support double backward"):
            torch.autograd.grad(grad.pow(2).sum(), sample.variables())
