"""A trained model with everything it needs to label text, as an object and as a folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from xferkit.checkpoints import open_folder, write_folder
from xferkit.data.records import Record
from xferkit.data.seeding import seeded
from xferkit.methods import ClassifierMethod, ClassifierSpec, build_method, method_config
from xferkit.models import OpsName
from xferkit.models.encoders import EncoderConfig, make_encoder
from xferkit.runs.coding import Coder
from xferkit.runs.environment import versions
from xferkit.runs.predicting import predict_numbers
from xferkit.runs.schema import build, flatten, nested, options_of, plain

__all__ = ["MODEL_KIND", "SCHEMA", "Blueprint", "Pipeline", "Prediction"]

#: Number of the form of config.json; a greater one is refused.
SCHEMA = 1
MODEL_KIND = "model"
_CONFIG, _VOCABULARIES, _WEIGHTS = "config.json", "vocabularies.json", "model.safetensors"

#: Texts that are read before the first of them is answered, so that those of like length go together.
_CHUNK = 2048
#: Distinct words after which a lexicon begins anew, so that text without end takes no memory without end.
_MOST_TYPES = 50_000


@dataclass(frozen=True)
class Blueprint:
    """Everything that decides a model's form, so that it can be built again before its weights are loaded.

    Attributes:
        method: name of the method.
        options: its settings.
        encoder: the encoder's settings.
        sources: the languages with labels, in the order of their numbers.
        target: the language without labels, or None.
        ops: ``"fused"`` or ``"reference"``.
    """

    method: str
    options: Any
    encoder: EncoderConfig
    sources: tuple[str, ...]
    target: str | None = None
    ops: OpsName = "fused"

    def build(
        self, coder: Coder, vectors: Tensor | None = None, target_inputs: Any = None
    ) -> ClassifierMethod:
        """A new method ready to train, drawn from torch's generator.

        Args:
            coder: vocabularies and labels.
            vectors: given word vectors.
            target_inputs: unlabelled texts of the target, for methods that look at them.

        Raises:
            ValueError: settings that do not go together.
        """
        spec = ClassifierSpec(
            make_encoder=lambda: make_encoder(
                self.encoder, coder.num_words, len(coder.chars), vectors, ops=self.ops
            ),
            num_classes=len(coder.labels),
            num_sources=len(self.sources),
            target_inputs=target_inputs,
            dropout=getattr(self.options, "dropout", 0.5),
            learning_rate=getattr(self.options, "learning_rate", 1e-3),
            weight_decay=getattr(self.options, "weight_decay", 1e-8),
            ops=self.ops,
            tagging=coder.task == "tagging",
            source_names=self.sources,
        )
        return build_method(self.method, spec, self.options)

    def to_json(self) -> dict[str, Any]:
        """As plain values, for :meth:`from_json`."""
        return {
            "method": self.method,
            "options": plain(self.options),
            "encoder": plain(self.encoder),
            "sources": list(self.sources),
            "target": self.target,
            "ops": self.ops,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Blueprint:
        """The blueprint that :meth:`to_json` wrote.

        Raises:
            ValueError: when it is not one; `where` names the file.
        """
        forms: dict[str, tuple[type, str]] = {
            "method": (str, "a name"),
            "options": (dict, "a mapping"),
            "encoder": (dict, "a mapping"),
            "sources": (list, "a list"),
        }
        for name, (form, word) in forms.items():
            if not isinstance(data.get(name), form):
                raise ValueError(f"{where}: {name} is {data.get(name)!r}; expected {word}")
        if data.get("ops") not in ("fused", "reference"):
            raise ValueError(f"{where}: ops is {data.get('ops')!r}; expected 'fused' or 'reference'")
        if not data["sources"] or not all(isinstance(name, str) for name in data["sources"]):
            raise ValueError(f"{where}: sources is {data['sources']!r}; expected a list of languages")
        target = data.get("target")
        if not (target is None or isinstance(target, str)):
            raise ValueError(f"{where}: target is {target!r}; expected a language or null")
        kind = method_config(data["method"])
        options: Any = build(kind, flatten(nested(data["options"]), options_of(kind), f"{where}: options"))
        encoder = flatten(nested(data["encoder"]), options_of(EncoderConfig), f"{where}: encoder")
        return cls(
            data["method"],
            options,
            build(EncoderConfig, encoder),
            tuple(data["sources"]),
            target,
            data["ops"],
        )


@dataclass(frozen=True)
class Prediction:
    """The answer for one text.

    Attributes:
        record: the text.
        labels: a tag for each word, or the class of the text.
        probability: of the class; None for tags.
    """

    record: Record
    labels: tuple[str, ...] | str
    probability: float | None = None


@dataclass
class Pipeline:
    """A trained model that labels text.

        import xferkit

        pipeline = xferkit.Pipeline.from_pretrained("run/seed-1/model")
        for answer in pipeline.predict(["Dos palabras", "y otras tres más"]):
            print(answer.labels)

    Attributes:
        blueprint: the model's form.
        coder: vocabularies and labels.
        method: the trained method.
        facts: what is known of its training, as plain values.
    """

    blueprint: Blueprint
    coder: Coder
    method: ClassifierMethod
    facts: dict[str, Any] = field(default_factory=dict)

    def predict(
        self,
        texts: Iterable[Record | str | Sequence[str]],
        *,
        language: str | None = None,
        batch_size: int = 64,
    ) -> Iterator[Prediction]:
        """Answers in the order of the texts, in memory that does not grow with their number.

        Args:
            texts: records, texts (split at white space when tagging), or lists of words.
            language: whose texts these are; None: the target's. A source language is answered as a source.
            batch_size: texts at once at most.

        Raises:
            ValueError: an empty text; a language that the model has no words of (where each has its own).
        """
        source = self.source_number(language)
        name = language or self.blueprint.target or ""
        records = (_record(text, self.coder.task) for text in texts)
        lexicon = self.coder.lexicon(name)
        names = self.coder.labels.names
        while chunk := list(islice(records, _CHUNK)):
            if len(lexicon) > _MOST_TYPES:
                lexicon = self.coder.lexicon(name)
            inputs, _ = self.coder.encode(chunk, lexicon, path="texts")
            tagging = self.coder.task == "tagging"
            found = predict_numbers(
                self.method, inputs, tagging=tagging, source=source, batch_size=batch_size
            )
            if found.probabilities is None:
                for record, row in zip(chunk, found.rows(), strict=True):
                    yield Prediction(record, tuple(names[number] for number in row))
                continue
            for record, number, sure in zip(
                chunk, found.flat.tolist(), found.probabilities.tolist(), strict=True
            ):
                yield Prediction(record, names[number], sure)

    def source_number(self, language: str | None) -> int | None:
        """The number of a source language; None for the target and for languages the model never saw.

        Raises:
            ValueError: words are told apart by language, and those of `language` are not known.
        """
        sources = self.blueprint.sources
        known = (*sources, *([self.blueprint.target] if self.blueprint.target else []))
        if self.coder.by_language and (language or self.blueprint.target) not in known:
            raise ValueError(
                f"this model has word vectors for {', '.join(known)}; expected one of them, got {language!r}"
            )
        return sources.index(language) if language in sources else None

    # On the disk

    def save_pretrained(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write the model: config.json, vocabularies.json, model.safetensors and a manifest of checksums.

        The folder is whole or not there, whatever happens meanwhile. With `overwrite` a model that is there is
        replaced in one step; a folder that holds anything else never is.

        Raises:
            CheckpointError: the folder is there, or cannot be written.
        """
        weights = {name: value.detach().cpu() for name, value in self.method.module.state_dict().items()}
        config = {"schema": SCHEMA, **self.blueprint.to_json(), "facts": self.facts, "versions": versions()}
        files: dict[str, Any] = {
            _CONFIG: json.dumps(config, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
            _VOCABULARIES: json.dumps(self.coder.to_json(), ensure_ascii=False) + "\n",
            _WEIGHTS: weights,
        }
        write_folder(Path(folder), files, kind=MODEL_KIND, replace=overwrite)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> Pipeline:
        """The model that :meth:`save_pretrained` wrote, on the CPU, every byte compared with its checksum.

        Its answers are the same to the bit on the same machine.

        Raises:
            ValueError: no model, a damaged one (the file is named), one of a newer version, or one of a method
                that is not registered.
        """
        path = Path(folder)
        if not path.is_dir():
            raise ValueError(
                f"{path} is no folder; expected one that holds a model, such as run/seed-1/model"
            )
        checked = open_folder(path, kind=MODEL_KIND)
        config = checked.json(_CONFIG)
        where = str(path / _CONFIG)
        schema = config.get("schema") if isinstance(config, Mapping) else None
        if type(schema) is not int or schema < 1:
            raise ValueError(f"{where}: schema is {schema!r}; expected a number from 1 to {SCHEMA}")
        if schema > SCHEMA:
            raise ValueError(
                f"{where} has schema {schema}, and this version reads up to {SCHEMA}; use a newer one"
            )
        blueprint = Blueprint.from_json(config, where)
        coder = Coder.from_json(checked.json(_VOCABULARIES))
        weights = checked.tensors(_WEIGHTS)
        with seeded(0):  # what is drawn here is replaced at once
            method = blueprint.build(coder, target_inputs=_some_text(coder))
        _load(method, weights, path / _WEIGHTS)
        method.module.eval()
        facts = config.get("facts")
        return cls(blueprint, coder, method, dict(facts) if isinstance(facts, Mapping) else {})


def _record(text: Record | str | Sequence[str], task: str) -> Record:
    if isinstance(text, Record):
        return text
    if isinstance(text, str):
        return Record(tuple(text.split()), None, 0) if task == "tagging" else Record((), None, 0, text)
    words = tuple(text)
    return Record(words, None, 0) if task == "tagging" else Record((), None, 0, " ".join(words))


def _some_text(coder: Coder) -> Any:
    """A text for methods that ask for texts of the target when they are built; loaded weights replace all it does."""
    texts, _ = coder.encode([Record(("a",), None, 0, "a")], coder.lexicon())
    return texts


def _load(method: ClassifierMethod, weights: Mapping[str, Tensor], path: Path) -> None:
    state = method.module.state_dict()
    lacking, unknown = sorted(set(state) - set(weights)), sorted(set(weights) - set(state))
    if lacking or unknown:
        parts = [f"lacks {', '.join(lacking[:3])}"] if lacking else []
        parts += [f"holds {', '.join(unknown[:3])}, which the method has not"] if unknown else []
        raise ValueError(f"{path} {' and '.join(parts)}; expected the weights of the method in {_CONFIG}")
    for name, value in state.items():
        if weights[name].shape != value.shape:
            raise ValueError(
                f"{path}: {name} has shape {list(weights[name].shape)}; expected {list(value.shape)}"
            )
    method.module.load_state_dict(dict(weights))
