"""What describes a multilingual table: the files of the repository, and one sentence for what is wrong in a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from xferkit.cli import main
from xferkit.cli.options import parse_train
from xferkit.experiments.multilingual.config import MultilingualConfig, build_options
from xferkit.experiments.tables.kinds import open_table
from xferkit.methods.surgery import FixedTargetConfig, GradVacConfig
from xferkit.runs import make_run_config

FOLDER = Path(__file__).parents[2] / "configs" / "surgery"
ROWS = sorted(path.stem for path in FOLDER.glob("*.yaml") if path.stem != "ud_pos")
GOOD = """
experiment: multilingual
languages:
  en: {family: Germanic}
  nl: {family: Germanic, low: true, max_train: 10}
methods:
  joint_sum: {method: joint_sum}
  gradvac: {method: gradvac, options: {apply_to: [nl], beta: 0.1}}
settings: {dropout: 0.2, hidden_dim: 0}
"""


def written(tmp_path, text):
    path = tmp_path / "table.yaml"
    path.write_text(text)
    return path


def test_the_table_of_the_repository():
    config = open_table(FOLDER / "ud_pos.yaml").config
    assert len(config.languages) >= 8 and len(config.seeds) >= 3 and 11 not in config.seeds
    assert all(language.why for language in config.languages.values())
    assert len(config.low) >= 2 and len(config.high) >= 2
    families = [language.family for language in config.languages.values()]
    sisters = [name for name, language in config.languages.items() if families.count(language.family) > 1]
    assert set(config.low) & set(sisters) and set(config.low) - set(sisters), "with and without sisters"
    assert config.settings.sampler == "temperature" and config.settings.temperature == 5.0
    assert {row.file.removesuffix(".yaml") for row in config.methods.values() if row.file} == set(ROWS)
    assert {"joint_sum", "gradnorm", "mgda", "pcgrad", "gradvac_fixed", "gradvac_model"} <= set(ROWS)
    assert tuple(config.methods["gradvac_lrl"].options["apply_to"]) == config.low
    assert config.methods["gradvac_layer"].options["grouping"] == "layer"
    assert config.methods["gradvac_model"].options["grouping"] == "model"
    assert config.alone and all(row.label and row.note for row in config.methods.values())


@pytest.mark.parametrize("name", ROWS)
def test_each_method_has_a_configuration_of_its_own_to_train_with(name):
    values = parse_train(["--config", str(FOLDER / f"{name}.yaml"), "--out", "run"])
    config = make_run_config(values)
    row = open_table(FOLDER / "ud_pos.yaml").config.methods[name]
    assert config.method == row.method and config.sampler == "temperature" and config.temperature == 5.0
    for key, value in row.options.items():
        found = getattr(config.options, key)
        assert (list(found) if isinstance(found, tuple) else found) == value


def test_rows_are_methods_with_options_or_files(tmp_path):
    (tmp_path / "fixed.yaml").write_text(
        "method: gradvac-fixed\noptions: {target: 0.5}\nsampler: temperature\n"
    )
    text = GOOD.replace("settings:", "  fixed: fixed.yaml\nsettings:")
    config = open_table(written(tmp_path, text)).config
    assert (config.low, config.high, config.baseline) == (("nl",), ("en",), "joint_sum")
    assert config.related("en", "nl") and config.methods["fixed"].method == "gradvac_fixed"
    fixed = build_options("gradvac_fixed", config.methods["fixed"].options, config.settings)
    assert isinstance(fixed, FixedTargetConfig) and fixed.target == 0.5
    assert (fixed.dropout, fixed.hidden_dim) == (0.2, 0), "the table's settings, not the method's defaults"
    vaccine = build_options("gradvac", config.methods["gradvac"].options, config.settings)
    assert isinstance(vaccine, GradVacConfig) and vaccine.apply_to == ("nl",) and vaccine.beta == 0.1


def test_a_table_without_experiment_is_of_transfer(tmp_path):
    table = open_table(written(tmp_path, "panels: {A: {sources: [en], targets: {nl: related}}}"))
    assert not isinstance(table.config, MultilingualConfig)


BAD = {
    "experiment": (
        GOOD.replace("multilingual", "multilngual"),
        "'multilngual'; the nearest is 'multilingual'",
    ),
    "experiment type": (
        GOOD.replace("multilingual", "[x]"),
        "expected one of tagging_transfer, multilingual",
    ),
    "key": (GOOD.replace("settings", "setings"), "unknown key 'setings'; the nearest is 'settings'"),
    "nested key": (GOOD.replace("dropout", "dropuot"), "unknown key 'settings.dropuot'; the nearest is"),
    "field": (
        GOOD.replace("low:", "lwo:"),
        "languages.nl: unknown key 'lwo'; the nearest is 'low'",
    ),
    "family": (GOOD.replace("en: {family: Germanic}", "en: {}"), "languages.en: expected a family"),
    "no mapping": (GOOD.replace("en: {family: Germanic}", "en: Germanic"), "languages.en is 'Germanic'"),
    "list": (GOOD.replace("languages:", "languages: [en]\nx:"), "unknown key 'x'"),
    "languages": ("experiment: multilingual\nlanguages: [en]", "languages must be a mapping"),
    "one language": (GOOD.replace("  nl: {family: Germanic, low: true, max_train: 10}\n", ""), "two or more"),
    "method": (GOOD.replace("method: gradvac,", "method: gradvak,"), "'gradvak'; the nearest is 'gradvac'"),
    "option": (
        GOOD.replace("beta", "btea"),
        "methods.gradvac: options: unknown key 'btea'; the nearest is 'beta'",
    ),
    "value": (GOOD.replace("beta: 0.1", "beta: 2"), "beta must be in [0, 1], got 2"),
    "type": (GOOD.replace("beta: 0.1", "beta: much"), "beta is 'much'; expected a number"),
    "apply_to": (
        GOOD.replace("[nl]", "[nll]"),
        "apply_to names 'nll', which languages lacks; the nearest is 'nl'",
    ),
    "common": (
        GOOD.replace("beta: 0.1", "dropout: 0.5"),
        "methods.gradvac: options.dropout is 0.5; expected 0.2, settings.dropout",
    ),
    "baseline": (
        GOOD + "baseline: joint_some",
        "baseline is 'joint_some', which methods lacks; the nearest is 'joint_sum'",
    ),
    "reserved": (
        GOOD.replace("  gradvac:", "  alone:"),
        "methods has 'alone', which the table adds by itself",
    ),
    "seeds": (GOOD + "seeds: [1, 1]", "seeds must be different"),
    "select": (
        GOOD.replace("hidden_dim: 0", "trainer: {select: source_dev}"),
        "settings.trainer.select is 'source_dev'; expected 'last'",
    ),
    "temperature": (GOOD.replace("hidden_dim: 0", "temperature: 0"), "temperature above 0"),
    "steps": (GOOD.replace("hidden_dim: 0", "steps: 0"), "settings.steps must be at least 1, got 0"),
    "neither": (GOOD.replace("method: joint_sum", "label: Sum"), "neither file nor method; expected one"),
    "both": (
        GOOD.replace("{method: joint_sum}", "{method: joint_sum, file: x.yaml}"),
        "both file and method",
    ),
    "row": (
        GOOD.replace("{method: joint_sum}", "[joint_sum]"),
        "methods.joint_sum is ['joint_sum']; expected a file",
    ),
    "no file": (GOOD.replace("{method: joint_sum}", "absent.yaml"), "absent.yaml: No such file"),
    "one method": ("method: gradvac\noptions: {beta: 0.1}", "unknown key 'method'; the nearest is 'methods'"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_configuration_gets_one_sentence_and_exit_code_2(name, tmp_path, capsys):
    text, sentence = BAD[name]
    words = ["table", str(written(tmp_path, text)), "--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.count("\n") == 1 and str(tmp_path) in said
    assert not (tmp_path / "out").exists()


FILES = {
    "other setting": (
        "method: pcgrad\ntemperature: 2",
        "temperature is 2.0, but settings.temperature is 5.0 in",
    ),
    "foreign setting": ("method: pcgrad\nbucket: 4", "bucket is 4, but"),
    "no method": ("options: {beta: 0.1}", "method is None; expected the name of one"),
    "unknown method": ("method: pcgrat", "unknown method 'pcgrat'; the nearest is 'pcgrad'"),
    "unknown option": ("method: pcgrad\noptions: {gruoping: layer}", "'options.gruoping'; the nearest is"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_row_s_file_is_held_against_the_table(name, tmp_path):
    content, sentence = FILES[name]
    (tmp_path / "row.yaml").write_text(content)
    path = written(tmp_path, GOOD.replace("settings:", "  row: {file: row.yaml}\nsettings:"))
    with pytest.raises(ValueError) as error:
        open_table(path)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_a_file_has_its_options_itself(tmp_path):
    (tmp_path / "row.yaml").write_text("method: pcgrad")
    text = GOOD.replace("settings:", "  row: {file: row.yaml, options: {seed: 1}}\nsettings:")
    with pytest.raises(ValueError, match="has a file and options; expected the options in the file"):
        open_table(written(tmp_path, text))


def test_missing_data_are_named(tmp_path, capsys):
    path = written(tmp_path, GOOD.replace("hidden_dim: 0", "files: {train: {default: x.tsv}}"))
    assert main(["table", str(path), "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "files.dev names no file for 'en'" in capsys.readouterr().err


def test_configurations_are_compared_by_value(tmp_path):
    config = open_table(written(tmp_path, GOOD)).config
    assert replace(config, seeds=(1, 2, 3)) == config
