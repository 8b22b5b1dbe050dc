"""Masked language modelling as a method: its loss, parts of a batch, resuming, and that it learns."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xferkit.checkpoints import CheckpointStore
from xferkit.data import MaskedTextBatch, Ragged, TokenCorpus
from xferkit.data.seeding import derive_seed, seeded
from xferkit.methods import MaskedLmConfig, MaskedLmMethod, train_step
from xferkit.methods.masked_lm import MASKED
from xferkit.models import TransformerConfig
from xferkit.trainers import Trainer

PIECES = 12  # of each language; language b's numbers come behind language a's
VOCAB = 2 + 2 * PIECES + 1
STEPS = 6


def lines(language: int, texts: int, seed: int = 0) -> TokenCorpus:
    """Texts that count on from anywhere in steps of 1 or 2: a token follows from those beside it."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for start, step, length in torch.randint(0, 2**31, (texts, 3), generator=generator).tolist():
        row = [(start + i * (1 + step % 2)) % PIECES for i in range(4 + length % 8)]
        rows.append([2 + language * PIECES + piece for piece in row])
    return TokenCorpus("ab"[language], Ragged.from_lists(rows))


CORPORA = [lines(0, 60, 1), lines(1, 25, 2)]


def make(seed: int = 0, dropout: float = 0.1, **options: Any) -> MaskedLmMethod:
    settings = {"batch_size": 8, "bucket": 2, "warmup_steps": 2} | options
    with seeded(derive_seed(seed, "model")):
        return MaskedLmMethod(
            TransformerConfig(VOCAB, 16, 2, 2, 32, 9, dropout=dropout), MaskedLmConfig(**settings)
        )


def weights(method: MaskedLmMethod) -> Tensor:
    return torch.cat([p.detach().flatten().double() for p in method.module.parameters()])


