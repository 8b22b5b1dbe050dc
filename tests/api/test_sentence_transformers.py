"""The drop-in loss against the one of sentence-transformers itself."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from xferkit.ranking.sentence_transformers import FusedMultipleNegativesRankingLoss

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # transformers warns of its own future at import
    losses = pytest.importorskip(
        "sentence_transformers.losses", reason="sentence-transformers is an extra", exc_type=ImportError
    )
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import cos_sim, dot_score, euclidean_sim

    from xferkit.ranking.cached_sentence_transformers import FusedCachedMultipleNegativesRankingLoss

pytestmark = pytest.mark.filterwarnings("ignore")
Original = losses.MultipleNegativesRankingLoss


def embeddings(columns: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    rng = torch.Generator().manual_seed(columns)
    first = torch.randn(24, 16, generator=rng)
    made = [first] + [first + 0.7 * torch.randn(24, 16, generator=rng) for _ in range(columns - 1)]
    return [t.to(dtype).requires_grad_() for t in made]


def value_and_grads(loss: Callable[..., Tensor], given: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    value = loss(given, torch.zeros(0))
    return value.detach(), list(torch.autograd.grad(value, given))


OPTIONS: list[dict[str, Any]] = [
    {},
    {"scale": 1.0, "similarity_fct": dot_score},
    {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"},
    {"scale": 50.0},
]


@pytest.mark.parametrize("columns", [2, 3, 6])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_value_and_gradient_are_the_original_s(options: dict[str, Any], columns: int) -> None:
    model = torch.nn.Identity()
    ours = FusedMultipleNegativesRankingLoss(model, **options)
    theirs = Original(model, **options)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        given = embeddings(columns, dtype)
        value, grads = value_and_grads(ours.compute_loss_from_embeddings, given)
        exact = [t.detach().double().requires_grad_() for t in given]
        wanted, wanted_grads = value_and_grads(theirs.compute_loss_from_embeddings, exact)
        torch.testing.assert_close(value.double(), wanted, rtol=tolerance, atol=tolerance)
        for actual, expected in zip(grads, wanted_grads, strict=True):
            size = float(expected.abs().max())
            torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance * size)


def test_settings_are_reported_as_the_original_does() -> None:
    model = torch.nn.Identity()
    ours, theirs = FusedMultipleNegativesRankingLoss(model), Original(model)
    assert set(theirs.get_config_dict()) <= set(ours.get_config_dict())
    assert ours.get_config_dict()["scale"] == theirs.get_config_dict()["scale"]
    assert ours.citation == theirs.citation
    assert ours.temperature == theirs.temperature


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scale": 0.0}, "scale must be above 0"),
        ({"similarity_fct": euclidean_sim}, "cos_sim or dot_score, got euclidean_sim"),
        ({"directions": ("query_to_doc", "query_to_query")}, "not fused"),
        ({"directions": ("query_to_doc", "doc_to_query")}, "per_direction"),
        ({"similarity_fct": functools.partial(cos_sim)}, "cos_sim or dot_score, got partial"),
        ({"hardness_mode": "all_negatives"}, "hardness_mode 'all_negatives' is not fused"),
    ],
)
def test_what_is_not_fused_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        FusedMultipleNegativesRankingLoss(torch.nn.Identity(), **options)


def test_one_column_is_not_enough() -> None:
    with pytest.raises(ValueError, match="got 1 columns"):
        FusedMultipleNegativesRankingLoss(torch.nn.Identity()).compute_loss_from_embeddings(embeddings(1))


# ---- the cached loss


class Tower(torch.nn.Module):
    """What a model of the package is to its losses: features in, a sentence embedding among them out."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Embedding(50, 16), torch.nn.Dropout(dropout), torch.nn.Linear(16, 8)
        )

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = features["attention_mask"].unsqueeze(-1)
        mean = (self.layers(features["input_ids"]) * mask).sum(1) / mask.sum(1)
        return {**features, "sentence_embedding": mean}


def columns_of_tokens(columns: int, texts: int = 13) -> list[dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(columns)
    made = []
    for _ in range(columns):
        lengths = torch.randint(1, 7, (texts, 1), generator=rng)
        ids = torch.randint(0, 50, (texts, 6), generator=rng)
        made.append({"input_ids": ids, "attention_mask": (torch.arange(6) < lengths).long()})
    return made


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("columns", [2, 4])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_cached_loss_is_the_cached_original_s(
    options: dict[str, Any], columns: int, dropout: float
) -> None:
    features = columns_of_tokens(columns)
    found = []
    for kind in (FusedCachedMultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss):
        model = SentenceTransformer(modules=[Tower(dropout)], device="cpu")
        loss = kind(model, mini_batch_size=5, **options)
        torch.manual_seed(1)
        value = loss([dict(column) for column in features], torch.zeros(0))
        (3.0 * value).backward()
        found.append((value.detach(), [p.grad for p in model.parameters()]))
        with torch.no_grad():
            assert not loss([dict(column) for column in features], torch.zeros(0)).requires_grad
    (value, grads), (wanted, wanted_grads) = found
    torch.testing.assert_close(value, wanted, rtol=1e-5, atol=1e-6)
    for actual, expected in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_settings_of_the_cached_loss() -> None:
    model = SentenceTransformer(modules=[Tower(0.0)], device="cpu")
    ours, theirs = (
        kind(model, mini_batch_size=4)
        for kind in (FusedCachedMultipleNegativesRankingLoss, losses.CachedMultipleNegativesRankingLoss)
    )
    assert ours.get_config_dict() == theirs.get_config_dict() and ours.citation == theirs.citation
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    features = columns_of_tokens(2)
    ours.scale = theirs.scale = 5.0  # the package lets settings be assigned
    torch.testing.assert_close(ours(features, torch.zeros(0)), theirs(features, torch.zeros(0)))
    with pytest.raises(ValueError, match="not fused"):
        FusedCachedMultipleNegativesRankingLoss(model, hardness_mode="all_negatives", hardness_strength=1.0)


def test_without_the_package_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers.losses", None)
    monkeypatch.delitem(sys.modules, "xferkit.ranking.cached_sentence_transformers")
    with pytest.raises(ImportError, match=r"run: pip install 'xfercore\[sentence-transformers\]'"):
        import xferkit.ranking.cached_sentence_transformers  # noqa: F401


@pytest.mark.slow
def test_its_trainer_trains_with_the_loss(tmp_path: Path) -> None:
    """A model of word vectors learns which made-up words are translations of each other."""
    datasets = pytest.importorskip("datasets", reason="datasets is an extra", exc_type=ImportError)
    from sentence_transformers import SentenceTransformerTrainer
    from sentence_transformers import SentenceTransformerTrainingArguments as Arguments
    from sentence_transformers.models import StaticEmbedding
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = [f"{side}{i}" for side in "ab" for i in range(40)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    model = SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=16)], device="cpu")
    rng = torch.Generator().manual_seed(0)
    rows = torch.randint(0, 40, (400, 4), generator=rng).tolist()
    data = {side: [" ".join(f"{side}{i}" for i in row) for row in rows] for side in "ab"}
    loss = FusedMultipleNegativesRankingLoss(model)

    def first_choices() -> float:
        found = model.encode(data["a"][:100]) @ model.encode(data["b"][:100]).T
        return float((found.argmax(1) == list(range(100))).mean())

    before = first_choices()
    arguments = Arguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=50, learning_rate=0.1,
        report_to="none", save_strategy="no", logging_strategy="no", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=datasets.Dataset.from_dict(data), loss=loss
    )
    trainer.train()
    assert first_choices() > max(0.6, before + 0.3)
