"""Pooling with gradient surgery as a method: its losses, its trainer, restarts to the bit, and that it learns."""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "api"))  # toys that the api's tests have too

from test_train_command import digests, finish, start, until
from toy_runs import SMALL, make_tags, make_texts, options
from toy_surgery import one_thread as one_thread  # a fixture
from toy_surgery import orders, vaccinated
from toy_tagging import tagging
from toy_words import NUM_SOURCES, ToyStreams, toy_spec

from xferkit.checkpoints import CheckpointStore
from xferkit.cli import main
from xferkit.methods import PhaseLoss, build_method, method_config, train_step
from xferkit.methods.surgery import SURGERY_METHODS, GradVacConfig, PCGradConfig
from xferkit.trainers import NonFiniteError, Trainer

pytestmark = pytest.mark.usefixtures("one_thread")
SURGERIES = [name for name in SURGERY_METHODS if name != "joint_sum"]


def make(name: str, *, is_tagging: bool = True, spec: dict | None = None, **settings):
    torch.manual_seed(0)
    config = method_config(name)(hidden_dim=0, dropout=0.0, **settings)
    return build_method(name, toy_spec(tagging=is_tagging, **(spec or {})), config)


def step_of(method, streams) -> dict[str, torch.Tensor]:
    return train_step(method, method.stages(1)[0].phases, streams)


class Without:
    """Batches that lack one source, or all but one."""

    def __init__(self, streams, *sources: int) -> None:
        self.streams, self.sources = streams, sources

    def __call__(self, name: str):
        from toy_words import rows_of

        batch = self.streams(name)
        keep = ~torch.isin(batch.domains, torch.tensor(self.sources))
        return rows_of(batch, keep.nonzero().squeeze(1))


# -- losses and gradients ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tagging", [True, False], ids=["tagging", "classification"])
def test_the_sources_losses_are_the_means_of_their_parts(is_tagging):
    batch = ToyStreams(seed=1, tagging=is_tagging)("labelled")
    method, total = make("pcgrad", is_tagging=is_tagging), make("joint_sum", is_tagging=is_tagging)
    losses = method._losses(batch)
    log_probs = method.pooled.model(batch.inputs).log_probs
    for number in range(NUM_SOURCES):
        rows = batch.domains == number
        gold, own = batch.labels[rows], log_probs[rows]
        wanted = torch.nn.functional.cross_entropy(own[gold >= 0], gold[gold >= 0])
        torch.testing.assert_close(losses[str(number)], wanted)
    found, plain = method.loss(lambda name: batch), total.loss(lambda name: batch)
    torch.testing.assert_close(found.total, plain.total)
    torch.testing.assert_close(found.metrics["task"], plain.total.detach() / 3)
    torch.testing.assert_close(plain.metrics["task"], plain.total.detach() / 3)
    assert plain.backward is None and total.replicable and not method.replicable


@pytest.mark.parametrize("name", ["pcgrad", "gradvac"])
def test_an_update_is_the_loop_over_vectors(name):
    """The gradient that the optimiser gets, against Algorithm 2 on each source's own gradient."""
    method = make(name, seed=6, **({"beta": 0.5} if name == "gradvac" else {}))
    streams, again = ToyStreams(seed=3), ToyStreams(seed=3)
    optimizer = method.optimizers["main"]
    ema = torch.zeros(3, 3, dtype=torch.float64)
    parameters = list(method.pooled.model.parameters())
    for step in range(3):
        losses = method._losses(again("labelled"))
        raw = [
            torch.cat([g.flatten().double() for g in torch.autograd.grad(loss, parameters)])
            for loss in losses.values()
        ]
        target = 0.0 if name == "pcgrad" else None
        wanted = vaccinated(raw, orders(6, step, 1, 3)[0], ema, beta=0.5, target=target)
        optimizer.zero_grad(set_to_none=True)
        seen = method.loss(streams).differentiate()
        got = torch.cat([p.grad.flatten().double() for p in parameters])
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6)
        assert set(seen) == {"task", "cosine", "active"} and 0 <= float(seen["active"]) <= 1
        optimizer.step()


