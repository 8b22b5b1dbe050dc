"""The folder of a run: what it was made with, checked before anything is written, and what is finished in it.

run.json      settings, files with their checksums, versions, hardware, sessions, status, results
config.yaml   the settings again, to be used as --config
seed-<s>/     checkpoints, metrics.jsonl, metrics.csv, result.json, model/
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from xferkit.checkpoints import locked_folder
from xferkit.files import free_name, remove_left_overs, write_atomic
from xferkit.runs.config import IGNORED_BY_IDENTITY, AnyRunConfig, run_options
from xferkit.runs.environment import hardware, source_commit, versions
from xferkit.runs.files import dump_yaml, read_sealed, write_sealed
from xferkit.runs.schema import nested

__all__ = ["SCHEMA", "InputFile", "RunFolder", "read_run"]

#: Number of the form of run.json and result.json; a greater one is refused.
SCHEMA = 1
_RUN, _CONFIG, _RESULT, _LOCK = "run.json", "config.yaml", "result.json", ".lock"
_SHOWN_DIFFERENCES = 3

Say = Callable[[str], None]


@dataclass(frozen=True)
class InputFile:
    """A file that a run reads.

    Attributes:
        role: ``"train"``, ``"unlabelled"``, ``"dev"``, ``"test"`` or ``"vectors"``.
        language: its language; "" for vectors.
        path: as it was given.
        sha256: of its content, which is what counts.
    """

    role: str
    language: str
    path: str
    sha256: str

    def describe(self) -> str:
        """``--train en=en.tsv``."""
        return f"--{self.role} {self.language}={self.path}" if self.language else f"{self.role} {self.path}"


def read_run(path: Path) -> dict[str, Any]:
    """Content of the run.json of a run's folder.

    Raises:
        ValueError: no run's folder, a damaged one, or one of a newer version.
    """
    if not (path / _RUN).is_file():
        raise ValueError(f"{path} is no folder of a run: it holds no {_RUN}")
    content = read_sealed(path / _RUN)
    _check_schema(path / _RUN, content)
    return content


def _check_schema(path: Path, content: Mapping[str, Any]) -> None:
    schema = content.get("schema")
    if type(schema) is not int or schema < 1:
        raise ValueError(f"{path} has schema {schema!r}; expected a number from 1 to {SCHEMA}")
    if schema > SCHEMA:
        raise ValueError(
            f"{path} has schema {schema}, and this version reads up to {SCHEMA}; use a newer one"
        )


class RunFolder:
    """A run's folder, held by this process.

    Args:
        path: the folder.
        config: the settings.
        files: what the run reads.
        say: told sentences about the folder.
        warn: told what should not be missed.
    """

    def __init__(
        self, path: Path, config: AnyRunConfig, files: Sequence[InputFile], say: Say, warn: Say | None = None
    ) -> None:
        self.path, self.config, self.files = path, config, tuple(files)
        self._say, self._warn = say, warn or say
        self._content: dict[str, Any] = {}

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the folder, made or found fitting, with run.json saying how the session ends.

        Raises:
            ValueError: the folder belongs to another run (the sentence says what differs), holds other files, is
                in use, or cannot be made; nothing in it was changed.
        """
        self._check_place()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"cannot use {self.path} as the folder of the run: {error.strerror or error}"
            ) from error
        with locked_folder(self.path):
            remove_left_overs(self.path / _RUN)
            found = read_run(self.path) if (self.path / _RUN).exists() else None
            if found is not None and self._differences(found) and not self._has_begun():
                self._say(f"{self.path} holds a run that never made a step; its settings are replaced.")
                found = None
            if found is not None:
                self._check_same(found)
            self._begin(found)
            try:
                yield
            except BaseException as error:
                self._end("stopped" if _is_stop(error) else "failed", error)
                raise
            self._end("finished", None)

    # What the folder may be

    def _check_place(self) -> None:
        if not self.path.exists() or (self.path / _RUN).exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"{self.path} is a file; expected a folder for the run, or a name that is free")
        others = sorted(entry.name for entry in self.path.iterdir() if entry.name != _LOCK)
        others = [name for name in others if not (name.startswith(".") and name.endswith(".tmp"))]
        if others:
            shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
            raise ValueError(
                f"{self.path} holds other files ({shown}) and no run; expected an empty folder or a new name, and "
                "nothing was written"
            )

    def _has_begun(self) -> bool:
        """Whether there is anything to lose: a checkpoint, a model or a result."""
        return any(
            (seed / _RESULT).exists() or (seed / "model").exists() or any(seed.glob("checkpoints/step-*"))
            for seed in self.path.glob("seed-*")
        )

    def _differences(self, found: Mapping[str, Any]) -> list[str]:
        return [*self._other_settings(found["config"]), *self._other_files(found["files"])]

    def _check_same(self, found: Mapping[str, Any]) -> None:
        differences = self._differences(found)
        if differences:
            shown = "; ".join(differences[:_SHOWN_DIFFERENCES])
            more = len(differences) - _SHOWN_DIFFERENCES
            rest = f" (and {more} more)" if more > 0 else ""
            raise ValueError(
                f"{self.path} holds another run: {shown}{rest}; choose another --out, or repeat its settings "
                f"({self.path / _CONFIG}); nothing was changed"
            )

    def _other_settings(self, before: Mapping[str, Any]) -> list[str]:
        now = self.config.values()
        if before.get("method") != now["method"]:
            return [f"method is {before.get('method')} there and {now['method']} here"]
        # A version that knows more settings than the one before means their defaults.
        defaults = {key: option.default for key, option in run_options(self.config.method).items()}
        differences = []
        for key in dict.fromkeys((*now, *before)):
            if key in IGNORED_BY_IDENTITY:
                continue
            there = before.get(key, _plain(defaults.get(key)))
            here = now.get(key, _plain(defaults.get(key)))
            if there != here:
                differences.append(f"{key} is {_shown(there)} there and {_shown(here)} here")
        return differences

    def _other_files(self, before: Sequence[Mapping[str, str]]) -> list[str]:
        now = {(f.role, f.language): f for f in self.files}
        then = {(f["role"], f["language"]): InputFile(**f) for f in before}
        differences = []
        for key in dict.fromkeys((*then, *now)):
            if key not in now:
                differences.append(f"{then[key].describe()} was read there and is not named here")
            elif key not in then:
                differences.append(f"{now[key].describe()} is named here and was not read there")
            elif now[key].sha256 != then[key].sha256:
                differences.append(
                    f"the content of {now[key].describe()} is another than that of {then[key].path} was"
                )
        if not differences and list(now) != list(then):
            differences.append("the languages are in another order")
        return differences

    # run.json

    def _begin(self, found: Mapping[str, Any] | None) -> None:
        session = {
            "begun": _now(),
            "ended": None,
            "status": "running",
            "host": socket.gethostname(),
            "process": os.getpid(),
            "ranks": int(os.environ.get("WORLD_SIZE", "1")),
            "versions": versions(),
            "commit": source_commit(),
            "hardware": hardware(),
        }
        sessions = list(found["sessions"]) if found else []
        if sessions:
            self._compare_sessions(sessions[-1], session)
        seeds = list(dict.fromkeys([*(found["seeds"] if found else ()), *self.config.seeds]))
        self._content = {
            "schema": SCHEMA,
            "status": "running",
            "method": self.config.method,
            "config": self.config.values(),
            "files": [asdict(file) for file in self.files],
            "seeds": seeds,
            "sessions": [*sessions, session],
            "facts": dict(found["facts"]) if found else {},
            "results": found["results"] if found else None,
        }
        write_sealed(self.path / _RUN, self._content)
        write_atomic(self.path / _CONFIG, dump_yaml(nested(self.config.values())))

    def _compare_sessions(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
        changed = [
            f"{name} {before['versions'].get(name)} then and {version} now"
            for name, version in now["versions"].items()
            if before["versions"].get(name) != version
        ]
        if before["commit"] != now["commit"]:
            changed.append(f"commit {before['commit']} then and {now['commit']} now")
        if changed:
            self._warn(f"{self.path} was begun with other code: {'; '.join(changed)}; results may mix both.")

    def note_facts(self, **facts: Any) -> None:
        """Keep what was seen in the data or decided from it."""
        self._content["facts"] |= facts
        write_sealed(self.path / _RUN, self._content)

    def note_results(self, results: Mapping[str, Any]) -> None:
        """Keep the summary over seeds."""
        self._content["results"] = dict(results)
        write_sealed(self.path / _RUN, self._content)

    def _end(self, status: str, error: BaseException | None) -> None:
        session = self._content["sessions"][-1]
        session |= {"ended": _now(), "status": status}
        if error is not None:
            session["reason"] = f"{type(error).__name__}: {error}"[:2000]
        self._content["status"] = status
        with contextlib.suppress(OSError) if error is not None else contextlib.nullcontext():
            write_sealed(self.path / _RUN, self._content)  # the error under way says more than a full disk

    # Seeds

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of the run: those of this session and of the ones before."""
        return tuple(self._content["seeds"])

    def seed_folder(self, seed: int) -> Path:
        """Folder of a seed."""
        return self.path / f"seed-{seed}"

    def load_result(self, seed: int, *, repair: bool = True) -> dict[str, Any] | None:
        """Result of a seed that is finished, None for others; with `repair` a damaged one is moved aside and said."""
        path = self.seed_folder(seed) / _RESULT
        if not path.exists():
            return None
        try:
            content = read_sealed(path)
        except ValueError as error:
            if not repair:
                return None
            aside = free_name(path.with_name(path.name + ".corrupt"))
            os.replace(path, aside)
            self._warn(f"{error}; moved to {aside.name}, the seed is tested again.")
            return None
        _check_schema(path, content)
        return content

    @staticmethod
    def save_result(folder: Path, result: Mapping[str, Any]) -> None:
        """Write a finished seed's result into its folder."""
        write_sealed(folder / _RESULT, {"schema": SCHEMA, **result})


def _is_stop(error: BaseException) -> bool:
    return isinstance(error, KeyboardInterrupt) or getattr(error, "exit_code", 0) > 128


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    text = "null" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