def gradient(method: MaskedLmMethod) -> Tensor:
    return torch.cat([p.grad.flatten() for p in method.module.parameters()])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"learning_rate": 0.0}, "learning_rate and temperature must be positive, got 0.0 and 5.0"),
        ({"batch_size": 0}, "expected batch_size >= 1"),
        ({"weight_decay": -1.0}, "and weight_decay >= 0"),
        ({"mask_share": 0.0}, r"share must be in \(0, 1\]"),
        ({"mask_split": (1.0, 0.5, 0.0)}, "three probabilities that sum to 1"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        MaskedLmConfig(**options)


def test_the_loss_by_hand() -> None:
    method = make()
    method.module.double().eval()
    batch = method.stream(CORPORA, seed=0).next()
    found = method.loss(lambda name: {MASKED: batch}[name])
    logits = method.output(batch).logits
    wanted = -torch.stack([logits[i].log_softmax(0)[label] for i, label in enumerate(batch.labels)]).mean()
    torch.testing.assert_close(found.total, wanted)
    torch.testing.assert_close(found.metrics["loss"], wanted.detach())
    right = (logits.argmax(1) == batch.labels).double().mean()
    assert float(found.metrics["accuracy"]) == pytest.approx(float(right))
    torch.testing.assert_close(method.loss_of(batch), wanted)
    assert method.output(batch, with_states=True).states.shape == (*batch.tokens.shape, 16)
    # What stands in the places of the labels is what was masked; the loss reads nothing else of the batch.
    assert (batch.tokens.flatten()[batch.positions] == VOCAB - 1).any()


def test_losses_with_and_without_dropout() -> None:
    method = make(dropout=0.5)
    batch = method.stream(CORPORA, seed=0).next()
    method.module.train()
    assert not torch.equal(method.loss_of(batch), method.loss_of(batch))
    assert torch.equal(method.loss_of(batch, dropout=False), method.loss_of(batch, dropout=False))
    assert method.module.training
    method.module.eval()
    assert not torch.equal(method.loss_of(batch, dropout=True), method.loss_of(batch))
    assert not method.module.training and not method.model.encoder.training


@pytest.mark.parametrize(("shards", "replicas"), [(3, 1), (8, 2)])
def test_parts_of_a_batch_are_the_whole(shards: int, replicas: int) -> None:
    method = make()
    method.module.double().eval()
    stream = method.stream(CORPORA, seed=0)
    for _ in range(3):
        draw = stream.draw()
        method.module.zero_grad()
        whole = method.loss_of(draw.shard())
        whole.backward()
        wanted = gradient(method)
        method.module.zero_grad()
        parts = [draw.shard(i, shards, replicas) for i in range(shards)]
        losses = [method.loss_of(part) for part in parts]
        for loss in losses:
            (loss / replicas).backward()  # the mean over processes
        torch.testing.assert_close(sum(losses) / replicas, whole, rtol=0, atol=1e-10)
        torch.testing.assert_close(gradient(method), wanted, rtol=0, atol=1e-10)


def test_a_part_without_selected_tokens() -> None:
    method = make(mask_share=1e-6)
    draw = method.stream(CORPORA, seed=0).draw()
    parts = [draw.shard(i, 8) for i in range(8)]
    assert sorted(len(part.labels) for part in parts) == [0] * 7 + [1]
    found = [method.loss(lambda _, part=part: part) for part in parts]
    assert sum(bool(loss.total > 0) for loss in found) == 1
    for loss in found:
        loss.total.backward()
    assert gradient(method).isfinite().all()
    empty = next(part for part in parts if not len(part.labels))
    alone = MaskedTextBatch(empty.tokens, empty.lengths, empty.positions, empty.labels, 0)
    assert method.loss_of(alone).item() == 0.0


def fit(
    folder: Path | None = None, *, seed: int = 0, dropout: float = 0.1, double: bool = False, **options: Any
):
    method = make(seed, dropout)
    if double:
        method.module.double()
    torch.manual_seed(seed)
    trainer = Trainer(progress="silent", log_every=2, **(method.config.trainer_options() | options))
    dev = method.fixed_batches([lines(0, 10, 3), lines(1, 10, 4)])
    history = trainer.fit(
        method,
        {MASKED: method.stream(CORPORA, seed=seed)},
        STEPS,
        evaluate=lambda: method.dev_scores(dev),
        folder=folder,
    )
    return method, history


def test_accumulation_makes_the_same_updates() -> None:
    one, history = fit(dropout=0.0, double=True)
    other, again = fit(dropout=0.0, double=True, accumulation=4)
    torch.testing.assert_close(weights(one), weights(other), rtol=0, atol=1e-9)
    for record, second in zip(history.records, again.records, strict=True):
        assert record.metrics == pytest.approx(second.metrics, abs=1e-6)
        assert set(record.metrics) == {"main/loss", "main/accuracy"}


def test_seeds_decide() -> None:
    first, _ = fit()
    assert torch.equal(weights(first), weights(fit()[0]))
    assert not torch.equal(weights(first), weights(fit(seed=1)[0]))


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_stopped_and_resumed_it_ends_in_the_same_bits(tmp_path: Path, stop: int, monkeypatch: Any) -> None:
    class Stop(Exception):
        pass

    gold, history = fit(tmp_path / "gold", checkpoint_every=1, eval_every=2)
    loss, count = MaskedLmMethod.loss, [0]

    def counted(self: MaskedLmMethod, next_batch: Any) -> Any:
        if count[0] == stop:
            raise Stop
        count[0] += 1
        return loss(self, next_batch)

    monkeypatch.setattr(MaskedLmMethod, "loss", counted)
    with pytest.raises(Stop):
        fit(tmp_path / "cut", checkpoint_every=1, eval_every=2)
    monkeypatch.setattr(MaskedLmMethod, "loss", loss)
    torch.manual_seed(99)
    method, again = fit(tmp_path / "cut", checkpoint_every=1, eval_every=2)
    assert torch.equal(weights(method), weights(gold))
    assert [e.scores for e in again.evaluations] == [e.scores for e in history.evaluations]
    states = [CheckpointStore(tmp_path / n / "checkpoints").load_newest(None).state for n in ("gold", "cut")]
    for name, value in states[0]["module"].items():
        assert torch.equal(value, states[1]["module"][name]), name
    for index, entries in states[0]["optimizers"]["main"].items():
        for key, value in entries.items():
            assert torch.equal(value, states[1]["optimizers"]["main"][index][key]), (index, key)
    masks = [state["streams"][MASKED]["masks"] for state in states]
    assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))


