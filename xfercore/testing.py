"""What tests of an op share: specifications, tolerances, devices and the checks generated from them.

An op is described once, by an :class:`OpSpec`; ``tests/ops/op_specs.py`` holds the table and ``tests/ops`` runs
every generated check over it. Nothing here needs more than torch (``check_op`` also needs ``expecttest``, which
``torch.library.opcheck`` imports).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

__all__ = [
    "TOLERANCES",
    "ErrorSample",
    "OpSpec",
    "Sample",
    "assert_close",
    "assert_matches_reference",
    "check_op",
    "devices",
    "float_dtypes",
    "gradients",
    "record_calls",
    "same_values",
]

#: Largest error against the fp64 reference, relative to the largest magnitude of the expected tensor. For half
#: types it is a few roundings, those of the result and of states kept between the passes: sums, exponentials and
#: products run in float32.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 4e-6,
    torch.bfloat16: 2.0**-6,
    torch.float16: 2.0**-9,
}


@dataclass(frozen=True)
class Sample:
    """One valid call.

    ``written`` names the keyword arguments that the function writes to: each call gets tensors of its own, full of NaN.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    written: tuple[str, ...] = field(default=(), kw_only=True)

    def call(self, function: Callable[..., Any]) -> tuple[Tensor, ...]:
        """The function's results as a tuple, without those that are None."""

        def fresh(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            return torch.full_like(value, float("nan"), memory_format=torch.contiguous_format)

        written = {name: tree_map(fresh, self.kwargs[name]) for name in self.written}
        out = function(*self.args, **(self.kwargs | written))
        results = tuple(out) if isinstance(out, (tuple, list)) else (out,)
        return tuple(result for result in results if result is not None)

    def map(self, change: Callable[[Tensor], Tensor]) -> Sample:
        """The same call on changed tensors; those that required grad are leaves that do again."""

        def one(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            new = change(value.detach())
            return new.detach().requires_grad_() if value.requires_grad else new

        args, kwargs = tree_map(one, (self.args, self.kwargs))
        return Sample(self.name, args, kwargs, written=self.written)

    def variables(self) -> list[Tensor]:
        """The tensors that require grad, in the order of the arguments."""
        leaves, _ = tree_flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]

    def of_variables(self, function: Callable[..., Any]) -> Callable[..., tuple[Tensor, ...]]:
        """The call as a function of :meth:`variables` alone, for gradcheck."""
        leaves, spec = tree_flatten((self.args, self.kwargs))
        places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

        def inner(*variables: Tensor) -> tuple[Tensor, ...]:
            filled = list(leaves)
            for place, variable in zip(places, variables, strict=True):
                filled[place] = variable
            args, kwargs = tree_unflatten(filled, spec)
            out = function(*args, **kwargs)
            return tuple(out) if isinstance(out, (tuple, list)) else (out,)

        return inner


@dataclass(frozen=True)
class ErrorSample(Sample):
    """One invalid call: what it raises, and the argument that the message names."""

    argument: str = ""
    error: type[Exception] = ValueError


MakeSamples = Callable[[torch.device, torch.dtype, bool], list[Sample]]


@dataclass(frozen=True)
class OpSpec:
    """Everything the generated checks need to know of an op.

    Args:
        name: the op's name, as in ``xfercore.ops.__all__``.
        op: the public function.
        reference: its definition in plain PyTorch.
        samples: small valid calls for ``(device, dtype, requires_grad)``: odd, empty and single sizes, every option.
        large_samples: calls that spread over several threads.
        error_samples: invalid calls on a device.
        gradcheck_samples: the fp64 calls whose derivatives are checked numerically. For gradient reversal these have
            ``lam = -1``, where the derivative is the function's own.
        differentiable: whether the op has a derivative. Else it refuses tensors that require grad, and its samples
            hold none whatever is asked.
        dtypes: the only dtypes that the op's floating arguments may have, whatever dtype a sample is asked for; None:
            those of :func:`float_dtypes`.
        tolerance: the largest error against the reference where that of the dtype does not hold: an iteration that
            stops a rounding earlier or later.
        double_backward: whether second derivatives are exact (else they raise).
        functorch: whether the op works under ``torch.func`` transforms (else it raises).
        returns_view: whether the result aliases its input.
        autocast: ``"lower"`` casts to autocast's dtype, ``"widest"`` to the widest input, ``"none"`` leaves alone.
        autocast_keeps: positions of arguments, and names of keyword arguments, that autocast never casts.
        thread_invariant: whether bits are the same for any number of threads (else for the same number).
    """

    name: str
    op: Callable[..., Any]
    reference: Callable[..., Any]
    samples: MakeSamples
    large_samples: MakeSamples
    error_samples: Callable[[torch.device], list[ErrorSample]]
    gradcheck_samples: Callable[[torch.device], list[Sample]] = lambda device: []
    differentiable: bool = True
    dtypes: tuple[torch.dtype, ...] | None = None
    tolerance: float | None = None
    double_backward: bool = True
    functorch: bool = False
    returns_view: bool = False
    autocast: Literal["lower", "widest", "none"] = "lower"
    autocast_keeps: tuple[int | str, ...] = ()
    thread_invariant: bool = True

    def dtypes_on(self, device: torch.device) -> list[torch.dtype]:
        """The dtypes to ask samples for on a device."""
        return float_dtypes(device) if self.dtypes is None else list(self.dtypes)


def devices() -> list[torch.device]:
    """The devices that this build and this machine can run ops on."""
    from xfercore import build_info

    found = [torch.device("cpu")]
    if build_info()["cuda"] and torch.cuda.is_available():
        found.append(torch.device("cuda"))
    return found


def float_dtypes(device: torch.device) -> list[torch.dtype]:
    """The dtypes of the kernels on a device: float64 exists on the CPU alone."""
    half = [torch.float32, torch.bfloat16, torch.float16]
    return [*half, torch.float64] if device.type == "cpu" else half


def assert_close(
    actual: Tensor, expected: Tensor, what: str, *, tolerance: float | None = None, floor: float = 0.0
) -> None:
    """Error at most ``tolerance`` (default: that of the actual dtype) times the expected tensor's largest magnitude.

    Integers and flags are compared exactly.

    ``floor`` is the least magnitude to take: what cancels to almost nothing is compared with what it came from.
    """
    assert actual.shape == expected.shape, f"{what}: shape {list(actual.shape)}, not {list(expected.shape)}"
    if not actual.is_floating_point():
        assert torch.equal(actual, expected), f"{what}: {actual}, not {expected}"
        return
    tolerance = TOLERANCES[actual.dtype] if tolerance is None else tolerance
    torch.testing.assert_close(
        actual.detach().to(torch.float64),
        expected.detach().to(torch.float64),
        rtol=tolerance,
        atol=tolerance * max(_magnitude([expected]), floor),
        equal_nan=True,
        msg=lambda text: f"{what}: {text}",
    )


def same_values(actual: Tensor, expected: Tensor) -> bool:
    """Whether shape, dtype and every value are equal, where NaN equals NaN."""
    if actual.dtype != expected.dtype or actual.shape != expected.shape:
        return False
    return bool(((actual == expected) | ((actual != actual) & (expected != expected))).all())


def _magnitude(tensors: Sequence[Tensor]) -> float:
    finite = [t.detach()[t.detach().isfinite()] for t in tensors if t.is_floating_point()]
    return max((float(t.abs().max()) for t in finite if t.numel()), default=0.0)


def gradients(
    function: Callable[..., Any], sample: Sample, *, seed: int = 0, create_graph: bool = False
) -> tuple[tuple[Tensor, ...], list[Tensor], list[Tensor]]:
    """Outputs, a random cotangent for each (the same numbers in every dtype), gradients of ``sample.variables()``."""
    outputs = sample.call(function)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        torch.randn(out.shape, generator=generator).bfloat16() for out in outputs
    ]  # exact in every dtype
    cotangents = [
        c.to(out.device, out.dtype).requires_grad_(create_graph)
        for c, out in zip(drawn, outputs, strict=True)
    ]
    variables = sample.variables()
    if not variables:
        return outputs, cotangents, []
    used = [(out, c) for out, c in zip(outputs, cotangents, strict=True) if out.requires_grad]
    grads = torch.autograd.grad(
        [out for out, _ in used],
        variables,
        [c for _, c in used],
        allow_unused=True,
        create_graph=create_graph,
    )
    filled = [torch.zeros_like(v) if g is None else g for v, g in zip(variables, grads, strict=True)]
    return outputs, cotangents, filled


