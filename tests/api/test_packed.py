"""Packed tokens: layouts, the recurrence, convolutions and maxima over them, each against plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import conv1d, pad
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from xferkit.models import BiLSTM, CharCNNEncoder, CNNDiscriminator, FastDropout, TokenLayout, TokenSequences
from xferkit.models.lookups import pooled_windows
from xferkit.models.segments import running_max, segment_max, text_max
from xferkit.models.windows import packed_convolutions

LENGTHS = ([3], [5, 1, 2, 5, 4], [1, 1], [7, 2, 2, 9])


def layout_of(lengths: list[int], extra: int = 0) -> TokenLayout:
    return TokenLayout(torch.tensor(lengths), max(lengths) + extra)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_packing_leaves_padding_out_and_comes_back(lengths):
    layout = layout_of(lengths, extra=2)
    padded = torch.randn(len(lengths), layout.width, 3)
    packed = layout.pack(padded)
    assert packed.shape == (sum(lengths), 3) and layout.num_tokens == sum(lengths)
    assert torch.equal(packed, torch.cat([row[:n] for row, n in zip(padded, lengths, strict=True)]))
    back = layout.unpack(packed)
    assert torch.equal(back, padded * layout.mask.unsqueeze(2))
    assert layout.texts.tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    assert layout.places.tolist() == [t for n in lengths for t in range(n)]
    rows = torch.tensor([len(lengths) - 1, 0])
    chosen, tokens = layout.select(rows)
    assert torch.equal(chosen.unpack(packed[tokens]), back[rows])


@pytest.mark.parametrize("lengths", LENGTHS)
def test_orders_walk_every_text_from_either_end(lengths):
    layout = layout_of(lengths)
    token = layout.unpack(torch.arange(sum(lengths)))
    walked: dict[bool, list[list[int]]] = {True: [[] for _ in lengths], False: [[] for _ in lengths]}
    for forward, order in ((True, layout.forward_order), (False, layout.backward_order)):
        for step in order.split(layout.step_sizes):
            for text, number in zip(layout.by_length[: len(step)].tolist(), step.tolist(), strict=True):
                walked[forward][text].append(number)
    for text, n in enumerate(lengths):
        assert walked[True][text] == token[text, :n].tolist() == walked[False][text][::-1]
    for order, inverse in zip(
        (layout.forward_order, layout.backward_order), layout.inverse_orders, strict=True
    ):
        assert torch.equal(order[inverse], torch.arange(sum(lengths)))


def test_neighbours_stay_in_their_text():
    layout = layout_of([3, 1, 2])
    assert layout.neighbours(1).tolist() == [1, 2, 6, 6, 5, 6]
    assert layout.neighbours(-2).tolist() == [6, 6, 0, 6, 6, 6]


@pytest.mark.parametrize("ops", ["fused", "reference"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_bilstm_is_torchs_with_its_gradients(lengths, ops):
    layout = layout_of(lengths, extra=1)
    ours = BiLSTM(5, 8, layers=2, dropout=0.0, ops=ops).double()
    plain = nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True).double()
    with torch.no_grad():
        for number, layer in enumerate(ours.layers):
            for name, p in layer.named_parameters():
                p.copy_(getattr(plain, name.replace("_l0", f"_l{number}")))
    x = torch.randn(layout.num_tokens, 5, dtype=torch.float64, requires_grad=True)
    packed = pack_padded_sequence(layout.unpack(x), layout.lengths, batch_first=True, enforce_sorted=False)
    padded, _ = pad_packed_sequence(plain(packed)[0], batch_first=True, total_length=layout.width)
    expected, actual = layout.pack(padded), ours(x.split([2, 3], 1), layout)
    torch.testing.assert_close(actual, expected)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), [x, *plain.parameters()])
    found = torch.autograd.grad((actual * weight).sum(), [x, *ours.parameters()])
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_bilstm_leaves_out_gradients_that_nobody_wants_and_refuses_odd_sizes():
    layout, lstm = layout_of([2, 3]), BiLSTM(3, 4, layers=1, dropout=0.0)
    x = torch.randn(5, 3, requires_grad=True)
    for p in lstm.parameters():
        p.requires_grad_(False)
    lstm([x], layout).sum().backward()
    assert x.grad.abs().min() > 0 and all(p.grad is None for p in lstm.parameters())
    again = lstm.another()
    assert again.out_dim == 4 and all(p.requires_grad for p in again.parameters())
    for sizes in ({"out_dim": 5}, {"layers": 0}):
        with pytest.raises(ValueError, match="BiLSTM: out_dim must be even"):
            BiLSTM(3, **sizes)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_convolutions_read_zeros_after_a_texts_end(lengths):
    layout = layout_of(lengths)
    weights = [torch.randn(4, 3, w, dtype=torch.float64, requires_grad=True) for w in (2, 5, 1)]
    biases = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in weights]
    x = torch.randn(layout.num_tokens, 3, dtype=torch.float64, requires_grad=True)
    padded = layout.unpack(x).transpose(1, 2)
    expected = torch.cat(
        [
            layout.pack(conv1d(pad(padded, (0, w.shape[2] - 1)), w, b).transpose(1, 2))
            for w, b in zip(weights, biases, strict=True)
        ],
        dim=1,
    )
    actual = packed_convolutions(x, layout, weights, biases)
    torch.testing.assert_close(actual, expected)
    factor, inputs = torch.randn_like(expected), [x, *weights, *biases]
    for a, b in zip(
        torch.autograd.grad((actual * factor).sum(), inputs),
        torch.autograd.grad((expected * factor).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("lengths", LENGTHS)
def test_text_max_is_the_maximum_with_its_gradient(lengths):
    layout = layout_of(lengths)
    x = torch.randn(layout.num_tokens, 6, dtype=torch.float64, requires_grad=True)
    expected, actual = segment_max(x, layout.lengths), text_max(x, layout)
    assert torch.equal(actual, expected)
    weight = torch.randn_like(expected)
    found = torch.autograd.grad((actual * weight).sum(), x)[0]
    assert torch.equal(found, torch.autograd.grad((expected * weight).sum(), x)[0])
    with torch.no_grad():
        assert torch.equal(text_max(x, layout), expected)
    assert text_max(x[:0], TokenLayout(layout.lengths[:0], 3)).shape == (0, 6)


def test_the_first_of_equal_maxima_has_the_gradient_also_after_many_steps():
    steps = [torch.tensor([[0.0, 5.0]])] * 300 + [torch.tensor([[1.0, 5.0]])] * 3
    highest, winner = running_max(steps)
    assert highest.tolist() == [[1.0, 5.0]] and winner.tolist() == [[300.0, 0.0]]
    assert running_max(steps, winners=False)[1] is None
    x = torch.tensor([[2.0], [2.0]], requires_grad=True)
    text_max(x, layout_of([2])).sum().backward()
    assert x.grad.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize("widths", [(1,), (4,), (2, 3, 5)])
def test_the_fast_character_cnn_is_the_other_one(widths):
    encoder = CharCNNEncoder(9, 6, token_dim=5, flag_dim=3, channels=7, widths=widths, dropout=0.0).double()
    rows = [[3], [1, 2], [4, 5, 4, 6], [2, 1, 5, 3, 1, 8], [7]]
    inputs = TokenSequences.from_lists(rows, [[i % 2 for i in row] for row in rows])
    outcomes = []
    for fast in (False, True):
        encoder.fast = fast
        features = encoder(inputs)
        weight = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).view_as(features)
        outcomes.append(
            (features, torch.autograd.grad((features * weight).sum(), list(encoder.parameters())))
        )
    (slow, slow_gradients), (quick, gradients) = outcomes
    torch.testing.assert_close(quick, slow)
    for a, b in zip(gradients, slow_gradients, strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(encoder(inputs), slow)
    assert pooled_windows(
        [torch.randn(2, 3, 4)], torch.empty(0, 5, dtype=torch.int64), torch.empty(0)
    ).shape == (
        0,
        4,
    )


def test_discriminators_on_packed_and_on_padded_tokens_agree():
    discriminator = CNNDiscriminator(3, 4, channels=5, dropout=0.0).double()
    features = torch.randn(3, 8, 3, dtype=torch.float64, requires_grad=True)
    mask = torch.arange(8) < torch.tensor([[7], [1], [4]])
    outcomes = []
    for ops in ("fused", "reference"):
        discriminator.ops = ops
        logits = discriminator(features, mask)
        gradients = torch.autograd.grad(logits.square().sum(), [features, *discriminator.parameters()])
        outcomes.append([logits, *gradients])
    for a, b in zip(*outcomes, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_mean_drops_that_share_and_scales_the_rest(p):
    dropout, x = FastDropout(p), torch.ones(501, 199, requires_grad=True)
    dropped = dropout(x)
    share = float(dropped.eq(0).double().mean())
    assert share == pytest.approx(p, abs=5 * (p * (1 - p) / x.numel()) ** 0.5)
    kept = dropped[dropped != 0]
    exact = round(p * 2**16) / 2**16
    torch.testing.assert_close(kept, torch.full_like(kept, 1 / (1 - exact)))
    assert torch.equal(torch.autograd.grad(dropped.sum(), x)[0], dropped.detach())
    # Neighbours, which share a drawn number, are dropped independently of each other.
    gone = dropped.detach().flatten()[:99_696].view(-1, 4).eq(0).double()
    assert (torch.corrcoef(gone.t()) - torch.eye(4, dtype=torch.float64)).abs().max() < 0.03


def test_dropout_follows_the_generator_and_is_nothing_in_evaluation():
    dropout, x = FastDropout(0.5), torch.randn(7, 3)

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return dropout(x)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    assert FastDropout(0.0)(x) is x and FastDropout(0.5).eval()(x) is x
    assert dropout(x[:0]).shape == (0, 3)
    assert "p=0.5" in repr(dropout)
    with pytest.raises(ValueError, match=r"p must be in \[0, 1\), got 1.0"):
        FastDropout(1.0)
