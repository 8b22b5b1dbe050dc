"""MAN-MoE for classification: losses and signs, alternation, ablations."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from xferkit.methods import (
    ClassifierSpec,
    DomainBatch,
    MANMoE,
    MANMoEConfig,
    Pooled,
    build_method,
    encoder_preset,
    man_moe_preset,
    method_config,
    method_names,
    register_method,
    train_step,
)
from xferkit.models import BiLSTMEncoder, CharCNNEncoder, CNNDiscriminator, TokenSequences

NUM_SOURCES, NUM_CLASSES, NUM_TOKENS = 3, 4, 12
CONFIG = MANMoEConfig(
    lambda1=0.1,
    lambda2=0.5,
    k=2,
    private_dim=6,
    expert_hidden=5,
    predictor_hidden=7,
    discriminator_hidden=8,
    dropout=0.0,
)


def make_spec(*, encoder: str = "cnn", dropout: float = 0.0, **changes) -> ClassifierSpec:
    def cnn():
        return CharCNNEncoder(
            NUM_TOKENS, 8, token_dim=6, flag_dim=2, channels=10, widths=(3,), dropout=dropout
        )

    def lstm():
        embedding = nn.Embedding(NUM_TOKENS, 6, padding_idx=0)
        return BiLSTMEncoder(embedding, 8, dropout=dropout)

    spec = ClassifierSpec(
        make_encoder={"cnn": cnn, "lstm": lstm}[encoder],
        num_classes=NUM_CLASSES,
        num_sources=NUM_SOURCES,
        target_inputs=make_inputs(20, seed=99),
        dropout=dropout,
        learning_rate=1e-2,
    )
    return replace(spec, **changes)


def make_inputs(num: int, *, seed: int) -> TokenSequences:
    rng = np.random.default_rng(seed)
    ids = [rng.integers(1, NUM_TOKENS, size=rng.integers(1, 9)).tolist() for _ in range(num)]
    return TokenSequences.from_lists(ids, [rng.integers(0, 2, size=len(row)).tolist() for row in ids])


class Batches:
    """Fresh random batches by stream name, counted; three languages' sizes differ on purpose."""

    def __init__(self, seed: int = 0) -> None:
        self.seed, self.drawn = seed, []

    def __call__(self, name: str) -> DomainBatch:
        self.drawn.append(name)
        sizes = [5, 2, 7] if name == "labelled" else [5, 2, 7, 4]
        domains = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        seed = 1000 * self.seed + len(self.drawn)
        labels = None
        if name == "labelled":
            generator = torch.Generator().manual_seed(seed)
            labels = torch.randint(NUM_CLASSES, (len(domains),), generator=generator)
        return DomainBatch(make_inputs(len(domains), seed=seed), domains, labels)


def build(config: MANMoEConfig = CONFIG, *, seed: int = 0, **spec_changes) -> MANMoE:
    torch.manual_seed(seed)
    return MANMoE(make_spec(**spec_changes), config)


def phase_of(method: MANMoE, name: str):
    return next(phase for phase in method.stages(1)[0].phases if phase.name == name)


def snapshot(module: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> list[bool]:
    return [torch.equal(x, y) for x, y in zip(a, b, strict=True)]


def test_discriminator_updates_leave_the_model_bit_identical_and_the_main_update_the_discriminator():
    method, batches = build(), Batches()
    model, discriminator = snapshot(method.model), snapshot(method.discriminator)
    train_step(method, [phase_of(method, "discriminator")], batches)
    assert all(same(model, snapshot(method.model)))
    assert not any(same(discriminator, snapshot(method.discriminator)))
    discriminator = snapshot(method.discriminator)
    train_step(method, [phase_of(method, "main")], batches)
    assert all(same(discriminator, snapshot(method.discriminator)))
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.model.parameters())
    assert not any(same(model, snapshot(method.model)))
    assert all(p.requires_grad for p in method.discriminator.parameters())


