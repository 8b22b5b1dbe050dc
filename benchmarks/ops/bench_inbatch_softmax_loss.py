"""``inbatch_softmax_loss``: queries against the documents of their batch, loss and gradients.

The least work is three matrix products of ``B x B x d``, timed as such in the same rounds (``three_gemms``, the better
of whole matrices and blocks of rows). The losses of sentence-transformers are called on the embeddings, where it is
installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

import xfercore
from benchmarks.harness import Bench, Candidate, Case, Options, Variant, Work, bind, make_variants
from benchmarks.measures import time_calls
from xfercore import reference

__all__ = ["cases"]

_DIM = 512
_SCALE = 20.0
_MINI_BATCH = 512  # rows of a block of CachedMultipleNegativesRankingLoss and of the blocked products


def _naive(u: Tensor, v: Tensor) -> Tensor:
    """As people write it."""
    return cross_entropy(_SCALE * (u @ v.T), torch.arange(len(u), device=u.device))


def _naive_autocast(u: Tensor, v: Tensor) -> Tensor:
    with torch.autocast(u.device.type, dtype=torch.bfloat16):
        return _naive(u, v)


def _sentence_transformers() -> dict[str, Callable[[Tensor, Tensor], Sequence[Tensor]]]:
    """Loss and gradients by its two losses, on inner products."""
    try:
        from sentence_transformers.sentence_transformer import losses
        from sentence_transformers.util import dot_score
    except ImportError:
        return {}
    model = torch.nn.Sequential(torch.nn.Identity())
    plain = losses.MultipleNegativesRankingLoss(model, scale=_SCALE, similarity_fct=dot_score)
    cached = losses.CachedMultipleNegativesRankingLoss(
        model, scale=_SCALE, similarity_fct=dot_score, mini_batch_size=_MINI_BATCH
    )
    labels = torch.zeros(0)

    def run_plain(u: Tensor, v: Tensor) -> Sequence[Tensor]:
        loss = plain.compute_loss_from_embeddings([u, v], labels)
        return loss.detach(), *torch.autograd.grad(loss, (u, v))

    def run_cached(u: Tensor, v: Tensor) -> Sequence[Tensor]:
        u.grad = v.grad = None
        loss = cached.calculate_loss([[u], [v]], labels, with_backward=True)
        return loss.detach(), u.grad, v.grad

    return {"sentence_transformers": run_plain, "sentence_transformers_cached": run_cached}


def _whole_gemms(u: Tensor, v: Tensor, p: Tensor, du: Tensor, dv: Tensor) -> Sequence[Tensor]:
    torch.mm(u, v.T, out=p)
    torch.mm(p, v, out=du)
    torch.mm(p.T, u, out=dv)
    return [du, dv]


def _blocked_gemms(u: Tensor, v: Tensor, p: Tensor, du: Tensor, dv: Tensor) -> Sequence[Tensor]:
    dv.zero_()
    for begin in range(0, len(u), _MINI_BATCH):
        rows = slice(begin, begin + _MINI_BATCH)
        block = p[: len(u[rows])]
        torch.mm(u[rows], v.T, out=block)
        torch.mm(block, v, out=du[rows])
        dv.addmm_(block.T, u[rows])
    return [du, dv]


def _three_gemms(u: Tensor, v: Tensor, device: str) -> Variant:
    p, du, dv = (
        torch.empty(len(u), len(v), dtype=u.dtype, device=device),
        torch.empty_like(u),
        torch.empty_like(v),
    )
    args = (u.detach(), v.detach(), p, du, dv)
    ways = [partial(_whole_gemms, *args), partial(_blocked_gemms, *args)]
    seconds = []
    with torch.no_grad():
        for way in ways:
            way()
            seconds.append(min(next(iter(time_calls(way, 1, device, None).values())) for _ in range(3)))
    return Variant("three_gemms", "part", ways[seconds.index(min(seconds))], comparable=False)


def _setup(case: Case) -> Bench:
    rows, device, dtype = int(case.shape["B"]), case.options.device, case.options.dtype
    form = str(case.shape["form"])
    u = normalize(torch.randn(rows, _DIM, device=device), dim=-1)
    v = normalize(u + 0.05 * torch.randn(rows, _DIM, device=device), dim=-1)  # as after some training
    u, v = (t.to(dtype).requires_grad_() for t in (u, v))
    leaves = [u, v]
    options: dict[str, Any] = {"scale": _SCALE}
    if form == "symmetric":
        options["symmetric"] = True
    elif form == "none":
        options["reduction"] = "none"
    elif form == "hard5":
        leaves.append(normalize(torch.randn(rows, 5, _DIM, device=device), dim=-1).to(dtype).requires_grad_())

    def call(function: Callable[..., Any], u: Tensor, v: Tensor, *hard: Tensor) -> Tensor:
        named = {"hard_neg": hard[0]} if hard else {}
        loss = function(u, v, **named, **options)
        return loss.mean() if form == "none" else loss

    cotangents = [torch.ones((), device=device)]
    ours = Candidate(partial(call, xfercore.inbatch_softmax_loss), tuple(leaves), leaves)
    baselines = {"reference": Candidate(partial(call, reference.inbatch_softmax_loss), tuple(leaves), leaves)}
    if form == "plain":
        baselines["naive"] = Candidate(_naive, (u, v), leaves)
        if dtype == torch.bfloat16:
            wide = [t.detach().float().requires_grad_() for t in leaves]
            baselines["naive_fp32"] = Candidate(_naive, tuple(wide), wide)
            baselines["naive_autocast"] = Candidate(_naive_autocast, tuple(wide), wide)
    variants = make_variants(case, ours, baselines, cotangents)
    if form == "plain":
        if dtype != torch.float64:
            for name, run in _sentence_transformers().items():
                variants.append(Variant(name, "eager", partial(run, u, v)))
        variants.append(_three_gemms(u, v, device))
    double = [t.detach().double().requires_grad_() for t in leaves]
    exact = Candidate(partial(call, reference.inbatch_softmax_loss), tuple(double), double)
    return Bench(variants, oracle=bind(exact, case.passes, cotangents))


def cases(options: Options) -> list[Case]:
    """Rows: four batch sizes in the plain form, and hard negatives, both directions and no reduction at 4,096."""
    sizes = [64, 256] if options.quick else [256, 1024, 4096, 8192]
    if options.device == "cuda" and not options.quick:
        sizes = [2048, 16384, 65536]
    middle = sizes[-2]
    rows = [(size, "plain") for size in sizes] + [(middle, form) for form in ("hard5", "symmetric", "none")]
    return [
        Case(
            op="inbatch_softmax_loss",
            passes="forward_backward",
            shape={"B": size, "d": _DIM, "form": form},
            options=options,
            setup=_setup,
            work=Work(
                flops=6.0 * size * size * _DIM,
                bytes=float(4 * size * _DIM * options.dtype.itemsize),
                matmul=(min(size, 2048), _DIM, min(size, 8192)),
            ),
        )
        for size, form in rows
    ]
