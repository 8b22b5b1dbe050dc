"""Perturbation controls of the input, ε_x: images rotated, salted, flipped; texts with words lost, moved, replaced.

Each item has random numbers of its own, from the seed and its index in the whole set: a batch is perturbed as it would
be within the set, and what happens at one ε happens at every larger one too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np

__all__ = ["ImageKind", "WordKind", "perturb_images", "perturb_texts"]

#: What may happen to an image.
ImageKind = Literal["rotate", "salt_and_pepper", "flip"]
#: What may happen to a word: it is lost, changes places with its neighbour, or becomes a word of the dictionary.
WordKind = Literal["drop", "swap", "replace"]

_IMAGE_KINDS: tuple[ImageKind, ...] = get_args(ImageKind)
_WORD_KINDS: tuple[WordKind, ...] = get_args(WordKind)


def perturb_images(
    images: np.ndarray,
    epsilon: float,
    *,
    seed: int,
    kinds: Sequence[ImageKind] = _IMAGE_KINDS,
    max_angle: float = 45.0,
    noise: float = 0.1,
    channels_first: bool = False,
    indices: Sequence[int] | None = None,
) -> np.ndarray:
    """A copy in which each image is, with probability ε, rotated, salted or flipped.

    One of `kinds` is drawn for a perturbed image: ``rotate`` by an angle drawn from ±[max_angle / 3, max_angle] about
    the centre (bilinear, the edge repeated); ``salt_and_pepper`` sets each pixel with probability `noise` to the
    highest or the lowest value (255 and 0 of uint8, the image's own extremes of a float type), all channels alike;
    ``flip`` mirrors left and right or top and bottom. ε = 0 gives the input exactly.

    Args:
        images: ``[n, height, width]``, ``[n, height, width, channels]`` or, with `channels_first`,
            ``[n, channels, height, width]``; uint8 or a float type, which the result has too.
        epsilon: probability ε_x in [0, 1].
        seed: 0 or more; the same seed gives the same images.
        kinds: one or more of the three.
        max_angle: degrees, in (0, 180].
        noise: share of the pixels, in (0, 1].
        channels_first: whether the channels of four dimensions come second.
        indices: of each image in the whole set; None: 0 to n - 1.

    Raises:
        ValueError: an argument is out of range, or of another shape or type.

    Source: Wang et al. (2019), Characterizing and avoiding negative transfer, section 4.
    """
    rate = _rate(epsilon, "epsilon")
    array = np.asarray(images)
    if array.ndim not in (3, 4) or (channels_first and array.ndim == 3):
        wanted = "[n, channels, height, width]" if channels_first else "[n, height, width] or with channels"
        raise ValueError(f"images must be of shape {wanted}, got {list(array.shape)}")
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"images must be uint8 or a float type, got {array.dtype}")
    chosen = _kinds(kinds, _IMAGE_KINDS)
    if not 0.0 < max_angle <= 180.0:
        raise ValueError(f"max_angle must be in (0, 180], got {max_angle}")
    if not 0.0 < noise <= 1.0:
        raise ValueError(f"noise must be in (0, 1], got {noise}")
    result = array.copy()
    axes = (1, 2) if channels_first else (0, 1)
    for row, index in enumerate(_indices(indices, len(array))):
        generator = _generator(seed, index)
        if generator.random() >= rate:
            continue
        kind = chosen[int(generator.integers(len(chosen)))]
        if kind == "rotate":
            angle = generator.uniform(max_angle / 3.0, max_angle) * (
                1.0 if generator.random() < 0.5 else -1.0
            )
            result[row] = _rotated(array[row], angle, axes)
        elif kind == "salt_and_pepper":
            result[row] = _salted(array[row], noise, axes, generator)
        else:
            result[row] = np.flip(array[row], axes[int(generator.integers(2))])
    return result


def _rotated(image: np.ndarray, angle: float, axes: tuple[int, int]) -> np.ndarray:
    from scipy import ndimage

    turned: np.ndarray = ndimage.rotate(
        image.astype(np.float64), angle, axes=axes, reshape=False, order=1, mode="nearest"
    )
    if image.dtype == np.uint8:
        turned = np.clip(np.rint(turned), 0, 255)
    return turned.astype(image.dtype)


def _salted(
    image: np.ndarray, noise: float, axes: tuple[int, int], generator: np.random.Generator
) -> np.ndarray:
    shape = [size if axis in axes else 1 for axis, size in enumerate(image.shape)]
    drawn = np.broadcast_to(generator.random(shape), image.shape)
    low, high = (0, 255) if image.dtype == np.uint8 else (image.min(), image.max())
    return np.where(drawn < noise / 2.0, low, np.where(drawn < noise, high, image)).astype(image.dtype)


def perturb_texts(
    texts: Sequence[str],
    epsilon: float,
    *,
    seed: int,
    kinds: Sequence[WordKind] | None = None,
    dictionary: Sequence[str] = (),
    indices: Sequence[int] | None = None,
) -> list[str]:
    """Texts in which each word is, with probability ε, lost, swapped with its neighbour, or replaced.

    Words are what white space separates; the white space before a word that stays is kept. Of a text whose every word
    would be lost, the one that the largest ε would lose stays. ε = 0 gives the input exactly.

    Words are swapped in pairs of neighbours that share no word and that do not depend on ε: the first with the second,
    the third with the fourth and so on. In a text with an odd number of words one end, drawn per text, has no partner;
    one of the other kinds happens to it instead, nothing where ``swap`` is the only one. One draw decides for both
    words of a pair, and nothing else happens to them, so that each word takes part in a swap with probability ε where
    ``swap`` is the only kind, and with ε / K where it is one of K.

    Args:
        texts: any texts.
        epsilon: probability ε_x of each word, in [0, 1].
        seed: 0 or more; the same seed gives the same texts.
        kinds: which of ``drop``, ``swap`` and ``replace`` may happen, each as likely; None: all, ``replace`` only
            with a dictionary.
        dictionary: words that replace others.
        indices: of each text in the whole set; None: 0 to n - 1.

    Raises:
        ValueError: an argument is out of range, or ``replace`` lacks a dictionary.
    """
    rate = _rate(epsilon, "epsilon")
    if isinstance(texts, str):
        raise ValueError("texts must be a list of texts, got one text")
    if kinds is None:
        kinds = _WORD_KINDS if dictionary else ("drop", "swap")
    chosen = _kinds(kinds, _WORD_KINDS)
    if "replace" in chosen and not dictionary:
        raise ValueError("kinds holds 'replace', which needs a dictionary of one word or more")
    numbered = zip(texts, _indices(indices, len(texts)), strict=True)
    return [_perturbed(text, rate, chosen, dictionary, _generator(seed, index)) for text, index in numbered]


def _perturbed(
    text: str,
    rate: float,
    kinds: Sequence[WordKind],
    dictionary: Sequence[str],
    generator: np.random.Generator,
) -> str:
    core = text.strip()
    if not core:
        return text
    begin = text.index(core)
    parts = re.split(r"(\s+)", core)
    words, gaps = parts[::2], ["", *parts[1::2]]
    # All draws are made whatever ε is, so that a larger ε adds to a smaller one.
    draws = generator.random(len(words))
    fate = [kinds[k] for k in generator.integers(len(kinds), size=len(words))]
    other = generator.integers(max(1, len(dictionary)), size=len(words))
    begins = _settle_swaps(fate, kinds, generator) if "swap" in kinds else []
    hit = draws < rate
    stays = [not (struck and kind == "drop") for struck, kind in zip(hit, fate, strict=True)]
    if not any(stays):
        stays[int(draws.argmax())] = True
    for i in begins:
        if hit[i]:
            words[i], words[i + 1] = words[i + 1], words[i]
    for i in range(len(words)):
        if hit[i] and fate[i] == "replace":
            words[i] = dictionary[int(other[i])]
    kept = [i for i, stay in enumerate(stays) if stay]
    inner = "".join(("" if i == kept[0] else gaps[i]) + words[i] for i in kept)
    return text[:begin] + inner + text[begin + len(core) :]


def _settle_swaps(fate: list[Any], kinds: Sequence[WordKind], generator: np.random.Generator) -> list[int]:
    """Where the swapped pairs begin; in `fate`, the first word of a pair decides whether the pair is swapped.

    It settles `fate` in place: "swap" for both words of such a pair, one of the other kinds, or None, for all others.
    """
    rest = [kind for kind in kinds if kind != "swap"]
    instead = generator.integers(max(1, len(rest)), size=len(fate))
    odd = len(fate) % 2
    first = int(generator.integers(2)) if odd else 0
    begins = [i for i in range(first, len(fate) - 1, 2) if fate[i] == "swap"]
    swapped = {j for i in begins for j in (i, i + 1)}
    for i, kind in enumerate(fate):
        if i in swapped:
            fate[i] = "swap"
        elif kind == "swap":
            fate[i] = rest[int(instead[i])] if rest else None
    return begins


def _rate(value: float, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0.0 <= value <= 1.0:
        raise ValueError(f"{what} must be a number in [0, 1], got {value!r}")
    return float(value)


def _kinds(given: Sequence[Any], known: tuple[Any, ...]) -> tuple[Any, ...]:
    chosen = (given,) if isinstance(given, str) else tuple(given)
    if not chosen or any(kind not in known for kind in chosen):
        raise ValueError(f"kinds must be some of {', '.join(known)}, got {given!r}")
    return chosen


def _indices(given: Sequence[int] | None, n: int) -> Sequence[int]:
    if given is None:
        return range(n)
    if len(given) != n:
        raise ValueError(f"indices must name each item, got {len(given)} for {n}")
    return given


def _generator(seed: int, index: int) -> np.random.Generator:
    if seed < 0 or index < 0:
        raise ValueError(f"seed and indices must be 0 or more, got {seed} and {index}")
    return np.random.default_rng([int(seed), int(index)])
