"""MAN-MoE as a tagger: token-level experts, gates and losses; its relatives and ablations; what is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_words import (
    ENCODER,
    NUM_SOURCES,
    NUM_TAGS,
    ToyStreams,
    rows_of,
    target_texts,
    toy_spec,
    widened,
)

from xferkit.methods import (
    ABLATIONS,
    MANMoE,
    MANMoEConfig,
    PooledConfig,
    ablations,
    build_method,
    method_config,
    method_names,
    train_step,
)
from xferkit.models import EncoderConfig, make_encoder

CONFIG = MANMoEConfig(
    lambda1=0.05,
    lambda2=0.5,
    k=2,
    private_dim=8,
    expert_hidden=10,
    predictor_hidden=12,
    discriminator_hidden=8,
    dropout=0.0,
    detach_gate_input=False,
)
LANGUAGE = replace(CONFIG, gate="language")


def build(config: MANMoEConfig = CONFIG, *, seed: int = 0, **changes) -> MANMoE:
    torch.manual_seed(seed)
    return MANMoE(toy_spec(**changes), config)


def named(name: str, *, seed: int = 0, **changes):
    torch.manual_seed(seed)
    of_family = issubclass(method_config(name), MANMoEConfig)
    return build_method(name, toy_spec(**changes), CONFIG if of_family else None)


def losses_of(method, batches, **kwargs) -> dict[str, torch.Tensor]:
    """The loss of every phase on its first batches, and what it reports."""
    found = {}
    for stage in method.stages(4):
        for phase in stage.phases:
            loss = phase.loss(batches)
            found[phase.name] = loss.total
            found |= {f"{phase.name}/{name}": value for name, value in loss.metrics.items()}
    return found


def test_gates_learn_to_name_the_language_of_every_token_and_the_tagger_to_tag():
    method, batches = build(), ToyStreams(seed=1)
    phases = method.stages(1)[0].phases
    first = train_step(method, phases, batches)
    for _ in range(75):
        last = train_step(method, phases, batches)
    assert first["main/task"] > 1.0 and last["main/task"] < 0.1
    test = ToyStreams(seed=2)("labelled")
    with torch.no_grad():
        output = method.module.eval()["model"](test.inputs)
    for name in ("private", "predictor"):
        assert first[f"main/gate_{name}"] > 1.0 and last[f"main/gate_{name}"] < 0.3
        named_right = (output.gate_logits[name].argmax(2) == test.domains.unsqueeze(1))[test.inputs.mask]
        assert named_right.double().mean() > 0.95  # 1/3 by chance
        for source in range(NUM_SOURCES):
            texts = test.inputs.select(torch.nonzero(test.domains == source).squeeze(1))
            weights = method.gate_weights(texts)[name]
            assert int(weights.argmax()) == source and float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    # What a stem means depends on the language, which no shared tagger could tell from the stem.
    right = (method.predict(test.inputs).argmax(2) == test.labels)[test.inputs.mask]
    assert right.double().mean() > 0.95


def test_losses_are_means_over_real_tokens_and_sums_over_languages():
    method = build()
    batches = ToyStreams(seed=3)
    found = losses_of(method, batches)["main"]
    replay = ToyStreams(seed=3)
    replay("unlabelled")  # the discriminator's
    labelled, unlabelled = replay("labelled"), replay("unlabelled")
    expected = 0.0
    for s in range(NUM_SOURCES):
        part = rows_of(labelled, torch.nonzero(labelled.domains == s).squeeze(1))
        mask, output = part.inputs.mask, method.model(part.inputs)
        expected += -output.log_probs[mask].gather(1, part.labels[mask][:, None]).mean()
        for logits in output.gate_logits.values():
            assert logits.shape == (*part.labels.shape, NUM_SOURCES)
            expected += CONFIG.lambda2 * cross_entropy(logits[mask], torch.full((int(mask.sum()),), s))
    for language in range(NUM_SOURCES + 1):
        part = rows_of(unlabelled, torch.nonzero(unlabelled.domains == language).squeeze(1))
        logits = method.discriminator(*method.model.discriminator_inputs(part.inputs))
        expected -= CONFIG.lambda1 * cross_entropy(logits, part.domains)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("tagging", [True, False], ids=["tagging", "classification"])
@pytest.mark.parametrize("name", ["pooled", "man", "man_moe", "gate_weighted_pooling"])
@pytest.mark.parametrize("num_shards", [2, 3, 8])
def test_losses_and_reports_of_shards_add_up(name, tagging, num_shards):
    method = named(name, tagging=tagging)
    assert method.replicable

    class Shards(ToyStreams):
        """Every stream's batch cut into shards, with the counts of the whole one."""

        index: int | None = None

        def __call__(self, stream: str):
            batch = super().__call__(stream)
            if self.index is None:
                return batch
            size = NUM_SOURCES + (stream == "unlabelled")
            tokens = torch.zeros(size).index_add_(0, batch.domains, batch.inputs.lengths.float())
            counts = {"text_counts": torch.bincount(batch.domains).float(), "token_counts": tokens}
            rows = [
                torch.nonzero(batch.domains == d).squeeze(1)[self.index :: num_shards] for d in range(size)
            ]
            return replace(rows_of(batch, torch.cat(rows)), **counts)

    batches = Shards(seed=4, tagging=tagging, fixed=True)
    whole, parts = losses_of(method, batches), []
    for batches.index in range(num_shards):
        parts.append(losses_of(method, batches))
    for key, value in whole.items():
        torch.testing.assert_close(sum(part[key] for part in parts), value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("tagging", [True, False], ids=["tagging", "classification"])
def test_padding_and_the_order_of_texts_change_no_loss(name, tagging):
    method = named(name, tagging=tagging)
    plain = losses_of(method, ToyStreams(seed=5, tagging=tagging))
    for change in (widened, lambda batch: rows_of(batch, torch.randperm(len(batch.domains)))):
        streams = ToyStreams(seed=5, tagging=tagging)
        changed = losses_of(method, lambda stream, s=streams, c=change: c(s(stream)))
        for key, value in plain.items():
            torch.testing.assert_close(changed[key], value, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("config", [CONFIG, LANGUAGE], ids=["token", "language"])
def test_fused_ops_have_the_gradients_of_their_references(config):
    gradients = []
    for ops in ("fused", "reference"):
        encoder = replace(ENCODER, dropout=0.3, layers=2)
        method = build(replace(config, dropout=0.3), encoder=encoder, ops=ops)
        torch.manual_seed(6)  # the same dropout
        totals = losses_of(method, ToyStreams(seed=6))
        sum(totals[name] for name in ("discriminator", "main")).backward()
        gradients.append({name: p.grad for name, p in method.module.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert gradient is not None and gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("tagging", [True, False], ids=["tagging", "classification"])
@pytest.mark.parametrize("name", method_names())
def test_every_method_trains_all_it_has_and_comes_back_from_its_state(name, tagging):
    method = named(name, tagging=tagging)
    batches = ToyStreams(seed=7, tagging=tagging)
    before = {n: p.detach().clone() for n, p in method.module.named_parameters()}
    for stage in method.stages(4):
        for _ in range(stage.steps):
            metrics = train_step(method, stage.phases, batches)
            assert all(value.isfinite() for value in metrics.values())
        if stage.on_end is not None:
            stage.on_end()
    assert [n for n, p in method.module.named_parameters() if torch.equal(p, before[n])] == []
    texts = target_texts(9)
    predicted, weights = method.predict(texts), method.source_weights(texts)
    shape = (9, texts.ids.shape[1], NUM_TAGS) if tagging else (9, NUM_TAGS)
    assert predicted.shape == shape
    sums = predicted.exp().sum(-1)[texts.mask] if tagging else predicted.exp().sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))
    if weights is not None:
        assert weights.shape == (NUM_SOURCES,) and float(weights.sum()) == pytest.approx(1.0, abs=1e-5)
    # The same spec and settings with the state loaded: the same method, whatever it had measured.
    again = named(name, seed=1, tagging=tagging, target_inputs=target_texts(3))
    assert not torch.equal(again.predict(texts), predicted)
    again.module.load_state_dict(method.module.state_dict())
    assert torch.equal(again.predict(texts), predicted)
    if weights is not None:
        assert torch.equal(again.source_weights(texts), weights)


def test_the_language_gate_is_measured_once_and_mixes_each_target_text_by_itself():
    method = build(LANGUAGE)
    assert not method.replicable and build().replicable
    texts = target_texts(8)
    before = method.predict(texts)
    bags = torch.zeros(8, dtype=torch.int64)
    torch.testing.assert_close(before, method.model.eval()(texts, bags=bags).log_probs)
    method.stages(1)[0].on_end()
    together = method.predict(texts)
    for row in range(8):
        one = texts.select(torch.tensor([row]))
        width = one.ids.shape[1]
        torch.testing.assert_close(method.predict(one), together[row : row + 1, :width])
    # A source's texts are mixed with their own weights.
    assert not torch.equal(method.predict(texts, source=0), together)
    torch.testing.assert_close(method.predict(texts, source=0), before)


def test_the_target_is_measured_the_same_in_chunks(monkeypatch):
    whole, parts = build(LANGUAGE), build(LANGUAGE)
    whole.stages(1)[0].on_end()
    monkeypatch.setattr("xferkit.methods.classifier._CHUNK_SEQUENCES", 3)
    parts.stages(1)[0].on_end()
    for name, logits in whole.target_gate.logits.items():
        torch.testing.assert_close(parts.target_gate.logits[name], logits)
        assert logits.abs().max() > 0
    weighted = []
    for chunk in (3, 1000):
        monkeypatch.setattr("xferkit.methods.classifier._CHUNK_SEQUENCES", chunk)
        method = named("gate_weighted_pooling")
        method.stages(1)[0].on_end()
        weighted.append(method.source_weights(target_texts()))
    torch.testing.assert_close(*weighted)


def test_man_gives_the_target_no_private_features_and_a_source_its_own():
    method = named("man")
    texts = target_texts(5)
    words = method.model.embedder(texts)
    assert method.model.private(words, None).eq(0).all()
    features = method.model.private(words, torch.tensor([0, 1, 2, -1, 1]))
    assert features[3].eq(0).all()
    own = method.model.private.encoders[1](words)
    torch.testing.assert_close(features[4], own[4])
    assert not torch.equal(method.predict(texts, source=1), method.predict(texts))


def test_extractors_share_one_embedding_of_words_and_nothing_else():
    method = build()
    names = [name for name, _ in method.module.named_parameters()]
    assert sum("embedder.words" in name for name in names) == 1
    shared = dict(method.model.shared.named_parameters())
    for name, p in method.model.private.encoder.named_parameters():
        assert p.shape == shared[name].shape and not torch.equal(p, shared[name])
    calls = []
    method.model.embedder.register_forward_hook(lambda *_: calls.append(1))
    method.model(target_texts(3))
    assert calls == [1]


def test_fixed_vectors_are_held_once_and_never_change():
    vectors = torch.randn(50, 7)
    config = replace(ENCODER, vectors="given", word_dim=7)
    method = build(make_encoder=lambda: make_encoder(config, 50, 18, vectors))
    train_step(method, method.stages(1)[0].phases, ToyStreams())
    state = method.module.state_dict()
    assert [n for n, v in state.items() if v.shape == vectors.shape] == ["model.embedder.words.weight"]
    assert torch.equal(state["model.embedder.words.weight"], vectors)


def test_an_encoder_of_whole_texts_cannot_tag():
    whole = EncoderConfig(kind="char_cnn", feature_dim=4, char_widths=(2,))
    for name in ("pooled", "man_moe"):
        with pytest.raises(
            ValueError, match=r"tagging=True needs an encoder with a vector per token .* CharCNN"
        ):
            build_method(name, toy_spec(whole))


def test_names_of_the_family_fix_their_part_and_refuse_another():
    whole = ablations(CONFIG)
    assert list(whole) == ["man_moe", *ABLATIONS] and whole["man_moe"] is CONFIG
    for name, config in whole.items():
        torch.manual_seed(0)
        by_name, by_config = named(name), build(config)
        assert by_name.module.state_dict().keys() == by_config.module.state_dict().keys()
        assert method_config(name.replace("_", "-")) is method_config(name)
        assert issubclass(method_config(name), MANMoEConfig)
    assert (named("no-man").discriminator, named("no_moe").source_weights(target_texts())) == (None, None)
    man = method_config("man")()
    assert (man.private_per_source, man.private_moe, man.predictor_moe, man.adversary) == (
        True,
        False,
        False,
        True,
    )
    with pytest.raises(ValueError, match="method 'no_c_moe' has predictor_moe=False by its name, got True"):
        method_config("no_c_moe")(predictor_moe=True)
    with pytest.raises(ValueError, match="lambda2 and k must not be negative"):
        method_config("no_man")(k=-1)
    with pytest.raises(ValueError, match="method 'pooled' is set by a PooledConfig, got a MANMoEConfig"):
        build_method("pooled", toy_spec(), CONFIG)
    assert (
        build_method("pooled", toy_spec(), PooledConfig(hidden_dim=5)).model.predictor.layers[1].out_features
        == 5
    )


def test_mixed_precision_trains():
    method = build(replace(CONFIG, dropout=0.2), encoder=replace(ENCODER, dropout=0.2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        metrics = train_step(method, method.stages(1)[0].phases, ToyStreams())
    assert all(value.isfinite() for value in metrics.values())
    assert all(p.grad.isfinite().all() for p in method.model.parameters())
