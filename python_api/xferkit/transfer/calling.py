"""Calls of a person's training function: how it wants to be called, and what it returned."""

from __future__ import annotations

import functools
import inspect
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any, Literal

import numpy as np

from xferkit.transfer.plan import Run

__all__ = [
    "CallStyle",
    "Outcome",
    "call_style",
    "decode_outcome",
    "require_picklable",
    "train",
]

#: How a run is handed over beside tasks and seed.
CallStyle = Literal["plain", "matching", "run"]


@dataclass(frozen=True)
class Outcome:
    """What a run brought.

    Attributes:
        scores: by task; the mean where the function returned one score per test example.
        examples: those scores per example, for the tasks that have them.
        seconds: how long the function took.
    """

    scores: dict[str, float]
    examples: dict[str, list[float]]
    seconds: float


def call_style(train_fn: Callable[..., Any]) -> CallStyle:
    """``run`` or ``matching`` where the function has a parameter of that name, else ``plain``.

    A parameter that :func:`functools.partial` has bound already is not one.

    Raises:
        ValueError: it is no function, or cannot be called so.
    """
    if not callable(train_fn):
        raise ValueError(f"train_fn must be a function train_fn(tasks, seed), got {type(train_fn).__name__}")
    try:
        signature = inspect.signature(train_fn)
    except (ValueError, TypeError):
        return "plain"
    bound = train_fn.keywords if isinstance(train_fn, functools.partial) else {}
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    styles: tuple[CallStyle, ...] = ("run", "matching")
    for style in styles:
        parameter = signature.parameters.get(style)
        if parameter is not None and parameter.kind in named and style not in bound:
            _bind(signature, style, **{style: None})
            return style
    _bind(signature, "plain")
    return "plain"


def _bind(signature: inspect.Signature, style: str, **extra: Any) -> None:
    try:
        signature.bind((), 0, **extra)
    except TypeError as error:
        wanted = "tasks, seed" if style == "plain" else f"tasks, seed, {style}={style}"
        raise ValueError(f"train_fn{signature} cannot be called as train_fn({wanted}): {error}") from error


def require_picklable(train_fn: Callable[..., Any]) -> None:
    """Refuse what worker processes could not be given.

    Raises:
        ValueError: the function cannot be pickled.
    """
    try:
        ForkingPickler.dumps(train_fn)  # what hands it to them
    except Exception as error:
        raise ValueError(
            f"train_fn cannot be sent to worker processes ({error}); make it a function of a module, or a "
            "functools.partial of one, or use workers=0"
        ) from error


def train(run: Run, given: tuple[Callable[..., Any], CallStyle]) -> Outcome:
    """Call the function for one run and check what it returns.

    Raises:
        ValueError: it returned something else than a finite score, or scores per example, for each task.
        Exception: whatever the function raises.
    """
    train_fn, style = given
    begin = time.perf_counter()
    if style == "run":
        result = train_fn(run.tasks, run.seed, run=run)
    elif style == "matching":
        result = train_fn(run.tasks, run.seed, matching=run.matching)
    else:
        result = train_fn(run.tasks, run.seed)
    seconds = time.perf_counter() - begin
    if not isinstance(result, Mapping):
        raise ValueError(f"train_fn must return {{task: score}}, got {_shown(result)}")
    scores: dict[str, float] = {}
    examples: dict[str, list[float]] = {}
    for task in run.tasks:
        if task not in result:
            have = ", ".join(map(str, list(result)[:12])) or "none"
            raise ValueError(f"train_fn returned no score for {task!r}; it returned scores for: {have}")
        value = _numbers(result[task], task)
        if value.ndim == 1:
            examples[task] = value.tolist()
        scores[task] = float(value.mean())
    return Outcome(scores, examples, seconds)


def _numbers(value: Any, task: str) -> np.ndarray:
    """A score as an array of no dimension, scores per example as one of one."""
    wanted = "expected a finite number, or one per test example"
    if value is None or isinstance(value, (bool, np.bool_, str, bytes, complex, Mapping)):
        raise ValueError(f"train_fn returned {_shown(value)} for {task!r}; {wanted}")
    try:
        array = np.asarray(value)
    except Exception as error:  # tensors of an accelerator, ragged lists: each library has its own
        raise ValueError(f"train_fn returned {_shown(value)} for {task!r} ({error}); {wanted}") from error
    if array.dtype.kind not in "biuf":
        raise ValueError(f"train_fn returned {_shown(value)} for {task!r}; {wanted}")
    array = array.astype(np.float64)
    if array.ndim > 1 or array.size == 0:
        raise ValueError(f"train_fn returned shape {list(array.shape)} for {task!r}; {wanted}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        where = "" if array.ndim == 0 else f" for example {int(bad[0])}"
        raise ValueError(f"train_fn returned {array.flat[bad[0]]}{where} of {task!r}; {wanted}")
    return array


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:60] + '…'}"


def decode_outcome(values: Mapping[str, Any]) -> Outcome:
    """An outcome from the plain values of its fields.

    Raises:
        ValueError: a value is no finite number.
        KeyError: a field is missing.
        TypeError: a value is of another type.
    """
    scores = {str(task): _finite(score) for task, score in dict(values["scores"]).items()}
    examples = {str(t): [_finite(v) for v in row] for t, row in dict(values["examples"]).items()}
    return Outcome(scores, examples, _finite(values["seconds"]))


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no finite number")
    return float(value)
