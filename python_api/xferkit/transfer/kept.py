"""Finished runs of earlier calls: opened, used again where nothing that decides them changed, and told about."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from xferkit.experiments.cells import CellStore
from xferkit.runs.errors import RunError
from xferkit.transfer.calling import Outcome, decode_outcome
from xferkit.transfer.identity import first_of
from xferkit.transfer.plan import Plan, Run, counted

__all__ = ["finished_runs", "opened"]

RunStore = CellStore[Run, Outcome]

_OTHER_VERSION = "another version of xferkit"
_KEY = re.compile(r"-[0-9a-f]{16}$")


@contextlib.contextmanager
def opened(
    out: str | os.PathLike[str] | None, conditions: Mapping[str, str], notes: list[str]
) -> Iterator[RunStore | None]:
    """The finished runs in a folder, held for this process; None without a folder.

    Args:
        out: the folder.
        conditions: what decides a run's result beside the run.
        notes: filled with sentences on damaged files.

    Raises:
        RunError: another process holds it, or it cannot be written to.
    """
    if out is None:
        yield None
        return
    try:
        store = RunStore(
            Path(out) / "runs",
            conditions,
            decode=decode_outcome,
            stem=_stem,
            warn=notes.append,
            owner="diagnosis",
        )
        with store.locked():
            yield store
    except OSError as error:
        raise RunError(f"cannot write to {error.filename or out}: {error.strerror or error}") from error


def finished_runs(plan: Plan, store: RunStore | None, notes: list[str]) -> dict[Run, Outcome]:
    """The runs of `plan` that earlier calls finished; `notes` get a sentence on those used and on those not."""
    if store is None:
        return {}
    found = {run: outcome for run in plan.runs if (outcome := store.load(run)) is not None}
    if found:
        notes.append(
            f"{len(found)} of {counted(plan.num_runs, 'run')} {'is' if len(found) == 1 else 'are'} of earlier calls; "
            "what the training reads from files, mutable globals and libraries is not checked (settings= names it)."
        )
    others = _others([run for run in plan.runs if run not in found], store)
    if others:
        notes.append(
            f"{counted(len(others), 'run')} of earlier calls {'is' if len(others) == 1 else 'are'} not used, since "
            f"what decides the result has changed: {_changes(others[-1], store.conditions)}."
        )
    return found


def _stem(run: Run) -> str:
    names = "+".join(re.sub(r"[^A-Za-z0-9_-]", "_", task)[:16] for task in run.tasks[:4])
    return f"{names}{'+more' if len(run.tasks) > 4 else ''}-{run.matching}-seed{run.seed}"


def _others(missing: list[Run], store: RunStore) -> list[Any]:
    """Of each missing run the conditions of the newest file that an earlier call left, oldest first."""
    by_stem: dict[str, list[Path]] = {}
    for path in sorted(store.folder.glob("*.json"), key=lambda p: p.stat().st_mtime, reverse=True):
        by_stem.setdefault(_KEY.sub("", path.stem), []).append(path)
    found = []
    for run in missing:
        for path in by_stem.get(_stem(run), ()):
            cell, conditions = _read(path)
            if cell == json.loads(json.dumps(asdict(run))):  # long names share a stem
                found.append((path.stat().st_mtime, conditions))
                break
    return [conditions for _, conditions in sorted(found, key=lambda item: item[0])]


def _read(path: Path) -> tuple[Any, Any]:
    try:
        content = json.loads(path.read_bytes())
        return content["cell"], content["conditions"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None, None


def _changes(before: Any, conditions: Mapping[str, str]) -> str:
    """What differs between two conditions, by name."""
    try:
        if before.get("format") != conditions.get("format"):
            return _OTHER_VERSION
        old, new = json.loads(before["code"]), json.loads(conditions["code"])
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        if not names and before["train_fn"] != conditions["train_fn"]:
            names.append("train_fn or what it holds")
        if before["settings"] != conditions["settings"]:
            names.append("settings")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _OTHER_VERSION
    return first_of(names) or _OTHER_VERSION
