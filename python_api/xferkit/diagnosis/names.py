"""CLDR names: from which languages can the kind of thing that a name names be learned for another language?"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from xferkit.data.cldr import NameData, Names, load_names
from xferkit.data.panels import sources_for
from xferkit.diagnosis.batches import KnownTexts
from xferkit.diagnosis.problem import Metric, Part, SplitName
from xferkit.diagnosis.recipe import Recipe, scaled
from xferkit.diagnosis.texts import ngram_matrix
from xferkit.diagnosis.training import TaskData, TrainedProblem, known_task
from xferkit.experiments.name_transfer import NAME_CONFIG, NameSettings, name_encoder
from xferkit.models import CharVocabulary, Encoder, TokenSequences

__all__ = ["NameProblem"]

_DEV_FOLDS, _DEV_FOLD = 10, 1

RECIPE = Recipe(
    steps=400,
    batch_size=208,
    learning_rate=3e-3,
    dropout=0.3,
    sizes={
        "hidden_dim": 0,
        **{
            name: getattr(NAME_CONFIG, name)
            for name in (
                "lambda1", "lambda2", "k", "private_dim", "expert_hidden", "predictor_hidden",
                "discriminator_hidden", "detach_gate_input",
            )
        },
    },
)  # fmt: skip


class NameProblem(TrainedProblem):
    """The demo's data and model. Without labels of the target, 208 names a step (``total_steps``) are its settings.

    Concepts are split alike in all languages: those of the demo's test part stay the test part; of the others, those
    with ``crc32("class:key") % 10 == 1`` are the development part.

    Args:
        target: language in question.
        sources: the other languages; None: the target's panel.
        labelled: the target's labels may be trained on.
        data: names of all languages; None: read from Babel.
        settings: the model's sizes.
        lowercase: drop the case of letters, as a control.
        recipe: how a language alone is trained.
        metric: the score: accuracy, or the unweighted mean over classes of F1.

    Raises:
        ValueError: the target is among the sources, or a language that is not known.
    """

    unit = "language"

    def __init__(
        self,
        target: str,
        sources: Sequence[str] | None = None,
        *,
        labelled: bool = False,
        data: NameData | None = None,
        settings: NameSettings | None = None,
        lowercase: bool = False,
        recipe: Recipe = RECIPE,
        metric: Metric = "accuracy",
    ) -> None:
        languages = tuple(sources_for(target) if sources is None else sources)
        if target in languages:
            raise ValueError(f"the target {target!r} is among the sources; expected other languages")
        super().__init__("names", target, (target, *languages) if labelled else languages, recipe, metric)
        self.sized, self.lowercase = settings or NameSettings(), lowercase
        data = data or load_names((target, *languages))
        self.classes = data.classes
        self._names: dict[str, dict[SplitName, Names]] = {
            lang: _split(data.train(lang), data.test(lang)) for lang in self.everything
        }
        self._vocabulary = CharVocabulary(
            (text for lang in self.tasks for text in self._names[lang]["train"].texts),
            min_count=self.sized.min_count,
        )
        self._encoded: dict[str, dict[SplitName, TokenSequences]] = {
            lang: {
                split: self._vocabulary.encode(
                    names.texts, lowercase=lowercase, max_length=self.sized.max_length
                )
                for split, names in parts.items()
            }
            for lang, parts in self._names.items()
        }

    @property
    def _num_classes(self) -> int:
        return len(self.classes)

    def _data(self, tasks: tuple[str, ...]) -> dict[str, TaskData]:
        counts = torch.zeros(len(self._vocabulary), dtype=torch.int64)
        for lang in tasks:
            counts += torch.bincount(self._encoded[lang]["train"].ids.flatten(), minlength=len(counts))
        table = KnownTexts.table(counts, self.sized.min_count)

        def part(lang: str, split: SplitName) -> tuple[KnownTexts, torch.Tensor]:
            labels = torch.tensor(self._names[lang][split].labels)
            return KnownTexts(self._encoded[lang][split], table), labels

        found = {}
        for lang in self.everything:
            train = part(lang, "train")
            parts: dict[Part, tuple[KnownTexts, torch.Tensor]] = {
                "dev": part(lang, "dev"),
                "test": part(lang, "test"),
            }
            found[lang] = TaskData(parts, train if lang in self.tasks else None, train[0])
        return found

    def _encoder(self, width: float) -> Encoder:
        sized = replace(
            self.sized,
            feature_dim=scaled(self.sized.feature_dim, width, 2),
            channels=scaled(self.sized.channels, width),
            dropout=self.recipe.dropout,
        )
        return name_encoder(sized, len(self._vocabulary))

    def settings(self) -> dict[str, object]:
        """Plain values that decide a run beside the data."""
        names = ("encoder", "feature_dim", "channels", "width", "max_length", "min_count")
        sizes = {f"encoder_{name}": getattr(self.sized, name) for name in names}
        return {**super().settings(), **sizes, "lowercase": self.lowercase}

    def sizes(self) -> dict[str, dict[str, int]]:
        """Names by language and split."""
        return {
            lang: {
                ("unlabelled" if split == "train" and lang not in self.tasks else split): len(names)
                for split, names in parts.items()
            }
            for lang, parts in self._names.items()
        }

    def describe(self) -> str:
        """The problem in a few sentences."""
        labels = "with its labels" if self.target in self.tasks else "without its labels"
        return (
            f"CLDR names of {len(self.everything)} languages in {len(self.classes)} classes, scored on {self.target} "
            f"{labels}. Characters {'without' if self.lowercase else 'with'} their case through one convolution. "
            f"{self.trained()}"
        )

    def fingerprint(self) -> str:
        """SHA-256 over every language, split, label and name."""
        digest = hashlib.sha256()
        for lang in sorted(self._names):
            for split, names in self._names[lang].items():
                for text, label in zip(names.texts, names.labels.tolist(), strict=True):
                    digest.update(f"{lang}\t{split}\t{label}\t{text}\n".encode())
        return digest.hexdigest()

    unknown_token = 1

    def tokenizer(self, text: str) -> list[int]:
        """Numbers of a name's characters when all tasks are trained on, ``unknown_token`` for those too rare."""
        return self._vocabulary.numbers(text, lowercase=self.lowercase, max_length=None)[0]

    def texts(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """The names."""
        return self._names[known_task(task, self.everything)][split].texts

    def labels(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """Their classes; none of training names that are unlabelled."""
        names = self._names[known_task(task, self.everything)][split]
        if split == "train" and task not in self.tasks:
            return ()
        return tuple(self.classes[number] for number in names.labels.tolist())

    def encode(self, task: str) -> NDArray[np.float32] | None:
        """Hashed n-grams of the training names, with their case unless it is dropped."""
        return ngram_matrix(self.texts(task), lowercase=self.lowercase)


def _split(train: Names, test: Names) -> dict[SplitName, Names]:
    if not train.keys:
        raise ValueError("NameProblem: expected names with their concepts (keys), by which they are split")
    dev = np.array([zlib.crc32(key.encode()) % _DEV_FOLDS == _DEV_FOLD for key in train.keys], dtype=bool)

    def where(mask: NDArray[np.bool_]) -> Names:
        rows = np.flatnonzero(mask).tolist()
        return Names(
            tuple(train.texts[i] for i in rows), train.labels[mask], tuple(train.keys[i] for i in rows)
        )

    return {"train": where(~dev), "dev": where(dev), "test": test}
