"""One tagger for several languages: a training and its tests.

All languages have labels. Methods differ in what they do with the languages' losses; parameters, batches and the
number of steps are the same for one seed. Nothing is selected: the last weights are tested.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from xferkit.data.encoding import encode_tagging
from xferkit.data.lexicon import EncodedTexts, Lexicon
from xferkit.data.ragged import RaggedLabels
from xferkit.data.records import Record
from xferkit.data.seeding import derive_seed, seeded
from xferkit.data.streams import DomainData, DomainStream
from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary, count_words
from xferkit.experiments.multilingual.cell import LOOKUP, MultilingualCell, MultilingualOutcome
from xferkit.experiments.multilingual.config import (
    Language,
    MultilingualConfig,
    MultilingualSettings,
    build_options,
)
from xferkit.experiments.multilingual.observer import Observer
from xferkit.experiments.tagging_data import TaggingFiles, read_split
from xferkit.experiments.tagging_scores import lookup_tags, predict_tags, tag_scores
from xferkit.methods import ClassifierMethod, ClassifierSpec, build_method
from xferkit.models.encoders import make_encoder
from xferkit.trainers import Trainer

__all__ = ["batch_shares", "files_of", "run_multilingual_cell"]

Records = dict[str, list[Record]]


def files_of(settings: MultilingualSettings, language: Language) -> TaggingFiles:
    """The files, with the language's own cap on its training sentences."""
    return replace(settings.files, max_train=language.max_train or settings.files.max_train)


def batch_shares(settings: MultilingualSettings, sizes: Mapping[str, int]) -> dict[str, float]:
    """Expected share of each language in a batch, from its number of training sentences."""
    power = 1 / settings.temperature if settings.sampler == "temperature" else 0.0
    weights = {name: size**power for name, size in sizes.items()}
    return {name: weight / sum(weights.values()) for name, weight in weights.items()}


def run_multilingual_cell(
    cell: MultilingualCell, config: MultilingualConfig, data: str | Path
) -> MultilingualOutcome:
    """Train and test one cell; the same cell gives the same scores to the bit on the same machine.

    A model of one language makes as many steps as those of all, with batches of its expected share of theirs.

    Args:
        cell: what to train.
        config: languages and settings.
        data: folder of the data.

    Raises:
        ValueError: files that are not as expected, or options that do not fit the model.
        NonFiniteError: a loss is not finite.
    """
    start = time.perf_counter()
    settings = config.settings
    read = {
        split: {
            lang: read_split(files_of(settings, config.languages[lang]), Path(data), split, lang)
            for lang in cell.languages
        }
        for split in ("train", "dev", "test")
    }
    if cell.method == LOOKUP:
        return _look_up(settings, read, start)
    batch_size, sampler = settings.batch_size, settings.sampler
    if len(cell.languages) < len(config.languages):
        sizes = {
            lang: len(read_split(files_of(settings, of), Path(data), "train", lang))
            for lang, of in config.languages.items()
        }
        share = sum(batch_shares(settings, sizes)[lang] for lang in cell.languages)
        if sampler != "balanced":
            batch_size = max(1, round(share * batch_size))
    with seeded(derive_seed(cell.seed, "cell")):
        return _train(cell, replace(settings, batch_size=batch_size), read, start)


def _look_up(
    settings: MultilingualSettings, read: Mapping[str, Records], start: float
) -> MultilingualOutcome:
    def scores(split: str) -> dict[str, dict[str, float]]:
        return {
            lang: tag_scores(of, lookup_tags(read["train"][lang], of, by_word=True), settings)
            for lang, of in read[split].items()
        }

    return MultilingualOutcome(
        test=scores("test"),
        dev=scores("dev"),
        sizes=_sizes(read),
        start="",
        parameters=0,
        pairs=None,
        cpu_seconds=0.0,
        seconds=time.perf_counter() - start,
        steps=0,
        losses={},
    )


