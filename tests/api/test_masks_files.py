"""Masks in files: whole, self-describing, and refused when damaged or of something else."""

from __future__ import annotations

import json
import struct

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from toy_masks import own_encoder

from xferkit.masks import (
    GateSettings,
    HardConcreteMasks,
    compare_masks,
    declare_site,
    find_sites,
    load_masks,
    restore_masks,
    save_masks,
)

FILE = "de.safetensors"


def drawn(model, seed=0, **options):
    masks = HardConcreteMasks(model, find_sites(model), seed=7, **options)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in masks.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    masks.advance()
    return masks


def same(a, b):
    assert a.sites == b.sites and a.settings == b.settings
    mine, theirs = a.state_dict(), b.state_dict()
    assert list(mine) == list(theirs)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_is_saved_comes_back(tmp_path):
    model = own_encoder()
    masks = drawn(model, settings=GateSettings(0.5, -0.2, 1.3))
    save_masks(tmp_path / FILE, masks)
    for loaded in (load_masks(tmp_path / FILE), load_masks(tmp_path / FILE, model)):
        same(loaded, masks)
        assert loaded.draw.tolist() == [7, 1]
        assert torch.equal(loaded.gates(masks.sites[3], "sample"), masks.gates(masks.sites[3], "sample"))
        assert compare_masks(loaded, masks).whole.centred_cosine == pytest.approx(1.0)
    fresh = HardConcreteMasks(model, find_sites(model), settings=masks.settings)
    restore_masks(tmp_path / FILE, fresh)
    same(fresh, masks)
    assert [p.name for p in tmp_path.iterdir()] == [FILE]


def test_other_programs_can_read_it(tmp_path):
    model = own_encoder()
    masks = drawn(model)
    save_masks(tmp_path / FILE, masks)
    tensors = safetensors.torch.load_file(tmp_path / FILE)
    assert torch.equal(
        tensors["log_alpha:layers.0.attention/heads"], masks.log_alpha("layers.0.attention/heads")
    )
    with safe_open(tmp_path / FILE, "pt") as file:
        content = json.loads(file.metadata()["masks"])
    assert content["settings"] == {"beta": 2 / 3, "gamma": -0.1, "zeta": 1.1}
    assert content["sites"][0]["parts"][0]["name"] == "layers.0.attention.query.weight"


def test_every_flipped_or_missing_byte_is_noticed(tmp_path):
    model = nn.Linear(3, 2)
    masks = HardConcreteMasks(model, find_sites(model, "row"))
    path = tmp_path / FILE
    save_masks(path, masks)
    content = path.read_bytes()
    (head,) = struct.unpack("<Q", content[:8])
    accepted = []
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        try:
            loaded = load_masks(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            # Only where JSON has several spellings of one content: blanks behind the head.
            same(loaded, masks)
            accepted.append(content[place : place + 1])
    assert set(accepted) <= {b" "} and len(accepted) <= 8 and head < len(content)
    for length in (0, 7, 8, 100, len(content) - 1):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=FILE):
            load_masks(path)
    path.unlink()
    with pytest.raises(ValueError, match="is missing"):
        load_masks(path)


def test_a_file_of_something_else(tmp_path):
    path = tmp_path / FILE
    safetensors.torch.save_file({"x": torch.ones(2)}, path)
    with pytest.raises(
        ValueError, match=r"de.safetensors holds no masks: its format is None, expected 'xferkit.masks 1'"
    ):
        load_masks(path)


def test_masks_of_other_sites_shapes_or_constants_change_nothing(tmp_path):
    model, path = nn.Linear(3, 2), tmp_path / FILE
    save_masks(path, HardConcreteMasks(model, find_sites(model, "row"), init=1.0))
    wide, fine = nn.Linear(3, 5), nn.Linear(4, 2)
    for other, granularity, options, wanted in (
        (wide, "row", {}, r"has gates of shape \[2\] for the site 'weight/rows'; expected \[5\]"),
        (
            fine,
            "row",
            {},
            r"has weight \[2, 3\] as \[2, 3\], .* in the site 'weight/rows'; expected weight \[2, 4\]",
        ),
        (model, "column", {}, "lacks the site 'weight/columns'; the nearest is 'weight/rows'"),
        (
            model,
            "row",
            {"settings": GateSettings(0.5)},
            r"has GateSettings\(beta=0.66.*; expected GateSettings\(beta=0.5",
        ),
    ):
        masks = HardConcreteMasks(other, find_sites(other, granularity), **options)
        with pytest.raises(ValueError, match=wanted) as caught:
            restore_masks(path, masks)
        assert str(path) in str(caught.value)
        assert all((p == 2.5).all() for p in masks.parameters())
    more = nn.Linear(3, 2)
    extra = [*find_sites(more, "row", include="weight")]
    save_masks(path, HardConcreteMasks(more, [declare_site(more, "b", [("bias", None, ())])]))
    with pytest.raises(ValueError, match="lacks the site 'weight/rows'"):
        restore_masks(path, HardConcreteMasks(more, extra))
    with pytest.raises(ValueError, match=r"'bias' of site 'b' has shape \[5\]; expected \[2\]"):
        load_masks(path, wide)


def test_numbers_that_are_none_are_not_saved(tmp_path):
    model = nn.Linear(3, 2)
    masks = HardConcreteMasks(model, find_sites(model, "row"))
    with torch.no_grad():
        masks.log_alpha("weight/rows")[1] = torch.nan
    with pytest.raises(ValueError, match="log alpha of site 'weight/rows' is not finite"):
        save_masks(tmp_path / FILE, masks)
    assert not list(tmp_path.iterdir())
