"""Sites of masks: what is found in which model, under which names, and what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy_masks import own_encoder, torch_encoder

from xferkit.masks import HardConcreteMasks, MaskPart, MaskSite, declare_site, find_sites


def by_name(sites):
    return {site.name: site for site in sites}


def views(site):
    return {part.name: (part.view, part.group_dims) for part in site.parts}


def test_heads_and_units_of_our_own_encoder():
    sites = by_name(find_sites(own_encoder()))
    assert list(sites) == [
        "layers.0.attention/heads",
        "layers.1.attention/heads",
        "layers.0.feed_forward/units",
        "layers.1.feed_forward/units",
    ]
    heads = sites["layers.1.attention/heads"]
    assert (heads.layer, heads.kind, heads.granularity, heads.num_gates) == (1, "attention", "head", 3)
    assert views(heads) == {
        "layers.1.attention.query.weight": ((3, 4, 12), (1, 2)),
        "layers.1.attention.query.bias": ((3, 4), (1,)),
        "layers.1.attention.key.weight": ((3, 4, 12), (1, 2)),
        "layers.1.attention.key.bias": ((3, 4), (1,)),
        "layers.1.attention.value.weight": ((3, 4, 12), (1, 2)),
        "layers.1.attention.value.bias": ((3, 4), (1,)),
        "layers.1.attention.output.weight": ((12, 3, 4), (0, 2)),
    }
    assert heads.num_parameters == 4 * 144 + 3 * 12 and heads.parameters_per_gate == (4 * 144 + 36) // 3
    units = sites["layers.0.feed_forward/units"]
    assert (units.layer, units.kind, units.num_gates) == (0, "ffn", 10)
    assert views(units) == {
        "layers.0.feed_forward.up.weight": ((10, 12), (1,)),
        "layers.0.feed_forward.up.bias": ((10,), ()),
        "layers.0.feed_forward.down.weight": ((12, 10), (0,)),
    }


def test_heads_and_units_of_torchs_encoder_and_of_a_bare_attention():
    sites = by_name(find_sites(torch_encoder()))
    assert list(sites) == [
        "layers.0.self_attn/heads",
        "layers.1.self_attn/heads",
        "layers.0/units",
        "layers.1/units",
    ]
    assert views(sites["layers.0.self_attn/heads"]) == {
        "layers.0.self_attn.in_proj_weight": ((3, 3, 4, 12), (0, 2, 3)),
        "layers.0.self_attn.in_proj_bias": ((3, 3, 4), (0, 2)),
        "layers.0.self_attn.out_proj.weight": ((12, 3, 4), (0, 2)),
    }
    assert list(views(sites["layers.1/units"])) == [
        "layers.1.linear1.weight",
        "layers.1.linear1.bias",
        "layers.1.linear2.weight",
    ]
    (bare,) = find_sites(nn.MultiheadAttention(12, 2), "head")
    assert (bare.name, bare.layer, bare.num_gates) == ("heads", None, 2)


def test_a_parameter_belongs_to_the_first_granularity_that_takes_it():
    model = own_encoder()
    sites = find_sites(model, ("head", "ffn_unit", "matrix"))
    names = [part.name for site in sites for part in site.parts]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    kinds = {site.name: site.kind for site in sites}
    assert kinds["embeddings.tokens.weight/matrix"] == "embedding"
    assert kinds["layers.0.attention.output.bias/matrix"] == "attention"
    assert kinds["layers.0.feed_forward.down.bias/matrix"] == "ffn"
    assert kinds["layers.0.attention_norm.weight/matrix"] == "other"
    assert all(site.num_gates == 1 for site in sites if site.granularity == "matrix")
    assert {s.layer for s in sites} == {None, 0, 1}


def test_rows_columns_matrices_and_single_parameters_of_any_module():
    model = nn.Sequential(nn.Conv1d(3, 5, 2), nn.LSTM(5, 4), nn.LayerNorm(4))
    rows = by_name(find_sites(model, "row"))
    assert list(rows) == ["0.weight/rows", "1.weight_ih_l0/rows", "1.weight_hh_l0/rows"]
    assert views(rows["0.weight/rows"]) == {"0.weight": ((5, 3, 2), (1, 2)), "0.bias": ((5,), ())}
    assert views(rows["1.weight_ih_l0/rows"])["1.bias_ih_l0"] == ((16,), ())
    columns = by_name(find_sites(model, "column"))
    assert views(columns["0.weight/columns"]) == {"0.weight": ((5, 3, 2), (0, 2))}
    assert columns["0.weight/columns"].num_gates == 3 and columns["0.weight/columns"].layer == 0
    single = find_sites(model, "parameter")
    assert sum(site.num_gates for site in single) == sum(p.numel() for p in model.parameters())
    matrices = find_sites(model, "matrix")
    assert len(matrices) == len(list(model.parameters())) and {s.num_gates for s in matrices} == {1}


def test_tied_parameters_are_found_once():
    model = nn.ModuleDict({"table": nn.Embedding(7, 4), "head": nn.Linear(4, 7, bias=False)})
    model["head"].weight = model["table"].weight
    assert [site.name for site in find_sites(model, "row")] == ["table.weight/rows"]
    both = [
        declare_site(model, "a", [("table.weight", None, (1,))]),
        declare_site(model, "b", [("head.weight", None, (0,))]),
    ]
    with pytest.raises(
        ValueError, match=r"'head.weight' is in the sites 'a' and 'b'; expected it in one part"
    ):
        HardConcreteMasks(model, both)


def test_include_takes_sites_or_parameters_and_refuses_what_matches_nothing():
    model = own_encoder()
    assert [s.name for s in find_sites(model, include="layers.1.*")] == [
        "layers.1.attention/heads",
        "layers.1.feed_forward/units",
    ]
    chosen = find_sites(model, include=["*0.attention.query.weight", "*1*units"])
    assert [s.name for s in chosen] == ["layers.0.attention/heads", "layers.1.feed_forward/units"]
    with pytest.raises(
        ValueError, match=r"'layers.0.atention/heads' matches no site .* 'layers.0.attention/heads'"
    ):
        find_sites(model, include=["layers.*", "layers.0.atention/heads"])
    with pytest.raises(ValueError, match="include is empty"):
        find_sites(model, include=[])


def test_what_is_not_there_is_refused():
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(ValueError, match="no attention with known names"):
        find_sites(model)
    with pytest.raises(ValueError, match="no feed-forward part with known names"):
        find_sites(model, "ffn_unit")
    with pytest.raises(ValueError, match="no parameter is left for the granularity 'parameter'"):
        find_sites(model, ("matrix", "parameter"))
    with pytest.raises(ValueError, match=r"granularity must be one of head, .* got 'heads'"):
        find_sites(model, "heads")


def test_the_number_of_heads():
    model = own_encoder()
    assert {s.num_gates for s in find_sites(model, "head", num_heads=6)} == {6}
    with pytest.raises(
        ValueError, match=r"5 heads do not divide the 12 rows of the attention layers\.0\.attention"
    ):
        find_sites(model, "head", num_heads=5)
    names = ("query", "key", "value", "output")
    bare = nn.ModuleDict({name: nn.Linear(6, 6) for name in names})
    with pytest.raises(ValueError, match="the number of heads of the module is unknown; expected num_heads"):
        find_sites(bare, "head")
    bare.head_dim = 2
    assert find_sites(bare, "head")[0].num_gates == 3


def test_names_alone_are_not_enough():
    """query, key, value and output of other shapes are no attention."""
    sizes = {"query": (6, 6), "key": (6, 6), "value": (6, 4), "output": (6, 6)}
    model = nn.ModuleDict({name: nn.Linear(i, o) for name, (i, o) in sizes.items()})
    with pytest.raises(ValueError, match="no attention with known names"):
        find_sites(model, "head", num_heads=2)


def test_declared_sites():
    model = nn.Module()
    model.w1, model.b1 = nn.Parameter(torch.ones(3, 4, 5)), nn.Parameter(torch.ones(3, 5))
    site = declare_site(model, "experts", [("w1", None, (1, -1)), ("b1", None, (1,))], layer=2, kind="ffn")
    assert site == MaskSite(
        "experts",
        2,
        "ffn",
        (MaskPart("w1", (3, 4, 5), (3, 4, 5), (1, 2)), MaskPart("b1", (3, 5), (3, 5), (1,))),
    )
    two = declare_site(model, "both", [("w1", (3, 2, 2, 5), (2, 3))])
    assert two.shape == (3, 2) and two.num_gates == 6 and two.parameters_per_gate == 10
    for parts, wanted in (
        ([("w2", None, (1,))], r"'w2', which the module lacks; the nearest .*'w1'"),
        (
            [("w1", (3, 4), (1,))],
            r"'w1' of shape \[3, 4, 5\] cannot be viewed as \[3, 4\]; expected 60 elements",
        ),
        ([("w1", None, (3,))], r"group_dims \[3\]; expected dimensions of the view \[3, 4, 5\]"),
        ([("w1", None, (1, -2))], r"group_dims \[1, -2\]; expected each once"),
        (
            [("w1", None, (0, 1)), ("b1", None, (1,))],
            r"'b1' has gates of shape \[3\]; expected \[5\] as 'w1'",
        ),
        ([("b1", None, (1,)), ("b1", None, (1,))], "'b1' comes twice"),
        ([], "expected at least one part"),
    ):
        with pytest.raises(ValueError, match=wanted):
            declare_site(model, "x", parts)
    with pytest.raises(ValueError, match=r"kind must be one of attention, .* got 'mlp'"):
        declare_site(model, "x", [("w1", None, ())], kind="mlp")


def test_sites_that_do_not_fit_the_module():
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    sites = find_sites(model, "row")
    assert HardConcreteMasks(other, sites).sites == sites
    with pytest.raises(
        ValueError, match=r"'weight' of site 'weight/rows' has shape \[4, 3\]; expected \[2, 3\]"
    ):
        HardConcreteMasks(nn.Linear(3, 4), sites)
    with pytest.raises(
        ValueError, match=r"names the parameter 'weight', which the module lacks; .*'0.weight'"
    ):
        HardConcreteMasks(nn.Sequential(model), sites)
    with pytest.raises(ValueError, match="two sites are named 'weight/rows'"):
        HardConcreteMasks(model, [*sites, *sites])
    with pytest.raises(ValueError, match="at least one site"):
        HardConcreteMasks(model, [])
    whole = nn.Linear(3, 2)
    whole.weight = nn.Parameter(torch.ones(2, 3, dtype=torch.int64), requires_grad=False)
    with pytest.raises(ValueError, match=r"is torch.int64; expected floating point"):
        HardConcreteMasks(whole, sites)
