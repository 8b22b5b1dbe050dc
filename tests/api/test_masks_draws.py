"""Draws of masks: reproducible, apart from site to site, and replayed by gradient checkpointing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from toy_masks import own_encoder, own_inputs

from xferkit.masks import HardConcreteMasks, find_sites


def masks_of(model, granularity=("head", "ffn_unit"), **options):
    return HardConcreteMasks(model, find_sites(model, granularity), **options)


def test_draws_repeat_until_the_step_advances_and_depend_on_the_seed():
    model = own_encoder()
    masks, again, other = (masks_of(model, init=0.0, seed=seed) for seed in (5, 5, 6))
    name = "layers.0.feed_forward/units"
    first = masks.gates(name, "sample")
    assert torch.equal(masks.gates(name, "sample"), first) and torch.equal(again.gates(name, "sample"), first)
    assert not torch.equal(other.gates(name, "sample"), first)
    masks.advance()
    assert masks.draw.tolist() == [5, 1] and masks.draw.dtype == torch.int64
    assert not torch.equal(masks.gates(name, "sample"), first)
    again.load_state_dict(masks.state_dict())
    assert torch.equal(again.gates(name, "sample"), masks.gates(name, "sample"))


def test_sites_draw_apart_and_do_not_depend_on_each_other():
    model = own_encoder()
    masks = masks_of(model, init=0.0)
    a, b = (masks.gates(f"layers.{n}.feed_forward/units", "sample") for n in (0, 1))
    assert not torch.equal(a, b)
    alone = HardConcreteMasks(model, find_sites(model, include="layers.1.feed_forward/*"), init=0.0)
    assert torch.equal(alone.gates("layers.1.feed_forward/units", "sample"), b)
    wide = nn.ModuleList([nn.Linear(3000, 1) for _ in range(2)])
    masks = masks_of(wide, "column", init=0.0)
    x, y = (masks.gates(f"{n}.weight/columns", "sample") for n in (0, 1))
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1].item()) < 0.08


def test_checkpointing_around_a_call_replays_the_gates():
    model, inputs = own_encoder(), own_inputs()
    masks = masks_of(model, init=0.0)
    plain = torch.autograd.grad(masks.call(model, *inputs).square().sum(), list(masks.parameters()))
    out = checkpoint(lambda: masks.call(model, *inputs), use_reentrant=False)
    again = torch.autograd.grad(out.square().sum(), list(masks.parameters()))
    assert all(torch.equal(x, y) for x, y in zip(plain, again, strict=True))


def test_checkpointing_inside_the_module_is_right_in_the_block_and_refused_in_a_call():
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.part, self.gradient_checkpointing = (
                nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)),
                True,
            )

        def forward(self, x):
            if self.gradient_checkpointing:
                return checkpoint(self.part, x, use_reentrant=False)
            return self.part(x)

    model, x = Inside(), torch.randn(6, 4)
    masks = masks_of(model, "row", init=0.0)
    parameters = list(masks.parameters())

    def gradients():
        with masks.applied(model):
            return torch.autograd.grad(model(x).square().sum(), parameters)

    found = gradients()
    with pytest.raises(RuntimeError, match=r"the Inside recomputes .* expected masks.applied\(module\)"):
        masks.call(model, x)
    model.gradient_checkpointing = False
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(found, gradients(), strict=True))
    model.gradient_checkpointing = True
    assert masks.call(model.eval(), x).shape == (6, 3)
