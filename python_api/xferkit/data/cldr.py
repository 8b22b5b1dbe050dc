"""CLDR names: real, labelled, parallel names in a hundred languages, read from the Babel package.

The task is to tell from the spelling of a name what kind of thing it names. Six classes, each one table of
the Unicode Common Locale Data Repository (CLDR), read through Babel's public ``Locale``:

=========  =============================  ============================  ==================================
class      Babel table                    key (the concept)             name
=========  =============================  ============================  ==================================
territory  ``Locale.territories``         region code, ``"DE"``         ``"Alemania"``
language   ``Locale.languages``           language code, ``"de"``       ``"alemán"``
script     ``Locale.scripts``             script code, ``"Latn"``       ``"latino"``
currency   ``Locale.currencies``          ISO 4217 code, ``"EUR"``      ``"euro"``
unit       ``Locale.unit_display_names``  unit id, ``"length-meter"``   long name, ``"metros"``; the short one
                                                                        where CLDR lets the long inherit it
city       ``Locale.time_zones``          zone id, ``"Asia/Tokyo"``     exemplar city the locale spells
                                                                        out, ``"Tokio"``; not of ``Etc/...``
=========  =============================  ============================  ==================================

A name is dropped when it is empty, holds no letter (the unit "°"), equals its key (nobody translated it) or
repeats another name of the same language and class (the first key in code-point order stays). Everything
else is kept as it is written: case, marks, brackets, years.

Split: a concept is a pair ``class:key``. It belongs to the test part of **every** language when
``crc32("class:key" in UTF-8) % 5 == 0`` and to the training part of every language otherwise, so no concept
of a target language's test part was ever seen in another language.

The order of names is fixed: by class in the order of :data:`CLASSES`, then by key in code-point order.

CLDR is published under the Unicode licence; Babel ships it, and this package holds none of it.
"""

from __future__ import annotations

import difflib
import hashlib
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["CLASSES", "NameData", "Names", "is_test_concept", "load_names"]

#: The classes in the order of their label numbers 0..5.
CLASSES: tuple[str, ...] = ("territory", "language", "script", "currency", "unit", "city")

_TEST_FOLDS = 5


