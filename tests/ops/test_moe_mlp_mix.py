"""What moe_mlp_mix promises beyond the checks generated for all ops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import xfercore
from xfercore.testing import assert_close

NAMES = ("x", "gate_weight", "gate_bias", "w1", "b1", "w2", "b2")


def _args(
    tokens: int = 40, d: int = 7, k: int = 3, h: int = 6, out: int = 5, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    shapes = ((tokens, d), (k, d), (k,), (k, h, d), (k, h), (k, out, h), (k, out))
    return {name: torch.randn(s, dtype=dtype) * 0.7 for name, s in zip(NAMES, shapes, strict=True)}


def _seed(seed: int = 3, offset: int = 5) -> Tensor:
    return torch.tensor([seed, offset])


def _grads(args: dict[str, Tensor], **options: Any) -> list[Tensor]:
    leaves = {name: t.detach().clone().requires_grad_() for name, t in args.items()}
    out, logits = xfercore.moe_mlp_mix(**leaves, **options)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return list(torch.autograd.grad((out * weights).sum() + logits.pow(2).sum(), list(leaves.values())))


def test_formula() -> None:
    a = _args(dtype=torch.float64)
    out, logits = xfercore.moe_mlp_mix(**a)
    assert_close(logits, a["x"] @ a["gate_weight"].t() + a["gate_bias"], "gate_logits")
    alpha = logits.softmax(-1)
    expected = torch.zeros_like(out)
    for k in range(3):
        hidden = torch.relu(a["x"] @ a["w1"][k].t() + a["b1"][k])
        expected += alpha[:, k : k + 1] * torch.tanh(hidden @ a["w2"][k].t() + a["b2"][k])
    assert_close(out, expected, "out")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_logsumexp_is_the_log_of_the_explicit_mixture(dtype: torch.dtype) -> None:
    a = _args(dtype=dtype)
    log_mix, logits = xfercore.moe_mlp_mix(**a, act2="log_softmax", mix="logsumexp")
    probabilities, _ = xfercore.moe_mlp_mix(**a, act2="softmax", mix="sum")
    assert_close(log_mix, probabilities.log(), "log of the mixture", tolerance=1e-5)
    assert_close(log_mix.exp().sum(-1), torch.ones(40, dtype=dtype), "a distribution", tolerance=1e-5)
    assert logits.shape == (40, 3)


@pytest.mark.parametrize("magnitude", [1e4, 1e30])
def test_logsumexp_is_finite_at_extreme_logits(magnitude: float) -> None:
    """The mixture's probabilities underflow there; their logarithms and gradients must not."""
    a = _args(tokens=6)
    a["b2"] = torch.tensor([1.0, -1.0, 0.5, 0.0, -0.5]).repeat(3, 1) * magnitude
    a["gate_bias"] = torch.tensor([1.0, -1.0, 0.0]) * magnitude
    out, _ = xfercore.moe_mlp_mix(**a, act2="log_softmax", mix="logsumexp")
    assert out.isfinite().all()
    assert (out[:, 0].abs() < 1e-3).all() and (out[:, 1] < -0.9 * magnitude).all()
    for recompute in ("always", "never"):
        options = {"act2": "log_softmax", "mix": "logsumexp", "recompute": recompute}
        leaves = {name: t.clone().requires_grad_() for name, t in a.items()}
        out, _ = xfercore.moe_mlp_mix(**leaves, **options)
        grads = torch.autograd.grad(out.sum(), list(leaves.values()))
        assert all(g.isfinite().all() for g in grads), recompute


def test_predictor_loss_is_finite_at_extreme_logits() -> None:
    """A certain and wrong expert: nll_loss of the log-mixture, as the predictor is trained."""
    a = _args(tokens=4)
    a["b2"] = torch.tensor([1e4, -1e4, 0.0, 0.0, 0.0]).repeat(3, 1)
    leaves = {name: t.requires_grad_() for name, t in a.items()}
    out, _ = xfercore.moe_mlp_mix(**leaves, act2="log_softmax", mix="logsumexp")
    loss = torch.nn.functional.nll_loss(out, torch.ones(4, dtype=torch.int64))
    loss.backward()
    assert loss.isfinite() and loss > 1e4
    assert all(t.grad is not None and t.grad.isfinite().all() for t in leaves.values())


def test_detach_gate_input() -> None:
    """The gate learns, the tokens do not hear of it; as in a gate on x.detach()."""
    a = _args(dtype=torch.float64)
    free, cut = _grads(a), _grads(a, detach_gate_input=True)
    assert torch.equal(free[1], cut[1]) and (cut[1] != 0).any()
    assert not torch.equal(free[0], cut[0])
    for whole, same in zip(free[1:], cut[1:], strict=True):
        assert torch.equal(whole, same)
    leaves = {name: t.clone().requires_grad_() for name, t in a.items()}
    _, logits = xfercore.moe_mlp_mix(**leaves, detach_gate_input=True)
    grads = torch.autograd.grad(logits.sum(), (leaves["x"], leaves["gate_weight"]))
    assert (grads[0] == 0).all() and (grads[1] != 0).any()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"dropout_p": 0.5, "seed_offset": _seed()},
    {"act1": "tanh", "act2": "softmax"},
    {"act2": "log_softmax", "mix": "logsumexp"},
    {"act2": "log_softmax", "mix": "logsumexp", "dropout_p": 0.3, "seed_offset": _seed()},
]
each_option = pytest.mark.parametrize(
    "options", OPTIONS, ids=lambda o: "-".join(map(str, o.values()))[:40] or "plain"
)