def _sizes(read: Mapping[str, Records]) -> dict[str, dict[str, int]]:
    sizes = {}
    for lang, train in read["train"].items():
        known = {word.lower() for record in train for word in record.tokens}
        words = [word for record in read["test"][lang] for word in record.tokens]
        sizes[lang] = {
            "train": len(train),
            "train_tokens": sum(len(record.tokens) for record in train),
            "dev": len(read["dev"][lang]),
            "test": len(read["test"][lang]),
            "test_tokens": len(words),
            "unknown": sum(word.lower() not in known for word in words),
        }
    return sizes


@dataclass(frozen=True)
class _Texts:
    """The records as numbers."""

    labels: LabelSet
    num_words: int
    num_chars: int
    train: list[DomainData]
    dev: dict[str, EncodedTexts]
    test: dict[str, EncodedTexts]


def _encode(settings: MultilingualSettings, read: Mapping[str, Records]) -> _Texts:
    train = [record for of in read["train"].values() for record in of]
    counts = count_words(record.tokens for record in train)
    words = WordVocabulary.from_counts(counts, min_count=settings.min_count, lowercase=settings.lowercase)
    chars = CharVocabulary(
        (word for record in train for word in record.tokens), min_count=settings.min_char_count
    )
    lexicon = Lexicon(words, chars, max_chars=settings.max_chars)
    labels = LabelSet.collect(record.labels for record in train if isinstance(record.labels, tuple))

    def labelled(lang: str, of: list[Record]) -> DomainData:
        encoded, tags = encode_tagging(of, lexicon, labels)
        assert isinstance(tags, RaggedLabels)
        return DomainData(lang, encoded, tags)

    def texts(of: Records) -> dict[str, EncodedTexts]:
        return {lang: encode_tagging(records, lexicon, None)[0] for lang, records in of.items()}

    return _Texts(
        labels=labels,
        num_words=len(words),
        num_chars=len(chars),
        train=[labelled(lang, of) for lang, of in read["train"].items()],
        dev=texts(read["dev"]),
        test=texts(read["test"]),
    )


def _train(
    cell: MultilingualCell, settings: MultilingualSettings, read: Mapping[str, Records], start: float
) -> MultilingualOutcome:
    texts = _encode(settings, read)
    stream = DomainStream(
        texts.train,
        settings.batch_size,
        seed=cell.seed,
        name="labelled",
        sampler=settings.sampler,
        temperature=settings.temperature,
    )
    method = _build(cell, settings, texts)
    first = _digest(method.module)
    observer = Observer(getattr(method, "surgery", None), settings.observe_every)
    trainer = Trainer(settings.trainer, progress="silent", title=cell.describe())
    begin = time.process_time()
    history = trainer.fit(method, {"labelled": stream}, settings.steps)
    spent = time.process_time() - begin

    def scores(records: Records, encoded: Mapping[str, EncodedTexts]) -> dict[str, dict[str, float]]:
        return {
            lang: tag_scores(records[lang], predict_tags(method, of, texts.labels.names, number), settings)
            for number, (lang, of) in enumerate(encoded.items())
        }

    return MultilingualOutcome(
        test=scores(read["test"], texts.test),
        dev=scores(read["dev"], texts.dev),
        sizes=_sizes(read),
        start=first,
        parameters=sum(p.numel() for p in method.module.parameters() if p.requires_grad),
        pairs=observer.record(),
        cpu_seconds=max(0.0, spent - observer.cpu_seconds),
        seconds=time.perf_counter() - start,
        steps=history.steps,
        losses={name: v if math.isfinite(v) else None for name, v in history.last.items()},
    )


def _build(cell: MultilingualCell, settings: MultilingualSettings, texts: _Texts) -> ClassifierMethod:
    spec = ClassifierSpec(
        make_encoder=lambda: make_encoder(
            settings.encoder, texts.num_words, texts.num_chars, ops=settings.ops
        ),
        num_classes=len(texts.labels),
        num_sources=len(cell.languages),
        hidden_dim=settings.hidden_dim or None,
        dropout=settings.dropout,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        ops=settings.ops,
        tagging=True,
        source_names=cell.languages,
    )
    return build_method(cell.uses, spec, build_options(cell.uses, json.loads(cell.options), settings))


def _digest(module: nn.Module) -> str:
    digest = hashlib.sha256()
    for parameter in module.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return digest.hexdigest()
