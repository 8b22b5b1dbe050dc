"""Finished runs on the disk: one JSON file each, written whole, checked when read, used again when valid."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from xferkit.report.files import TEMPORARY_SUFFIX, write_atomic
from xferkit.runs.errors import RunError

__all__ = ["Cell", "CellStore", "Outcome"]

_FORMAT = 1


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


class Cell(_Dataclass, Protocol):
    """One run of an experiment: a frozen dataclass of plain values that decide what is trained."""

    @property
    def method(self) -> str:
        """Name of the method; runs of one method take about the same time."""
        ...

    def describe(self) -> str:
        """One phrase for progress and messages."""
        ...


#: Result of a run: a dataclass of plain JSON values.
Outcome = _Dataclass

C = TypeVar("C", bound=Cell)
R = TypeVar("R", bound=_Dataclass)


class CellStore(Generic[C, R]):
    """A folder of finished runs.

    A file is named after its run and a hash over the run and `conditions`: everything else that decides its
    result (data, code, versions). Other conditions give other names, so a stale result is never read.

    Args:
        folder: the folder, made when it is not there.
        conditions: what decides results beside the run, as plain JSON values.
        decode: a result from the plain values of its fields; raises ValueError, KeyError, TypeError or
            AttributeError for values that cannot be.
        stem: begin of a run's file name, for people.
        warn: called with a sentence when a broken file was moved aside.
        owner: what writes here, in the message of :meth:`locked`.
    """

    def __init__(
        self,
        folder: Path,
        conditions: Mapping[str, str],
        *,
        decode: Callable[[Mapping[str, Any]], R],
        stem: Callable[[C], str],
        warn: Callable[[str], None] = lambda text: None,
        owner: str = "experiment",
    ) -> None:
        """Make the folder when it is not there."""
        self.folder = folder
        self.conditions = dict(conditions)
        self._decode, self._stem, self._warn, self._owner = decode, stem, warn, owner
        folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for this process, so that no second one writes to it.

        Raises:
            RunError: another process holds it.
        """
        import fcntl

        with open(self.folder / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise RunError(
                    f"another {self._owner} is writing to {self.folder}; wait for it or choose another folder."
                ) from error
            for left in self.folder.glob(f".*{TEMPORARY_SUFFIX}"):
                left.unlink()
            yield

    def key(self, cell: C) -> str:
        """Hash that names `cell` under the store's conditions."""
        content = {"format": _FORMAT, "cell": asdict(cell), "conditions": self.conditions}
        return hashlib.sha256(_canonical(content)).hexdigest()

    def path(self, cell: C) -> Path:
        """File of `cell`."""
        return self.folder / f"{self._stem(cell)}-{self.key(cell)[:16]}.json"

    def load(self, cell: C) -> R | None:
        """Result of `cell` when there is a valid one.

        A file that does not hold what :meth:`save` wrote is moved aside (``.corrupt`` behind its name) and
        named through `warn`, and None is returned, so that the run is done again.
        """
        path = self.path(cell)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        try:
            content = json.loads(raw)
            if content["key"] != self.key(cell):
                raise ValueError("it belongs to another run")
            if content["sha256"] != hashlib.sha256(_canonical(content["result"])).hexdigest():
                raise ValueError("its checksum does not fit its content")
            return self._decode(content["result"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            aside = _free_name(path.with_name(path.name + ".corrupt"))
            os.replace(path, aside)
            reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            self._warn(f"{path} is damaged ({reason}); moved to {aside.name}, the run is done again.")
            return None

    def save(self, cell: C, outcome: R) -> None:
        """Write the result of `cell`; a crash leaves the whole file or none.

        Raises:
            ValueError: a number in `outcome` is not finite.
        """
        result = asdict(outcome)
        content = {
            "key": self.key(cell),
            "cell": asdict(cell),
            "conditions": self.conditions,
            "result": result,
            "sha256": hashlib.sha256(_canonical(result)).hexdigest(),
        }
        write_atomic(
            self.path(cell), json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        )


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _free_name(path: Path) -> Path:
    candidate, number = path, 1
    while candidate.exists():
        candidate, number = path.with_name(f"{path.name}.{number}"), number + 1
    return candidate
