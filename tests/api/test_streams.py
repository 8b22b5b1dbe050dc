"""Streams: the same draws as ever, shares by sampler, shards that add up; and seeds."""

from __future__ import annotations

import math
from collections import Counter
from itertools import chain

import pytest
import torch
from stream_data import SAMPLERS, data, same, three, tokens
from torch import Tensor

from xferkit.data.lexicon import EncodedTokens
from xferkit.data.ragged import Ragged, RaggedLabels
from xferkit.data.samplers import EndlessOrder
from xferkit.data.seeding import derive_seed, over_seeds, seeded
from xferkit.data.streams import DomainData, DomainStream
from xferkit.models import TokenSequences
from xferkit.objectives import sum_of_domain_means

# Which texts come


def test_the_draws_of_a_seed_stay_what_they_were():
    stream = three()
    assert [tokens(stream.next()) for _ in range(6)] == [
        [8, 5, 3, 4, 23, 25, 20, 26, 40, 41, 42, 41],
        [2, 7, 6, 9, 22, 24, 21, 25, 42, 40, 41, 42],
        [1, 2, 3, 8, 24, 23, 26, 20, 40, 42, 41, 40],
        [6, 9, 7, 4, 21, 22, 26, 22, 42, 41, 40, 41],
        [5, 1, 5, 6, 21, 24, 25, 20, 40, 42, 41, 40],
        [1, 4, 9, 2, 23, 24, 23, 25, 42, 40, 41, 42],
    ]


def test_balanced_batches_are_rows_of_one_permutation_after_the_other():
    sizes, size, seed = {"x": 100, "y": 31, "z": 5}, 17, 3
    domains = [data(name, num, 1000 * i + 1) for i, (name, num) in enumerate(sizes.items())]
    stream = DomainStream(domains, size, seed=seed, name="unlabelled")
    every = TokenSequences.concat([domain.inputs for domain in domains])
    labels = torch.cat([domain.labels for domain in domains])
    generators = {
        name: torch.Generator().manual_seed(derive_seed(seed, "unlabelled", name)) for name in sizes
    }
    queues = {name: torch.empty(0, dtype=torch.int64) for name in sizes}
    for _ in range(60):
        rows, offset = [], 0
        for name, num in sizes.items():
            while len(queues[name]) < size:
                queues[name] = torch.cat([queues[name], torch.randperm(num, generator=generators[name])])
            rows.append(queues[name][:size] + offset)
            queues[name] = queues[name][size:]
            offset += num
        batch, expected = stream.next(), every.select(torch.cat(rows))
        assert torch.equal(batch.inputs.ids, expected.ids)
        assert torch.equal(batch.inputs.flags, expected.flags)
        assert torch.equal(batch.inputs.lengths, expected.lengths)
        assert torch.equal(batch.labels, labels[torch.cat(rows)])
        assert batch.domains.tolist() == [0] * size + [1] * size + [2] * size


def test_an_order_comes_once_a_pass_without_end_and_from_its_generator_alone():
    def draw(seed: int, num: int, times: int) -> list[int]:
        order = EndlessOrder(10, torch.Generator().manual_seed(seed))
        return torch.cat([order.take(num) for _ in range(times)]).tolist()

    drawn = draw(0, 4, 5)
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    torch.manual_seed(5)
    assert draw(0, 4, 5) == drawn == draw(0, 20, 1) and draw(1, 4, 5) != drawn
    assert sorted(draw(0, 30, 1)) == sorted(list(range(10)) * 3)  # three passes at once
    assert draw(0, 0, 2) == []
    with pytest.raises(ValueError, match="at least 1"):
        EndlessOrder(0, torch.Generator())


@pytest.mark.parametrize("bucket", [0, 3])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_holds_texts_of_its_domains_with_their_labels_and_counts(sampler, bucket):
    stream = three(sampler=sampler, bucket=bucket)
    for _ in range(20):
        batch = stream.next()
        first = batch.inputs.ids[:, 0]
        start = torch.tensor([1, 20, 40])[batch.domains]
        assert bool(((first >= start) & (first < start + 20)).all())
        assert torch.equal(batch.labels, (first - start) % 3)
        assert torch.equal(batch.inputs.lengths, 1 + (first - start) % 5)
        assert batch.inputs.ids.shape[1] == int(batch.inputs.lengths.max())
        assert batch.domains.tolist() == sorted(batch.domains.tolist())
        assert torch.equal(batch.text_counts, batch.domains.bincount(minlength=3).float())
        for domain in range(3):
            assert batch.token_counts[domain] == batch.inputs.lengths[batch.domains == domain].sum()


