"""Folders of files with checksums: whole or not there, replaced only when asked, read only when unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xferkit.checkpoints import (
    CheckpointError,
    DamagedError,
    open_folder,
    write_folder,
)
from xferkit.checkpoints.manifest import MANIFEST_NAME, Manifest


def test_a_model_folder_is_written_whole_and_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "model"
    weights = {"w": torch.randn(3, 4).half()}
    write_folder(path, {"config.json": '{"a": 1}', "model.safetensors": weights, "raw": b"\0"}, kind="model")
    folder = open_folder(path, kind="model")
    assert folder.json("config.json") == {"a": 1} and folder.bytes("raw") == b"\0"
    assert torch.equal(folder.tensors("model.safetensors")["w"], weights["w"])
    with pytest.raises(CheckpointError, match="model is there already; nothing was overwritten"):
        write_folder(path, {}, kind="model")
    with pytest.raises(CheckpointError, match="is a folder of kind 'model', expected 'checkpoint'"):
        open_folder(path, kind="checkpoint")
    with pytest.raises(DamagedError, match="does not list 'other'"):
        folder.bytes("other")
    (path / "notes.txt").write_text("mine")
    with pytest.raises(
        CheckpointError, match=r"notes.txt was put there by someone else; nothing was overwritten"
    ):
        write_folder(path, {"config.json": "{}"}, kind="model", replace=True)
    (path / "notes.txt").unlink()
    write_folder(path, {"config.json": "{}"}, kind="model", replace=True)
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "manifest.json"]
    (path / "config.json").write_text("{ }")
    with pytest.raises(DamagedError, match=r"config.json has 3 bytes, but 2 were written"):
        open_folder(path, kind="model").json("config.json")
    (tmp_path / "empty").mkdir()
    write_folder(tmp_path / "empty", {"a": "b"}, kind="model")
    for name in ("../a", "a/b", "", "..", MANIFEST_NAME, "a\0"):
        with pytest.raises(CheckpointError, match="is no name of a file in the folder"):
            write_folder(tmp_path / "bad", {name: "x"}, kind="model")
    with pytest.raises(CheckpointError, match="'w' is no plain tensor"):
        write_folder(tmp_path / "bad", {"m": {"w": torch.empty(2, device="meta")}}, kind="model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "empty"]


def test_a_folder_of_someone_else_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"manifest.json is missing"):
        write_folder(tmp_path / "home", {"a": "b"}, kind="model", replace=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with pytest.raises(CheckpointError, match="is no folder; nothing was overwritten"):
        write_folder(tmp_path / "link", {"a": "b"}, kind="model", replace=True)
    assert (tmp_path / "home/thesis.tex").read_text() == "years of work"


def test_a_manifest_comes_back_and_any_changed_byte_is_found(tmp_path: Path) -> None:
    write_folder(tmp_path / "m", {"a": "b"}, kind="model", identity={"k": "v\ud800\n"}, step=3)
    path = tmp_path / "m" / MANIFEST_NAME
    raw = path.read_bytes()
    manifest = Manifest.parse(path, raw)
    assert manifest.to_bytes() == raw and manifest.identity == {"k": "v\ud800\n"} and manifest.step == 3
    for place in range(8 * len(raw)):
        damaged = bytearray(raw)
        damaged[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedError, match="does not have the SHA-256"):
            Manifest.parse(path, bytes(damaged))
    for length in range(len(raw)):
        with pytest.raises(DamagedError):
            Manifest.parse(path, raw[:length])