@each_option
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_recomputing_gives_the_same_bits_as_keeping(options: dict[str, Any], dtype: torch.dtype) -> None:
    a = _args(tokens=1100, dtype=dtype)
    kept, recomputed = (_grads(a, **options, recompute=r) for r in ("never", "always"))
    for one, other in zip(kept, recomputed, strict=True):
        assert torch.equal(one, other)


def _saved_bytes(recompute: str, tokens: int, **options: Any) -> int:
    a = {name: t.requires_grad_() for name, t in _args(tokens=tokens, k=8, h=64, d=16, out=16).items()}
    seen: dict[int, int] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        xfercore.moe_mlp_mix(**a, recompute=recompute, **options)
    return sum(seen.values())


@each_option
def test_recompute_always_keeps_no_hidden_states(options: dict[str, Any]) -> None:
    """Per token: x and the gate's logits, never num_experts states."""
    fewer, more = (_saved_bytes("always", tokens, **options) for tokens in (1000, 3000))
    assert more - fewer == 2000 * 4 * (16 + 8)
    fewer, more = (_saved_bytes("never", tokens, **options) for tokens in (1000, 3000))
    assert more - fewer == 2000 * 4 * (16 + 8 + 8 * 64 + 8 * 16)


def test_no_hidden_states_where_nothing_is_differentiated() -> None:
    """Without a gradient to make, even recompute="never" allocates results and scratch of a fixed size alone."""

    def peak(tokens: int) -> int:
        a = _args(tokens=tokens, k=8, h=64, d=16, out=16)
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as prof:
            xfercore.moe_mlp_mix(**a, recompute="never")
        return max(e.self_cpu_memory_usage for e in prof.events() if e.name == "xfercore::moe_mlp_mix")

    assert peak(12_000) - peak(4_000) < 8_000 * 64 * 4  # hidden states of one expert alone would be that


def test_dropout_expectation_and_scale() -> None:
    """Inverted dropout: on average what it is without, for a linear network."""
    a = _args(tokens=3, dtype=torch.float64)
    a["gate_weight"].zero_()
    plain, _ = xfercore.moe_mlp_mix(**a, act1="none", act2="none")
    total = torch.zeros_like(plain)
    for seed in range(800):
        out, _ = xfercore.moe_mlp_mix(**a, act1="none", act2="none", dropout_p=0.5, seed_offset=_seed(seed))
        total += out
    assert ((total / 800 - plain).abs() < 0.25).all()


def test_dropout_zero_ignores_the_seed() -> None:
    a = _args()
    out, _ = xfercore.moe_mlp_mix(**a)
    for seed in (_seed(), _seed(9, 9), None):
        assert torch.equal(out, xfercore.moe_mlp_mix(**a, dropout_p=0.0, seed_offset=seed)[0])


def test_dropout_follows_seed_and_offset() -> None:
    a = _args()

    def run(*pair: int) -> Tensor:
        return xfercore.moe_mlp_mix(**a, dropout_p=0.5, seed_offset=_seed(*pair))[0]

    assert torch.equal(run(1, 2), run(1, 2))
    different = [run(1, 2), run(2, 2), run(1, 3), run(1, 2 + 2**32), run(1 + 2**32, 2), run(-1, 2)]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert not torch.equal(one, other)


def test_dropout_without_a_seed_comes_from_torchs_generator() -> None:
    a = _args()
    torch.manual_seed(11)
    first, second = (xfercore.moe_mlp_mix(**a, dropout_p=0.5)[0] for _ in range(2))
    assert not torch.equal(first, second)
    torch.manual_seed(11)
    assert torch.equal(first, xfercore.moe_mlp_mix(**a, dropout_p=0.5)[0])


def test_the_gate_sees_no_dropout() -> None:
    a = _args()
    _, plain = xfercore.moe_mlp_mix(**a)
    _, dropped = xfercore.moe_mlp_mix(**a, dropout_p=0.5, seed_offset=_seed())
    assert torch.equal(plain, dropped)


@pytest.mark.parametrize("drop", [1e-12, 1.0 - 1e-12])
def test_dropout_near_its_bounds(drop: float) -> None:
    a = _args()
    out, _ = xfercore.moe_mlp_mix(**a, dropout_p=drop, seed_offset=_seed())
    if drop < 0.5:
        assert_close(out, xfercore.moe_mlp_mix(**a)[0], "nothing dropped")
    else:
        nothing = _args() | {"x": torch.zeros(40, 7), "b1": a["b1"], "w2": torch.zeros(3, 5, 6)}
        only_b2 = {**a, "w2": nothing["w2"]}
        assert_close(out, xfercore.moe_mlp_mix(**only_b2)[0], "everything dropped: biases of the last layer")


