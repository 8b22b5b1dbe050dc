"""Masks as a safetensors file: log alphas by site, and in the head everything else that makes them up."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from xferkit.checkpoints.errors import DamagedError
from xferkit.checkpoints.tensor_file import parse_json, read_bytes, read_tensors
from xferkit.files import write_atomic
from xferkit.masks.gates import HardConcreteMasks
from xferkit.masks.names import nearest
from xferkit.masks.settings import GateSettings
from xferkit.masks.sites import MaskPart, MaskSite, check_sites

__all__ = ["load_masks", "restore_masks", "save_masks"]

_FORMAT = "xferkit.masks 1"
_MAX_BYTES = 2**40


def save_masks(path: Path | str, masks: HardConcreteMasks) -> None:
    """Write `masks`; the file is whole or what was there before.

    It is a safetensors file with a float32 tensor for each site, under its name, and the draws (seed and step) as
    ``draw``; the head's metadata hold the sites, the constants and a checksum over all of it.

    Raises:
        ValueError: a log alpha that is not finite; nothing was written.
        OSError: it cannot be written.
    """
    for site in masks.sites:
        if not bool(masks.log_alpha(site).isfinite().all()):
            raise ValueError(
                f"save_masks: log alpha of site {site.name!r} is not finite; {path} was not written"
            )
    tensors = {
        f"log_alpha:{s.name}": masks.log_alpha(s).detach().float().cpu().contiguous() for s in masks.sites
    }
    tensors["draw"] = masks.draw.cpu().clone()
    text = json.dumps(
        {"settings": asdict(masks.settings), "sites": [asdict(site) for site in masks.sites]}, sort_keys=True
    )
    metadata = {"format": _FORMAT, "masks": text, "sha256": _digest(text, tensors)}
    write_atomic(Path(path), safetensors.torch.save(tensors, metadata))


def load_masks(path: Path | str, module: nn.Module | None = None) -> HardConcreteMasks:
    """The masks of a file, on the CPU, or on the device of `module`.

    Args:
        path: as :func:`save_masks` wrote it.
        module: whose parameters they have to fit; None: for comparing them, or for a module to come.

    Raises:
        ValueError: a file that is damaged or holds no masks, or masks that do not fit; the sentence names the file.
        OSError: it cannot be read.
    """
    where = Path(path)
    sites, settings, tensors = _read(where)
    if module is not None:
        check_sites(f"load_masks: {where}", sites, dict(module.named_parameters(remove_duplicate=False)))
    masks = HardConcreteMasks(module, sites, settings=settings)
    _fill(masks, tensors)
    return masks


def restore_masks(path: Path | str, masks: HardConcreteMasks) -> None:
    """Fill `masks` with those of a file of the same sites and constants.

    Raises:
        ValueError: a file that is damaged, of other sites, shapes or constants; nothing was changed.
        OSError: it cannot be read.
    """
    where = Path(path)
    sites, settings, tensors = _read(where)
    found, wanted = {site.name: site for site in sites}, {site.name: site for site in masks.sites}
    for name in wanted:
        if name not in found:
            raise ValueError(f"restore_masks: {where} lacks the site {name!r}{nearest(name, found)}")
    for name, site in found.items():
        if name not in wanted:
            raise ValueError(
                f"restore_masks: {where} has the site {name!r}, which the masks lack{nearest(name, wanted)}"
            )
        if site.shape != wanted[name].shape:
            raise ValueError(
                f"restore_masks: {where} has gates of shape {list(site.shape)} for the site {name!r}; expected "
                f"{list(wanted[name].shape)}"
            )
        if site.parts != wanted[name].parts:
            raise ValueError(
                f"restore_masks: {where} has {_parts(site)} in the site {name!r}; expected {_parts(wanted[name])}"
            )
    if settings != masks.settings:
        raise ValueError(f"restore_masks: {where} has {settings}; expected {masks.settings}")
    _fill(masks, tensors)


@torch.no_grad()
def _fill(masks: HardConcreteMasks, tensors: dict[str, Tensor]) -> None:
    for site in masks.sites:
        masks.log_alpha(site).copy_(tensors[f"log_alpha:{site.name}"])
    masks.draw.copy_(tensors["draw"])


def _parts(site: MaskSite) -> str:
    return ", ".join(f"{part.name} {list(part.shape)} as {list(part.view)}" for part in site.parts)


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path) -> tuple[list[MaskSite], GateSettings, dict[str, Tensor]]:
    """Everything in the file, after all of it was checked."""
    tensors = read_tensors(path)
    metadata = _metadata(path)
    if metadata.get("format") != _FORMAT or not isinstance(metadata.get("masks"), str):
        raise ValueError(
            f"{path} holds no masks: its format is {metadata.get('format')!r}, expected {_FORMAT!r}"
        )
    text = metadata["masks"]
    if metadata.get("sha256") != _digest(text, tensors):
        raise DamagedError(f"{path} does not have the SHA-256 it was written with.")
    content = parse_json(path, text.encode())
    try:
        settings = GateSettings(**content["settings"])
        sites = [_site(entry) for entry in content["sites"]]
    except (KeyError, TypeError) as error:
        raise DamagedError(f"{path} does not describe masks: {error}.") from error
    for site in sites:
        found = tensors.get(f"log_alpha:{site.name}")
        if found is None or tuple(found.shape) != site.shape or not bool(found.isfinite().all()):
            got = "nothing" if found is None else f"shape {list(found.shape)}"
            raise DamagedError(
                f"{path} has {got} for the site {site.name!r}, expected finite numbers of shape {list(site.shape)}."
            )
    if len(tensors) != len(sites) + 1 or "draw" not in tensors or tuple(tensors["draw"].shape) != (2,):
        raise DamagedError(f"{path} holds other tensors than those of its {len(sites)} sites and the draw.")
    return sites, settings, tensors


def _metadata(path: Path) -> dict[str, Any]:
    content = read_bytes(path, None, _MAX_BYTES)
    (length,) = struct.unpack("<Q", content[:8])
    found = parse_json(path, content[8 : 8 + length]).get("__metadata__")
    return found if isinstance(found, dict) else {}


def _site(entry: dict[str, Any]) -> MaskSite:
    parts = tuple(
        MaskPart(p["name"], tuple(p["shape"]), tuple(p["view"]), tuple(p["group_dims"]))
        for p in entry["parts"]
    )
    return MaskSite(entry["name"], entry["layer"], entry["kind"], parts, entry["granularity"])
