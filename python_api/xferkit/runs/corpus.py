"""The files of a run, read: vocabularies from the training texts, then every text as numbers, row by row.

Files are gone through twice at most and held as four bytes a word; what is held out of a training file as
development data counts into no vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from xferkit.data.errors import DataError
from xferkit.data.lexicon import Lexicon
from xferkit.data.ragged import RaggedLabels, Texts
from xferkit.data.records import Record, RecordReader
from xferkit.data.streams import DomainData
from xferkit.data.tokenization import TokenizerVocabulary
from xferkit.data.vocabulary import CharVocabulary, LabelSet, WordVocabulary
from xferkit.models.encoders import EncoderConfig
from xferkit.runs.coding import MAX_CLASSIFIED_TOKENS, Coder
from xferkit.runs.config import RunConfig
from xferkit.runs.inputs import Inputs, Watch
from xferkit.runs.sampling import HeldOut, labels_where, texts_where
from xferkit.runs.scoring import odd_tags
from xferkit.runs.vectors import read_vectors

__all__ = ["EvalSet", "RunCorpus", "read_corpus"]

Say = Callable[[str], None]

_PIECES = 8000


@dataclass(frozen=True)
class EvalSet:
    """Labelled texts that a model is scored on.

    Attributes:
        texts: the texts.
        labels: their labels, by the numbers of `names`.
        names: the model's labels, and behind them those that it does not know.
    """

    texts: Texts
    labels: Tensor | RaggedLabels
    names: tuple[str, ...]


@dataclass(frozen=True)
class RunCorpus:
    """Everything a training reads.

    Attributes:
        coder: vocabularies and labels.
        sources: languages with labels, in the order of their numbers.
        target: the language without labels, or None.
        labelled: training texts of the sources.
        unlabelled: texts of the sources and of the target; empty without a target.
        dev: by language.
        test: by language.
        encoder: the encoder's settings, with the size of given vectors.
        vectors: ``float[num_words, dim]``, given word vectors, or None.
        facts: counts of rows and words, for run.json.
    """

    coder: Coder
    sources: tuple[str, ...]
    target: str | None
    labelled: tuple[DomainData, ...]
    unlabelled: tuple[DomainData, ...]
    dev: dict[str, EvalSet]
    test: dict[str, EvalSet]
    encoder: EncoderConfig
    vectors: Tensor | None
    facts: dict[str, Any]

    @property
    def mean_source_size(self) -> float:
        """Training texts of a source, on average."""
        return sum(len(domain.inputs) for domain in self.labelled) / len(self.labelled)


def read_corpus(
    config: RunConfig, inputs: Inputs, say: Say, warn: Say, watch: Watch | None = None
) -> RunCorpus:
    """Read all files of a run.

    Args:
        config: the settings.
        inputs: the files.
        say: told what was read.
        warn: told what was left out.
        watch: gives a file's reading something to tell its progress to.

    Raises:
        DataError: a file is not as expected (file and line), a source has too few rows, or dev and test have
            labels that the training files lack.
    """
    return _Reading(config, inputs, say, warn, watch).corpus()


class _Reading:
    def __init__(self, config: RunConfig, inputs: Inputs, say: Say, warn: Say, watch: Watch | None) -> None:
        self.config, self.inputs, self.say, self.warn, self.watch = config, inputs, say, warn, watch
        self.facts: dict[str, Any] = {"task": inputs.task, "target": inputs.target, "rows": {}}
        self.held_out = {
            lang: HeldOut(config.dev_share, config.dev_seed, lang)
            for lang in inputs.sources
            if lang not in inputs.dev
        }

    def corpus(self) -> RunCorpus:
        inputs = self.inputs
        counts, labels = self._count()
        coder, encoder, vectors = self._coder(counts, labels)
        shared = coder.lexicon()

        def lexicon(language: str) -> Lexicon:
            return coder.lexicon(language) if coder.by_language else shared

        labelled, dev = [], {}
        for lang in inputs.sources:
            data, held = self._train_file(lang, coder, lexicon(lang))
            labelled.append(data)
            if held is not None:
                dev[lang] = held
        names = coder.labels.names
        for lang in inputs.dev:
            dev[lang] = self._eval_file("dev", lang, coder, lexicon(lang))
        test = {lang: self._eval_file("test", lang, coder, lexicon(lang)) for lang in inputs.test}
        order = [lang for lang in (*inputs.sources, *inputs.dev) if lang in dev]
        self.facts |= {
            "labels": list(names),
            "sources": list(inputs.sources),
            "words": coder.num_words,
            "characters": len(coder.chars),
        }
        return RunCorpus(
            coder=coder,
            sources=inputs.sources,
            target=inputs.target,
            labelled=tuple(labelled),
            unlabelled=self._unlabelled(labelled, coder, lexicon),
            dev={lang: dev[lang] for lang in dict.fromkeys(order)},
            test=test,
            encoder=encoder,
            vectors=vectors,
            facts=self.facts,
        )

    # First pass: what there is

    def _count(self) -> tuple[Counter[str], LabelSet]:
        counts: Counter[str] = Counter()
        labels: set[str] = set()
        for lang in self.inputs.sources:
            reader = self._reader("train", lang)
            held = self.held_out.get(lang, ())
            for row, record in enumerate(reader):
                tags = record.labels
                if isinstance(tags, str):
                    labels.add(tags)
                elif tags is not None:
                    labels.update(tags)
                if row not in held:
                    counts.update(record.words())
            self._count_rows("train", lang, reader)
        if len(labels) < 2:
            only = f"only {next(iter(labels))!r}" if labels else "none"
            raise ValueError(
                f"the training files hold {only} for labels; expected at least two different ones"
            )
        self._warn_of_odd_tags(labels)
        return counts, LabelSet(sorted(labels))

    def _warn_of_odd_tags(self, labels: set[str]) -> None:
        if self.inputs.task != "tagging" or not any(name.startswith("B-") for name in labels):
            return
        odd = odd_tags(labels)
        if odd is None:
            self.warn(
                "tags begin with B-, but too many are none of O, B-x and I-x: words are scored, not spans."
            )
        elif odd:
            shown = ", ".join(odd[:5])
            self.warn(f"tags that are none of O, B-x and I-x ({shown}) count as O where spans are scored.")

    def _coder(self, counts: Counter[str], labels: LabelSet) -> tuple[Coder, EncoderConfig, Tensor | None]:
        config, tagging = self.config, self.inputs.task == "tagging"
        vocabulary, encoder = config.vocabulary, config.encoder
        coder = Coder(
            task=self.inputs.task,
            reads="words",
            labels=labels,
            chars=CharVocabulary.from_counts(counts, min_count=vocabulary.min_char_count),
            words=WordVocabulary((), lowercase=vocabulary.lowercase),
            max_chars=vocabulary.max_chars,
            max_tokens=config.max_tokens or MAX_CLASSIFIED_TOKENS,
        )
        if encoder.kind != "words":
            if tagging:
                raise ValueError(
                    f"encoder.kind is {encoder.kind!r}, which reads the characters of a text; expected 'words' for "
                    "tagging"
                )
            return replace(coder, reads="characters"), encoder, None
        if vocabulary.pieces != "none":
            if tagging:
                raise ValueError(
                    f"vocabulary.pieces is {vocabulary.pieces!r}; expected 'none' for tagging, where words have labels"
                )
            texts = (r.text or " ".join(r.words()) for lang in self.inputs.sources for r in self._kept(lang))
            size = vocabulary.max_size or _PIECES
            pieces = TokenizerVocabulary.train(
                texts, size=size, model=vocabulary.pieces, lowercase=vocabulary.lowercase
            )
            # Pieces have no spelling of their own.
            return replace(coder, reads="pieces", pieces=pieces), replace(encoder, char_dim=0), None
        if not (self.inputs.vectors or encoder.vectors):
            words = WordVocabulary.from_counts(
                counts,
                min_count=vocabulary.min_count,
                max_size=vocabulary.max_size,
                lowercase=vocabulary.lowercase,
            )
            return replace(coder, words=words), encoder, None
        found = read_vectors(config, self.inputs, self._words_by_language(), self.say, self.watch)
        coder = replace(coder, words=found.words, by_language=bool(self.inputs.vectors))
        given = encoder.vectors or "a file for each language"
        return coder, replace(encoder, word_dim=found.table.shape[1], vectors=given), found.table

    def _words_by_language(self) -> dict[str, set[str]]:
        """The words of all texts of the run; only those get a vector, so that models stay small."""
        words: dict[str, set[str]] = {}
        for role in ("train", "unlabelled", "dev", "test"):
            for lang in getattr(self.inputs, role):
                seen = words.setdefault(lang, set())
                for record in self._reader(role, lang, labelled=False):
                    seen.update(record.words())
        return words

    # Second pass: numbers

    def _kept(self, lang: str) -> Iterator[Record]:
        held = self.held_out.get(lang, ())
        return (r for row, r in enumerate(self._reader("train", lang)) if row not in held)

    def _train_file(self, lang: str, coder: Coder, lexicon: Lexicon) -> tuple[DomainData, EvalSet | None]:
        path = self.inputs.train[lang]
        texts, labels = coder.encode(self._reader("train", lang), lexicon, labels=coder.labels, path=path)
        assert labels is not None
        rows = self.facts["rows"][f"train/{lang}"]
        if lang not in self.held_out:
            rows["used"] = len(texts)
            return DomainData(lang, texts, labels), None
        chosen = self.held_out[lang]
        held = torch.tensor([row in chosen for row in range(len(texts))], dtype=torch.bool)
        rows["used"], rows["held_out"] = int((~held).sum()), int(held.sum())
        share = f"{100 * self.config.dev_share:g} %"
        if not rows["used"] or not rows["held_out"]:
            raise ValueError(
                f"{path}: {len(texts)} rows are too few to hold out {share} of them; expected --dev {lang}=FILE, or "
                "another --dev_share"
            )
        self.say(
            f"{path}: {rows['used']:,} rows to train on; {rows['held_out']:,} ({share}, seed {self.config.dev_seed}) "
            f"are held out as development data of {lang}."
        )
        data = DomainData(lang, texts_where(texts, ~held), labels_where(labels, ~held))
        return data, EvalSet(texts_where(texts, held), labels_where(labels, held), coder.labels.names)

    def _eval_file(self, role: str, lang: str, coder: Coder, lexicon: Lexicon) -> EvalSet:
        path = getattr(self.inputs, role)[lang]
        names = coder.labels
        allowed: tuple[str, ...] | None = names.names
        if self.config.unknown_labels == "count":
            more: dict[str, None] = {}
            for record in self._reader(role, lang):
                tags = (record.labels,) if isinstance(record.labels, str) else record.labels or ()
                more |= dict.fromkeys(tag for tag in tags if tag not in names)
            if more:
                shown = ", ".join(list(more)[:5])
                self.warn(
                    f"{path}: {len(more)} labels are in no training file ({shown}); they count as missed."
                )
            names, allowed = LabelSet([*names.names, *more]), None
        reader = self._reader(role, lang, allowed_labels=allowed)
        try:
            texts, labels = coder.encode(reader, lexicon, labels=names, path=path)
        except DataError as error:
            if error.reason != "unknown label":
                raise
            # Whoever has such a test file has another way out than to change it.
            hint = "; --unknown_labels count takes it for one that is never predicted"
            raise DataError(f"{error}{hint}", path=error.path, line=error.line, reason=error.reason) from None
        self._count_rows(role, lang, reader)
        if labels is None or not len(texts):
            raise ValueError(f"{path}: holds no labelled rows; expected some to score on")
        return EvalSet(texts, labels, names.names)

    def _unlabelled(
        self, labelled: Iterable[DomainData], coder: Coder, lexicon: Callable[[str], Lexicon]
    ) -> tuple[DomainData, ...]:
        """The sources' texts, with those of --unlabelled behind them, and the target's."""
        inputs = self.inputs
        domains = []
        for data in labelled:
            texts = data.inputs
            if data.name in inputs.unlabelled:
                from xferkit.data.joining import join_texts

                texts = join_texts([texts, self._text_file(data.name, coder, lexicon(data.name))])
            domains.append(DomainData(data.name, texts))
        if inputs.target is None:
            return ()
        domains.append(
            DomainData(inputs.target, self._text_file(inputs.target, coder, lexicon(inputs.target)))
        )
        return tuple(domains)

    def _text_file(self, lang: str, coder: Coder, lexicon: Lexicon) -> Texts:
        reader = self._reader("unlabelled", lang, labelled=False)
        texts, _ = coder.encode(reader, lexicon, path=self.inputs.unlabelled[lang])
        self._count_rows("unlabelled", lang, reader)
        if not len(texts):
            raise ValueError(f"{self.inputs.unlabelled[lang]}: holds no text; expected text of {lang}")
        self.say(f"{self.inputs.unlabelled[lang]}: {len(texts):,} texts of {lang} without labels.")
        return texts

    # Reading

    def _reader(
        self,
        role: str,
        lang: str,
        *,
        labelled: bool = True,
        allowed_labels: tuple[str, ...] | None = None,
    ) -> RecordReader:
        return self.inputs.reader(
            role,
            lang,
            self.config,
            labelled=labelled,
            allowed_labels=allowed_labels,
            watch=self.watch,
        )

    def _count_rows(self, role: str, lang: str, reader: RecordReader) -> None:
        report = reader.report
        entry: dict[str, Any] = {"in": report.rows_in, "out": report.rows_out, "rejected": report.rejected}
        if report.rejected:
            entry["reasons"] = dict(report.reasons)
            self.warn(f"{report.summary()}.")
        self.facts["rows"][f"{role}/{lang}"] = entry
