"""The study of sharing: what its runs measure, what is made of them, and that it goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_sharing import SITES, config_of, records_of, write_texts

from xferkit.cli.main import main
from xferkit.data.masked_text import MaskedTextStream
from xferkit.experiments.sharing import training
from xferkit.experiments.sharing.cell import SharingCell, SharingOutcome
from xferkit.experiments.sharing.claims import check_claims
from xferkit.experiments.sharing.config import SharingConfig, sharing_config
from xferkit.experiments.sharing.corpora import half_of, read_corpora
from xferkit.experiments.sharing.gradients import GradientObserver, flat_scores, group_of, look_of
from xferkit.experiments.sharing.study import run_sharing_study
from xferkit.experiments.sharing.summary import summarise
from xferkit.methods.masked_lm import MaskedLmMethod
from xferkit.runs.errors import RunError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    write_texts(folder)
    return folder


# ---- texts


def test_held_out_texts_are_no_training_texts_and_halves_share_none(data: Path) -> None:
    corpora = read_corpora(config_of(), data)
    for train, dev in zip(corpora.train, corpora.dev, strict=True):
        rows = [_rows(corpus) for corpus in (train, dev, half_of(train, "A"), half_of(train, "B"))]
        assert rows[1] and not set(rows[0]) & set(rows[1])
        assert not set(rows[2]) & set(rows[3]) and sorted(rows[2] + rows[3]) == sorted(rows[0])
        assert abs(len(rows[2]) - len(rows[3])) <= 1
    assert corpora.vocab_size <= 61 and set(corpora.unigram()) == {"xx", "yy"}


def _rows(corpus: Any) -> list[tuple[int, ...]]:
    bounds = corpus.texts.offsets.tolist()
    flat = corpus.texts.flat.tolist()
    return [tuple(flat[a:b]) for a, b in itertools.pairwise(bounds)]


def test_too_few_texts_is_a_sentence(data: Path) -> None:
    (data / "yy.txt").write_text("u v\nw x\n")
    with pytest.raises(ValueError, match=r"languages\.yy: 2 texts.*expected at least 4"):
        read_corpora(config_of(), data)


# ---- gradients


def _observer(data: Path) -> tuple[MaskedLmMethod, GradientObserver, SharingConfig]:
    config = config_of()
    corpora = read_corpora(config, data)
    torch.manual_seed(0)
    method = MaskedLmMethod(config.settings.model.encoder(corpora.vocab_size), config.settings.lm)
    stream = MaskedTextStream(corpora.train, 4, method.masking, max_length=12, seed=1, name="gradients")
    return method, GradientObserver(method, stream, ["xx", "yy"]), config


def test_cosines_are_those_of_the_gradients_by_hand(data: Path) -> None:
    method, observer, config = _observer(data)
    within, across = observer.look()
    assert all(parameter.grad is None for parameter in method.module.parameters())
    corpora = read_corpora(config, data)
    stream = MaskedTextStream(corpora.train, 4, method.masking, max_length=12, seed=1, name="gradients")
    grads = []
    named = dict(method.model.named_parameters())
    for language in ("xx", "xx", "yy", "yy"):
        loss = method.loss_of(stream.next(language), dropout=False)
        found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        pairs = zip(named.items(), found, strict=True)
        grads.append({name: torch.zeros_like(p) if g is None else g for (name, p), g in pairs})
    assert {"whole", "embeddings", "layer 1", "layer 2", "head", "attention"} <= set(observer.groups)
    for number, group in enumerate(observer.groups):
        members = [n for n in named if group in ("whole", *group_of(n), " ".join(group_of(n)))]
        rows = torch.stack([torch.cat([g[n].flatten() for n in members]) for g in grads]).double()
        rows = rows / rows.norm(dim=1, keepdim=True)
        cosines = rows @ rows.mT
        assert within["xx"][number] == pytest.approx(float(cosines[0, 1]), abs=1e-5), group
        assert within["yy"][number] == pytest.approx(float(cosines[2, 3]), abs=1e-5), group
        assert across["xx-yy"][number] == pytest.approx(float(cosines[:2, 2:].mean()), abs=1e-5), group


def test_every_parameter_belongs_to_a_layer_and_the_layers_are_the_whole(data: Path) -> None:
    method, observer, _ = _observer(data)
    layers = {group_of(name)[0] for name, _ in method.model.named_parameters()}
    assert layers == {"embeddings", "layer 1", "layer 2", "head"} and layers < set(observer.groups)


def test_a_look_comes_back_from_the_scores_of_a_history(data: Path) -> None:
    _, observer, _ = _observer(data)
    within, across = observer.look()
    scores = flat_scores(within, across)
    assert look_of(scores, "within") == within and look_of(scores, "across") == across
    assert scores["across"] == pytest.approx(across["xx-yy"][0])


# ---- what is made of the runs


def _planted(seed: int = 0) -> dict[tuple[str, str], dict[str, list[float]]]:
    """Halves alike; languages alike in the bottom layer and in attention, and not in the top feed-forward part."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator)

    shared = {site: draw(size) for site, size in SITES.items()}
    found = {}
    for language in ("xx", "yy"):
        own = {site: draw(size) if "1.feed" in site else shared[site] for site, size in SITES.items()}
        for half in ("A", "B"):
            found[language, half] = {site: (v + 0.01 * draw(len(v))).tolist() for site, v in own.items()}
    return found


