"""moe_mlp_mix's CUDA kernels, run thread by thread, against the reference in fp64."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from simt_harness import (
    DTYPES,
    Arena,
    MoeMlpMixBackwardArgs,
    MoeMlpMixForwardArgs,
    MoeMlpMixShape,
    call,
    library,
)
from torch import Tensor

from xfercore import reference

ACTS = ["none", "relu", "tanh", "softmax", "log_softmax"]
MIXES = ["sum", "logsumexp"]
WEIGHTS = ["gate_weight", "gate_bias", "w1", "b1", "w2", "b2"]
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass
class Problem:
    """One call: sizes (tokens, experts, in, hidden, out), options, inputs and incoming gradients."""

    sizes: tuple[int, int, int, int, int]
    dtype: torch.dtype = torch.float32
    act1: str = "tanh"
    act2: str = "tanh"
    mix: str = "sum"
    dropout_p: float = 0.0
    detach_gate_input: bool = False
    keep_hidden: bool = False
    keep_expert_out: bool = False
    inputs: dict[str, Tensor] = field(default_factory=dict)
    grad_out: Tensor = field(init=False)
    grad_gate_logits: Tensor = field(init=False)
    seed_offset: Tensor | None = None

    def __post_init__(self) -> None:
        tokens, experts, in_dim, hidden, out = self.sizes
        rng = torch.Generator().manual_seed(sum(self.sizes))
        shapes = {
            "x": (tokens, in_dim),
            "gate_weight": (experts, in_dim),
            "gate_bias": (experts,),
            "w1": (experts, hidden, in_dim),
            "b1": (experts, hidden),
            "w2": (experts, out, hidden),
            "b2": (experts, out),
        }
        for name, shape in shapes.items():
            scale = shape[-1] ** -0.5 if name in ("gate_weight", "w1", "w2") else 1.0
            self.inputs[name] = (scale * torch.randn(shape, generator=rng)).to(self.dtype)
        self.grad_out = torch.randn(tokens, out, generator=rng).to(self.dtype)
        self.grad_gate_logits = torch.randn(tokens, experts, generator=rng).to(self.dtype)
        if self.dropout_p > 0.0:
            self.seed_offset = torch.tensor([2**61 + 12345, 2**40 + 7])

    @property
    def shape(self) -> MoeMlpMixShape:
        return MoeMlpMixShape(*self.sizes)


def forward_args(problem: Problem, arena: Arena) -> MoeMlpMixForwardArgs:
    args = MoeMlpMixForwardArgs(
        dtype=DTYPES[problem.dtype],
        shape=problem.shape,
        act1=ACTS.index(problem.act1),
        act2=ACTS.index(problem.act2),
        mix=MIXES.index(problem.mix),
        dropout_p=problem.dropout_p,
        seed_offset=arena.input("seed_offset", problem.seed_offset),
    )
    for name, value in problem.inputs.items():
        setattr(args, name, arena.input(name, value))
    return args


def forward(problem: Problem, *, seed: int = 0, layout: int = 0) -> dict[str, Tensor]:
    tokens, experts, _, hidden, out = problem.sizes
    arena = Arena(layout)
    args = forward_args(problem, arena)
    args.out = arena.output("out", (tokens, out), problem.dtype)
    args.gate_logits = arena.output("gate_logits", (tokens, experts), problem.dtype)
    if problem.keep_hidden:
        args.hidden = arena.output("hidden", (tokens, experts, hidden), problem.dtype)
    if problem.keep_expert_out:
        args.expert_out = arena.output("expert_out", (tokens, experts, out), problem.dtype)
    if problem.mix == "logsumexp":
        args.lse = arena.output("lse", (tokens, out), torch.float32)
    call("moe_mlp_mix_forward", args, seed)
    return {name: value.clone() for name, value in arena.outputs.items()}


def backward(
    problem: Problem,
    saved: dict[str, Tensor],
    *,
    wanted: tuple[str, ...] = ("x", *WEIGHTS),
    seed: int = 0,
    layout: int = 0,
) -> dict[str, Tensor]:
    arena = Arena(layout)
    args = MoeMlpMixBackwardArgs(forward=forward_args(problem, arena))
    for name, value in saved.items():
        if name == "out":
            continue  # the backward pass has no use for it
        setattr(args.forward, name, arena.input(name, value))
    args.grad_out = arena.input("grad_out", problem.grad_out)
    args.grad_gate_logits = arena.input("grad_gate_logits", problem.grad_gate_logits)
    args.detach_gate_input = problem.detach_gate_input
    for name in wanted:
        value = problem.inputs[name]
        setattr(args, f"grad_{name}", arena.output(name, value.shape, value.dtype))
    workspace_bytes = library().moe_mlp_mix_backward_workspace_bytes
    workspace_bytes.restype = ctypes.c_int64
    size = workspace_bytes(ctypes.byref(problem.shape), DTYPES[problem.dtype])
    args.workspace = library().simt_buffer(b"workspace", size, 256, 1, True)
    call("moe_mlp_mix_backward", args, seed)
    return {name: arena.outputs[name].clone() for name in wanted}


def expected(problem: Problem) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Outputs and gradients of the reference in fp64, from the inputs as rounded to the dtype."""
    leaves = {name: value.double().requires_grad_() for name, value in problem.inputs.items()}
    out, gate_logits = reference.moe_mlp_mix(
        *leaves.values(),
        act1=problem.act1,
        act2=problem.act2,
        mix=problem.mix,
        dropout_p=problem.dropout_p,
        seed_offset=problem.seed_offset,
        detach_gate_input=problem.detach_gate_input,
    )
    torch.autograd.backward(
        [out, gate_logits], [problem.grad_out.double(), problem.grad_gate_logits.double()]
    )
    gradients = {name: value.grad for name, value in leaves.items() if value.grad is not None}
    return {"out": out.detach(), "gate_logits": gate_logits.detach()}, gradients


