"""Tagging in several languages, such as parts of speech: which languages help a target, with few or no labels of it?"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from xferkit.data.encoding import encode_tagging
from xferkit.data.lexicon import EncodedTexts, Lexicon
from xferkit.data.ragged import RaggedLabels
from xferkit.data.records import Record
from xferkit.data.vocabulary import UNKNOWN, CharVocabulary, LabelSet, WordVocabulary, count_words
from xferkit.diagnosis.batches import KnownTexts
from xferkit.diagnosis.problem import Metric, Part, SplitName
from xferkit.diagnosis.recipe import Recipe, scaled
from xferkit.diagnosis.texts import ngram_matrix
from xferkit.diagnosis.training import TaskData, TrainedProblem, known_task
from xferkit.experiments.tagging_data import TaggingFiles, read_split
from xferkit.experiments.tagging_settings import TaggerSettings
from xferkit.models import Encoder, EncoderConfig, make_encoder

__all__ = ["TAGGER", "UD_FILES", "TagProblem"]

#: Files of Universal Dependencies below a data folder.
UD_FILES = TaggingFiles(
    train={"default": "ud/{lang}/train.tsv.gz"},
    dev={"default": "ud/{lang}/dev.tsv.gz"},
    test={"default": "ud/{lang}/test.tsv.gz"},
    max_train=1000,
    max_dev=200,
    max_tokens=40,
)
#: The tagger: a BiLSTM over words and their characters, small enough for seconds on one core.
TAGGER = TaggerSettings(
    files=UD_FILES,
    encoder=EncoderConfig(
        feature_dim=64,
        layers=1,
        dropout=0.1,
        word_dim=64,
        word_dropout=0.1,
        char_dim=24,
        char_flag_dim=4,
        char_channels=40,
        char_widths=(2, 3, 4),
        char_out=64,
    ),
)
RECIPE = Recipe(
    steps=200,
    batch_size=8,
    learning_rate=0.01,
    weight_decay=1e-8,
    dropout=0.1,
    sizes={
        "hidden_dim": 64,
        "private_dim": 64,
        "expert_hidden": 64,
        "predictor_hidden": 64,
        "discriminator_hidden": 64,
        "lambda1": 0.1,
        "lambda2": 0.1,
        "detach_gate_input": False,
    },
    clip_norm=1.0,
    observed=32,
)


class TagProblem(TrainedProblem):
    """Token accuracy of a tagger in one language, trained on others and on some of its own sentences.

    A tag that no training sentence of any task has counts as missed.

    Args:
        data: folder that the files lie below.
        target: language in question.
        sources: the other languages.
        labelled: the target's tags may be trained on.
        caps: training sentences of a language at most, by language, where that is fewer than the files' own.
        max_test: test sentences of a language at most, the first ones; 0: all.
        settings: files, encoder and vocabularies; training is as ``recipe`` says.
        recipe: how a language alone is trained.
        metric: the score: accuracy, or the unweighted mean over classes of F1.

    Raises:
        ValueError: a language twice, no file, or one that is not as expected, with its line.
    """

    tagging = True
    unit = "language"

    def __init__(
        self,
        data: str | Path,
        target: str,
        sources: Sequence[str],
        *,
        labelled: bool = True,
        caps: Mapping[str, int] | None = None,
        max_test: int = 500,
        settings: TaggerSettings = TAGGER,
        recipe: Recipe = RECIPE,
        metric: Metric = "accuracy",
    ) -> None:
        languages = (target, *sources)
        if len(set(languages)) != len(languages):
            raise ValueError(f"target and sources must be different languages, got {', '.join(languages)}")
        super().__init__("tagging", target, languages if labelled else tuple(sources), recipe, metric)
        self.tagger, self.caps, self.max_test = settings, dict(caps or {}), max_test
        for lang, cap in self.caps.items():
            known_task(lang, languages)
            if cap < 1:
                raise ValueError(f"caps of {lang!r} must be at least 1, got {cap}")
        self._records = {lang: self._read(Path(data), lang) for lang in self.everything}
        train = [record for lang in self.tasks for record in self._records[lang]["train"]]
        counts = count_words(record.tokens for record in train)
        self._lexicon = Lexicon(
            WordVocabulary.from_counts(counts, min_count=settings.min_count, lowercase=settings.lowercase),
            CharVocabulary.from_counts(counts, min_count=settings.min_char_count),
            max_chars=settings.max_chars,
        )
        self.tags = LabelSet.collect(_tags(record) for record in train).names
        scored = {
            tag
            for parts in self._records.values()
            for split in ("dev", "test")
            for record in parts[split]
            for tag in _tags(record)
        }
        self._all_tags = LabelSet([*self.tags, *sorted(scored - set(self.tags))])
        self._encoded = {
            lang: {split: self._encode(of) for split, of in parts.items()}
            for lang, parts in self._records.items()
        }

    def _read(self, data: Path, lang: str) -> dict[SplitName, list[Record]]:
        files, labelled = self.tagger.files, lang in self.tasks
        train = read_split(files, data, "train" if labelled else "unlabelled", lang, labelled=labelled)
        return {
            "train": train[: self.caps.get(lang)],
            "dev": read_split(files, data, "dev", lang),
            "test": read_split(files, data, "test", lang)[: self.max_test or None],
        }

    def _encode(self, records: Sequence[Record]) -> tuple[EncodedTexts, RaggedLabels | None]:
        labelled = records[0].labels is not None
        texts, tags = encode_tagging(records, self._lexicon, self._all_tags if labelled else None)
        assert tags is None or isinstance(tags, RaggedLabels)
        return texts, tags

    @property
    def _num_classes(self) -> int:
        return len(self.tags)

    def _tables(self, tasks: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """What becomes of words and of characters when these languages are trained on."""
        lexicon = self._lexicon
        flat = torch.cat([self._encoded[lang]["train"][0].types.flat.to(torch.int64) for lang in tasks])
        met = torch.bincount(flat, minlength=len(lexicon))
        types = torch.arange(len(lexicon))
        words = torch.zeros(len(lexicon.words), dtype=torch.int64)
        words.index_add_(0, lexicon.numbers(types), met)
        ids = lexicon.spell(types).ids
        chars = torch.zeros(len(lexicon.chars), dtype=torch.int64)
        chars.index_add_(0, ids.flatten(), met.repeat_interleave(ids.shape[1]))
        return (
            KnownTexts.table(words, self.tagger.min_count),
            KnownTexts.table(chars, self.tagger.min_char_count),
        )

    def _data(self, tasks: tuple[str, ...]) -> dict[str, TaskData]:
        tables = self._tables(tasks)

        def part(lang: str, split: SplitName) -> tuple[KnownTexts, RaggedLabels]:
            texts, tags = self._encoded[lang][split]
            assert tags is not None
            return KnownTexts(texts, *tables), tags

        found = {}
        for lang in self.everything:
            train = part(lang, "train") if lang in self.tasks else None
            texts = train[0] if train else KnownTexts(self._encoded[lang]["train"][0], *tables)
            parts: dict[Part, tuple[KnownTexts, RaggedLabels]] = {
                "dev": part(lang, "dev"),
                "test": part(lang, "test"),
            }
            found[lang] = TaskData(parts, train, texts)
        return found

    def _encoder(self, width: float) -> Encoder:
        c = self.tagger.encoder
        config = replace(
            c,
            feature_dim=scaled(c.feature_dim, width, 2),
            word_dim=scaled(c.word_dim, width),
            char_channels=scaled(c.char_channels, width),
            char_out=scaled(c.char_out, width),
        )
        return make_encoder(config, len(self._lexicon.words), len(self._lexicon.chars), ops=self.tagger.ops)

    def settings(self) -> dict[str, Any]:
        """Plain values that decide a run beside the data."""
        names = ("min_count", "lowercase", "min_char_count", "max_chars")
        sizes = {name: getattr(self.tagger, name) for name in names}
        return {**super().settings(), **sizes, "encoder": asdict(self.tagger.encoder)}

    def sizes(self) -> dict[str, dict[str, int]]:
        """Sentences by language and split."""
        return {
            lang: {
                ("unlabelled" if split == "train" and lang not in self.tasks else split): len(records)
                for split, records in parts.items()
            }
            for lang, parts in self._records.items()
        }

    def describe(self) -> str:
        """The problem in a few sentences."""
        own = len(self._records[self.target]["train"])
        labels = f"with {own} tagged sentences" if self.target in self.tasks else "without tags"
        return (
            f"Tagging of {len(self.everything)} languages with {len(self.tags)} tags, scored on tokens of "
            f"{self.target}, {labels}. A BiLSTM over words and their characters. {self.trained()}"
        )

    def fingerprint(self) -> str:
        """SHA-256 over the sentences that are read, with their tags."""
        digest = hashlib.sha256()
        for lang in sorted(self._records):
            for split, records in self._records[lang].items():
                for record in records:
                    words, tags = " ".join(record.tokens), " ".join(record.labels or ())
                    digest.update(f"{lang}\t{split}\t{words}\t{tags}\n".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    unknown_token = UNKNOWN

    def tokenizer(self, text: str) -> list[int]:
        """Numbers of a sentence's words when all tasks are trained on, ``unknown_token`` for those too rare."""
        return [self._lexicon.words.number(word) for word in text.split(" ")]

    def texts(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """The sentences, with a space between tokens."""
        return tuple(" ".join(record.tokens) for record in self._part(task, split))

    def labels(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """The tags of all tokens; none of training sentences that are unlabelled."""
        return tuple(tag for record in self._part(task, split) for tag in record.labels or ())

    def _part(self, task: str, split: SplitName) -> list[Record]:
        return self._records[known_task(task, self.everything)][split]

    def encode(self, task: str) -> NDArray[np.float32] | None:
        """Hashed n-grams of the training sentences."""
        return ngram_matrix(self.texts(task))


def _tags(record: Record) -> tuple[str, ...]:
    assert isinstance(record.labels, tuple), "a tagging reader gives a tag per token"
    return record.labels