def test_with_the_balanced_sampler_another_language_or_stream_leaves_a_languages_draws_as_they_were():
    def first(domains, seed=0, name="labelled", bucket=0):
        stream = DomainStream(domains, 4, seed=seed, name=name, bucket=bucket)
        return [tokens(stream.next())[:4] for _ in range(8)]

    for bucket in (0, 3):
        alone = first([data("x", 9)], bucket=bucket)
        assert first([data("x", 9), data("y", 5)], bucket=bucket) == alone
        assert first([data("x", 9)], name="unlabelled", bucket=bucket) != alone
        assert first([data("x", 9)], seed=1, bucket=bucket) != alone
    assert first([data("x", 9)]) != alone


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [
        (1.0, [0.9, 0.09, 0.01]),
        (2.0, [0.7034, 0.2224, 0.0741]),
        (math.inf, [1 / 3] * 3),
        (0.05, [1.0, 0.0, 0.0]),
    ],
)
def test_the_temperature_sampler_draws_domains_by_the_power_of_their_size(temperature, expected):
    domains = [data("x", 900), data("y", 90, 2000), data("z", 10, 4000)]
    stream = DomainStream(
        domains, 50, seed=0, name="s", sampler="temperature", temperature=temperature, bucket=0
    )
    counts = torch.zeros(3)
    for _ in range(400):
        batch = stream.next()
        assert len(batch.inputs) == 50
        counts += batch.text_counts
    # 20,000 draws: a standard error of at most 0.0036.
    torch.testing.assert_close(counts / counts.sum(), torch.tensor(expected), atol=0.015, rtol=0)


@pytest.mark.parametrize("bucket", [0, 5])
def test_the_cycling_sampler_takes_the_domains_in_turn(bucket):
    stream = three(sampler="cycling", bucket=bucket)
    seen = [sorted(set(stream.next().domains.tolist())) for _ in range(7)]
    assert seen == [[0], [1], [2], [0], [1], [2], [0]]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_buckets_keep_every_text_and_save_padding_in_all_domains_at_once(sampler):
    def lengths(num, seed):
        return torch.randint(1, 60, (num,), generator=torch.Generator().manual_seed(seed)).tolist()

    domains = [
        DomainData(str(d), TokenSequences.from_lists([[1 + i] * n for i, n in enumerate(lengths(320, d))]))
        for d in range(3)
    ]

    def padding(bucket: int, batches: int = 120) -> tuple[float, list[Counter]]:
        stream = DomainStream(domains, 16, seed=0, name="s", sampler=sampler, bucket=bucket)
        cells = real = 0
        drawn = [Counter() for _ in domains]
        for _ in range(batches):
            batch = stream.next()
            cells, real = cells + batch.inputs.ids.numel(), real + int(batch.inputs.lengths.sum())
            for domain, text in zip(batch.domains.tolist(), tokens(batch), strict=True):
                drawn[domain][text] += 1
        return 1 - real / cells, drawn

    plain, kept = padding(0)
    bucketed, dealt = padding(20)
    assert bucketed < 0.5 * plain
    # 120 batches are six pools of 20: after each, the same texts have been drawn in another order.
    assert dealt == kept


def test_streams_that_cannot_be_drawn_from_are_refused():
    def stream(*domains, batch_size=4, **kwargs):
        return DomainStream(domains, batch_size, seed=0, name="s", **kwargs)

    with pytest.raises(ValueError, match="DomainStream 's': no languages"):
        stream()
    with pytest.raises(ValueError, match="'y' has no texts"):
        stream(data("x", 2), data("y", 0))
    with pytest.raises(ValueError, match="either every language has labels"):
        stream(data("x", 2), data("y", 2, labels=False))
    with pytest.raises(ValueError, match="'x' has 2 texts but labels for 3"):
        stream(DomainData("x", data("x", 2).inputs, torch.zeros(3, dtype=torch.int64)))
    with pytest.raises(ValueError, match="text 1 of language 'x' has 2 tokens but 1 labels"):
        stream(DomainData("x", data("x", 2).inputs, RaggedLabels(torch.zeros(2).int(), torch.arange(3))))
    tagged = DomainData("y", data("y", 1).inputs, RaggedLabels(torch.zeros(1).int(), torch.arange(2)))
    with pytest.raises(
        ValueError, match="DomainStream 's': labels must be of texts in every language or of tokens"
    ):
        stream(data("x", 2), tagged)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        stream(data("x", 2), batch_size=0)
    with pytest.raises(ValueError, match="bucket must be at least 0, got -1"):
        stream(data("x", 2), bucket=-1)
    with pytest.raises(ValueError, match="one of balanced, temperature, cycling, got 'random'"):
        stream(data("x", 2), sampler="random")
    for bad in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0"):
            stream(data("x", 2), sampler="temperature", temperature=bad)


