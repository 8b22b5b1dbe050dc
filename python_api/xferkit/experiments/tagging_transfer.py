"""Tags for a language without labels, from other languages: one training and its tests.

The target gives texts without tags for training, and its test sentences are looked at once, with the weights
that were best on the sources' development sentences. Nothing is selected on the target.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from xferkit.data.encoding import encode_tagging
from xferkit.data.lexicon import EncodedTexts, Lexicon
from xferkit.data.ragged import RaggedLabels
from xferkit.data.records import Record
from xferkit.data.seeding import derive_seed, seeded
from xferkit.data.streams import DomainData, DomainStream
from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary, count_words
from xferkit.experiments.tagging_cell import (
    LOOKUPS,
    TaggingCell,
    TaggingOutcome,
    TaggingSettings,
    reads_target,
)
from xferkit.experiments.tagging_data import read_split
from xferkit.experiments.tagging_scores import (
    gate_weights,
    language_accuracy,
    language_probe,
    lookup_tags,
    predict_tags,
    tag_scores,
)
from xferkit.methods import (
    ClassifierMethod,
    ClassifierSpec,
    MANMoEConfig,
    build_method,
    method_config,
    method_names,
)
from xferkit.models.encoders import make_encoder
from xferkit.trainers import Trainer

__all__ = ["run_tagging_cell"]


@dataclass(frozen=True)
class _Records:
    """What is read; tags of the target's training texts are not among it."""

    train: dict[str, list[Record]]
    dev: dict[str, list[Record]]
    unlabelled: dict[str, list[Record]]
    test: dict[str, list[Record]]

    def sizes(self) -> dict[str, dict[str, int]]:
        """Counts by language, for the outcome."""
        known = {
            word.lower() for records in self.train.values() for record in records for word in record.tokens
        }
        sizes = {
            lang: {"train": len(records), "dev": len(self.dev[lang])} for lang, records in self.train.items()
        }
        for lang, records in self.test.items():
            words = [word for record in records for word in record.tokens]
            sizes[lang] = {
                "unlabelled": len(self.unlabelled[lang]),
                "test": len(records),
                "test_tokens": len(words),
                "unknown": sum(word.lower() not in known for word in words),
            }
        return sizes


def run_tagging_cell(cell: TaggingCell, settings: TaggingSettings, data: str | Path) -> TaggingOutcome:
    """Train and test one cell; the same cell gives the same result to the bit on the same machine.

    Args:
        cell: what to train.
        settings: the fixed settings.
        data: folder of the data.

    Raises:
        ValueError: for an unknown method, repeated languages, a target among the sources, several targets for
            a method that reads the target's texts, or files that are not as expected.
        NonFiniteError: when a loss is not finite.
    """
    _check(cell)
    start = time.perf_counter()
    records = _read(cell, settings, Path(data))
    if cell.method in LOOKUPS:
        return _look_up(cell, settings, records, start)
    with seeded(derive_seed(cell.seed, "cell")):
        return _train(cell, settings, records, start)


def _check(cell: TaggingCell) -> None:
    known = (*method_names(), *LOOKUPS)
    if cell.method not in known:
        raise ValueError(
            f"run_tagging_cell: unknown method {cell.method!r}, expected one of {', '.join(known)}"
        )
    languages = (*cell.sources, *cell.targets)
    if not cell.sources or not cell.targets or len(set(languages)) != len(languages):
        raise ValueError(
            "run_tagging_cell: sources and targets must be different languages, at least one each, got "
            f"{list(cell.sources)} and {list(cell.targets)}"
        )
    if reads_target(cell.method) and len(cell.targets) > 1:
        raise ValueError(
            f"run_tagging_cell: {cell.method!r} reads the target's texts, so it is trained for one target, got "
            f"{list(cell.targets)}"
        )


def _read(cell: TaggingCell, settings: TaggingSettings, data: Path) -> _Records:
    files = settings.files
    return _Records(
        train={lang: read_split(files, data, "train", lang) for lang in cell.sources},
        dev={lang: read_split(files, data, "dev", lang) for lang in cell.sources},
        unlabelled={
            lang: read_split(files, data, "unlabelled", lang, labelled=False) for lang in cell.targets
        },
        test={lang: read_split(files, data, "test", lang) for lang in cell.targets},
    )


def _look_up(cell: TaggingCell, settings: TaggingSettings, records: _Records, start: float) -> TaggingOutcome:
    train = [record for of in records.train.values() for record in of]

    def scores(groups: Mapping[str, list[Record]]) -> dict[str, dict[str, float]]:
        by_word = cell.method == "most_frequent_tag"
        return {
            lang: tag_scores(of, lookup_tags(train, of, by_word=by_word), settings)
            for lang, of in groups.items()
        }

    return TaggingOutcome(
        targets=scores(records.test),
        sources=scores(records.dev),
        gates={},
        gate_accuracy={},
        discriminator_accuracy=None,
        probe_accuracy={},
        sizes=records.sizes(),
        selected_step=None,
        seconds=time.perf_counter() - start,
        steps=0,
        losses={},
    )


