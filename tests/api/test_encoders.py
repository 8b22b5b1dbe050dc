"""Encoders from a configuration: what they compute, what they keep fixed, what they refuse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from xferkit.models import (
    BiLSTMEncoder,
    CharCNNEncoder,
    EncoderConfig,
    Spellings,
    TokenSequences,
    WordEmbedder,
    WordEncoder,
    make_encoder,
    take_apart,
)

CONFIG = EncoderConfig(
    feature_dim=6, dropout=0.0, word_dim=5, char_dim=4, char_flag_dim=2, char_channels=7, char_widths=(2, 3), char_out=3
)  # fmt: skip
NUM_WORDS, NUM_CHARS = 9, 8
SPELLING = {2: [2, 3], 3: [4], 4: [2, 2, 5], 5: [7, 6], 1: [1]}


def texts(*rows: list[int]) -> TokenSequences:
    inputs = TokenSequences.from_lists(rows)
    words, place = torch.unique(inputs.ids[inputs.mask], return_inverse=True)
    chars = [SPELLING[int(word)] for word in words]
    spelled = TokenSequences.from_lists(chars, [[i % 2 for i in row] for row in chars])
    index = torch.zeros_like(inputs.ids).masked_scatter_(inputs.mask, place)
    return replace(inputs, spellings=Spellings(spelled, index))


ROWS = ([2, 3, 2], [4], [5, 1, 2, 4, 3])


def embedded(
    config: EncoderConfig, inputs: TokenSequences, vectors=None
) -> tuple[WordEmbedder, torch.Tensor]:
    encoder = make_encoder(config, NUM_WORDS, NUM_CHARS, vectors)
    assert isinstance(encoder, WordEncoder)
    return encoder.embedder, encoder.embedder(inputs).values


def test_a_word_is_its_embedding_beside_what_its_characters_say():
    inputs = texts(*ROWS)
    embedder, values = embedded(CONFIG, inputs)
    tokens = [word for row in ROWS for word in row]
    assert values.shape == (len(tokens), 8) and embedder.out_dim == 8
    for value, word in zip(values, tokens, strict=True):
        alone = TokenSequences.from_lists([SPELLING[word]], [[i % 2 for i in SPELLING[word]]])
        expected = torch.cat([embedder.words.weight[word], embedder.chars(alone)[0]])
        torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("part", ["words", "chars"])
def test_words_or_characters_can_be_left_out(part):
    config = replace(CONFIG, word_dim=0) if part == "chars" else replace(CONFIG, char_dim=0)
    inputs = texts(*ROWS)
    embedder, values = embedded(config, inputs)
    assert values.shape == (9, 3 if part == "chars" else 5)
    assert (embedder.words is None) == (part == "chars") and (embedder.chars is None) == (part == "words")
    if part == "words":  # spellings are not asked for
        bare = replace(inputs, spellings=None)
        assert torch.equal(embedder(bare).values, values)


def test_word_encoders_give_a_vector_per_word_and_zeros_on_padding():
    encoder = make_encoder(replace(CONFIG, layers=2), NUM_WORDS, NUM_CHARS)
    inputs = texts(*ROWS)
    features = encoder(inputs)
    assert encoder.is_sequence and features.shape == (3, 5, encoder.out_dim) and encoder.out_dim == 6
    assert features[~inputs.mask].eq(0).all()
    for row in range(3):
        alone = encoder(texts(ROWS[row]))
        torch.testing.assert_close(features[row, : len(ROWS[row])], alone[0])


def test_kinds_of_characters():
    chars = TokenSequences.from_lists([[2, 3, 4], [5]], [[0, 1, 0], [1]])
    cnn = make_encoder(replace(CONFIG, kind="char_cnn"), NUM_WORDS, NUM_CHARS)
    lstm = make_encoder(replace(CONFIG, kind="char_bilstm"), NUM_WORDS, NUM_CHARS)
    assert isinstance(cnn, CharCNNEncoder) and isinstance(lstm, BiLSTMEncoder)
    assert cnn(chars).shape == (2, 6) and lstm(chars).shape == (2, 3, 6)
    assert (cnn.is_sequence, lstm.is_sequence) == (False, True)


def test_given_vectors_stay_as_they_are_unless_asked():
    vectors = torch.randn(NUM_WORDS, 7, dtype=torch.float64)
    embedder, values = embedded(CONFIG, texts(*ROWS), vectors)
    assert values.shape == (9, 10) and not embedder.words.weight.requires_grad
    assert embedder.words.weight.dtype == torch.float32
    assert torch.equal(embedder.words.weight, vectors.float())
    vectors.zero_()  # a copy: other people's tensors are not trained
    assert embedder.words.weight.abs().min() > 0
    tuned, _ = embedded(replace(CONFIG, freeze_vectors=False), texts(*ROWS), torch.randn(NUM_WORDS, 7))
    assert tuned.words.weight.requires_grad
    with pytest.raises(ValueError, match=r"vectors must have shape \[9, dim\].* got \[4, 7\]"):
        make_encoder(CONFIG, NUM_WORDS, NUM_CHARS, torch.randn(4, 7))


def test_a_saved_encoder_of_given_vectors_is_rebuilt_without_them():
    config = replace(CONFIG, vectors="given.vec", word_dim=7)
    first = make_encoder(config, NUM_WORDS, NUM_CHARS, torch.randn(NUM_WORDS, 7))
    again = make_encoder(config, NUM_WORDS, NUM_CHARS)
    assert again.embedder.words.weight.eq(0).all() and not again.embedder.words.weight.requires_grad
    again.load_state_dict(first.state_dict())
    assert torch.equal(first(texts(*ROWS)), again(texts(*ROWS)))


@pytest.mark.parametrize("kind", ["words", "char_cnn", "char_bilstm"])
def test_frozen_character_embeddings_stay_and_the_rest_learns(kind):
    config = replace(CONFIG, kind=kind, freeze_char_embedding=True)
    encoder = make_encoder(config, NUM_WORDS, NUM_CHARS)
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    name = {
        "words": "embedder.chars.token_embedding",
        "char_cnn": "token_embedding",
        "char_bilstm": "embedding",
    }
    assert frozen == {f"{name[kind]}.weight"}


def test_word_dropout_hides_words_and_leaves_their_characters():
    config = replace(CONFIG, word_dropout=0.4)
    inputs = texts(*([[2, 3, 4, 5]] * 300))
    embedder, values = embedded(config, inputs)
    unknown, known = embedder.words.weight[1], embedder.words.weight[inputs.ids.flatten()]
    hidden = (values[:, :5] == unknown).all(1)
    assert 0.33 < hidden.double().mean() < 0.47  # 4 standard errors
    assert torch.equal(values[~hidden, :5], known[~hidden])
    torch.testing.assert_close(values[:4, 5:], values[-4:, 5:])
    embedder.eval()
    assert torch.equal(embedder(inputs).values[:, :5], known)


def test_taking_apart_shares_the_embedder_of_words_alone():
    embedder, first, another = take_apart(lambda: make_encoder(CONFIG, NUM_WORDS, NUM_CHARS))
    assert isinstance(embedder, WordEmbedder)
    words = embedder(texts(*ROWS))
    assert first(words).shape == another()(words).shape == (3, 5, 6)
    assert not torch.equal(first(words), another()(words))
    chosen = words.select(torch.tensor([2, 0]))
    torch.testing.assert_close(first(chosen), first(words)[[2, 0]])
    made = []

    def whole_texts():
        made.append(make_encoder(replace(CONFIG, kind="char_cnn"), NUM_WORDS, NUM_CHARS))
        return made[-1]

    nothing, first, another = take_apart(whole_texts)
    assert nothing is None and first is made[0] and another() is made[1]


def test_an_empty_batch_goes_through():
    encoder = make_encoder(CONFIG, NUM_WORDS, NUM_CHARS)
    nothing = texts(*ROWS).select(torch.tensor([], dtype=torch.int64))
    features = encoder(nothing)
    assert features.shape == (0, 0, 6)
    features.sum().backward()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": "words2"}, "kind must be 'words', 'char_cnn' or 'char_bilstm', got 'words2'"),
        ({"feature_dim": 5}, "feature_dim must be even"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"kind": "char_cnn", "char_dim": 0}, "char_dim must be at least 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"word_dropout": -0.1}, r"word_dropout must be in \[0, 1\), got -0.1"),
        ({"char_widths": ()}, "char_widths must be at least one width"),
        ({"word_dim": 0, "char_dim": 0}, "word_dim and char_dim are both 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(change, sentence):
    with pytest.raises(ValueError, match=f"EncoderConfig: {sentence}"):
        replace(CONFIG, **change)


def test_texts_without_spellings_are_refused():
    encoder = make_encoder(CONFIG, NUM_WORDS, NUM_CHARS)
    with pytest.raises(ValueError, match="the inputs have no spellings"):
        encoder(TokenSequences.from_lists([[2, 3]]))
    with pytest.raises(ValueError, match="got neither"):
        WordEmbedder(None)
    with pytest.raises(ValueError, match=r"word_dropout must be in \[0, 1\), got 1.5"):
        WordEmbedder(nn.Embedding(3, 2), word_dropout=1.5)
