"""Files of digits: what is not as expected is said in a sentence, and parts of a collection never overlap."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_diagnosis import write_digits

from xferkit.data.errors import DataError
from xferkit.diagnosis import DigitProblem


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_digits(tmp_path)
    return tmp_path


def collection(**changes: Any) -> dict[str, np.ndarray]:
    """Arrays of a small collection of three classes."""
    rng = np.random.default_rng(1)
    arrays = {}
    for split, count in (("train", 20), ("test", 5)):
        arrays[f"x_{split}"] = rng.integers(0, 255, (count, 16, 16), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(count) % 3
    return {**arrays, **changes}


def packed(save: Any = np.savez, **changes: Any) -> bytes:
    stream = io.BytesIO()
    save(stream, **collection(**changes))
    return stream.getvalue()


def plain_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.zeros((20, 16, 16), np.uint8))
    return stream.getvalue()


def damaged(deflated: bytes) -> bytes:
    """Bytes within the first compressed array are no longer a stream of deflate."""
    changed = bytearray(deflated)
    changed[200:260] = b"\xff" * 60
    return bytes(changed)


def members(**of: bytes) -> bytes:
    """A good file in which some members hold other bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(packed())) as good, zipfile.ZipFile(stream, "w") as file:
        for name in good.namelist():
            file.writestr(name, of.get(name.removesuffix(".npy"), good.read(name)))
    return stream.getvalue()


