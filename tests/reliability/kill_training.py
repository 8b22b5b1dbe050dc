"""Kills trainings with SIGKILL at random moments, resumes them, and compares how they end with the run left alone.

Usage: ``python tests/reliability/kill_training.py --kills 100 [--ranks 2] [--seed 0]``. A run is killed up to five
times before it may end; with several ranks, half of the kills hit one of them alone, and the others must end within
ten seconds, by themselves or (after two) by the SIGTERM that torchrun sends. Prints planned and executed kills, runs,
lost runs and differing ends; exits with 1 unless the last two are 0.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import FaultServer, Outcome

MOST_KILLS_OF_A_RUN = 5
SLOWEST_END = 10.0
TRAINING = {"steps": 12, "every": 2, "pace": 0.01}


@dataclass
class Tally:
    """What came of the kills."""

    kills: int = 0
    runs: int = 0
    before_the_first_checkpoint: int = 0
    told: int = 0
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)
    slow_ends: list[str] = field(default_factory=list)

    @property
    def bad(self) -> list[str]:
        """All that must not be."""
        return self.lost + self.differing + self.slow_ends


class _Killer:
    def __init__(self, server: FaultServer, ranks: int, seed: int) -> None:
        self.server, self.ranks, self.random = server, ranks, random.Random(seed)

    def run(self, folder: Path, **options: Any) -> tuple[Outcome, dict[str, str] | None]:
        if self.ranks == 1:
            outcome = self.server.run("training_scenarios:train", folder, **TRAINING, **options)
            return outcome, outcome.value and outcome.value["hashes"]
        scenario = "training_scenarios:train_ranks"
        outcome = self.server.run(scenario, folder, ranks=self.ranks, **TRAINING, **options)
        return outcome, outcome.value and outcome.value["hashes"]

    def kill(self, folder: Path, seconds: float, tally: Tally) -> dict[str, str] | None:
        """One start that is killed within `seconds`; gives its hashes when it was faster."""
        after = self.random.uniform(0, seconds)
        if self.ranks > 1 and self.random.random() < 0.5:
            rank = self.random.randrange(self.ranks)
            outcome, hashes = self.run(folder, kill_rank=rank, after=after)
            if outcome.value and outcome.value["codes"][rank] == -9:
                tally.kills += 1
                others = outcome.value["codes"][:rank] + outcome.value["codes"][rank + 1 :]
                tally.told += outcome.value["told"]
                # 0: it had finished already; 4: it raised; -15: it was told to end by the launcher.
                if outcome.value["seconds"] > SLOWEST_END or any(code not in (0, 4, -15) for code in others):
                    tally.slow_ends.append(f"rank {rank} killed after {after:.3f} s: {outcome.value}")
                return None
        else:
            outcome, hashes = self.run(folder, kill_after=after)
            if outcome.status == -9:
                tally.kills += 1
                return None
        if hashes is None:
            tally.lost.append(f"start that was not killed: {outcome}")
        return hashes


def kill_runs(server: FaultServer, folder: Path, kills: int, ranks: int, seed: int) -> Tally:
    """Kill until `kills` kills have hit; every run then ends and is compared."""
    killer, tally = _Killer(server, ranks, seed), Tally()
    outcome, gold = killer.run(folder / "gold", trace=True)
    if gold is None:
        raise RuntimeError(f"the run left alone failed: {outcome}")
    seconds = outcome.seconds
    while tally.kills < kills:
        run = folder / "run"
        shutil.rmtree(run, ignore_errors=True)
        hashes = None
        for _ in range(killer.random.randint(1, MOST_KILLS_OF_A_RUN)):
            if hashes is None and tally.kills < kills:
                hashes = killer.kill(run, seconds, tally)
                tally.before_the_first_checkpoint += not list(run.glob("checkpoints/step-*"))
        if hashes is None:
            outcome, hashes = killer.run(run)
        tally.runs += 1
        where = f"run {tally.runs} (seed {seed})"
        if hashes is None:
            tally.lost.append(f"{where}: {outcome}")
        elif hashes != gold:
            names = [name for name in gold if hashes[name] != gold[name]]
            tally.differing.append(f"{where}: {names} differ from the run left alone")
    return tally


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, FaultServer("training_scenarios") as server:
        tally = kill_runs(server, Path(folder), options.kills, options.ranks, options.seed)
    print(
        f"{options.ranks} rank(s), seed {options.seed}: planned {options.kills} kills, executed {tally.kills}, of them "
        f"{tally.before_the_first_checkpoint} before the first checkpoint; {tally.runs} runs, {len(tally.lost)} lost, "
        f"{len(tally.differing)} ended differently, {len(tally.slow_ends)} slow or odd ends of a surviving rank "
        f"({tally.told} were told to end by the launcher), "
        f"{time.monotonic() - start:.0f} s"
    )
    print("\n".join(tally.bad))
    return 1 if tally.bad or tally.kills != options.kills else 0


if __name__ == "__main__":
    sys.exit(main())
