"""Where a result was measured, and the readable table of the rows."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

__all__ = ["environment", "table"]

_ROOT = Path(__file__).resolve().parent.parent


def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _thp_of_system() -> str | None:
    try:
        return Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text().strip()
    except OSError:
        return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def environment(device: str) -> dict[str, Any]:
    """Hardware, versions, commit, date, threads and huge pages of this process."""
    import xfercore

    build_info = getattr(xfercore, "build_info", None)
    status = _git("status", "--porcelain", "--untracked-files=no")
    gpu = torch.cuda.get_device_name() if device == "cuda" else None
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
        "cpu": _cpu_model(),
        "cores": _cores(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "xfercore_build": build_info() if callable(build_info) else None,
        "threads": torch.get_num_threads(),
        "thp_mem_alloc_enable": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "thp_system": _thp_of_system(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    }


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _ratio(ratio: dict[str, float]) -> str:
    return f"{ratio['p50']:.2f}x ({ratio['p20']:.2f}-{ratio['p80']:.2f})"


def _variant_line(name: str, entry: dict[str, Any], clock: str) -> str:
    if "error" in entry:
        return f"  {name:<28} failed: {entry['error'][:90]}"
    t = entry[f"{clock}_ms"]
    wall = _ms(entry["wall_ms"]["p50"]) if clock == "cpu" else ""
    share, ratio, peak = (entry.get(key) for key in ("share_of_floor", "speedup_of_ours", "peak_bytes"))
    share_text = "" if share is None else f"{100 * share['p50']:.0f} %"
    ratio_text = "" if ratio is None else _ratio(ratio)
    if "share_of_ours" in entry:
        ratio_text = f"{100 * entry['share_of_ours']['p50']:.1f} % of ours"
    rate = f" {entry['per_second']['p50']:>12,.0f}" if "per_second" in entry else ""
    peak_text = "" if peak is None else f"{peak / 2**20:.1f}"
    error_text = f"{entry['rel_err']:.0e}" if "rel_err" in entry else ""
    return (
        f"  {name:<28} {_ms(t['p20']):>9} {_ms(t['p50']):>9} {_ms(t['p80']):>9} {wall:>9}"
        f" {share_text:>7} {peak_text:>9} {ratio_text:>19} {error_text:>8}{rate}"
    )


def table(row: dict[str, Any]) -> str:
    """One row as text: a head, the floor, one line a variant, and the ratios that count."""
    clock = row["clock"]
    ceilings, floor = row["ceilings"], row["floor"]
    lines = [row["name"]]
    rates = [f"copy {ceilings['copy_bytes_per_s']['p50'] / 1e9:.1f} GB/s"]
    if ceilings["matmul_flops_per_s"]:
        shape = "x".join(map(str, ceilings["matmul_shape"]))
        rates.append(f"matmul {shape} {ceilings['matmul_flops_per_s']['p50'] / 1e9:.1f} GFLOP/s")
    if floor["flops"] or floor["bytes"]:
        rates.append(f"floor {_ms(floor['ms']['p50'])} ms by {floor['bound']}")
    lines.append(f"  {', '.join(rates)}; {row['rounds']} rounds, {clock} time")
    amount = row.get("amount")
    rate = f" {amount['unit'] + '/s':>12}" if amount else ""
    lines.append(
        f"  {'variant':<28} {'p20 ms':>9} {'p50 ms':>9} {'p80 ms':>9} {'wall' if clock == 'cpu' else '':>9}"
        f" {'floor':>7} {'peak MiB':>9} {'ours faster by':>19} {'rel err':>8}{rate}"
    )
    lines += [_variant_line(name, entry, clock) for name, entry in row["variants"].items()]
    for role in ("eager", "compiled"):
        ratio = row[f"speedup_vs_{role}"]
        if ratio:
            lines.append(f"  -> {_ratio(ratio)} the best {role} one, {row[f'best_{role}']}")
    if row.get("profile"):
        lines.append(row["profile"]["table"])
    return "\n".join(lines)
