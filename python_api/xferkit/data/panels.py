"""Which languages teach which: the demo's source panels and the orthographic conventions behind its result.

The convention is taken from the orthographies themselves, never from the target's data, and stands here with
its rule for each language: German capitalises every noun; Dutch, English, Indonesian, Malay, Swahili, Turkish
and Vietnamese capitalise the names of languages, and CLDR's tables for these eight capitalise scripts and
currencies as well. The other languages write names of languages in lower case. In CLDR's tables the names of
scripts follow that rule too, but for Hungarian, which begins them with a capital. Currency names differ within
that second group (Finnish, Estonian, Latvian, Lithuanian and Portuguese capitalise them in CLDR, Danish and
Hungarian partly), which :func:`capitalised_share` measures and the report shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from xferkit.data.cldr import Names

__all__ = [
    "CAPITALISING",
    "CONVENTIONS",
    "ENGLISH_PANEL",
    "LATIN_POOL",
    "SIMILARITY_PANEL",
    "capitalised_share",
    "capitalises",
    "same_convention_sources",
    "sources_for",
]

_CAPITALISING: dict[str, str] = {
    "de": "every noun begins with a capital letter",
    "nl": "what derives from the name of a country or a people keeps its capital (Nederlands)",
    "en": "names of languages are proper names (English)",
    "id": "names of peoples and languages take a capital (bahasa Indonesia)",
    "ms": "names of peoples and languages take a capital (bahasa Melayu)",
    "sw": "names of languages are proper names, written with their class prefix (Kiswahili)",
    "tr": "names of languages are proper names (Türkçe)",
    "vi": "the name of the people in the name of its language takes a capital (tiếng Việt)",
}
_LOWER: dict[str, str] = {
    "sv": "names of languages are common nouns (svenska)",
    "da": "names of languages are common nouns (dansk)",
    "fr": "names of languages are common nouns (le français)",
    "it": "names of languages are common nouns (l'italiano)",
    "es": "names of languages are common nouns (el español)",
    "pt": "names of languages are common nouns (o português)",
    "ro": "names of languages are common nouns (româna)",
    "pl": "names of languages are adjectives, which take no capital (polski)",
    "hr": "names of languages are adjectives, which take no capital (hrvatski)",
    "cs": "what derives from the name of a people by a suffix takes no capital (čeština)",
    "fi": "names of languages are common nouns (suomi), countries proper names (Suomi)",
    "et": "names of languages take no capital (eesti keel)",
    "hu": "names of peoples and languages are common nouns (magyar)",
    "lt": "names of languages are genitives of peoples, which take no capital (lietuvių kalba)",
    "lv": "names of languages are genitives of peoples, which take no capital (latviešu valoda)",
}

#: The rule of each language's orthography for the names of languages.
CONVENTIONS: Mapping[str, str] = MappingProxyType({**_CAPITALISING, **_LOWER})

#: Languages of the panels that capitalise the names of languages, scripts and currencies.
CAPITALISING: frozenset[str] = frozenset(_CAPITALISING)

#: Fourteen languages in Latin script; the pool of sources is this less the target.
LATIN_POOL: tuple[str, ...] = (
    "en", "nl", "de", "id", "tr", "sv", "da", "fr", "it", "es", "pl", "hr", "fi", "et",
)  # fmt: skip

#: Fourteen sources for English, of which two share its convention.
ENGLISH_PANEL: tuple[str, ...] = (
    "nl", "de", "pt", "es", "fi", "ro", "fr", "it", "da", "et", "pl", "sv", "hr", "cs",
)  # fmt: skip

#: The 23 languages whose gradients are compared with one another. All are in Latin script: Bulgarian, Russian,
#: Ukrainian, Belarusian and Greek share no letter with the rest, so that script would stand beside convention.
#: Norwegian Bokmål is left out because it is spelled almost as Danish is, and would count it twice.
SIMILARITY_PANEL: tuple[str, ...] = (*LATIN_POOL, "pt", "ro", "cs", "hu", "lt", "lv", "vi", "sw", "ms")


def capitalises(lang: str) -> bool:
    """Whether `lang` capitalises names of languages and scripts; ValueError when the table lacks it."""
    if lang in CAPITALISING:
        return True
    if lang in _LOWER:
        return False
    known = ", ".join(sorted(CONVENTIONS))
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
