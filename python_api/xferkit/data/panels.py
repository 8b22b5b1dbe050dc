"""Which languages teach which: the demo's source panels and the orthographic conventions behind its result.

The convention is taken from the orthographies themselves, never from the target's data: German capitalises
every noun; Dutch, English, Indonesian and Turkish capitalise the names of languages, and CLDR's tables for
these five capitalise scripts and currencies as well. The other languages of the panels write names of
languages and scripts in lower case. Currency names differ within that second group (Finnish, Estonian and
Portuguese capitalise them in CLDR, Danish partly), which :func:`capitalised_share` measures and the report
shows.
"""

from __future__ import annotations

from collections.abc import Iterable

from xferkit.data.cldr import Names

__all__ = [
    "CAPITALISING",
    "ENGLISH_PANEL",
    "LATIN_POOL",
    "capitalised_share",
    "capitalises",
    "same_convention_sources",
    "sources_for",
]

#: Languages of the panels that capitalise the names of languages, scripts and currencies.
CAPITALISING: frozenset[str] = frozenset({"nl", "de", "en", "id", "tr"})

#: Fourteen languages in Latin script; the pool of sources is this less the target.
LATIN_POOL: tuple[str, ...] = (
    "en", "nl", "de", "id", "tr", "sv", "da", "fr", "it", "es", "pl", "hr", "fi", "et",
)  # fmt: skip

#: Fourteen sources for English, of which two share its convention.
ENGLISH_PANEL: tuple[str, ...] = (
    "nl", "de", "pt", "es", "fi", "ro", "fr", "it", "da", "et", "pl", "sv", "hr", "cs",
)  # fmt: skip

_LOWER: frozenset[str] = (frozenset(LATIN_POOL) | frozenset(ENGLISH_PANEL)) - CAPITALISING


def capitalises(lang: str) -> bool:
    """Whether `lang` capitalises names of languages and scripts; ValueError when the table lacks it."""
    if lang in CAPITALISING:
        return True
    if lang in _LOWER:
        return False
    known = ", ".join(sorted(CAPITALISING | _LOWER))
    raise ValueError(f"the table of orthographic conventions holds no language {lang!r}; it holds {known}.")


def sources_for(target: str) -> tuple[str, ...]:
    """Source languages of `target`: the English panel for ``en``, else the Latin pool less the target.

    Raises:
        ValueError: `target` is not one of the panels' languages.
    """
    if target == "en":
        return ENGLISH_PANEL
    if target not in LATIN_POOL:
        raise ValueError(f"no source panel for target {target!r}; targets are {', '.join(LATIN_POOL)}.")
    return tuple(lang for lang in LATIN_POOL if lang != target)


def same_convention_sources(target: str, sources: Iterable[str] | None = None) -> tuple[str, ...]:
    """Those of `sources` (default: the target's panel) that write such names as the target does.

    This subset knows something about the target that the other methods have to find out, so what is trained
    on it is an oracle. ValueError for a language the table does not hold.
    """
    pool = sources_for(target) if sources is None else tuple(sources)
    convention = capitalises(target)
    return tuple(lang for lang in pool if capitalises(lang) == convention)


def capitalised_share(names: Names, label: int) -> float:
    """Share of the names of class `label` that begin with an upper-case letter.

    Names that begin with no letter do not count; NaN when none is left.
    """
    first = [text[0] for text, y in zip(names.texts, names.labels.tolist(), strict=True) if y == label]
    letters = [char for char in first if char.isalpha()]
    return sum(char.isupper() for char in letters) / len(letters) if letters else float("nan")
