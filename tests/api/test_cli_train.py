"""Options of ``xferkit train``: from words and YAML to settings, and what is said of those that do not exist."""

from __future__ import annotations

import pytest

pytest.importorskip("jsonargparse")

from xferkit.cli import main
from xferkit.cli.main import _parser
from xferkit.cli.options import parse_train
from xferkit.methods import man_moe_preset, method_config, method_names
from xferkit.runs import make_run_config
from xferkit.runs.config import run_options
from xferkit.runs.files import read_config


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("en.tsv", "de.tsv", "es.txt", "a=b.tsv"):
        (tmp_path / name).write_text("x\ty\n")
    return tmp_path


def config(*words: str):
    values = parse_train(words)
    assert values is not None
    return make_run_config(values)


# -- words -----------------------------------------------------------------------------------------------------


def test_words_become_settings():
    made = config(
        "man-moe", "--train", "en=en.tsv", "de=a=b.tsv", "--unlabelled", "es=es.txt", "--seeds", "3", "1",
        "--steps=7", "--select", "target_dev", "--encoder.char_widths", "2", "3", "--options.lambda1", "1e-4",
        "--trainer.clip_norm", "2", "--options.detach_gate_input", "false", "--columns.text", "0", "--out", "run",
        "--columns.label", "intent", "--vocabulary.max_size", "null",
    )  # fmt: skip
    assert made.method == "man_moe" and made.train == {"en": "en.tsv", "de": "a=b.tsv"}
    assert made.unlabelled == {"es": "es.txt"} and made.seeds == (3, 1) and made.steps == 7
    assert made.trainer.select == "target_dev" and made.trainer.clip_norm == 2.0
    assert made.encoder.char_widths == (2, 3) and made.options.lambda1 == 1e-4
    assert made.options.detach_gate_input is False and made.out == "run"
    assert made.columns.text == 0 and made.columns.label == "intent" and made.vocabulary.max_size is None


def test_defaults_are_those_of_the_dataclasses():
    assert config("man-moe") == make_run_config({"method": "man_moe"})
    assert config("--method", "pooled").method == config("pooled", "--method", "pooled").method == "pooled"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["man-mo"], "unknown method 'man-mo'; the nearest is 'man_moe'; methods are pooled"),
        (["--steps", "3"], "no method is given; methods are pooled"),
        (["man-moe", "--trainer.shedule", "x"], "unknown option --trainer.shedule; the nearest is --trainer.schedule"),
        (["man-moe", "--sede", "1"], "unknown option --sede; the nearest is --seeds"),
        (["man-moe", "--layers", "1"], "unknown option --layers; the nearest is --encoder.layers"),
        (["man-moe", "--selct", "last"], "unknown option --selct; the nearest is --select"),
        (["man-moe", "--zzzzzz", "1"], "unknown option --zzzzzz (xferkit train METHOD --help"),
        (["pooled", "--options.lambda1", "1"], "unknown option --options.lambda1"),
        (["man-moe", "--step", "1"], "unknown option --step; the nearest is --steps"),
        (["man-moe", "--steps", "many"], "--steps: expected one of a whole number, null, got many"),
        (["man-moe", "--steps", "1.5"], "--steps: expected one of a whole number, null, got 1.5"),
        (["man-moe", "--steps", "1", "2"], "unexpected argument '2' after --steps; expected one value"),
        (["man-moe", "--steps"], "--steps needs a value"),
        (["man-moe", "--seeds"], "--seeds needs a value"),
        (["man-moe", "--seeds", "1", "x"], "--seeds: expected a whole number, got x"),
        (["man-moe", "--trainer.schedule", "x"], "expected one of ['constant', 'cosine', 'linear'], got x"),
        (["man-moe", "--options.k", "none"], "--options.k: expected a whole number, got none"),
        (["man-moe", "--options.adversary", "maybe"], "--options.adversary: expected true or false, got maybe"),
        (["man-moe", "--steps", "1", "--steps", "2"], "--steps is given twice"),
        (["man-moe", "stray"], "unexpected argument 'stray'; options begin with --"),
        (["man-moe", "--train", "en=en.tsv", "en=de.tsv"], "--train: 'en' is given twice, as en.tsv and de.tsv"),
        (["man-moe", "--train", "en=none.tsv"], "--train: none.tsv (for 'en') does not exist"),
        (["man-moe", "--train", "en.tsv"], "--train: 'en.tsv' is not NAME=FILE; expected for example en=en.tsv"),
        (["man-moe", "--train", "en=en.tsv", "--train", "de=de.tsv"], "--train is given twice; expected once"),
        (["man-moe", "--config"], "--config needs a value"),
        (["man-moe", "--config", "none.yaml"], "cannot read none.yaml: No such file"),
        (["man-moe", "--method", "pooled"], "--method says 'pooled' and the first argument 'man-moe'"),
        (["man-moe", "--seeds", "1", "1"], "seeds must be different numbers"),
        (["man-moe", "--trainer.log_every", "0"], "log_every must be at least 1, got 0"),
        (["man-moe", "--options.mix", "prob", "--options.dropout", "1.5"], "dropout must be in [0, 1), got 1.5"),
        (["man-moe", "--train", "en=en.tsv"], "--out is missing"),
    ],
)  # fmt: skip
def test_bad_words_get_one_sentence_and_code_2(words, sentence, capsys, files):
    before = sorted(files.iterdir())
    assert main(["train", *words]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("xferkit train: ") and sentence in shown.err and shown.err.count("\n") == 1
    assert shown.out == "" and sorted(files.iterdir()) == before


# -- YAML ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted({*method_names()} - {"own", "same_convention"}))
def test_a_printed_config_gives_the_same_config(method, files, capsys):
    words = [
        method,
        "--train",
        "en=en.tsv",
        "--seeds",
        "1",
        "2",
        "--trainer.clip_norm",
        "1e-5",
        "--steps",
        "9",
    ]
    assert main(["train", *words, "--print_config"]) == 0
    (files / "p.yaml").write_text(capsys.readouterr().out)
    assert config("--config", "p.yaml") == config(*words)
    assert main(["train", "--config", "p.yaml", "--print_config"]) == 0
    assert capsys.readouterr().out == (files / "p.yaml").read_text()
    assert set(read_config("p.yaml")) >= {"method", "train", "encoder", "trainer", "seeds"}


def test_options_go_before_files_and_later_files_before_earlier_ones(files):
    (files / "a.yaml").write_text(
        "method: man-moe\nsteps: 1\nseeds: [4]\ntrain: {no: en.tsv}\ntrainer: {log_every: 3}\n"
    )
    (files / "b.yaml").write_text("steps: 2\ntrainer.schedule: cosine\n")
    made = config("--config", "a.yaml", "--config=b.yaml", "--seeds", "5")
    assert made.steps == 2 and made.seeds == (5,) and made.train == {"no": "en.tsv"}
    assert made.trainer.log_every == 3 and made.trainer.schedule == "cosine"
    assert config("pooled", "--config", "b.yaml").method == "pooled"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "trainer: {shedule: cosine}",
            "c.yaml: unknown key 'trainer.shedule'; the nearest is 'trainer.schedule'",
        ),
        ("stepz: 3", "c.yaml: unknown key 'stepz'; the nearest is 'steps'"),
        ("options: {lamda1: 3}", "c.yaml: unknown key 'options.lamda1'; the nearest is 'options.lambda1'"),
        ("encodr: {layers: 3}", "c.yaml: unknown key 'encodr'; the nearest is 'encoder'"),
        ("trainer: {schedule: 3}", "c.yaml: trainer.schedule is 3; expected one of constant, cosine, linear"),
        ("train: [en.tsv]", "c.yaml: train is ['en.tsv']; expected a mapping with texts for keys"),
        ("train: {en: en.tsv, en: de.tsv}", "c.yaml:1: the key 'en' stands twice, in line 1 too"),
        ("steps: 3\nsteps: 4", "c.yaml:2: the key 'steps' stands twice"),
        ("seeds: 3", "c.yaml: seeds is 3; expected a list"),
        ("method: 3", "c.yaml: method is 3; expected the name of one"),
        ("a: !!python/name:os.system", "c.yaml:1: the tag"),
    ],
)
def test_bad_yaml_gets_one_sentence_and_code_2(text, sentence, files, capsys):
    (files / "c.yaml").write_text(text)
    assert main(["train", "man-moe", "--config", "c.yaml", "--out", "run"]) == 2
    shown = capsys.readouterr()
    assert sentence in shown.err and shown.err.count("\n") == 1 and not (files / "run").exists()


