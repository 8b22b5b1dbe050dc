"""``make gpu``: build with CUDA, test and time on the GPU at hand, with this interpreter and nothing fetched.

Each stage runs in a process of its own with a time limit, writes its output to the results folder and prints one
line; a stage whose tools are missing is skipped by name. Exit code 1 when a stage failed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Stage:
    name: str
    command: list[str]
    modules: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    limit_s: int = 300

    def missing(self) -> list[str]:
        lacking = [name for name in self.modules if importlib.util.find_spec(name) is None]
        return lacking + [name for name in self.programs if find_program(name) is None]


@dataclass(frozen=True)
class Outcome:
    name: str
    result: str  # "ok", "failed", "skipped"
    seconds: float
    detail: str


def find_program(name: str) -> str | None:
    """On the PATH or in CUDA's own folder."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def stages(out: Path) -> list[Stage]:
    """What there is to do, in order: correctness before times."""
    python = sys.executable
    gpu_tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/ops", "tests/test_interop.py"]
    run = [python, "benchmarks/run.py", "--device", "cuda"]
    return [
        Stage("hardware", ["nvidia-smi"], programs=("nvidia-smi",), limit_s=30),
        Stage(
            "build",
            [python, "setup.py", "-q", "build_ext", "--inplace"],
            ("pybind11", "setuptools"),
            ("nvcc",),
        ),
        Stage(
            "import", [python, "-c", "import xfercore; print(xfercore.build_info())"], ("torch",), limit_s=60
        ),
        Stage("tests", [*gpu_tests, "-k", "cuda or gpu"], ("pytest", "hypothesis", "expecttest")),
        Stage(
            "memcheck",
            ["compute-sanitizer", "--error-exitcode", "9", python, "benchmarks/gpu_small.py"],
            programs=("compute-sanitizer",),
        ),
        Stage(
            "racecheck",
            [
                "compute-sanitizer",
                "--tool",
                "racecheck",
                "--error-exitcode",
                "9",
                python,
                "benchmarks/gpu_small.py",
            ],
            programs=("compute-sanitizer",),
        ),
        Stage("times", [*run, "--op", "all", "--json", str(out / "cuda.json")], ("torch",), limit_s=900),
        Stage(
            "step", [*run, "--system", "man_moe_step", "--json", str(out / "step.json")], ("torch", "scipy")
        ),
        Stage(
            "surgery_step",
            [*run, "--system", "surgery_step", "--json", str(out / "surgery_step.json")],
            ("torch", "numpy"),
        ),
    ]


def run_stage(stage: Stage, out: Path) -> Outcome:
    """Runs one stage and keeps its output."""
    lacking = stage.missing()
    if lacking:
        return Outcome(stage.name, "skipped", 0.0, f"missing: {', '.join(lacking)}")
    environment = os.environ | {
        "XFER_CUDA": "1",
        "PYTHONPATH": os.pathsep.join(
            [str(ROOT), str(ROOT / "python_api"), os.environ.get("PYTHONPATH", "")]
        ),
    }
    command = [find_program(stage.command[0]) or stage.command[0], *stage.command[1:]]
    log = out / f"{stage.name}.log"
    start = time.monotonic()
    with log.open("w", encoding="utf-8") as stream:
        try:
            code = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=stage.limit_s,
            ).returncode
            result, detail = ("ok", "") if code == 0 else ("failed", f"exit code {code}, see {log}")
        except subprocess.TimeoutExpired:
            result, detail = "failed", f"not done after {stage.limit_s} s, see {log}"
    return Outcome(stage.name, result, round(time.monotonic() - start, 1), detail)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder that receives logs and results")
    parser.add_argument("--only", nargs="*", help="stages to run (default: all)")
    arguments = parser.parse_args()
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    planned = stages(out)
    unknown = set(arguments.only or []) - {stage.name for stage in planned}
    if unknown:
        parser.error(f"--only: no stage {sorted(unknown)}; there are {[stage.name for stage in planned]}")
    outcomes = []
    for stage in planned:
        if arguments.only and stage.name not in arguments.only:
            continue
        outcomes.append(run_stage(stage, out))
        last = outcomes[-1]
        print(f"{last.name:10s} {last.result:8s} {last.seconds:7.1f} s  {last.detail}", flush=True)
        if last.name in ("build", "import") and last.result == "failed":
            break  # nothing after it could run
    (out / "summary.json").write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=1))
    return int(any(outcome.result == "failed" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