def test_settings_reach_the_surgery():
    names = {"source_names": ("en", "de", "1")}
    assert make("pcgrad", spec=names, apply_to=("de", 1, 0)).surgery.apply_to == ("en", "de", "1")
    assert make("pcgrad", spec=names, apply_to=("de",)).surgery.apply_to == ("de",)
    assert make("gradvac", spec=names, apply_to=(1,)).surgery.apply_to == ("1",), (
        "a name goes before a number"
    )
    assert make("gradvac", apply_to=("2", 0)).surgery.apply_to == ("0", "2")
    made = make("gradvac", grouping="layer", beta=0.2, ema="raw", seed=4)
    assert (made.surgery.beta, made.surgery.ema_of, made.surgery.seed) == (0.2, "raw", 4) and len(
        made.surgery.groups
    ) > 4
    assert make("mgda", normalization="loss+", grouping="matrix").surgery.normalization == "loss+"
    found = make("gradnorm", alpha=0.5, grouping="layer", norm_of="predictor.layers").surgery
    assert found.alpha == 0.5 and found.norm_of == ("predictor.layers",)
    assert make("gradvac_fixed", target=-0.1).surgery.target == -0.1
    assert build_method("gradvac", toy_spec()).surgery.tasks == ("0", "1", "2"), "defaults need no settings"


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: make("pcgrad", apply_to=("dee",), spec={"source_names": ("en", "de", "fr")}), "unknown task 'dee', "),
        (lambda: make("pcgrad", apply_to=(3,)), "PCGrad: unknown task '3', expected one of 0, 1, 2"),
        (lambda: make("pcgrad", spec={"source_names": ("en",)}), "source_names must name the 3 sources, got en"),
        (lambda: make("gradvac", beta=2.0), "GradVacConfig: beta must be in [0, 1], got 2.0"),
        (lambda: make("gradvac_fixed", target=1.0), "FixedTargetConfig: target must be a cosine in (-1, 1), got 1.0"),
        (lambda: make("gradnorm", alpha=-1.0), "GradNormConfig: expected alpha >= 0 and weight_learning_rate >= 0"),
        (lambda: make("gradnorm", norm_of="top"), "GradNorm: norm_of must be 'last', 'all' or one of the groups model"),
        (lambda: make("mgda", grouping="encoder_decoder"), "grouping 'encoder_decoder': no parameter's name holds"),
        (lambda: build_method("pcgrad", toy_spec(), GradVacConfig()), "'pcgrad' is set by a PCGradConfig, got a Grad"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(build, sentence):
    with pytest.raises(ValueError) as caught:
        build()
    assert sentence in str(caught.value)


def test_a_language_that_a_batch_lacks_is_absent_from_the_step():
    method = make("gradvac", beta=0.5, grouping="layer")
    step_of(method, ToyStreams(seed=4))
    before = method.surgery.ema.clone()
    seen = step_of(method, Without(ToyStreams(seed=5), 1))
    assert method.surgery.info.tasks == ("0", "2") and seen["main/task"].isfinite()
    changed = method.surgery.ema != before
    assert not changed[:, 1].any() and not changed[:, :, 1].any() and changed[:, 0, 2].any()
    seen = step_of(method, Without(ToyStreams(seed=6), 1, 2))  # a single source has no pairs
    assert method.surgery.info.tasks == ("0",) and seen["main/cosine"] == 0 and seen["main/active"] == 0


def tagger(name: str, seed: int = 0, dropout: float = 0.3):
    """The method as a tagger on the streams of the toy languages, with its own defaults."""
    method, streams, _ = tagging(seed, dropout, name)
    for module in method.module.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    return method, streams


# -- trainer ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pcgrad", "mgda"])
def test_the_trainer_refuses_to_cut_its_batches(name):
    method, streams = tagger(name)
    with pytest.raises(
        ValueError, match="its gradients are combined over the whole of it, so the batch cannot be cut"
    ):
        Trainer(progress="silent", accumulation=2).fit(method, streams, 1)


def test_the_trainer_refuses_gradients_of_parts_from_a_method_that_forgot_to_say_so():
    method, streams = tagger("pcgrad")
    type(method).replicable, kept = True, type(method).__dict__["replicable"]
    try:
        with pytest.raises(
            ValueError, match=r"phase 'main' leaves its gradients by itself, .* replicable = False"
        ):
            Trainer(progress="silent", accumulation=2).fit(method, streams, 1)
    finally:
        type(method).replicable = kept


def test_joint_training_may_be_cut():
    results = []
    for accumulation in (1, 3):
        method, streams = tagger("joint_sum", dropout=0.0)
        Trainer(progress="silent", accumulation=accumulation).fit(method, streams, 4)
        results.append([p.detach().clone() for p in method.module.parameters()])
    for whole, cut in zip(*results, strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-3, atol=1e-5)


class Stop(Exception):
    pass


def fit(name: str, folder, *, stop_after: int | None = None, seed: int = 0):
    method, streams = tagger(name, seed)
    if stop_after is not None:
        loss, count = method.loss, [0]

        def counted(next_batch) -> PhaseLoss:
            count[0] += 1
            if count[0] > stop_after:
                raise Stop
            return loss(next_batch)

        method.loss = counted
    trainer = Trainer(progress="silent", checkpoint_every=1, log_every=2, schedule="cosine", clip_norm=1.0)
    history = trainer.fit(method, streams, 8, folder=folder)
    return method, history


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", SURGERY_METHODS)
def test_a_training_that_was_stopped_goes_on_to_the_same_bits(name, tmp_path):
    whole, history = fit(name, tmp_path / "whole")
    for stop in (1, 5):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            fit(name, folder, stop_after=stop)
        torch.manual_seed(99)
        method, again = fit(name, folder, seed=7)
        assert same(dict(method.module.state_dict()), dict(whole.module.state_dict()))
        assert [r.metrics for r in again.records] == [r.metrics for r in history.records]
    if name == "gradvac":
        state = CheckpointStore(tmp_path / "whole/checkpoints").load_newest(None).state
        assert state["module"]["surgery.ema"].any() and state["module"]["surgery.seed_step"].tolist() == [
            0,
            8,
        ]
        assert "main/active" in history.last and "main/cosine" in history.last


def test_a_restart_without_the_surgerys_state_is_noticed(tmp_path, monkeypatch):
    """The comparison above can fail: with averages as they are at the start the bits differ."""
    from xferkit.trainers import state as training_state

    whole, _ = fit("gradvac", tmp_path / "whole")
    with pytest.raises(Stop):
        fit("gradvac", tmp_path / "cut", stop_after=5)
    restore = training_state.restore_state

    def forgetful(state, replica, *rest):
        zeros = {n: torch.zeros_like(v) if "surgery" in n else v for n, v in state["module"].items()}
        restore({**state, "module": zeros}, replica, *rest)

    monkeypatch.setattr("xferkit.trainers.trainer.restore_state", forgetful)
    method, _ = fit("gradvac", tmp_path / "cut")
    assert not same(dict(method.module.state_dict()), dict(whole.module.state_dict()))


def test_a_gradient_that_is_not_finite_ends_the_training_and_enters_nothing():
    method, streams = tagger("gradvac")
    Trainer(progress="silent").fit(method, streams, 2)
    ema, weights = method.surgery.ema.clone(), [p.detach().clone() for p in method.pooled.model.parameters()]
    losses = method._losses
    method._losses = lambda batch: {
        n: loss * (torch.inf if n == "1" else 1) for n, loss in losses(batch).items()
    }
    with pytest.raises(NonFiniteError, match="the gradient of phase 'main' has norm nan"):
        Trainer(progress="silent").fit(method, streams, 1)
    assert torch.equal(method.surgery.ema, ema) and method.surgery.seed_step[1] == 2
    assert same([p.detach() for p in method.pooled.model.parameters()], weights)


def test_the_trainers_autocast_takes_it():
    method, streams = tagger("gradvac", dropout=0.0)
    history = Trainer(progress="silent", log_every=5, precision="bf16").fit(method, streams, 30)
    assert history.last["main/task"] < 0.9 * history.records[0].metrics["main/task"]


# -- learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_tagging", [True, False], ids=["tagging", "classification"])
@pytest.mark.parametrize("name", SURGERY_METHODS)
def test_every_method_learns_what_its_sources_agree_on(name, is_tagging):
    """The toy languages 0 and 2 share their tags, 1 has others, and words tell languages apart."""
    method = make(name, is_tagging=is_tagging, spec={"learning_rate": 0.01 if is_tagging else 0.03})
    streams = ToyStreams(seed=8, tagging=is_tagging)
    losses = [step_of(method, streams)["main/task"] for _ in range(60)]
    assert losses[-1] < 0.6 * losses[0]
    right = []
    for seed in range(20, 25):
        batch = ToyStreams(seed=seed, tagging=is_tagging)("labelled")
        right.append(
            (method.predict(batch.inputs).argmax(-1) == batch.labels)[batch.labels >= 0].float().mean()
        )
    assert sum(right) / len(right) > 0.7, right  # chance is 1/3


def test_surgery_removes_conflict_between_sources():
    """Where two sources want opposite things of one model, PCGrad's update raises neither loss to first order."""
    method = make("pcgrad")
    batch = ToyStreams(seed=10, fixed=True)("labelled")
    flipped = replace(
        batch, labels=torch.where(batch.domains[:, None] == 1, (batch.labels + 1) % 3, batch.labels)
    )
    flipped = replace(flipped, labels=flipped.labels.where(batch.labels >= 0, -1))
    two = Without(lambda name: flipped, 2)
    for _ in range(5):
        step_of(method, two)
    method.optimizers["main"].zero_grad()
    method.loss(two).differentiate()
    info = method.surgery.info
    assert info.similarity[0, 0, 1] < 0 and info.moved.any()
    along = (info.gram[0] @ info.weights[0]).tolist()
    assert min(along) > -1e-9 * max(info.gram[0].diagonal().tolist())


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    make_texts(folder)
    make_tags(folder)
    return folder


def words_of(data: Path, out: Path, method: str, *more: str, end: str = "tsv") -> list[str]:
    return [
        "train", method, "--train", f"en={data}/en.{end}", f"de={data}/de.{end}", "--test", f"es={data}/es.{end}",
        "--out", str(out), *options(SMALL), "--options.learning_rate", "0.01", *more,
    ]  # fmt: skip


def test_the_command_trains_a_tagger_with_pcgrad(data, tmp_path, capsys):
    assert (
        main(
            words_of(
                data, tmp_path / "run", "pcgrad", "--options.apply_to", "de", "--steps", "40", end="conll"
            )
        )
        == 0
    )
    assert float(capsys.readouterr().out.splitlines()[-1].split()[3]) > 80
    assert main(words_of(data, tmp_path / "bad", "pcgrad", "--options.apply_to", "dee", "--steps", "2")) == 2
    assert (
        "PCGrad: unknown task 'dee', expected one of en, de; the nearest is 'de'" in capsys.readouterr().err
    )


@pytest.mark.long
def test_a_killed_command_goes_on_to_the_same_bits(data, tmp_path):
    more = (
        "--steps",
        "30",
        "--trainer.checkpoint_every",
        "2",
        "--options.grouping",
        "layer",
        "--options.beta",
        "0.2",
    )

    def command(out: Path) -> list[str]:
        return [sys.executable, "-m", "xferkit", *words_of(data, out, "gradvac", *more)]

    finish(command(tmp_path / "whole"))
    process = start(command(tmp_path / "run"))
    until(lambda: any((tmp_path / "run/seed-1/checkpoints").glob("step-*")), process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (tmp_path / "run/seed-1/result.json").exists()
    finish(command(tmp_path / "run"))
    assert digests(tmp_path / "run") == digests(tmp_path / "whole")


def test_settings_classes_are_told_apart():
    assert PCGradConfig().apply_to == () and GradVacConfig().beta == 0.01
    assert not issubclass(GradVacConfig, PCGradConfig)
