"""How alike two masks are: log alphas by cosine and by sign, and the sets of gates that they keep."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from xferkit.masks.gates import HardConcreteMasks
from xferkit.masks.names import nearest
from xferkit.masks.overlap import Overlap, overlap
from xferkit.masks.sites import MaskSite

__all__ = ["MaskAgreement", "MaskComparison", "check_same_sites", "compare_masks", "log_alphas"]


@dataclass(frozen=True)
class MaskAgreement:
    """Two masks on some gates.

    Attributes:
        name: of the site, ``"layer 3"``, the kind, or ``"all"``.
        gates: number of gates.
        cosine: of the log alphas as they are, the measure of Wang's thesis. Log alphas with one mean far from 0 have a
            cosine near 1 whatever else they say: masks of one sparsity always look alike.
        centred_cosine: of the log alphas minus their mean over these gates (Pearson's correlation), which tells
            whether the same gates are above it.
        universal: fraction of gates whose log alpha is above 0 in both.
        pruned: fraction where it is at most 0 in both.
        specific: fraction where it is above 0 in one alone: language-specific.
        overlap: of the gates that are open in evaluation, against random ones of the same number in every site.
    """

    name: str
    gates: int
    cosine: float
    centred_cosine: float
    universal: float
    pruned: float
    specific: float
    overlap: Overlap


@dataclass(frozen=True)
class MaskComparison:
    """Two masks by site, by layer, by kind and on the whole.

    Attributes:
        sites: of each site.
        layers: of each layer with a number.
        kinds: of each kind of site.
        whole: of all gates.
    """

    sites: tuple[MaskAgreement, ...]
    layers: tuple[MaskAgreement, ...]
    kinds: tuple[MaskAgreement, ...]
    whole: MaskAgreement

    def to_json(self) -> dict[str, Any]:
        """Plain values for :meth:`from_json`; None is for what is not a number."""
        record: dict[str, Any] = _finite(asdict(self))
        return record

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> MaskComparison:
        """The comparison of :meth:`to_json`; KeyError or TypeError where ``values`` are of none."""
        sites, layers, kinds = (
            tuple(_read_agreement(v) for v in values[name]) for name in ("sites", "layers", "kinds")
        )
        return cls(sites, layers, kinds, _read_agreement(values["whole"]))

    def site(self, name: str) -> MaskAgreement:
        """That of a site.

        Raises:
            ValueError: there is none of that name; the sentence has the nearest.
        """
        for agreement in self.sites:
            if agreement.name == name:
                return agreement
        raise ValueError(
            f"MaskComparison: unknown site {name!r}{nearest(name, [a.name for a in self.sites])}"
        )


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    if isinstance(value, dict):
        return {name: _finite(v) for name, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read_agreement(values: Mapping[str, Any]) -> MaskAgreement:
    def known(record: Mapping[str, Any]) -> dict[str, Any]:
        return {name: math.nan if v is None else v for name, v in record.items()}

    return MaskAgreement(**known({**values, "overlap": Overlap(**known(values["overlap"]))}))


def compare_masks(a: HardConcreteMasks, b: HardConcreteMasks) -> MaskComparison:
    """Compare the masks of two languages (tasks), or of one language and two seeds: what is alike without sharing.

    Raises:
        ValueError: masks of other sites.
    """
    check_same_sites("compare_masks", [a, b])
    layers = sorted({site.layer for site in a.sites if site.layer is not None})
    kinds = list(dict.fromkeys(site.kind for site in a.sites))
    return MaskComparison(
        tuple(_agreement(a, b, site.name, [site]) for site in a.sites),
        tuple(_agreement(a, b, f"layer {n}", [s for s in a.sites if s.layer == n]) for n in layers),
        tuple(_agreement(a, b, kind, [s for s in a.sites if s.kind == kind]) for kind in kinds),
        _agreement(a, b, "all", a.sites),
    )


def check_same_sites(owner: str, masks: Sequence[HardConcreteMasks]) -> None:
    """Refuse masks that do not have the same gates.

    Raises:
        ValueError: a site that one lacks, or of another shape; the sentence has both.
    """
    first = {site.name: site.shape for site in masks[0].sites}
    for other in masks[1:]:
        second = {site.name: site.shape for site in other.sites}
        for name in (*first, *second):
            if first.get(name) != second.get(name):
                found, wanted = (
                    f"gates of shape {list(known[name])}" if name in known else "no such gates"
                    for known in (second, first)
                )
                raise ValueError(
                    f"{owner}: one mask has {found} for the site {name!r}; expected {wanted} as another has"
                )


def log_alphas(masks: HardConcreteMasks, site: str) -> npt.NDArray[np.float64]:
    """Log alphas of a site, ``[num_gates]``, on the host."""
    return masks.log_alpha(site).detach().to("cpu", torch.float64).flatten().numpy()


def _agreement(
    a: HardConcreteMasks, b: HardConcreteMasks, name: str, sites: Iterable[MaskSite]
) -> MaskAgreement:
    chosen = list(sites)
    x, y = (np.concatenate([log_alphas(masks, site.name) for site in chosen]) for masks in (a, b))
    kept_x, kept_y = x > 0, y > 0
    sets = [(_open(a, site), _open(b, site)) for site in chosen]
    return MaskAgreement(
        name,
        x.size,
        _cosine(x, y),
        _cosine(x - x.mean(), y - y.mean()),
        float((kept_x & kept_y).mean()),
        float((~kept_x & ~kept_y).mean()),
        float((kept_x != kept_y).mean()),
        overlap(sets),
    )


def _open(masks: HardConcreteMasks, site: MaskSite) -> npt.NDArray[np.bool_]:
    with torch.no_grad():
        return (masks.gates(site.name, "eval") > 0).cpu().flatten().numpy()


def _cosine(x: npt.NDArray[np.float64], y: npt.NDArray[np.float64]) -> float:
    """NaN where one has no length."""
    lengths = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / lengths if lengths else math.nan
