"""Finished runs on the disk: one JSON file each, written whole, checked when read, used again when valid."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xferkit.demo.errors import DemoError
from xferkit.demo.plan import CellSpec
from xferkit.report.files import TEMPORARY_SUFFIX, write_atomic

__all__ = ["CellOutcome", "CellStore"]

_FORMAT = 1


@dataclass(frozen=True)
class CellOutcome:
    """Result of one run.

    Attributes:
        accuracy: on the target's test names, in [0, 1].
        macro_f1: the same names, in [0, 1].
        seconds: wall time of training and test.
        gate: mean weight of each source on the target, for methods that have a gate.
        steps: training steps done.
        losses: last value of each loss by name; None where it was not finite.
    """

    accuracy: float
    macro_f1: float
    seconds: float
    gate: dict[str, float] | None
    steps: int
    losses: dict[str, float | None]

    @classmethod
    def checked(cls, values: Mapping[str, Any]) -> CellOutcome:
        """Build from plain values; ValueError says which one cannot be."""
        outcome = cls(
            accuracy=_number("accuracy", values["accuracy"], high=1.0),
            macro_f1=_number("macro_f1", values["macro_f1"], high=1.0),
            seconds=_number("seconds", values["seconds"]),
            gate=None
            if values["gate"] is None
            else {str(k): _number(f"gate[{k}]", v) for k, v in values["gate"].items()},
            steps=int(values["steps"]),
            losses={
                str(k): float(v) if v is not None and math.isfinite(v) else None
                for k, v in values["losses"].items()
            },
        )
        if outcome.steps < 0:
            raise ValueError(f"steps must not be negative, got {outcome.steps}")
        return outcome


def _number(name: str, value: Any, high: float = math.inf) -> float:
    number = float(value)
    if not (math.isfinite(number) and 0.0 <= number <= high):
        raise ValueError(f"{name} must be a finite number in [0, {high}], got {number}")
    return number


class CellStore:
    """Folder ``cells/`` of an output folder.

    A file is named after its run and a hash over the run and `conditions`: everything else that decides its
    result (data, code, versions). Other conditions give other names, so a stale result is never read.

    Args:
        folder: the folder, made when it is not there.
        conditions: what decides results beside the run, as plain JSON values.
        warn: called with a sentence when a broken file was moved aside.
    """

    def __init__(
        self, folder: Path, conditions: Mapping[str, str], warn: Callable[[str], None] = lambda text: None
    ) -> None:
        """Make the folder when it is not there."""
        self.folder = folder
        self.conditions = dict(conditions)
        self._warn = warn
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, so that no second demo writes to it.

        Raises:
            DemoError: another process holds it.
        """
        import fcntl

        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise DemoError(
                    f"another demo is writing to {self.folder}; wait for it or choose another folder."
                ) from error
            for left in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink()
            yield

    def key(self, spec: CellSpec) -> str:
        """Hash that names `spec` under the store's conditions."""
        content = {"format": _FORMAT, "cell": asdict(spec), "conditions": self.conditions}
        return hashlib.sha256(_canonical(content)).hexdigest()

    def path(self, spec: CellSpec) -> Path:
        """File of `spec`."""
        case = "-lower" if spec.lowercase else ""
        return self.folder / f"{spec.target}-{spec.method}{case}-s{spec.seed}-{self.key(spec)[:16]}.json"

    def load(self, spec: CellSpec) -> CellOutcome | None:
        """Result of `spec` when there is a valid one.

        A file that does not hold what :meth:`save` wrote is moved aside (``.corrupt`` behind its name) and
        named through `warn`, and None is returned, so that the run is done again.
        """
        path = self.path(spec)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            content = json.loads(raw)
            if content["key"] != self.key(spec):
                raise ValueError("it belongs to another run")
            if content["sha256"] != hashlib.sha256(_canonical(content["result"])).hexdigest():
                raise ValueError("its checksum does not fit its content")
            return CellOutcome.checked(content["result"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            aside = _free_name(path.with_name(path.name + ".corrupt"))
            os.replace(path, aside)
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            self._warn(f"{path} is damaged ({reason}); moved to {aside.name}, the run is done again.")
            return None

    def save(self, spec: CellSpec, outcome: CellOutcome) -> None:
        """Write the result of `spec`; a crash leaves the whole file or none."""
        result = asdict(outcome)
        content = {
            "key": self.key(spec),
            "cell": asdict(spec),
            "conditions": self.conditions,
            "result": result,
            "sha256": hashlib.sha256(_canonical(result)).hexdigest(),
        }
        write_atomic(
            self.path(spec), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _free_name(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate
