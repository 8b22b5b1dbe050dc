"""InBatchSoftmaxLoss, cached_backward, retrieval metrics and mining."""

from __future__ import annotations

import copy
import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit

from xferkit.metrics import mean_reciprocal_rank, precision_at
from xferkit.objectives import InBatchSoftmaxLoss
from xferkit.ranking import cached_backward, mine_bitext, mine_hard_negatives, retrieval_ranks


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ---- the module


def test_defaults_are_the_cosine_times_twenty() -> None:
    u, v = draw(6, 5), draw(6, 5, seed=1)
    expected = cross_entropy(20.0 * (unit(u, dim=-1) @ unit(v, dim=-1).T), torch.arange(6))
    torch.testing.assert_close(InBatchSoftmaxLoss()(u, v), expected)


def test_a_learned_scale_is_a_parameter_with_a_ceiling() -> None:
    loss = InBatchSoftmaxLoss(10.0, learn_scale=True, max_scale=50.0)
    assert [name for name, _ in loss.named_parameters()] == ["log_scale"]
    loss(draw(6, 5), draw(6, 5, seed=1)).backward()
    assert loss.log_scale.grad.abs() > 0
    with torch.no_grad():
        loss.log_scale.fill_(math.log(1000.0))
    torch.testing.assert_close(float(loss.scale.detach()), 50.0)
    other = InBatchSoftmaxLoss(10.0, learn_scale=True)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.log_scale, loss.log_scale)
    assert copy.deepcopy(loss).log_scale is not loss.log_scale
    assert "learned" in repr(loss)


def test_a_scale_past_its_ceiling_comes_down_again() -> None:
    """A clamp alone has no gradient there: the scale would stay however wrong the pairs are."""
    loss = InBatchSoftmaxLoss(99.0, learn_scale=True)
    with torch.no_grad():
        loss.log_scale.fill_(math.log(101.0))
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.05)
    for seed in range(10):
        optimizer.zero_grad()
        loss(draw(32, 5), draw(32, 5, seed=seed + 1)).backward()
        assert loss.log_scale.grad > 0
        optimizer.step()
    assert float(loss.scale.detach()) < 80.0


def test_a_scale_is_set_back_between_two_losses_of_one_backward() -> None:
    loss = InBatchSoftmaxLoss(99.0, learn_scale=True)
    with torch.no_grad():
        loss.log_scale.fill_(math.log(200.0))
    u, v = draw(6, 5), draw(6, 5, seed=1)
    (loss(u, v) + loss(v, u)).backward()
    assert loss.log_scale.grad.abs() > 0
    torch.testing.assert_close(float(loss.log_scale.detach()), math.log(100.0))


def test_a_learned_scale_stays_float32_in_a_bfloat16_module() -> None:
    loss = InBatchSoftmaxLoss(20.0, learn_scale=True).to(torch.bfloat16)
    assert loss.scale.dtype == torch.float32
    assert loss(draw(6, 5).bfloat16(), draw(6, 5, seed=1).bfloat16()).isfinite()


def test_a_copy_speaks_to_the_same_group() -> None:
    class Group:  # as a process group, it cannot be copied
        def __deepcopy__(self, memo: Any) -> None:
            raise TypeError("cannot be copied")

    original = InBatchSoftmaxLoss(learn_scale=True, group=Group())
    twin = copy.deepcopy(original)
    assert twin.group is original.group and twin.log_scale is not original.log_scale


@pytest.mark.parametrize(
    ("options", "words"), [({"scale": 0.0}, "above 0"), ({"scale": 101.0, "learn_scale": True}, "max_scale")]
)
def test_scales_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        InBatchSoftmaxLoss(**options)


# ---- cached_backward


class Encoder(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(7, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize("chunk", [1, 4, 5, 13, 100])
def test_gradients_are_those_of_the_whole_batch(chunk: int) -> None:
    torch.manual_seed(0)
    encoder, loss = Encoder(0.0), InBatchSoftmaxLoss(5.0, learn_scale=True, symmetric=True)
    x, y = draw(13, 7), draw(13, 7, seed=1)
    direct = loss(encoder(x), encoder(y))
    wanted = torch.autograd.grad(direct, [*encoder.parameters(), *loss.parameters()])
    total = cached_backward(loss, encoder, [x, y], chunk_size=chunk)
    assert not total.requires_grad
    torch.testing.assert_close(total, direct.detach())
    for parameter, grad in zip([*encoder.parameters(), *loss.parameters()], wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_dropout_is_drawn_again_as_it_was() -> None:
    """The second pass sees the masks of the first: its embeddings are the ones that the loss was computed on."""
    torch.manual_seed(0)
    encoder = Encoder(0.5)
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(encoder(x))
        return seen[-1]

    cached_backward(InBatchSoftmaxLoss(), watched, [draw(9, 7), draw(9, 7, seed=1)], chunk_size=4)
    first, second = seen[:6], seen[6:]
    assert len(second) == 6
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b.detach())
    assert not torch.equal(first[0], encoder(draw(9, 7)[:4]))


def test_activations_of_one_chunk_are_held_at_a_time() -> None:
    encoder = Encoder(0.0)
    x, y = draw(64, 7), draw(64, 7, seed=1)

    def most_held(step: Any) -> int:
        held = peak = 0

        def pack(t: Tensor) -> Any:
            nonlocal held, peak
            held += t.numel()
            peak = max(peak, held)
            return t

        def unpack(t: Tensor) -> Tensor:
            nonlocal held
            held -= t.numel()
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            step()
        return peak

    loss = InBatchSoftmaxLoss()
    whole = most_held(lambda: loss(encoder(x), encoder(y)).backward())
    chunked = most_held(lambda: cached_backward(loss, encoder, [x, y], chunk_size=8))
    assert chunked < 0.6 * whole


def test_inputs_of_every_kind_and_two_encoders() -> None:
    torch.manual_seed(0)
    first, second = Encoder(0.0), Encoder(0.0)
    x, y, hard = draw(6, 7), draw(6, 7, seed=1), draw(6, 2, 7, seed=2)
    texts = [f"{i}" for i in range(6)]
    encoders = [
        lambda part: first(part["x"]),
        lambda part: second(part[0]),
        lambda part: second(torch.stack([hard[int(text)] for text in part])),
    ]
    loss = InBatchSoftmaxLoss(3.0)
    loss(first(x), second(y), second(hard)).backward()
    wanted = [p.grad.clone() for p in [*first.parameters(), *second.parameters()]]
    first.zero_grad()
    second.zero_grad()
    out = cached_backward(
        lambda u, v, h: loss(u, v, h, return_stats=True), encoders, [{"x": x}, (y, y), texts], chunk_size=4
    )
    assert out.rank.shape == (6,) and not out.loss.requires_grad
    for parameter, grad in zip([*first.parameters(), *second.parameters()], wanted, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)


def test_a_scaler_leaves_scaled_gradients() -> None:
    class Scaler:
        def scale(self, loss: Tensor) -> Tensor:
            return 1024.0 * loss

    encoder, x, y = Encoder(0.0), draw(6, 7), draw(6, 7, seed=1)
    cached_backward(InBatchSoftmaxLoss(), encoder, [x, y], chunk_size=4)
    plain = [p.grad.clone() for p in encoder.parameters()]
    encoder.zero_grad()
    cached_backward(InBatchSoftmaxLoss(), encoder, [x, y], chunk_size=4, scaler=Scaler())
    for parameter, grad in zip(encoder.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, 1024.0 * grad)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"chunk_size": 0}, "chunk_size must be 1 or more, got 0"),
        ({"encoders": [Encoder(0.0)]}, "1 encoders for 2 inputs"),
        ({"inputs": [draw(3, 7), draw(0, 7)]}, "input 1 is empty"),
        ({"inputs": [[], draw(3, 7)]}, "input 0 is empty"),
        ({"inputs": [(draw(3, 7), draw(2, 7)), draw(3, 7)]}, r"input 0 have \[3, 2\] rows"),
        ({"encoders": lambda x: x[:1]}, "made 1 embeddings of 2 texts"),
    ],
)
def test_bad_arguments_of_cached_backward(change: dict[str, Any], words: str) -> None:
    arguments = {"encoders": Encoder(0.0), "inputs": [draw(3, 7), draw(3, 7)], "chunk_size": 2} | change
    with pytest.raises(ValueError, match=words):
        cached_backward(InBatchSoftmaxLoss(), **arguments)


# ---- metrics