@dataclass(frozen=True)
class _Texts:
    """The records as numbers."""

    labels: LabelSet
    num_words: int
    num_chars: int
    train: list[DomainData]
    unlabelled: dict[str, DomainData]
    dev: dict[str, EncodedTexts]
    test: dict[str, EncodedTexts]


def _encode(settings: TaggingSettings, records: _Records) -> _Texts:
    train = [record for of in records.train.values() for record in of]
    # Words and characters of the sources alone: an embedding that no label ever reached would say nothing of a
    # target's word, while the unknown word's is trained.
    counts = count_words(record.tokens for record in train)
    words = WordVocabulary.from_counts(counts, min_count=settings.min_count, lowercase=settings.lowercase)
    chars = CharVocabulary(
        (word for record in train for word in record.tokens), min_count=settings.min_char_count
    )
    lexicon = Lexicon(words, chars, max_chars=settings.max_chars)
    labels = LabelSet.collect(_labels(record) for record in train)

    def texts(of: list[Record]) -> EncodedTexts:
        return encode_tagging(of, lexicon, None)[0]

    def labelled(lang: str, of: list[Record]) -> DomainData:
        encoded, tags = encode_tagging(of, lexicon, labels)
        assert isinstance(tags, RaggedLabels)
        return DomainData(lang, encoded, tags)

    return _Texts(
        labels=labels,
        num_words=len(words),
        num_chars=len(chars),
        train=[labelled(lang, of) for lang, of in records.train.items()],
        unlabelled={lang: DomainData(lang, texts(of)) for lang, of in records.unlabelled.items()},
        dev={lang: texts(of) for lang, of in records.dev.items()},
        test={lang: texts(of) for lang, of in records.test.items()},
    )


def _labels(record: Record) -> tuple[str, ...]:
    assert isinstance(record.labels, tuple), "a tagging reader gives a tag per token"
    return record.labels


def _train(cell: TaggingCell, settings: TaggingSettings, records: _Records, start: float) -> TaggingOutcome:
    texts = _encode(settings, records)
    sources = [DomainData(domain.name, domain.inputs) for domain in texts.train]
    # A method that reads no texts of a target is given those of the first, and never draws them.
    unlabelled = [*sources, texts.unlabelled[cell.targets[0]]]
    streams = {
        name: DomainStream(domains, settings.batch_size, seed=cell.seed, name=name)
        for name, domains in (("labelled", texts.train), ("unlabelled", unlabelled))
    }
    method = _build(cell, settings, texts)
    names = texts.labels.names
    score = "accuracy" if settings.score == "accuracy" else "f1"

    def source_scores() -> dict[str, dict[str, float]]:
        return {
            lang: tag_scores(records.dev[lang], predict_tags(method, of, names, number), settings)
            for number, (lang, of) in enumerate(texts.dev.items())
        }

    def evaluate() -> dict[str, float]:
        return {"source_dev/score": fmean(scores[score] for scores in source_scores().values())}

    trainer = Trainer(settings.trainer, progress="silent", title=cell.describe())
    history = trainer.fit(method, streams, settings.steps, evaluate=evaluate)
    of_sources = [gate_weights(method, of, own) for own, of in enumerate(texts.dev.values())]
    of_targets = {lang: gate_weights(method, of) for lang, of in texts.test.items()}
    gates = list(of_sources[0])
    dev = list(texts.dev.values())
    adversary = getattr(method, "discriminator", None)
    held_out = [*dev, texts.test[cell.targets[0]]]
    return TaggingOutcome(
        targets={
            lang: tag_scores(records.test[lang], predict_tags(method, of, names), settings)
            for lang, of in texts.test.items()
        },
        sources=source_scores(),
        gates={
            gate: {
                **{lang: found[gate][0] for lang, found in of_targets.items()},
                **{lang: found[gate][0] for lang, found in zip(cell.sources, of_sources, strict=True)},
            }
            for gate in gates
        },
        gate_accuracy={gate: fmean(found[gate][1] for found in of_sources) for gate in gates},
        discriminator_accuracy=language_accuracy(method, adversary, held_out) if adversary else None,
        probe_accuracy={
            lang: language_probe(method, [*sources, texts.unlabelled[lang]], [*dev, of], settings, cell.seed)
            for lang, of in texts.test.items()
        }
        if settings.probe_steps
        else {},
        sizes=records.sizes(),
        selected_step=history.selected_step,
        seconds=time.perf_counter() - start,
        steps=history.steps,
        losses=dict(history.last),
    )


def _build(cell: TaggingCell, settings: TaggingSettings, texts: _Texts) -> ClassifierMethod:
    spec = ClassifierSpec(
        make_encoder=lambda: make_encoder(
            settings.encoder, texts.num_words, texts.num_chars, ops=settings.ops
        ),
        num_classes=len(texts.labels),
        num_sources=len(cell.sources),
        hidden_dim=settings.hidden_dim or None,
        dropout=settings.dropout,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        ops=settings.ops,
        tagging=True,
    )
    family = issubclass(method_config(cell.method), MANMoEConfig)
    return build_method(cell.method, spec, settings.method if family else None)