# -- help ------------------------------------------------------------------------------------------------------


def test_the_help_of_a_method_lists_every_setting_with_its_words(capsys):
    assert main(["train", "man-moe", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for key, option in run_options("man-moe").items():
        if key != "method":
            assert f"--{key} " in shown, key
            assert option.help, f"{key} has no words in its docstring"
            assert " ".join(option.help.split())[:40] in shown, key


def test_the_short_help_names_only_what_there_is():
    _, commands = _parser()
    known = {f"--{key}" for key in run_options("man-moe")} | {
        "--config",
        "--print_config",
        "--help",
        "--select",
    }
    short = {name for action in commands["train"]._actions for name in action.option_strings if name != "-h"}
    assert {"--train", "--unlabelled", "--dev", "--test", "--seeds", "--steps", "--out"} <= short <= known


# -- configurations that come with the package -----------------------------------------------------------------


def repository_configs():
    from pathlib import Path

    folder = Path(__file__).resolve().parents[2] / "configs" / "train"
    return sorted(folder.glob("*.yaml"))


@pytest.mark.parametrize("path", repository_configs(), ids=lambda path: path.stem)
def test_configs_of_the_repository_are_whole(path):
    made = config("--config", str(path))
    assert isinstance(made.options, method_config(made.method))
    assert path.read_text().startswith("#"), "a config says what it is"


def test_every_method_has_a_config():
    names = {path.stem.replace("-", "_") for path in repository_configs()}
    assert set(method_names()) - {"own", "same_convention"} <= names, "those two are of the demo alone"


@pytest.mark.parametrize(("stem", "kind", "task"), [
    ("man-moe-paper-ner", "paper", "ner"), ("man-moe-paper-slots", "paper", "slots"),
    ("man-moe-paper-amazon", "paper", "amazon"), ("man-moe-code-ner", "code", "ner"),
    ("man-moe-code-slots", "code", "slots"), ("man-moe-code-amazon", "code", "amazon"),
])  # fmt: skip
def test_presets_are_there_as_configs(stem, kind, task):
    from dataclasses import replace

    from xferkit.methods.presets import encoder_preset

    path = next(path for path in repository_configs() if path.stem == stem)
    made = config("--config", str(path))
    assert made.options == man_moe_preset(kind, task)
    assert replace(made.encoder, vectors=None) == encoder_preset(kind, task)
