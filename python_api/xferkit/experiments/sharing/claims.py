"""What the thesis says, held against what came out: each claim with its figures, whichever way they fall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

from xferkit.experiments.sharing.config import SharingConfig
from xferkit.experiments.sharing.summary import Likeness, SharingResult
from xferkit.metrics import Interval, paired_difference, t_interval, verdict
from xferkit.report.format import signed, signed_interval

__all__ = ["EARLY", "Claim", "check_claims", "sentences"]

#: The share of the training that counts as early.
EARLY = 0.25


@dataclass(frozen=True)
class Claim:
    """A claim.

    Attributes:
        text: what is claimed.
        figures: what was measured.
        seeds: the difference that decides, seed by seed.
        holds: "yes" or "no" where its interval leaves out 0, else what is left open.
    """

    text: str
    figures: str
    seeds: str
    holds: str


def check_claims(config: SharingConfig, result: SharingResult) -> list[Claim]:
    """All claims for which there are figures."""
    return [*_gradients(result), *_masks(config, result)]


def _claim(text: str, figures: str, differences: Sequence[float]) -> Claim:
    interval = t_interval(list(differences))
    return Claim(
        text,
        f"{figures}: {signed_interval(interval, 3)}",
        ", ".join(signed(value, 3) for value in differences),
        _decided(interval, differences),
    )


def _decided(interval: Interval, differences: Sequence[float]) -> str:
    """Few seeds give wide intervals; whether all seeds agree is said as well."""
    decided = {"helps": "yes", "hurts": "no, the opposite"}.get(verdict(interval))
    if decided:
        return decided
    if all(value > 0 for value in differences):
        return "in every seed, but the interval holds 0" if len(differences) > 1 else "in the one seed"
    if all(value < 0 for value in differences):
        return (
            "the opposite in every seed, but the interval holds 0"
            if len(differences) > 1
            else "no, in the one seed"
        )
    return "not clear"


def _less(one: Sequence[float], other: Sequence[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _gradients(result: SharingResult) -> Iterator[Claim]:
    for words, share in (("early in training", (0.0, EARLY)), ("in the last quarter", (1 - EARLY, 1.0))):
        within = result.cosines("whole", "within", share)
        across = result.cosines("whole", "across", share)
        yield _claim(
            f"Gradients of two batches of one language are more alike than those of two languages, {words}",
            f"mean cosine {signed(fmean(within), 3)} within, {signed(fmean(across), 3)} across",
            _less(within, across),
        )


def _masks(config: SharingConfig, result: SharingResult) -> Iterator[Claim]:
    whole = result.part("all")
    assert whole is not None
    yield _claim(
        "Masks of two halves of one language are more alike than masks of two languages (the control)",
        f"centred cosine {signed(fmean(whole.within), 3)} within, {signed(fmean(whole.across), 3)} across; as the "
        f"thesis takes it {signed(fmean(whole.plain_within), 3)} and {signed(fmean(whole.plain_across), 3)}; "
        "within less across",
        whole.gap,
    )
    layers = [
        part for part in result.likeness if part.name.startswith("layer ") and part.name.count(" ") == 1
    ]
    if len(layers) >= 2:
        half = len(layers) // 2
        bottom, top = layers[:half], layers[-half:]
        yield _claim(
            "Bottom layers are more shared than top layers",
            f"what sets languages apart (within less across) {signed(_mean_gap(bottom), 3)} at the bottom, "
            f"{signed(_mean_gap(top), 3)} at the top; top less bottom",
            _less(_gaps(top), _gaps(bottom)),
        )
        yield _claim(
            "The same, by the likeness of two languages' masks alone",
            f"centred cosine {signed(fmean(_across(bottom)), 3)} at the bottom, {signed(fmean(_across(top)), 3)} at "
            "the top; bottom less top",
            _less(_across(bottom), _across(top)),
        )
    # Layer by layer: over all layers at once a kind's cosine has what its layers differ in as well.
    attention, forward = (
        [part for part in result.likeness if part.name.startswith("layer ") and part.name.endswith(kind)]
        for kind in (" attention", " feed-forward")
    )
    if attention and forward:
        counts = [sum(part.gates for part in parts) for parts in (attention, forward)]
        yield _claim(
            "Attention is more shared than feed-forward parts",
            f"within less across, mean over layers, {signed(_mean_gap(attention), 3)} for attention ({counts[0]} "
            f"gates), {signed(_mean_gap(forward), 3)} for feed-forward ({counts[1]}); feed-forward less attention",
            _less(_gaps(forward), _gaps(attention)),
        )
        yield _claim(
            "The same, by the likeness of two languages' masks alone",
            f"centred cosine, mean over layers, {signed(fmean(_across(attention)), 3)} for attention, "
            f"{signed(fmean(_across(forward)), 3)} for feed-forward; attention less feed-forward",
            _less(_across(attention), _across(forward)),
        )
    interval = paired_difference(whole.iou_across, whole.iou_random)
    yield Claim(
        "Two languages keep more gates in common than random masks of their sizes do",
        f"intersection over union {fmean(whole.iou_across):.3f}, of random masks {fmean(whole.iou_random):.3f}, of two "
        f"halves of one language {fmean(whole.iou_within):.3f}: {signed_interval(interval, 3)}",
        ", ".join(signed(v, 3) for v in _less(whole.iou_across, whole.iou_random)),
        _decided(interval, _less(whole.iou_across, whole.iou_random)),
    )


def _gaps(parts: Sequence[Likeness]) -> list[float]:
    """A number a seed, mean over parts."""
    return [fmean(values) for values in zip(*(part.gap for part in parts), strict=True)]


def _mean_gap(parts: Sequence[Likeness]) -> float:
    return fmean(_gaps(parts))


def _across(parts: Sequence[Likeness]) -> list[float]:
    return [fmean(values) for values in zip(*(part.across for part in parts), strict=True)]


def sentences(config: SharingConfig, result: SharingResult) -> list[str]:
    """What came out, a sentence a claim."""
    return [f"{claim.text}: {claim.holds} ({claim.figures})." for claim in check_claims(config, result)]
