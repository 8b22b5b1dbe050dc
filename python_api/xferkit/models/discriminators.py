"""Language discriminators: which language do these shared features come from?"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, pad

from xferkit.models.dropout import FastDropout
from xferkit.models.eager import eager
from xferkit.models.layout import TokenLayout
from xferkit.models.ops import OpsName, resolve_ops
from xferkit.models.segments import text_max
from xferkit.models.windows import packed_convolutions

__all__ = ["CNNDiscriminator", "MLPDiscriminator"]


class MLPDiscriminator(nn.Module):
    """One hidden layer over one feature vector per text.

    Args:
        in_dim: size of the shared features.
        num_domains: number of languages told apart.
        hidden_dim: units of the hidden layer.
        dropout: dropout before each layer.
        ops: ``"fused"`` or ``"reference"``, where the gradient reversal comes from.

    Shape:
        ``float[n, in_dim]`` -> logits ``float[n, num_domains]``.
    """

    def __init__(
        self,
        in_dim: int,
        num_domains: int,
        *,
        hidden_dim: int = 128,
        dropout: float = 0.5,
        ops: OpsName = "fused",
    ) -> None:
        super().__init__()
        self.hidden = nn.Linear(in_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, num_domains)
        self.dropout = nn.Dropout(dropout)
        self.ops = ops

    def forward(
        self, features: Tensor, mask: Tensor | None = None, reverse: float | Tensor | None = None
    ) -> Tensor:
        """Logits ``[n, num_domains]``; with ``reverse`` the gradient into ``features`` times ``-reverse``.

        Raises:
            ValueError: when a mask comes with features that are no sequence.
        """
        if mask is not None or features.dim() != 2:
            raise ValueError(
                f"MLPDiscriminator: expected features [n, dim] and no mask, got {list(features.shape)}; "
                "CNNDiscriminator reads sequences"
            )
        x = self.dropout(features)
        if reverse is None:
            x = linear(x, self.hidden.weight, self.hidden.bias)
        else:
            reversed_linear = resolve_ops(self.ops).linear_grad_reverse
            x = reversed_linear(x, self.hidden.weight, self.hidden.bias, reverse)
        logits: Tensor = self.out(self.dropout(torch.relu(x)))
        return logits


class CNNDiscriminator(nn.Module):
    """Kim's CNN over the sequence of features, max-pool, one hidden layer (Chen et al., ACL 2019, section 3).

    Windows that start on padding are masked before the max-pool and padded features are cleared, so
    neither the padded length nor what stands there changes a logit.

    Args:
        in_dim: size of the shared features.
        num_domains: number of languages told apart.
        channels: units of each convolution.
        widths: widths of the convolutions.
        hidden_dim: units of the hidden layer.
        dropout: dropout before the convolutions and before each layer.
        ops: ``"fused"``: on the CPU convolutions over packed tokens, differentiable once, and the fused gradient
            reversal; ``"reference"``: ``nn.Conv1d`` over padded tokens.

    Shape:
        ``float[n, length, in_dim]`` with ``bool[n, length]``, whose Trues stand in front of each row and at
        least one in each -> logits ``float[n, num_domains]``.
    """

    def __init__(
        self,
        in_dim: int,
        num_domains: int,
        *,
        channels: int = 200,
        widths: Sequence[int] = (3, 4, 5),
        hidden_dim: int = 128,
        dropout: float = 0.5,
        ops: OpsName = "fused",
    ) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv1d(in_dim, channels, width) for width in widths)
        self.hidden = nn.Linear(channels * len(widths), hidden_dim)
        self.out = nn.Linear(hidden_dim, num_domains)
        self.dropout = FastDropout(dropout)
        self.ops = ops

    @eager
    def forward(
        self, features: Tensor, mask: Tensor | None = None, reverse: float | Tensor | None = None
    ) -> Tensor:
        """Logits ``[n, num_domains]``; with ``reverse`` the gradient into ``features`` times ``-reverse``.

        Raises:
            ValueError: when the mask is missing or the features are no sequence.
        """
        if mask is None or features.dim() != 3:
            raise ValueError(
                "CNNDiscriminator: expected features [n, length, dim] and a mask [n, length], got "
                f"{list(features.shape)}; MLPDiscriminator reads one vector per text"
            )
        if reverse is not None:
            features = resolve_ops(self.ops).grad_reverse(features, reverse)
        layout = TokenLayout(mask.sum(1), mask.shape[1])
        x = self.dropout(layout.pack(features))
        device = x.device.type
        plain = self.ops == "reference" or device != "cpu" or torch.is_autocast_enabled(device)
        pooled = self._padded_windows(x, layout) if plain else self._packed_windows(x, layout)
        x = self.dropout(torch.relu(pooled))
        logits: Tensor = self.out(self.dropout(torch.relu(self.hidden(x))))
        return logits

    def _packed_windows(self, x: Tensor, layout: TokenLayout) -> Tensor:
        weights, biases = [], []
        for conv in self.convolutions:
            assert isinstance(conv, nn.Conv1d) and conv.bias is not None
            weights.append(conv.weight)
            biases.append(conv.bias)
        return text_max(packed_convolutions(x, layout, weights, biases), layout)

    def _padded_windows(self, x: Tensor, layout: TokenLayout) -> Tensor:
        padded, mask = layout.unpack(x).transpose(1, 2), layout.mask.unsqueeze(1)
        pooled = []
        for conv in self.convolutions:
            assert isinstance(conv, nn.Conv1d)
            windows = conv(pad(padded, (0, conv.kernel_size[0] - 1)))
            pooled.append(windows.masked_fill(~mask, float("-inf")).amax(2))
        return torch.cat(pooled, dim=1)
