"""Every CUDA kernel once on small odd shapes, for compute-sanitizer, which is slow."""

from __future__ import annotations

import itertools

import torch

import xfercore


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
    torch.cuda.synchronize()
    print("every kernel ran")


if __name__ == "__main__":
    main()
