"""What describes a table: YAML files with one sentence for what is wrong, and the parts of data files they name."""

from __future__ import annotations

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from xferkit.experiments.tables.config import load_table_config
from xferkit.experiments.tagging_data import TaggingFiles, read_split

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "man_moe").glob("*.yaml"))
FILES = TaggingFiles(
    train={"default": "{lang}-train.tsv.gz"},
    dev={"default": "{lang}-dev.tsv.gz"},
    test={"default": "{lang}-test.tsv.gz"},
)


@pytest.fixture
def data(tmp_path):
    for lang in ("en", "fr", "nl"):
        for split in ("train", "dev", "test"):
            with gzip.open(tmp_path / f"{lang}-{split}.tsv.gz", "wt", encoding="utf-8") as file:
                file.write(f"{lang}\tO\n\n" * 3)
    return tmp_path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_tables_of_the_repository(path):
    config = load_table_config(path)
    assert len(config.panels) >= 2 and len(config.seeds) >= 3
    assert {"pooled", "man", "man_moe"} <= set(config.methods)
    for panel in config.panels.values():
        assert set(panel.targets.values()) == {"related", "distant"} and panel.why
        assert all(target in panel.sisters for target, kind in panel.targets.items() if kind == "related")
    assert config.settings.trainer.select == "source_dev"
    assert config.settings.ops == "fused" and config.settings.probe_steps > 0


def test_there_are_three_tables():
    assert {path.stem for path in CONFIGS} == {"ud_pos", "wikiann_ner", "xsid_slots"}
    scores = {path.stem: load_table_config(path).settings.score for path in CONFIGS}
    assert scores == {"ud_pos": "accuracy", "wikiann_ner": "span_f1", "xsid_slots": "span_f1"}


def test_unlabelled_texts_come_without_their_tags(data):
    records = read_split(FILES, data, "unlabelled", "nl", labelled=False)
    assert [record.labels for record in records] == [None] * 3
    assert [record.labels for record in read_split(FILES, data, "test", "nl")] == [("O",)] * 3


def test_part_of_a_file(data):
    files = replace(FILES, train={"default": "{lang}-train.tsv.gz[1:]", "nl": "nl-train.tsv.gz[:1]"})
    assert len(read_split(files, data, "train", "en")) == 2
    assert len(read_split(files, data, "train", "nl")) == 1
    assert len(read_split(replace(files, max_train=1), data, "train", "en")) == 1
    with gzip.open(data / "fr-train.tsv.gz", "wt", encoding="utf-8") as file:
        file.write("".join(f"{number}\tO\n\n" for number in range(7)))
    for rows, numbers in (("[1%3]", "14"), ("[!1%3]", "02356"), ("[5:]", "56"), ("", "0123456")):
        files = replace(FILES, train={"default": f"{{lang}}-train.tsv.gz{rows}"})
        assert "".join(record.tokens[0] for record in read_split(files, data, "train", "fr")) == numbers


BAD = {
    "unknown key": ("setings: {}", "unknown key 'setings'; the nearest is 'settings'"),
    "nested key": ("settings: {encoder: {layrs: 1}}", "'settings.encoder.layrs'; the nearest is"),
    "panel key": ("panels: {A: {source: [en]}}", "panel 'A': unknown key 'source'; the nearest is 'sources'"),
    "no panels": ("title: x", "panels is empty"),
    "method": (
        "panels: {A: {sources: [en], targets: {nl: related}}}\nmethods: [pooled, man_mo]",
        "unknown method 'man_mo'; the nearest is 'man_moe'",
    ),
    "no baseline": ("panels: {A: {sources: [en], targets: {nl: related}}}\nmethods: [man]", "lacks 'pooled'"),
    "both": (
        "panels: {A: {sources: [en, nl], targets: {nl: related}}}",
        "nl stands among the sources and the targets",
    ),
    "kind": (
        "panels: {A: {sources: [en], targets: {nl: near}}}",
        "nl is 'near'; expected 'related' or 'distant'",
    ),
    "sisters": (
        "panels: {A: {sources: [en], targets: {nl: related}, sisters: {nl: [de]}}}",
        "sisters of nl are ['de']; expected sources",
    ),
    "twice": (
        "panels: {A: {sources: [en], targets: {nl: related}, more_methods: [man]}}",
        "has man twice",
    ),
    "seeds": (
        "panels: {A: {sources: [en], targets: {nl: related}}}\nseeds: [1, 1]",
        "seeds must be different",
    ),
    "type": ("settings: {steps: many}", "settings.steps is 'many'; expected a whole number"),
    "range": (
        "panels: {A: {sources: [en], targets: {nl: related}}}\nsettings: {steps: 0}",
        "at least 1, got 0",
    ),
    "list": ("panels: [A]", "panels must be a mapping"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_gets_one_sentence_with_file_and_key(name, tmp_path):
    text, sentence = BAD[name]
    path = tmp_path / "table.yaml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_table_config(path)
    assert sentence in str(error.value) and str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)