def header(text: str) -> bytes:
    """An array file with that header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + bytes(100)


def labels(*values: int, dtype: Any = np.int64) -> np.ndarray:
    """Labels of 20 images, these ones last."""
    return np.array([*([0, 1, 2] * 7)[: 20 - len(values)], *values], dtype=dtype)


FORM = "expected an .npz file with the arrays x_train, y_train, x_test, y_test"
UNUSUAL: dict[str, tuple[bytes, str]] = {
    "empty": (b"", f"is empty; {FORM}"),
    "an array alone": (plain_array(), f"is no .npz file; {FORM}"),
    "a pickle": (pickle.dumps([1, 2]), f"is no .npz file; {FORM}"),
    "a text": (b"no array", f"is no .npz file; {FORM}"),
    "a few bytes": (packed()[:3], f"is no .npz file; {FORM}"),
    "cut": (packed()[:3000], f"cannot be read (File is not a zip file); {FORM}"),
    "other bytes": (damaged(packed()), "cannot be read (Bad CRC-32 for file 'x_train.npy'); expected"),
    "other bytes, compressed": (damaged(packed(np.savez_compressed)), "cannot be read (Error -3 while"),
    "objects": (packed(y_train=np.array([None] * 20)), "cannot be read (Object arrays cannot be loaded"),
    "an array cut": (members(x_train=plain_array()[:50]), "cannot be read (EOF: reading array header"),
    "a header that ends early": (members(x_train=header("{'descr': (")), "cannot be read ("),
    "a header of no dtype": (
        members(x_train=header("{'descr': '(,1', 'fortran_order': False, 'shape': (1,)}\n")),
        "cannot be read (",
    ),
    "a header of too many": (
        members(x_train=header("{'descr': '|u1', 'fortran_order': False, 'shape': (9000000000000000,)}\n")),
        "cannot be read (",
    ),
    "a member that is no array": (members(y_test=b"123"), "y_test |S3 []; expected uint8 images"),
    "nothing": (b"PK\x05\x06" + bytes(18), "no array 'x_train'; expected x_train, y_train, x_test, y_test"),
    "flat images": (
        packed(x_test=np.zeros((5, 256), np.uint8)),
        "x_test is uint8 [5, 256] and y_test int64 [5]",
    ),
    "images without height": (packed(x_test=np.zeros((5, 0, 16), np.uint8)), "x_test is uint8 [5, 0, 16]"),
    "no test image": (
        packed(x_test=np.zeros((0, 16, 16), np.uint8), y_test=np.zeros(0, np.int64)),
        "x_test is uint8 [0, 16, 16] and y_test int64 [0]; expected uint8 images [n, height, width]",
    ),
    "fewer labels": (packed(y_train=labels()[:19]), "x_train is uint8 [20, 16, 16] and y_train int64 [19]"),
    "labels with a point": (packed(y_train=labels().astype(float)), "and y_train float64 [20]"),
    "one training image": (
        packed(x_train=np.zeros((1, 16, 16), np.uint8), y_train=np.zeros(1, np.int64)),
        "x_train holds 1 image; expected at least 10, of which a fifth becomes the development part",
    ),
    "nine training images": (
        packed(x_train=np.zeros((9, 16, 16), np.uint8), y_train=np.arange(9) % 3),
        "x_train holds 9 images; expected at least 10,",
    ),
    "a negative label": (
        packed(y_train=labels(-1)),
        "y_train holds the label -1; expected labels from 0 to 3, since all files together have 4 different ones",
    ),
    "an absurd label": (
        packed(y_train=labels(255, dtype=np.uint8)),
        "y_train holds the label 255; expected labels from 0 to 3, since all files together have 4 different ones",
    ),
    "an absurd label, tested": (
        packed(y_test=np.array([0, 1, 2, 0, 9])),
        "y_test holds the label 9; expected",
    ),
    "a label beyond int64": (
        packed(y_train=labels(2**63 + 5, dtype=np.uint64)),
        "y_train holds the label 9223372036854775813; expected labels from 0 to 3",
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_file_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    content, sentence = UNUSUAL[name]
    path = folder / "odd.npz"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        DigitProblem(folder, "usps")
    message = str(caught.value)
    assert message.startswith(
        f"{path}: {sentence}" if sentence.startswith(("is ", "cannot", "no ")) else f"{path}: "
    )
    assert sentence in message and "\n" not in message and message.count("; expected") == 1
    assert caught.value.path == os.fspath(path)


def test_a_folder_in_place_of_a_file(folder: Path) -> None:
    (folder / "odd.npz").mkdir()
    with pytest.raises(
        DataError, match=r"odd\.npz: cannot be read \(Is a directory\); expected an \.npz file"
    ):
        DigitProblem(folder, "usps")


def test_labels_are_counted_over_all_files(folder: Path) -> None:
    """A file may lack classes that another one has; a class that no file has is a gap."""
    (folder / "few.npz").write_bytes(packed(y_train=labels() * 0, y_test=np.zeros(5, np.int64)))
    (folder / "more.npz").write_bytes(packed(y_train=labels(3), y_test=np.full(5, 4)))
    assert DigitProblem(folder, "usps").classes == (0, 1, 2, 3, 4)
    assert DigitProblem(folder, "usps", ("few",)).classes == (0, 1, 2)
    (folder / "gap.npz").write_bytes(packed(y_train=labels(6)))
    with pytest.raises(DataError, match=r"gap\.npz: y_train holds the label 6; expected labels from 0 to 5"):
        DigitProblem(folder, "usps")
    with pytest.raises(
        DataError, match=r"few\.npz: all labels are 0; expected at least two different labels"
    ):
        DigitProblem(folder, "few", ())


def test_compressed_files_and_images_of_any_size_are_read(folder: Path) -> None:
    rng = np.random.default_rng(2)
    wide = {
        f"x_{s}": rng.integers(0, 255, (n, 70, 300), dtype=np.uint8) for s, n in (("train", 10), ("test", 1))
    }
    few = {"y_train": np.arange(10, dtype=np.uint8) % 3, "y_test": np.zeros(1, np.uint8)}
    (folder / "wide.npz").write_bytes(packed(np.savez_compressed, **wide, **few))
    problem = DigitProblem(folder, "wide", ("mnist",), label_ratio=1.0)
    assert problem.texts("wide", "test").shape == (1, 16, 16)
    assert problem.sizes()["wide"] == {"train": 8, "dev": 2, "test": 1, "unlabelled": 8}


@pytest.mark.parametrize("name", ["max_train", "max_test", "per_class"])
def test_a_limit_is_0_or_more(name: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be at least 0, got -1$"):
        DigitProblem(folder, "usps", **{name: -1})


@pytest.mark.parametrize("max_test", [0, 1, 7, 1000])
@pytest.mark.parametrize("max_train", [0, 1, 30, 1000])
def test_development_and_training_parts_share_no_image(max_train: int, max_test: int, folder: Path) -> None:
    problem = DigitProblem(
        folder, "usps", max_train=max_train, max_test=max_test, label_ratio=1.0, per_class=0
    )
    own = {
        split: {image.tobytes() for image in problem.texts("usps", split)}
        for split in ("train", "dev", "test")
    }
    assert len(own["train"]) == min(max_train or 80, 80) and len(own["dev"]) == min(max_test or 20, 20)
    assert len(own["test"]) == min(max_test or 30, 30)
    assert not own["train"] & own["dev"] and not own["train"] & own["test"] and not own["dev"] & own["test"]


def test_a_source_is_named_once(folder: Path) -> None:
    with pytest.raises(ValueError, match="the source 'mnist' is named twice; expected each collection once"):
        DigitProblem(folder, "usps", ("mnist", "mnist"))
