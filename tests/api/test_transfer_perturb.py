"""Perturbation controls: rates that are met, what a seed and an index always give, inputs that stay as they are."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage

from xferkit.transfer import bootstrap_examples, flip_labels, label_subset, perturb_images, perturb_texts

GENERATOR = np.random.default_rng(3)
IMAGES = {
    "uint8": GENERATOR.integers(1, 255, size=(400, 8, 9), dtype=np.uint8),
    "uint8, channels": GENERATOR.integers(1, 255, size=(60, 8, 9, 3), dtype=np.uint8),
    "float32": GENERATOR.normal(size=(60, 8, 9)).astype(np.float32),
    "float64, channels": GENERATOR.normal(size=(60, 5, 6, 2)),
}
TEXTS = [" ".join(f"w{i}.{j}" for j in range(i % 12)) for i in range(200)]
LABELS = np.repeat(np.arange(4), (50, 30, 15, 5))
SEED = 11


def changed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a != b).reshape(len(a), -1).any(axis=1)


# Images


@pytest.mark.parametrize("name", IMAGES)
def test_no_rate_no_change(name) -> None:
    images = IMAGES[name]
    same = perturb_images(images, 0.0, seed=SEED)
    assert same.dtype == images.dtype and np.array_equal(same, images) and not np.shares_memory(same, images)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("kind", ["rotate", "salt_and_pepper", "flip"])
def test_every_kind_changes_every_image_at_rate_one(name, kind) -> None:
    images = IMAGES[name]
    before = images.copy()
    found = perturb_images(images, 1.0, seed=SEED, kinds=(kind,), noise=0.5)
    assert found.shape == images.shape and found.dtype == images.dtype and changed(found, images).all()
    assert np.array_equal(images, before), "the input is left alone"
    assert np.isfinite(found).all() and found.min() >= min(images.min(), 0) and found.max() <= 255


def test_the_share_of_perturbed_images_and_of_kinds() -> None:
    images = IMAGES["uint8"]
    share = changed(perturb_images(images, 0.3, seed=SEED), images).mean()
    assert 0.3 - 3 * np.sqrt(0.21 / 400) < share < 0.3 + 3 * np.sqrt(0.21 / 400)
    found = perturb_images(images, 1.0, seed=SEED)
    flipped = [
        any(np.array_equal(a, np.flip(b, axis)) for axis in (0, 1))
        for a, b in zip(found, images, strict=True)
    ]
    salted = [np.isin(a[a != b], (0, 255)).all() for a, b in zip(found, images, strict=True)]
    assert 100 < sum(flipped) < 170 and 100 < sum(salted) < 170, "a third each"


def test_a_larger_rate_adds_to_a_smaller_one() -> None:
    images = IMAGES["uint8"]
    some, more = (perturb_images(images, rate, seed=SEED) for rate in (0.3, 0.7))
    hit = changed(some, images)
    assert np.array_equal(some[hit], more[hit]) and changed(more, images).sum() > hit.sum() > 0


def test_an_image_depends_on_seed_and_index_alone() -> None:
    images = IMAGES["uint8"]
    whole = perturb_images(images, 0.6, seed=SEED)
    chosen = [7, 3, 399]
    assert np.array_equal(perturb_images(images[chosen], 0.6, seed=SEED, indices=chosen), whole[chosen])
    assert not np.array_equal(perturb_images(images[chosen], 0.6, seed=SEED), whole[chosen])
    assert not np.array_equal(perturb_images(images, 0.6, seed=SEED + 1), whole)


def test_channels_first_is_the_same_picture() -> None:
    images = IMAGES["uint8, channels"]
    last = perturb_images(images, 0.9, seed=SEED)
    first = perturb_images(np.moveaxis(images, 3, 1), 0.9, seed=SEED, channels_first=True)
    assert np.array_equal(np.moveaxis(first, 1, 3), last)


def test_whole_numbers_are_rounded() -> None:
    images = IMAGES["uint8"]
    whole = perturb_images(images, 1.0, seed=SEED, kinds=("rotate",))
    exact = perturb_images(images.astype(np.float64), 1.0, seed=SEED, kinds=("rotate",))
    assert 0.4 < np.abs(whole - exact).max() <= 0.5


def test_rotation_and_noise_in_their_ranges() -> None:
    y, x = np.mgrid[-10:11, -10:11]
    bar = np.exp(-((x**2) / 2.0) - (y / 12.0) ** 2)[None].repeat(50, axis=0)
    found = perturb_images(bar, 1.0, seed=SEED, kinds=("rotate",), max_angle=30.0)
    angles = []
    for image in found:
        errors = [
            np.abs(ndimage.rotate(bar[0], a, reshape=False, order=1, mode="nearest") - image).sum()
            for a in range(-40, 41)
        ]
        angles.append(int(np.argmin(errors)) - 40)
    assert min(map(abs, angles)) >= 9 and max(map(abs, angles)) <= 31
    assert min(angles) < 0 < max(angles) and len(set(angles)) > 15
    grey = np.full((50, 20, 20), 100, dtype=np.uint8)
    salted = perturb_images(grey, 1.0, seed=SEED, kinds=("salt_and_pepper",), noise=0.2)
    shares = [(salted == value).mean() for value in (0, 255, 100)]
    np.testing.assert_allclose(shares, [0.1, 0.1, 0.8], atol=0.01)
    colours = perturb_images(IMAGES["uint8, channels"], 1.0, seed=SEED, kinds=("salt_and_pepper",))
    struck = (colours == 0) | (colours == 255)
    assert (struck.any(axis=3) == struck.all(axis=3)).all(), "all channels of a pixel alike"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epsilon": 1.2}, r"epsilon must be a number in \[0, 1\], got 1.2"),
        ({"epsilon": -0.1}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"epsilon": "0.3"}, "epsilon"),
        ({"images": np.zeros((4, 4))}, r"got \[4, 4\]"),
        ({"images": np.zeros((4, 4, 4), dtype=np.int64)}, "uint8 or a float type, got int64"),
        ({"channels_first": True}, r"\[n, channels, height, width\]"),
        ({"kinds": ("blur",)}, "kinds must be some of rotate, salt_and_pepper, flip"),
        ({"kinds": ()}, "kinds"),
        ({"max_angle": 0.0}, "max_angle"),
        ({"noise": 2.0}, "noise"),
        ({"seed": -1}, "0 or more"),
        ({"indices": [1]}, "got 1 for 400"),
    ],
)
def test_images_refused(change, sentence) -> None:
    arguments = {"images": IMAGES["uint8"], "epsilon": 0.5, "seed": 0, **change}
    with pytest.raises(ValueError, match=sentence):
        perturb_images(**arguments)


# Texts


def test_texts_stay_what_they_are_at_rate_zero() -> None:
    odd = ["", "  ", " two\twords\n", "ü", *TEXTS]
    assert perturb_texts(odd, 0.0, seed=SEED) == odd
    assert perturb_texts(["", " \n"], 1.0, seed=SEED, dictionary=("x",)) == ["", " \n"]


def test_each_kind_of_word_noise() -> None:
    text = "  a b\tc  d e "
    assert perturb_texts([text], 1.0, seed=SEED, kinds=("replace",), dictionary=("X",)) == ["  X X\tX  X X "]
    assert perturb_texts([text], 1.0, seed=SEED, kinds=("drop",))[0].split() in [
        [word] for word in "abcde"
    ], "one stays"
    # At rate 1 all pairs are swapped; of five words the first or the last one has no partner.
    swapped = set(perturb_texts([text] * 50, 1.0, seed=SEED, kinds=("swap",)))
    assert swapped == {"  b a\td  c e ", "  a c\tb  e d "}
    assert perturb_texts(["a b c d"] * 50, 1.0, seed=SEED, kinds=("swap",)) == ["b a d c"] * 50
    halves = perturb_texts([text] * 300, 0.5, seed=SEED, kinds=("drop",))
    for half in halves:
        kept = half.split()
        assert kept and kept == [word for word in "abcde" if word in kept]
        assert half.startswith("  ") and half.endswith(" ") and half[-2] in "abcde"
        if "c" in kept[1:]:
            assert "\tc" in half, "the white space before a word stays with it"
    assert len(set(halves)) > 20


def test_the_share_of_words() -> None:
    texts = [" ".join(["old"] * 50)] * 100
    found = Counter(
        " ".join(perturb_texts(texts, 0.3, seed=SEED, kinds=("replace",), dictionary=("a", "b"))).split()
    )
    assert found["a"] + found["b"] == pytest.approx(1500, abs=3 * np.sqrt(5000 * 0.21))
    assert found["a"] == pytest.approx(found["b"], abs=130) and sum(found.values()) == 5000
    dropped = sum(len(t.split()) for t in perturb_texts(texts, 0.3, seed=SEED, kinds=("drop",)))
    assert dropped == pytest.approx(3500, abs=3 * np.sqrt(5000 * 0.21))
    mixed = perturb_texts(texts, 0.6, seed=SEED, dictionary=("new",))
    left = Counter(" ".join(mixed).split())
    assert left["new"] == pytest.approx(1000, abs=120) and left["old"] == pytest.approx(3000, abs=150)


def test_a_text_depends_on_seed_and_index_alone() -> None:
    whole = perturb_texts(TEXTS, 0.5, seed=SEED, dictionary=("x", "y"))
    part = perturb_texts(TEXTS[40:60], 0.5, seed=SEED, dictionary=("x", "y"), indices=range(40, 60))
    assert part == whole[40:60] != perturb_texts(TEXTS[40:60], 0.5, seed=SEED, dictionary=("x", "y"))
    replaced = [
        perturb_texts(TEXTS, rate, seed=SEED, kinds=("replace",), dictionary=("x", "y"))
        for rate in (0.3, 0.7)
    ]
    for some, more in zip(*replaced, strict=True):
        for a, b in zip(some.split(), more.split(), strict=True):
            assert a == b or a.startswith("w"), "a larger rate keeps what a smaller one did"


RATES = (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0)
LONG = [" ".join(f"w{i}.{j}" for j in range(30 + i % 4)) for i in range(150)]


def neighbours(text: str) -> set[tuple[str, str]]:
    words = text.split()
    return set(pairwise(words))


@pytest.mark.parametrize(
    ("kinds", "dictionary"),
    [(("swap",), ()), (("drop", "swap"), ()), (("drop",), ()), (("drop", "swap", "replace"), ("x", "y"))],
)
def test_fewer_neighbours_stay_together_as_the_rate_rises(kinds, dictionary) -> None:
    before = [neighbours(text) for text in LONG]
    shares = []
    for rate in RATES:
        after = perturb_texts(LONG, rate, seed=SEED, kinds=kinds, dictionary=dictionary)
        kept = sum(len(a & neighbours(b)) for a, b in zip(before, after, strict=True))
        shares.append(kept / sum(map(len, before)))
    assert shares[0] == 1.0 and shares[-1] < 0.03
    assert all(b < a for a, b in pairwise(shares))


def test_swaps_are_of_pairs_that_share_no_word_and_stay_at_larger_rates() -> None:
    found: list[set[tuple[int, int]]] = []
    for rate in RATES:
        swaps = set()
        for i, text in enumerate(perturb_texts(LONG, rate, seed=SEED, kinds=("swap",))):
            order = [int(word.split(".")[1]) for word in text.split()]
            assert sorted(order) == list(range(len(order))), "no word is lost or comes twice"
            for place, word in enumerate(order):
                assert abs(word - place) <= 1 and order[word] == place, (
                    "a word goes no farther than its partner"
                )
                swaps |= {(i, place)} if word != place else set()
        found.append(swaps)
    assert all(a < b for a, b in pairwise(found))
    assert found[0] == set() and len(found[-1]) == sum(len(text.split()) // 2 * 2 for text in LONG)
    again = perturb_texts(LONG, 0.4, seed=SEED, kinds=("swap",))
    assert again == perturb_texts(LONG, 0.4, seed=SEED, kinds=("swap",))
    assert again != perturb_texts(LONG, 0.4, seed=SEED + 1, kinds=("swap",))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_the_rate_is_the_share_of_words_that_something_happens_to(length, rate) -> None:
    count = 40_000 // length
    texts = [" ".join(f"w{j}" for j in range(length))] * count
    paired, words = length // 2 * 2 * count, length * count

    def fates(**options: object) -> Counter[str]:
        found: Counter[str] = Counter()
        for text in perturb_texts(texts, rate, seed=SEED, **options):
            new = text.split()
            found["lost"] += length - len(new) if options["kinds"] != ("swap",) else 0
            found["new"] += new.count("x")
            if len(new) == length:
                found["moved"] += sum(word not in ("x", f"w{j}") for j, word in enumerate(new))
        return found

    def close(share: float, n: int) -> object:
        # Both words of a pair have one draw, so the spread is that of half as many.
        return pytest.approx(n * share, abs=4 * np.sqrt(2 * n * share * (1 - share)) + 1e-9)

    assert fates(kinds=("swap",))["moved"] == close(rate, paired)
    both = fates(kinds=("swap", "replace"), dictionary=("x",))
    assert both["moved"] == close(rate / 2, paired)
    assert both["moved"] + both["new"] == close(rate, words), "a word without a partner gets another kind"
    if length > 20:
        mixed = fates(kinds=("drop", "swap", "replace"), dictionary=("x",))
        assert mixed["lost"] == close(rate / 3, words) and mixed["new"] == close(rate / 3, words)


def test_a_word_that_is_lost_at_one_rate_is_lost_at_every_larger_one() -> None:
    short = [" ".join(f"w{i}.{j}" for j in range(1 + i % 5)) for i in range(300)]
    for kinds in (("drop",), ("drop", "swap")):
        left = [
            [set(text.split()) for text in perturb_texts(short, rate, seed=SEED, kinds=kinds)]
            for rate in RATES
        ]
        for some, more in pairwise(left):
            assert all(more[i] <= some[i] and more[i] for i in range(len(short)))
    # Swapped words are lost at no rate: of two words both are there, or they were never a swapped pair.
    for text in perturb_texts(["a b"] * 300, 1.0, seed=SEED):
        assert text in ("b a", "a", "b")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"epsilon": 1.5}, "epsilon"),
        ({"texts": "one text"}, "list of texts"),
        ({"kinds": ("replace",)}, "needs a dictionary"),
        ({"kinds": ("shout",)}, "kinds must be some of drop, swap, replace"),
        ({"indices": [0]}, "got 1 for 200"),
    ],
)
def test_texts_refused(change, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        perturb_texts(**{"texts": TEXTS, "epsilon": 0.5, "seed": 0, **change})


# Labels


@pytest.mark.parametrize("labels", [LABELS, LABELS.astype(np.uint8), np.array(list("abcd"))[LABELS]])
@pytest.mark.parametrize(
    ("rate", "count"), [(0.0, 0), (0.004, 0), (0.005, 1), (0.25, 25), (0.255, 26), (1.0, 100)]
)
def test_exactly_so_many_labels_are_wrong(labels, rate, count) -> None:
    found = flip_labels(labels, rate, seed=SEED)
    assert found.dtype == labels.dtype and (found != labels).sum() == count
    assert set(found.tolist()) <= set(labels.tolist()) and not np.shares_memory(found, labels)


def test_wrong_labels_are_uniform_over_the_others() -> None:
    labels = np.full(9000, 2)
    found = Counter(flip_labels(labels, 1.0, seed=SEED, classes=range(4)).tolist())
    assert set(found) == {0, 1, 3}
    assert all(abs(n - 3000) < 3.5 * np.sqrt(9000 * 2 / 9) for n in found.values())


def test_larger_label_noise_adds_to_smaller() -> None:
    some, more = (flip_labels(LABELS, rate, seed=SEED) for rate in (0.3, 0.7))
    hit = some != LABELS
    assert (some[hit] == more[hit]).all()
    assert (flip_labels(LABELS, 0.3, seed=SEED) == some).all()
    assert (flip_labels(LABELS, 0.3, seed=SEED + 1) != some).any()


def test_subset_is_stratified_capped_and_grows() -> None:
    found = label_subset(LABELS, 0.1, seed=SEED)
    assert Counter(LABELS[found].tolist()) == {0: 5, 1: 3, 2: 2, 3: 1} and (np.diff(found) > 0).all()
    capped = label_subset(LABELS, 0.1, seed=SEED, max_per_class=3)
    assert Counter(LABELS[capped].tolist()) == {0: 3, 1: 3, 2: 2, 3: 1}
    assert set(capped) < set(found) < set(label_subset(LABELS, 0.4, seed=SEED))
    assert label_subset(LABELS, 0.0, seed=SEED).size == 0
    assert label_subset(LABELS, 1.0, seed=SEED).tolist() == list(range(100))
    assert label_subset(LABELS, 0.1, seed=SEED).tolist() == found.tolist()
    assert label_subset(LABELS, 0.1, seed=SEED + 1).tolist() != found.tolist()
    rare = label_subset(np.array(["a"] * 99 + ["b"]), 0.01, seed=SEED)
    assert 99 in rare, "no class is lost"


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: flip_labels(LABELS, 1.1, seed=0), "epsilon"),
        (lambda: flip_labels(LABELS, 0.5, seed=0, classes=[0, 1]), "label 2 is none of the classes 0, 1"),
        (lambda: flip_labels(["a", "a"], 0.5, seed=0), "all are 'a'"),
        (lambda: flip_labels([0.5], 0.5, seed=0), "whole numbers or of strings"),
        (lambda: flip_labels(LABELS, 0.5, seed=-1), "seed"),
        (lambda: label_subset(LABELS, 10, seed=0), "ratio"),
        (lambda: label_subset(LABELS, 0.1, seed=0, max_per_class=0), "max_per_class"),
        (lambda: label_subset([[1]], 0.1, seed=0), r"shape \[1, 1\]"),
    ],
)
def test_labels_refused(call, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        call()


# Examples


def test_equal_gains_have_an_interval_without_width() -> None:
    for method in ("bca", "percentile"):
        found = bootstrap_examples([0.75, 0.5, 1.0], [0.5, 0.25, 0.75], method=method)
        assert (found.mean, found.low, found.high, found.examples) == (0.25, 0.25, 0.25, 3)


@pytest.mark.parametrize("scores", [[0.5], [[0.5], [0.25], [1.0]]])
def test_one_example_has_no_interval(scores) -> None:
    with pytest.raises(ValueError, match=r"^bootstrap_examples: expected at least 2 examples, got 1$"):
        bootstrap_examples(scores, scores)