@pytest.mark.parametrize("k", [1, 2, 5])
def test_a_step_draws_k_batches_for_the_discriminator_then_labelled_then_a_fresh_unlabelled_one(k):
    method, batches = build(replace(CONFIG, k=k)), Batches()
    steps_of_discriminator = []
    hook = method.optimizers["discriminator"].register_step_post_hook(
        lambda *_: steps_of_discriminator.append(len(batches.drawn))
    )
    train_step(method, method.stages(1)[0].phases, batches)
    hook.remove()
    assert batches.drawn == ["unlabelled"] * k + ["labelled", "unlabelled"]
    assert steps_of_discriminator == list(range(1, k + 1))


def test_losses_are_sums_over_languages_of_means_as_a_loop_over_languages_gives_them():
    method = build()
    loss = phase_of(method, "main").loss(Batches(seed=3))
    replay = Batches(seed=3)
    labelled, unlabelled = replay("labelled"), replay("unlabelled")
    expected = 0.0
    for s in range(NUM_SOURCES):
        rows = torch.nonzero(labelled.domains == s).squeeze(1)
        output = method.model(labelled.inputs.select(rows))
        expected += -output.log_probs.gather(1, labelled.labels[rows, None]).mean()
        for logits in output.gate_logits.values():
            expected += CONFIG.lambda2 * cross_entropy(logits, torch.full((len(rows),), s))
    for language in range(NUM_SOURCES + 1):
        rows = torch.nonzero(unlabelled.domains == language).squeeze(1)
        logits = method.discriminator(method.model.shared(unlabelled.inputs.select(rows)))
        expected -= CONFIG.lambda1 * cross_entropy(logits, torch.full((len(rows),), language))
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-6)


def test_the_main_update_ascends_the_discriminators_loss_by_a_finite_step():
    # All of the main loss but -lambda1 J_D is switched off: a small step must raise J_D.
    method = build(replace(CONFIG, lambda2=0.0, lambda1=0.25))
    method.model.double()
    method.discriminator.double()
    batch = Batches(seed=5)("unlabelled")

    def j_d() -> torch.Tensor:
        return phase_of(method, "discriminator").loss(lambda name: batch).total.detach()

    def only_adversarial(name: str) -> DomainBatch:
        if name == "unlabelled":
            return batch
        labelled = Batches(seed=5)("labelled")
        return replace(labelled, domains=torch.full_like(labelled.domains, -1))  # no item counts

    loss = phase_of(method, "main").loss(only_adversarial)
    torch.testing.assert_close(loss.total, -0.25 * j_d())
    parameters = list(method.model.shared.parameters())
    gradients = torch.autograd.grad(loss.total, parameters)
    norm2 = sum(float(g.square().sum()) for g in gradients)
    assert norm2 > 0
    before, step = j_d(), 1e-4
    with torch.no_grad():
        for p, g in zip(parameters, gradients, strict=True):
            p -= step * g
    rise = float(j_d() - before)
    assert rise == pytest.approx(step * norm2 / 0.25, rel=0.02)


def test_gate_losses_reach_only_the_gates_when_the_gate_input_is_detached():
    for detach in (True, False):
        method = build(replace(CONFIG, detach_gate_input=detach, adversary=False))
        batch = Batches(seed=1)("labelled")
        gates = method.model(batch.inputs, domains=batch.domains).gate_logits
        for name, logits in gates.items():
            method.model.zero_grad()
            logits.square().sum().backward(retain_graph=True)
            touched = {
                n.removeprefix("private.experts.").removeprefix("predictor.")
                for n, p in method.model.named_parameters()
                if p.grad is not None and bool(p.grad.ne(0).any())
            }
            assert {"gate_weight", "gate_bias"} <= touched, name
            assert (touched == {"gate_weight", "gate_bias"}) is detach, name


