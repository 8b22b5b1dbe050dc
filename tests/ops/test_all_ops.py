"""Every check that is the same for all ops, generated from the table in ``op_specs.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from op_specs import OP_SPECS
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import xfercore
import xfercore.ops
from xfercore.testing import (
    ErrorSample,
    OpSpec,
    Sample,
    assert_close,
    assert_matches_reference,
    check_op,
    devices,
    float_dtypes,
    gradients,
    record_calls,
    same_values,
)

CPU = torch.device("cpu")
specs = pytest.mark.parametrize("spec", OP_SPECS.values(), ids=list(OP_SPECS))
differentiable_specs = pytest.mark.parametrize(
    "spec", [spec for spec in OP_SPECS.values() if spec.differentiable], ids=lambda spec: spec.name
)
constant_specs = pytest.mark.parametrize(
    "spec", [spec for spec in OP_SPECS.values() if not spec.differentiable], ids=lambda spec: spec.name
)
on_devices = pytest.mark.parametrize("device", devices(), ids=str)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def uninitialised_memory_is_nan() -> Iterator[None]:
    """Memory that an op takes uninitialised and never writes becomes visible."""
    torch.use_deterministic_algorithms(True)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(False)


def test_every_op_has_a_specification() -> None:
    assert set(OP_SPECS) == set(xfercore.ops.__all__)


@specs
def test_samples_require_grad_where_the_op_has_a_derivative(spec: OpSpec) -> None:
    """Or the checks of gradients would check nothing."""
    for make in (spec.samples, spec.large_samples):
        assert all(sample.variables() for sample in make(CPU, torch.float32, True)) == spec.differentiable
        assert not any(sample.variables() for sample in make(CPU, torch.float32, False))
    assert spec.differentiable or not (spec.double_backward or spec.functorch)


def _specs_and_dtypes(*dtypes: torch.dtype) -> pytest.MarkDecorator:
    """Every op with those of the dtypes that it takes, or with the one that it takes instead."""
    pairs = [
        pytest.param(spec, dtype, id=f"{dtype}-{spec.name}")
        for spec in OP_SPECS.values()
        for dtype in ([d for d in spec.dtypes_on(CPU) if d in dtypes] or spec.dtypes_on(CPU))
    ]
    return pytest.mark.parametrize(("spec", "dtype"), pairs)


@specs
@on_devices
def test_opcheck_gradcheck_gradgradcheck(spec: OpSpec, device: torch.device) -> None:
    executed = check_op(spec, device, traced_samples=5)
    assert executed["opcheck"] > 0


@specs
@on_devices
@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_values_and_gradients_match_the_reference(spec: OpSpec, device: torch.device) -> None:
    for dtype in spec.dtypes_on(device):
        for sample in spec.samples(device, dtype, True):
            assert_matches_reference(spec, sample)


@specs
@on_devices
@pytest.mark.usefixtures("uninitialised_memory_is_nan")
def test_large_samples_match_the_reference(spec: OpSpec, device: torch.device) -> None:
    for dtype in spec.dtypes_on(device):
        for sample in spec.large_samples(device, dtype, True):
            assert_matches_reference(spec, sample)


@differentiable_specs
def test_second_order_gradients_match_the_reference(spec: OpSpec) -> None:
    if not spec.double_backward:
        pytest.skip(f"{spec.name} declares no double backward")
    for sample in spec.samples(CPU, torch.float64, True):
        assert_matches_reference(spec, sample, second_order=True)


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(0, -1).contiguous().transpose(0, -1) if t.dim() > 1 else t


def _strided(t: Tensor) -> Tensor:
    buffer = t.new_full((*t.shape, 2), float("nan") if t.is_floating_point() else -9)
    buffer[..., 0] = t
    return buffer[..., 0]


def _offset(t: Tensor) -> Tensor:
    buffer = t.new_empty(t.numel() + 1)
    buffer[1:] = t.reshape(-1)
    return buffer[1:].view(t.shape)


def _expanded(t: Tensor) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() and t.shape[0] and t.is_floating_point() else t


LAYOUTS = {f.__name__.strip("_"): f for f in (_transposed, _strided, _offset, _expanded)}


@specs
@on_devices
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
def test_layout_of_arguments_does_not_matter(
    spec: OpSpec, device: torch.device, layout: Callable[[Tensor], Tensor]
) -> None:
    for sample in spec.samples(device, torch.float32, True):
        changed = sample.map(layout)
        packed = changed.map(lambda t: t.clone(memory_format=torch.contiguous_format))
        outputs, _, grads = gradients(spec.op, changed)
        outputs_, _, grads_ = gradients(spec.op, packed)
        for actual, expected in zip((*outputs, *grads), (*outputs_, *grads_), strict=True):
            assert_close(actual, expected, f"{spec.name}[{sample.name}]")


@differentiable_specs
@on_devices
def test_layout_of_the_incoming_gradient_does_not_matter(spec: OpSpec, device: torch.device) -> None:
    for sample in spec.samples(device, torch.float32, True):
        outputs = [out for out in sample.call(spec.op) if out.requires_grad]
        variables = sample.variables()
        for change in (_transposed, _strided, _offset, _expanded):
            given = [change(torch.randn_like(out, memory_format=torch.contiguous_format)) for out in outputs]
            packed = [g.clone(memory_format=torch.contiguous_format) for g in given]
            first, second = (
                torch.autograd.grad(outputs, variables, g, allow_unused=True, retain_graph=True)
                for g in (given, packed)
            )
            for actual, expected in zip(first, second, strict=True):
                assert (actual is None) == (expected is None)
                if actual is not None and expected is not None:
                    assert_close(actual, expected, f"{spec.name}[{sample.name}]: {change.__name__}")


def _bits(spec: OpSpec, sample: Sample) -> list[Tensor]:
    outputs, _, grads = gradients(spec.op, sample)
    return [t.detach().clone() for t in (*outputs, *grads)]


@_specs_and_dtypes(torch.float32, torch.bfloat16)
@pytest.mark.usefixtures("threads", "uninitialised_memory_is_nan")
def test_same_bits_for_any_number_of_threads(spec: OpSpec, dtype: torch.dtype) -> None:
    for sample in spec.large_samples(CPU, dtype, True):
        torch.set_num_threads(1)
        expected = _bits(spec, sample)
        for count in (1, 2, 3, 4, 7):
            torch.set_num_threads(count)
            if not spec.thread_invariant:
                expected = _bits(spec, sample)
            for _ in range(4):
                for actual, wanted in zip(_bits(spec, sample), expected, strict=True):
                    assert same_values(actual, wanted), f"{spec.name}[{sample.name}] with {count} threads"


@pytest.mark.gpu
@specs
def test_same_bits_run_to_run_on_cuda(spec: OpSpec) -> None:
    for sample in spec.large_samples(torch.device("cuda"), torch.float32, True):
        expected = _bits(spec, sample)
        for _ in range(20):
            for actual, wanted in zip(_bits(spec, sample), expected, strict=True):
                assert same_values(actual, wanted), f"{spec.name}[{sample.name}]"


@_specs_and_dtypes(*float_dtypes(CPU))
def test_fake_kernels_are_exact_about_shape_dtype_and_stride(spec: OpSpec, dtype: torch.dtype) -> None:
    for sample in spec.samples(CPU, dtype, True):
        for overload, args, kwargs in record_calls(spec.op, sample):
            args, kwargs = tree_map(lambda v: v.detach() if isinstance(v, Tensor) else v, (args, kwargs))
            real = overload(*args, **kwargs)
            with FakeTensorMode() as mode:
                to_fake = lambda v: mode.from_tensor(v) if isinstance(v, Tensor) else v  # noqa: E731
                fake = overload(*tree_map(to_fake, args), **tree_map(to_fake, kwargs))
            for r, f in zip(_flat(real), _flat(fake), strict=True):
                told = (f.shape, f.dtype, f.stride(), f.device)
                assert told == (r.shape, r.dtype, r.stride(), r.device), f"{overload}[{sample.name}]"


def _flat(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for item in value for t in _flat(item)] if isinstance(value, (tuple, list)) else []


@specs
def test_meta_tensors_give_shapes_without_memory(spec: OpSpec) -> None:
    for sample in spec.samples(CPU, torch.float32, False):
        real = sample.call(spec.op)
        meta = sample.map(lambda t: t.to("meta")).call(spec.op)
        for r, m in zip(real, meta, strict=True):
            assert (m.device.type, m.shape, m.dtype) == ("meta", r.shape, r.dtype), sample.name


@specs
@on_devices
def test_errors_name_op_and_argument(spec: OpSpec, device: torch.device) -> None:
    cases = spec.error_samples(device)
    assert len(cases) >= 10
    for case in cases:
        _assert_refused(spec, case)


@specs
def test_fake_tensors_meet_the_same_errors(spec: OpSpec) -> None:
    """torch.compile says at the call what eager would say, instead of tracing on with shapes made up."""
    with FakeTensorMode() as mode:

        def to_fake(value: object) -> object:
            dense = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_meta
            return mode.from_tensor(value) if dense else value

        for case in spec.error_samples(CPU):
            args, kwargs = tree_map(to_fake, (case.args, case.kwargs))
            _assert_refused(spec, ErrorSample(case.name, args, kwargs, case.argument, case.error))


def _assert_refused(spec: OpSpec, case: ErrorSample) -> None:
    try:
        case.call(spec.op)
    except case.error as error:
        text = str(error)
        assert f"{spec.name}()" in text and case.argument in text, f"{spec.name}[{case.name}]: {text}"
        return
    raise AssertionError(f"{spec.name}[{case.name}] was accepted")


@specs
def test_torch_func_is_right_or_refused(spec: OpSpec) -> None:
    for sample in spec.samples(CPU, torch.float64, True)[:6]:
        function = sample.of_variables(spec.op)
        variables = sample.variables()
        if not spec.differentiable:
            for transform in (torch.func.grad, torch.func.vmap):
                with pytest.raises(RuntimeError, match=rf"{spec.name}\(\): not available under torch\.func"):
                    transform(lambda x, sample=sample: x * sample.call(spec.op)[0].sum())(torch.ones(1))
            continue
        detached = [v.detach() for v in variables]
        transformed = torch.func.grad(partial(_total, function), argnums=tuple(range(len(variables))))
        if not spec.functorch:
            with pytest.raises(RuntimeError, match=rf"{spec.name}\(\): not available under torch\.func"):
                transformed(*detached)
            continue
        expected = torch.autograd.grad(_total(function, *variables), variables)
        for actual, wanted in zip(transformed(*detached), expected, strict=True):
            assert_close(actual, wanted, f"{spec.name}[{sample.name}]")


def _total(function: Callable[..., tuple[Tensor, ...]], *variables: Tensor) -> Tensor:
    return torch.stack([out.pow(2).sum() for out in function(*variables)]).sum()


@specs
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, at first use
def test_forward_mode_is_refused(spec: OpSpec) -> None:
    import torch.autograd.forward_ad as forward_ad

    sample = spec.samples(CPU, torch.float32, False)[0]
    with forward_ad.dual_level():
        x = forward_ad.make_dual(sample.args[0], torch.ones_like(sample.args[0]))
        with pytest.raises(RuntimeError, match=rf"{spec.name}\(\): no forward-mode derivative"):
            spec.op(x, *sample.args[1:], **sample.kwargs)


@constant_specs
@pytest.mark.parametrize("mode", ["backward", "forward"])
def test_no_derivative_is_lost_without_a_word(spec: OpSpec, mode: str) -> None:
    """Whichever tensor carries one, deep in a list or not; where none is recorded, the call goes through."""
    import torch.autograd.forward_ad as forward_ad

    checked = 0
    for sample in spec.samples(CPU, torch.float32, False):
        leaves, structure = tree_flatten((sample.args, sample.kwargs))
        for place, leaf in enumerate(leaves):
            if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
                continue
            with forward_ad.dual_level():
                if mode == "forward":
                    active = forward_ad.make_dual(leaf, torch.ones_like(leaf))
                else:
                    active = leaf.clone().requires_grad_()
                args, kwargs = tree_unflatten([*leaves[:place], active, *leaves[place + 1 :]], structure)
                wanted = "no forward-mode derivative" if mode == "forward" else "requires grad"
                with pytest.raises(RuntimeError, match=rf"{spec.name}\(\): .*{wanted}"):
                    spec.op(*args, **kwargs)
            if mode == "backward":
                with torch.no_grad():
                    outputs = Sample(sample.name, args, kwargs, written=sample.written).call(spec.op)
                assert not any(out.requires_grad for out in outputs)
            checked += 1
    assert checked >= 10


@differentiable_specs
def test_third_derivatives_are_exact(spec: OpSpec) -> None:
    """A second derivative that carried no graph would make the third one silently incomplete."""

    def third(function: Callable[..., object], sample: Sample) -> tuple[Tensor | None, ...]:
        variables = sample.variables()
        value = sum((out.pow(3).sum() for out in sample.call(function)), torch.zeros(()))
        for _ in range(2):
            grads = torch.autograd.grad(value, variables, create_graph=True, allow_unused=True)
            value = sum((g.pow(2).sum() for g in grads if g is not None), torch.zeros(()))
        return torch.autograd.grad(value, variables, allow_unused=True)

    for sample in spec.gradcheck_samples(CPU)[:3]:
        for a, b in zip(third(spec.op, sample), third(spec.reference, sample), strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert_close(a, b, f"{spec.name}[{sample.name}]", tolerance=1e-10)


@specs
@on_devices
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_casts_what_it_says(spec: OpSpec, device: torch.device, lower: torch.dtype) -> None:
    """Bit for bit the op on cast arguments: autocast adds no rounding of its own."""
    for sample in spec.samples(device, torch.float32, True):
        with torch.autocast(device.type, dtype=lower):
            outputs, _, grads = gradients(spec.op, sample)
        cast = sample
        if spec.autocast == "lower":
            half = sample.map(lambda t: t.to(lower) if t.is_floating_point() else t)
            args = [
                old if i in spec.autocast_keeps else new
                for i, (old, new) in enumerate(zip(sample.args, half.args, strict=True))
            ]
            kept = {name: value for name, value in sample.kwargs.items() if name in spec.autocast_keeps}
            cast = Sample(sample.name, tuple(args), half.kwargs | kept)
        expected, _, expected_grads = gradients(spec.op, cast)
        assert [g.dtype for g in grads] == [v.dtype for v in sample.variables()]
        for actual, wanted in zip(outputs, expected, strict=True):
            assert same_values(actual, wanted), f"{spec.name}[{sample.name}]"
        for actual, wanted in zip(grads, expected_grads, strict=True):
            assert torch.equal(actual, wanted.float()), f"{spec.name}[{sample.name}]"


def test_autocast_of_mixed_dtypes_takes_the_widest() -> None:
    logits, experts = torch.randn(4, 3), torch.randn(4, 3, 5).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, nll = xfercore.gated_mix(logits, experts)
    assert (mixed.dtype, nll.dtype) == (torch.float32, torch.float32)
    assert torch.equal(mixed, xfercore.gated_mix(logits, experts.float())[0])
