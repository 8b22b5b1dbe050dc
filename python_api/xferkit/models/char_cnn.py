"""Characters to one feature vector per text: convolutions, max-pool, one hidden layer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag, pad

from xferkit.models.dropout import FastDropout
from xferkit.models.inputs import TokenSequences
from xferkit.models.lookups import pooled_windows
from xferkit.models.segments import segment_max

__all__ = ["CharCNNEncoder"]


class CharCNNEncoder(nn.Module):
    """``dropout(relu(W max_t relu(conv(embed(text))_t)))``, a convolution per width, concatenated.

    A convolution over embeddings is linear in them, so it is computed as a sum of ``width`` rows looked up
    in one table ``T[j, token] = W_j embed(token)``, at real windows alone. That is the same function as
    ``nn.Conv1d`` over the padded text with padded windows masked before the max-pool (to rounding), and
    several times faster on short texts. It is differentiable once.

    Args:
        num_tokens: size of the vocabulary, padding (0) included.
        out_dim: size of the feature vector.
        token_dim: size of a token's embedding.
        flag_dim: size of the embedding of the flag beside each token (is upper case); 0 for none.
        channels: units of each convolution.
        widths: widths of the convolutions.
        dropout: dropout after the pool and after the hidden layer.
        fast: on the CPU, pool as :func:`pooled_windows` does and drop out as :class:`FastDropout` does, for many
            texts of many channels (the words of a batch): the same function and other random numbers. Of windows
            that tie for a maximum the first has the gradient; otherwise they share it.

    Shape:
        :class:`TokenSequences` of n texts -> ``float[n, out_dim]``.
    """

    is_sequence = False

    def __init__(
        self,
        num_tokens: int,
        out_dim: int = 64,
        *,
        token_dim: int = 32,
        flag_dim: int = 8,
        channels: int = 96,
        widths: Sequence[int] = (4,),
        dropout: float = 0.3,
        fast: bool = False,
    ) -> None:
        super().__init__()
        if not widths or min(widths) < 1:
            raise ValueError(f"CharCNNEncoder: widths must be at least one width >= 1, got {tuple(widths)}")
        self.out_dim, self.fast = out_dim, fast
        self.token_embedding = nn.Embedding(num_tokens, token_dim, padding_idx=0)
        self.flag_embedding = nn.Embedding(2, flag_dim) if flag_dim else None
        self.convolutions = nn.ModuleList(
            nn.Conv1d(token_dim + flag_dim, channels, width) for width in widths
        )
        self.hidden = nn.Linear(channels * len(widths), out_dim)
        self.dropout = FastDropout(dropout) if fast else nn.Dropout(dropout)

    def forward(self, inputs: TokenSequences) -> Tensor:
        """Features ``[n, out_dim]``.

        Raises:
            ValueError: when the encoder has a flag embedding and the inputs no flags.
        """
        embeddings, rows = self._embeddings(inputs)
        convolutions = [conv for conv in self.convolutions if isinstance(conv, nn.Conv1d)]
        if self.fast and rows.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            pooled = self._pool_windows(convolutions, *_rows_in_use(embeddings, rows), inputs.lengths)
        else:
            pooled = torch.cat(
                [self._convolve_and_pool(conv, embeddings, rows, inputs.lengths) for conv in convolutions],
                dim=1,
            )
        return self.dropout(torch.relu(self.hidden(self.dropout(torch.relu(pooled)))))

    def _embeddings(self, inputs: TokenSequences) -> tuple[Tensor, Tensor]:
        """The table of embeddings ``[rows, dim]``, row 0 padding, and the row of every token."""
        tokens = self.token_embedding.weight
        if self.flag_embedding is None:
            return tokens, inputs.ids
        if inputs.flags is None:
            raise ValueError("CharCNNEncoder: the inputs have no flags; construct it with flag_dim=0")
        num_tokens, num_flags = tokens.shape[0], self.flag_embedding.num_embeddings
        both = torch.cat(
            [
                tokens.repeat(num_flags, 1),
                self.flag_embedding.weight.repeat_interleave(num_tokens, dim=0),
            ],
            dim=1,
        )
        return both, inputs.ids + num_tokens * inputs.flags

    @staticmethod
    def _pool_windows(
        convolutions: list[nn.Conv1d], embeddings: Tensor, rows: Tensor, lengths: Tensor
    ) -> Tensor:
        tables = [torch.einsum("ve,hew->wvh", embeddings, conv.weight) for conv in convolutions]
        biases = [conv.bias for conv in convolutions if conv.bias is not None]
        return pooled_windows(tables, rows, lengths) + torch.cat(biases)

    @staticmethod
    def _convolve_and_pool(conv: nn.Conv1d, embeddings: Tensor, rows: Tensor, lengths: Tensor) -> Tensor:
        width, num_rows = conv.kernel_size[0], embeddings.shape[0]
        table = torch.einsum("ve,hew->wvh", embeddings, conv.weight).reshape(width * num_rows, -1)
        # A zero row for padding: windows that hang over the ends see it as nn.Conv1d sees its zeros.
        table = torch.cat([table, table.new_zeros(1, table.shape[1])])
        # Every window that holds at least one token: length + width - 1 of them.
        windows = pad(rows, (width - 1, width - 1)).unfold(1, width, 1)
        real = windows.ne(0)
        taps = torch.arange(width, device=rows.device) * num_rows
        index = (windows + taps).masked_fill(~real, width * num_rows)[real.any(2)]
        features = embedding_bag(index, table, mode="sum")
        pooled = segment_max(features, lengths + (width - 1))
        return pooled if conv.bias is None else pooled + conv.bias


def _rows_in_use(embeddings: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of the table that occur, and their numbers in it: tables of what occurs are short."""
    in_use = torch.zeros(len(embeddings), dtype=torch.bool, device=rows.device)
    in_use[rows.flatten()] = True
    number = in_use.cumsum(0) - 1
    return embeddings.index_select(0, in_use.nonzero().squeeze(1)), number[rows]