def test_task_gradient_reaches_the_gates_through_the_mixture_weights_even_when_detached():
    method = build(replace(CONFIG, detach_gate_input=True, lambda2=0.0, adversary=False))
    phase_of(method, "main").loss(Batches()).total.backward()
    for experts in (method.model.private.experts, method.model.predictor):
        assert experts.gate_weight.grad.abs().max() > 0


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
@pytest.mark.parametrize("config", [CONFIG, replace(CONFIG, gate="language")], ids=["text", "language"])
def test_padding_has_no_effect_on_any_loss(encoder, config):
    method = build(config, encoder=encoder)

    def padded(batch: DomainBatch) -> DomainBatch:
        inputs = batch.inputs
        wide = TokenSequences(
            nn.functional.pad(inputs.ids, (0, 4)), inputs.lengths, nn.functional.pad(inputs.flags, (0, 4))
        )
        return replace(batch, inputs=wide)

    for phase in method.stages(1)[0].phases:
        plain = phase.loss(Batches(seed=2)).total
        replay = Batches(seed=2)
        torch.testing.assert_close(phase.loss(lambda n, r=replay: padded(r(n))).total, plain)


def test_predictions_are_log_probabilities_and_source_weights_sum_to_one():
    inputs = make_inputs(30, seed=7)
    for name in method_names():
        torch.manual_seed(0)
        of_family = issubclass(method_config(name), MANMoEConfig)
        method = build_method(name, make_spec(), CONFIG if of_family else None)
        torch.testing.assert_close(method.predict(inputs).exp().sum(1), torch.ones(30))
        weights = method.source_weights(inputs)
        surgeries = ("joint_sum", "mgda", "pcgrad", "gradvac", "gradvac_fixed")
        assert (weights is None) == (
            name in ("pooled", "same_convention", "own", "man", "no_moe", *surgeries)
        )
        if weights is not None:
            assert weights.shape == (NUM_SOURCES,)
            assert float(weights.sum()) == pytest.approx(1.0, abs=1e-5)


ABLATIONS = {
    "whole": CONFIG,
    "no predictor mixture": replace(CONFIG, predictor_moe=False),
    "no private mixture": replace(CONFIG, private_moe=False),
    "no mixture": replace(CONFIG, private_moe=False, predictor_moe=False),
    "MAN": replace(CONFIG, private_moe=False, predictor_moe=False, private_per_source=True),
    "no MAN": replace(CONFIG, adversary=False),
    "log-probabilities mixed": replace(CONFIG, mix="logprob"),
    "gate per language": replace(CONFIG, gate="language"),
    "gate attached": replace(CONFIG, detach_gate_input=False),
}


@pytest.mark.parametrize("encoder", ["cnn", "lstm"])
@pytest.mark.parametrize("name", ABLATIONS)
def test_each_ablation_trains_exactly_its_parts(name, encoder):
    config = ABLATIONS[name]
    method = build(config, encoder=encoder)
    if encoder == "lstm" and config.adversary:
        assert isinstance(method.discriminator, CNNDiscriminator)
    batches = Batches()
    before = snapshot(method.module)
    metrics = train_step(method, method.stages(1)[0].phases, batches)
    gates = {"private": config.private_moe, "predictor": config.predictor_moe}
    assert {m for m in metrics if "gate" in m} == {f"main/gate_{n}" for n, on in gates.items() if on}
    assert ("discriminator/nll" in metrics) is config.adversary
    assert ("unlabelled" in batches.drawn) is config.adversary
    assert all(math.isfinite(value) for value in metrics.values())
    unchanged = [
        name
        for (name, _), is_same in zip(
            method.module.named_parameters(), same(before, snapshot(method.module)), strict=True
        )
        if is_same
    ]
    assert unchanged == []


def test_man_gives_the_target_a_zero_private_vector_and_each_source_its_own_encoder():
    method = build(ABLATIONS["MAN"])
    inputs = make_inputs(6, seed=1)
    domains = torch.tensor([0, 1, 2, -1, 1, 0])
    private = method.model.private(inputs, domains)
    assert private[3].eq(0).all()
    for row, domain in enumerate(domains.tolist()):
        if domain >= 0:
            own = method.model.private.encoders[domain](inputs.select(torch.tensor([row])))
            torch.testing.assert_close(private[row], own[0])
    target = method.model.predictor(torch.cat([method.model.shared(inputs), torch.zeros(6, 8)], dim=1))
    torch.testing.assert_close(method.predict(inputs), target)


