"""Small files of made-up languages for the tests of runs, and a model that learns them in seconds."""

from __future__ import annotations

import random
from pathlib import Path

from xferkit.runs import RunResult, make_run_config, run_training

#: Settings of a model that is small and learns fast; `values` for make_run_config, or options of the command.
SMALL = {
    "encoder.feature_dim": 16,
    "encoder.layers": 1,
    "encoder.dropout": 0.1,
    "encoder.word_dim": 8,
    "encoder.char_dim": 6,
    "encoder.char_channels": 8,
    "encoder.char_out": 8,
    "vocabulary.min_count": 1,
    "vocabulary.min_char_count": 1,
}
SMALL_MAN_MOE = {
    **SMALL,
    "options.private_dim": 8,
    "options.expert_hidden": 8,
    "options.predictor_hidden": 16,
    "options.discriminator_hidden": 16,
    "options.dropout": 0.1,
    "options.learning_rate": 0.01,
    "options.batch_size": 8,
}

_WORDS = {
    "pos": ["good", "great", "fine"],
    "neg": ["bad", "poor", "awful"],
    "other": ["blue", "red", "green"],
}
_TAGS = {"DET": ["the", "a"], "NOUN": ["dog", "cat", "tree"], "VERB": ["runs", "eats"]}
_SPANS = {
    "O": ["in", "sees", "and"],
    "PER": ["Anna", "Bert", "Carla Maria"],
    "LOC": ["Rome", "Oslo", "New York"],
}


def options(values: dict[str, object]) -> list[str]:
    """The same settings as words of a command."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def write_texts(path: Path, rows: int, seed: int, *, labelled: bool = True) -> Path:
    """``text<TAB>label`` lines, or lines of text."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            label = rng.choice(list(_WORDS))
            text = " ".join(rng.choice([*_WORDS[label], "the"]) for _ in range(rng.randint(2, 5)))
            text += f" {rng.choice(_WORDS[label])}"
            file.write(f"{text}\t{label}\n" if labelled else f"{text}\n")
    return path


def write_tags(path: Path, rows: int, seed: int) -> Path:
    """CoNLL lines ``word<TAB>tag`` with word classes."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            for tag in ["DET", "NOUN", "VERB", "DET", "NOUN"][: rng.randint(2, 5)]:
                file.write(f"{rng.choice(_TAGS[tag])}\t{tag}\n")
            file.write("\n")
    return path


def write_spans(path: Path, rows: int, seed: int) -> Path:
    """CoNLL lines with BIO tags of two types."""
    rng = random.Random(seed)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            for kind in [rng.choice(list(_SPANS)) for _ in range(rng.randint(2, 5))]:
                for number, word in enumerate(rng.choice(_SPANS[kind]).split()):
                    tag = "O" if kind == "O" else f"{'BI'[min(number, 1)]}-{kind}"
                    file.write(f"{word}\t{tag}\n")
            file.write("\n")
    return path


def make_texts(folder: Path) -> Path:
    """Classified texts of three languages, a test file and unlabelled text of the third."""
    for number, lang in enumerate(("en", "de", "es")):
        write_texts(folder / f"{lang}.tsv", 120, number)
    write_texts(folder / "es_test.tsv", 60, 7)
    write_texts(folder / "es.txt", 80, 8, labelled=False)
    return folder


def make_tags(folder: Path) -> Path:
    """Sentences with word classes and with spans of three languages."""
    for number, lang in enumerate(("en", "de", "es")):
        write_tags(folder / f"{lang}.conll", 60, number)
        write_spans(folder / f"{lang}.bio", 60, number)
    return folder


def values(folder: Path, out: Path | None, **more: object) -> dict[str, object]:
    """Settings of a small MAN-MoE on :func:`make_texts`."""
    return {
        "method": "man-moe",
        "train": {"en": f"{folder}/en.tsv", "de": f"{folder}/de.tsv"},
        "unlabelled": {"es": f"{folder}/es.txt"},
        "test": {"es": f"{folder}/es_test.tsv"},
        "out": None if out is None else str(out),
        "steps": 40,
        "trainer.progress": "silent",
        **SMALL_MAN_MOE,
        **more,
    }


def run(
    *args: object, said: list[str] | None = None, warned: list[str] | None = None, **more: object
) -> RunResult:
    """Train with :func:`values`; what is said and warned of is added to the lists."""
    said = [] if said is None else said
    warned = [] if warned is None else warned
    return run_training(make_run_config(values(*args, **more)), say=said.append, warn=warned.append)
