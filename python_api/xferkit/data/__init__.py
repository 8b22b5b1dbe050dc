"""Data sets as plain typed records; nothing here knows a model, a loss or a trainer."""

from xferkit.data.cldr import CLASSES, NameData, Names, load_names
from xferkit.data.panels import (
    CAPITALISING,
    ENGLISH_PANEL,
    LATIN_POOL,
    capitalised_share,
    capitalises,
    same_convention_sources,
    sources_for,
)

__all__ = [
    "CAPITALISING",
    "CLASSES",
    "ENGLISH_PANEL",
    "LATIN_POOL",
    "NameData",
    "Names",
    "capitalised_share",
    "capitalises",
    "load_names",
    "same_convention_sources",
    "sources_for",
]
