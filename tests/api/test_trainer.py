"""The trainer: order of updates, determinism, schedules, progress, the reductions of the losses."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from xferkit.data.streams import DomainData, DomainStream
from xferkit.methods import DomainBatch, Phase, PhaseLoss, Stage
from xferkit.models import MLPDiscriminator, TokenSequences
from xferkit.objectives import classification_nll, discriminator_loss, gate_nll, sum_of_domain_means
from xferkit.trainers import (
    NonFiniteError,
    Trainer,
    make_progress,
    make_schedule,
)


def data(name: str, num: int, *, labels: bool = True, start: int = 1) -> DomainData:
    inputs = TokenSequences.from_lists([[start + i] for i in range(num)])
    return DomainData(name, inputs, torch.arange(num) % 3 if labels else None)


class Toy:
    """Embeds one token; a labelled phase and one of its own optimiser that is repeated."""

    def __init__(self, seed: int = 0, lr: float = 0.1) -> None:
        torch.manual_seed(seed)
        self.module = nn.ModuleDict(
            {"a": nn.Embedding(50, 3), "b": nn.Embedding(50, 3), "drop": nn.Dropout(0.5)}
        )
        self.optimizers = {
            name: torch.optim.SGD(self.module[name].parameters(), lr=lr) for name in ("a", "b")
        }
        self.calls: list[str] = []
        self.rates: list[float] = []

    def _loss(self, name: str):
        def loss(next_batch):
            self.calls.append(name)
            if name == "a":
                self.rates.append(self.optimizers["a"].param_groups[0]["lr"])
            batch = next_batch("labelled")
            logits = self.module["drop"](self.module[name](batch.inputs.ids[:, 0]))
            total = cross_entropy(logits, batch.labels)
            return PhaseLoss(total, {"nll": total.detach()})

        return loss

    def stages(self, steps: int):
        phases = [Phase("b", self._loss("b"), ("b",), repeats=2), Phase("a", self._loss("a"), ("a",))]
        return [
            Stage("both", phases, steps, on_end=lambda: self.calls.append("end")),
            Stage("last", phases[1:], 2),
        ]


def streams(seed: int = 0):
    return {"labelled": DomainStream([data("x", 9), data("y", 7, start=20)], 4, seed=seed, name="labelled")}


def fit(seed: int = 0, steps: int = 5, **kwargs) -> tuple[Toy, object]:
    method = Toy(seed)
    history = Trainer(progress="silent", **kwargs).fit(method, streams(seed), steps)
    return method, history


def parameters(method: Toy) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in method.module.parameters()])


# The loop


def test_phases_run_in_order_with_their_repeats_and_stages_one_after_the_other():
    method, history = fit(steps=2)
    assert method.calls == ["b", "b", "a"] * 2 + ["end"] + ["a", "a"]
    assert history.steps == 4 and [r.stage for r in history.records] == ["both", "last"]
    assert set(history.records[0].metrics) == {"a/nll", "b/nll"}
    assert set(history.records[1].metrics) == {"a/nll"}
    assert history.last["b/nll"] == history.records[0].metrics["b/nll"]
    assert not method.module.training


def test_a_phase_moves_only_the_parameters_of_its_optimizers():
    method = Toy()
    before = method.module["b"].weight.detach().clone()
    method.stages = lambda steps: [Stage("a", [Phase("a", method._loss("a"), ("a",))], steps)]
    a = method.module["a"].weight.detach().clone()
    Trainer(progress="silent").fit(method, streams(), 3)
    assert torch.equal(method.module["b"].weight, before)
    assert not torch.equal(method.module["a"].weight, a)


def test_same_seed_same_bits_whatever_is_logged_and_another_seed_other_bits():
    reference = parameters(fit(0)[0])
    assert torch.equal(parameters(fit(0)[0]), reference)
    assert torch.equal(parameters(fit(0, log_every=1)[0]), reference)
    assert not torch.equal(parameters(fit(1)[0]), reference)
    # Only the batches differ: a stream's seed matters by itself.
    other = Toy(0)
    Trainer(progress="silent").fit(other, streams(1), 5)
    assert not torch.equal(parameters(other), reference)


def test_records_are_means_over_their_window():
    every = fit(log_every=1, steps=4)[1].records[:4]
    once = fit(log_every=4, steps=4)[1].records[0]
    assert [r.step for r in every] == [1, 2, 3, 4] and once.step == 4
    for name, value in once.metrics.items():
        assert value == pytest.approx(sum(r.metrics[name] for r in every) / 4, rel=1e-5)


def test_cosine_schedule_spans_each_stage_anew():
    method, history = fit(steps=4, schedule="cosine", log_every=1)
    expected = [0.1 * f for f in (1.0, 0.8535534, 0.5, 0.1464466)]
    assert method.rates[:4] == pytest.approx(expected)
    assert method.rates[4:] == pytest.approx([0.1, 0.05])
    assert [r.learning_rates["a"] for r in history.records] == pytest.approx(method.rates)
    assert fit(steps=4)[0].rates == pytest.approx([0.1] * 6)
    assert make_schedule("cosine", 10)(10) == pytest.approx(0.0)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="no stream 'labelled' among \\['unlabelled'\\]"):
        Trainer(progress="silent").fit(Toy(), {"unlabelled": streams()["labelled"]}, 1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        Trainer(progress="silent").fit(Toy(), streams(), 0)
    with pytest.raises(ValueError, match="log_every"):
        Trainer(log_every=0)
    with pytest.raises(ValueError, match="schedule must be"):
        Trainer(schedule="steps")
    method = Toy()
    method.module["a"].weight.data.fill_(torch.nan)
    with pytest.raises(NonFiniteError, match=r"phase 'a' has norm nan .* in stage 'both' at step 1"):
        Trainer(progress="silent", log_every=3).fit(method, streams(), 6)


def test_gradient_reversal_in_one_phase_equals_the_explicit_minus_sign_in_two():
    class Adversarial:
        def __init__(self, reverse: bool) -> None:
            torch.manual_seed(0)
            self.features = nn.Embedding(50, 4)
            self.discriminator = MLPDiscriminator(4, 2, hidden_dim=5, dropout=0.0)
            self.module = nn.ModuleList([self.features, self.discriminator])
            self.optimizers = {
                "features": torch.optim.SGD(self.features.parameters(), lr=0.1),
                "discriminator": torch.optim.SGD(self.discriminator.parameters(), lr=0.1),
            }
            self.reverse = reverse

        def logits(self, batch: DomainBatch, reverse: float | None = None) -> torch.Tensor:
            return self.discriminator(self.features(batch.inputs.ids[:, 0]), reverse=reverse)

        def reversed_loss(self, next_batch):
            batch = next_batch("labelled")
            return PhaseLoss(discriminator_loss(self.logits(batch, 0.3), batch.domains), {})

        def stages(self, steps: int):
            return [Stage("s", [Phase("p", self.reversed_loss, ("features", "discriminator"))], steps)]

    method = Adversarial(True)
    Trainer(progress="silent").fit(method, streams(), 1)
    explicit = Adversarial(False)
    batch = streams()["labelled"].next()
    loss = discriminator_loss(explicit.logits(batch), batch.domains)
    for module, sign in ((explicit.features, -0.3), (explicit.discriminator, 1.0)):
        gradients = torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)
        with torch.no_grad():
            for p, g in zip(module.parameters(), gradients, strict=True):
                p -= 0.1 * sign * g
    for a, b in zip(method.module.parameters(), explicit.module.parameters(), strict=True):
        torch.testing.assert_close(a, b)


# Progress


def test_plain_progress_tells_step_time_left_and_losses():
    out = io.StringIO()
    method = Toy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", out)
        Trainer(log_every=2, title="names", progress="auto").fit(method, streams(), 4)
    lines = out.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["names both 2/6", "names both 4/6", "names last 6/6"]
    assert all(" s left  " in line and "a/nll " in line for line in lines)


def test_rich_progress_draws_a_bar_and_silent_nothing():
    out = io.StringIO()
    with make_progress("rich", 3, title="names", file=out) as progress:
        progress.advance()
        progress.report("train", {"nll": 1.25})
    assert "1/3" in out.getvalue() and "nll 1.250" in out.getvalue()
    quiet = io.StringIO()
    with make_progress("silent", 3, file=quiet) as progress:
        progress.advance()
        progress.report("train", {"nll": 1.25})
    assert quiet.getvalue() == ""
    with pytest.raises(ValueError, match="'plain' or 'silent'"):
        make_progress("bar", 3)


# Objectives, the reductions the phases use


def test_sum_of_domain_means_ignores_padding_and_absent_domains():
    values = torch.tensor([1.0, 3.0, torch.nan, 10.0], requires_grad=True)
    domains = torch.tensor([0, 0, -1, 2])
    total = sum_of_domain_means(values, domains, 4)
    assert total.item() == 12.0
    assert torch.autograd.grad(total, values)[0].tolist() == [0.5, 0.5, 0.0, 1.0]
    weighted = sum_of_domain_means(values, domains, 4, weights=torch.tensor([0.5, 9.0, 0.1, 9.0]))
    assert weighted.item() == pytest.approx(2.0)
    with pytest.raises(ValueError, match="one length"):
        sum_of_domain_means(values, domains[:3], 4)
    with pytest.raises(ValueError, match="weights must have shape \\[4\\]"):
        sum_of_domain_means(values, domains, 4, weights=torch.ones(3))


def test_tagging_losses_count_real_tokens():
    log_probs = torch.randn(3, 4, 2).log_softmax(2)
    labels = torch.tensor([[0, 1, -1, -1], [1, 1, 1, 1], [0, -1, -1, -1]])
    domains = torch.tensor([0, 0, 1])
    first = -log_probs[:2].gather(2, labels[:2].clamp(min=0).unsqueeze(2)).squeeze(2)[labels[:2] >= 0].mean()
    expected = first - log_probs[2, 0, 0]
    torch.testing.assert_close(classification_nll(log_probs, labels, domains, 2), expected)
    mask = labels >= 0
    gates = torch.randn(3, 4, 2)
    expected = cross_entropy(gates[:2][mask[:2]], torch.zeros(6, dtype=torch.int64)) + cross_entropy(
        gates[2, :1], torch.tensor([1])
    )
    torch.testing.assert_close(gate_nll(gates, domains, mask=mask), expected)
    with pytest.raises(ValueError, match="gate_nll: mask"):
        gate_nll(gates[:, 0], domains, mask=mask)
    with pytest.raises(ValueError, match="gate_nll: domains"):
        gate_nll(gates, domains[:2])
    with pytest.raises(ValueError, match="classification_nll: expected"):
        classification_nll(log_probs, labels[:, :2], domains, 2)


def test_a_batch_without_labels_is_refused_where_labels_are_needed():
    from xferkit.methods import Pooled
    from xferkit.methods.classifier import ClassifierSpec
    from xferkit.models import CharCNNEncoder

    method = Pooled(ClassifierSpec(lambda: CharCNNEncoder(50, 4, flag_dim=0), 3, 2))
    stream = streams()["labelled"]

    class Unlabelled:
        def draw(self):
            return self

        def shard(self, index: int, num_shards: int, replicas: int):
            return replace(stream.next(), labels=None)

    with pytest.raises(ValueError, match="without labels"):
        Trainer(progress="silent").fit(method, {"labelled": Unlabelled()}, 1)
