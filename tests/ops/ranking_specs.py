"""The specifications of in-batch ranking and exact search; ``op_specs.py`` puts them into its table."""

from __future__ import annotations

from typing import Any

import torch
from draw import Draw, drawer
from torch import Tensor

import xfercore
from xfercore import reference
from xfercore.testing import ErrorSample, OpSpec, Sample

_SIZES = [
    (5, 5, 7),
    (1, 1, 1),
    (0, 0, 3),
    (0, 4, 3),
    (3, 11, 4),
    (4, 4, 0),
    (17, 37, 13),
]  # queries, docs, dim
_HARD = [0, 1, 7]
#: Small, so that no logit leaves what half types resolve.
_SCALE = 0.25


def _ids(values: list[int], count: int, device: torch.device) -> Tensor:
    return torch.tensor([values[i % len(values)] for i in range(count)], dtype=torch.int64, device=device)


def _options(
    draw: Draw, queries: int, docs: int, dim: int, device: torch.device
) -> list[tuple[str, dict[str, Any]]]:
    targets = (3 * torch.arange(queries, device=device) + 1) % docs
    doc_ids = _ids([0, 1, 1, 2, -1, 3], docs, device)
    hard_ids = _ids([5, -1, 1, 2], 2 * queries, device).view(queries, 2)
    weight = draw(queries, grad=False).abs() + 0.5
    hard = {"hard_neg": draw(queries, 2, dim), "hard_neg_ids": hard_ids}
    return [
        ("targets", {"targets": targets}),
        ("sum", {"reduction": "sum", "scale": 0.5}),
        ("none", {"reduction": "none", "row_weight": weight}),
        ("weight", {"row_weight": weight, "margin": 0.5}),
        ("normalize", {"normalize": True, "scale": 2.0, "margin": 0.25}),
        ("doc-ids", {"doc_ids": doc_ids, "targets": targets}),
        ("query-ids", {"query_ids": _ids([4, 4, 2, -1], queries, device)}),
        ("both-ids", {"query_ids": _ids([1, 3, 2, -1], queries, device), "doc_ids": doc_ids, **hard}),
        ("all", {**hard, "hard_neg_scope": "all"}),
        ("all-ids", {**hard, "hard_neg_scope": "all", "doc_ids": doc_ids, "symmetric": True}),
        ("symmetric", {"symmetric": True, "margin": 0.25, "targets": targets}),
        ("symmetric-shared", {"symmetric": True, "targets": targets // 3, "reduction": "none", **hard}),
        ("blocks", {"workspace_bytes": 4 * docs * 2, "symmetric": True}),
        ("tiles", {"workspace_bytes": 1, "doc_ids": doc_ids, **hard}),
    ]


def _loss_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    samples = []
    for queries, docs, dim in _SIZES:
        draw = drawer(device, dtype, grad)
        args = (draw(queries, dim), draw(docs, dim))
        samples.append(Sample(f"{queries}x{docs}x{dim}", args, {"scale": _SCALE}))
    for count in _HARD:
        draw = drawer(device, dtype, grad, seed=1)
        args = (draw(4, 6), draw(5, 6))
        samples.append(Sample(f"hard-{count}", args, {"hard_neg": draw(4, count, 6), "scale": _SCALE}))
    draw = drawer(device, dtype, grad, seed=2)
    for name, options in _options(draw, 6, 90, 5, device):
        if name == "normalize" and dtype != torch.float64:
            continue  # half unit vectors are rounded again; tests/ops/test_inbatch_softmax_loss.py has these
        args = (draw(6, 5), draw(90, 5))
        samples.append(Sample(name, args, {"scale": draw(scale=0.5), **options}))
    u, v = draw(4, 6), draw(4, 6)
    samples.append(Sample("constant-u", (u.detach(), v)))
    samples.append(Sample("constant-v", (u, v.detach()), {"scale": 0.5, "symmetric": True}))
    samples.append(Sample("constant-hard", (u.detach(), v), {"hard_neg": draw(4, 2, 6).detach()}))
    return samples


def _loss_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    draw = drawer(device, dtype, grad, seed=3)
    u, v, hard = draw(300, 24), draw(700, 24), draw(300, 3, 24)
    return [
        Sample("wide", (u, v), {"hard_neg": hard, "scale": _SCALE}),
        Sample("blocks", (u, v), {"workspace_bytes": 4 * 700 * 70, "symmetric": True, "scale": _SCALE}),
        Sample("tiles", (u, v), {"workspace_bytes": 4 * 700 * 10, "reduction": "none", "scale": _SCALE}),
    ]


def _loss_gradcheck(device: torch.device) -> list[Sample]:
    samples = []
    draw = drawer(device, torch.float64, True, seed=4)
    for name, options in _options(draw, 3, 5, 2, device):
        samples.append(Sample(name, (draw(3, 2), draw(5, 2)), {"scale": draw(), **options}))
    return samples


def _loss_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    u, v, hard = draw(4, 6), draw(5, 6), draw(4, 2, 6)

    def error(
        name: str, args: tuple[Any, ...], argument: str, raises: type[Exception] = ValueError, **kwargs: Any
    ) -> ErrorSample:
        return ErrorSample(name, args, kwargs, argument, raises)

    wrong = torch.zeros(3, dtype=torch.int64, device=device)
    cases = [
        error("u-rank", (u[0], v), "u"),
        error("v-rank", (u, v[0]), "v"),
        error("dim", (u, v[:, :5]), "v"),
        error("dtype", (u.long(), v), "u"),
        error("dtypes", (u, v.bfloat16()), "v"),
        error("no-tensor", (u, None), "v"),
        error("too-few", (v, u), "v"),
        error("hard-rank", (u, v), "hard_neg", hard_neg=hard[:, 0]),
        error("hard-rows", (u, v), "hard_neg", hard_neg=hard[:3]),
        error("hard-dtype", (u, v), "hard_neg", hard_neg=hard.half()),
        error("scale-shape", (u, v), "scale", scale=draw(1)),
        error("scale-text", (u, v), "scale", scale="20"),
        error("scale-integer", (u, v), "scale", scale=torch.tensor(3, device=device)),
        error("margin", (u, v), "margin", margin=draw(4)),
        error("scope", (u, v), "hard_neg_scope", hard_neg=hard, hard_neg_scope="both"),
        error("reduction", (u, v), "reduction", reduction="max"),
        error("normalize", (u, v), "normalize", normalize="yes"),
        error("symmetric", (u, v), "symmetric", symmetric=1),
        error("workspace", (u, v), "workspace_bytes", workspace_bytes=0),
        error("group", (u, v), "group", group="world"),
        error("weight-size", (u, v), "row_weight", row_weight=draw(5)),
        error("weight-integer", (u, v), "row_weight", row_weight=wrong),
        error("hard-ids-alone", (u, v), "hard_neg_ids", hard_neg_ids=wrong),
        error("hard-ids-size", (u, v), "hard_neg_ids", hard_neg=hard, hard_neg_ids=wrong),
        error("weight-grad", (u, v), "row_weight", RuntimeError, row_weight=draw(4).requires_grad_()),
    ]
    for name in ("targets", "query_ids", "doc_ids"):
        cases.append(error(f"{name}-size", (u, v), name, **{name: wrong}))
        cases.append(error(f"{name}-dtype", (u, v), name, **{name: wrong.int()}))
        cases.append(error(f"{name}-list", (u, v), name, **{name: [0, 1, 2, 3]}))
    return cases


def _topk_samples(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    """Inner products that no two keys share, and that are exact in every dtype: indices are compared exactly."""
    samples = []
    for queries, keys, dim, k in [(3, 5, 4, 2), (1, 1, 1, 1), (0, 4, 3, 2), (5, 90, 3, 90), (7, 37, 2, 11)]:
        q, all_keys = _distinct(queries, keys, dim, device, dtype)
        samples.append(Sample(f"{queries}x{keys}x{dim}", (q, all_keys, k)))
    q, all_keys = _distinct(6, 150, 3, device, dtype)
    samples.append(Sample("tiles", (q, all_keys, 9), {"workspace_bytes": 1}))
    samples.append(Sample("one", (q, all_keys, 1), {"workspace_bytes": 2000}))
    return samples


def _distinct(
    queries: int, keys: int, dim: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    q, all_keys = torch.zeros(queries, dim), torch.zeros(keys, dim)
    q[:, 0] = 2.0 ** (torch.arange(queries) % 4 - 1)
    all_keys[:, 0] = (torch.arange(keys) * 37 % max(keys, 1)).float() - keys // 2
    if keys and keys % 37 == 0:
        all_keys[:, 0] = torch.arange(keys).flip(0).float()
    return q.to(device, dtype), all_keys.to(device, dtype)


def _topk_large(device: torch.device, dtype: torch.dtype, grad: bool) -> list[Sample]:
    q, all_keys = _distinct(500, 251, 8, device, dtype)
    return [
        Sample("rows", (q, all_keys, 10)),
        Sample("tiles", (q, all_keys, 10), {"workspace_bytes": 50_000}),
    ]


def _topk_errors(device: torch.device) -> list[ErrorSample]:
    draw = drawer(device, torch.float32, False)
    q, keys = draw(4, 6), draw(9, 6)

    def error(name: str, args: tuple[Any, ...], argument: str, **kwargs: Any) -> ErrorSample:
        return ErrorSample(name, args, kwargs, argument)

    return [
        error("queries-rank", (q[0], keys, 1), "queries"),
        error("keys-rank", (q, keys[0], 1), "keys"),
        error("dim", (q, keys[:, :5], 1), "keys"),
        error("dtype", (q.long(), keys, 1), "queries"),
        error("dtypes", (q, keys.bfloat16(), 1), "keys"),
        error("no-tensor", (q, None, 1), "keys"),
        error("k-zero", (q, keys, 0), "k"),
        error("k-large", (q, keys, 10), "k"),
        error("k-float", (q, keys, 2.0), "k"),
        error("csls-zero", (q, keys, 1), "csls", csls=0),
        error("csls-large", (q, keys, 1), "csls", csls=5),
        error("normalize", (q, keys, 1), "normalize", normalize=1),
        error("workspace", (q, keys, 1), "workspace_bytes", workspace_bytes=-1),
    ]


RANKING_SPECS = [
    OpSpec(
        name="inbatch_softmax_loss",
        op=xfercore.inbatch_softmax_loss,
        reference=reference.inbatch_softmax_loss,
        samples=_loss_samples,
        large_samples=_loss_large,
        gradcheck_samples=_loss_gradcheck,
        error_samples=_loss_errors,
        autocast_keeps=("scale", "row_weight"),
        thread_invariant=False,  # the GEMMs are ATen's
    ),
    OpSpec(
        name="topk_similarity",
        op=xfercore.topk_similarity,
        reference=reference.topk_similarity,
        samples=_topk_samples,
        large_samples=_topk_large,
        error_samples=_topk_errors,
        differentiable=False,
        double_backward=False,
        autocast="none",
        thread_invariant=False,  # the GEMMs are ATen's
    ),
]
