"""The transformer encoder and the masked language model on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from xferkit.models import MaskedLanguageModel, TransformerConfig, TransformerEncoder

SMALL = TransformerConfig(23, dim=12, layers=2, heads=3, feed_forward=20, max_length=9)
FORMS = [TransformerConfig(23, 12, 2, 3, 20, 9, norm=norm) for norm in ("post", "pre")]


def texts(lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 22, (len(lengths), max(lengths)), generator=generator)
    found = torch.tensor(lengths)
    return tokens * (torch.arange(max(lengths)) < found.unsqueeze(1)), found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dim": 512, "heads": 12}, "dim must be a multiple of heads.*got dim 512 and 12 heads"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, "attention_dropout must be in"),
        ({"norm": "none"}, "norm must be one of post, pre, got 'none'"),
        ({"activation": "tanh"}, "activation must be one of gelu, relu, got 'tanh'"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TransformerConfig(23, **changes)


def test_parameters_have_the_names_that_others_look_for() -> None:
    encoder = TransformerEncoder(SMALL)
    linear = {
        *(f"attention.{part}" for part in ("query", "key", "value", "output")),
        *(f"feed_forward.{part}" for part in ("up", "down")),
    }
    modules = dict(encoder.named_modules())
    for i in range(2):
        for name in linear:
            assert isinstance(modules[f"layers.{i}.{name}"], nn.Linear)
            assert modules[f"layers.{i}.{name}"].bias is not None
        attention = modules[f"layers.{i}.attention"]
        assert (attention.num_heads, attention.head_dim) == (3, 4)
    norms = {f"layers.{i}.{part}_norm" for i in range(2) for part in ("attention", "feed_forward")}
    tables = {"embeddings.tokens", "embeddings.positions", "embeddings.norm"}
    layers = {f"layers.{i}.{name}" for i in range(2) for name in linear}
    assert {name.rsplit(".", 1)[0] for name, _ in encoder.named_parameters()} == norms | tables | layers
    assert encoder.out_dim == 12


@pytest.mark.parametrize("config", FORMS)
def test_padding_has_no_part_in_other_states(config: TransformerConfig) -> None:
    encoder = TransformerEncoder(config).eval().double()
    tokens, lengths = texts([7, 3, 1])
    states = encoder(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        alone = encoder(tokens[row : row + 1, :length], lengths[row : row + 1])
        torch.testing.assert_close(states[row, :length], alone[0], rtol=0, atol=1e-12)
        assert not states[row, length:].any()
    filled = tokens.masked_fill(tokens == 0, 5)  # whatever stands there
    torch.testing.assert_close(encoder(filled, lengths), states, rtol=0, atol=1e-12)
    states[1, :3].square().sum().backward()
    assert not encoder.embeddings.positions.weight.grad[3:].any()


def test_every_token_sees_both_sides() -> None:
    encoder = TransformerEncoder(SMALL).eval().double()
    tokens, lengths = texts([6])
    before = encoder(tokens, lengths)
    for place in (0, 5):
        changed = tokens.clone()
        changed[0, place] = tokens[0, place] % 21 + 1
        difference = (encoder(changed, lengths) - before).abs().amax(2)
        assert (difference > 1e-6).all()
    order = torch.tensor([1, 0, 2, 3, 4, 5])
    assert not torch.allclose(encoder(tokens[:, order], lengths)[:, order], before)  # places count


def test_a_layer_by_hand() -> None:
    encoder = TransformerEncoder(SMALL).eval().double()
    tokens, lengths = texts([5])
    layers = encoder.all_layers(tokens, lengths)
    assert len(layers) == 3
    torch.testing.assert_close(layers[-1], encoder(tokens, lengths))
    table, places = encoder.embeddings.tokens.weight, encoder.embeddings.positions.weight
    torch.testing.assert_close(layers[0][0], encoder.embeddings.norm(table[tokens[0]] + places[:5]))
    x, layer = layers[0][0], encoder.layers[0]
    heads = []
    for h in range(3):
        part = slice(4 * h, 4 * h + 4)
        q, k, v = (
            x @ m.weight[part].T + m.bias[part]
            for m in (layer.attention.query, layer.attention.key, layer.attention.value)
        )
        heads.append((q @ k.T / math.sqrt(4)).softmax(1) @ v)
    y = layer.attention_norm(x + layer.attention.output(torch.cat(heads, 1)))
    hidden = torch.nn.functional.gelu(y @ layer.feed_forward.up.weight.T + layer.feed_forward.up.bias)
    wanted = layer.feed_forward_norm(y + layer.feed_forward.down(hidden))
    torch.testing.assert_close(layers[1][0], wanted)


@pytest.mark.parametrize("config", FORMS)
def test_some_places_alone_are_rows_of_all(config: TransformerConfig) -> None:
    model = MaskedLanguageModel(config).eval().double()
    tokens, lengths = texts([7, 3, 4])
    positions = torch.tensor([0, 6, 8, 16])
    alone, whole = (
        model(tokens, lengths, positions),
        model(tokens, lengths, positions, with_states=True),
    )
    assert alone.states is None and whole.states.shape == (3, 7, 12) and alone.logits.shape == (4, 23)
    torch.testing.assert_close(alone.logits, whole.logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.logits(whole.states.flatten(0, 1)[positions]), alone.logits)
    none = model(tokens, lengths, positions[:0]).logits
    assert none.shape == (0, 23)
    none.sum().backward()


def test_the_output_is_the_embedding() -> None:
    model = MaskedLanguageModel(SMALL).eval().double()
    names = [name for name, p in model.named_parameters() if p.shape == (23, 12)]
    assert names == ["encoder.embeddings.tokens.weight"]
    tokens, lengths = texts([4])
    positions = torch.tensor([1, 2])
    hidden = model.transform_norm(
        torch.nn.functional.gelu(model.transform(model.encoder(tokens, lengths)[0, 1:3]))
    )
    table = model.encoder.embeddings.tokens.weight
    torch.testing.assert_close(model(tokens, lengths, positions).logits, hidden @ table.T + model.bias)
    # Whoever replaces the table replaces both: with zeros every text reads and every token scores alike.
    zero = {"encoder.embeddings.tokens.weight": torch.zeros_like(table)}
    logits = functional_call(model, zero, (tokens, lengths, positions)).logits
    assert torch.equal(logits, model.bias.expand(2, 23))
    model(tokens, lengths, positions).logits[0, 22].backward()
    assert table.grad[22].any() and table.grad[tokens[0]].any(1).all()


def test_dropout_is_on_in_training_alone() -> None:
    encoder = TransformerEncoder(SMALL)
    tokens, lengths = texts([5, 5])
    assert not torch.equal(encoder(tokens, lengths), encoder(tokens, lengths))
    encoder.eval()
    assert torch.equal(encoder(tokens, lengths), encoder(tokens, lengths))
    heavy = TransformerEncoder(TransformerConfig(23, 12, 2, 3, 20, 9, dropout=0.0, attention_dropout=0.5))
    assert not torch.equal(heavy(tokens, lengths), heavy(tokens, lengths))


def test_second_derivatives_by_plain_attention() -> None:
    model = MaskedLanguageModel(SMALL).eval().double()
    tokens, lengths = texts([4, 2])
    with sdpa_kernel(SDPBackend.MATH):
        loss = model(tokens, lengths, torch.tensor([0, 3])).logits.logsumexp(1).sum()
        weight = model.encoder.layers[0].attention.query.weight
        (gradient,) = torch.autograd.grad(loss, weight, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), weight)
    assert second.any() and second.isfinite().all()


def test_texts_that_do_not_fit() -> None:
    encoder = TransformerEncoder(SMALL)
    with pytest.raises(ValueError, match="at most max_length = 9 tokens, got 10"):
        encoder(torch.ones(2, 10, dtype=torch.int64), torch.tensor([10, 2]))
    with pytest.raises(
        ValueError, match=r"expected tokens \[texts, length\] and lengths \[texts\], got \[2, 5\]"
    ):
        encoder(torch.ones(2, 5, dtype=torch.int64), torch.tensor([5]))
