"""What is known of how a table was made: when, where, with what, and how long it took."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

from xferkit.report.format import duration
from xferkit.runs.environment import hardware, source_commit, versions

__all__ = ["facts_shown", "table_facts"]


def table_facts(
    conditions: Mapping[str, str],
    *,
    runs: int,
    reused: int,
    workers: int,
    wall_seconds: float,
    run_seconds: float,
) -> dict[str, Any]:
    """The facts as JSON holds them.

    Args:
        conditions: what decides a result beside its run.
        runs: number of runs.
        reused: those that were finished before this start.
        workers: processes.
        wall_seconds: time since this start.
        run_seconds: time of all runs together.
    """
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "runs": runs,
        "runs_reused": reused,
        "workers": workers,
        "wall_seconds": wall_seconds,
        "run_seconds": run_seconds,
        "data_sha256": conditions["data"],
        "code_sha256": conditions["code"],
        "commit": source_commit(),
        "environment": {**hardware(), **versions()},
    }


def facts_shown(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The facts as a page shows them, names and values."""
    where = f"{facts['workers']} workers of one thread" if facts["workers"] else "one process"
    taken = (
        f"; {facts['runs_reused']} runs were taken over from an earlier start" if facts["runs_reused"] else ""
    )
    spent = f"{duration(facts['wall_seconds'])} with {where}{taken}; {duration(facts['run_seconds'])} of runs in all"
    return [
        ("Date", facts["date"]),
        ("Time", f"{facts['runs']} runs; {spent}"),
        ("Data", f"SHA-256 {facts['data_sha256'][:16]}"),
        ("Code", f"SHA-256 {facts['code_sha256'][:16]}; commit {facts['commit'] or 'unknown'}"),
        *facts["environment"].items(),
    ]
