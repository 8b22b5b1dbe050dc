"""A bidirectional transformer encoder of tokens, trained from scratch: every head and hidden unit findable by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, relu, scaled_dot_product_attention

from xferkit.models.dropout import FastDropout

__all__ = [
    "SelfAttention",
    "TransformerConfig",
    "TransformerEmbeddings",
    "TransformerEncoder",
    "TransformerFeedForward",
    "TransformerLayer",
]


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and form of a transformer encoder.

    Attributes:
        vocab_size: token numbers there are; 0 is padding.
        dim: size of the states, a multiple of ``heads``.
        layers: number of layers.
        heads: attention heads of a layer, each of ``dim / heads``.
        feed_forward: hidden units of a layer's feed-forward part.
        max_length: longest text in tokens, and the number of learned positions.
        dropout: probability of dropping an element of the embeddings and of what a sublayer adds.
        attention_dropout: probability of dropping an attention weight. 0 by default, where XLM's recipe has the
            0.1 of ``dropout``: PyTorch's fused attention on the CPU has none, and without it takes twice as long.
        norm: "post": LayerNorm behind each residual sum, as Vaswani et al. (2017), BERT and XLM have it, the
            default; it wants a warm-up. "pre": in front of each sublayer and once at the end.
        activation: of the feed-forward part, "gelu" (with the error function, as XLM) or "relu".
    """

    vocab_size: int
    dim: int = 128
    layers: int = 4
    heads: int = 4
    feed_forward: int = 512
    max_length: int = 64
    dropout: float = 0.1
    attention_dropout: float = 0.0
    norm: Literal["post", "pre"] = "post"
    activation: Literal["gelu", "relu"] = "gelu"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "layers", "heads", "feed_forward", "max_length"):
            if getattr(self, name) < 1:
                raise ValueError(f"TransformerConfig: {name} must be at least 1, got {getattr(self, name)}")
        if self.dim % self.heads:
            raise ValueError(
                f"TransformerConfig: dim must be a multiple of heads, as each head has dim / heads, got dim "
                f"{self.dim} and {self.heads} heads"
            )
        for name in ("dropout", "attention_dropout"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"TransformerConfig: {name} must be in [0, 1), got {getattr(self, name)}")
        for name, known in (("norm", ("post", "pre")), ("activation", ("gelu", "relu"))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"TransformerConfig: {name} must be one of {', '.join(known)}, got {getattr(self, name)!r}"
                )


class TransformerEmbeddings(nn.Module):
    """``dropout(LayerNorm(tokens[x] + positions[0..length-1]))``.

    Both tables are drawn from a normal distribution of deviation ``dim^-1/2``, as in XLM.

    Attributes:
        tokens: a vector for each number.
        positions: a vector for each place.
        norm: LayerNorm of their sum.

    Shape:
        ``int64[texts, length]`` -> ``float[texts, length, dim]``.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_length, config.dim)
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=config.dim**-0.5)
        self.norm = nn.LayerNorm(config.dim)
        self.dropout = FastDropout(config.dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """The states that enter the first layer."""
        return self.dropout(self.norm(self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]))


class SelfAttention(nn.Module):
    r"""Attention of every token to every token of its text, with ``num_heads`` heads.

    .. math:: \mathrm{head}_h = \mathrm{softmax}(Q_h K_h^\top / \sqrt{d_h})\, V_h, \qquad
              \mathrm{out} = W_o\, [\mathrm{head}_1; \ldots; \mathrm{head}_H] + b_o

    Head h owns rows (of ``query``, ``key``, ``value``) and columns (of ``output``) ``h * head_dim`` to
    ``(h + 1) * head_dim``. What enters ``output`` are the heads one after the other.

    Attributes:
        num_heads: number of heads.
        head_dim: size of each.
        query, key, value, output: linear layers with bias.

    Shape:
        States ``float[texts, length, dim]`` and ``bool[texts, 1, 1, length]``, true for real tokens ->
        ``float[texts, length, dim]``.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, self.head_dim = config.heads, config.dim // config.heads
        self.query = nn.Linear(config.dim, config.dim)
        self.key = nn.Linear(config.dim, config.dim)
        self.value = nn.Linear(config.dim, config.dim)
        self.output = nn.Linear(config.dim, config.dim)
        self.dropout = config.attention_dropout

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """What each token gathers."""
        shape = (*states.shape[:2], self.num_heads, self.head_dim)
        query, key, value = (
            layer(states).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        heads = scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0
        )
        gathered: Tensor = self.output(heads.transpose(1, 2).flatten(2))
        return gathered