def assert_matches_reference(spec: OpSpec, sample: Sample, *, second_order: bool = False) -> None:
    """Values and gradients, if any, of the op equal those of its reference in fp64, to the op's dtype's tolerance.

    With ``second_order``, so do the gradients of a random functional of the gradients.
    """
    exact = sample.map(lambda t: t.to(torch.float64) if t.is_floating_point() else t)
    outputs, cotangents, grads = gradients(spec.op, sample, create_graph=second_order)
    outputs_, cotangents_, grads_ = gradients(spec.reference, exact, create_graph=second_order)
    _assert_all_close(outputs, outputs_, f"{spec.name}[{sample.name}]: output", spec.tolerance)
    _assert_all_close(grads, grads_, f"{spec.name}[{sample.name}]: gradient", spec.tolerance)
    if second_order:
        seconds = _second_gradients([*sample.variables(), *cotangents], grads)
        seconds_ = _second_gradients([*exact.variables(), *cotangents_], grads_)
        what = f"{spec.name}[{sample.name}]: second-order gradient"
        _assert_all_close(seconds, seconds_, what, spec.tolerance)


def _assert_all_close(
    actual: Sequence[Tensor], expected: Sequence[Tensor], what: str, tolerance: float | None
) -> None:
    # One tensor may hold only what the others left by cancelling (a confident row's log-softmax does that).
    floor = 0.5 * _magnitude(expected)
    for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert_close(one, other, f"{what} {i}", tolerance=tolerance, floor=floor)


