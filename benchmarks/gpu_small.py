"""Every CUDA kernel once on small odd shapes, for compute-sanitizer, which is slow."""

from __future__ import annotations

import itertools

import torch

import xfercore


def _surgery(grads: torch.Tensor) -> None:
    """Arena and list form, empty groups, and the coefficients of every method."""
    num_tasks, numel = grads.shape
    offsets = torch.tensor([0, 3, 3, 20000, numel], device="cuda")
    gram = xfercore.task_gram(grads, offsets)
    seed_step = torch.tensor([1, 2], device="cuda")
    found = xfercore.gradvac_coef(gram, torch.zeros_like(gram), seed_step=seed_step)
    xfercore.combine_gradients(grads, offsets, found.weights)
    xfercore.mgda_coef(gram)
    xfercore.agem_coef(gram)
    losses = torch.rand(num_tasks, device="cuda", dtype=torch.float64) + 0.1
    xfercore.gradnorm_stats(gram, losses, losses, losses)
    rows = [[row[:17], None if t else row[17:], row[17:20]] for t, row in enumerate(grads)]
    xfercore.combine_gradients(
        rows,
        [0, 1, 3],
        xfercore.pcgrad_coef(xfercore.task_gram(rows, [0, 1, 3]), seed_step=seed_step).weights,
    )


def _ranking(dtype: torch.dtype) -> None:
    """Whole rows and tiles, both directions, hard negatives of both scopes, ids, and exact search."""
    options = {"device": "cuda", "dtype": dtype, "requires_grad": True}
    u, v, hard = (torch.randn(shape, **options) for shape in ((37, 24), (1301, 24), (37, 3, 24)))
    ids = torch.randint(-1, 40, (1301,), device="cuda")
    for scope, symmetric, budget in itertools.product(("own", "all"), (False, True), (None, 20_000)):
        out = xfercore.inbatch_softmax_loss(
            u, v, hard_neg=hard, hard_neg_scope=scope, symmetric=symmetric, doc_ids=ids, workspace_bytes=budget,
            scale=torch.tensor(0.5, device="cuda", requires_grad=True), return_stats=True,
        )  # fmt: skip
        out.loss.backward()
    xfercore.topk_similarity(u.detach(), v.detach(), 17, csls=5, workspace_bytes=20_000)


def _masks(dtype: torch.dtype) -> None:
    """A gate an element, rows, columns and one gate for all; aligned and not; with noise and without."""
    seed_offset = torch.tensor([1, 2], device="cuda")
    for shape, dims in itertools.product(((37, 83), (64, 128), (3, 5, 71)), ((), (0,), (1,), (0, 1))):
        theta = torch.randn(shape, device="cuda", dtype=dtype, requires_grad=True)
        kept = [size for dim, size in enumerate(shape) if dim not in dims]
        log_alpha = torch.randn(kept, device="cuda", requires_grad=True)
        for beta in (2 / 3, 0.5):
            masked, penalty = xfercore.hard_concrete(
                log_alpha, theta, beta=beta, seed_offset=seed_offset, group_dims=dims
            )
            (masked.float().sum() + penalty).backward()
        xfercore.hard_concrete_eval(log_alpha, theta, group_dims=dims).float().sum().backward()
        (first,) = torch.autograd.grad(
            xfercore.hard_concrete(log_alpha, seed_offset=seed_offset)[0].sum(), log_alpha, create_graph=True
        )
        first.sum().backward()


def main() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        options = {"device": "cuda", "dtype": dtype, "requires_grad": True}
        tokens, experts, in_dim, hidden, out_dim = 37, 3, 19, 13, 7
        logits = torch.randn(tokens, experts, **options)
        stacked = torch.randn(tokens, experts, out_dim, **options)
        targets = torch.randint(0, experts, (tokens,), device="cuda")
        mixed, nll = xfercore.gated_mix(logits, stacked, targets=targets)
        (mixed.float().sum() + nll.sum()).backward()
        mixed, _ = xfercore.gated_mix(logits, list(stacked.unbind(1)))
        mixed.float().sum().backward()
        lam = torch.rand(tokens, device="cuda")
        xfercore.grad_reverse(stacked, lam).float().sum().backward()
        weights = [
            torch.randn(size, **options)
            for size in [
                (experts, in_dim),
                (experts,),
                (experts, hidden, in_dim),
                (experts, hidden),
                (experts, out_dim, hidden),
                (experts, out_dim),
            ]
        ]
        x = torch.randn(tokens, in_dim, **options)
        modes = [("tanh", "sum"), ("softmax", "sum"), ("log_softmax", "logsumexp")]
        for (act2, mix), dropout_p, recompute in itertools.product(modes, (0.0, 0.5), ("always", "never")):
            out, gate_logits = xfercore.moe_mlp_mix(
                x, *weights, act2=act2, mix=mix, dropout_p=dropout_p, recompute=recompute
            )
            (out.float().sum() + gate_logits.float().sum()).backward()
        _ranking(dtype)
        _masks(dtype)
        for num_tasks in (1, 7, 25, 37):
            _surgery(torch.randn(num_tasks, 2 * 16384 + 37, device="cuda", dtype=dtype))
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
