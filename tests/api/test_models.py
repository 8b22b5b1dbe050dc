"""The modules one by one, each against the formula it states."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import pad

import xfercore
import xferkit
from xferkit.models import (
    Bags,
    BiLSTMEncoder,
    CharCNNEncoder,
    CharVocabulary,
    CNNDiscriminator,
    DotProductAttention,
    MixtureOfExperts,
    MLPDiscriminator,
    MLPPredictor,
    PrivateExperts,
    PrivatePerDomain,
    SharedPrivateClassifier,
    TokenSequences,
    resolve_ops,
    segment_max,
)


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def sequences(*rows: list[int]) -> TokenSequences:
    return TokenSequences.from_lists(rows, [[i % 2 for i in row] for row in rows])


ROWS = ([3], [1, 2], [4, 4, 4, 4, 4, 4, 4], [2, 1, 5, 3, 1])


def widen(inputs: TokenSequences, by: int) -> TokenSequences:
    return TokenSequences(pad(inputs.ids, (0, by)), inputs.lengths, pad(inputs.flags, (0, by)))


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, xferkit; assert not {'torch', 'numpy'} & set(sys.modules); xferkit.models.CharCNNEncoder"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        xferkit.nope  # noqa: B018


# Inputs


def test_sequences_are_padded_selected_and_joined():
    inputs = sequences([1, 2, 3], [4])
    assert inputs.ids.tolist() == [[1, 2, 3], [4, 0, 0]] and inputs.lengths.tolist() == [3, 1]
    assert inputs.mask.tolist() == [[True] * 3, [True, False, False]]
    chosen = inputs.select(torch.tensor([1, 1]))
    assert chosen.ids.tolist() == [[4], [4]] and len(chosen) == 2
    joined = TokenSequences.concat([chosen, inputs])
    assert joined.ids.tolist() == [[4, 0, 0], [4, 0, 0], [1, 2, 3], [4, 0, 0]]
    assert joined.flags.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert inputs.select(torch.tensor([], dtype=torch.int64)).ids.shape == (0, 0)


def test_bad_sequences_are_refused():
    with pytest.raises(ValueError, match="row 1 is empty"):
        TokenSequences.from_lists([[1], []])
    with pytest.raises(ValueError, match="at least 1"):
        TokenSequences.from_lists([[1, 0]])
    with pytest.raises(ValueError, match="one entry per token"):
        TokenSequences.from_lists([[1, 2]], [[1]])
    with pytest.raises(ValueError, match="either every part has flags"):
        TokenSequences.concat([TokenSequences.from_lists([[1]]), sequences([1])])


def test_vocabulary_keeps_case_apart_from_letters():
    vocabulary = CharVocabulary(["Abab", "aß"], min_count=2)
    upper, lower = vocabulary.encode(["Ab"]), vocabulary.encode(["Ab"], lowercase=True)
    assert len(vocabulary) == 4  # padding, unknown, a, b
    assert upper.ids.tolist() == lower.ids.tolist() == [[2, 3]]
    assert upper.flags.tolist() == [[1, 0]] and lower.flags.tolist() == [[0, 0]]
    assert vocabulary.encode(["aßz"]).ids.tolist() == [[2, 1, 1]]  # rare and unseen: unknown
    assert vocabulary.encode(["abab"], max_length=3).ids.tolist() == [[2, 3, 2]]


def test_vocabulary_keeps_rows_aligned_where_lower_case_is_longer():
    encoded = CharVocabulary(["İİ"], min_count=1).encode(["İstanbul", "Éire"])
    assert encoded.lengths.tolist() == [8, 4]
    assert encoded.flags[:, 0].tolist() == [1, 1]
    # A decomposed letter is the same letter.
    assert CharVocabulary(["é"], min_count=1).encode(["e\u0301"]).ids.tolist() == [[2]]


# Encoders


@pytest.mark.parametrize("widths", [(1,), (4,), (2, 3, 5)])
@pytest.mark.parametrize("flag_dim", [0, 3])
def test_char_cnn_is_a_masked_convolution_and_max_pool(widths, flag_dim):
    encoder = CharCNNEncoder(
        7, 6, token_dim=5, flag_dim=flag_dim, channels=9, widths=widths, dropout=0.0
    ).double()
    inputs = widen(sequences(*ROWS), 3)

    def plain() -> torch.Tensor:
        x = encoder.token_embedding(inputs.ids)
        if encoder.flag_embedding is not None:
            x = torch.cat([x, encoder.flag_embedding(inputs.flags)], dim=2)
        x = (x * inputs.mask.unsqueeze(2)).transpose(1, 2)
        pooled = []
        for conv in encoder.convolutions:
            width = conv.kernel_size[0]
            windows = conv(pad(x, (width - 1, width - 1)))
            real = torch.arange(windows.shape[2]) < (inputs.lengths + width - 1).unsqueeze(1)
            pooled.append(windows.masked_fill(~real.unsqueeze(1), -torch.inf).amax(2))
        return torch.relu(encoder.hidden(torch.relu(torch.cat(pooled, dim=1))))

    expected, actual = plain(), encoder(inputs)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    parameters = list(encoder.parameters())
    for a, b in zip(
        torch.autograd.grad((actual * weight).sum(), parameters),
        torch.autograd.grad((expected * weight).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_segment_max_shares_the_gradient_of_ties_whatever_its_sign():
    rows = torch.tensor([[1.0, 5.0], [1.0, 2.0], [0.0, 5.0], [3.0, -1.0]], dtype=torch.float64)
    rows.requires_grad_()
    pooled = segment_max(rows, torch.tensor([3, 1]))
    expected = torch.stack([rows[:3].amax(0), rows[3]])
    weight = torch.tensor([[-2.0, 4.0], [-1.0, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(pooled, expected)
    gradient = torch.autograd.grad((pooled * weight).sum(), rows)[0]
    assert gradient.tolist() == [[-1.0, 2.0], [-1.0, 0.0], [0.0, 2.0], [-1.0, 3.0]]


def test_char_cnn_ignores_padding_and_the_other_rows():
    encoder = CharCNNEncoder(7, 6, dropout=0.0)
    inputs = sequences(*ROWS)
    together = encoder(widen(inputs, 9))
    alone = torch.cat([encoder(inputs.select(torch.tensor([i]))) for i in range(len(ROWS))])
    torch.testing.assert_close(together, alone)


def test_char_cnn_sees_the_flags():
    encoder = CharCNNEncoder(7, 6, dropout=0.0)
    inputs = sequences(*ROWS)
    flipped = TokenSequences(inputs.ids, inputs.lengths, (1 - inputs.flags) * inputs.mask)
    assert (encoder(inputs) - encoder(flipped)).abs().amax(1).min() > 0
    with pytest.raises(ValueError, match="no flags"):
        encoder(TokenSequences(inputs.ids, inputs.lengths))
    with pytest.raises(ValueError, match="widths"):
        CharCNNEncoder(7, 6, widths=())


def test_bilstm_is_zero_on_padding_and_ignores_it():
    encoder = BiLSTMEncoder(nn.Embedding(7, 4, padding_idx=0), 6, flag_dim=2, dropout=0.0)
    inputs = sequences(*ROWS)
    features = encoder(widen(inputs, 4))
    assert features.shape == (4, 11, 6)
    assert features[:, 7:].eq(0).all() and features[0, 1:].eq(0).all()
    for i, row in enumerate(ROWS):
        alone = encoder(inputs.select(torch.tensor([i])))
        torch.testing.assert_close(features[i, : len(row)], alone[0])
    with pytest.raises(ValueError, match="even"):
        BiLSTMEncoder(nn.Embedding(7, 4), 5)


def test_attention_is_a_softmax_mean_over_real_tokens():
    pool = DotProductAttention(3)
    features = torch.randn(2, 4, 3)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    first = torch.softmax(features[0, :2] @ pool.weight, 0) @ features[0, :2]
    torch.testing.assert_close(pool(features, mask)[0], first)
    features[0, 2:] = torch.nan
    torch.testing.assert_close(pool(features, mask)[0], first)


# Discriminators


def test_cnn_discriminator_ignores_padding_whatever_stands_there():
    discriminator = CNNDiscriminator(3, 4, channels=5, dropout=0.0)
    features = torch.randn(2, 6, 3)
    mask = torch.tensor([[True] + [False] * 5, [True] * 6])
    expected = discriminator(features, mask)
    features[0, 1:] = torch.nan
    torch.testing.assert_close(discriminator(features, mask), expected)
    torch.testing.assert_close(discriminator(features[:1, :1], mask[:1, :1]), expected[:1])
    with pytest.raises(ValueError, match="MLPDiscriminator reads"):
        discriminator(features[:, 0])
    with pytest.raises(ValueError, match="CNNDiscriminator reads"):
        MLPDiscriminator(3, 4)(features, mask)


@pytest.mark.parametrize("ops", ["fused", "reference"])
@pytest.mark.parametrize("kind", [MLPDiscriminator, CNNDiscriminator])
def test_discriminators_reverse_the_gradient_of_the_features_alone(kind, ops):
    discriminator = kind(3, 4, dropout=0.0, ops=ops)
    shape, mask = (
        ((5, 3), None) if kind is MLPDiscriminator else ((5, 4, 3), torch.ones(5, 4, dtype=torch.bool))
    )
    features = torch.randn(shape, requires_grad=True)
    wanted = [features, *discriminator.parameters()]
    plain = discriminator(features, mask)
    reversed_ = discriminator(features, mask, reverse=0.3)
    torch.testing.assert_close(reversed_, plain)
    g_plain = torch.autograd.grad(plain.square().sum(), wanted)
    g_reversed = torch.autograd.grad(reversed_.square().sum(), wanted)
    torch.testing.assert_close(g_reversed[0], -0.3 * g_plain[0])
    assert g_plain[0].abs().max() > 0
    for a, b in zip(g_reversed[1:], g_plain[1:], strict=True):
        torch.testing.assert_close(a, b)


# Mixture of experts


def each_expert(moe: MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    hidden = torch.relu(torch.einsum("nd,khd->nkh", x, moe.w1) + moe.b1)
    return torch.einsum("nkh,koh->nko", hidden, moe.w2) + moe.b2


@pytest.mark.parametrize("ops", ["fused", "reference"])
@pytest.mark.parametrize("mix", ["sum", "logsumexp"])
def test_mixture_is_the_gated_sum_of_its_experts(mix, ops):
    moe = MixtureOfExperts(5, 3, 4, 2, act2="log_softmax", mix=mix, dropout=0.0, ops=ops)
    x = torch.randn(7, 5)
    alpha = torch.softmax(x @ moe.gate_weight.t() + moe.gate_bias, 1)
    log_probs = torch.log_softmax(each_expert(moe, x), 2)
    output = moe(x)
    if mix == "sum":
        expected = torch.einsum("nk,nko->no", alpha, log_probs)
    else:
        expected = torch.einsum("nk,nko->no", alpha, log_probs.exp()).log()
        torch.testing.assert_close(output.features.exp().sum(1), torch.ones(7))
    torch.testing.assert_close(output.features, expected)
    torch.testing.assert_close(torch.softmax(output.gate_logits, 1), alpha)
    tokens = moe(x.reshape(7, 1, 5))
    assert tokens.features.shape == (7, 1, 2) and tokens.gate_logits.shape == (7, 1, 3)
    torch.testing.assert_close(tokens.features[:, 0], output.features)


def test_mixture_drops_units_in_training_alone_and_the_seed_decides_which():
    moe = MixtureOfExperts(5, 3, 4, 2, dropout=0.5)
    x = torch.randn(7, 5)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return moe(x).features

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    moe.eval()
    assert torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("detach", [True, False])
def test_a_bag_is_mixed_with_the_softmax_of_its_scaled_mean_logits(detach):
    moe = MixtureOfExperts(5, 3, 4, 2, dropout=0.0, detach_gate_input=detach, bag_scale=2.0)
    x = torch.randn(6, 5, requires_grad=True)
    members = torch.tensor([0, 1, 0, -1, 1, 1])
    output = moe(x, Bags(members, 2))
    gate_input = x.detach() if detach else x
    logits = gate_input @ moe.gate_weight.t() + moe.gate_bias
    bag_logits = 2.0 * torch.stack([logits[members == b].mean(0) for b in (0, 1)])
    inside = members >= 0
    experts = torch.tanh(each_expert(moe, x))[inside].contiguous()
    expected, _ = xfercore.gated_mix(bag_logits[members[inside]], experts)
    torch.testing.assert_close(output.bag_logits, bag_logits)
    torch.testing.assert_close(output.gate_logits, logits)
    torch.testing.assert_close(output.features[inside], expected)
    wanted = [x, moe.gate_weight, moe.gate_bias, moe.w1, moe.b1, moe.w2, moe.b2]
    weight = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((output.features[inside] * weight).sum(), wanted),
        torch.autograd.grad((expected * weight).sum(), wanted),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_given_bag_logits_replace_the_rows_own():
    moe = MixtureOfExperts(5, 3, 4, 2, dropout=0.0)
    x, only_second = torch.randn(4, 5), torch.tensor([[-1e9, 0.0, -1e9]])
    output = moe(x, Bags(torch.zeros(4, dtype=torch.int64), 1, only_second))
    torch.testing.assert_close(output.features, torch.tanh(each_expert(moe, x))[:, 1])


def test_padding_in_a_bag_has_no_effect_even_when_it_is_nan():
    moe = MixtureOfExperts(5, 3, 4, 2, dropout=0.0)
    x, members = torch.randn(2, 3, 5), torch.tensor([[0, 0, -1], [1, -1, -1]])
    expected = moe(x, Bags(members, 2)).bag_logits
    x = x.masked_fill(members.unsqueeze(2) < 0, torch.nan)
    torch.testing.assert_close(moe(x, Bags(members, 2)).bag_logits, expected)


def test_ops_are_chosen_by_name():
    assert resolve_ops("fused") is xfercore
    assert resolve_ops("reference").__name__ == "xfercore.reference"
    with pytest.raises(ValueError, match="'fused' or 'reference'"):
        resolve_ops("eager")


# Shared and private


def cnn(dim: int = 6) -> CharCNNEncoder:
    return CharCNNEncoder(7, dim, channels=8, dropout=0.0)


def lstm(dim: int = 6) -> BiLSTMEncoder:
    return BiLSTMEncoder(nn.Embedding(7, 4, padding_idx=0), dim, flag_dim=2, dropout=0.0)


def test_private_features_per_language_for_sequences():
    private = PrivatePerDomain(lstm, 2)
    inputs = sequences(*ROWS)
    features = private(inputs, torch.tensor([1, -1, 0, 1]))
    assert features.shape == (4, 7, 6)
    torch.testing.assert_close(features[3:, :5], private.encoders[1](inputs.select(torch.tensor([3]))))
    assert features[1].eq(0).all() and private(inputs, None).eq(0).all()


@pytest.mark.parametrize("language_level", [False, True])
def test_without_a_pool_a_classifier_of_sequences_tags_tokens(language_level):
    private = PrivateExperts(lstm(), MixtureOfExperts(6, 3, 4, 5, dropout=0.0))
    predictor = MixtureOfExperts(11, 3, 4, 2, act2="log_softmax", mix="logsumexp", dropout=0.0)
    model = SharedPrivateClassifier(lstm(), predictor, private)
    inputs = sequences(*ROWS)
    bags = torch.tensor([0, 1, 1, 0]) if language_level else None
    output = model(inputs, bags=bags, num_bags=2)
    assert output.log_probs.shape == (4, 7, 2)
    torch.testing.assert_close(output.log_probs.exp().sum(2)[inputs.mask], torch.ones(15))
    assert output.log_probs[~inputs.mask].eq(0).all()
    assert output.gate_logits["private"].shape == output.gate_logits["predictor"].shape == (4, 7, 3)
    wide = model(widen(inputs, 3), bags=bags, num_bags=2)
    torch.testing.assert_close(wide.log_probs[:, :7][inputs.mask], output.log_probs[inputs.mask])
    assert len(output.bag_logits) == (2 if language_level else 0)


def test_parts_that_do_not_fit_are_refused():
    predictor = MLPPredictor(6, None, 2)
    with pytest.raises(ValueError, match="only sequences can be pooled"):
        SharedPrivateClassifier(cnn(), predictor, pool=DotProductAttention(6))
    with pytest.raises(ValueError, match="must both give sequences"):
        SharedPrivateClassifier(cnn(), predictor, PrivatePerDomain(lstm, 2))
    with pytest.raises(ValueError, match="must end in log_softmax, got 'tanh'"):
        SharedPrivateClassifier(cnn(), MixtureOfExperts(6, 3, 4, 2))
