"""Images of digits from several collections, one of which can be spoiled: how much harm does that do a target?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from xferkit.data.errors import DataError, close_name, shown, shown_list
from xferkit.data.seeding import derive_seed
from xferkit.diagnosis.problem import Metric, Part, SplitName
from xferkit.diagnosis.recipe import Recipe, scaled
from xferkit.diagnosis.training import TaskData, TrainedProblem, known_task
from xferkit.models import Encoder, TokenSequences

__all__ = ["DigitEncoder", "DigitProblem"]

_SIDE = 16
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
# A fifth is the development part, which needs an image or two.
_LEAST_TRAIN = 10
# With or without members.
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_CHANNELS, _HIDDEN = 12, 64

RECIPE = Recipe(
    steps=200,
    batch_size=64,
    learning_rate=3e-3,
    dropout=0.3,
    sizes={
        "hidden_dim": 0,
        "private_dim": 32,
        "expert_hidden": 32,
        "predictor_hidden": _HIDDEN,
        "discriminator_hidden": _HIDDEN,
        "lambda1": 0.1,
        "lambda2": 0.1,
        "detach_gate_input": False,
    },
)


class DigitEncoder(nn.Module):
    """Two strided convolutions and a linear layer over grey images of 16 by 16.

    Args:
        channels: of the first convolution; the second has twice as many.
        out_dim: size of the features.
        dropout: on the features.

    Shape:
        :class:`~xferkit.models.TokenSequences` of n images, a token a pixel, its number the grey level (0 to 255) plus
        1 -> ``float32[n, out_dim]``.
    """

    is_sequence = False

    def __init__(self, channels: int, out_dim: int, *, dropout: float) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.first = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1)
        self.hidden = nn.Linear(2 * channels * (_SIDE // 4) ** 2, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: TokenSequences) -> Tensor:
        """Features of the images."""
        grey = (inputs.ids - 1).to(self.hidden.weight.dtype).view(-1, 1, _SIDE, _SIDE) / 255.0
        x = torch.relu(self.second(torch.relu(self.first(grey - 0.3))))
        return self.dropout(torch.relu(self.hidden(x.flatten(1))))


@dataclass(frozen=True)
class _Images:
    """``uint8[n, 16, 16]`` with ``int64[n]`` classes."""

    x: NDArray[np.uint8]
    y: NDArray[np.int64]

    def take(self, rows: NDArray[np.int64]) -> _Images:
        return _Images(self.x[rows], self.y[rows])


class DigitProblem(TrainedProblem):
    """Digits of one collection (``mnist.npz`` and ``usps.npz``, say), with few labels, helped by another's.

    Each file holds ``x_train``, ``y_train``, ``x_test`` and ``y_test``: grey images (uint8), at least 10 of them to
    train on, and their classes, which are 0 to K - 1 where all files together have K different ones. Images of 28 by
    28 lose three pixels at each edge; all become 16 by 16 by averaging. A fifth of each training part is the
    development part. Only training images of sources are spoiled.

    Args:
        data: folder of the files.
        target: collection in question, the name of its file without ``.npz``.
        sources: the others, each once; None: all other files of the folder.
        epsilon_x: probability that a source's training image is rotated, salted or flipped.
        epsilon_y: probability that its label is drawn anew from all classes, so that it stays the same now and then.
        label_ratio: share of the target's training images whose labels may be trained on; 0: none.
        per_class: how many of each class at most; 0: no limit.
        max_train: training images of a collection at most; 0: all.
        max_test: development and test images of a collection at most; 0: all.
        data_seed: draws what is taken, spoiled and labelled, the same in all runs.
        recipe: how a collection alone is trained.
        metric: the score: accuracy, or the unweighted mean over classes of F1.

    Raises:
        ValueError: a file that is missing or not as expected, or a value out of its range.
    """

    def __init__(
        self,
        data: str | Path,
        target: str,
        sources: Sequence[str] | None = None,
        *,
        epsilon_x: float = 0.0,
        epsilon_y: float = 0.0,
        label_ratio: float = 0.1,
        per_class: int = 3,
        max_train: int = 2000,
        max_test: int = 1000,
        data_seed: int = 0,
        recipe: Recipe = RECIPE,
        metric: Metric = "accuracy",
    ) -> None:
        for name, value in (("epsilon_x", epsilon_x), ("epsilon_y", epsilon_y), ("label_ratio", label_ratio)):
            if not 0.0 <= value <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {value}")
        for name, count in (("per_class", per_class), ("max_train", max_train), ("max_test", max_test)):
            if count < 0:
                raise ValueError(f"{name} must be at least 0, got {count}")
        folder = Path(data)
        found = sorted(path.stem for path in folder.glob("*.npz"))
        others = tuple(name for name in found if name != target) if sources is None else tuple(sources)
        for name in (target, *others):
            if name not in found:
                raise DataError.at(
                    folder,
                    None,
                    f"no file {shown(name + '.npz')}{close_name(name, found)}",
                    f"one of {shown_list(found) or 'mnist, usps'}",
                )
        if target in others:
            raise ValueError(f"the target {target!r} is among the sources; expected other collections")
        if twice := [name for i, name in enumerate(others) if name in others[:i]]:
            raise ValueError(f"the source {twice[0]!r} is named twice; expected each collection once")
        super().__init__("digits", target, (target, *others) if label_ratio else others, recipe, metric)
        self.epsilon_x, self.epsilon_y, self.label_ratio = epsilon_x, epsilon_y, label_ratio
        self.per_class, self.data_seed = per_class, data_seed
        self.max_train, self.max_test = max_train, max_test
        arrays = {folder / f"{name}.npz": _read(folder / f"{name}.npz") for name in (target, *others)}
        self.classes = tuple(range(_count_classes(arrays)))
        self._all = {path.stem: self._cut(path.stem, own) for path, own in arrays.items()}
        self._parts = {name: self._spoil(name, parts) for name, parts in self._all.items()}
        self._encoded = {name: self._encode(name) for name in self._parts}

    def _cut(self, name: str, arrays: dict[str, NDArray[Any]]) -> dict[SplitName, _Images]:
        loaded = {}
        for split in ("train", "test"):
            x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
            order = np.random.default_rng(derive_seed(self.data_seed, name, split)).permutation(len(x))
            loaded[split] = (x[order], y[order].astype(np.int64))

        def images(split: str, first: int, last: int | None) -> _Images:
            x, y = loaded[split]
            return _Images(_sixteen(x[first:last]), y[first:last])

        fifth = len(loaded["train"][0]) // 5
        held = min(fifth, self.max_test or fifth)
        last = fifth + self.max_train if self.max_train else None
        return {
            "train": images("train", fifth, last),
            "dev": images("train", 0, held),
            "test": images("test", 0, self.max_test or None),
        }

    def _spoil(self, name: str, parts: dict[SplitName, _Images]) -> dict[SplitName, _Images]:
        """The parts of a task as they are trained on: sources spoiled, the target with few labels."""
        from xferkit.transfer import flip_labels, label_subset, perturb_images

        train, seed = parts["train"], self.data_seed
        if name == self.target:
            if self.label_ratio:
                rows = label_subset(
                    train.y, self.label_ratio, seed=seed, max_per_class=self.per_class or None
                )
                train = train.take(rows)
        else:
            # Drawn from all classes, a label stays the same once in so many.
            share = self.epsilon_y * (1.0 - 1.0 / len(self.classes))
            x = perturb_images(train.x, self.epsilon_x, seed=seed)
            train = _Images(x, flip_labels(train.y, share, seed=seed, classes=self.classes))
        return {**parts, "train": train}

    def _encode(self, name: str) -> TaskData:
        parts = self._parts[name]

        def part(split: SplitName) -> tuple[TokenSequences, Tensor]:
            return _tokens(parts[split].x), torch.tensor(parts[split].y)

        train = part("train") if name in self.tasks else None
        free = _tokens(self._all[name]["train"].x) if name == self.target else None
        scored: dict[Part, tuple[TokenSequences, Tensor]] = {"dev": part("dev"), "test": part("test")}
        return TaskData(scored, train, free)

    @property
    def _num_classes(self) -> int:
        return len(self.classes)

    def _data(self, tasks: tuple[str, ...]) -> dict[str, TaskData]:
        return self._encoded

    def _encoder(self, width: float) -> Encoder:
        return DigitEncoder(scaled(_CHANNELS, width), scaled(_HIDDEN, width), dropout=self.recipe.dropout)

    def settings(self) -> dict[str, Any]:
        """Plain values that decide a run beside the data."""
        names = (
            "epsilon_x", "epsilon_y", "label_ratio", "per_class", "data_seed", "max_train", "max_test",
        )  # fmt: skip
        return {**super().settings(), **{name: getattr(self, name) for name in names}}

    def sizes(self) -> dict[str, dict[str, int]]:
        """Images by collection and split; ``unlabelled`` is the target's whole training part."""
        found: dict[str, dict[str, int]] = {
            name: {split: len(own.y) for split, own in parts.items()} for name, parts in self._parts.items()
        }
        found[self.target]["unlabelled"] = len(self._all[self.target]["train"].y)
        if self.target not in self.tasks:
            del found[self.target]["train"]
        return found

    def describe(self) -> str:
        """The problem in a few sentences."""
        own = self.sizes()[self.target].get("train", 0)
        return (
            f"Digits of {len(self.everything)} collections, scored on {self.target} with {own} labelled images; "
            f"sources with epsilon_x {self.epsilon_x:g} and epsilon_y {self.epsilon_y:g}. A small convolutional "
            f"network on 16 by 16 pixels. {self.trained()}"
        )

    def fingerprint(self) -> str:
        """SHA-256 over the images and classes as they are trained on and scored."""
        digest = hashlib.sha256()
        for name in sorted(self._parts):
            for split, own in self._parts[name].items():
                digest.update(f"{name}\t{split}\t{len(own.y)}\n".encode() + own.x.tobytes() + own.y.tobytes())
            digest.update(self._all[name]["train"].x.tobytes())
        return digest.hexdigest()

    def texts(self, task: str, split: SplitName = "train") -> NDArray[np.uint8]:
        """The images, ``uint8[n, 16, 16]``, as they are trained on or scored."""
        if split == "train" and known_task(task, self.everything) not in self.tasks:
            return self._all[task]["train"].x
        return self._parts[known_task(task, self.everything)][split].x

    def labels(self, task: str, split: SplitName = "train") -> tuple[str, ...]:
        """Their classes."""
        if split == "train" and known_task(task, self.everything) not in self.tasks:
            return ()
        return tuple(map(str, self._parts[known_task(task, self.everything)][split].y.tolist()))

    def encode(self, task: str) -> NDArray[np.float32] | None:
        """Grey levels in [0, 1] of the training images, of a target also of those without labels."""
        known_task(task, self.everything)
        own = self._all[task] if task == self.target else self._parts[task]
        return own["train"].x.reshape(-1, _SIDE * _SIDE).astype(np.float32) / 255.0


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays of a file, of fitting shapes and types."""
    form = f"an .npz file with the arrays {', '.join(_ARRAYS)}"
    try:
        with open(path, "rb") as stream:
            head = stream.read(4)
            if head not in _ZIP:
                raise DataError.at(path, None, "is no .npz file" if head else "is empty", form)
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as file:
                # numpy returns a member that is no array as bytes.
                arrays = {key: np.asarray(file[key]) for key in _ARRAYS if key in file}
    except DataError:
        raise
    except OSError as error:
        raise DataError.at(path, None, f"cannot be read ({error.strerror or error})", form) from None
    except (
        Exception
    ) as error:  # zipfile, zlib and numpy raise a dozen kinds for bytes that were changed or cut
        why = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError.at(path, None, f"cannot be read ({why})", form) from None
    if missing := [key for key in _ARRAYS if key not in arrays]:
        raise DataError.at(path, None, f"no array {missing[0]!r}", ", ".join(_ARRAYS))
    for split in ("train", "test"):
        x, y = arrays[f"x_{split}"], arrays[f"y_{split}"]
        good = x.ndim == 3 and x.dtype == np.uint8 and y.shape == x.shape[:1] and y.dtype.kind in "iu"
        if not good or not x.size:
            raise DataError.at(
                path,
                None,
                f"x_{split} is {x.dtype} {list(x.shape)} and y_{split} {y.dtype} {list(y.shape)}",
                "uint8 images [n, height, width] and a class for each",
            )
    if len(arrays["x_train"]) < _LEAST_TRAIN:
        raise DataError.at(
            path,
            None,
            f"x_train holds {len(arrays['x_train'])} image{'s' * (len(arrays['x_train']) != 1)}",
            f"at least {_LEAST_TRAIN}, of which a fifth becomes the development part",
        )
    return arrays


def _count_classes(arrays: dict[Path, dict[str, NDArray[Any]]]) -> int:
    """The number of different labels in all files, which have to be 0, 1 and so on."""
    found = {
        (path, key): np.unique(own[key]).tolist()
        for path, own in arrays.items()
        for key in ("y_train", "y_test")
    }
    count = len({label for labels in found.values() for label in labels})
    for (path, key), labels in found.items():
        wrong = [label for label in labels if not 0 <= label < count]
        if wrong:
            raise DataError.at(
                path,
                None,
                f"{key} holds the label {wrong[0]}",
                f"labels from 0 to {count - 1}, since all files together have {count} different ones",
            )
    if count < 2:
        raise DataError.at(next(iter(arrays)), None, "all labels are 0", "at least two different labels")
    return count


def _sixteen(x: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Images of any size at 16 by 16."""
    if x.shape[1:] == (28, 28):
        x = x[:, 3:-3, 3:-3]
    if x.shape[1:] == (_SIDE, _SIDE):
        return x
    small = adaptive_avg_pool2d(torch.from_numpy(np.ascontiguousarray(x)).float().unsqueeze(1), _SIDE)
    return small.squeeze(1).round().to(torch.uint8).numpy()


def _tokens(x: NDArray[np.uint8]) -> TokenSequences:
    ids = torch.from_numpy(x.astype(np.int64)).flatten(1) + 1
    return TokenSequences(ids, torch.full((len(ids),), ids.shape[1]))