def _second_gradients(wanted: list[Tensor], grads: list[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    arriving = [torch.randn(g.shape, generator=generator).to(g.device, g.dtype) for g in grads]
    used = [(g, v) for g, v in zip(grads, arriving, strict=True) if g.requires_grad]
    if not used:
        return [torch.zeros_like(t) for t in wanted]
    second = torch.autograd.grad([g for g, _ in used], wanted, [v for _, v in used], allow_unused=True)
    return [torch.zeros_like(t) if s is None else s for t, s in zip(wanted, second, strict=True)]


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "xfercore":
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def record_calls(
    function: Callable[..., Any], sample: Sample
) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    """Every ``torch.ops.xfercore`` call that a forward and a backward pass make, with its arguments."""
    with _Recorder() as recorder:
        if sample.variables():
            gradients(function, sample)
        else:
            sample.call(function)
    return recorder.calls


def check_op(spec: OpSpec, device: torch.device, *, traced_samples: int | None = None) -> dict[str, int]:
    """``opcheck`` of every torch op behind the function, ``gradcheck`` and ``gradgradcheck`` where it has derivatives.

    opcheck's trace through AOTDispatcher takes most of the time: ``traced_samples`` limits it to so many, spread
    over the samples; its other checks run for all.

    Prints ``planned = executed`` and raises when fewer cases ran than were planned, so that an empty list of samples
    or a loop that ends early cannot pass.

    Returns:
        The number of cases executed, by check.
    """
    samples = spec.samples(device, torch.float32, True)
    checked = spec.gradcheck_samples(device) if device.type == "cpu" else []  # float64 exists there alone
    if device.type == "cpu" and bool(checked) != spec.differentiable:
        raise AssertionError(
            f"{spec.name}: differentiable = {spec.differentiable}, {len(checked)} gradcheck samples"
        )
    planned = {"opcheck": len(samples), "gradcheck": len(checked)}
    planned["gradgradcheck"] = len(checked) if spec.double_backward else 0
    executed = dict.fromkeys(planned, 0)
    seen: set[str] = set()
    step = 1 if traced_samples is None else -(-len(samples) // traced_samples)
    for i, sample in enumerate(samples):
        checks: tuple[str, ...] = ("test_schema", "test_autograd_registration", "test_faketensor")
        calls = record_calls(spec.op, sample)
        for overload, args, kwargs in calls:
            fresh_args, fresh_kwargs = tree_map(_fresh_leaf, (args, kwargs))
            traced: tuple[str, ...] = ("test_aot_dispatch_dynamic",) if i % step == 0 else ()
            if traced and _check_traced_nan(overload, fresh_args, fresh_kwargs):
                traced = ()
            torch.library.opcheck(overload, fresh_args, fresh_kwargs, test_utils=checks + traced)
            seen.add(str(overload))
        executed["opcheck"] += bool(calls)
    for sample in checked:
        _check_gradients(spec, sample, executed)
    print(f"{spec.name} on {device}: opcheck of {', '.join(sorted(seen))}")
    for check, count in planned.items():
        print(f"{spec.name} on {device}: {check} planned = {count}, executed = {executed[check]}")
        if executed[check] < count or (count == 0 and check == "opcheck"):
            raise AssertionError(f"{spec.name}: {executed[check]} of {count} planned cases of {check} ran")
    return executed


def _check_traced_nan(overload: Any, args: Any, kwargs: Any) -> bool:
    """Where results hold NaN, which opcheck's trace takes for unequal: the same check by values, and whether it ran."""
    expected, _ = tree_flatten(overload(*args, **kwargs))
    if not any(isinstance(e, Tensor) and bool((e != e).any()) for e in expected):
        return False
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *a, **k: overload(*a, **k), backend="aot_eager", fullgraph=True, dynamic=True
    )
    actual, _ = tree_flatten(compiled(*args, **kwargs))
    for one, other in zip(actual, expected, strict=True):
        if not same_values(one, other):
            raise AssertionError(f"{overload}: traced {one}, eager {other}")
    return True


def _check_gradients(spec: OpSpec, sample: Sample, executed: dict[str, int]) -> None:
    variables: Sequence[Tensor] = sample.variables()
    function = sample.of_variables(spec.op)
    try:
        torch.autograd.gradcheck(function, variables)
        executed["gradcheck"] += 1
        if spec.double_backward:
            torch.autograd.gradgradcheck(function, variables)
            executed["gradgradcheck"] += 1
    except RuntimeError as error:  # GradcheckError tells where, but not in which sample
        raise AssertionError(f"{spec.name}[{sample.name}]: {error}") from error


def _fresh_leaf(value: Any) -> Any:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().clone().requires_grad_(value.requires_grad)
    return value
