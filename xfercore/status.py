"""What CUDA kernels found wrong in their data, readable without having slowed them down."""

from __future__ import annotations

import torch

__all__ = ["device_status"]

_MEANINGS = {
    1: "gated_mix: a target was outside [0, num_experts) and not ignore_index; its gate_nll is NaN",
    2: "task_gram: offsets were out of order or out of range; the Gram matrices of their groups are NaN",
    4: "inbatch_softmax_loss: a target was outside [0, num_docs); the loss of its row is NaN",
}


def device_status(device: torch.device | str = "cuda", *, clear: bool = True) -> list[str]:
    """Sentences for the data errors that kernels met on ``device`` since the last call.

    Data that only the device knows (a target out of range) cannot raise without a synchronisation: the kernel gives
    NaN and sets a bit of a flag, which this function reads (one synchronisation) and, by default, clears.
    With ``XFER_CHECK=1`` in the environment such data raises at the call itself. On the CPU it always does, so the
    list is empty there.
    """
    flag = torch.ops.xfercore.device_status(torch.empty(0, device=device))
    bits = int(flag.item())
    if clear and bits:
        flag.zero_()
    return [sentence for bit, sentence in _MEANINGS.items() if bits & bit]