def test_optimiser_and_schedule() -> None:
    method = make(weight_decay=0.1, learning_rate=2e-3, schedule="cosine")
    decayed, others = method.optimizers["main"].param_groups
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert min(p.dim() for p in decayed["params"]) == 2 and max(p.dim() for p in others["params"]) == 1
    assert len(decayed["params"]) + len(others["params"]) == len(list(method.module.parameters()))
    assert decayed["lr"] == 2e-3 and decayed["betas"] == (0.9, 0.98)
    assert method.config.trainer_options() == {"schedule": "cosine", "warmup_steps": 2}
    assert [len(stage.phases) for stage in method.stages(3)] == [1] and method.stages(3)[0].steps == 3
    assert MaskedLmConfig().temperature == 5.0


def test_a_stream_has_the_settings_of_the_method() -> None:
    method = make(temperature=2.0, shares_by="texts")
    state = method.stream(CORPORA, seed=4, only="b").state_dict()
    wanted = {
        "seed": 4, "temperature": 2.0, "by": "texts", "only": "b", "batch_size": 8, "bucket": 2, "max_length": 9,
        "masking": [VOCAB, 0.15, 0.8, 0.1, 0.1], "name": MASKED,
    }  # fmt: skip
    assert {key: state[key] for key in wanted} == wanted


def test_scores_of_development_texts() -> None:
    method = make()
    dev = method.fixed_batches([lines(0, 40, 3), lines(1, 20, 4)])
    assert list(dev) == ["a", "b"] and all(batch.language == 1 for batch in dev["b"])
    method.module.train()
    scores = method.dev_scores(dev)
    assert scores == method.dev_scores(dev) and method.module.training  # without dropout
    assert scores["source_dev/score"] == pytest.approx(-(scores["nll/a"] + scores["nll/b"]) / 2)
    total = sum(method.loss_of(b, dropout=False).item() * len(b.labels) for b in dev["a"])
    assert scores["nll/a"] == pytest.approx(total / sum(len(b.labels) for b in dev["a"]), rel=1e-5)
    assert math.isnan(method.mean_nll([]))


def test_it_learns_to_count_in_two_languages() -> None:
    torch.manual_seed(0)
    encoder = TransformerConfig(VOCAB, dim=32, layers=2, heads=2, feed_forward=64, max_length=12, dropout=0.0)
    method = MaskedLmMethod(encoder, MaskedLmConfig(learning_rate=3e-3, batch_size=32, bucket=0))
    corpora = [lines(0, 500, 1), lines(1, 300, 2)]
    dev = method.fixed_batches([lines(0, 100, 3), lines(1, 100, 4)])
    stream = method.stream(corpora, seed=0)
    method.module.train()
    for step in range(400):
        method.optimizers["main"].param_groups[0]["lr"] = 3e-3 * min(1.0, (step + 1) / 50)
        train_step(method, method.stages(1)[0].phases, lambda _: stream.next())
    scores = method.dev_scores(dev)
    for part in corpora:
        share = part.texts.flat.bincount().double() / part.num_tokens
        entropy = float(torch.special.entr(share).sum())
        assert entropy == pytest.approx(math.log(PIECES), abs=0.02)
        assert scores[f"nll/{part.name}"] < 0.7 * entropy, scores
