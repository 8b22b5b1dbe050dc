"""Names under which models keep attention and feed-forward parts, and the shapes that tell these from others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

__all__ = ["Block", "Projection", "find_blocks"]


@dataclass(frozen=True)
class Projection:
    """Names of a linear map's weight ``[out, in]`` and bias ``[out]``."""

    weight: str
    bias: str


def _linear(name: str) -> Projection:
    return Projection(f"{name}.weight", f"{name}.bias")


@dataclass(frozen=True)
class _Pattern:
    """``output`` takes the units as columns; each of ``inputs`` gives them as rows, ``packed`` times over."""

    kind: Literal["attention", "ffn"]
    inputs: tuple[Projection, ...]
    output: Projection
    packed: int = 1


def _attention(inputs: str, output: str, packed: int = 1) -> _Pattern:
    return _Pattern("attention", tuple(map(_linear, inputs.split())), _linear(output), packed)


def _ffn(inputs: str, output: str, packed: int = 1) -> _Pattern:
    return _Pattern("ffn", tuple(map(_linear, inputs.split())), _linear(output), packed)


_PATTERNS = (
    _attention("query key value", "output"),  # xferkit.models.transformer
    _attention("self.query self.key self.value", "output.dense"),  # BERT, RoBERTa, XLM-R, ELECTRA, CamemBERT
    _attention("self.query_proj self.key_proj self.value_proj", "output.dense"),  # DeBERTa
    _attention("q_lin k_lin v_lin", "out_lin"),  # DistilBERT, XLM
    _attention("query key value", "dense"),  # ALBERT
    _attention("q_proj k_proj v_proj", "out_proj"),  # BART, M2M-100, wav2vec
    _attention("q_proj k_proj v_proj", "o_proj"),  # decoders with as many key heads as query heads
    _attention("q k v", "o"),  # T5
    _attention("Wqkv", "Wo", packed=3),  # ModernBERT
    _Pattern(  # torch.nn.MultiheadAttention
        "attention", (Projection("in_proj_weight", "in_proj_bias"),), _linear("out_proj"), packed=3
    ),
    _ffn("up", "down"),  # xferkit.models.transformer
    _ffn("linear1", "linear2"),  # torch.nn.TransformerEncoderLayer
    _ffn("intermediate.dense", "output.dense"),  # BERT and its like
    _ffn("lin1", "lin2"),  # DistilBERT, XLM
    _ffn("ffn", "ffn_output"),  # ALBERT
    _ffn("fc1", "fc2"),  # BART, M2M-100
    _ffn("gate_proj up_proj", "down_proj"),  # gated decoders
    _ffn("wi", "wo"),  # T5
    _ffn("wi_0 wi_1", "wo"),  # T5 1.1
    _ffn("Wi", "Wo", packed=2),  # ModernBERT
)


@dataclass(frozen=True)
class Block:
    """An attention or feed-forward part that was found.

    Attributes:
        kind: which of the two.
        prefix: the module that holds it, empty for the root.
        inputs: full names; their rows are the units, over again up to three times.
        output: full names; its columns are the units.
        units: how many there are: ``heads * head_dim``, or hidden units.
    """

    kind: Literal["attention", "ffn"]
    prefix: str
    inputs: tuple[Projection, ...]
    output: Projection
    units: int


def find_blocks(parameters: Mapping[str, Tensor]) -> list[Block]:
    """The parts of a module with such parameters, in their order; no parameter is in two of them."""
    taken: set[str] = set()
    found: list[Block] = []
    for name in parameters:
        for pattern in _PATTERNS:
            first = pattern.inputs[0].weight
            if name != first and not name.endswith("." + first):
                continue
            block = _block(pattern, name[: len(name) - len(first)], parameters)
            if block is None or taken & set(_weights(block)):
                continue
            taken |= set(_weights(block))
            found.append(block)
    return found


def _block(pattern: _Pattern, prefix: str, parameters: Mapping[str, Tensor]) -> Block | None:
    inputs = tuple(Projection(prefix + p.weight, prefix + p.bias) for p in pattern.inputs)
    output = Projection(prefix + pattern.output.weight, prefix + pattern.output.bias)
    weights = [parameters.get(p.weight) for p in (*inputs, output)]
    if any(w is None or w.dim() != 2 for w in weights):
        return None
    shapes = [tuple(w.shape) for w in weights if w is not None]
    units = shapes[-1][1]
    if units == 0 or any(rows != pattern.packed * units for rows, _ in shapes[:-1]):
        return None
    return Block(pattern.kind, prefix.rstrip("."), inputs, output, units)


def _weights(block: Block) -> Iterator[str]:
    yield from (p.weight for p in block.inputs)
    yield block.output.weight
