"""Compiles every .cu of csrc/ops with nvcc and prints each kernel's registers, shared memory and spills.

Exits with 1 on an error, a warning or a spill, with 0 and a sentence where there is no nvcc.
Usage: ``python tests/simt/compile_kernels.py [OP ...]``.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHS = ("80", "90a")
FLAGS = ["-std=c++20", "-O3", f"-I{ROOT / 'csrc'}", "-Xptxas", "-v", "-Werror", "all-warnings"]


@dataclass
class Kernel:
    """What ptxas reports of one kernel for one architecture."""

    name: str
    arch: str
    registers: int
    smem: int
    spill_bytes: int


def parse_report(report: str) -> list[Kernel]:
    """The kernels in the output of ``nvcc -Xptxas -v``."""
    kernels = []
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\S+)' for 'sm_(?P<arch>\w+)'.*?"
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    for match in pattern.finditer(report):
        smem = re.search(r"(\d+) bytes smem", match["rest"])
        spill = int(match["stores"]) + int(match["loads"])
        kernels.append(
            Kernel(match["name"], match["arch"], int(match["registers"]), int(smem[1]) if smem else 0, spill)
        )
    return kernels


def demangle(names: list[str]) -> list[str]:
    """Readable names, without namespaces and parameter lists; unchanged where c++filt is missing."""
    tool = shutil.which("c++filt")
    if tool is None or not names:
        return names
    out = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    noise = re.compile(r"xfer::|portable::|\(anonymous namespace\)::|\(int\)|^void |(?<=>)\(.*$")
    return [noise.sub("", line) for line in out.splitlines()]


def compile_source(nvcc: str, source: Path) -> tuple[Path, float, subprocess.CompletedProcess[str]]:
    """Compiles one file for every architecture; the object is thrown away."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, *FLAGS, "-c", str(source), "-o", str(Path(folder) / "out.o")]
        for arch in ARCHS:
            command += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return source, time.perf_counter() - start, done


def main(ops: list[str]) -> int:
    """Compiles, prints the table, returns the exit status."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        print("kernels: no nvcc on the PATH, nothing compiled")
        return 0
    sources = sorted((ROOT / "csrc" / "ops").glob("*/*.cu"))
    sources = [source for source in sources if not ops or source.parent.name in ops]
    if not sources:
        print(f"kernels: no .cu file for {', '.join(ops) or 'any op'}")
        return 1
    failed = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for source, seconds, done in pool.map(lambda source: compile_source(nvcc, source), sources):
            print(f"{source.relative_to(ROOT)}: {seconds:.1f} s")
            if done.returncode != 0:
                print(done.stdout + done.stderr)
                failed += 1
                continue
            kernels = parse_report(done.stdout + done.stderr)
            for kernel, name in zip(kernels, demangle([kernel.name for kernel in kernels]), strict=True):
                spill = f"  SPILLS {kernel.spill_bytes} bytes" if kernel.spill_bytes else ""
                use = f"{kernel.registers:4} registers {kernel.smem:6} B smem"
                print(f"  sm_{kernel.arch:4}{use}  {name}{spill}")
            failed += sum(kernel.spill_bytes > 0 for kernel in kernels)
            # Kernels in the source and none in the report: ptxas words it otherwise now, nothing was checked.
            failed += not kernels and "__global__" in source.read_text()
    print("kernels: " + (f"{failed} defects" if failed else "all compile, none spills"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