def test_precision_and_reciprocal_rank() -> None:
    ranks = torch.tensor([1, 2, 5, 1])
    assert precision_at(ranks) == 0.5 and precision_at(ranks, 2) == 0.75
    assert mean_reciprocal_rank(ranks) == pytest.approx((1 + 0.5 + 0.2 + 1) / 4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: precision_at(torch.tensor([1]), 0), "n must be 1 or more"),
        (lambda: precision_at(torch.zeros(0)), "ranks is empty"),
        (lambda: mean_reciprocal_rank(torch.tensor([0, 1])), "ranks start at 1, got 0"),
    ],
)
def test_bad_ranks(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_retrieval_ranks_against_the_matrix() -> None:
    queries, keys, targets = draw(20, 6), draw(50, 6, seed=1), torch.arange(20) * 2
    sims = unit(queries, dim=-1) @ unit(keys, dim=-1).T
    wanted = (sims >= sims.gather(1, targets.unsqueeze(1))).sum(1)
    found = retrieval_ranks(queries, keys, targets, normalize=True, workspace_bytes=1000)
    assert torch.equal(found, wanted)
    assert precision_at(retrieval_ranks(torch.ones(4, 3), torch.ones(4, 3))) == 0.0


# ---- mining


def _brute_bitext(x: Tensor, y: Tensor, k: int, margin: str) -> list[tuple[int, int]]:
    cosine = (unit(x, dim=-1) @ unit(y, dim=-1).T).double()
    around = (cosine.topk(k, dim=1).values.mean(1).unsqueeze(1) + cosine.topk(k, dim=0).values.mean(0)) / 2
    score = {"ratio": cosine / around, "distance": cosine - around, "absolute": cosine}[margin]
    near = torch.zeros_like(cosine, dtype=torch.bool)
    near.scatter_(1, cosine.topk(k, dim=1).indices, True)
    near.scatter_(0, cosine.topk(k, dim=0).indices, True)
    cells = sorted(
        ((float(score[i, j]), i, j) for i, j in near.nonzero().tolist()), key=lambda c: (-c[0], c[1], c[2])
    )
    pairs, rows, columns = [], set(), set()
    for _, i, j in cells:
        if i not in rows and j not in columns:
            pairs.append((i, j))
            rows.add(i)
            columns.add(j)
    return pairs


@pytest.mark.parametrize("margin", ["ratio", "distance", "absolute"])
def test_bitext_by_brute_force(margin: Any) -> None:
    x = draw(30, 8)
    y = torch.cat([x[:20] + 0.3 * draw(20, 8, seed=1), draw(15, 8, seed=2)])
    found = mine_bitext(x, y, k=4, margin=margin)
    pairs = list(zip(found.source.tolist(), found.target.tolist(), strict=True))
    assert pairs == _brute_bitext(x, y, 4, margin)
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    right = [i for i, j in pairs if i == j and i < 20]
    assert len(right) >= 18
    half = float(found.scores[10])
    assert len(mine_bitext(x, y, k=4, margin=margin, threshold=half).scores) == 11


def test_bitext_of_nothing_and_of_one() -> None:
    assert mine_bitext(draw(0, 3), draw(5, 3)).scores.shape == (0,)
    assert mine_bitext(draw(1, 3), draw(5, 3), k=100).source.tolist() == [0]
    for arguments, words in (({"margin": "x"}, "ratio, distance or absolute"), ({"k": 0}, "k must be")):
        with pytest.raises(ValueError, match=words):
            mine_bitext(draw(2, 3), draw(2, 3), **arguments)


def test_bitext_among_dissimilar_neighbours() -> None:
    """Two negative numbers have a positive ratio, which is the higher the less alike the pair is."""
    x, y = torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.2, 1.0], [-1.0, 0.2]])
    assert len(mine_bitext(x, y, k=2).scores) == 0
    assert mine_bitext(x, y, k=2, margin="distance").target.tolist() == [0]
    near = mine_bitext(x, torch.tensor([[1.0, 1.0], [-1.0, 0.0]]), k=2)  # cosines 0.7 and -1
    assert near.target.tolist() == [0] and torch.isfinite(near.scores).all()
    alone = mine_bitext(x, torch.tensor([[0.5, 1.0], [-1.0, 0.0], [-1.0, 0.1]]), k=3)
    assert alone.target[0] == 0


def test_bitext_passes_over_empty_sentences() -> None:
    """An embedding of zeros has no direction: 0 / 0 is no score, and must not come before all others."""
    found = mine_bitext(torch.tensor([[0.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.1]]), k=1)
    assert found.source.tolist() == [1] and found.target.tolist() == [1]
    assert not found.scores.isnan().any()


def test_hard_negatives_of_documents_without_an_id() -> None:
    queries, docs = draw(3, 4), draw(8, 4, seed=1)
    positives = torch.arange(3)
    without = mine_hard_negatives(queries, docs, positives, k=2, doc_ids=torch.full((8,), -1))
    assert torch.equal(without, mine_hard_negatives(queries, docs, positives, k=2))


def test_hard_negatives_by_brute_force() -> None:
    queries, docs = draw(12, 6), draw(60, 6, seed=1)
    docs[30:42] = docs[:12]  # each positive has a duplicate
    positives, ids = torch.arange(12), torch.cat([torch.arange(30), torch.arange(12), torch.arange(42, 60)])
    found = mine_hard_negatives(queries, docs, positives, k=5, doc_ids=ids, max_ratio=0.9, skip=1)
    sims = unit(queries, dim=-1) @ unit(docs, dim=-1).T
    for i in range(12):
        order = torch.argsort(sims[i], descending=True, stable=True).tolist()
        usable = [j for j in order if ids[j] != ids[i] and sims[i, j] <= 0.9 * sims[i, i]]
        wanted = usable[1:6]
        assert found[i].tolist() == wanted + [-1] * (5 - len(wanted))


def test_hard_negatives_when_there_are_too_few() -> None:
    found = mine_hard_negatives(draw(2, 3), draw(3, 3, seed=1), torch.tensor([0, 2]), k=4)
    assert (found >= 0).sum(1).tolist() == [2, 2] and (found[:, 2:] == -1).all()
    alike = mine_hard_negatives(torch.ones(1, 2), torch.ones(6, 2), torch.tensor([3]), k=3)
    assert alike.tolist() == [[0, 1, 2]]
    with pytest.raises(ValueError, match=r"positives\[1\] = 7 is out of range"):
        mine_hard_negatives(draw(2, 3), draw(3, 3), torch.tensor([0, 7]))


# ---- the example


def test_the_example_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "examples"))
    before, after = importlib.import_module("in_batch_ranking").main()
    assert before < 0.05 and after > 0.8
