"""Masks of a module: formulas, tied gates, calls that leave the module alone, refusals."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from toy_masks import CLOSED, OPEN, own_encoder, own_inputs, torch_encoder, without_inputs

from xfercore import hard_concrete
from xferkit.masks import GateSettings, HardConcreteMasks, declare_site, find_sites


def masks_of(model, granularity=("head", "ffn_unit"), **options):
    return HardConcreteMasks(model, find_sites(model, granularity), **options)


def fill(masks, value=OPEN):
    """One log alpha for all gates."""
    with torch.no_grad():
        for site in masks.sites:
            masks.log_alpha(site).fill_(value)


def same_state(model, before):
    now = model.state_dict()
    assert list(now) == list(before)
    for name, value in before.items():
        assert now[name].data_ptr() == value.data_ptr() and torch.equal(now[name], value)


# -- formulas ------------------------------------------------------------------------------------------------


def test_gates_penalty_and_sparsity_by_hand():
    model = own_encoder()
    masks = masks_of(model, init=0.0)
    values = torch.linspace(-5, 5, 10)
    with torch.no_grad():
        masks.log_alpha("layers.0.feed_forward/units").copy_(values)
    gates = masks.gates("layers.0.feed_forward/units")
    assert torch.allclose(gates, (values.sigmoid() * 1.2 - 0.1).clamp(0, 1), atol=1e-6)
    assert (gates == 0).sum() == 3 and (gates == 1).sum() == 3
    kept = torch.sigmoid(values - 2 / 3 * math.log(0.1 / 1.1)).sum().item()
    at_zero = 1 / (1 + math.exp(2 / 3 * math.log(0.1 / 1.1)))
    size, head = 12 + 1 + 12, (4 * 144 + 36) // 3
    wanted = kept * size + at_zero * (10 * size + 6 * head)
    assert masks.penalty().item() == pytest.approx(wanted, rel=1e-6)
    assert masks.penalty("gates").item() == pytest.approx(kept + 16 * at_zero, rel=1e-6)
    assert masks.total() == 20 * size + 6 * head and masks.total("gates") == 26
    found = masks.sparsity()
    assert found.expected_parameters == pytest.approx(1 - wanted / masks.total(), rel=1e-5)
    assert found.expected_gates == pytest.approx(1 - (kept + 16 * at_zero) / 26, rel=1e-5)
    assert found.eval_parameters == pytest.approx(3 * size / masks.total())
    assert found.eval_gates == pytest.approx(3 / 26)


def test_the_penalty_is_the_sum_of_that_of_every_part():
    model = own_encoder()
    masks = masks_of(model, ("head", "ffn_unit", "matrix"))
    with torch.no_grad():
        for log_alpha in masks.parameters():
            log_alpha.copy_(torch.randn(log_alpha.shape))
    parts = [
        hard_concrete(
            masks.log_alpha(site),
            model.get_parameter(part.name).view(part.view),
            seed_offset=masks.draw,
            group_dims=part.group_dims or None,
        )[1]
        for site in masks.sites
        for part in site.parts
    ]
    assert masks.penalty().item() == pytest.approx(sum(parts).item(), rel=1e-5)
    assert masks.total() == sum(p.numel() for p in model.parameters())


def test_the_expected_sparsity_is_that_of_draws():
    model = nn.Linear(2000, 1)
    masks = masks_of(model, "column", init=-0.7)
    shares = []
    for _ in range(20):
        shares.append((masks.gates("weight/columns", "sample") == 0).double().mean().item())
        masks.advance()
    assert sum(shares) / 20 == pytest.approx(masks.sparsity().expected_gates, abs=0.01)


def test_other_constants_reach_the_gates():
    model = nn.Linear(4, 1)
    masks = masks_of(model, "column", init=0.3, settings=GateSettings(0.5, -0.3, 1.4))
    wanted = 1 / (1 + math.exp(-0.3)) * 1.7 - 0.3
    assert masks.gates("weight/columns")[0].item() == pytest.approx(wanted, rel=1e-6)
    open_ = 1 / (1 + math.exp(-(0.3 - 0.5 * math.log(0.3 / 1.4))))
    assert masks.penalty().item() == pytest.approx(4 * open_, rel=1e-6)


# -- what a gate does ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["sample", "eval"])
def test_all_parts_of_a_site_hang_on_the_same_gates(mode):
    model = own_encoder()
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0)
    masks = masks_of(model, init=0.2)
    masked = masks.masked(model, mode)
    for site in masks.sites:
        gates = masks.gates(site, mode)
        assert gates.shape == site.shape
        assert mode == "eval" or gates.unique().numel() > 1
        for part in site.parts:
            shape = [1 if dim in part.group_dims else size for dim, size in enumerate(part.view)]
            wanted = gates.reshape(shape).expand(part.view)
            assert torch.equal(masked[part.name].reshape(part.view), wanted), part.name


@pytest.mark.parametrize("mode", ["sample", "eval"])
def test_a_closed_head_is_a_head_taken_away(mode):
    model, inputs = own_encoder(), own_inputs()
    masks = masks_of(model)
    fill(masks)
    assert torch.equal(masks.call(model, *inputs, mode=mode), model(*inputs))
    with torch.no_grad():
        masks.log_alpha("layers.1.attention/heads")[1] = CLOSED
        masks.log_alpha("layers.0.feed_forward/units")[7] = CLOSED
    with (
        without_inputs(model.layers[1].attention.output, slice(4, 8)),
        without_inputs(model.layers[0].feed_forward.down, [7]),
    ):
        wanted = model(*inputs)
    assert not torch.allclose(wanted, model(*inputs), atol=1e-3)
    assert torch.allclose(masks.call(model, *inputs, mode=mode), wanted, atol=1e-6)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_closed_head_of_torchs_encoder_is_one_taken_away(batch_first, training):
    """In its fast path without gradients too."""
    model = torch_encoder(batch_first)
    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(part, nn.MultiheadAttention):
            part.dropout = 0.0
    model.train(training)
    masks = masks_of(model)
    fill(masks)
    with torch.no_grad():
        masks.log_alpha("layers.1.self_attn/heads")[2] = CLOSED
        masks.log_alpha("layers.0/units")[3] = CLOSED
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut.layers[1].self_attn.out_proj.weight[:, 8:12] = 0
        cut.layers[0].linear2.weight[:, 3] = 0
    x = torch.randn(5, 6, 12)
    assert torch.allclose(masks.call(model, x, mode="eval"), cut(x), atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(masks.call(model, x, mode="eval"), cut(x), atol=1e-6)
        assert not torch.allclose(model(x), cut(x), atol=1e-3)


def test_the_start_is_the_module_itself_and_off_masks_nothing():
    model, inputs = own_encoder(), own_inputs()
    masks = masks_of(model)
    assert torch.equal(masks.call(model, *inputs, mode="eval"), model(*inputs))
    fill(masks, 0.0)
    assert torch.equal(masks.call(model, *inputs, mode="off"), model(*inputs))
    assert masks.masked(model, "off") == {}
    assert torch.equal(masks.gates(masks.sites[0], "off"), torch.ones(3))
    assert not torch.allclose(masks.call(model, *inputs, mode="eval"), model(*inputs), atol=1e-3)


def test_half_precision_is_kept():
    model, inputs = own_encoder().bfloat16(), own_inputs()
    masks = masks_of(model, init=0.0)
    assert all(p.dtype == torch.float32 for p in masks.parameters())
    assert all(t.dtype == torch.bfloat16 for t in masks.masked(model).values())
    masks.call(model, *inputs).float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in masks.parameters())


# -- the module is left alone --------------------------------------------------------------------------------


def test_calls_and_gradients_leave_the_module_alone():
    model, inputs = own_encoder(), own_inputs()
    before = model.state_dict()
    ids = [id(p) for p in model.parameters()]
    masks = masks_of(model, init=0.5)
    for p in model.parameters():
        p.requires_grad_(False)
    masks.call(model, *inputs).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in masks.parameters())
    assert all(p.grad is None for p in model.parameters())
    assert [id(p) for p in model.parameters()] == ids
    same_state(model, before)
    assert not [name for name, _ in model.named_modules() if "mask" in name]
    fresh = own_encoder()
    fresh.load_state_dict(model.state_dict())


def test_gradients_of_log_alpha_are_those_of_a_difference_quotient():
    model = own_encoder().double()
    inputs = own_inputs()
    masks = masks_of(model, init=0.3).double()
    weights = torch.randn(2, 7, 12, dtype=torch.float64)

    def loss():
        return (masks.call(model, *inputs) * weights).sum() + masks.penalty() / 100

    (gradient,) = torch.autograd.grad(loss(), masks.log_alpha("layers.0.attention/heads"))
    for head in range(3):
        values = []
        for shift in (1e-5, -1e-5):
            with torch.no_grad():
                masks.log_alpha("layers.0.attention/heads")[head] += shift
                values.append(loss().item())
                masks.log_alpha("layers.0.attention/heads")[head] -= shift
        assert gradient[head].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-6)


def test_the_block_masks_whoever_calls_and_always_restores():
    model, inputs = own_encoder(), own_inputs()
    before, plain = model.state_dict(), model(*inputs)
    masks = masks_of(model, init=0.4)
    wanted = masks.call(model, *inputs)
    with masks.applied(model):
        assert torch.equal(model(*inputs), wanted)
        assert torch.equal(model.all_layers(*inputs)[-1], wanted)
    assert torch.equal(model(*inputs), plain)
    with pytest.raises(KeyError), masks.applied(model, mode="eval"):
        assert not torch.equal(model(*inputs), plain)
        raise KeyError
    same_state(model, before)
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())
    assert torch.equal(model(*inputs), plain)


def test_tied_parameters_are_masked_under_each_name():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.head.weight = self.table.weight

        def forward(self, x):
            return self.head(self.table(x))

    model, x = Tied(), torch.tensor([[1, 2, 3]])
    masks = masks_of(model, "row")
    fill(masks)
    with torch.no_grad():
        masks.log_alpha("table.weight/rows")[2] = CLOSED
    cut = copy.deepcopy(model)
    with torch.no_grad():
        cut.table.weight[2] = 0
    assert cut.head.weight is cut.table.weight
    for found in (masks.call(model, x, mode="eval"), masks.call(model, x)):
        assert torch.equal(found, cut(x))
        assert (found[..., 2] == 0).all() and (found[0, 1] == 0).all() and (found[0, 0] != 0).any()
    with masks.applied(model):
        assert model.head.weight is model.table.weight
        assert torch.equal(model(x), cut(x))
    assert model.head.weight is model.table.weight


@pytest.mark.parametrize("module", [nn.LSTM(3, 4), nn.GRU(3, 4, num_layers=2)])
def test_recurrent_modules_forget_the_masks(module):
    x = torch.randn(5, 2, 3)
    plain, _ = module(x)
    masks = masks_of(module, "row", init=0.0)
    assert not torch.allclose(masks.call(module, x)[0], plain, atol=1e-3)
    assert torch.equal(module(x)[0], plain)
    with masks.applied(module):
        assert not torch.allclose(module(x)[0], plain, atol=1e-3)
    assert torch.equal(module(x)[0], plain)
    assert torch.equal(copy.deepcopy(module)(x)[0], plain)


# -- what is refused -----------------------------------------------------------------------------------------


def test_refusals_are_sentences():
    model = nn.Linear(3, 2)
    masks = masks_of(model, "row")
    for call, wanted in (
        (lambda: masks.log_alpha("weight/row"), "unknown site 'weight/row'; the nearest is 'weight/rows'"),
        (
            lambda: masks.call(model, torch.ones(3), mode="test"),
            "mode must be one of sample, eval, off, got 'test'",
        ),
        (lambda: masks.penalty("groups"), "count must be one of parameters, gates, got 'groups'"),
        (
            lambda: masks.masked(nn.Linear(3, 4)),
            r"'weight' of site 'weight/rows' has shape \[4, 3\]; expected \[2, 3\]",
        ),
        (lambda: masks.masked(nn.Sequential(model)), "is no parameter of the Sequential; .*'0.weight'"),
        (lambda: masks.masked(model.to("meta")), "is on meta; expected cpu as the masks are"),
        (lambda: masks_of(model, "row", init={"rows": 1.0}), "init names the unknown site 'rows'"),
        (lambda: masks_of(model, "row", init=math.nan), "init of site 'weight/rows' is not finite"),
        (
            lambda: masks_of(model, "row", init={"weight/rows": torch.ones(3)}),
            r"has shape \[3\]; expected \[2\]",
        ),
        (lambda: masks_of(model, "row", seed=-1), r"seed must be in \[0, 2\^62\), got -1"),
        (lambda: GateSettings(beta=0.0), "beta must be positive, got 0.0"),
        (lambda: GateSettings(gamma=0.1), "gamma must be below 0, got 0.1"),
        (lambda: GateSettings(zeta=1.0), "zeta must be above 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=wanted):
            call()


def test_masks_on_masks_are_refused():
    model = nn.Linear(3, 2)
    masks = masks_of(model, "row")
    with masks.applied(model):
        for other in (masks, masks_of(nn.Linear(3, 2), "row")):
            with pytest.raises(ValueError, match="is replaced already; expected one mask at a time"):
                other.call(model, torch.ones(3))
    bias = HardConcreteMasks(model, [declare_site(model, "b", [("bias", None, ())])], init=CLOSED)
    weight = HardConcreteMasks(model, [declare_site(model, "w", [("weight", None, ())])], init=CLOSED)
    with bias.applied(model), weight.applied(model):
        assert torch.equal(model(torch.ones(3)), torch.zeros(2))


def test_starts_by_site_and_odd_names():
    model = nn.Linear(3, 2)
    sites = [
        declare_site(model, "keys", [("bias", None, ())]),
        declare_site(model, "a.b%2Ec", [("weight", None, (1,))]),
    ]
    masks = HardConcreteMasks(model, sites, init={"keys": torch.tensor([1.0, -1.0])})
    assert masks.log_alpha("keys").tolist() == [1.0, -1.0]
    assert masks.log_alpha("a.b%2Ec").tolist() == [2.5, 2.5]
    assert len(list(masks.parameters())) == 2 and len(masks.state_dict()) == 3