def assert_close(name: str, actual: Tensor, wanted: Tensor, dtype: torch.dtype) -> None:
    scale = max(1.0, wanted.abs().max().item()) if wanted.numel() else 1.0
    torch.testing.assert_close(
        actual.double(), wanted, rtol=0.0, atol=TOLERANCE[dtype] * scale, msg=lambda text: f"{name}: {text}"
    )


def check(problem: Problem, layout: int = 0) -> None:
    outputs, gradients = expected(problem)
    saved = forward(problem, layout=layout)
    for name, wanted in outputs.items():
        assert_close(name, saved[name], wanted, problem.dtype)
    for name, value in backward(problem, saved, layout=layout).items():
        assert_close(f"grad of {name}", value, gradients[name], problem.dtype)


DTYPE_PARAMETERS = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
SIZES = [(1, 1, 1, 1, 1), (5, 3, 7, 9, 2), (70, 2, 20, 33, 18), (17, 5, 65, 70, 3), (33, 1, 64, 128, 66)]


@DTYPE_PARAMETERS
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_forward_and_backward_match_the_reference(
    sizes: tuple[int, int, int, int, int], dropout_p: float, dtype: torch.dtype
) -> None:
    check(Problem(sizes, dtype, dropout_p=dropout_p))


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("act2", ACTS)
@pytest.mark.parametrize("act1", ["none", "relu", "tanh"])
def test_activations_and_mixes(act1: str, act2: str, mix: str) -> None:
    check(Problem((9, 3, 8, 12, 5), act1=act1, act2=act2, mix=mix))


@DTYPE_PARAMETERS
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_predictor_head_over_wide_rows(dropout_p: float, dtype: torch.dtype) -> None:
    check(
        Problem((6, 2, 24, 16, 70), dtype, act1="relu", act2="softmax", mix="logsumexp", dropout_p=dropout_p)
    )


