"""Problems that take seconds: made-up texts, names, tagged sentences and images, and every kind of problem on them."""

from __future__ import annotations

import gzip
import json
import random
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from xferkit.data.cldr import NameData, Names
from xferkit.diagnosis import (
    DigitProblem,
    NameProblem,
    TagProblem,
    TextProblem,
    TrainedProblem,
    images,
    names,
    tagging,
    texts,
)
from xferkit.models import EncoderConfig

STEPS, BATCH = 5, 4
SMALL = {"steps": STEPS, "batch_size": BATCH, "observed": 6}
KINDS = ("texts", "names", "tagging", "digits")
TARGETS = {"texts": "books", "names": "xx", "tagging": "xx", "digits": "usps"}


def sentences(seed: str, count: int) -> list[tuple[str, str]]:
    """Texts of six words whose class is that of most of their words."""
    rng = random.Random(seed)
    good, bad = [f"good{i}" for i in range(9)], [f"bad{i}" for i in range(9)]
    rows = []
    for _ in range(count):
        label = rng.choice(["pos", "neg"])
        words = [*rng.sample(good if label == "pos" else bad, 4), f"{seed[0]}{rng.randrange(20)}", "the"]
        rows.append((" ".join(words), label))
    return rows


def rows(name: str, count: int = 150) -> str:
    """The texts as lines of a TSV file without a header."""
    return "".join(f"{text}\t{label}\n" for text, label in sentences(name, count))


GOOD = {"books.tsv": rows("books"), "dvd.tsv": rows("dvd")}


def write(folder: Path, files: Mapping[str, str]) -> None:
    """Files by their names."""
    for name, content in files.items():
        (folder / name).write_text(content)


def write_texts(folder: Path) -> None:
    """Three tasks in three forms: one file with a header, one without, and a pair of compressed JSON lines."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in sentences("books", 130))]
    (folder / "books.tsv").write_text("\n".join(lines) + "\n")
    (folder / "dvd.csv").write_text("".join(f"{text},{label}\n" for text, label in sentences("dvd", 60)))
    for split, count in (("train", 130), ("test", 20)):
        with gzip.open(folder / f"pets-{split}.jsonl.gz", "wt") as file:
            for text, label in sentences(f"pets{split}", count):
                file.write(json.dumps({"text": text, "label": label}) + "\n")
    (folder / "README.md").write_text("no task\n")


def toy_names() -> NameData:
    """Three languages with letters of their own beside shared ones, concepts split as CLDR's are."""
    parts: dict[str, dict[str, Names]] = {"train": {}, "test": {}}
    for lang, letters in (("xx", "abcä"), ("yy", "abcd"), ("zz", "abxß")):
        rng = random.Random(lang)
        rows: dict[str, list[tuple[str, int, str]]] = {"train": [], "test": []}
        for number in range(90):
            key, label = f"k:{number}", number % 3
            text = "pqr"[label] + "".join(rng.choice(letters) for _ in range(4))
            rows["test" if zlib.crc32(key.encode()) % 5 == 0 else "train"].append((text, label, key))
        for part, own in rows.items():
            words, labels, keys = zip(*own, strict=True)
            parts[part][lang] = Names(words, np.array(labels, dtype=np.int64), keys)
    return NameData(("xx", "yy", "zz"), ("p", "q", "r"), False, parts["train"], parts["test"])


def write_tagged(folder: Path) -> None:
    """Sentences of three languages: words that begin with n are nouns, the others verbs."""
    for lang in ("xx", "yy", "zz"):
        rng = random.Random(lang)
        (folder / "ud" / lang).mkdir(parents=True)
        for split, count in (("train", 20), ("dev", 6), ("test", 6)):
            with gzip.open(folder / "ud" / lang / f"{split}.tsv.gz", "wt") as file:
                for _ in range(count):
                    for _ in range(rng.randint(2, 5)):
                        kind = rng.choice("nv")
                        tag = {"n": "NOUN", "v": "VERB"}[kind]
                        file.write(f"{kind}{lang[0]}{rng.randrange(6)}\t{tag}\n")
                    file.write("\n")


def write_digits(folder: Path) -> None:
    """Images of three classes, of 28 and of 16 pixels: where the bright block is."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, side in (("mnist", 28), ("usps", 16)):
        rng = np.random.default_rng(side)
        arrays = {}
        for split, count in (("train", 100), ("test", 30)):
            y = rng.integers(0, 3, count)
            x = rng.integers(0, 60, (count, side, side), dtype=np.uint8)
            for row, label in enumerate(y):
                begin = side // 4 + label * (side // 6)
                x[row, begin : begin + side // 6, side // 3 : -side // 3] = 250
            arrays |= {f"x_{split}": x, f"y_{split}": y}
        np.savez(folder / f"{name}.npz", **arrays)


def make(kind: str, folder: Path, **changes: object) -> TrainedProblem:
    """A problem of that kind, small; its target is that of ``TARGETS`` and has labels."""
    data = folder / kind
    if kind == "names":
        recipe = replace(names.RECIPE, **{**SMALL, **changes})
        return NameProblem("xx", ("yy", "zz"), labelled=True, data=toy_names(), recipe=recipe)
    if not data.exists():
        data.mkdir(parents=True)
        {"texts": write_texts, "tagging": write_tagged, "digits": write_digits}[kind](data)
    if kind == "texts":
        return TextProblem(data, "books", recipe=replace(texts.RECIPE, **{**SMALL, **changes}))
    if kind == "tagging":
        encoder = EncoderConfig(
            feature_dim=8, layers=1, word_dim=6, char_dim=4, char_flag_dim=2, char_channels=4, char_widths=(2,),
            char_out=6, dropout=0.1,
        )  # fmt: skip
        settings = replace(tagging.TAGGER, encoder=encoder, min_count=1, min_char_count=1)
        recipe = replace(tagging.RECIPE, **{**SMALL, **changes})
        return TagProblem(data, "xx", ("yy", "zz"), settings=settings, recipe=recipe)
    recipe = replace(images.RECIPE, **{**SMALL, **changes})
    return DigitProblem(data, "usps", per_class=4, label_ratio=0.5, recipe=recipe)