def test_language_level_gate_mixes_every_text_of_a_language_with_the_same_weights():
    method = build(replace(CONFIG, gate="language"))
    batch = Batches(seed=4)("labelled")
    output = method.model(batch.inputs, bags=batch.domains, num_bags=NUM_SOURCES)
    for name, bag_logits in output.bag_logits.items():
        means = [output.gate_logits[name][batch.domains == s].mean(0) for s in range(NUM_SOURCES)]
        torch.testing.assert_close(bag_logits, CONFIG.gate_scale * torch.stack(means))
    # The target's bag is all of its unlabelled texts, measured once: a text's prediction is its own.
    method.stages(1)[0].on_end()
    inputs = make_inputs(10, seed=8)
    alone = torch.cat([method.predict(inputs.select(torch.tensor([i]))) for i in range(10)])
    torch.testing.assert_close(method.predict(inputs), alone)


def test_presets_hold_the_published_values():
    paper, code = man_moe_preset("paper", "ner"), man_moe_preset("code", "ner")
    assert (paper.lambda1, paper.lambda2, paper.k, paper.mix) == (1e-4, 0.01, 1, "prob")
    assert (paper.private_dim, paper.expert_hidden, paper.discriminator_hidden) == (128, 128, 128)
    assert (code.lambda1, code.mix, code.detach_gate_input) == (0.002, "logprob", True)
    assert (code.private_dim, code.predictor_hidden, code.discriminator_hidden) == (200, 400, 200)
    assert man_moe_preset("code", "amazon").lambda2 == 0.01
    slots = man_moe_preset("paper", "slots")
    assert (slots.lambda1, slots.lambda2, slots.k, slots.batch_size) == (0.01, 1.0, 5, 64)
    for kind, task, units, frozen, chars in (
        ("paper", "slots", 128, False, 128),
        ("code", "ner", 200, True, 128),
        ("code", "amazon", 128, True, 0),
    ):
        encoder = encoder_preset(kind, task, "wiki.vec")
        assert (encoder.feature_dim, encoder.freeze_char_embedding, encoder.char_dim) == (
            units,
            frozen,
            chars,
        )
        assert (encoder.layers, encoder.dropout, encoder.word_dim, encoder.vectors) == (
            2,
            0.5,
            300,
            "wiki.vec",
        )
        assert (encoder.char_channels, encoder.char_widths, encoder.char_out) == (200, (3, 4, 5), 128)
    with pytest.raises(ValueError, match="amazon"):
        man_moe_preset("paper", "pos")
    with pytest.raises(ValueError, match="encoder_preset: kind must be"):
        encoder_preset("published", "ner")


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="private_moe=False"):
        MANMoEConfig(private_per_source=True)
    with pytest.raises(ValueError, match="negative"):
        MANMoEConfig(lambda1=-1.0)
    with pytest.raises(ValueError, match="mix must be one of"):
        MANMoEConfig(mix="sum")
    with pytest.raises(ValueError, match="target_inputs"):
        build(replace(CONFIG, gate="language"), target_inputs=None)
    with pytest.raises(ValueError, match="private_moe or predictor_moe"):
        build(replace(CONFIG, gate="language", private_moe=False, predictor_moe=False))
    with pytest.raises(ValueError, match="unknown method 'nope', expected one of pooled"):
        build_method("nope", make_spec())
    with pytest.raises(ValueError, match="exists already"):
        register_method("pooled", lambda spec, config: Pooled(spec))


def test_fused_and_reference_ops_train_alike():
    runs = []
    for ops in ("fused", "reference"):
        method = build(replace(CONFIG, dropout=0.3), ops=ops)
        torch.manual_seed(1)
        for step in range(3):
            train_step(method, method.stages(1)[0].phases, Batches(seed=step))
        runs.append(snapshot(method.module))
    for a, b in zip(*runs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