def test_one_expert_is_a_plain_network() -> None:
    a = _args(k=1)
    out, logits = xfercore.moe_mlp_mix(**a)
    hidden = torch.relu(a["x"] @ a["w1"][0].t() + a["b1"][0])
    assert_close(out, torch.tanh(hidden @ a["w2"][0].t() + a["b2"][0]), "one expert")
    assert logits.shape == (40, 1)
    leaves = {name: t.requires_grad_() for name, t in a.items()}
    out, _ = xfercore.moe_mlp_mix(**leaves)
    assert (torch.autograd.grad(out.sum(), leaves["gate_weight"])[0] == 0).all()


@pytest.mark.parametrize("experts", [65, 300])
def test_many_experts(experts: int) -> None:
    a = _args(k=experts, dtype=torch.float64)
    for one, other in zip(xfercore.moe_mlp_mix(**a), xfercore.reference.moe_mlp_mix(**a), strict=True):
        assert_close(one, other, "many experts")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize(
    "options", [{}, {"act2": "log_softmax", "mix": "logsumexp"}], ids=["sum", "logsumexp"]
)
def test_nan_and_inf_stay_in_their_token_and_do_not_vanish(bad: float, options: dict[str, Any]) -> None:
    a = _args(tokens=33, dtype=torch.float32)
    clean, _ = xfercore.moe_mlp_mix(**a, **options)
    a["x"][4, 2] = bad
    out, logits = xfercore.moe_mlp_mix(**a, **options)
    reference, _ = xfercore.reference.moe_mlp_mix(**a, **options)
    others = [i for i in range(33) if i != 4]
    assert torch.equal(out[others], clean[others])
    assert not logits[4].isfinite().all()
    assert torch.equal(out[4].isnan(), reference[4].isnan()) and out[4].isnan().any()


def test_nan_in_a_weight_reaches_every_token() -> None:
    a = _args()
    a["w2"][1, 3, 2] = math.nan
    out, _ = xfercore.moe_mlp_mix(**a, act1="tanh")
    assert out[:, 3].isnan().all() and out[:, [0, 1, 2, 4]].isfinite().all()
    assert _grads(a, act1="tanh")[0].isnan().all()


def test_leading_dimensions() -> None:
    a = _args(tokens=24)
    out, logits = xfercore.moe_mlp_mix(**a)
    for shape in [(24,), (4, 6), (2, 3, 4), (24, 1), (1, 24)]:
        got, gate = xfercore.moe_mlp_mix(**{**a, "x": a["x"].view(*shape, 7)})
        assert got.shape == (*shape, 5) and gate.shape == (*shape, 3)
        assert torch.equal(got.view(24, 5), out) and torch.equal(gate.view(24, 3), logits)
    one, gate = xfercore.moe_mlp_mix(**{**a, "x": a["x"][0]})
    assert one.shape == (5,) and gate.shape == (3,)


def test_tokens_do_not_see_each_other() -> None:
    """Also across the cache-sized blocks, and with dropout: a token's masks belong to its row."""
    a = _args(tokens=1300)
    for options in OPTIONS[:2]:
        out, _ = xfercore.moe_mlp_mix(**a, **options)
        head, _ = xfercore.moe_mlp_mix(**{**a, "x": a["x"][:600]}, **options)
        assert_close(out[:600], head, "the first tokens alone")


def test_only_gate_logits_are_used() -> None:
    leaves = {name: t.requires_grad_() for name, t in _args(dtype=torch.float64).items()}
    _, logits = xfercore.moe_mlp_mix(**leaves)
    grads = torch.autograd.grad(logits.sum(), list(leaves.values()), allow_unused=True)
    assert_close(grads[2], torch.full((3,), 40.0, dtype=torch.float64), "gate_bias")
    assert all(g is None or (g == 0).all() for g in grads[3:])


def test_inputs_are_not_changed() -> None:
    a = _args()
    before = {name: t.clone() for name, t in a.items()}
    _grads(a, dropout_p=0.5, seed_offset=_seed(), recompute="always")
    assert all(torch.equal(t, before[name]) for name, t in a.items())


def test_changing_an_input_before_backward_raises() -> None:
    leaves = {name: t.requires_grad_() for name, t in _args().items()}
    x = leaves["x"] * 1
    out, _ = xfercore.moe_mlp_mix(**{**leaves, "x": x})
    x.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_the_question_whether_a_shape_fits_the_gpu_does_not_break_a_graph() -> None:
    """The public function asks on CUDA alone; compiled here on its own, so that a machine without a GPU shows it."""

    def asks(x: Tensor) -> Tensor:
        from xfercore.ops.moe_mlp_mix import _fused_fits

        return x + 1 if _fused_fits(0, torch.float64, 3, 4, 5, 6) else x - 1

    x = torch.zeros(3)
    assert torch.equal(torch.compile(asks, fullgraph=True, backend="eager")(x), x + 1)
