"""Masks and pruning of whole models: our own, torch's, and Hugging Face's from a local folder."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from toy_masks import CLOSED, OPEN, own_encoder, own_inputs, torch_encoder, without_inputs

from xferkit.masks import HardConcreteMasks, MaskTrainingConfig, find_sites, prune, train_masks

transformers = pytest.importorskip("transformers", reason="the encoders of Hugging Face are optional")

DIM, HEADS, HIDDEN = 12, 3, 10
COMMON = {"vocab_size": 31, "max_position_embeddings": 20}
BERT_SIZES = {
    "hidden_size": DIM,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "intermediate_size": HIDDEN,
}
CONFIGS = {
    "bert": lambda: transformers.BertConfig(**COMMON, **BERT_SIZES),
    "roberta": lambda: transformers.RobertaConfig(**COMMON, **BERT_SIZES),
    "xlm-r": lambda: transformers.XLMRobertaConfig(**COMMON, **BERT_SIZES),
    "distilbert": lambda: transformers.DistilBertConfig(
        **COMMON, dim=DIM, n_layers=2, n_heads=HEADS, hidden_dim=HIDDEN
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **COMMON, **BERT_SIZES, pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2
    ),
}
# Where the second layer's heads enter the output projection, and its hidden units the last map.
PLACES = {
    "bert": ("encoder.layer.1.attention.output.dense", "encoder.layer.1.output.dense"),
    "distilbert": ("transformer.layer.1.attention.out_lin", "transformer.layer.1.ffn.lin2"),
    "modernbert": ("layers.1.attn.Wo", "layers.1.mlp.Wo"),
}
SITES = {
    "bert": ("encoder.layer.1.attention/heads", "encoder.layer.1/units"),
    "distilbert": ("transformer.layer.1.attention/heads", "transformer.layer.1.ffn/units"),
    "modernbert": ("layers.1.attn/heads", "layers.1.mlp/units"),
}


@pytest.fixture(params=list(CONFIGS))
def model(request, tmp_path):
    """The encoder from a folder, the name of its form."""
    torch.manual_seed(0)
    transformers.AutoModel.from_config(CONFIGS[request.param]()).save_pretrained(tmp_path / "model")
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "model").eval()
    with torch.no_grad():  # far from its tiny start, so that every head and unit tells
        for p in loaded.parameters():
            if p.dim() == 2:
                p.mul_(8.0)
    kind = request.param if request.param in PLACES else "bert"
    return loaded, kind


def inputs():
    ids = torch.randint(3, 31, (2, 7), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def states(output):
    return output.last_hidden_state


def mixed(model, seed=0):
    """Gates of 0, of 1 and between."""
    masks = HardConcreteMasks(model, find_sites(model))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for site in masks.sites:
            log_alpha = masks.log_alpha(site)
            log_alpha.copy_(torch.randn(log_alpha.shape, generator=generator) * 3 - 1)
            log_alpha[0], log_alpha[1], log_alpha[2] = CLOSED, OPEN, -0.5
    return masks


def test_heads_and_units_are_found_and_a_closed_one_is_one_taken_away(model):
    encoder, kind = model
    masks = HardConcreteMasks(encoder, find_sites(encoder), init=OPEN)
    assert [(s.layer, s.granularity, s.num_gates) for s in masks.sites] == [
        (0, "head", HEADS),
        (1, "head", HEADS),
        (0, "ffn_unit", HIDDEN),
        (1, "ffn_unit", HIDDEN),
    ]
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    plain = states(encoder(**inputs()))
    assert torch.allclose(states(masks.call(encoder, **inputs())), plain, atol=1e-6)
    with torch.no_grad():
        masks.log_alpha(SITES[kind][0])[1] = CLOSED
        masks.log_alpha(SITES[kind][1])[4] = CLOSED
    attention, last = (encoder.get_submodule(name) for name in PLACES[kind])
    with without_inputs(attention, slice(4, 8)), without_inputs(last, [4]):
        wanted = states(encoder(**inputs()))
    assert (wanted - plain).abs().max() > 1e-3
    for mode in ("eval", "sample"):
        assert torch.allclose(states(masks.call(encoder, **inputs(), mode=mode)), wanted, atol=1e-5)
        with masks.applied(encoder, mode=mode):
            assert torch.allclose(states(encoder(**inputs())), wanted, atol=1e-5)
    now = encoder.state_dict()
    assert list(now) == list(before) and all(torch.equal(now[name], before[name]) for name in before)


def test_a_pruned_model_is_a_plain_one_that_loads_from_a_folder(model, tmp_path):
    encoder, _ = model
    masks = mixed(encoder)
    wanted = states(masks.call(encoder, **inputs(), mode="eval"))
    assert (wanted - states(encoder(**inputs()))).abs().max() > 1e-3
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    pruned = prune(encoder, masks)
    assert torch.equal(states(pruned(**inputs())), wanted)
    assert {n: v.shape for n, v in pruned.state_dict().items()} == {n: v.shape for n, v in before.items()}
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    pruned.save_pretrained(tmp_path / "pruned")
    loaded = transformers.AutoModel.from_pretrained(tmp_path / "pruned").eval()
    assert torch.equal(states(loaded(**inputs())), wanted)


def test_a_shrunk_model_computes_the_same_with_fewer_parameters(model):
    encoder, kind = model
    masks = mixed(encoder)
    wanted = states(masks.call(encoder, **inputs(), mode="eval"))
    shrunk = prune(encoder, masks, shrink=True)
    assert torch.allclose(states(shrunk(**inputs())), wanted, atol=1e-5)
    cut = 0
    for site in masks.sites:
        closed = int((masks.gates(site) == 0).sum())
        assert closed > 0
        if site.granularity == "ffn_unit" or kind != "modernbert":
            cut += closed * site.parameters_per_gate
    sizes = [sum(p.numel() for p in m.parameters()) for m in (encoder, shrunk)]
    assert sizes[0] - sizes[1] == cut
    for site, left in zip(masks.sites, find_sites(shrunk), strict=True):  # it can be masked again
        uncut = site.granularity == "head" and kind == "modernbert"
        assert left.num_gates == (HEADS if uncut else int((masks.gates(site) > 0).sum()))
    assert states(encoder(**inputs())).shape == wanted.shape
    states(shrunk.train()(**inputs())).sum().backward()  # and can be trained further
    assert all(p.requires_grad for p in shrunk.parameters())


def test_masks_of_a_language_model_with_tied_embeddings_and_checkpointing(tmp_path):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        **COMMON, **BERT_SIZES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    transformers.BertForMaskedLM(config).save_pretrained(tmp_path)
    model = transformers.BertForMaskedLM.from_pretrained(tmp_path)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    sites = find_sites(model, ("head", "ffn_unit", "row"), include=["*heads", "*units", "*word_embeddings*"])
    assert [s.kind for s in sites] == ["attention", "attention", "ffn", "ffn", "embedding"]
    batch = {**inputs(), "labels": inputs()["input_ids"]}

    def gradients():
        masks = HardConcreteMasks(model, sites, init=0.0)
        with masks.applied(model):
            return torch.autograd.grad(model(**batch).loss, list(masks.parameters()))

    model.train()
    plain = gradients()
    on, off = (
        getattr(model, f"activation_{name}", None) or getattr(model, f"gradient_{name}")  # transformers 4
        for name in ("checkpointing_enable", "checkpointing_disable")
    )
    on()
    again = gradients()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain, again, strict=True))
    with pytest.raises(RuntimeError, match="recomputes its forward pass in backward"):
        HardConcreteMasks(model, sites).call(model, **batch)
    off()
    masks = HardConcreteMasks(model, sites)
    record = train_masks(
        model,
        lambda m, b: m(**b).loss,
        [batch],
        masks,
        MaskTrainingConfig(steps=80, target_sparsity=0.4, lr=0.15),
    )
    assert record.final.expected_parameters == pytest.approx(0.4, abs=0.03)
    pruned = prune(model, masks)
    assert pruned.cls.predictions.decoder.weight is pruned.bert.embeddings.word_embeddings.weight
    model.eval()
    assert torch.equal(pruned.eval()(**inputs()).logits, masks.call(model, **inputs(), mode="eval").logits)


def test_pruning_our_own_encoder():
    model, inputs = own_encoder(), own_inputs()
    masks = mixed(model)
    wanted = masks.call(model, *inputs, mode="eval")
    assert torch.equal(prune(model, masks)(*inputs), wanted)
    shrunk = prune(model, masks, shrink=True)
    assert torch.allclose(shrunk(*inputs), wanted, atol=1e-5)
    for n, layer in enumerate(shrunk.layers):
        left = int((masks.gates(f"layers.{n}.feed_forward/units") > 0).sum())
        assert layer.feed_forward.up.weight.shape == (left, 12) and layer.feed_forward.up.out_features == left
        assert (
            layer.feed_forward.down.weight.shape == (12, left) and layer.feed_forward.down.in_features == left
        )
        heads = int((masks.gates(f"layers.{n}.attention/heads") > 0).sum())
        assert layer.attention.num_heads == heads < 3
        assert layer.attention.query.weight.shape == (4 * heads, 12)
        assert layer.attention.output.weight.shape == (12, 4 * heads)
    assert model.layers[0].feed_forward.up.weight.shape == (10, 12)
    assert model.layers[0].attention.num_heads == 3


@pytest.mark.parametrize("batch_first", [True, False])
def test_pruning_torchs_encoder(batch_first):
    model = torch_encoder(batch_first)
    masks = mixed(model)
    x = torch.randn(4, 5, 12)
    wanted = masks.call(model, x, mode="eval")
    assert torch.equal(prune(model, masks)(x), wanted)
    shrunk = prune(model, masks, shrink=True)
    assert shrunk.layers[0].linear1.out_features < 10
    assert torch.allclose(shrunk(x), wanted, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(shrunk(x), wanted, atol=1e-5)


def test_a_part_whose_units_are_all_closed_keeps_one_and_a_tied_one_all():
    model = torch_encoder()
    masks = HardConcreteMasks(model, find_sites(model, "ffn_unit"), init=CLOSED)
    x = torch.randn(4, 5, 12)
    shrunk = prune(model, masks, shrink=True)
    assert shrunk.layers[0].linear1.out_features == 1
    assert torch.allclose(shrunk(x), masks.call(model, x, mode="eval"), atol=1e-5)
    model.layers[1].linear1.weight = model.layers[0].linear1.weight
    masks = HardConcreteMasks(model, find_sites(model, "ffn_unit"), init=CLOSED)
    assert len(masks.sites) == 1
    tied = prune(model, masks, shrink=True)
    assert tied.layers[1].linear1.weight is tied.layers[0].linear1.weight
    assert tied.layers[0].linear1.out_features == 10
    assert torch.allclose(tied(x), masks.call(model, x, mode="eval"), atol=1e-5)


def test_pruning_other_granularities_of_any_module():
    model = nn.Sequential(nn.Conv1d(3, 4, 2), nn.ReLU(), nn.Conv1d(4, 2, 1))
    x = torch.randn(2, 3, 6)
    for granularity in ("row", "column", "matrix", "parameter"):
        masks = HardConcreteMasks(model, find_sites(model, granularity))
        with torch.no_grad():
            for p in masks.parameters():
                p.copy_(torch.randn(p.shape) * 3)
        wanted = masks.call(model, x, mode="eval")
        for shrink in (False, True):
            assert torch.equal(prune(model, masks, shrink=shrink)(x), wanted)
        assert not torch.equal(copy.deepcopy(model)(x), wanted)