@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize(("hidden", "expert_out"), [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kept_activations_replace_their_recomputation(
    dtype: torch.dtype, hidden: bool, expert_out: bool, dropout_p: float
) -> None:
    problem = Problem((21, 3, 12, 20, 6), dtype, dropout_p=dropout_p)
    problem.keep_hidden, problem.keep_expert_out = hidden, expert_out
    check(problem)


@pytest.fixture
def short_chunks() -> Iterator[None]:
    limits = library().moe_mlp_mix_backward_limits
    limits.argtypes = [ctypes.c_int64, ctypes.c_int64]
    limits(16 * 1024, 2)
    yield
    limits(0, 0)


@pytest.mark.usefixtures("short_chunks")
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_add_up_over_chunks_and_slices(dtype: torch.dtype, dropout_p: float) -> None:
    problem = Problem((301, 2, 6, 5, 3), dtype, dropout_p=dropout_p)
    check(problem)
    saved = forward(problem)
    first, second = (backward(problem, saved, seed=seed) for seed in (1, 2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_gate_input_can_be_detached() -> None:
    check(Problem((9, 3, 8, 12, 5), detach_gate_input=True))


@pytest.mark.parametrize("layout", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_aligned_rows_take_wide_accesses(dtype: torch.dtype, layout: int) -> None:
    check(Problem((20, 2, 32, 40, 24), dtype, dropout_p=0.5), layout=layout)


@pytest.mark.parametrize("kept", [False, True], ids=["recomputed", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_order_of_threads(dtype: torch.dtype, kept: bool) -> None:
    problem = Problem((35, 3, 20, 70, 9), dtype, act2="log_softmax", dropout_p=0.5)
    problem.keep_hidden = problem.keep_expert_out = kept
    runs = []
    for seed in range(3):
        saved = forward(problem, seed=seed)
        runs.append(saved | {f"grad_{k}": v for k, v in backward(problem, saved, seed=seed).items()})
    for name, value in runs[0].items():
        assert all(torch.equal(value, other[name]) for other in runs[1:]), name


def test_unwanted_gradients_are_not_written() -> None:
    problem = Problem((9, 3, 8, 12, 5))
    saved = forward(problem)
    gradients = expected(problem)[1]
    for name in ("x", *WEIGHTS):
        assert_close(name, backward(problem, saved, wanted=(name,))[name], gradients[name], problem.dtype)


@pytest.mark.parametrize(
    ("dtype", "in_dim", "rows"),
    [
        (torch.float32, 60, 64),
        (torch.float32, 120, 32),
        (torch.float32, 1000, 16),
        (torch.bfloat16, 100, 64),
        (torch.bfloat16, 300, 32),
        (torch.bfloat16, 1300, 16),
    ],
    ids=str,
)
def test_wide_inputs_run_with_fewer_rows_a_tile(dtype: torch.dtype, in_dim: int, rows: int) -> None:
    problem = Problem((rows + 1, 1, in_dim, 4, 2), dtype)
    tile_rows = library().moe_mlp_mix_tile_rows
    assert tile_rows(ctypes.byref(problem.shape), DTYPES[dtype], ctypes.c_bool(True)) == rows
    check(problem)


def test_no_tokens_give_zero_gradients() -> None:
    problem = Problem((0, 2, 4, 5, 3))
    saved = forward(problem)
    assert all((value == 0).all() for value in backward(problem, saved).values())


def test_nan_stays_in_its_token() -> None:
    problem = Problem((6, 2, 8, 8, 4))
    problem.inputs["x"][2, 1] = float("nan")
    out = forward(problem)["out"]
    assert torch.equal(out.isnan().all(1), torch.arange(6) == 2)
    assert torch.equal(out.isnan().any(1), torch.arange(6) == 2)


@pytest.mark.parametrize(
    ("sizes", "dtype", "supported"),
    [
        ((4096, 64, 256, 256, 256), torch.float32, True),
        ((4096, 64, 256, 256, 256), torch.bfloat16, True),
        ((4096, 8, 128, 128, 18), torch.float16, True),
        ((8, 8, 4000, 128, 18), torch.float32, False),
        ((8, 8, 2**40, 128, 18), torch.bfloat16, False),
        ((8, 8, 0, 128, 18), torch.bfloat16, False),
        ((8, 8, 16, 16, 16), torch.float64, False),
    ],
    ids=str,
)
def test_supported_shapes(sizes: tuple[int, ...], dtype: torch.dtype, supported: bool) -> None:
    shape = MoeMlpMixShape(*sizes)
    answer = library().moe_mlp_mix_supported
    answer.restype = ctypes.c_bool
    assert answer(ctypes.byref(shape), DTYPES[dtype]) == supported


def test_workspace_is_bounded_in_the_number_of_tokens() -> None:
    size = library().moe_mlp_mix_backward_workspace_bytes
    size.restype = ctypes.c_int64
    sizes = [size(ctypes.byref(MoeMlpMixShape(n, 8, 128, 128, 128)), 2) for n in (2**15, 2**17, 2**20)]
    assert max(sizes) < 256 * 2**20


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_logsumexp_gradients_do_not_inherit_the_rounding_of_large_outputs(dtype: torch.dtype) -> None:
    """Shares taken from ``out`` as stored would be off by 2^-9 |out| in bf16, some 10 % here."""
    problem = Problem((48, 3, 16, 24, 5), dtype, act2="none", mix="logsumexp")
    problem.inputs["b2"] = (problem.inputs["b2"] + 37.3).to(dtype)
    _, wanted = expected(problem)
    actual = backward(problem, forward(problem))
    for name in ("b2", "gate_bias"):
        error = (actual[name].double() - wanted[name]).norm() / wanted[name].norm()
        assert error < 0.01, name