@dataclass(frozen=True)
class Names:
    """Names of one language and one part of the split.

    Attributes:
        texts: the names, ``n`` strings.
        labels: int64 ``[n]``, the index into :data:`CLASSES` of each name.
        keys: the concept of each name as ``"class:key"``, the same in every language; empty when unknown.
    """

    texts: tuple[str, ...]
    labels: NDArray[np.int64]
    keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the shapes."""
        if self.labels.ndim != 1 or len(self.labels) != len(self.texts):
            raise ValueError(
                f"Names: labels must be one int64 per text, shape [{len(self.texts)}], "
                f"got shape {list(self.labels.shape)}"
            )
        if self.keys and len(self.keys) != len(self.texts):
            raise ValueError(
                f"Names: keys must be empty or one per text ({len(self.texts)}), got {len(self.keys)}"
            )

    def __len__(self) -> int:
        """Number of names."""
        return len(self.texts)


@dataclass(frozen=True)
class NameData:
    """Training and test names of several languages over the same classes."""

    languages: tuple[str, ...]
    classes: tuple[str, ...]
    lowercase: bool
    _train: Mapping[str, Names] = field(repr=False)
    _test: Mapping[str, Names] = field(repr=False)

    def train(self, lang: str) -> Names:
        """Names of `lang` whose concept is in the training part; ValueError when `lang` was not loaded."""
        return self._part(self._train, lang)

    def test(self, lang: str) -> Names:
        """Names of `lang` whose concept is in the test part; ValueError when `lang` was not loaded."""
        return self._part(self._test, lang)

    def _part(self, part: Mapping[str, Names], lang: str) -> Names:
        if lang not in part:
            raise ValueError(f"NameData holds no language {lang!r}; it holds {', '.join(self.languages)}.")
        return part[lang]

    def fingerprint(self) -> str:
        """SHA-256 over every language, concept, label and name: equal data, equal fingerprint."""
        digest = hashlib.sha256()
        for lang in self.languages:
            for part_name, part in (("train", self._train), ("test", self._test)):
                names = part[lang]
                keys = names.keys or ("",) * len(names)
                for key, label, text in zip(keys, names.labels.tolist(), names.texts, strict=True):
                    digest.update(f"{lang}\t{part_name}\t{key}\t{label}\t{text}\n".encode())
        return digest.hexdigest()


def is_test_concept(class_name: str, key: str) -> bool:
    """Whether the concept is in the test part: crc32 of ``class_name:key`` in UTF-8 is 0 modulo 5."""
    return zlib.crc32(f"{class_name}:{key}".encode()) % _TEST_FOLDS == 0


def load_names(languages: Iterable[str], *, lowercase: bool = False) -> NameData:
    """Read the names of `languages` from Babel.

    Args:
        languages: CLDR locale names such as ``"es"`` or ``"pt_PT"``, each once.
        lowercase: turn every name into lower case (after the cleaning, so that the same concepts remain): the
            control that takes the orthographic convention away.

    Returns:
        Names of every language, in the order given, about 1,700 a language.

    Raises:
        ValueError: Babel is not installed, no language was given, one was given twice, or Babel does not
            know it.
    """
    if isinstance(languages, str):
        raise ValueError(
            f"load_names: languages must be a list of locale names, got the string {languages!r}; "
            f"write [{languages!r}]."
        )
    languages = tuple(languages)
    if not languages:
        raise ValueError("load_names: at least one language is needed, got none.")
    repeated = sorted({lang for lang in languages if languages.count(lang) > 1})
    if repeated:
        raise ValueError(
            f"load_names: each language may be given once, got {', '.join(repeated)} repeatedly."
        )

    train: dict[str, Names] = {}
    test: dict[str, Names] = {}
    for lang in languages:
        rows = _rows(_locale(lang))
        if lowercase:
            rows = [(key, label, text.lower(), in_test) for key, label, text, in_test in rows]
        train[lang] = _names(row for row in rows if not row[3])
        test[lang] = _names(row for row in rows if row[3])
    return NameData(languages=languages, classes=CLASSES, lowercase=lowercase, _train=train, _test=test)


def _locale(lang: str) -> Any:
    try:
        from babel import Locale, UnknownLocaleError, localedata
    except ImportError as error:
        raise ValueError(
            "The CLDR names are read from the Babel package, which is not installed; "
            "run: pip install 'xfercore[demo]'"
        ) from error
    try:
        return Locale.parse(lang)
    except (UnknownLocaleError, ValueError, TypeError) as error:
        known = sorted(localedata.locale_identifiers())
        # Someone may have typed "spanish" for "es"; codes are too short for the spelling alone to tell.
        by_name = {name.lower(): code for code, name in Locale("en").languages.items() if code in known}
        near = [
            by_name[name] for name in difflib.get_close_matches(str(lang).lower(), by_name, n=2, cutoff=0.8)
        ]
        near += [
            code for code in difflib.get_close_matches(str(lang), known, n=3, cutoff=0.5) if code not in near
        ]
        raise ValueError(
            f"Babel knows no locale {lang!r}; near names are {', '.join(near[:3] or ['en', 'es', 'de'])} "
            f"({len(known)} are known, `pybabel --list-locales` prints them)."
        ) from error


def _unit_names(table: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    # CLDR stores a long name only where it differs from the short one.
    return {key: forms.get("long") or forms.get("short") or "" for key, forms in table.items()}


def _city_names(table: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    # "Etc/Unknown" is the placeholder "Unknown City", not a city.
    return {key: zone["city"] for key, zone in table.items() if "city" in zone and not key.startswith("Etc/")}


_TABLES: dict[str, Callable[[Any], Mapping[str, str]]] = {
    "territory": lambda locale: locale.territories,
    "language": lambda locale: locale.languages,
    "script": lambda locale: locale.scripts,
    "currency": lambda locale: locale.currencies,
    "unit": lambda locale: _unit_names(locale.unit_display_names),
    "city": lambda locale: _city_names(locale.time_zones),
}

_Row = tuple[str, int, str, bool]


def _rows(locale: Any) -> list[_Row]:
    """Cleaned rows (concept, label, name, in the test part) of one locale, in their fixed order."""
    rows: list[_Row] = []
    for label, class_name in enumerate(CLASSES):
        table = _TABLES[class_name](locale)
        seen: set[str] = set()
        for key in sorted(table):
            text = str(table[key] or "").strip()
            if text == key or text in seen or not any(map(str.isalpha, text)):
                continue
            seen.add(text)
            rows.append((f"{class_name}:{key}", label, text, is_test_concept(class_name, key)))
    return rows


def _names(rows: Iterable[_Row]) -> Names:
    kept = tuple(rows)
    return Names(
        texts=tuple(text for _, _, text, _ in kept),
        labels=np.array([label for _, label, _, _ in kept], dtype=np.int64),
        keys=tuple(key for key, _, _, _ in kept),
    )