def test_texts_and_labels_of_every_kind_meet_in_a_batch():
    padded = data("x", 3).inputs
    ragged = EncodedTokens(Ragged.from_lists([[2 * 30 + 1] * 7, [2 * 31]]), with_flags=True)
    ragged_labels = RaggedLabels(torch.arange(8, dtype=torch.int32), torch.tensor([0, 7, 8]))
    domains = [
        DomainData("x", padded, torch.tensor([[0, -1, -1], [1, 1, -1], [2, 2, 2]])),
        DomainData("y", ragged, ragged_labels),
    ]
    batch = DomainStream(domains, 6, seed=0, name="s").next()
    assert batch.inputs.ids.shape == batch.labels.shape == (12, 7)
    assert torch.equal(batch.labels >= 0, batch.inputs.mask)
    for row in range(12):
        real = batch.labels[row][batch.labels[row] >= 0].tolist()
        text = int(batch.inputs.ids[row, 0])
        if text < 30:
            assert (
                row < 6 and real == [text - 1] * text and set(batch.inputs.ids[row, :text].tolist()) == {text}
            )
        else:
            assert row >= 6 and real == {30: [*range(7)], 31: [7]}[text]
            assert int(batch.inputs.flags[row].sum()) == {30: 7, 31: 0}[text]


# Shards


@pytest.mark.parametrize("bucket", [0, 4])
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize(("num_shards", "replicas"), [(1, 1), (2, 1), (2, 2), (4, 2), (5, 5)])
def test_shards_are_the_batch_cut_into_parts_whose_losses_add_up(sampler, bucket, num_shards, replicas):
    stream = three(batch_size=6, sampler=sampler, bucket=bucket)
    generator = torch.Generator().manual_seed(0)
    text_value, token_value = torch.randn(2, 50, generator=generator, dtype=torch.float64)

    def per_text(batch) -> Tensor:
        return text_value[batch.inputs.ids[:, 0]]

    def per_token(batch) -> tuple[Tensor, Tensor]:
        mask = batch.inputs.mask
        place = torch.arange(mask.shape[1]).expand_as(mask)
        return (token_value[batch.inputs.ids] * (place + 1))[mask], batch.domains.unsqueeze(1).expand_as(
            mask
        )[mask]

    for _ in range(8):
        draw = stream.draw()
        whole = draw.shard()
        shards = [draw.shard(i, num_shards, replicas) for i in range(num_shards)]
        assert sorted(chain.from_iterable(map(tokens, shards))) == sorted(tokens(whole))
        sizes = [len(shard.inputs) for shard in shards]
        assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
        texts, words = 0.0, 0.0
        for shard in shards:
            assert torch.equal(shard.text_counts, whole.text_counts / replicas)
            assert torch.equal(shard.token_counts, whole.token_counts / replicas)
            assert torch.equal(
                shard.labels, (tokens_of(shard) - torch.tensor([1, 20, 40])[shard.domains]) % 3
            )
            texts += (per_text(shard) / shard.text_counts[shard.domains]).sum()
            values, owners = per_token(shard)
            words += (values / shard.token_counts[owners]).sum()
        # Summed over the shards of a process and averaged over processes.
        expected = sum_of_domain_means(per_text(whole), whole.domains, 3)
        torch.testing.assert_close(texts / replicas, expected)
        torch.testing.assert_close(words / replicas, sum_of_domain_means(*per_token(whole), 3))


def tokens_of(batch) -> Tensor:
    return batch.inputs.ids[:, 0]


def test_a_balanced_shard_has_every_numth_text_of_each_domain():
    draw = three(batch_size=4).draw()
    whole = draw.shard()
    for index in (0, 1):
        shard = draw.shard(index, 2)
        for domain in range(3):
            assert torch.equal(
                tokens_of(shard)[shard.domains == domain],
                tokens_of(whole)[whole.domains == domain][index::2],
            )


def test_a_shard_is_the_same_whenever_and_however_often_it_is_asked_for():
    a, b = three(), three()
    first, second = a.draw(), a.draw()
    late = [second.shard(1, 3), first.shard(0, 2), second.shard(1, 3)]
    early = b.draw().shard(0, 2)
    other = b.draw().shard(1, 3)
    assert same(late[1], early) and same(late[0], other) and same(late[2], other)


def test_shards_that_cannot_be_cut_are_refused():
    draw = three(batch_size=3, sampler="cycling").draw()
    with pytest.raises(ValueError, match="a batch of 3 texts cannot be cut into 4 shards"):
        draw.shard(0, 4)
    with pytest.raises(ValueError, match="shard 2 of 2 shards"):
        draw.shard(2, 2)
    with pytest.raises(ValueError, match="multiple of replicas, got 3 and 2"):
        draw.shard(0, 3, 2)


# Seeds


def test_seeds():
    assert derive_seed(1, "a") == derive_seed(1, "a")
    assert len({derive_seed(1, "a"), derive_seed(1, "b"), derive_seed(2, "a"), derive_seed(1, "a", "")}) == 4
    assert derive_seed(0, "labelled", "de") == 4390176230922054125  # the same in every process
    state = torch.random.get_rng_state()
    with seeded(3):
        inside = torch.rand(2)
    assert torch.equal(torch.random.get_rng_state(), state)
    runs = over_seeds(lambda seed: torch.rand(2), [3, 4])
    assert torch.equal(runs[3], inside) and not torch.equal(runs[4], inside)