class TransformerFeedForward(nn.Module):
    """``down(activation(up(x)))``; hidden unit i owns row i of ``up`` and column i of ``down``.

    Attributes:
        up: linear layer to the hidden units, with bias.
        down: linear layer back, with bias.

    Shape:
        ``float[..., dim]`` -> ``float[..., dim]``.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.dim, config.feed_forward)
        self.down = nn.Linear(config.feed_forward, config.dim)
        self.activation: Callable[[Tensor], Tensor] = gelu if config.activation == "gelu" else relu

    def forward(self, states: Tensor) -> Tensor:
        """Each token by itself."""
        changed: Tensor = self.down(self.activation(self.up(states)))
        return changed


class TransformerLayer(nn.Module):
    """Attention and feed-forward part, each with residual connection, dropout and LayerNorm.

    ``norm="post"``: ``x = attention_norm(x + dropout(attention(x)))``, then the same with the feed-forward part.
    ``norm="pre"``: ``x = x + dropout(attention(attention_norm(x)))``, likewise.

    Attributes:
        attention: see :class:`SelfAttention`.
        attention_norm: its LayerNorm.
        feed_forward: see :class:`TransformerFeedForward`.
        feed_forward_norm: its LayerNorm.

    Shape:
        As :class:`SelfAttention`; ``float[selected, dim]`` where ``positions`` are given.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention = SelfAttention(config)
        self.attention_norm = nn.LayerNorm(config.dim)
        self.feed_forward = TransformerFeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.dim)
        self.dropout = FastDropout(config.dropout)
        self.norm = config.norm

    def forward(self, states: Tensor, mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """The states behind the layer, or those at some places (of ``texts * length``) alone.

        Everything behind the attention is made for those places only: with 15 % of them, 0.6 of a layer is saved.
        """
        if self.norm == "post":
            states = self.attention_norm(states + self.dropout(self.attention(states, mask)))
            states = _at(states, positions)
            return self.feed_forward_norm(states + self.dropout(self.feed_forward(states)))
        states = states + self.dropout(self.attention(self.attention_norm(states), mask))
        states = _at(states, positions)
        return states + self.dropout(self.feed_forward(self.feed_forward_norm(states)))


def _at(states: Tensor, positions: Tensor | None) -> Tensor:
    return states if positions is None else states.flatten(0, 1).index_select(0, positions)


class TransformerEncoder(nn.Module):
    """A state for every token, from the whole text around it.

    Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser and Polosukhin, "Attention Is All You Need" (NeurIPS
    2017), the encoder, with learned positions and LayerNorm of the embeddings as in Conneau and Lample,
    "Cross-lingual Language Model Pretraining" (NeurIPS 2019); there is no embedding of the language.

    Second derivatives need PyTorch's plain attention, ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``: the
    fused one has none.

    Args:
        config: sizes and form; parameters are drawn from torch's generator.

    Attributes:
        config: the same.
        embeddings: see :class:`TransformerEmbeddings`.
        layers: ``config.layers`` times :class:`TransformerLayer`.
        norm: LayerNorm of the last states with ``norm="pre"``, else the identity.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = TransformerEmbeddings(config)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.dim) if config.norm == "pre" else nn.Identity()

    @property
    def out_dim(self) -> int:
        """Size of a token's state."""
        return self.config.dim

    def forward(self, tokens: Tensor, lengths: Tensor, positions: Tensor | None = None) -> Tensor:
        """The states behind the last layer, of all tokens or of some.

        Args:
            tokens: ``int64[texts, length]``, numbers, whatever on padding.
            lengths: ``int64[texts]``, tokens of each text, at least 1.
            positions: ``int64[selected]``, places in ``tokens.view(-1)``, none of them padding; None: all.

        Returns:
            ``float[texts, length, dim]``, zero on padding, which has no part in any other state; or
            ``float[selected, dim]``, the rows of the same (to rounding; other elements are dropped in training).

        Raises:
            ValueError: texts longer than ``max_length``, or other shapes.
        """
        if positions is None:
            return self.all_layers(tokens, lengths)[-1]
        states, mask = self._enter(tokens, lengths)
        for layer in self.layers[:-1]:
            states = layer(states, mask)
        last: Tensor = self.norm(self.layers[-1](states, mask, positions))
        return last

    def all_layers(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """The embeddings and the states behind each layer, as :meth:`forward`, for probes.

        Returns:
            ``layers + 1`` tensors ``float[texts, length, dim]``. The last has gone through ``norm`` and is zero on
            padding; the others hold numbers without meaning there.
        """
        entering, mask = self._enter(tokens, lengths)
        states = [entering]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        states[-1] = self.norm(states[-1]) * mask.view(*tokens.shape, 1)
        return tuple(states)

    def _enter(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The embeddings, and ``bool[texts, 1, 1, length]``, true for real tokens."""
        if tokens.dim() != 2 or lengths.shape != tokens.shape[:1]:
            raise ValueError(
                "TransformerEncoder: expected tokens [texts, length] and lengths [texts], got "
                f"{list(tokens.shape)} and {list(lengths.shape)}"
            )
        if tokens.shape[1] > self.config.max_length:
            raise ValueError(
                f"TransformerEncoder: texts must have at most max_length = {self.config.max_length} tokens, got "
                f"{tokens.shape[1]}"
            )
        mask = torch.arange(tokens.shape[1], device=tokens.device) < lengths.unsqueeze(1)
        return self.embeddings(tokens), mask[:, None, None, :]
