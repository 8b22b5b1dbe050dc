"""Pairwise cosines over a training, window by window, as arrays that can be saved, loaded and shown."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from xferkit.files import write_atomic

__all__ = ["SimilarityRecord"]

_FORMAT = 1
Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SimilarityRecord:
    r"""What a :class:`SimilarityRecorder` has seen: T tasks, K groups of parameters, W windows of steps.

    The similarity of tasks i and j in group k at a step is :math:`\cos = G_{kij} / \sqrt{G_{kii} G_{kjj}}`
    (Wang, thesis, chapter 6); that of the whole model is the same of :math:`\sum_k G_k`, since Gram matrices of
    groups add up. A window holds the mean over its steps at which both tasks had a gradient.

    Attributes:
        tasks: names of the T tasks, in the order in which they came.
        groups: names of the K groups.
        window: steps a window spans.
        first: int64 ``[W]``, first recorded step of each window.
        last: int64 ``[W]``, last recorded step of each window.
        steps: int64 ``[W]``, how many were recorded in it.
        cosine: float64 ``[W, K, T, T]``, mean cosines; NaN for pairs that were never seen in the window.
        count: int64 ``[W, K, T, T]``, the steps behind each mean.
        model: float64 ``[W, T, T]``, mean cosines of the whole model.
        model_count: int64 ``[W, T, T]``.
        pairs: int64 ``[W, K]``, pairs (i < j) seen, over all steps.
        opposed: int64 ``[W, K]``, those with a cosine below 0.
        visited: int64 ``[W, K]``, ordered pairs that surgery looked at; 0 where there was none.
        moved: int64 ``[W, K]``, those it was active on: the gradient was changed.
    """

    tasks: tuple[str, ...]
    groups: tuple[str, ...]
    window: int
    first: Counts
    last: Counts
    steps: Counts
    cosine: Floats
    count: Counts
    model: Floats
    model_count: Counts
    pairs: Counts
    opposed: Counts
    visited: Counts
    moved: Counts

    def __post_init__(self) -> None:
        """Check the shapes."""
        wanted = _shapes(len(self.first), len(self.groups), len(self.tasks))
        for name, shape in wanted.items():
            value = getattr(self, name)
            if value.shape != shape:
                raise ValueError(
                    f"SimilarityRecord: {name} must have shape {list(shape)}, got {list(value.shape)}"
                )

    @property
    def active_share(self) -> Floats:
        """float64 ``[W, K]``: the share of visited pairs on which surgery was active; NaN without a visit."""
        return _ratio(self.moved, self.visited)

    @property
    def opposed_share(self) -> Floats:
        """float64 ``[W, K]``: the share of pairs with a cosine below 0; NaN without a pair."""
        return _ratio(self.opposed, self.pairs)

    @property
    def middle(self) -> Floats:
        """float64 ``[W]``: the middle of each window's recorded steps."""
        return np.asarray(0.5 * (self.first + self.last), dtype=np.float64)

    def of(self, group: str | None = None) -> Floats:
        """Float64 ``[W, T, T]``: mean cosines of a group, of the whole model where `group` is None.

        Raises:
            ValueError: no such group.
        """
        return self.model if group is None else self.cosine[:, self._place(group)]

    def mean(self, group: str | None = None, *, first: int | None = None, last: int | None = None) -> Floats:
        """Float64 ``[T, T]``: the mean over steps, of the windows that lie within ``[first, last]``.

        Args:
            group: of the parameters; None: the whole model.
            first: first step; None: from the beginning.
            last: last step; None: to the end.

        Raises:
            ValueError: no such group, or no window within the bounds.
        """
        inside = np.ones(len(self.first), dtype=bool)
        if first is not None:
            inside &= self.first >= first
        if last is not None:
            inside &= self.last <= last
        if not inside.any():
            raise ValueError(
                f"SimilarityRecord.mean: no window lies within the steps {first} to {last}; windows span "
                f"{self.window} steps"
            )
        count = (self.model_count if group is None else self.count[:, self._place(group)])[inside]
        total = np.where(count > 0, self.of(group)[inside], 0.0) * count
        return _ratio(total.sum(0), count.sum(0))

    def _place(self, group: str) -> int:
        if group not in self.groups:
            raise ValueError(f"SimilarityRecord: no group {group!r}; groups are {', '.join(self.groups)}")
        return self.groups.index(group)

    def save(self, path: str | Path) -> None:
        """Write ``.npz`` or ``.json``, by the ending; the file is there whole or not at all. No pickle.

        Raises:
            ValueError: another ending. OSError: the file cannot be written.
        """
        path = Path(path)
        header = {"format": _FORMAT, "tasks": self.tasks, "groups": self.groups, "window": self.window}
        arrays: dict[str, Any] = {name: getattr(self, name) for name in _ARRAYS}
        if path.suffix == ".npz":
            content = io.BytesIO()
            text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
            np.savez_compressed(content, header=text, **arrays)
            write_atomic(path, content.getvalue())
        elif path.suffix == ".json":
            plain = {name: _without_nan(array) for name, array in arrays.items()}
            write_atomic(path, json.dumps({**header, **plain}, allow_nan=False) + "\n")
        else:
            raise ValueError(f"SimilarityRecord: the name must end in .npz or .json, got {path.name!r}")

    @classmethod
    def load(cls, path: str | Path) -> SimilarityRecord:
        """Read what :meth:`save` wrote.

        Raises:
            ValueError: the file holds something else, or is damaged. OSError: it cannot be read.
        """
        path = Path(path)
        try:
            content: dict[str, Any]
            if path.suffix == ".npz":
                with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
                    content = {name: file[name] for name in (*_ARRAYS, "header")}
                content |= json.loads(content.pop("header").tobytes())
            else:
                content = json.loads(path.read_bytes())
            if content["format"] != _FORMAT:
                raise ValueError(f"it has format {content['format']!r}, known is {_FORMAT}")
            tasks, groups = (tuple(str(name) for name in content[key]) for key in ("tasks", "groups"))
            shapes = _shapes(len(content["first"]), len(groups), len(tasks))
            arrays = {name: _array(name, content[name], shapes[name]) for name in _ARRAYS}
            return cls(tasks=tasks, groups=groups, window=int(content["window"]), **arrays)
        except (ValueError, KeyError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{path} holds no record of similarities ({reason})") from error


_ARRAYS = tuple(
    field.name for field in fields(SimilarityRecord) if field.name not in ("tasks", "groups", "window")
)
_FLOATS = ("cosine", "model")


def _ratio(numerator: npt.NDArray[Any], denominator: npt.NDArray[Any]) -> Floats:
    ratio = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=ratio, where=denominator > 0)
    return ratio


def _without_nan(array: npt.NDArray[Any]) -> Any:
    if array.dtype.kind != "f":
        return array.tolist()
    plain = array.astype(object)
    plain[np.isnan(array)] = None
    return plain.tolist()


def _shapes(windows: int, groups: int, tasks: int) -> dict[str, tuple[int, ...]]:
    w, k, t = windows, groups, tasks
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("first", "last", "steps"), (w,))
    shapes |= dict.fromkeys(("pairs", "opposed", "visited", "moved"), (w, k))
    shapes |= dict.fromkeys(("model", "model_count"), (w, t, t))
    return shapes | dict.fromkeys(("cosine", "count"), (w, k, t, t))


def _array(name: str, value: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    array = np.array(value, dtype=np.float64 if name in _FLOATS else None)
    if array.size == 0 and 0 in shape:
        array = array.reshape(shape)  # a list tells no more of its shape than that it is empty
    if name in _FLOATS:
        return array
    if array.size and array.dtype.kind not in "iu":
        raise ValueError(f"{name} must be whole numbers, got {array.dtype}")
    return array.astype(np.int64)