def test_planted_sharing_is_found() -> None:
    config = config_of()
    result = summarise(config, records_of(config, _planted(), within=0.8, across=0.2))
    parts = {part.name: part for part in result.likeness}
    assert list(parts) == [
        *("all", "layer 1", "layer 2", "attention", "feed-forward"),
        *("layer 1 attention", "layer 2 attention", "layer 1 feed-forward", "layer 2 feed-forward"),
    ]
    assert parts["all"].gates == 20 and parts["attention"].gates == 4
    assert min(parts["layer 1"].across) > 0.99 and max(parts["layer 2 feed-forward"].across) < 0.7
    assert all(min(part.within) > 0.99 for part in parts.values())
    holds = {claim.text: claim.holds for claim in check_claims(config, result)}
    assert holds["Bottom layers are more shared than top layers"] == "yes"
    assert holds["Attention is more shared than feed-forward parts"] == "yes"
    assert result.pairs["xx", "xx"] > 0.99 > result.pairs["xx", "yy"]
    ranking = result.ranking[1]
    assert all("layers.1.feed_forward" in score.site for score in ranking.specific[:3])


def test_the_opposite_is_told_as_well() -> None:
    config = config_of()
    planted = {
        key: dict(zip(SITES, [found[s] for s in (*list(SITES)[2:], *list(SITES)[:2])], strict=True))
        for key, found in _planted().items()
    }  # the layers exchanged
    result = summarise(config, records_of(config, planted, within=0.1, across=0.9))
    holds = [claim.holds for claim in check_claims(config, result)]
    texts = [claim.text for claim in check_claims(config, result)]
    assert holds[texts.index("Bottom layers are more shared than top layers")] == "no, the opposite"
    assert holds[0] == "no, the opposite"


def test_early_is_the_first_quarter() -> None:
    config = config_of()
    result = summarise(config, records_of(config, _planted(), within=0.8, across=0.4))
    assert result.cosines("whole", "across", (0.0, 0.25)) == pytest.approx([0.4, 0.4])
    assert result.cosines("whole", "across", (0.75, 1.0)) == pytest.approx([0.1, 0.1])
    assert result.cosines("whole", "across") == pytest.approx([0.4 * (1 + 1 / 2 + 1 / 3 + 1 / 4) / 4] * 2)


def test_identical_halves_have_a_likeness_of_one_and_the_thesis_cosine_is_told_apart() -> None:
    """Log alphas far from 0 have a cosine near 1 whatever else they say."""
    config = config_of()
    far = {key: {s: [v + 30 for v in values] for s, values in of.items()} for key, of in _planted().items()}
    result = summarise(config, records_of(config, far, within=0.5, across=0.5))
    part = result.part("layer 2 feed-forward")
    assert part is not None and min(part.plain_across) > 0.98 and max(part.across) < 0.7


# ---- the study


def test_a_study_writes_its_files_and_a_second_call_trains_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    page = run_sharing_study(config_of(), data, out, workers=0)
    names = {path.name for path in out.iterdir()}
    assert {"report.html", "results.json", "cosines.csv", "masks.csv", "gates.csv", "study.md"} <= names
    results = json.loads((out / "results.json").read_text())
    assert results["runs"] == 2 + 2 * 2 * 2 and results["runs_reused"] == 0
    assert [look["step"] for look in results["looks"]["1"]] == [3, 6]
    text = page.read_text()
    assert not re.search(r"(src|href)=\"?http", text) and "<script" not in text and len(text) < 1_000_000
    assert "What these numbers do not say" in text
    lines = (out / "cosines.csv").read_text().splitlines()
    groups = len(results["groups"])
    assert len(lines) == 1 + 2 * 2 * 3 * groups  # seeds, looks, xx, yy and xx-yy

    def refuse(*args: object) -> None:
        raise AssertionError("nothing was left to train")

    monkeypatch.setattr(training, "_model", refuse)
    run_sharing_study(config_of(), data, out, workers=0)
    again = json.loads((out / "results.json").read_text())
    assert again["runs_reused"] == again["runs"] and again["likeness"] == results["likeness"]


def test_a_study_that_was_stopped_goes_on_without_training_its_models_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    run_sharing_study(config_of(), data, whole, workers=0)
    out = tmp_path / "out"
    masks = training._masks

    def stop(cell: SharingCell, *rest: Any) -> Any:
        if (cell.seed, cell.language, cell.half) == (1, "yy", "B"):
            raise KeyboardInterrupt
        return masks(cell, *rest)

    monkeypatch.setattr(training, "_masks", stop)
    with pytest.raises(KeyboardInterrupt):
        run_sharing_study(config_of(), data, out, workers=0)
    monkeypatch.undo()
    steps: list[int] = []
    loss = MaskedLmMethod.loss
    monkeypatch.setattr(
        MaskedLmMethod, "loss", lambda self, next_batch: steps.append(1) or loss(self, next_batch)
    )
    run_sharing_study(config_of(), data, out, workers=0)
    assert not steps
    both = [json.loads((folder / "results.json").read_text()) for folder in (whole, out)]
    assert both[0]["likeness"] == both[1]["likeness"] and both[0]["looks"] == both[1]["looks"]


@pytest.mark.long
def test_two_processes_give_what_one_gives(data: Path, tmp_path: Path) -> None:
    """To the bit where each has one thread, as workers have: torch's sums depend on the number of threads."""
    found = []
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        run_sharing_study(config_of(), data, out, workers=workers)
        found.append(json.loads((out / "results.json").read_text()))
    assert found[0]["likeness"] == found[1]["likeness"] and found[0]["looks"] == found[1]["looks"]


def test_a_model_that_cannot_be_trained_is_an_error_that_names_the_run(data: Path, tmp_path: Path) -> None:
    config = config_of(lm=dataclasses.replace(config_of().settings.lm, learning_rate=1e38, warmup_steps=0))
    with pytest.raises(RunError, match="the model, seed 1"):
        run_sharing_study(config, data, tmp_path / "out", workers=0)


@pytest.mark.parametrize("spoil", ["nan", "both", "cosines"])
def test_damaged_results_are_not_taken_over(spoil: str) -> None:
    config = config_of()
    records = records_of(config, _planted(), within=0.8, across=0.2)
    model = dataclasses.asdict(records[SharingCell("model", 1)])
    masks = dataclasses.asdict(records[SharingCell("masks", 1, "xx", "A")])
    assert SharingOutcome.checked(masks).masks is not None
    if spoil == "nan":
        masks["masks"]["log_alpha"][next(iter(SITES))][0] = float("nan")
        model = masks
    elif spoil == "both":
        model["masks"] = masks["masks"]
    else:
        model["model"]["looks"][0]["within"]["xx"].pop()
    with pytest.raises(ValueError):
        SharingOutcome.checked(model)


# ---- settings


def test_the_shipped_configuration_is_read() -> None:
    config = sharing_config(ROOT / "configs/interference/small.yaml")
    assert len(config.seeds) == 2 and list(config.languages) == ["en", "de", "fr", "ru", "tr"]
    assert config.settings.masks.target_sparsity == 0.5 and config.settings.model.layers == 4


_GOOD = "languages:\n  xx: {files: [xx.txt]}\n  yy: {files: [yy.txt]}\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("languages: {xx: {files: [xx.txt]}}\n", "expected two or more"),
        (_GOOD + "settings: {granularity: [heads]}\n", "did you mean|nearest|'head'"),
        (_GOOD + "settings: {masks: {target_sparsity: 1.5}}\n", r"target_sparsity must be in \[0, 1\)"),
        (_GOOD + "settings: {model: {dim: 10, heads: 3}}\n", "dim must be a multiple of heads"),
        (_GOOD + "settings: {stepz: 3}\n", "stepz"),
        (_GOOD + "seeds: [1, 1]\n", "seeds must be different"),
        ("languages:\n  xx: {files: [xx.txt]}\n  yy: {files: [{path: yy.txt, colum: 1}]}\n", "colum"),
        ("languages:\n  xx: {files: []}\n  yy: {files: [yy.txt]}\n", "expected at least one file"),
        ("languages:\n  xx: {files: [xx.txt]}\n  yy: {files: [zz.txt]}\n", "zz.txt"),
        ("languages:\n  xx: {files: [xx.txt]}\n  yy: {files: [{path: t.tsv, column: zz}]}\n", "t.tsv.*zz"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_sentence_and_exit_code_2(
    text: str, expected: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "t.tsv").write_text("a\tb\n1\t2\n")
    config = tmp_path / "study.yaml"
    config.write_text(text)
    out = tmp_path / "out"
    code = main(["study", "sharing", "--config", str(config), "--data", str(data), "--out", str(out)])
    error = capsys.readouterr().err.strip()
    assert code == 2, error
    assert re.search(expected, error) and len(error.splitlines()) == 1, error


def test_no_data_folder_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XFER_DATA", raising=False)
    code = main(["study", "sharing", "--config", "x.yaml", "--out", str(tmp_path / "out")])
    assert code == 2 and "--data is missing" in capsys.readouterr().err
